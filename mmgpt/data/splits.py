"""Which samples are trained on, and which are held out: one rule for every format."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmgpt.errors import DataError, shown

_DEV = ("dev", "val", "valid", "validation")
SPLITS = ("train", *_DEV, "test")  # names by which files and folders tell their split


def split_name(split: str) -> str:
    """The name by which a split is known inside: "val", "valid" and "validation" are "dev"."""
    name = split.strip().lower()
    return "dev" if name in _DEV else name


def members(splits: Mapping[str, str | None], split: str, hold_out: bool = True) -> list[str]:
    """The names that belong to a split, in the order given.

    A data set that names its splits is taken at its word; a name without a split is "train". Where no name is "dev",
    every tenth training name in sorted order, beginning with the first, is "dev" and is not trained on.

    Args:
        splits: The split of each name, None where the data set does not say.
        split: The one that is wanted.
        hold_out: Make "dev" out of "train" where it is not named; False where it is in another file.

    Raises:
        DataError: There is nothing in it.
    """
    named = {name: split_name(own or "train") for name, own in splits.items()}
    if hold_out and "dev" not in named.values():
        training = sorted(name for name, own in named.items() if own == "train")
        named.update(dict.fromkeys(training[::10], "dev"))
    wanted = split_name(split)
    found = [name for name, own in named.items() if own == wanted]
    if not found:
        counts = ", ".join(f"{own} ({list(named.values()).count(own)})" for own in dict.fromkeys(named.values()))
        raise DataError(f"nothing is in the split {shown(split)}; there is {counts or 'nothing at all'}")
    return found


def split_in_name(name: str) -> str | None:
    """The split that a file's name tells: "data/train-00000-of-00002.parquet", "val/0.tar". None if it tells none."""
    words = (re.split(r"[^a-z]", piece, maxsplit=1)[0] for piece in reversed(name.lower().split("/")))
    return next((split_name(word) for word in words if word in SPLITS), None)


def is_held_out(place: int | np.ndarray) -> Any:
    """Whether a row at a place among the training rows is "dev", for one place or for many."""
    return place % 10 == place // 10 % 10


def hold_out_tails(names: Sequence[str | None], counts: Sequence[int]) -> tuple[list[str | None], np.ndarray]:
    """Splits and codes for `row_numbers`, of files whose rows follow from each other: no held-out row is between two
    that are learned.

    Where no file is "dev", the last rows of each training file are, so many that of all up to there it is a tenth.

    Args:
        names: The split of each file; None is "train".
        counts: How many rows each has.
    """
    known = [split_name(name or "train") for name in names]
    codes, ends, seen = np.repeat(np.arange(len(names)), counts), np.cumsum(counts), 0
    for name, count, end in zip(known, counts, ends, strict=True):
        if name == "train" and "dev" not in known:
            tail = -(-(seen + count) // 10) - -(-seen // 10)
            codes[end - tail : end] = len(names)
            seen += count
    return [*names, "dev"], codes


def row_numbers(names: Sequence[str | None], codes: np.ndarray, split: str) -> np.ndarray:
    """The numbers of the rows of a split, where there are too many rows to give each a name.

    As `members`, but that of every ten training rows one is held out whose place moves on by one from ten to ten: rows
    may take turns between ten classes.

    Args:
        names: The splits there are; None is "train".
        codes: (rows,) which of them each row is of.
        split: The one that is wanted.

    Raises:
        DataError: There is nothing in it.
    """
    known = [split_name(name or "train") for name in names]
    wanted = split_name(split)

    def rows_of(name: str) -> np.ndarray:
        return np.flatnonzero(np.isin(codes, [code for code, own in enumerate(known) if own == name]))

    rows = rows_of(wanted)
    if "dev" not in known and wanted in ("train", "dev"):
        training = rows_of("train")
        rows = training[is_held_out(np.arange(len(training))) == (wanted == "dev")]
    if not len(rows):
        counts = ", ".join(f"{name} ({len(rows_of(name))})" for name in dict.fromkeys(known))
        raise DataError(f"nothing is in the split {shown(split)}; there is {counts or 'nothing at all'}")
    return rows
