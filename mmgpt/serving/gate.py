"""What every request passes before the app sees it: keys, a place in the queue, and limits while its body is read."""

import asyncio
import time
from collections.abc import Callable
from math import inf

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmgpt.serving.errors import APIError
from mmgpt.serving.service import Service
from mmgpt.serving.settings import Keys

BODY_SECONDS = 60  # to send a request in
STALLED_SECONDS = 60  # without taking what is sent, until a client is taken to have left
# The page to try the model on: path, file, type. It is for everybody, and itself asks for a key where one is needed.
PAGE = (
    ("/", "index.html", "text/html"),
    ("/page.css", "page.css", "text/css"),
    ("/page.js", "page.js", "text/javascript"),
)
OPEN = {"/health", *(path for path, _, _ in PAGE)}
PATHS = (
    "/",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/audio/transcriptions",
    "/v1/embeddings",
    "/v1/explanations",
    "/v1/models",
    "/health",
    "/metrics",
)


class Gate:
    """An ASGI app around another one. The other is cancelled when its client leaves.

    Args:
        app: It gets whole bodies.
        service: Whose places and limits these are.
        keys: Who may ask. The page and /health are for everybody.
    """

    def __init__(self, app: ASGIApp, service: Service, keys: Keys):
        self.app, self.service, self.keys = app, service, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # as it stays if the client leaves before an answer
        watch = Watch()

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            with watch:
                await send(message)

        try:
            async with watch.limit:
                await self._let_in(scope, Body(receive), sent)
        except LeftError:
            pass
        except TimeoutError:
            if not watch.limit.expired():
                raise
        finally:
            watch.end()
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.service.metrics.requests.labels(path, status).inc()
            self.service.metrics.seconds.labels(path).observe(time.monotonic() - began)

    async def _let_in(self, scope: Scope, body: "Body", send: Send) -> None:
        most = self.service.limits.body
        try:
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            if self.keys and scope["path"] not in OPEN and not (scheme.lower() == "bearer" and self.keys.know(key)):
                raise APIError(401, "no valid API key; send one as Authorization: Bearer KEY", code="invalid_api_key")
            if scope["method"] != "POST":
                await self.app(scope, body.receive, send)
                return
            with self.service.place() as take:
                whole = await body.read(most, take)
                state = {**scope.get("state", {}), "take": take}  # of what the app fetches
                await self._serve({**scope, "state": state}, whole, body.receive, send)
        except APIError as error:
            # Who is still sending might not read the answer otherwise. No more than as much again is taken.
            await body.skip(most)
            await error.response()(scope, body.receive, send)

    async def _serve(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def given() -> Message:
            return pending.pop() if pending else await asyncio.Future()

        app = asyncio.ensure_future(self.app(scope, given, send))
        left = asyncio.ensure_future(receive())  # after the body nothing else can come
        try:
            await asyncio.wait((app, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
            if not app.done():
                app.cancel()
            await asyncio.wait((app,))
        if not app.cancelled() and (error := app.exception()) is not None:
            raise error


class Watch:
    """Has `limit` run out once something takes STALLED_SECONDS; one timer looks after all that a request sends."""

    def __init__(self):
        self.limit, self.since = asyncio.timeout(None), inf
        self.loop = asyncio.get_running_loop()
        self.timer = self.loop.call_later(STALLED_SECONDS, self._look)

    def __enter__(self) -> None:
        self.since = self.loop.time()

    def __exit__(self, *_: object) -> None:
        self.since = inf

    def end(self) -> None:
        self.timer.cancel()

    def _look(self) -> None:
        now = self.loop.time()
        if now - self.since >= STALLED_SECONDS:
            self.limit.reschedule(now)
        else:
            self.timer = self.loop.call_at(min(now, self.since) + STALLED_SECONDS, self._look)


class LeftError(Exception):
    """The client left while it was sending, or takes nothing any more."""


class Body:
    """The body of a request, as it comes."""

    def __init__(self, receive: Receive):
        self.receive, self.ended = receive, False

    async def read(self, most: int, take: Callable[[int], None]) -> bytes:
        """All of it; `take` is told of the bytes as they come. Raises APIError for more than `most`, or if it takes too
        long.
        """
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while not self.ended:
                    pieces.append(await self._piece())
                    take(len(pieces[-1]))
                    size += len(pieces[-1])
                    if size > most:
                        raise APIError(413, f"the request is over {most:,} bytes; send less", code="too_large")
        except TimeoutError:
            raise APIError(408, f"the request was not sent within {BODY_SECONDS} seconds") from None
        return b"".join(pieces)

    async def skip(self, most: int) -> None:
        """Take what still comes, and keep nothing of it."""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while not self.ended and most > 0:
                    most -= len(await self._piece())
        except TimeoutError:
            self.ended = True

    async def _piece(self) -> bytes:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise LeftError
        self.ended = not message.get("more_body", False)
        return message.get("body", b"")
