"""Writing files so that a reader sees the old file or the new one, never half of one."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmgpt.errors import WriteError


@contextmanager
def atomic_write(path: str | Path, wait: bool = True) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what was written there takes its name when the block ends well.

    Missing folders are made. When the block fails, the temporary file is removed and what stood at `path` still stands.
    Unless it is to `wait` for the disk, a power cut may leave an incomplete file: the reader must tell.

    Raises:
        WriteError: no space left, no permission, or a folder in the way.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if wait:
            sync(temporary)  # else a power cut after the rename could leave the new name on an empty file
        temporary.replace(path)
    except Exception as error:
        reason = _reason(error, path)
        if reason is None:
            raise
        raise WriteError(f"cannot write {path}: {reason}") from error
    finally:
        with suppress(OSError):  # it is not there, or nothing can be
            temporary.unlink()


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _reason(error: Exception, path: Path) -> str | None:
    """Why writing failed, or None where the error is not about writing to this place."""
    full = os.strerror(errno.ENOSPC)
    if full in str(error):  # safetensors and torch raise errors of their own around the system's
        return f"{full}; free some or choose another place"
    if not isinstance(error, OSError) or error.strerror is None:
        return None
    ours = error.filename is None or Path(os.fsdecode(error.filename)).parent in path.parents
    return error.strerror if ours else None
