"""Samples gathered row by row, and parted into splits at the end: what chat, llava, vqa and tables have in common."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmgpt.data.faults import Faults
from mmgpt.data.sample import Sample
from mmgpt.data.splits import members
from mmgpt.errors import DataError, shown
from mmgpt.folder import MissingFileError


class Gathered:
    """The samples of a file, in its order.

    Args:
        source: The file the rows come from, for messages.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self.faults = Faults()
        self._samples: list[tuple[str, Sample]] = []
        self._splits: dict[str, str | None] = {}

    def add(self, where: str, split: Any, make: Callable[[], Sample]) -> None:
        """One row. What is wrong with it is remembered, so that all faults are told."""
        with self.faults.row():
            self._add(where, split, make)

    def _add(self, where: str, split: Any, make: Callable[[], Sample]) -> None:
        if split is not None and not isinstance(split, str):
            raise DataError(f"{where}: the split is {shown(split)}; it is a string")
        try:
            sample = make()
        except MissingFileError as error:
            self.faults.missing.append(f"{where}: {error}; add the file or remove the line")
            return
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        row = f"{len(self._samples):09d}"
        name = row if split else _first_file(sample) or row
        self._splits[name] = split or None
        self._samples.append((name, sample))

    def samples(self, split: str, hold_out: bool = True) -> list[Sample]:
        """Those of a split, by the rows' own word, or else every tenth is held out (see splits.members).

        Rows that begin with the same media file count as one, so that no picture is both trained on and held out.
        Raises RowsError where anything is wrong with a row, DataError where nothing is in the split.
        """
        self.faults.raise_all()
        try:
            chosen = set(members(self._splits, split, hold_out))
        except DataError as error:
            raise DataError(f"{self.source}: {error}") from None
        return [sample for name, sample in self._samples if name in chosen]


def _first_file(sample: Sample) -> str:
    """The path of the first picture, sound or video that is a file, or nothing."""
    return next((str(part.source) for part in sample.media() if isinstance(part.source, Path)), "")
