"""Media written for the tests: clips whose frames and sounds are known numbers."""

import io
import re
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mmgpt import MediaError


@pytest.fixture
def refusal():
    """Calls a function that must raise MediaError in one line that tells what to do; returns the line."""

    def check(load: Callable[[], object]) -> str:
        with pytest.raises(MediaError) as caught:
            load()
        line = str(caught.value)
        assert "\n" not in line
        assert re.fullmatch(r".+: .+; .+", line), line
        return line

    return check


@pytest.fixture(scope="session")
def write_wav():
    """write_wav(payload, rate, channels, bits, tag=1): the bytes of a WAV file around raw samples."""

    def write(
        payload: bytes, rate: int, channels: int, bits: int, tag: int = 1, before: bytes = b"", size=None
    ) -> bytes:
        block = channels * bits // 8
        head = struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits)
        size = len(payload) if size is None else size
        chunks = b"fmt " + struct.pack("<I", len(head)) + head + before + b"data" + struct.pack("<I", size) + payload
        return b"RIFF" + struct.pack("<I", min(4 + len(chunks) - len(payload) + size, 0xFFFFFFFF)) + b"WAVE" + chunks

    return write


@pytest.fixture(scope="session")
def write_clip():
    """Writes a clip whose frames are plain greys, and returns its bytes."""

    def write(
        greys: list[int],
        times: list[int] | None = None,  # in 1/25 s
        container: str = "mp4",
        codec: str = "libx264",
        size: tuple[int, int] = (64, 48),
        sounds: tuple[np.ndarray, ...] = (),  # 16 kHz
        sound_start: float = 0.0,
        gop: int = 12,
        bframes: int = 0,
        seekable: bool = True,
        picture: Callable[[int], np.ndarray] | None = None,
        ratio: Fraction | None = None,  # width of a pixel to its height
    ) -> bytes:
        written = io.BytesIO()
        target = written if seekable else _Pipe(written)
        with av.open(target, "w", format=container) as out:
            video = out.add_stream(codec, rate=25)
            video.width, video.height = size
            video.pix_fmt = "yuv420p"
            video.gop_size = gop
            if codec == "libx264":
                video.options = {"bf": str(bframes), "x264-params": "open-gop=1:scenecut=0", "crf": "1"}
            video.codec_context.time_base = Fraction(1, 25)
            if ratio is not None:
                video.codec_context.sample_aspect_ratio = ratio
            tracks = [out.add_stream("aac", rate=16_000, layout="mono") for _ in sounds]
            for track, samples in zip(tracks, sounds, strict=True):
                frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], "fltp", "mono")
                frame.sample_rate, frame.time_base = 16_000, Fraction(1, 16_000)
                frame.pts = round(sound_start * 16_000)
                out.mux(track.encode(frame))
                out.mux(track.encode())
            for i, grey in enumerate(greys):
                array = np.full((size[1], size[0], 3), grey, np.uint8) if picture is None else picture(grey)
                frame = av.VideoFrame.from_ndarray(array, "rgb24")
                frame.pts = i if times is None else times[i]
                frame.time_base = Fraction(1, 25)
                out.mux(video.encode(frame))
            out.mux(video.encode())
        return written.getvalue()

    return write


class _Pipe:
    """A file that cannot be sought, as when a recording is streamed: its header never learns how long it became."""

    def __init__(self, file: io.BytesIO) -> None:
        self.write = file.write


@pytest.fixture
def save(tmp_path: Path):
    """save(name, content) -> path."""

    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write
