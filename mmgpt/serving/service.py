"""What the server does, apart from HTTP: from what a client asked to answers."""

import asyncio
import base64
import json
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any, TypeVar

from mmgpt.assistant import Assistant, Embedded
from mmgpt.batch import Example, MediaInput
from mmgpt.chat_format import parse_messages
from mmgpt.content import Audio, Image, Medium, Message, Part, Text, Video
from mmgpt.errors import shown
from mmgpt.evaluation.explain import explain_example
from mmgpt.evaluation.explain_page import pictures
from mmgpt.evaluation.pictures import picture_uri
from mmgpt.generation import Answer, Decoding, Engine, Request
from mmgpt.processor import Processor, TooLongError
from mmgpt.serving.decoder import Sent
from mmgpt.serving.decoders import Decoders, Load
from mmgpt.serving.errors import APIError
from mmgpt.serving.fetch import Fetcher
from mmgpt.serving.metrics import Metrics
from mmgpt.serving.moderation import Moderator, whole_words
from mmgpt.serving.schema import (
    ChatRequest,
    CompletionRequest,
    ExplainedWord,
    ExplanationRequest,
    Generated,
    TranscriptionRequest,
)
from mmgpt.serving.settings import Limits
from mmgpt.serving.worker import Job, Worker
from mmgpt.tasks import TASKS
from mmgpt.threads import helpers

T = TypeVar("T")
ENCODERS = 2  # threads that tokenize
FETCHERS = 8  # threads that wait for media of others
MODERATORS = 4  # threads that ask a moderator about requests and answers
MODERATION_SECONDS = 30  # until a moderator who says nothing is taken to be gone, and nothing passes
BODIES = 8  # requests of the most bytes, as many of which all requests together may hold
CONSTRAINT_CHARACTERS = 1 << 16  # of a JSON schema, or of what else answers keep to
COMPLETED_TOKENS = 16  # of a completion, unless the request says otherwise; as in OpenAI's API
EXPLAINED_MEDIA, EXPLAINED_TOKENS = 4, 200  # of a request to explain an answer: each medium takes hundreds of passes
TEXTS_AT_ONCE = 16  # whose vectors are computed between two steps of the engine
FILTERED = "content_filter"
HARMLESS = {"role", "content", "refusal", "annotations"}  # of a message; the last two come with answers sent back
ROLES = {"developer": "system"}  # how OpenAI calls it now


class Service:
    """One model at work for many clients, in an event loop; `close` ends its threads and processes.

    Args:
        assistant: The model.
        name: What clients call it.
        limits: What they may ask for.
        rows: Most answers decoded at once.
        moderator: Tells of what clients send and of what the model answers whether it must not pass.
        fetcher: Gets media at addresses that clients send; None: they are refused.
    """

    def __init__(
        self,
        assistant: Assistant,
        name: str,
        limits: Limits,
        rows: int = 32,
        moderator: Moderator | None = None,
        fetcher: Fetcher | None = None,
    ):
        model, tokenizer = assistant.model, assistant.tokenizer
        self.assistant, self.name, self.limits, self.created = assistant, name, limits, int(time.time())
        self.moderator, self.fetcher = moderator, fetcher
        self.fetching = helpers(FETCHERS, "fetch")
        self.tokenizer, self.context = tokenizer, model.config.gpt.context
        # The model's limits of time are in its configuration; they are lowered to those of the server.
        lowered = {
            kind: replace(config, max_seconds=min(config.max_seconds, limits.seconds))
            for kind in ("audio", "video")
            if (config := getattr(model.config, kind)) is not None
        }
        self.processor = Processor(replace(model.config, **lowered), tokenizer, max_pixels=limits.pixels)
        self.worker = Worker(lambda: Engine(model, tokenizer, rows=rows))
        self.pool = helpers(ENCODERS, "encode")
        self.explaining = helpers(1, "explain")
        self.moderating = helpers(MODERATORS, "moderate")
        self.decoders = Decoders(limits.decoding, limits.memory)
        self.running, self.held, self.draining = 0, 0, False
        self.metrics = Metrics(lambda: self.running, lambda: self.worker.waiting)

    def close(self) -> None:
        for pool in (self.pool, self.explaining, self.moderating, self.fetching):
            pool.shutdown(wait=False, cancel_futures=True)
        self.decoders.close()
        self.worker.stop()

    @contextmanager
    def place(self) -> Iterator[Callable[[int], None]]:
        """A place among those who are served, and whom to tell of the bytes that come from him.

        Both raise APIError: there is no place, the server is about to end, or it holds as many bytes as it may.
        """
        if self.draining:
            raise APIError(
                503, "the server is about to end; ask another", code="draining", headers={"Retry-After": "5"}
            )
        if self.running >= self.limits.requests:
            raise APIError(429, "the queue is full; ask again later", code="queue_full", headers={"Retry-After": "1"})
        held = 0

        def take(count: int) -> None:
            nonlocal held
            if self.held + count > BODIES * self.limits.body:
                raise APIError(
                    429, "too much is being sent; ask again later", code="memory_full", headers={"Retry-After": "1"}
                )
            held, self.held = held + count, self.held + count

        self.running += 1
        try:
            yield take
        finally:
            self.running -= 1
            self.held -= held

    def check_model(self, name: str | None) -> None:
        if name not in (None, self.name):
            raise APIError(
                404, f"there is no model {name!r}; this server has {self.name!r}", "model", "model_not_found"
            )

    async def aside(self, work: Callable[[], T], pool: ThreadPoolExecutor | None = None) -> T:
        """What work returns, done in the pool: neither the event loop nor the engine waits for it."""
        return await asyncio.get_running_loop().run_in_executor(pool or self.pool, work)

    async def fetched(self, messages: list[dict[str, Any]], take: Callable[[int], None]) -> list[dict[str, Any]]:
        """The messages with what lies at the addresses in them; as they are, if nothing is fetched.

        `take` is told of their bytes, as of those of a body.
        """
        if self.fetcher is None:
            return messages
        places = [place for message in messages for place in _addresses(message)]
        self._check_media(len(places))
        room = self.limits.body
        for place in places:
            data = await self.aside(partial(self.fetcher, place["url"]), self.fetching)
            if (room := room - len(data)) < 0:
                raise APIError(400, f"media are over the {self.limits.body:,} bytes of this server", "messages")
            place["url"] = f"data:;base64,{base64.b64encode(data).decode()}"
            take(len(place["url"]))
        return messages

    async def encoded(self, conversation: Sequence[Message]) -> Example:
        """A conversation up to where the assistant is to begin, its media decoded by a process of their own."""
        media = [part for message in conversation for part in message.parts if not isinstance(part, Text)]

        def work(load: Load) -> dict[Medium, MediaInput]:
            return {part: self.processor.preprocessed(load(part, **self.processor.decoding(part))) for part in media}

        inputs = await self.decoders.run(work) if media else {}
        return await self.aside(partial(self.processor.encode_prompt, conversation, shared=inputs))

    # From what was asked to requests of the engine; but for media and a moderator, all of it runs in the pool

    async def chat(self, asked: ChatRequest) -> list[Request]:
        conversation, decoding = await self.aside(partial(self._chat, asked))
        await self._moderate(*_passages(conversation))
        example = await self.encoded(conversation)
        return await self.aside(lambda: [self.worker.engine.prepare(example, decoding)])

    def _chat(self, asked: ChatRequest) -> tuple[list[Message], Decoding]:
        self._check_answers()
        conversation = self._conversation(asked.messages)
        schema = asked.response_format.schema_of_answers if asked.response_format is not None else None
        constraints = {"response_format": schema, "choices": asked.choices, "regex": asked.regex}
        for name, constraint in constraints.items():
            if len(json.dumps(constraint)) > CONSTRAINT_CHARACTERS:
                raise APIError(400, f"{name} has over {CONSTRAINT_CHARACTERS:,} characters", name)
        decoding = self._decoding(
            asked,
            asked.max_completion_tokens or asked.max_tokens,
            logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
            json_schema=schema,
            choices=tuple(asked.choices),
            regex=asked.regex,
        )
        return conversation, decoding

    def _conversation(self, told: Sequence[dict[str, Any]]) -> list[Message]:
        messages = [_plain(message, f"messages[{i}]") for i, message in enumerate(told)]
        conversation = self._media_named(parse_messages(messages, None))
        self._check_text(*(part.text for message in conversation for part in message.parts if isinstance(part, Text)))
        return conversation

    async def complete(self, asked: CompletionRequest) -> list[Request]:
        """As the texts of training are laid out that have no request before them: in the assistant's mouth."""
        requests = await self.aside(partial(self._complete, asked))
        await self._moderate(*asked.prompt)
        return requests

    def _complete(self, asked: CompletionRequest) -> list[Request]:
        self._check_answers()
        most = asked.max_tokens or min(COMPLETED_TOKENS, self.limits.tokens)
        decoding = self._decoding(asked, most, prompts=len(asked.prompt), logprobs=asked.logprobs)
        for text in asked.prompt:
            self._check_text(text)
        prompts = [self.processor.encode_beginning(text) for text in asked.prompt]
        return [self.worker.engine.prepare(prompt, decoding) for prompt in prompts]

    async def transcribe(self, asked: TranscriptionRequest, data: bytes) -> list[Request]:
        self._check_answers()
        decoding = Decoding(self.limits.tokens, temperature=asked.temperature, seed=secrets.randbits(62))
        example = await self.encoded(TASKS["transcribe"].conversation(Audio(Sent("file", data))))
        return await self.aside(lambda: [self.worker.engine.prepare(example, decoding)])

    def _check_answers(self) -> None:
        if not self.assistant.model.config.answers:
            raise APIError(
                400, "this model pairs media with texts alone and answers nothing; ask /v1/embeddings", "model"
            )

    def _decoding(self, asked: Generated, most: int | None, *, prompts: int = 1, **settings: Any) -> Decoding:
        if (most or 0) > self.limits.tokens:
            raise APIError(
                400, f"{most} tokens of an answer are over the {self.limits.tokens} of this server", "max_tokens"
            )
        if asked.n * prompts > self.limits.answers:
            raise APIError(400, f"{asked.n * prompts} answers are over the {self.limits.answers} of this server", "n")
        return Decoding(
            max_new_tokens=most or self.limits.tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            frequency_penalty=asked.frequency_penalty,
            presence_penalty=asked.presence_penalty,
            n=asked.n,
            stop=tuple(asked.stop),
            seed=secrets.randbits(62) if asked.seed is None else asked.seed,
            **settings,
        )

    def _media_named(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with media that errors call by their places. Raises APIError for too many."""
        self._check_media(_media_count(messages))
        return [
            Message(
                message.role, tuple(_named(part, f"messages[{i}].content[{j}]") for j, part in enumerate(message.parts))
            )
            for i, message in enumerate(messages)
        ]

    def _check_media(self, count: int) -> None:
        if count > self.limits.media:
            raise APIError(400, f"{count} media are over the {self.limits.media} of this server", "messages")

    def _check_text(self, *texts: str) -> int:
        """How many tokens texts are. Raises TooLongError: beyond the context.

        So they are refused before media are decoded, and what is far beyond before it is tokenized.
        """
        for text in texts:
            text.encode()  # raises for what is no Unicode
        characters, most = sum(map(len, texts)), self.context * self.tokenizer.longest
        if characters > most:
            raise TooLongError(
                f"{characters:,} characters, more than the context of {self.context} tokens; shorten them"
            )
        if (tokens := sum(len(self.tokenizer.encode(text)) for text in texts)) > self.context:
            raise TooLongError(f"{tokens:,} tokens of text, more than the context of {self.context}; shorten it")
        return tokens

    async def _moderate(self, *texts: str) -> None:
        """Raises APIError for texts of a request that must not pass."""
        if await self._forbids(*texts):
            raise refusal()

    async def _forbids(self, *texts: str) -> bool:
        """What the moderator says of texts. He may think long, so that others are served meanwhile."""
        if (moderator := self.moderator) is None:
            return False
        try:
            async with asyncio.timeout(MODERATION_SECONDS):
                return await self.aside(lambda: any(map(moderator, texts)), self.moderating)
        except TimeoutError:
            raise APIError(503, "this server's moderation does not answer; ask again later") from None

    # From requests to answers

    async def answers(self, began: float, requests: Sequence[Request], growing: bool) -> AsyncGenerator[list[Answer]]:
        """How the answers to requests stand, at last when they are done; to close this cancels them."""
        job = Job(requests, growing)
        self.metrics.tokens.labels("prompt").inc(sum(len(request.prompt) for request in requests))
        try:
            async with aclosing(self.worker.follow(job)) as states:
                passages: defaultdict[int, Passage] = defaultdict(Passage)
                async for answers in states:
                    if self.moderator is None:
                        yield answers
                        continue
                    moderated = [await passages[i].passed(answer, self._forbids) for i, answer in enumerate(answers)]
                    yield moderated
                    if all(answer.finish == FILTERED for answer in moderated):
                        return
        finally:
            if job.first_token is not None:
                self.metrics.first_token.observe(job.first_token - began)
            self.metrics.tokens.labels("answer").inc(sum(len(answer.tokens) for answer in job.answers))

    async def finished(self, began: float, requests: Sequence[Request]) -> list[Answer]:
        """The answers to requests, whole."""
        answers: list[Answer] = []
        async with aclosing(self.answers(began, requests, growing=False)) as states:
            async for state in states:
                answers = state
        return answers

    async def explain(self, asked: ExplanationRequest) -> list[ExplainedWord]:
        """Where the model looks for each word of an answer; one request after the other, beside the engine."""
        self._check_answers()

        def checked() -> list[Message]:
            conversation = self._conversation(asked.messages)
            if self._check_text(asked.answer) > EXPLAINED_TOKENS:
                raise APIError(400, f"over {EXPLAINED_TOKENS} tokens of an answer are not explained", "answer")
            if _media_count(conversation) > EXPLAINED_MEDIA:
                raise APIError(400, f"over {EXPLAINED_MEDIA} media are not explained", "messages")
            return conversation

        conversation = await self.aside(checked)
        await self._moderate(asked.answer, *_passages(conversation))
        example = await self.encoded(conversation)
        left = Event()

        def go_on() -> None:
            if left.is_set():
                raise CancelledError

        def work() -> list[ExplainedWord]:
            found = explain_example(self.assistant, example, asked.answer, go_on=go_on)
            return [
                ExplainedWord(
                    text=word.text,
                    probability=word.probability,
                    blind=word.blind,
                    pictures=[picture_uri(picture, max(picture.size)) for picture in seen],
                )
                for word, seen in zip(found.words, pictures(found), strict=True)
            ]

        try:
            return await self.aside(work, self.explaining)
        finally:
            left.set()  # its thread would go on, though nobody reads what it finds

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """The unit vector of each text, and how many tokens they are together."""
        if self.assistant.model.config.pair is None:
            raise APIError(400, "this model was not trained to pair media with texts, so it has no embeddings", "model")
        counts = await self.aside(lambda: [self._check_text(text) for text in texts])
        await self._moderate(*texts)
        vectors: list[list[float]] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            some: list[Embedded] = [*texts[start : start + TEXTS_AT_ONCE]]
            vectors += await self.worker.call(lambda some=some: self.assistant.embed(some).tolist())
        return vectors, sum(counts)


def _plain(message: dict[str, Any], where: str) -> dict[str, Any]:
    """A message as parse_messages takes it. Raises APIError for what would be ignored."""
    if other := next((key for key, value in message.items() if value and key not in HARMLESS), None):
        raise APIError(400, f"{where}.{shown(other)} is not supported here; leave it out", "messages")
    return {**message, "role": ROLES.get(str(message.get("role")), message.get("role"))}


def refusal() -> APIError:
    """What is told of what must not pass."""
    return APIError(400, "the request was refused by this server's moderation", code="content_policy_violation")


class Passage:
    """One answer on its way past a moderator.

    Of one under way the words that are whole are asked about and let pass; where they may not, it ends before them.
    """

    def __init__(self):
        self.before: Answer | None = None
        self.lengths: list[tuple[int, int]] = []  # of the text and the tokens of each state

    async def passed(self, answer: Answer, forbids: Callable[[str], Awaitable[bool]]) -> Answer:
        """As much of the answer as may pass; `forbids` tells of a text whether it must not."""
        before = self.before or replace(answer, text="", tokens=[], choices=answer.choices and [])
        done = answer.finish != "cancelled"
        end = len(answer.text) if done else whole_words(answer.text)
        self.lengths.append((len(answer.text), len(answer.tokens)))
        if before.finish == FILTERED or (not done and end <= len(before.text)):
            return before
        if await forbids(answer.text[:end]):
            self.before = replace(before, finish=FILTERED)
        elif done:
            self.before = answer
        else:
            told = max((tokens for length, tokens in self.lengths if length <= end), default=0)
            choices = answer.choices and answer.choices[:told]
            self.before = replace(answer, text=answer.text[:end], tokens=answer.tokens[:told], choices=choices)
        return self.before


def _passages(conversation: Sequence[Message]) -> Iterator[str]:
    """The texts of a conversation, and those of a message with several as the model sees them: end to end, though media
    stand between words."""
    for message in conversation:
        texts = [part.text for part in message.parts if isinstance(part, Text)]
        yield from texts
        if len(texts) > 1:
            yield "".join(part.text if isinstance(part, Text) else " " for part in message.parts)


def _media_count(messages: Sequence[Message]) -> int:
    return sum(not isinstance(part, Text) for message in messages for part in message.parts)


def _addresses(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of a message with an address of http in them."""
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        for kind in ("image_url", "video_url"):
            place = part.get(kind) if isinstance(part, dict) else None
            if not isinstance(place, dict) or not isinstance(url := place.get("url"), str):
                continue
            if url.lower().startswith(("http://", "https://")):
                yield place


def _named(part: Part, place: str) -> Part:
    match part:
        case Image(bytes(data)) | Audio(bytes(data)) | Video(bytes(data)):
            return type(part)(Sent(place, data))
    return part
