"""Pictures, or other media, wherever they lie: files, folders, patterns, lists, tar shards and Parquet.

photos/            all pictures below it         photos/*.jpg, "photos/**"     a pattern, ** for any folders between
-                  names on standard input       shard.tar                     all pictures in it, by seeking
rows.parquet       its column of pictures        photo.jpg                     one
"""

import glob
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, TypeAlias, TypeVar

from mmgpt.content import MODALITIES, Image, Medium
from mmgpt.data.folders import IMAGES
from mmgpt.data.parquet import ParquetRows
from mmgpt.data.rows import MEDIA, Cell
from mmgpt.data.webdataset import Member, beyond
from mmgpt.errors import DataError, shown
from mmgpt.folder import MediaFolder

M = TypeVar("M", bound=Medium)
Kinds: TypeAlias = Mapping[str, type[M]]  # by the endings of files


@dataclass(frozen=True)
class Media(Generic[M]):
    """Media of one source by number, each with the name that it is told by."""

    count: int
    get: Callable[[int], tuple[str, M]]

    def __iter__(self) -> Iterator[tuple[str, M]]:
        return map(self.get, range(self.count))


Pictures: TypeAlias = Media[Image]


def find_pictures(sources: Sequence[str], listed: BinaryIO | None = None) -> list[Pictures]:
    """The pictures of each source, as `find_media` finds them; a file with another ending is taken for one, too."""
    return find_media(sources, dict.fromkeys(IMAGES, Image), Image, listed)


def find_media(
    sources: Sequence[str], kinds: Kinds[M], otherwise: type[M], listed: BinaryIO | None = None
) -> list[Media[M]]:
    """The media of each source, in order; nothing is decoded, and of tars and Parquet only indices are read.

    Args:
        sources: See above.
        kinds: What is looked for.
        otherwise: What a file is whose name has none of these endings.
        listed: What "-" reads names from, a line each, as the system writes them; None is standard input.

    Raises:
        DataError: A source has no such media or cannot be read.
    """
    found = [_media(source, kinds, otherwise, listed) for source in sources]
    for source, media in zip(sources, found, strict=True):
        if not media.count:
            what = "pictures" if set(kinds.values()) == {Image} else "media"
            raise DataError(f"{source}: no {what}; known are {', '.join(kinds)}, in folders, tars and Parquet too")
    return found


def _media(source: str, kinds: Kinds[M], otherwise: type[M], listed: BinaryIO | None) -> Media[M]:
    def files(names: list[str]) -> Media[M]:
        return Media(len(names), lambda i: (names[i], _kind(names[i], kinds, otherwise)(names[i])))

    path = Path(source)
    if source == "-":
        return files([os.fsdecode(line.rstrip(b"\r\n")) for line in listed or sys.stdin.buffer if line.strip()])
    if path.is_dir():
        return files([str(path / name) for name in MediaFolder(path).files(tuple(kinds))])
    if path.suffix.lower() == ".parquet" and path.is_file():
        return _rows(path, kinds)
    if path.suffix.lower() == ".tar" and path.is_file():
        return _members(path, kinds, otherwise)
    if glob.has_magic(source) and not path.exists():
        names = sorted(glob.glob(source, recursive=True))  # noqa: PTH207  Path's takes no absolute pattern
        return files([name for name in names if name.lower().endswith(tuple(kinds))])
    return files([source])


def _kind(name: str, kinds: Kinds[M], otherwise: type[M]) -> type[M]:
    return kinds.get(Path(name).suffix.lower(), otherwise)


def _rows(path: Path, kinds: Kinds[M]) -> Media[M]:
    rows, wanted = ParquetRows([path]), {MODALITIES[kind]: kind for kind in kinds.values()}
    columns = {name: wanted[modality] for name in rows.columns if (modality := MEDIA.get(name.lower())) in wanted}
    columns = {name: kind for name, kind in columns.items() if not rows.columns[name]}
    if not columns:
        raise DataError(f"{path}: no column of pictures; there are {shown(', '.join(rows.columns))}")
    column, kind = next(iter(columns.items()))

    def get(row: int) -> tuple[str, M]:
        cell = Cell(rows, row, column)
        return str(cell), kind(cell)

    return Media(sum(rows.lengths), get)


def _members(path: Path, kinds: Kinds[M], otherwise: type[M]) -> Media[M]:
    members = []
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:", errors="replace") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every one
                if member.isreg() and not member.issparse() and member.name.lower().endswith(tuple(kinds)):
                    members.append(Member(path, member.name, member.offset_data, member.size))
            if reason := beyond(file, tar.offset):
                raise DataError(f"{path}: {reason}")
    except tarfile.TarError as error:
        raise DataError(f"{path}: cut off, compressed or no tar ({error}); fetch it again") from None
    return Media(len(members), lambda i: (str(members[i]), _kind(members[i].name, kinds, otherwise)(members[i])))
