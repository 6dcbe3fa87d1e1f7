"""The order samples are taken in: a pure function of seed, epoch and place, so a place is all there is to resume."""

from collections.abc import Sequence

import numpy as np

from mmgpt.data.mixture import Mixture
from mmgpt.data.sample import Sample


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

    def __len__(self) -> int:
        return self.length

    def index(self, epoch: int, place: int) -> int:
        """The sample at a place of an epoch."""
        if self.drawn:
            return epoch * self.length + place
        if not self.shuffle:
            return place
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.length)
        return int(self._epoch[1][place])
