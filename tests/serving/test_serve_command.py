"""`mmgpt serve` as a process of its own."""

import http.client
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import httpx
import openai
import pytest
from servers import image_part, png, scan_bomb, sent, text_part, user

from mmgpt import checkpoint
from mmgpt.cli.main import main
from mmgpt.serving.decoders import PROCESSES
from mmgpt.serving.settings import listen

CHAT = "/v1/chat/completions"
WARM = multiprocessing.get_context("forkserver")  # whose processes need not import torch and timm again
WARM.set_forkserver_preload(["mmgpt.serving.server", "timm"])


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory, model, tokenizer):
    return checkpoint.save(tmp_path_factory.mktemp("serving") / "small", model, tokenizer)


def command(*arguments: object, **environment: str) -> subprocess.Popen:
    code = "from mmgpt.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def told_address(line: str) -> str:
    assert line.startswith("serving small at http://127.0.0.1:"), line
    url = line.split()[3]
    assert line.endswith(f"API: {url}/v1)\n")
    assert httpx.get(url).headers["content-type"].startswith("text/html")
    return url


@contextmanager
def served(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The process and its address."""
    process = command(*arguments, "--port", 0, **environment)
    try:
        assert process.stdout is not None
        yield process, told_address(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def serve(arguments: list[str], stdout: Connection) -> None:
    os.dup2(stdout.fileno(), 1)
    sys.argv = ["mmgpt", "serve", *arguments]
    main()


@contextmanager
def served_warm(*arguments: object) -> Iterator[tuple[BaseProcess, str]]:
    """As `served`, sooner."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = WARM.Process(target=serve, args=([*map(str, arguments), "--port", "0"], writer))
    process.start()
    writer.close()
    try:
        with open(reader.fileno(), closefd=False) as told:
            url = told_address(told.readline())
        yield process, url
    finally:
        process.kill()
        process.join()
        reader.close()


def test_it_serves_with_keys_and_when_told_to_end_finishes_what_it_began(model_directory, assistant):
    with served(model_directory, MMGPT_API_KEYS="secret") as (process, url):
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="guess", max_retries=0).models.list()
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
        asked = {"model": "small", "messages": user(text_part("What?")), "seed": 3, "max_tokens": 12}
        [answer] = assistant.answers("What?", temperature=1.0, seed=3, max_new_tokens=12)
        done = client.chat.completions.create(**asked)
        assert done.choices[0].message.content == answer.text

        # One who has sent only half of his request when the process is told to end is answered all the same.
        body = json.dumps(asked).encode()
        caller = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        caller.putrequest("POST", CHAT)
        for name, value in {"Authorization": "Bearer secret", "Content-Type": "application/json"}.items():
            caller.putheader(name, value)
        caller.putheader("Content-Length", str(len(body)))
        caller.endheaders(body[:10])
        while (
            "mmgpt_requests_in_progress 1.0"
            not in httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer secret"}).text
        ):
            pass
        process.send_signal(signal.SIGTERM)
        while httpx.get(f"{url}/health").status_code == 200:
            pass
        with pytest.raises(openai.InternalServerError, match="about to end") as refused:
            client.chat.completions.create(**asked)
        assert refused.value.status_code == 503
        assert process.poll() is None
        caller.send(body[10:])
        response = caller.getresponse()
        assert response.status == 200
        assert json.loads(response.read())["choices"][0]["message"]["content"] == answer.text
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_stream_under_way_when_it_is_told_to_end_ends_whole(model_directory):
    with served_warm(model_directory) as (process, url):
        chats = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0).chat.completions
        asked = {
            "model": "small",
            "messages": user(text_part("What?")),
            "seed": 3,
            "extra_body": {"regex": "[a-z]{99}"},
        }
        whole = chats.create(**asked).choices[0].message.content
        stream = chats.create(**asked, stream=True)
        chunks = [next(stream)]
        process.terminate()
        chunks += stream
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
        assert chunks[-1].choices[0].finish_reason is not None
        process.join(20)
        assert process.exitcode == 0


def test_what_is_sent_waits_for_no_acknowledgement():
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()[:2]):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@contextmanager
def stuck(model_directory, seconds: int) -> Iterator[tuple[BaseProcess, str, socket.socket]]:
    """A server with a process that decodes a file for ever, and who sent it."""
    bomb, small = (user(image_part(data)) for data in (scan_bomb(60_000), png(0)))

    def picture() -> None:
        httpx.post(f"{url}{CHAT}", json={"messages": small, "max_tokens": 1}, timeout=60).raise_for_status()

    with served_warm(model_directory, "--max-decoding", seconds) as (process, url):
        for _ in range(PROCESSES):  # all of which have begun, once each has decoded something
            picture()
        with sent(url, {"messages": bomb}) as caller:
            while "mmgpt_requests_in_progress 1.0" not in httpx.get(f"{url}/metrics").text:
                pass
            picture()
            yield process, url, caller


def test_when_told_to_end_it_waits_for_a_file_no_longer_than_it_may_take(model_directory):
    with stuck(model_directory, 3) as (process, _, caller):
        process.terminate()
        caller.settimeout(30)
        told = b""
        while not told.endswith(b"}"):  # headers and body are sent on their own
            piece = caller.recv(1 << 16)
            assert piece, told
            told += piece
        assert b"not decoded within 3 seconds" in told
        process.join(30)
        assert process.exitcode == 0


def test_when_told_twice_it_ends_at_once_whatever_is_decoded(model_directory):
    with stuck(model_directory, 60) as (process, url, _):
        process.terminate()
        while httpx.get(f"{url}/health").status_code == 200:
            pass
        process.terminate()
        process.join(30)
        assert process.exitcode is not None


def test_wrong_usage_is_told_in_one_line(model_directory, tmp_path):
    (tmp_path / "keys").write_text("# none\n")
    with listen("127.0.0.1", 0) as taken:
        wrong = {
            "no API key there": command(model_directory, "--api-keys", tmp_path / "keys"),
            "--max-body: '0' is not a whole number above 0": command(model_directory, "--max-body", 0),
            "choose another --host or --port": command(model_directory, "--port", taken.getsockname()[1]),
        }
        for message, process in wrong.items():
            out, error = process.communicate(timeout=60)
            assert (process.returncode, out) == (2, "")
            assert error.startswith("mmgpt: error: ")
            assert error.count("\n") == 1
            assert message in error
