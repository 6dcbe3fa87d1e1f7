"""Captions of any number of pictures, in files that a second start goes on with.

captions.jsonl             {"image": name, "caption": text}, a line each, in the order of the pictures
captions.failed.jsonl      {"image": name, "reason": text} of those that cannot be decoded
captions.settings.json     the model and the decoding: captions of others are not mixed with these
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, tee
from pathlib import Path
from typing import BinaryIO

from mmgpt.assistant import load
from mmgpt.content import Image
from mmgpt.data.pictures import Pictures
from mmgpt.data.rows import Cell
from mmgpt.errors import MediaError
from mmgpt.evaluation.asking import Asked, said, settings_of
from mmgpt.generation import Decoding
from mmgpt.resumable import agree, as_json, held, progress_bar
from mmgpt.tasks import TASKS


@dataclass(frozen=True)
class Captioned:
    """How many pictures have a caption now, how many cannot have one, and how many of both had been done before."""

    described: int
    failed: int
    before: int


def caption_all(
    model: str, pictures: Sequence[Pictures], out: Path, decoding: Decoding, *, int8: bool = False, threads: int = 2
) -> Captioned:
    """Caption each picture once, though it be given twice, and go on where a start before this one has ended.

    Pictures are decoded in threads ahead of the model. What grows with their number is a hash for each, and its name.

    Args:
        model: Its directory, or a Hub id.
        pictures: From `find_pictures`.
        out: Where captions go, "captions.jsonl"; its neighbours are called after it.
        decoding: How captions are decoded.
        int8: Compute in int8.
        threads: That decode pictures.

    Raises:
        ConfigError: The files are of another model or other decoding, or being written to.
        CheckpointError: The model cannot be read.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    side = out.with_suffix(".failed.jsonl")
    with ExitStack() as stack:
        stack.enter_context(held(out.with_name(f".{out.stem}.lock")))
        agree(out.with_suffix(".settings.json"), settings_of(model, int8, decoding), out)
        told, lost = (stack.enter_context(path.open("a+b", buffering=0)) for path in (out, side))
        described, failed = _names(told), _names(lost)
        done = described | failed
        counts, before = {True: len(described), False: len(failed)}, len(done)
        missing = _missing(pictures, done)
        if (first := next(missing, None)) is None:
            return Captioned(counts[True], counts[False], before)
        assistant = load(model, int8=int8)
        bar = stack.enter_context(progress_bar())
        task = bar.add_task("describing", total=sum(source.count for source in pictures), completed=before)
        names, asked = tee(chain([first], missing))
        for (name, _), answer in zip(names, said(assistant, asked, decoding, threads), strict=False):
            if isinstance(answer, str):
                told.write(as_json({"image": name, "caption": answer}) + b"\n")
            else:
                lost.write(as_json({"image": name, "reason": str(answer)}) + b"\n")
            counts[isinstance(answer, str)] += 1
            bar.advance(task)
    return Captioned(counts[True], counts[False], before)


def _missing(pictures: Sequence[Pictures], done: set[bytes]) -> Iterator[Asked]:
    """What is to be asked of the pictures that are not done, which they then are."""
    for name, image in chain.from_iterable(pictures):
        if (mark := _mark(name)) not in done:
            done.add(mark)
            yield name, TASKS["caption"].conversation(_read(image))


def _read(image: Image) -> Image:
    """The picture, if it lies in a table with its bytes: tables are not read by several threads."""
    if not isinstance(image.source, Cell):
        return image
    try:
        return Image(image.source.read_bytes())
    except MediaError:
        return image  # which is told when it is decoded


def _names(file: BinaryIO) -> set[bytes]:
    """The marks of the pictures in whole lines of a file; what follows these is cut off."""
    found, size = set[bytes](), 0
    file.seek(0)
    for line in file:
        try:
            mark = _mark(json.loads(line)["image"])
        except (ValueError, TypeError, KeyError):
            break
        if not line.endswith(b"\n"):
            break
        found.add(mark)
        size += len(line)
    file.truncate(size)
    return found


def _mark(name: str) -> bytes:
    """What stands for a name, so that ten million of them need not be kept."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=12).digest()
