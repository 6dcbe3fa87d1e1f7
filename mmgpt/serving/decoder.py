"""The process that decodes what clients sent, one medium after another until its input ends, and how media go there
and come back: a line of JSON with kinds and sizes, then bare bytes.

    python -m mmgpt.serving.decoder BYTES     # of memory that it may take

A hostile file may break this process or take it over: who asks believes nothing that it answers before a look at it.
"""

import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

import numpy as np
import PIL.Image

from mmgpt.content import Audio, Image, Medium, Video
from mmgpt.errors import MediaError
from mmgpt.media import Clip, Waveform
from mmgpt.media.audio import MAX_SAMPLES
from mmgpt.media.video import MAX_SIDE

Decoded: TypeAlias = PIL.Image.Image | Waveform | Clip
KINDS: dict[str, type[Medium]] = {"image": Image, "audio": Audio, "video": Video}
LONGEST_LINE = 1 << 20  # bytes of a line of JSON
READY = b"ready\n"
SPARE_SECONDS = 5  # until the process ends itself, should whoever is to end it be gone


@dataclass(frozen=True)
class Sent:
    """A medium that a client sent, called by its place in the request."""

    place: str
    data: bytes

    def __str__(self) -> str:
        return self.place

    def read_bytes(self) -> bytes:
        return self.data


class BrokenError(Exception):
    """What was answered is no answer."""


# What the server does


def send_medium(file: IO[bytes], part: Medium, seconds: float, settings: dict[str, Any]) -> None:
    """Ask for a medium, of which the source is Sent, to be decoded by its `load` with these settings."""
    assert isinstance(part.source, Sent)
    kind = next(name for name, kind in KINDS.items() if isinstance(part, kind))
    place, data = part.source.place, part.source.data
    _send(file, {"kind": kind, "place": place, "size": len(data), "seconds": seconds, "settings": settings}, data)


def receive_medium(file: IO[bytes], part: Medium, settings: dict[str, Any]) -> Decoded:
    """What was decoded. Raises MediaError: it cannot be, BrokenError: the answer is not what was asked for."""
    try:
        told = json.loads(file.readline(LONGEST_LINE))
        if (error := told.get("error")) is not None:
            raise MediaError(str(error))
        match part:
            case Image():
                return _picture(file, told, settings["max_pixels"])
            case Audio():
                return _sound(file, told["sound"], settings["max_seconds"])
        return _clip(file, told, **settings)
    except (MediaError, BrokenError):
        raise
    except Exception as error:
        raise BrokenError from error


def _picture(file: IO[bytes], told: dict[str, Any], max_pixels: int) -> PIL.Image.Image:
    height, width = told["pixels"]
    return PIL.Image.fromarray(_array(file, (height, width, 3), np.uint8, 3 * max_pixels))


def _sound(file: IO[bytes], told: list[int], max_seconds: float) -> Waveform:
    count, rate = told
    samples = _array(file, (count,), np.float32, min(int(max_seconds * rate), 2 * MAX_SAMPLES))
    if not isinstance(rate, int) or rate >= 1 << 31 or not np.isfinite(samples).all():
        raise BrokenError
    return Waveform(samples, rate)


def _clip(file: IO[bytes], told: dict[str, Any], frames: int, max_seconds: float, sound: bool, max_pixels: int) -> Clip:
    count, height, width = told["pixels"]
    times = np.array(told["times"], np.float64)
    if count != frames or times.shape != (frames,) or height * width > max_pixels:
        raise BrokenError
    pictures = _array(file, (frames, height, width, 3), np.uint8, 3 * frames * MAX_SIDE**2)
    # Which begins within the clip, and may itself last as long.
    track = _sound(file, told["sound"], 2 * max_seconds) if sound and told["sound"] is not None else None
    return Clip(pictures, times, float(told["duration"]), track)


def _array(file: IO[bytes], shape: tuple[int, ...], dtype: type, most: int) -> np.ndarray:
    if not all(isinstance(side, int) and side > 0 for side in shape) or math.prod(shape) > most:
        raise BrokenError
    array = np.empty(shape, dtype)
    if file.readinto(memoryview(array).cast("B")) != array.nbytes:  # type: ignore[attr-defined]
        raise BrokenError
    return array


# What the process does


def main(memory: int) -> None:
    """Answer until the input ends."""
    for theirs in (signal.SIGINT, signal.SIGTERM):  # a terminal and a supervisor tell all processes at once
        signal.signal(theirs, signal.SIG_IGN)
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    _limit(memory)
    answers.write(READY)
    answers.flush()
    while line := asked.readline(LONGEST_LINE):
        told = json.loads(line)
        part = KINDS[told["kind"]](Sent(told["place"], asked.read(told["size"])))
        try:
            with _alarm(told["seconds"] + SPARE_SECONDS):
                decoded = part.load(**told["settings"])
        except MediaError as error:
            short = f"{part.source}: takes too much memory to decode; send a smaller file"
            _send(answers, {"error": short if isinstance(error.__cause__, MemoryError) else str(error)})
        else:
            _send(answers, *_parts(decoded))


def _limit(memory: int) -> None:
    """Leave no more than so many bytes of memory to this process, where the system can, and no dumps of it."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):
        # RLIMIT_AS would count what programs only reserve, such as the stacks and heaps of threads.
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """The process ends if it takes longer, whatever it is at."""
    if sys.platform == "win32":
        yield
        return
    signal.alarm(math.ceil(seconds))
    try:
        yield
    finally:
        signal.alarm(0)


def _parts(decoded: Decoded) -> list[Any]:
    """The line and the arrays that are sent of what was decoded, as `receive_medium` reads them."""
    match decoded:
        case Waveform():
            return [{"sound": _told(decoded)}, decoded.samples.data]
        case Clip():
            sound = decoded.sound
            line = {"pixels": decoded.frames.shape[:3], "times": decoded.times.tolist(), "duration": decoded.duration}
            arrays = [decoded.frames.data, *([] if sound is None else [sound.samples.data])]
            return [{**line, "sound": None if sound is None else _told(sound)}, *arrays]
    return [{"pixels": (decoded.height, decoded.width)}, decoded.tobytes()]


def _told(sound: Waveform) -> list[int]:
    return [len(sound.samples), sound.sample_rate]


def _send(file: IO[bytes], line: dict[str, Any], *data: bytes | memoryview) -> None:
    file.write(json.dumps(line).encode() + b"\n")
    for piece in data:
        file.write(piece)
    file.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
