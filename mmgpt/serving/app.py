"""The endpoints of OpenAI's API."""

import base64
import json
import logging
import struct
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Form
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from mmgpt.generation import Answer, Choice, Request, settled
from mmgpt.serving import schema
from mmgpt.serving.errors import as_api_error, tell_errors
from mmgpt.serving.gate import PAGE, Gate
from mmgpt.serving.service import FILTERED, Service, refusal
from mmgpt.serving.settings import Keys
from mmgpt.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0  # in place of minus infinity, which JSON does not know
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data: blob:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schema.Refusal, "description": "What is wrong with the request, or that now is not the time."},
    "5XX": {"model": schema.Refusal, "description": "The server is about to end, or failed."},
}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "The answer; with stream=true its chunks as events."}
}
log = logging.getLogger(__name__)
_as_json = json.JSONEncoder(ensure_ascii=False).encode


async def _take(asked: HTTPConnection) -> Callable[[int], None]:
    return asked.state.take


Take = Annotated[Callable[[int], None], Depends(_take)]  # whom the gate has told of a request's bytes


class Events(StreamingResponse):
    """Server-sent events. Their source is closed whenever the response ends, be it that the client left."""

    def __init__(self, events: AsyncGenerator[str]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.events):
            await super().__call__(scope, receive, send)


def build_app(service: Service, keys: Keys, origins: Sequence[str] = ()) -> ASGIApp:
    """The server's ASGI app.

    Args:
        service: The model at work.
        keys: Who may ask.
        origins: Web pages that may ask from a browser; "*" for all.
    """
    # The pages that show the API would load scripts from other servers; its description is at /openapi.json.
    app = FastAPI(title="mmgpt", docs_url=None, redoc_url=None, responses=REFUSALS)
    tell_errors(app)
    _add_answers(app, service)
    _add_others(app, service)
    _add_page(app)
    gate = Gate(app, service, keys)
    if not origins:
        return gate
    return CORSMiddleware(gate, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])


def _add_answers(app: FastAPI, service: Service) -> None:
    """The endpoints that ask the GPT."""
    tokenizer = service.tokenizer

    @app.post("/v1/chat/completions", response_model=schema.ChatCompletion, responses=STREAMED)
    async def chat(asked: schema.ChatRequest, take: Take) -> Response:
        """Answer a conversation of texts, pictures, sounds and videos."""
        began = time.monotonic()
        service.check_model(asked.model)
        asked.messages = await service.fetched(asked.messages, take)
        requests = await service.chat(asked)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.name}
        if asked.stream:
            growing = service.answers(began, requests, growing=True)
            chunk = partial(schema.ChatChunk, **head, choices=[])
            return Events(
                _events(growing, asked, chunk, requests, lambda i, p: chat_piece(i, p, _chat_logprobs(p, tokenizer)))
            )
        answers = await service.finished(began, requests)
        choices = [
            schema.ChatChoice(
                index=index,
                message=schema.ChatMessage(content=answer.text),
                finish_reason=_finish(answer) or "stop",
                logprobs=_chat_logprobs(Piece.whole(answer), tokenizer),
            )
            for index, answer in enumerate(answers)
        ]
        return _json(schema.ChatCompletion(**head, choices=choices, usage=_usage(requests, answers)))

    @app.post("/v1/completions", response_model=schema.Completion, responses=STREAMED)
    async def complete(asked: schema.CompletionRequest) -> Response:
        """Go on with texts."""
        began = time.monotonic()
        service.check_model(asked.model)
        requests = await service.complete(asked)
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.name}
        if asked.stream:
            growing = service.answers(began, requests, growing=True)
            chunk = partial(schema.Completion, **head, choices=[])
            return Events(
                _events(growing, asked, chunk, requests, lambda i, p: text_piece(i, p, _text_logprobs(p, tokenizer)))
            )
        answers = await service.finished(began, requests)
        choices = [
            schema.CompletionChoice(
                index=index,
                text=answer.text,
                finish_reason=_finish(answer),
                logprobs=_text_logprobs(Piece.whole(answer), tokenizer),
            )
            for index, answer in enumerate(answers)
        ]
        return _json(schema.Completion(**head, choices=choices, usage=_usage(requests, answers)))

    @app.post(
        "/v1/audio/transcriptions",
        response_model=schema.Transcription,
        responses={200: {"content": {"text/plain": {}}, "description": "What is said."}},
    )
    async def transcribe(asked: Annotated[schema.TranscriptionRequest, Form()]) -> Response | schema.Transcription:
        """Write down what is said in a sound."""
        began = time.monotonic()
        service.check_model(asked.model)
        data = await asked.file.read()
        [answer] = await service.finished(began, await service.transcribe(asked, data))
        if answer.finish == FILTERED:
            raise refusal()
        text = answer.text.strip()
        return PlainTextResponse(text) if asked.response_format == "text" else schema.Transcription(text=text)


def _add_others(app: FastAPI, service: Service) -> None:
    model = schema.Model(id=service.name, created=service.created)

    @app.post("/v1/embeddings")
    async def embed(asked: schema.EmbeddingRequest) -> schema.Embeddings:
        """The vectors of texts, by a model that pairs media with texts."""
        service.check_model(asked.model)
        vectors, tokens = await service.embed(asked.input)
        data = [
            schema.Vector(index=index, embedding=_packed(vector) if asked.encoding_format == "base64" else vector)
            for index, vector in enumerate(vectors)
        ]
        usage = schema.EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
        return schema.Embeddings(model=service.name, data=data, usage=usage)

    @app.post("/v1/explanations")
    async def explain(asked: schema.ExplanationRequest, take: Take) -> schema.Explanation:
        """Where the model looks and listens for each word of an answer."""
        service.check_model(asked.model)
        asked.messages = await service.fetched(asked.messages, take)
        return schema.Explanation(model=service.name, words=await service.explain(asked))

    @app.get("/v1/models")
    async def models() -> schema.Models:
        """The one model there is."""
        return schema.Models(data=[model])

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> schema.Model:
        """The model, if that is its name."""
        service.check_model(name)
        return model

    @app.get("/health", responses={503: {"model": schema.Health, "description": "The server is about to end."}})
    async def health(response: Response) -> schema.Health:
        """200 as long as requests are taken, else 503."""
        if service.draining:
            response.status_code = 503
        return schema.Health(status="draining" if service.draining else "ok")

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}, "description": "Counts and times."}})
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    """A page to try the model on, at /. It loads nothing from elsewhere, and shows what it is told as text alone."""
    for path, name, kind in PAGE:
        content = (Path(__file__).parent / "page" / name).read_bytes()

        def file(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind, headers=PAGE_HEADERS)

        app.get(path, include_in_schema=False)(file)


@dataclass(frozen=True)
class Piece:
    """What is new of an answer: its text, and of its `choices` those behind the first `told_choices`."""

    text: str
    finish: schema.Finish | None
    choices: list[Choice] | None
    told_choices: int = 0
    told: bool = True  # whether there was a piece before

    @staticmethod
    def whole(answer: Answer) -> "Piece":
        return Piece(answer.text, _finish(answer), answer.choices)


class Frame:
    """Server-sent events that are all alike but for their one choice, put together in a fifth of pydantic's time.

    Args:
        chunk: What an event is, without choices.
    """

    def __init__(self, chunk: schema.ChatChunk | schema.Completion):
        self._before, empty, self._after = chunk.model_dump_json().rpartition('"choices":[]')
        assert empty
        self._before += '"choices":['

    def event(self, choice: str) -> str:
        return f"data: {self._before}{choice}]{self._after}\n\n"


def chat_piece(index: int, piece: Piece, logprobs: schema.ChatLogprobs | None) -> str:
    """The JSON of a schema.ChatChunkChoice."""
    role = "" if piece.told else ',"role":"assistant"'
    return f'{{"index":{index},"delta":{{"content":{_as_json(piece.text)}{role}}},{_end_json(piece, logprobs)}}}'


def text_piece(index: int, piece: Piece, logprobs: schema.CompletionLogprobs | None) -> str:
    """The JSON of a schema.CompletionChoice."""
    return f'{{"index":{index},"text":{_as_json(piece.text)},{_end_json(piece, logprobs)}}}'


def _end_json(piece: Piece, logprobs: BaseModel | None) -> str:
    finish = "null" if piece.finish is None else f'"{piece.finish}"'
    return f'"finish_reason":{finish},"logprobs":{"null" if logprobs is None else logprobs.model_dump_json()}'


def _json(told: BaseModel) -> Response:
    """What is known to be as it should: FastAPI would check it and look through it once more."""
    return Response(told.model_dump_json(), media_type="application/json")


async def _events(
    answers: AsyncGenerator[list[Answer]],
    asked: schema.Generated,
    chunk: Callable[..., schema.ChatChunk | schema.Completion],
    requests: Sequence[Request],
    choice: Callable[[int, Piece], str],
) -> AsyncGenerator[str]:
    """Answers, piece by piece as they grow, as server-sent events.

    Args:
        answers: The states of the answers.
        asked: What was asked for.
        chunk: Makes an event without choices of its `usage`.
        requests: Whose tokens are told as usage.
        choice: Makes the JSON of an answer's piece, of the answer's number and the piece.
    """
    frame = Frame(chunk(usage=None))
    texts: dict[int, str] = {}
    choices: dict[int, int] = {}
    ended: set[int] = set()
    now: list[Answer] = []
    try:
        async with aclosing(answers):
            async for now in answers:
                for index, answer in enumerate(now):
                    text, finish = settled(answer, asked.stop), _finish(answer)
                    new = text[len(texts.get(index, "")) :]
                    if index in ended or not (new or finish):
                        continue
                    piece = Piece(new, finish, answer.choices, choices.get(index, 0), index in texts)
                    yield frame.event(choice(index, piece))
                    texts[index], choices[index] = text, len(answer.choices or ())
                    if finish:
                        ended.add(index)
        if asked.stream_options is not None and asked.stream_options.include_usage:
            yield f"data: {chunk(usage=_usage(requests, now)).model_dump_json()}\n\n"
    except Exception as error:  # the status was sent long ago
        told = as_api_error(error)
        if told.status >= 500:
            log.exception("a stream failed")
        yield f"data: {told.body()}\n\n"
    yield "data: [DONE]\n\n"


def _finish(answer: Answer) -> schema.Finish | None:
    return None if answer.finish == "cancelled" else answer.finish


def _usage(requests: Sequence[Request], answers: Sequence[Answer]) -> schema.Usage:
    prompt, answer = sum(len(request.prompt) for request in requests), sum(len(answer.tokens) for answer in answers)
    return schema.Usage(prompt_tokens=prompt, completion_tokens=answer, total_tokens=prompt + answer)


def _chat_logprobs(piece: Piece, tokenizer: Tokenizer) -> schema.ChatLogprobs | None:
    if piece.choices is None:
        return None
    return schema.ChatLogprobs(
        content=[
            schema.TokenLogprob(
                **_likely(choice.token, choice.logprob, tokenizer),
                top_logprobs=[schema.Likely(**_likely(*likely, tokenizer)) for likely in choice.likeliest],
            )
            for choice in piece.choices[piece.told_choices :]
        ]
    )


def _likely(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    text = tokenizer.decode([token])
    data = None if "\ufffd" in text else list(text.encode())
    return {"token": tokenizer.spelled([token]), "logprob": max(logprob, LEAST_LOGPROB), "bytes": data}


def _text_logprobs(piece: Piece, tokenizer: Tokenizer) -> schema.CompletionLogprobs | None:
    if piece.choices is None:
        return None
    tokens = [tokenizer.spelled([choice.token]) for choice in piece.choices]
    ends = list(accumulate(map(len, tokens), initial=0))
    new = slice(piece.told_choices, None)
    return schema.CompletionLogprobs(
        tokens=tokens[new],
        token_logprobs=[max(choice.logprob, LEAST_LOGPROB) for choice in piece.choices[new]],
        top_logprobs=[
            {tokenizer.spelled([token]): max(logprob, LEAST_LOGPROB) for token, logprob in choice.likeliest}
            for choice in piece.choices[new]
        ],
        text_offset=ends[:-1][new],
    )


def _packed(vector: list[float]) -> str:
    """Little-endian float32 in base64, which the openai client asks for unless told otherwise."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
