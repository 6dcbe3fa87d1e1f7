"""Text alone: plain text to learn to continue, or tables of prompts and answers.

folder/train.txt, dev.txt, more/a.txt      plain text; or one .txt
folder/train.tsv, dev.tsv                  or .csv, .jsonl, or one of them: source and target, question and answer, text
                                           and label, ... in the first row (see mmgpt.data.rows); media may be named too

Plain text is cut into documents of at most so many bytes: whole paragraphs while they fit, else whole lines, else
words. They have no prompt: the model learns to begin and to go on. The text is not kept in memory.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmgpt.data.gathered import Gathered
from mmgpt.data.lazy import LazySamples
from mmgpt.data.rows import row_sample
from mmgpt.data.sample import Sample
from mmgpt.data.splits import hold_out_tails, row_numbers, split_in_name, split_name
from mmgpt.data.table import read_table
from mmgpt.errors import ConfigError, DataError
from mmgpt.folder import MediaFolder

_TABLES = (".csv", ".tsv", ".jsonl")


def read_texts(path: Path, split: str, length: int = 2000) -> Sequence[Sample]:
    """The documents, or rows, of a split, in the order of the files' names.

    Args:
        path: A file, or a folder of .txt files, or of tables where there are any.
        split: By the names of files and folders, or by the column "split"; where none is "dev", every tenth row of a
            table, and the last tenth of plain text (see splits.hold_out_tails).
        length: Most bytes of a document of plain text; it is never more tokens than that.

    Raises:
        DataError: A row is malformed, or a text is not UTF-8.
    """
    if path.is_file():
        files, splits, folder = [path], [None], path.parent
    elif path.is_dir():
        inside = MediaFolder(path)
        names = inside.files(_TABLES) or inside.files({".txt"})
        files, splits, folder = [path / name for name in names], [split_in_name(name) for name in names], path
    else:
        raise DataError(f"{path}: no such file or folder")
    if not files:
        raise DataError(f"{path}: no .txt and none of {', '.join(_TABLES)} is in this folder")
    if files[0].suffix.lower() in _TABLES:
        return _read_tables(path, files, splits, MediaFolder(folder), split)
    if length < 4:
        raise ConfigError(f"data.text_length: must be 4 bytes or more, the longest character, not {length}")
    texts = [_documents(file, length) for file in files]
    counts = [len(found) for found in texts]
    try:
        numbers = row_numbers(*hold_out_tails(splits, counts), split)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    codes = np.repeat(np.arange(len(files)), counts)
    return LazySamples(numbers, partial(_document, files, codes, np.concatenate(texts)))


def _read_tables(
    path: Path, files: Sequence[Path], splits: Sequence[str | None], folder: MediaFolder, split: str
) -> list[Sample]:
    gathered = Gathered(path)
    train = split_name(split) == "train"
    number = 0
    for file, own in zip(files, splits, strict=True):
        for where, fields in read_table(file, gathered.faults).rows:
            named = {name.lower(): value for name, value in fields.items() if value != ""}
            make = partial(row_sample, named, where, folder, number if train else None)
            gathered.add(where, named.get("split") or own, make)
            number += 1
    return gathered.samples(split)


def _document(files: Sequence[Path], codes: np.ndarray, spans: np.ndarray, row: int) -> Sample:
    start, end = spans[row].tolist()
    path = files[codes[row]]
    with path.open("rb") as file:
        file.seek(start)
        text = file.read(end - start).decode("utf-8-sig")
    return Sample((), (text.strip("\r\n"),), "continue", f"{path}: byte {start}")


def _documents(path: Path, length: int) -> np.ndarray:
    """(documents, 2): the bytes where each document of a file begins and ends; blank ones are left out."""
    with path.open("rb") as file:
        spans = list(_cut(file, path, length))
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def _cut(file: BinaryIO, path: Path, length: int) -> Iterator[tuple[int, int]]:
    start, text, paragraphs = 0, b"", 0  # of a document: its first byte, what it has so far, bytes of whole paragraphs
    for number, line in enumerate(file, 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x}); save the file as UTF-8"
            ) from None
        for piece in _pieces(line, length):
            while text and len(text) + len(piece) > length:
                size = paragraphs or len(text)
                if text[:size].strip():
                    yield start, start + size
                start, text, paragraphs = start + size, text[size:], 0
            text += piece
        if not line.strip():
            paragraphs = len(text)
    if text.strip():
        yield start, start + len(text)


def _pieces(line: bytes, length: int) -> Iterator[bytes]:
    """A line in pieces of at most so many bytes, cut after blanks, or else between characters."""
    start = 0
    while len(line) - start > length:
        end = line.rfind(b" ", start, start + length) + 1
        if not end:
            end = start + length
            while end > start + 1 and line[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
        yield line[start:end]
        start = end
    yield line[start:]
