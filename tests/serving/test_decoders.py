"""Media that clients send are decoded by processes of their own, and no file takes the server with it."""

import asyncio
import contextlib
import io
import json
import signal
import subprocess
import sys
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from servers import (
    Running,
    audio_part,
    image_part,
    mp4,
    png,
    running,
    scan_bomb,
    sent,
    text_part,
    user,
    video_part,
    wav,
)

from mmgpt.config import VideoEncoderConfig
from mmgpt.content import Audio, Image, Medium, Video
from mmgpt.media.audio import Waveform
from mmgpt.media.write import write_video
from mmgpt.processor import Processor
from mmgpt.serving.decoder import BrokenError, Decoded, Sent, receive_medium
from mmgpt.serving.decoders import PROCESSES, Decoders, Process
from mmgpt.serving.settings import Limits

CHAT = "/v1/chat/completions"
SETTINGS = {
    Image: {"max_pixels": 100},
    Audio: {"max_seconds": 1},
    Video: {"frames": 2, "max_seconds": 1, "sound": True, "max_pixels": 100},
}


def asked(*parts: dict, **more) -> dict:
    return {"messages": user(*parts), "max_tokens": 2, "temperature": 0, **more}


def refused(server: Running, *parts: dict) -> str:
    told = server.http.post(CHAT, json=asked(*parts))
    assert (told.status_code, told.json()["error"]["code"]) == (400, "invalid_content"), told.text
    return told.json()["error"]["message"]


def serves(server: Running) -> bool:
    """Whether it answers about as many pictures as it has processes, each with one."""
    return all(server.http.post(CHAT, json=asked(image_part(png(i)))).status_code == 200 for i in range(PROCESSES))


def decoded(*media: Medium, processor: Processor, memory: int = 2 << 30) -> list[Decoded]:
    async def run() -> list[Decoded]:
        decoders = Decoders(20, memory)
        try:
            return await decoders.run(lambda load: [load(part, **processor.decoding(part)) for part in media])
        finally:
            decoders.close()

    return asyncio.run(run())


def transparent() -> bytes:
    written = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (21, 34, 4), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def stereo() -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(11_025)
        file.writeframes(np.random.default_rng(0).integers(-9999, 9999, 5000).astype("<i2").tobytes())
    return written.getvalue()


@pytest.mark.parametrize("hears", [True, False])
def test_what_another_process_decodes_is_what_is_decoded_here(model, tokenizer, tmp_path, hears):
    frames = np.random.default_rng(1).integers(0, 256, (7, 48, 64, 3), dtype=np.uint8)
    sound = Waveform(np.random.default_rng(2).uniform(-1, 1, 11_025).astype(np.float32), 11_025)
    write_video(tmp_path / "clip.mp4", frames, 5.0, sound)
    write_video(tmp_path / "silent.mp4", frames, 5.0)
    clip, silent = ((tmp_path / name).read_bytes() for name in ("clip.mp4", "silent.mp4"))
    video = VideoEncoderConfig(frames=4, grid=(1, 1), sound=hears)
    processor = Processor(replace(model.config, video=video), tokenizer)
    media = [
        part(Sent("here", data))
        for part, data in ((Image, transparent()), (Audio, stereo()), (Video, clip), (Video, silent))
    ]
    for part, away in zip(media, decoded(*media, processor=processor), strict=True):
        ours, theirs = processor.media_input(part), processor.preprocessed(away)
        assert (ours.grid, ours.slots) == (theirs.grid, theirs.slots)
        assert torch.equal(ours.data, theirs.data)
        assert (ours.sound is not None, theirs.sound is not None) == (hears and part is media[2],) * 2
        if ours.sound is not None and theirs.sound is not None:
            assert torch.equal(ours.sound, theirs.sound)


def test_who_decodes_imports_no_torch():
    code = "import sys, mmgpt.serving.decoder; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


def test_what_takes_too_long_is_refused_while_others_are_served(assistant):
    bomb = image_part(scan_bomb())
    with running(assistant, Limits(decoding=1, tokens=64)) as own:
        assert refused(own, bomb) == (
            "messages[0].content[0]: not decoded within 1 seconds; send a smaller or plainer file"
        )
        assert serves(own)
        with stuck(own, bomb), stuck(own, bomb):
            assert own.http.post(CHAT, json=asked(text_part("What?"))).status_code == 200
            assert len(own.service.decoders.busy) == 2
        assert serves(own)


@pytest.mark.skipif(sys.platform == "win32", reason="stops processes")
def test_a_sound_or_video_that_takes_too_long_is_refused_as_well(assistant, tmp_path):
    with running(assistant, Limits(decoding=2, tokens=64)) as own:
        assert serves(own)
        first = [own.service.decoders.free.get_nowait() for _ in range(PROCESSES)]
        for process in first:
            process.popen.send_signal(signal.SIGSTOP)  # as slow as can be
            own.service.decoders.free.put_nowait(process)
        for part in (audio_part(wav(1)), video_part(mp4(tmp_path, 1))):
            assert "messages[0].content[0]: not decoded within 2 seconds" in refused(own, part)
        own.wait_until(lambda: all(process.ended for process in first))
        assert serves(own)


def test_what_limits_refuse_is_not_decoded(assistant):
    with running(assistant, Limits(media=2, answers=4, tokens=64)) as own:
        processes = [own.service.decoders.free.get_nowait() for _ in range(PROCESSES)]
        for process in processes:
            own.service.decoders.free.put_nowait(process)
        picture = image_part(png(1))
        for wrong in (
            asked(picture, picture, picture),
            asked(picture, text_part("word " * 200)),
            asked(picture, n=5, temperature=1),
            asked(picture) | {"max_tokens": 65},
            asked(picture, regex="a" * 70_000),
            asked(picture, tools=[1]),
        ):
            assert own.http.post(CHAT, json=wrong).status_code == 400
        assert [process.at for process in processes] == [""] * PROCESSES
        assert own.http.post(CHAT, json=asked(picture)).status_code == 200
        assert any(process.at for process in processes)


@contextlib.contextmanager
def stuck(server: Running, part: dict) -> Iterator[Process]:
    """A process that is decoding for a client; he leaves at the end."""
    decoders = server.service.decoders
    before = set(decoders.busy)
    with sent(server.url, asked(part)):
        server.wait_until(lambda: any(process.at for process in decoders.busy - before))
        [process] = decoders.busy - before
        yield process


def test_the_process_of_one_who_leaves_is_ended(assistant):
    with running(assistant, Limits(decoding=600, tokens=64)) as own:
        with stuck(own, image_part(scan_bomb())) as process:
            assert not process.ended
        own.wait_until(lambda: process.ended and own.idle)
        assert serves(own)
        own.wait_until(lambda: own.metric("mmgpt_requests_total", path=CHAT, status="499") == 1)


def test_a_process_that_dies_is_told_and_replaced(assistant):
    with running(assistant, Limits(decoding=600, tokens=64)) as own:
        with ThreadPoolExecutor() as threads:
            told = threads.submit(refused, own, image_part(scan_bomb()))
            own.wait_until(lambda: any(process.at for process in own.service.decoders.busy))
            [process] = own.service.decoders.busy
            process.kill()
        assert told.result() == (
            "messages[0].content[0]: the process that decoded it ended (signal 9); replace the file or save it again"
        )
        assert serves(own)


def test_a_process_that_dies_between_two_requests_is_replaced_before_the_next(assistant):
    with running(assistant) as own:
        assert serves(own)
        children = [own.service.decoders.free.get_nowait() for _ in range(PROCESSES)]
        for process in children:
            process.end()
            own.service.decoders.free.put_nowait(process)
        assert serves(own)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot limit it")
def test_what_takes_too_much_memory_is_refused(assistant):
    picture = io.BytesIO()
    PIL.Image.new("RGB", (8000, 6000)).save(picture, "PNG")  # 144 MB
    with running(assistant, Limits(memory=200 << 20, tokens=64)) as own:
        assert refused(own, image_part(picture.getvalue())) == (
            "messages[0].content[0]: takes too much memory to decode; send a smaller file"
        )
        assert serves(own)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_who_decodes_is_not_told_the_keys(monkeypatch):
    monkeypatch.setenv("MMGPT_API_KEYS", "secret-key")
    process = Process(1, 1 << 30)
    try:
        process.begin()
        environment = Path(f"/proc/{process.popen.pid}/environ").read_bytes()
    finally:
        process.end()
    assert b"PATH=" in environment
    assert b"secret-key" not in environment


@pytest.mark.parametrize(
    ("kind", "line", "data"),
    [
        (Image, {"pixels": [10, 10]}, bytes(299)),
        (Image, {"pixels": [10, 11]}, bytes(330)),
        (Image, {"pixels": [-10, -10]}, bytes(300)),
        (Image, {"pixels": [10.0, 10]}, bytes(300)),
        (Image, {"pixels": [2, 2, 2]}, bytes(24)),
        (Image, {"pixels": None}, b""),
        (Image, {"sound": [1, 1]}, bytes(4)),
        (Image, [], b""),
        (Image, "error", b""),
        (Audio, {"sound": [9, 8]}, bytes(36)),
        (Audio, {"sound": [8, 8]}, b"\0\0\xc0\x7f" * 8),
        (Audio, {"sound": [8, 8.5]}, bytes(32)),
        (Audio, {"sound": [8, 10**400]}, bytes(32)),
        (Audio, {"sound": [0, 8]}, b""),
        (Video, {"pixels": [3, 5, 5], "times": [0, 1, 2], "duration": 1, "sound": None}, bytes(225)),
        (Video, {"pixels": [2, 5, 5], "times": [0], "duration": 1, "sound": None}, bytes(150)),
        (Video, {"pixels": [2, 10, 11], "times": [0, 1], "duration": 1, "sound": None}, bytes(660)),
        (Video, {"pixels": [2, 5, 5], "times": [0, 1], "duration": 1, "sound": [1]}, bytes(154)),
    ],
)
def test_answers_that_are_none_are_not_believed(kind, line, data):
    with pytest.raises(BrokenError):
        receive_medium(io.BytesIO(json.dumps(line).encode() + b"\n" + data), kind(Sent("here", b"")), SETTINGS[kind])


@pytest.mark.parametrize("answer", [b"", b"\n", b"[" * 10_000, b"\xff", b"1" * 5000])
def test_lines_that_are_none_are_not_believed(answer):
    with pytest.raises(BrokenError):
        receive_medium(io.BytesIO(answer), Image(Sent("here", b"")), SETTINGS[Image])
