"""Several data sets as one, drawn by weight. A draw is a function of its number alone: resuming needs but a position.

Draws come in blocks of a thousand. In every block each source has exactly its share of draws, in an order of the
block's own by the seed. A source's draws go through all of its samples before any comes again, in an order of their own
each time: the k-th is sample k mod n of the k div n-th order.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mmgpt.data.lazy import LazySamples, lost_of
from mmgpt.data.sample import Sample
from mmgpt.errors import ConfigError

BLOCK = 1000  # draws in which the shares are exact


@dataclass(frozen=True)
class Share:
    """A source of a mixture: its size, its part of the draws, and how often it was gone through."""

    source: str
    samples: int
    weight: float
    epochs: float


class Mixture(LazySamples):
    """Samples of several sources, drawn by weight; as many as the sources have together, and more by `sample`.

    Args:
        sources: The data sets by name.
        weights: How often each is drawn beside the others; kept to a thousandth of their sum, and at least that.
        seed: Of the order.

    Raises:
        ConfigError: There is no source, one is empty, or a weight is not a positive number.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Sample]],
        weights: Mapping[str, float],
        seed: int = 0,
    ) -> None:
        if not sources or sources.keys() != weights.keys():
            raise ConfigError("data.mix: a mixture has one source or more, and a weight for each")
        if len(sources) > BLOCK:
            raise ConfigError(f"data.mix: {len(sources)} sources; at most {BLOCK} can be mixed")
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigError(f"data.mix.{name}.weight: must be a positive number, not {weight}")
            if not len(sources[name]):
                raise ConfigError(f"data.mix.{name}: has no samples; name another split, or leave it out")
        self.names = list(sources)
        self.seed = seed
        self.sources = list(sources.values())
        self._quotas = quotas([weights[name] for name in self.names])  # (sources,) draws of each block
        self._block: tuple[int, np.ndarray, np.ndarray] | None = None
        super().__init__(range(sum(map(len, self.sources))), self.sample, lost_of(*self.sources))

    def sample(self, number: int) -> Sample:
        """What draw `number` gives; numbers may go on beyond the length."""
        source, place = self.draw(number)
        return self.sources[source][place]

    def draw(self, number: int) -> tuple[int, int]:
        """The source of a draw, and the place of its sample in that source."""
        block, place = divmod(number, BLOCK)
        order, ranks = self._order(block)
        source = int(order[place])
        turn = block * int(self._quotas[source]) + int(ranks[place])
        size = len(self.sources[source])
        return source, shuffled(turn % size, size, f"{self.seed} {source} {turn // size}")

    def shares(self, draws: int | None = None) -> list[Share]:
        """How far each source was gone through by so many draws; by default those of the whole mixture."""
        blocks, rest = divmod(len(self) if draws is None else draws, BLOCK)
        drawn = blocks * self._quotas + np.bincount(self._order(blocks)[0][:rest], minlength=len(self._quotas))
        return [
            Share(name, len(source), int(quota) / BLOCK, int(count) / len(source))
            for name, source, quota, count in zip(self.names, self.sources, self._quotas, drawn, strict=True)
        ]

    def _order(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(draws,) the source of each draw of a block, and how many of the same source are before it in the block."""
        if self._block is None or self._block[0] != block:
            order = np.repeat(np.arange(len(self._quotas)), self._quotas)
            order = np.random.default_rng([self.seed, block]).permutation(order)
            by_source = np.argsort(order, kind="stable")
            first = np.repeat(np.cumsum(self._quotas) - self._quotas, self._quotas)
            ranks = np.empty(BLOCK, dtype=np.int64)
            ranks[by_source] = np.arange(BLOCK) - first
            self._block = (block, order, ranks)
        return self._block[1:]


def chained(sources: Sequence[Sequence[Sample]]) -> LazySamples:
    """All samples of the sources, one source after the other."""
    starts = np.cumsum([0, *map(len, sources)])
    return LazySamples(range(int(starts[-1])), partial(_of_chain, sources, starts), lost_of(*sources))


def _of_chain(sources: Sequence[Sequence[Sample]], starts: np.ndarray, row: int) -> Sample:
    source = int(np.searchsorted(starts, row, side="right")) - 1
    return sources[source][row - int(starts[source])]


def quotas(weights: Sequence[float]) -> np.ndarray:
    """Draws of each source in a block: at least one, else by largest remainders."""
    spare = BLOCK - len(weights)
    # One draw is everyone's; the weights share out what their own part is above it.
    wanted = np.maximum(np.array(weights) / sum(weights) * BLOCK - 1, 0.0)
    wanted *= spare / wanted.sum() if spare else 0.0
    given = np.floor(wanted).astype(np.int64)
    behind = np.argsort(given - wanted, kind="stable")
    given[behind[: spare - int(given.sum())]] += 1
    return given + 1


def shuffled(place: int, size: int, key: str) -> int:
    """Where a place lies in a permutation of range(size) that the key chooses, in constant memory.

    A Feistel network of four rounds permutes the numbers of an even number of bits; those beyond the size go through it
    again until they fall within (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = [hashlib.blake2b(f"{key} {turn}".encode(), digest_size=16).digest() for turn in range(4)]
    while True:
        left, right = place >> half, place & mask
        for own in keys:
            told = hashlib.blake2b(right.to_bytes(8, "little"), digest_size=8, key=own).digest()
            left, right = right, left ^ (int.from_bytes(told, "little") & mask)
        place = left << half | right
        if place < size:
            return place
