"""How `mmgpt serve` does under load, beside the same model without a server, and beside a server made of FastAPI and
transformers' generate (peer_server.py) with the same weights.

    python scripts/bench_serve.py                     # a random model of 30 M parameters with eyes and ears
    python scripts/bench_serve.py --model runs/demo
    python scripts/bench_serve.py --only soak --requests 10000

Requests are pictures, sounds and texts in turn, streamed (but by the peer), greedy, 24 tokens at most. The soak sends
them with one hostile request among ten: each good answer must be what it is alone, no status may be 500 or above, and
the server's memory is told as it goes.
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import torch

import mmgpt
from mmgpt import checkpoint
from mmgpt.config import AdapterConfig, AudioEncoderConfig, GPTConfig, ImageEncoderConfig, ModelConfig
from mmgpt.model import MultimodalGPT
from mmgpt.tokenizer import Tokenizer

TOKENS = 24  # of an answer, at most
CLIENTS = (1, 4, 16, 64)
HOSTILE_SHARE = 0.1
TIE = 1e-4  # nats between the two likeliest tokens, which sums in another order may turn round
FLAT = 0.02  # by which memory may differ at the end from what it was when the caches were full
KINDS = 60  # different requests of the soak, which the server's caches hold before long


@dataclass(frozen=True)
class Request:
    """What is asked: the same as JSON for the server, and as a prompt for the model itself."""

    body: dict[str, Any]
    prompt: list[Any]


@dataclass(frozen=True)
class Reply:
    """What came: the status, the text, seconds to its first piece and to its end, and how many tokens it is."""

    status: int
    text: str
    first: float
    whole: float
    tokens: int


WORDS = "the a red blue green circle square left right of above below is are one two three what how"


def random_model(folder: Path) -> Path:
    words = WORDS.split()
    draw = random.Random(0)
    tokenizer = Tokenizer.train((" ".join(draw.choices(words, k=12)) for _ in range(2000)), 4096)
    torch.manual_seed(0)
    config = ModelConfig(
        GPTConfig(vocab_size=len(tokenizer), width=512, layers=8, heads=8, context=1024),
        ImageEncoderConfig("vit_tiny_patch16_224", size=(128, 128)),
        AudioEncoderConfig(sample_rate=16_000, channels=192, reduction=8),
        adapters={"image": AdapterConfig("pixel_shuffle")},
    )
    model = MultimodalGPT(config)
    for block in model.gpt.transformer.blocks:  # so that answers depend on what is asked
        for parameter in block.parameters():
            parameter.data.mul_(2.0)
    return checkpoint.save(folder / "model", model, tokenizer)


def picture(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).resize((320, 240), PIL.Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def sound(number: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(number).normal(0, 3000, 16_000 + 800 * (number % 20))
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(noise.astype("<i2").tobytes())
    return file.getvalue()


def part(kind: str, data: bytes) -> dict[str, Any]:
    """What shows a medium in a message."""
    encoded = base64.b64encode(data).decode()
    if kind == "audio":
        return {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{kind}/any;base64,{encoded}"}}


def request(number: int) -> Request:
    """Pictures, sounds and texts in turn, each another."""
    question = f"what is {number % 7} of the {('red', 'blue', 'green')[number % 3]} circle"
    kind = number % 3
    parts, prompt = [], []
    if kind == 0:
        data = picture(number)
        parts, prompt = [part("image", data)], [mmgpt.Image(data)]
    elif kind == 1:
        data = sound(number)
        parts, prompt = [part("audio", data)], [mmgpt.Audio(data)]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    body = {"messages": [message], "temperature": 0, "max_tokens": TOKENS, "stream": True}
    body["stream_options"] = {"include_usage": True}
    return Request(body, [*prompt, question])


@dataclass(frozen=True)
class Attack:
    """A request that must be refused, or whose sender `leaves` before it is answered."""

    body: bytes
    path: str = "/v1/chat/completions"
    kind: str = "application/json"
    leaves: bool = False


def hostile(number: int) -> Attack:
    """Damaged, huge and false media, broken JSON and forms, too much of everything, and senders that leave, in turn."""
    good = request(3 * number).body
    chance = np.random.default_rng(number)

    def asking(*content: Any, **changes: Any) -> Attack:
        return Attack(json.dumps(good | {"messages": [{"role": "user", "content": list(content)}]} | changes).encode())

    def form(data: bytes) -> bytes:
        head = b'--limit\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        return head + data + b"\r\n--limit--\r\n"

    huge = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + bytes(40)
    endless = b"RIFF\xff\xff\xff\xffWAVEfmt " + sound(0)[16:40] + b"\xff\xff\xff\x7f" + bytes(64)
    transcriptions, multipart = "/v1/audio/transcriptions", "multipart/form-data; boundary=limit"
    kinds: list[Callable[[], Attack]] = [
        lambda: asking(part("image", picture(number)[:400])),
        lambda: asking(part("image", huge)),
        lambda: asking(part("image", chance.bytes(2000))),
        lambda: asking(part("video", chance.bytes(2000))),
        lambda: asking(part("video", b"\0\0\0\x18ftypisom" + chance.bytes(4000))),
        lambda: asking(part("audio", chance.bytes(2000))),
        lambda: asking(part("audio", endless[: 30 + number % 60])),
        lambda: Attack(form(chance.bytes(3000)), transcriptions, multipart),
        lambda: Attack(form(sound(number))[: 40 + number % 400], transcriptions, multipart),
        lambda: Attack(json.dumps(good).encode()[:-30]),
        lambda: asking({"type": "text", "text": "word " * 5000}),
        lambda: asking({"type": "text", "text": "What?"}, max_tokens=10**9),
        lambda: asking({"type": "text", "text": "What?"}, regex="(a{1,999}){1,999}" * 99),
        lambda: asking({"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}),
        lambda: Attack(json.dumps(request(number % KINDS).body).encode(), leaves=True),
    ]
    return kinds[number % len(kinds)]()


class Server:
    """A server in a process of its own, which tells its address once it can be asked."""

    def __init__(self, *command: str | Path):
        self.log = Path(tempfile.mkstemp(suffix=".log")[1])
        with self.log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        while not (match := re.search(r"http://[\d.]+:\d+", self._said())):
            if self.process.poll() is not None:
                sys.exit(f"the server did not start: {self._said()}")
            time.sleep(0.1)
        self.address = match[0]

    def _said(self) -> str:
        return self.log.read_text("utf-8")

    def memory(self) -> float:
        """Resident megabytes, with those of the processes that decode."""
        own = self.process.pid
        held = 0
        for process in (own, *Path(f"/proc/{own}/task/{own}/children").read_text().split()):
            with suppress(FileNotFoundError, ProcessLookupError):  # of a decoder that was replaced
                held += sum(map(int, re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())))
        return held / 1024

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.log.unlink()


@contextmanager
def served(model: str, requests: int = 256):
    command = Path(sys.executable).with_name("mmgpt")
    with closing(Server(command, "serve", model, "--port", "0", "--max-requests", str(requests))) as server:
        yield server


@contextmanager
def peer(model: str):
    with closing(Server(sys.executable, Path(__file__).with_name("peer_server.py"), model)) as server:
        yield server


async def ask(client: httpx.AsyncClient, server: Server, body: dict[str, Any]) -> Reply:
    """One request, streamed."""
    began = time.perf_counter()
    first, tokens, pieces = 0.0, 0, []
    async with client.stream("POST", f"{server.address}/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            await reply.aread()
            return Reply(reply.status_code, "", 0.0, time.perf_counter() - began, 0)
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            choices, tokens = event["choices"], (event["usage"] or {"completion_tokens": 0})["completion_tokens"]
            if choices and (text := choices[0]["delta"].get("content")):
                first = first or time.perf_counter() - began
                pieces.append(text)
    whole = time.perf_counter() - began
    return Reply(200, "".join(pieces).strip(), first or whole, whole, tokens)


async def ask_peer(client: httpx.AsyncClient, server: Server, body: dict[str, Any]) -> Reply:
    """One request, answered in one piece."""
    began = time.perf_counter()
    reply = await client.post(f"{server.address}/v1/chat/completions", json=body)
    whole = time.perf_counter() - began
    return Reply(reply.status_code, reply.json()["choices"][0]["message"]["content"], whole, whole, 0)


async def together(
    clients: int, count: int, work: Callable[[httpx.AsyncClient, int], Coroutine[Any, Any, Any]]
) -> list[Any]:
    """`work` with the numbers from 0 to `count`, by so many clients at once."""
    numbers, found = iter(range(count)), []
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:

        async def one() -> None:
            for number in numbers:
                found.append(await work(client, number))

        await asyncio.gather(*(one() for _ in range(clients)))
    return found


def quantiles(values: list[float]) -> str:
    return " ".join(f"{1e3 * float(np.quantile(values, q)):7.0f}" for q in (0.5, 0.95, 0.99))


def load(model: str, count: int) -> None:
    """Requests a second, and how long they wait, by number of clients, beside asking without a server."""
    requests = [request(number) for number in range(count)]
    assistant = mmgpt.load(model)
    conversations = [[mmgpt.Message.of("user", *each.prompt)] for each in requests]
    settings = {"max_new_tokens": TOKENS, "temperature": 0.0}
    speeds: dict[str, float] = {}
    alone: list[str] = []
    for size, name in ((1, "one by one"), (8, "batches of 8")):
        assistant.reply(conversations[:size], **settings)
        fresh = mmgpt.load(model)  # which has seen no picture yet
        began = time.perf_counter()
        answers = [a for i in range(0, count, size) for a in fresh.reply(conversations[i : i + size], **settings)]
        speeds[name] = count / (time.perf_counter() - began)
        alone = alone or answers
        print(f"{name:14} {speeds[name]:6.2f} requests/s", flush=True)
    print(
        f"{'clients':>14} {'requests/s':>10} {'/ one by one':>12} {'/ batches':>9}   "
        f"{'first piece, ms: p50 p95 p99':>28}   {'each token, ms: p50 p95 p99':>28}"
    )
    lone: list[float] = []
    for clients in CLIENTS:
        with served(model) as server:
            speed, replies = measured(server, ask, clients, requests, alone)
        firsts = [reply.first for reply in replies]
        lone = lone or firsts
        paces = [(reply.whole - reply.first) / (reply.tokens - 1) for reply in replies if reply.tokens > 1]
        print(
            f"{clients:14} {speed:10.2f} {speed / speeds['one by one']:12.2f} {speed / speeds['batches of 8']:9.2f}   "
            f"{quantiles(firsts):>28}   {quantiles(paces):>28}",
            flush=True,
        )
        if clients == 1:
            print(f"{'':14} {1e3 * (1 / speed - 1 / speeds['one by one']):.1f} ms a request more than without a server")
        else:
            ratio = float(np.quantile(firsts, 0.99) / np.quantile(lone, 0.99))
            print(f"{'':14} p99 of the first piece {ratio:.1f} times that of one client")
    for clients in CLIENTS:
        with peer(model) as server:
            speed, replies = measured(server, ask_peer, clients, requests, alone)
        wholes = quantiles([reply.whole for reply in replies])
        print(f"{clients:14} {speed:10.2f} by the peer; whole answer, ms: p50 p95 p99 {wholes}", flush=True)


def measured(
    server: Server,
    ask: Callable[[httpx.AsyncClient, Server, dict[str, Any]], Coroutine[Any, Any, Reply]],
    clients: int,
    requests: list[Request],
    alone: list[str],
) -> tuple[float, list[Reply]]:
    """Requests a second by so many clients, and what came; each answer must be what it is alone."""
    warm = [request(10**6 + i).body for i in range(3)]
    asyncio.run(together(1, 3, lambda client, i: ask(client, server, warm[i])))

    async def work(client: httpx.AsyncClient, i: int) -> tuple[int, Reply]:
        return i, await ask(client, server, requests[i].body)

    began = time.perf_counter()
    replies = asyncio.run(together(clients, len(requests), work))
    speed = len(requests) / (time.perf_counter() - began)
    if wrong := sum(reply.text != alone[i] for i, reply in replies):
        sys.exit(f"{wrong} answers of {len(requests)} are not what they are alone")
    return speed, [reply for _, reply in replies]


def soak(model: str, count: int) -> None:
    """Many requests, some of them hostile: wrong answers, statuses, and memory."""
    assistant = mmgpt.load(model)
    requests: list[Request] = []
    alone: list[str] = []
    for each in map(request, itertools.count()):
        answer = assistant.answers(each.prompt, max_new_tokens=TOKENS, logprobs=2)[0]
        if all(first[1] - second[1] > TIE for first, second in (choice.likeliest for choice in answer.choices or ())):
            requests.append(each)
            alone.append(answer.text.strip())
        if len(requests) == KINDS:
            break
    draw = random.Random(0)
    plan = [(draw.random() < HOSTILE_SHARE, draw.randrange(KINDS)) for _ in range(count)]
    statuses: Counter[str] = Counter()
    wrong: list[int] = []
    memory: list[float] = []
    with served(model) as server:

        async def work(client: httpx.AsyncClient, i: int) -> None:
            bad, number = plan[i]
            if bad:
                statuses[await attack(client, number + KINDS * i)] += 1
            else:
                reply = await ask(client, server, requests[number].body)
                statuses[str(reply.status)] += 1
                if reply.text != alone[number]:
                    wrong.append(i)
            if i % max(1, count // 10) == 0:
                memory.append(server.memory())
                print(f"{i:7} requests, {memory[-1]:7.1f} MB", flush=True)

        async def attack(client: httpx.AsyncClient, number: int) -> str:
            sent = hostile(number)
            headers = {"content-type": sent.kind}
            async with client.stream("POST", server.address + sent.path, content=sent.body, headers=headers) as reply:
                if not sent.leaves:
                    await reply.aread()
            return "left" if sent.leaves else str(reply.status_code)

        began = time.perf_counter()
        asyncio.run(together(16, count, work))
        took = time.perf_counter() - began
        memory.append(server.memory())
        ended = server.process.poll()
    settled = statistics.median(memory[2:5])  # the caches are full by then
    print(
        f"{count} requests in {took:.0f} s: {dict(sorted(statuses.items()))}; {len(wrong)} wrong answers; server "
        f"{'running' if ended is None else f'ended with {ended}'}; memory {settled:.1f} -> {memory[-1]:.1f} MB "
        f"({memory[-1] / settled - 1:+.1%})"
    )
    grown = abs(memory[-1] / settled - 1) > FLAT
    if wrong or grown or ended is not None or any(status >= "500" and status != "left" for status in statuses):
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a trained model (default: a random one)")
    parser.add_argument("--only", choices=("load", "soak"))
    parser.add_argument("--requests", type=int, help="of each line of the load (default: 96), of the soak (1000)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or str(random_model(Path(folder)))
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}", flush=True)
        if args.only != "soak":
            load(model, args.requests or 96)
        if args.only != "load":
            soak(model, args.requests or 1000)


if __name__ == "__main__":
    main()
