"""A cache on disk of what frozen encoders make of media, so that neither is decoded nor encoded a second time.

One file holds the tokens of one medium, under a hash of all that decides them: DIR/ab/cdef... A file gets its name only
once it is whole, so several processes may read and write at once, and any of them may die at any moment. No write waits
for the disk; what a power cut leaves torn is told by a checksum and made again.
"""

import hashlib
import os
import re
import struct
import sys
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mmgpt.config import TokenGrid
from mmgpt.content import Audio, Image, Part, Video
from mmgpt.errors import ConfigError, WriteError
from mmgpt.files import atomic_write
from mmgpt.media.source import digest

# Checksum of all that follows, place of the type in DTYPES, rows, columns, prefix, suffix, width; then the tokens.
HEADER = struct.Struct("<7I36x")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

KEY_SIZE = 16  # bytes
OURS = re.compile(rf"(?P<draft>\.)?[0-9a-f]{{{2 * KEY_SIZE - 2}}}(?(draft)\.\d+\.tmp)")  # we delete no other files
HOUR = 3600.0  # seconds: a use is noted no more often, and a draft of that age is of a process that died
STEP = 16  # the folder is looked over again when a STEP-th of the limit was written


class FeatureCache:
    """Tokens by key, in a folder that runs share; what was not used for longest goes when the limit is reached.

    Several processes that write may together pass the limit by a 16th of it for each but one.

    Args:
        directory: Made if missing. Nothing in it is touched but what a cache wrote.
        limit: Bytes.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, directory: str | Path, limit: int):
        self.directory = Path(directory)
        self.limit = limit
        self.writing = True
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cache: {directory}: {error.strerror}; name a folder that can be written") from None
        self._room = 0  # bytes to write until the folder is looked over
        self._make_room(0)

    def get(self, key: bytes) -> tuple[Tensor, TokenGrid] | None:
        """Tokens (tokens, width) and their grid; None where they are not, or not whole.

        The tokens are the file itself, mapped into memory; what is written to them does not reach it.
        """
        path = str(self._path(key))
        try:
            status = os.stat(path)  # noqa: PTH116, twice as quick
            if status.st_size <= HEADER.size:
                return None
            content = torch.from_file(path, shared=False, size=status.st_size, dtype=torch.uint8).numpy()
        except (OSError, RuntimeError):  # RuntimeError: another process removed or replaced it this moment
            return None
        checksum, dtype, rows, columns, prefix, suffix, width = HEADER.unpack_from(content.data)
        if zlib.crc32(content[4:].data) != checksum:
            return None
        if time.time() - status.st_mtime > HOUR:
            with suppress(OSError):  # it was just removed, or belongs to someone else
                os.utime(path)
        grid = TokenGrid(rows, columns, prefix, suffix)
        # By way of numpy, since torch takes its own maps for memory that processes share, and fails to send them.
        tokens = torch.from_numpy(content[HEADER.size :]).view(DTYPES[dtype])
        return tokens.view(grid.count, width), grid

    def put(self, key: bytes, tokens: Tensor, grid: TokenGrid) -> None:
        """Keep tokens (tokens, width), in place of any that are there.

        A failure is told in one line on stderr, and nothing more is written.
        """
        data = tokens.detach().cpu().contiguous()
        shape = DTYPES.index(data.dtype), grid.rows, grid.columns, grid.prefix, grid.suffix, data.shape[1]
        raw = data.view(torch.uint8).numpy().data.cast("B")
        size = HEADER.size + len(raw)
        if not self.writing or size > self.limit:
            return
        checksum = zlib.crc32(raw, zlib.crc32(HEADER.pack(0, *shape)[4:]))
        try:
            if size > self._room:
                self._make_room(size)
            if size > self._room:
                raise WriteError(f"{self.directory}: full, and what fills it cannot be removed")
            with atomic_write(self._path(key), wait=False) as draft, draft.open("wb") as file:
                file.write(HEADER.pack(checksum, *shape))
                file.write(raw)
        except WriteError as error:
            print(f"feature cache: {error}; no more features are kept", file=sys.stderr, flush=True)
            self.writing = False
        else:
            self._room -= size

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.directory / name[:2] / name[2:]

    def _make_room(self, size: int) -> None:
        """Remove what was not used for longest, until a STEP-th of the limit, or `size` if more, can be written."""
        room = max(size, self.limit // STEP)
        files = self._files()
        surplus = sum(status.st_size for _, status in files) + room - self.limit
        for path, status in sorted(files, key=lambda file: file[1].st_mtime):
            draft, age = path.name.startswith("."), time.time() - status.st_mtime
            if age > HOUR if draft else surplus > 0:
                try:
                    path.unlink(missing_ok=True)  # another process may have been quicker
                except OSError:
                    continue
                surplus -= status.st_size
        self._room = room - max(0, surplus)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for number in range(256):
            with suppress(OSError), os.scandir(self.directory / f"{number:02x}") as entries:
                for entry in entries:
                    if OURS.fullmatch(entry.name):
                        with suppress(FileNotFoundError):  # just removed
                            found.append((Path(entry.path), entry.stat()))
        return found


@dataclass(frozen=True)
class EncoderCache:
    """One frozen encoder's share of a feature cache; `fingerprint` tells its weights, preprocessing and precision."""

    cache: FeatureCache
    fingerprint: bytes

    def key(self, part: Part) -> bytes:
        """Of what the encoder makes of a medium: the same for the same content, wherever it lies.

        Raises MediaError for what cannot be read.
        """
        found = hashlib.blake2b(self.fingerprint, digest_size=KEY_SIZE)
        found.update(_content(part))
        return found.digest()

    def get(self, key: bytes) -> tuple[Tensor, TokenGrid] | None:
        """As FeatureCache.get."""
        return self.cache.get(key)


def _content(part: Part) -> bytes:
    match part:
        case Image(PIL.Image.Image()):
            return digest(np.asarray(part.load()))
        case Image(source):
            return digest(source)
        case Audio(source, sample_rate):
            return digest(source) + repr(sample_rate).encode()
        case Video(source, frame_rate, sound):
            track = b"" if sound is None else _content(sound)
            return digest(source) + repr(frame_rate).encode() + track
    raise TypeError(f"{type(part).__name__} is not a media part")
