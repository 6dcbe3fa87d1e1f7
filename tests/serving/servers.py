"""Servers on free ports of this machine, around the tiny model, and what clients send."""

import base64
import contextlib
import io
import json
import socket
import threading
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import openai
import PIL.Image
import pytest
import uvicorn

from mmgpt.assistant import Assistant
from mmgpt.media.write import write_video
from mmgpt.serving.app import build_app
from mmgpt.serving.fetch import Fetcher
from mmgpt.serving.moderation import Moderator
from mmgpt.serving.server import configured
from mmgpt.serving.service import Service
from mmgpt.serving.settings import Keys, Limits, listen


@dataclass(frozen=True)
class Running:
    """A server in a thread of this process."""

    service: Service
    url: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30)

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, verify=False)  # to read certificates takes 50 ms

    def metric(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def wait_until(self, true: Callable[[], bool]) -> None:
        for _ in range(1000):
            if true():
                return
            time.sleep(0.01)
        raise AssertionError("it did not come to that")

    @property
    def idle(self) -> bool:
        engine = self.service.worker.engine
        return not self.service.running and not engine.active and not engine.waiting


@contextlib.contextmanager
def running(
    assistant: Assistant,
    limits: Limits | None = None,
    keys: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
    rows: int = 8,
    moderator: Moderator | None = None,
    fetcher: Fetcher | None = None,
) -> Iterator[Running]:
    service = Service(assistant, "tiny", limits or Limits(tokens=64), rows, moderator, fetcher)
    listening = listen("127.0.0.1", 0)
    app = build_app(service, Keys(list(keys)), origins)
    server = uvicorn.Server(configured(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Running(service, f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)
        service.close()


def held(monkeypatch: pytest.MonkeyPatch, server: Running) -> threading.Event:
    """The engine makes no step until the event is set, so that a test may look at what is under way."""
    free, engine = threading.Event(), server.service.worker.engine
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (free.wait(0.02), step()) if not free.is_set() else step())
    return free


def png(seed: int, size: int = 40) -> bytes:
    written = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def scan_bomb(scans: int = 3000) -> bytes:
    """A progressive JPEG of some 60 KB whose last scan is told again and again: each costs 10 ms of four megapixels."""
    written = io.BytesIO()
    PIL.Image.new("L", (2000, 2000), 100).save(written, "JPEG", progressive=True)
    jpeg = written.getvalue()
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * scans + jpeg[-2:]


@contextlib.contextmanager
def sent(url: str, asked: dict, path: str = "/v1/chat/completions") -> Iterator[socket.socket]:
    """A chat, or something else, that was asked for by someone who does not read the answer and leaves at the end."""
    body = json.dumps(asked).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with socket.create_connection(url.removeprefix("http://").split(":")) as caller:
        caller.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield caller


def wav(seed: int, samples: int = 3000) -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.random.default_rng(seed).integers(-9999, 9999, samples).astype("<i2").tobytes())
    return written.getvalue()


def mp4(folder: Path, seed: int) -> bytes:
    frames = np.random.default_rng(seed).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    write_video(folder / "clip.mp4", frames, 4.0)
    return (folder / "clip.mp4").read_bytes()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def image_part(data: bytes) -> dict:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64_of(data)}"}}


def audio_part(data: bytes) -> dict:
    return {"type": "input_audio", "input_audio": {"data": base64_of(data), "format": "wav"}}


def video_part(data: bytes) -> dict:
    return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{base64_of(data)}"}}


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def user(*parts: dict) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]
