"""Samples that are made when their turn comes, so that a data set may be larger than memory."""

from collections.abc import Callable, Iterable, Sequence
from typing import overload

import numpy as np

from mmgpt.data.sample import Sample


class LazySamples(Sequence[Sample]):
    """A sequence whose samples are made anew each time they are asked for.

    Args:
        rows: The rows of the samples, in order.
        make: The sample of a row; it raises DataError where the row is malformed.
        lost: Why there are not more, a line for each file that breaks off.
    """

    def __init__(self, rows: range | np.ndarray, make: Callable[[int], Sample], lost: Sequence[str] = ()) -> None:
        self._rows = rows
        self._make = make
        self.lost = list(lost)

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, places: Sequence[int]) -> "LazySamples":
        """Those at some places."""
        return LazySamples(np.asarray(self._rows)[np.asarray(places, dtype=np.int64)], self._make, self.lost)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "LazySamples": ...
    def __getitem__(self, index: int | slice) -> "Sample | LazySamples":
        if isinstance(index, slice):
            return LazySamples(self._rows[index], self._make, self.lost)
        return self._make(int(self._rows[index]))


def lost_of(*sources: Iterable[Sample]) -> list[str]:
    """What is lost of any samples, whatever holds them, each once."""
    return list(dict.fromkeys(reason for samples in sources for reason in getattr(samples, "lost", ())))
