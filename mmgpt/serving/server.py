"""The server as a process: the socket, what signals do, and its end."""

import socket
from collections.abc import Sequence
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from mmgpt.assistant import Assistant
from mmgpt.serving.app import build_app
from mmgpt.serving.fetch import Fetcher
from mmgpt.serving.moderation import Moderator
from mmgpt.serving.service import Service
from mmgpt.serving.settings import Keys, Limits


def configured(app: ASGIApp) -> uvicorn.Config:
    """How HTTP is spoken. h11 is the one parser of it that uvicorn always has."""
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        headers=[("X-Content-Type-Options", "nosniff")],
    )


class Server(uvicorn.Server):
    """Ends at the first SIGTERM or SIGINT once all who are being served have their answers; at the second, at once.

    Until it ends it answers who comes with 503.
    """

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.draining:
            self.should_exit = self.force_exit = True
        self.service.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self.service.draining and not self.service.running:
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or []:
            host, port = listening.getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            print(
                f"serving {self.service.name} at {address} (a page to try it on; OpenAI's API: {address}/v1)",
                flush=True,
            )


def serve(
    assistant: Assistant,
    name: str,
    listening: socket.socket,
    *,
    limits: Limits,
    keys: Keys,
    origins: Sequence[str] = (),
    rows: int = 32,
    moderator: Moderator | None = None,
    fetch: Sequence[str] = (),
) -> None:
    """Serve a model until the process is told to end.

    Args:
        assistant: The model.
        name: What clients call it.
        listening: Where they come.
        limits: What they may ask for.
        keys: Who may ask.
        origins: Web pages that may ask from a browser.
        rows: Most answers decoded at once.
        moderator: Tells of what is sent and answered whether it must not pass.
        fetch: Hosts from which media at addresses are fetched.
    """
    service = Service(assistant, name, limits, rows, moderator, Fetcher(fetch, limits.body) if fetch else None)
    try:
        Server(configured(build_app(service, keys, origins)), service).run(sockets=[listening])
    finally:
        service.close()
