"""WebDataset: tar shards in which files of one name but for the suffix, one after the other, are a sample.

folder/train-000000.tar      000000.jpg 000000.txt 000001.jpg 000001.txt ...; the split is in the shard's name or folder
.jpg .png .webp .wav .flac .mp3 .mp4 ...      the media
.txt, .caption, .transcript                   text about them
.cls                                          their class
.json                                         an object of columns (see mmgpt.data.rows): {"question": "...", ...}

Each shard's headers are read once; after that any sample is read by seeking, so order and resuming cost nothing. Files
with other suffixes are passed over, and pickles are refused. A shard that is cut off, or in which something else than a
file inside it turns up, loses its samples from there on, which is told; the others go on.
"""

import re
import tarfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmgpt.data.faults import Faults
from mmgpt.data.folders import PARTS
from mmgpt.data.lazy import LazySamples
from mmgpt.data.rows import row_sample, told
from mmgpt.data.sample import Sample
from mmgpt.data.splits import row_numbers, split_in_name, split_name
from mmgpt.data.table import parse_json
from mmgpt.errors import DataError, MediaError, shown
from mmgpt.folder import MediaFolder

_TEXTS = {".txt": "text", ".caption": "caption", ".transcript": "transcript", ".cls": "label", ".json": ""}
_KINDS = {suffix: part.__name__.lower() for suffix, part in PARTS.items()}
_SUFFIXES = (*_KINDS, *_TEXTS)
_PICKLES = (".pkl", ".pickle", ".pyd", ".pth", ".pt")  # .pyd is what the webdataset library calls a Python object
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)(\.[^/]*)")  # all before the base name's first dot, and the rest
_MOST_TEXT = 1 << 24  # bytes of one text member


def read_webdataset(path: Path, split: str) -> LazySamples:
    """The samples of a split, in the order of the shards' names; each is read when its turn comes.

    Args:
        path: A shard, a folder of shards, or a pattern of their names: "folder/train-*.tar".
        split: By the names of shards or their folders; where none is "dev", one sample in ten of training (see
            splits.row_numbers).

    Raises:
        DataError: There is no shard, one is compressed or holds a pickle, or samples lack their text or their media;
            later, a text is malformed.
    """
    files, names = _shards(path)
    shards = [_index(file) for file in files]
    any_media = any(shard.media for shard in shards)
    faults = Faults()
    faults.missing += [message for shard in shards for message in shard.incomplete(any_media)]
    faults.raise_all()
    codes = np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])
    # A shard whose name tells no split may have samples of any.
    lost = [one.lost for one, name in zip(shards, names, strict=True) if one.lost and name in (None, split_name(split))]
    try:
        numbers = row_numbers(names, codes, split)
    except DataError as error:
        raise DataError("; ".join([f"{path}: {error}", *lost])) from None
    starts = np.cumsum([0, *(len(shard) for shard in shards)])
    samples = LazySamples(numbers, partial(_sample, shards, starts, split_name(split) == "train"), lost)
    _ = samples[0]  # so that shards of which nothing can be made are told before training
    return samples


@dataclass
class Shard:
    """Where the files of a tar's samples lie: numbers in arrays, as there may be millions.

    The members of sample i are `starts[i]` to `starts[i + 1]` of `kinds` (numbers of suffixes), `offsets` and `sizes`
    (bytes). `lost` tells why there are not more, if the tar is broken.
    """

    path: Path
    keys: np.ndarray
    starts: np.ndarray
    kinds: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    lost: str

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, sample: int) -> str:
        return self.keys[sample].decode("utf-8", "replace")

    @property
    def media(self) -> bool:
        """Whether any of its samples has media."""
        return bool(np.any(self.kinds < len(_KINDS)))

    def incomplete(self, needs_media: bool) -> list[str]:
        """What samples lack: their text, or their media where the data set has any."""
        if not len(self):
            return []
        texts, media, tables = (
            np.add.reduceat(kinds, self.starts[:-1], dtype=np.int64)
            for kinds in (self.kinds >= len(_KINDS), self.kinds < len(_KINDS), self.kinds == _SUFFIXES.index(".json"))
        )
        silent = [f"{self.key(i)} has no {', '.join(_TEXTS)}; add one" for i in np.flatnonzero(texts == 0).tolist()]
        blind = np.flatnonzero((media == 0) & (tables == 0)).tolist() if needs_media else ()
        bare = [f"{self.key(i)} has no picture, sound or video; add it" for i in blind]
        return [f"{self.path}: {lack} or remove the sample" for lack in (*silent, *bare)]


@dataclass(frozen=True, eq=False)
class Member:
    """A file of a tar, read by seeking."""

    path: Path
    name: str
    offset: int
    size: int = field(repr=False)

    def __str__(self) -> str:
        return f"{self.path}: {self.name}"

    def read_bytes(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise MediaError(f"{self}: cannot be read: {error.strerror}") from None
        if len(data) != self.size:
            raise MediaError(f"{self}: the shard became shorter since it was indexed; start again")
        return data


def _sample(shards: Sequence[Shard], starts: np.ndarray, train: bool, row: int) -> Sample:
    number = int(np.searchsorted(starts, row, side="right")) - 1
    shard, sample = shards[number], row - int(starts[number])
    where = f"{shard.path}: {shard.key(sample)}"
    fields: dict[str, Any] = {}
    media: dict[str, list[Member]] = {}
    for i in range(shard.starts[sample], shard.starts[sample + 1]):
        suffix = _SUFFIXES[shard.kinds[i]]
        member = Member(shard.path, f"{shard.key(sample)}{suffix}", int(shard.offsets[i]), int(shard.sizes[i]))
        if suffix in _KINDS:
            media.setdefault(_KINDS[suffix], []).append(member)
        elif suffix == ".json":
            columns = parse_json(_text(member), Path(str(member)))
            if not isinstance(columns, dict):
                raise DataError(f"{member}: not an object of named values")
            fields.update({name.lower(): value for name, value in columns.items()})
        else:
            fields[_TEXTS[suffix]] = _text(member)
    return told(partial(row_sample, {**fields, **media}, where, None, row if train else None), where)


def _text(member: Member) -> str:
    if member.size > _MOST_TEXT:
        raise DataError(f"{member}: {member.size:,} bytes are no text to learn from; at most {_MOST_TEXT:,} are read")
    try:
        return member.read_bytes().decode("utf-8-sig")
    except MediaError as error:
        raise DataError(str(error)) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{member}: not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _shards(path: Path) -> tuple[list[Path], list[str | None]]:
    """The tars, sorted, and the split that each name tells."""
    if path.is_file():
        return [path], [None]
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        raise DataError(f"{path}: no such file or folder")
    names = [
        name
        for name in MediaFolder(folder).files({".tar", ".tgz", ".gz"})
        if not name.endswith(".gz") or name.endswith(".tar.gz")
    ]
    if folder != path:
        names = [name for name in names if fnmatchcase(name, path.name) and "/" not in name]
    if not names:
        raise DataError(f"{path}: no .tar is here; give a shard, a folder of shards or a pattern of their names")
    return [folder / name for name in names], [split_in_name(name) for name in names]


def _index(path: Path) -> Shard:
    """Reads the headers of a tar; where it breaks, the samples before it are kept and the loss is told."""
    keys: list[bytes] = []
    starts, kinds, offsets, sizes = [0], [], [], []
    key: str | None = None
    broken = ""

    def close() -> None:
        if len(kinds) > starts[-1]:
            keys.append((key or "").encode("utf-8", "replace")[:200])
            starts.append(len(kinds))

    with path.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise DataError(f"{path}: is compressed, so no sample is found without reading all before it; gunzip it")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:", errors="replace") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep every one
                    match = _KEY.fullmatch(member.name)
                    if match is not None and match[1] != key:
                        close()
                        key = match[1]
                    if broken := _wrong(member):
                        break
                    if member.isdir() or match is None:
                        continue
                    suffix = match[2].lower()
                    if suffix.endswith(_PICKLES):
                        raise DataError(
                            f"{path}: {shown(member.name)} is a pickle, which could run code; store it as .json or .txt"
                        )
                    if suffix in _SUFFIXES:
                        kinds.append(_SUFFIXES.index(suffix))
                        offsets.append(member.offset_data)
                        sizes.append(member.size)
                broken = broken or beyond(file, tar.offset)
        except tarfile.TarError as error:
            broken = f"it is cut off, damaged or no tar ({error})"
    if broken:  # and of the sample under way, something may be missing
        del kinds[starts[-1] :], offsets[starts[-1] :], sizes[starts[-1] :]
        after = f"after {keys[-1].decode('utf-8', 'replace')}" if keys else "of it"
        broken = f"{path}: {broken}; all samples {after} are lost"
        warnings.warn(broken, stacklevel=2)
    else:
        close()
    return Shard(
        path,
        np.array(keys, dtype=bytes),
        np.array(starts, dtype=np.int64),
        np.array(kinds, dtype=np.int8),
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
        broken,
    )


def _wrong(member: tarfile.TarInfo) -> str:
    """Why a member is not one of a shard, or nothing."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return f"{shown(member.name)} leads out of it"
    if not (member.isreg() or member.isdir()) or member.issparse():
        return f"{shown(member.name)} is a link or no ordinary file"
    return ""


def beyond(file: BinaryIO, offset: int) -> str:
    """Why the place where tarfile stopped reading is not a tar's end, or nothing.

    It takes damage and a cut for the end; and after the end mark, blocks of zeros, another tar may follow.
    """
    file.seek(offset)
    if file.read(512) != bytes(512):
        return "it is cut off, or damaged"
    while piece := file.read(1 << 20):
        if any(piece):
            return "another tar follows its end; unpack and pack them anew"
    return ""
