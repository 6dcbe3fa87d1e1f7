"""The command run in this process, a tiny model on disk, and small good and bad files."""

import io
import struct
import sys
import wave
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mmgpt import checkpoint
from mmgpt.cli.main import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def error(self, code: int) -> str:
        """What the one line on stderr says; anything else than one line, or another exit code, fails."""
        assert self.code == code, self.err
        assert self.err.startswith("mmgpt: error: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n"), self.err
        return self.err


@pytest.fixture
def mmgpt_command(monkeypatch, capsys):
    """mmgpt_command("caption", path, ...) -> Outcome."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mmgpt", *map(str, arguments)])
        code = 0
        capsys.readouterr()
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory, model, tokenizer) -> Path:
    return checkpoint.save(tmp_path_factory.mktemp("cli") / "model", model, tokenizer, {"steps": 7, "val_loss": 1.5})


@pytest.fixture(scope="session")
def media(tmp_path_factory) -> Path:
    """A folder of good.jpg, good.wav and files that are bad in different ways."""
    folder = tmp_path_factory.mktemp("media")
    picture = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(picture, "JPEG")
    jpeg = picture.getvalue()
    (folder / "good.jpg").write_bytes(jpeg)
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "text.jpg").write_text("this is no picture\n")
    (folder / "empty.jpg").touch()
    (folder / "huge.png").write_bytes(_png_of_zeros(20_000, 15_000))
    (folder / "empty.wav").touch()
    (folder / "good.wav").write_bytes(_wav(4000))
    (folder / "silent.wav").write_bytes(_wav(0))
    return folder


def _png_of_zeros(width: int, height: int) -> bytes:
    """A whole grey PNG of so many pixels in 300 KB: all zeros, so that it packs well."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(100 * (width + 1))) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _wav(samples: int) -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.random.default_rng(0).integers(-9999, 9999, samples).astype("<i2").tobytes())
    return written.getvalue()
