"""Pictures to be described, wherever they lie: files, folders, patterns, lists, tar shards and Parquet.

photos/            all pictures below it         photos/*.jpg, "photos/**"     a pattern, ** for any folders between
-                  names on standard input       shard.tar                     all pictures in it, by seeking
rows.parquet       its column of pictures        photo.jpg                     one
"""

import glob
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mmgpt.content import Image
from mmgpt.data.folders import IMAGES
from mmgpt.data.parquet import ParquetRows
from mmgpt.data.rows import MEDIA, Cell
from mmgpt.data.webdataset import Member
from mmgpt.errors import DataError, shown
from mmgpt.folder import MediaFolder


@dataclass(frozen=True)
class Pictures:
    """Pictures of one source by number, each with the name that it is told by."""

    count: int
    get: Callable[[int], tuple[str, Image]]

    def __iter__(self) -> Iterator[tuple[str, Image]]:
        return map(self.get, range(self.count))


def find_pictures(sources: Sequence[str], listed: BinaryIO | None = None) -> list[Pictures]:
    """The pictures of each source, in order; nothing is decoded, and of tars and Parquet only indices are read.

    Args:
        sources: See above.
        listed: What "-" reads names from, a line each, as the system writes them; None is standard input.

    Raises:
        DataError: A source has no pictures or cannot be read.
    """
    found = [_pictures(source, listed) for source in sources]
    for source, pictures in zip(sources, found, strict=True):
        if not pictures.count:
            raise DataError(f"{source}: no pictures; known are {', '.join(IMAGES)}, in folders, tars and Parquet too")
    return found


def _pictures(source: str, listed: BinaryIO | None) -> Pictures:
    path = Path(source)
    if source == "-":
        return _files([os.fsdecode(line.rstrip(b"\r\n")) for line in listed or sys.stdin.buffer if line.strip()])
    if path.is_dir():
        return _files([str(path / name) for name in MediaFolder(path).files(IMAGES)])
    if path.suffix.lower() == ".parquet" and path.is_file():
        return _rows(path)
    if path.suffix.lower() == ".tar" and path.is_file():
        return _members(path)
    if glob.has_magic(source) and not path.exists():
        names = sorted(glob.glob(source, recursive=True))  # noqa: PTH207  Path's takes no absolute pattern
        return _files([name for name in names if name.lower().endswith(IMAGES)])
    return _files([source])


def _files(names: list[str]) -> Pictures:
    return Pictures(len(names), lambda i: (names[i], Image(names[i])))


def _rows(path: Path) -> Pictures:
    rows = ParquetRows([path])
    columns = [name for name in rows.columns if MEDIA.get(name.lower()) == "image" and not rows.columns[name]]
    if not columns:
        raise DataError(f"{path}: no column of pictures; there are {shown(', '.join(rows.columns))}")

    def get(row: int) -> tuple[str, Image]:
        cell = Cell(rows, row, columns[0])
        return str(cell), Image(cell)

    return Pictures(sum(rows.lengths), get)


def _members(path: Path) -> Pictures:
    members = []
    try:
        with tarfile.open(path, "r:", errors="replace") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every one
                if member.isreg() and not member.issparse() and member.name.lower().endswith(IMAGES):
                    members.append(Member(path, member.name, member.offset_data, member.size))
    except tarfile.TarError as error:
        raise DataError(f"{path}: cut off, compressed or no tar ({error}); fetch it again") from None
    return Pictures(len(members), lambda i: (str(members[i]), Image(members[i])))
