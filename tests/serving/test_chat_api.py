"""Answers through the official client: those that the model gives alone, whole and in pieces."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import openai
import pytest
from jsonschema import Draft202012Validator
from servers import audio_part, image_part, mp4, png, running, text_part, user, video_part, wav
from tiny import tiny_config

from mmgpt.assistant import Assistant
from mmgpt.batch import Example
from mmgpt.config import GPTConfig, PairConfig
from mmgpt.content import Audio, Image, Message, Text, Video
from mmgpt.generation import Decoding, Engine
from mmgpt.model import MultimodalGPT

DRAWN = {"temperature": 1.0, "seed": 3, "max_tokens": 12}


def alone(assistant, *parts, n=1, **decoding):
    settings = {"temperature": 1.0, "seed": 3, "max_new_tokens": 12, "n": n, **decoding}
    return [answer.text for answer in assistant.answers(list(parts), **settings)]


def test_a_chat_with_media_of_all_kinds_is_answered_as_alone(client, assistant, tmp_path):
    picture, sound, clip = png(0), wav(1), mp4(tmp_path, 2)
    done = client.chat.completions.create(
        model="tiny",
        messages=user(image_part(picture), text_part("and"), audio_part(sound), video_part(clip), text_part("What?")),
        **DRAWN,
    )
    parts = Image(picture), Text("and"), Audio(sound), Video(clip), Text("What?")
    assert [done.choices[0].message.content] == alone(assistant, *parts)
    prompt = assistant.processor.encode_prompt([Message("user", parts)])
    [answer] = assistant.answers(list(parts), temperature=1.0, seed=3, max_new_tokens=12)
    assert done.usage.prompt_tokens == len(prompt)
    assert done.usage.completion_tokens == len(answer.tokens)
    assert done.usage.total_tokens == len(prompt) + len(answer.tokens)
    assert (done.model, done.object, done.choices[0].finish_reason) == ("tiny", "chat.completion", answer.finish)


def said(client, **asked) -> tuple[list[str], list[str | None], list]:
    """Texts, how they ended and log-probabilities of a stream, put together; and that its form is right."""
    texts, ends, logprobs, usage = {}, {}, {}, None
    for chunk in client.chat.completions.create(
        model="tiny", stream=True, stream_options={"include_usage": True}, **asked
    ):
        assert usage is None, "the usage comes last"
        usage = chunk.usage
        for choice in chunk.choices:
            assert (choice.delta.role == "assistant") == (choice.index not in texts)
            assert choice.index not in ends
            texts[choice.index] = texts.get(choice.index, "") + choice.delta.content
            logprobs.setdefault(choice.index, []).extend(choice.logprobs.content if choice.logprobs else [])
            if choice.finish_reason is not None:
                ends[choice.index] = choice.finish_reason
    order = sorted(texts)
    return [texts[i] for i in order], [ends[i] for i in order], [logprobs[i] for i in order], usage


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"n": 3, "seed": 7},
        {"seed": 1, "stop": ["e", "ab"], "max_tokens": 40},
        {"seed": 2, "top_p": 0.5, "frequency_penalty": 1.0, "presence_penalty": 0.5},
        {"seed": 4, "logprobs": True, "top_logprobs": 2},
    ],
)
def test_a_stream_says_what_is_said_at_once(client, settings):
    asked = {"messages": user(image_part(png(5)), text_part("What?")), "max_tokens": 16, **settings}
    texts, ends, logprobs, usage = said(client, **asked)
    whole = client.chat.completions.create(model="tiny", **asked)
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    for streamed, choice in zip(logprobs, whole.choices, strict=True):
        told = choice.logprobs.content if choice.logprobs else []
        assert [token.token for token in streamed] == [token.token for token in told]
        assert len(told) == (usage.completion_tokens if settings.get("logprobs") else 0)


def test_a_stream_ends_with_done_and_has_no_usage_unless_asked_for(server):
    asked = {"messages": user(text_part("What?")), "max_tokens": 3, "stream": True}
    lines = server.http.post("/v1/chat/completions", json=asked).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all('"usage":null' in line for line in lines[:-2])


def test_requests_in_parallel_are_answered_as_alone(client, assistant, tmp_path):
    clip = mp4(tmp_path, 0)
    asked = []
    for i in range(12):
        data = [png(i), wav(i, 2000 + 300 * i), clip][i % 3]
        part, medium = [(image_part, Image), (audio_part, Audio), (video_part, Video)][i % 3]
        way = {"temperature": [0.0, 1.0][i % 2], "seed": i, "max_tokens": 4 + i, "n": 1 + (i % 4 == 1)}
        asked.append((part(data), medium(data), "word " * (i % 5 + 1), way))

    def ask(number: int) -> list[str]:
        part, _, text, way = asked[number]
        messages = user(part, text_part(text))
        if number % 2:
            return said(client, messages=messages, **way)[0]
        done = client.chat.completions.create(model="tiny", messages=messages, **way)
        return [choice.message.content for choice in done.choices]

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(ask, range(12)))
    for (_, medium, text, way), answer in zip(asked, answers, strict=True):
        most = way["max_tokens"]
        settings = {name: value for name, value in way.items() if name != "max_tokens"}
        assert answer == alone(assistant, medium, Text(text), max_new_tokens=most, **settings)


def test_a_seed_repeats_an_answer_and_without_one_answers_differ(client):
    def ask(**settings) -> str:
        done = client.chat.completions.create(
            model="tiny", messages=user(text_part("What?")), max_completion_tokens=20, **settings
        )
        return done.choices[0].message.content

    assert ask(seed=5) == ask(seed=5) != ask(seed=6)
    assert len({ask() for _ in range(4)}) > 1


def test_a_stop_text_ends_the_answer_before_it(client):
    asked = {"model": "tiny", "messages": user(text_part("What?")), "seed": 1, "max_tokens": 40}
    free = client.chat.completions.create(**asked).choices[0].message.content
    stop = free[5:7]
    stopped = client.chat.completions.create(**asked, stop=stop).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (free[: free.index(stop)], "stop")


def test_logprobs_are_the_engines(client, assistant):
    done = client.chat.completions.create(
        model="tiny", messages=user(text_part("What?")), logprobs=True, top_logprobs=3, **DRAWN
    )
    [answer] = assistant.answers("What?", temperature=1.0, seed=3, max_new_tokens=12, logprobs=3)
    told = done.choices[0].logprobs.content
    assert [token.logprob for token in told] == pytest.approx([choice.logprob for choice in answer.choices], abs=1e-4)
    assert all(len(token.top_logprobs) == 3 for token in told)
    assert all(token.bytes == list(token.token.encode()) for token in told if token.bytes is not None)


def test_an_answer_keeps_to_a_schema(client):
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "shape", "schema": schema, "strict": True}}
    for seed in range(3):
        done = client.chat.completions.create(
            model="tiny", messages=user(image_part(png(seed))), response_format=shape, seed=seed, max_tokens=60
        )
        found = json.loads(done.choices[0].message.content)
        assert found["colour"] in ("red", "blue")
        assert found["count"] in range(10)
    done = client.chat.completions.create(
        model="tiny", messages=user(text_part("What?")), response_format={"type": "json_object"}, temperature=0
    )
    assert done.choices[0].message.content.startswith("{")


def test_an_answer_is_one_of_the_choices_or_matches_the_pattern(client):
    def ask(**extra) -> str:
        asked = {"messages": user(image_part(png(0))), "max_tokens": 60, "extra_body": extra}
        return client.chat.completions.create(model="tiny", **asked).choices[0].message.content

    assert {ask(choices=["red", "dark blue"]) for _ in range(8)} == {"red", "dark blue"}
    assert re.fullmatch(r"[a-c]{3}-[0-9]", ask(regex="[a-c]{3}-[0-9]"))


def test_an_answer_of_the_assistant_can_be_sent_back_and_developers_are_the_system(client, assistant):
    messages = [{"role": "developer", "content": "Be brief."}, *user(text_part("What?"))]
    first = client.chat.completions.create(model="tiny", messages=messages, **DRAWN).choices[0].message
    again = [*messages, first.model_dump(), *user(text_part("Why?"))]
    done = client.chat.completions.create(model="tiny", messages=again, **DRAWN)
    conversation = [
        Message.of("system", "Be brief."),
        Message.of("user", "What?"),
        Message.of("assistant", first.content),
        Message.of("user", "Why?"),
    ]
    [answer] = assistant.reply([conversation], temperature=1.0, seed=3, max_new_tokens=12)
    assert done.choices[0].message.content.strip() == answer


def test_completions_go_on_with_each_text(client, assistant):
    done = client.completions.create(model="tiny", prompt=["A red", "a blue"], n=2, logprobs=1, **DRAWN)
    tokenizer = assistant.tokenizer
    expected = []
    for text in ("A red", "a blue"):
        ids = [*tokenizer.opening("assistant"), *tokenizer.encode(text)]
        example = Example(ids, [False] * len(ids), [])
        [answers] = Engine(assistant.model, tokenizer).run([example], Decoding(12, temperature=1.0, seed=3, n=2))
        expected += [answer.text for answer in answers]
    assert [choice.text for choice in done.choices] == expected
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    logprobs = done.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) > 1
    pieces = ["", "", "", ""]
    for chunk in client.completions.create(model="tiny", prompt=["A red", "a blue"], n=2, stream=True, **DRAWN):
        pieces[chunk.choices[0].index] += chunk.choices[0].text
    assert pieces == expected


def test_each_text_to_go_on_with_may_be_as_long_as_the_context(client, assistant):
    context, text = assistant.model.config.gpt.context, "A red circle. "
    while len(assistant.tokenizer.encode(text + text)) < context // 2:
        text += text
    count = 2 * context // len(assistant.tokenizer.encode(text))
    done = client.completions.create(model="tiny", prompt=[text] * count, max_tokens=1, temperature=0)
    assert len(done.choices) == count


def test_a_sound_is_transcribed(client, assistant):
    sound = wav(4)
    expected = assistant.transcribe(Audio(sound), max_new_tokens=64)
    transcribe = client.audio.transcriptions.create
    assert transcribe(model="tiny", file=("a.wav", sound), response_format="json").text == expected
    assert transcribe(model="tiny", file=("a.wav", sound), response_format="text") == expected


def test_the_model_is_listed_and_the_server_is_well(client, server):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    assert server.http.get("/health").json() == {"status": "ok"}


def test_the_api_describes_itself(server):
    described = server.http.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/audio/transcriptions", "/v1/embeddings"} <= set(
        described["paths"]
    )

    def told(name: str, value: object) -> bool:
        return Draft202012Validator({**described, "$ref": f"#/components/schemas/{name}"}).is_valid(value)

    parts = [text_part("a"), image_part(png(0)), audio_part(wav(0)), video_part(b"")]
    assert told("ChatRequest", {"messages": user(*parts), "temperature": 1.0})
    assert told("ChatRequest", {"messages": [{"role": "system", "content": "a"}]})
    unknown = [*(user({"type": kind}) for kind in ("file", "image_url")), user(), []]
    for messages in unknown:
        assert not told("ChatRequest", {"messages": messages})
        refused = server.http.post("/v1/chat/completions", json={"messages": messages})
        assert refused.status_code == 400
        assert told("Refusal", refused.json())
    for operation in (one for path in described["paths"].values() for one in path.values()):
        assert operation["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/Refusal")
        assert "422" not in operation["responses"]  # FastAPI's own, which never comes


def test_metrics_count_requests_tokens_and_times(assistant):
    with running(assistant) as own:
        done = own.client.chat.completions.create(model="tiny", messages=user(text_part("What?")), n=2, **DRAWN)
        own.http.get("/v1/models/other")
        told = own.http.get("/metrics").text
        for line in (
            'mmgpt_requests_total{path="/v1/chat/completions",status="200"} 1.0',
            'mmgpt_requests_total{path="other",status="404"} 1.0',
            f'mmgpt_tokens_total{{kind="prompt"}} {float(done.usage.prompt_tokens)}',
            f'mmgpt_tokens_total{{kind="answer"}} {float(done.usage.completion_tokens)}',
            "mmgpt_first_token_seconds_count 1.0",
            'mmgpt_request_seconds_count{path="/v1/chat/completions"} 1.0',
            "mmgpt_queue_length 0.0",
            "mmgpt_requests_in_progress 0.0",
        ):
            assert line in told.splitlines()


def test_a_model_of_pairs_embeds_and_answers_nothing(tokenizer, client):
    paired = Assistant(
        MultimodalGPT(
            replace(
                tiny_config(len(tokenizer)),
                pair=PairConfig(width=16, text=GPTConfig(width=24, layers=1, heads=2, context=160), heads=2),
            )
        ),
        tokenizer,
    )
    texts = ["a red circle", *(f"text {i}" for i in range(20))]
    with running(paired) as own:
        told = own.client.embeddings.create(model="tiny", input=texts)
        plain = own.client.embeddings.create(model="tiny", input=texts[0], encoding_format="float")
        expected = paired.embed(texts[0]).tolist()
        assert [vector.index for vector in told.data] == list(range(21))
        assert told.data[0].embedding == pytest.approx(expected, abs=1e-5)
        assert told.data[20].embedding == pytest.approx(paired.embed(texts[20]).tolist(), abs=1e-5)
        assert plain.data[0].embedding == pytest.approx(expected, abs=1e-5)
        assert plain.usage.prompt_tokens == len(tokenizer.encode(texts[0]))
        if not paired.model.config.answers:
            with pytest.raises(openai.BadRequestError, match="answers nothing; ask /v1/embeddings"):
                own.client.completions.create(model="tiny", prompt="A")
    with pytest.raises(openai.BadRequestError, match="not trained to pair media with texts"):
        client.embeddings.create(model="tiny", input="a text")
