"""Samples that are made when their turn comes, so that a data set may be larger than memory."""

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np

from mmgpt.data.sample import Sample


class LazySamples(Sequence[Sample]):
    """A sequence whose samples are made anew each time they are asked for.

    Args:
        rows: The rows of the samples, in order.
        make: The sample of a row; it raises DataError where the row is malformed.
    """

    def __init__(self, rows: range | np.ndarray, make: Callable[[int], Sample]) -> None:
        self._rows = rows
        self._make = make

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "LazySamples": ...
    def __getitem__(self, index: int | slice) -> "Sample | LazySamples":
        if isinstance(index, slice):
            return LazySamples(self._rows[index], self._make)
        return self._make(int(self._rows[index]))
