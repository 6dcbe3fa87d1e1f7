"""The order samples are taken in: a pure function of seed, epoch and place, so a place is all there is to resume."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mmgpt.data.mixture import Mixture
from mmgpt.data.sample import Sample

BLOCK = 1000  # samples of a stream that are held in memory, to be taken in another order


@dataclass(frozen=True)
class Key:
    """A sample that is asked for: the epoch, and its number; one of a stream, which cannot be gone back to, is here."""

    epoch: int
    number: int
    sample: Sample | None = None


class Order:
    """A permutation for each epoch; the draws of a mixture go on from one epoch to the next in orders of their own.

    Args:
        samples: What is to be ordered.
        shuffle: False takes them as they lie.
        seed: Of the permutations.
    """

    def __init__(self, samples: Sequence[Sample], shuffle: bool, seed: int):
        self.length = len(samples)
        self.shuffle = shuffle
        self.seed = seed
        self.drawn = isinstance(samples, Mixture)
        self._epoch: tuple[int, np.ndarray] | None = None  # the one in use

    def own(self, rank: int, processes: int) -> int:
        """How many samples of an epoch are a process's own."""
        return len(range(rank, self.length, processes))

    def keys(self, epoch: int, again: Collection[int], start: int, rank: int, processes: int) -> Iterator[Key]:
        """A process's own samples of an epoch: those at the places `again`, then all from the place `start` on."""
        for place in (*sorted(again), *range(start, self.own(rank, processes))):
            yield Key(epoch, self.index(epoch, place * processes + rank))

    def index(self, epoch: int, place: int) -> int:
        """The sample at a place of an epoch."""
        if self.drawn:
            return epoch * self.length + place
        if not self.shuffle:
            return place
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.length)
        return int(self._epoch[1][place])


class StreamOrder:
    """That of samples that come one after the other, nobody knows how many: each block of them is permuted by itself.

    To go on from a place, those before it are read again, and passed over.

    Args:
        samples: Begins anew each time it is iterated over.
        shuffle: False takes them as they come.
        seed: Of the permutations.
    """

    length = None

    def __init__(self, samples: Iterable[Sample], shuffle: bool, seed: int):
        self.samples = samples
        self.shuffle = shuffle
        self.seed = seed

    def own(self, rank: int, processes: int) -> None:
        """Unknown."""

    def keys(self, epoch: int, again: Collection[int], start: int, rank: int, processes: int) -> Iterator[Key]:
        """As those of Order."""
        for number, sample in enumerate(self._ordered(epoch)):
            place, owner = divmod(number, processes)
            if owner == rank and (place >= start or place in again):
                yield Key(epoch, number, sample)

    def _ordered(self, epoch: int) -> Iterator[Sample]:
        samples, block = iter(self.samples), 0
        while some := list(islice(samples, BLOCK if self.shuffle else 1)):
            order = np.random.default_rng((self.seed, epoch, block)).permutation(len(some))
            yield from (some[place] for place in order)
            block += 1
