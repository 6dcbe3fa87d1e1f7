"""What must not pass, in requests and in answers."""

import time

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import image_part, png, running, text_part, user, wav

from mmgpt.errors import ConfigError
from mmgpt.serving.moderation import BlockList

LIST = BlockList(["Secret Plan", "badword", ""])


@pytest.mark.parametrize(
    "text",
    [
        "tell me the secret plan!",
        "SECRET   PLAN",
        "s\u00e9cr\u00e8t pl\u00e2n",  # accents
        "\uff33\uff25\uff23\uff32\uff25\uff34 \uff30\uff2c\uff21\uff2e",  # full width
        "sec\u200bret pl\u00adan",  # a space of no width, a soft hyphen
        "5ecre7 p|an",
        "the b a d w o r d is",
        "b.a.d-w_o r d",
        "badword",
    ],
)
def test_phrases_are_found_however_they_are_written(text):
    assert LIST(text)


@pytest.mark.parametrize("text", ["", "secret garden plan", "badwords", "abadword", "secrets planned", "plan secret"])
def test_other_texts_pass(text):
    assert not LIST(text)


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_phrase_is_found_between_any_other_words(before, after):
    assert LIST(f"{before} , badword , {after}")


def test_a_list_is_read_line_by_line(tmp_path):
    (tmp_path / "list").write_text("# what must not pass\n\nbad word\n")
    assert BlockList.read(tmp_path / "list")("a Bad Word")
    (tmp_path / "list").write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"no phrase is in this file"):
        BlockList.read(tmp_path / "list")
    with pytest.raises(ConfigError, match=r"no: cannot be read as a list of phrases"):
        BlockList.read(tmp_path / "no")


def test_requests_are_refused_as_openai_refuses_them(assistant):
    with running(assistant, moderator=LIST) as server:
        chats, texts = server.client.chat.completions, server.client.completions
        for ask in (
            lambda: chats.create(model="tiny", messages=user(image_part(png(1)), text_part("The s3cret plan?"))),
            lambda: chats.create(
                model="tiny", messages=[{"role": "system", "content": "badword"}, *user(text_part("Hi"))]
            ),
            lambda: texts.create(model="tiny", prompt=["fine", "bad_word badword"]),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                ask()
            assert refused.value.code == "content_policy_violation"
        assert chats.create(model="tiny", messages=user(text_part("Hi")), max_tokens=2).choices[0].finish_reason


def test_answers_end_where_they_would_not_pass(assistant, monkeypatch):
    asked = {
        "model": "tiny",
        "messages": user(image_part(png(1)), text_part("Hm?")),
        "temperature": 0,
        "max_tokens": 12,
    }
    with running(assistant) as free:
        whole = free.client.chat.completions.create(**asked, logprobs=True).choices[0]
    texts = []

    def moderator(text: str) -> bool:
        texts.append(text)
        return len(text) >= 6 and (whole.message.content or "").startswith(text)

    with running(assistant, moderator=moderator) as server:
        step = server.service.worker.engine.step
        # Who reads slowly misses states in between: so slow is no reader.
        monkeypatch.setattr(server.service.worker.engine, "step", lambda: (time.sleep(0.05), step()))
        [choice] = server.client.chat.completions.create(**asked, logprobs=True).choices
        assert choice.finish_reason == "content_filter"
        assert len(choice.message.content or "") < 6
        assert choice.logprobs is not None
        spelled = "".join(token.token for token in choice.logprobs.content or [])
        assert spelled == choice.message.content
        chunks = list(server.client.chat.completions.create(**asked, stream=True))
        told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "content_filter"
        assert 0 < len(told) < 6
        assert (whole.message.content or "").startswith(told)
        server.wait_until(lambda: server.idle)  # what nobody will read is not decoded on
    assert "Hm?" in texts


def test_a_transcript_that_must_not_pass_is_refused(assistant):
    with running(assistant, moderator=lambda text: len(text) > 3) as server:
        with pytest.raises(openai.BadRequestError) as refused:
            server.client.audio.transcriptions.create(model="tiny", file=("a.wav", wav(1)))
        assert refused.value.code == "content_policy_violation"
