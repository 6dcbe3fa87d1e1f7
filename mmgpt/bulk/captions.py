"""Captions of any number of pictures, in files that a second start goes on with.

captions.jsonl             {"image": name, "caption": text}, a line each, in order (of Ray: in the order they come)
captions.failed.jsonl      {"image": name, "reason": text} of those that cannot be decoded
captions.settings.json     the model and the decoding: captions of others are not mixed with these
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from io import BufferedReader, FileIO
from itertools import chain
from pathlib import Path
from typing import Literal

from mmgpt.assistant import load
from mmgpt.bulk.local import Picture, described
from mmgpt.data.pictures import Pictures
from mmgpt.errors import ConfigError
from mmgpt.evaluation.asking import settings_of
from mmgpt.generation import Decoding
from mmgpt.resumable import agree, as_json, held, progress


@dataclass(frozen=True)
class Captioned:
    """How many pictures have a caption now, how many cannot have one, and how many of both had been done before."""

    described: int
    failed: int
    before: int


def caption_all(
    model: str,
    pictures: Sequence[Pictures],
    out: Path,
    decoding: Decoding,
    *,
    int8: bool = False,
    threads: int = 2,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
) -> Captioned:
    """Caption each picture once, though it be given twice, and go on where a start before this one has ended.

    Pictures are decoded in threads ahead of the model. What grows with their number is a hash for each, and its name.

    Args:
        model: Its directory, or a Hub id.
        pictures: From `find_pictures`.
        out: Where captions go, "captions.jsonl"; its neighbours are called after it.
        decoding: How captions are decoded.
        int8: Compute in int8.
        threads: That decode pictures, beside each model.
        engine: "local", one model in this process, or "ray", one in each worker of a cluster (see mmgpt.bulk.ray).
        workers: How many of these; None is one for each GPU, or for each core where there are none.

    Raises:
        ConfigError: The files are of another model or other decoding, or being written to; Ray is not installed.
        CheckpointError: The model cannot be read.
        ClusterError: No cluster, or workers that cannot do this.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    side = out.with_suffix(".failed.jsonl")
    with ExitStack() as stack:
        stack.enter_context(held(out.with_name(f".{out.stem}.lock")))
        settings = settings_of(model, int8, decoding)
        agree(out.with_suffix(".settings.json"), settings, out)
        told, lost = (stack.enter_context(path.open("a+b", buffering=0)) for path in (out, side))
        described_before, failed = _names(told), _names(lost)
        done = described_before | failed
        counts, before = {True: len(described_before), False: len(failed)}, len(done)
        missing = _missing(pictures, done)
        if (first := next(missing, None)) is None:
            return Captioned(counts[True], counts[False], before)
        missing, total = chain([first], missing), sum(source.count for source in pictures)
        advance = stack.enter_context(progress("describing", total, before))
        if engine == "ray":
            from mmgpt.bulk.ray import Worker, described_on_ray

            worker = Worker(model, settings["model"]["sha256"], int8, decoding, threads)
            records = described_on_ray(worker, missing, total - before, workers)
        else:
            records = described(load(model, int8=int8), missing, decoding, threads)
        for record in stack.enter_context(closing(records)):
            has_caption = "caption" in record
            (told if has_caption else lost).write(as_json(record) + b"\n")
            counts[has_caption] += 1
            advance()
    return Captioned(counts[True], counts[False], before)


def _missing(pictures: Sequence[Pictures], done: set[bytes]) -> Iterator[Picture]:
    """The pictures that are not done, which they then are."""
    for name, image in chain.from_iterable(pictures):
        if (mark := _mark(name)) not in done:
            done.add(mark)
            yield name, image


def _names(file: FileIO) -> set[bytes]:
    """The marks of the pictures in a file; a last line that is not whole is cut off. Raises ConfigError for others."""
    found, size = set[bytes](), 0
    file.seek(0)
    lines = BufferedReader(file)
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        try:
            found.add(_mark(json.loads(line)["image"]))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ConfigError(
                f"{file.name}:{number}: is not what was written there; mend the line or remove it, and start again"
            ) from None
        size += len(line)
    lines.detach()  # else it would close the file
    file.truncate(size)
    return found


def _mark(name: str) -> bytes:
    """What stands for a name, so that ten million of them need not be kept."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=12).digest()
