"""Where media come from: a local file or bytes, never an address; and how a failure is told in one line."""

import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmgpt.errors import MediaError
from mmgpt.stored import Stored

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
LONGEST = 200  # characters of a name or a reason that are shown


def one_line(text: object) -> str:
    """`text` without line breaks, shortened, so that an error stays one line whatever a file is called."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def name_of(source: object) -> str:
    """How a source is called in an error: its path, or what it is."""
    if isinstance(source, str | os.PathLike):
        return one_line(os.fspath(source)) or "(empty path)"
    if not isinstance(source, bytes | np.ndarray) and isinstance(source, Stored):  # a protocol is slow to ask for
        return one_line(source)
    return type(source).__name__


@contextmanager
def opened(source: object) -> Iterator[BinaryIO]:
    """The bytes of `source` as a seekable file.

    Raises:
        MediaError: No such file, not a regular file, not readable, empty, or an address.
    """
    name = name_of(source)
    if isinstance(source, Stored) and not isinstance(source, os.PathLike):
        source = source.read_bytes()
    if isinstance(source, bytes):
        if not source:
            raise MediaError(f"{name}: empty; give the content of a file")
        yield io.BytesIO(source)
        return
    if not isinstance(source, str | os.PathLike):
        raise MediaError(f"{name}: cannot be decoded; give a path, the bytes of a file, or an array")
    if ADDRESS.match(os.fspath(source)):
        raise MediaError(f"{name}: addresses are not fetched; download the file and give its path")
    try:
        # A pipe or a device is refused before it is opened: it could block, or never end.
        status = Path(source).stat()
        if stat.S_ISDIR(status.st_mode):
            raise MediaError(f"{name}: is a directory; give a file")
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(f"{name}: is not a regular file; copy its content to a file")
        if status.st_size == 0:
            raise MediaError(f"{name}: is empty (0 bytes); remove it or fetch it again")
        file = Path(source).open("rb")  # noqa: SIM115, closed below
    except FileNotFoundError as error:
        raise MediaError(f"{name}: no such file; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise MediaError(f"{name}: cannot be opened ({one_line(reason)}); check the path") from error
    with file:
        yield file


def digest(source: object) -> bytes:
    """A hash of what a source holds: of the content of a file, wherever it lies, or of its bytes; of an array.

    Raises MediaError as `opened` does.
    """
    if isinstance(source, np.ndarray):
        found = hashlib.blake2b(repr((source.dtype.str, source.shape)).encode(), digest_size=16, person=b"array")
        found.update(source.tobytes())
        return found.digest()
    with opened(source) as file, told_as_media_error(name_of(source), "a file"):
        found = hashlib.blake2b(digest_size=16)
        while piece := file.read(1 << 18):
            found.update(piece)
        return found.digest()


@contextmanager
def told_as_media_error(name: str, kind: str) -> Iterator[None]:
    """Turns whatever a decoder raises over a damaged file into a MediaError."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:  # a fuzzed file makes decoders stumble over almost any exception
        reason = one_line(getattr(error, "strerror", None) or error) or type(error).__name__
        raise MediaError(
            f"{name}: cannot be decoded as {kind} ({reason}); replace the file or save it again"
        ) from error
