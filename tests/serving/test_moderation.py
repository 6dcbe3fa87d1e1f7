"""What must not pass, in requests and in answers."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servers import image_part, png, running, text_part, user, wav

from mmgpt.errors import ConfigError
from mmgpt.generation import Answer, Choice
from mmgpt.serving.moderation import BlockList, Moderator, whole_words
from mmgpt.serving.service import MODERATORS, Passage

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


ODD = "cat badwor xé\u0301\u200b.@$_!|7 \ufffd\n"


@given(st.text(ODD, max_size=20) | st.just("a cat"), st.text(ODD, max_size=10) | st.just("egory"))
@example("a cat", "egory")
@example("c a t", " s")
@example("cat\u200b", "egory")
@example("red@red!", "x")
@settings(max_examples=500)
def test_words_that_are_whole_are_found_in_all_that_they_may_become(text, more):
    cats = BlockList(["cat", "ca", "a b", "redared"])
    if cats(text[: whole_words(text)]):
        assert cats(text.rstrip("\ufffd") + more)


@pytest.mark.parametrize(
    ("text", "whole"),
    [("a cat", ""), ("a cat ", "a cat"), ("the red. Cat", "the red"), ("the b a d", "the"), ("red\ufffd", "")],
)
def test_the_last_word_and_single_letters_are_not_whole(text, whole):
    assert text[: whole_words(text)] == whole


def states(text: str, finish: str = "stop") -> list[Answer]:
    """An answer of a token a letter, as it grows."""
    return [
        Answer(
            list(range(end)),
            text[:end],
            finish if end == len(text) else "cancelled",
            [Choice(token, -1.0, ()) for token in range(end)],
        )
        for end in range(1, len(text) + 1)
    ]


def told(answers: list[Answer], moderator: Moderator) -> list[Answer]:
    """What passes of an answer as it grows."""

    async def forbids(text: str) -> bool:
        return moderator(text)

    async def run() -> list[Answer]:
        passage = Passage()
        return [await passage.passed(answer, forbids) for answer in answers]

    return asyncio.run(run())


def test_a_word_that_goes_on_as_another_one_passes():
    seen = told(states("see a category and go"), BlockList(["cat"]))
    assert {answer.finish for answer in seen[:-1]} == {"cancelled"}
    assert (seen[-1].text, seen[-1].finish) == ("see a category and go", "stop")


def test_of_a_word_that_must_not_pass_no_letter_is_told_nor_of_its_tokens():
    seen = told(states("this is a badword now"), LIST)
    assert (seen[-1].text, seen[-1].finish) == ("this is", "content_filter")
    assert all("this is".startswith(answer.text) for answer in seen)
    assert all(len(answer.choices) == len(answer.tokens) <= len(answer.text) for answer in seen)


def test_a_moderator_is_asked_once_a_word():
    asked: list[str] = []
    told(states("one two three four"), lambda text: bool(asked.append(text)))
    assert asked == ["one", "one two", "one two three", "one two three four"]


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
            lambda: chats.create(model="tiny", messages=user(text_part("The sec"), text_part("ret plan?"))),
            lambda: chats.create(
                model="tiny", messages=user(text_part("Secret"), image_part(png(1)), text_part("plan"))
            ),
            lambda: chats.create(model="tiny", messages=user(text_part("badword"), text_part("s"))),
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
        "seed": 2,  # its answer begins with a word and a control character
        "max_tokens": 24,
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


def test_while_a_moderator_thinks_others_are_served(assistant):
    asked = {"model": "tiny", "messages": user(text_part("Hm?")), "seed": 2, "max_tokens": 12}
    thinks, done = threading.Event(), threading.Event()

    def moderator(text: str) -> bool:
        if text != "Hm?":
            thinks.set()
            done.wait(20)
        return False

    with running(assistant) as free:
        whole = free.client.chat.completions.create(**asked).choices[0].message.content
    with running(assistant, moderator=moderator) as server, ThreadPoolExecutor() as threads:
        answer = threads.submit(server.client.chat.completions.create, **asked)
        try:
            assert thinks.wait(20)
            assert server.http.get("/health", timeout=5).status_code == 200
            assert not answer.done()
        finally:
            done.set()
        assert answer.result().choices[0].message.content == whole


def test_nothing_passes_a_moderator_who_says_nothing(assistant, monkeypatch):
    monkeypatch.setattr("mmgpt.serving.service.MODERATION_SECONDS", 0.2)
    done = threading.Event()

    def moderator(text: str) -> bool:
        return not done.wait(20)

    asked = {"model": "tiny", "messages": user(text_part("Hm?")), "max_tokens": 1}
    with running(assistant, moderator=moderator) as server:
        try:
            with pytest.raises(openai.InternalServerError, match="moderation does not answer") as told:
                server.client.chat.completions.create(**asked)
            assert told.value.status_code == 503
        finally:
            done.set()
        assert server.client.chat.completions.create(**asked).choices


def test_requests_that_a_moderator_thinks_about_keep_none_of_others_from_being_read(assistant):
    thinking, done = threading.Semaphore(0), threading.Event()

    def moderator(text: str) -> bool:
        if text.startswith("Slow"):
            thinking.release()
            done.wait(20)
        return False

    def asked(text: str) -> dict:
        return {"model": "tiny", "messages": user(text_part(text)), "max_tokens": 1}

    with running(assistant, moderator=moderator) as server, ThreadPoolExecutor() as threads:
        create = server.client.chat.completions.create
        slow = [threads.submit(create, **asked(f"Slow {i}")) for i in range(MODERATORS - 1)]
        try:
            assert all(thinking.acquire(timeout=20) for _ in slow)
            assert threads.submit(create, **asked("Quick")).result(10).choices
            assert not any(answer.done() for answer in slow)
        finally:
            done.set()
        assert all(answer.result().choices for answer in slow)


def test_a_transcript_that_must_not_pass_is_refused(assistant):
    with running(assistant, moderator=lambda text: len(text) > 3) as server:
        with pytest.raises(openai.BadRequestError) as refused:
            server.client.audio.transcriptions.create(model="tiny", file=("a.wav", wav(1)))
        assert refused.value.code == "content_policy_violation"
