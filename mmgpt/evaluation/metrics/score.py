"""A score of a set of samples, its 95 % interval, and whether two systems differ by more than chance.

A score knows how to be computed with each sample counted any number of times, so that resampling costs no new look at
the texts. Intervals are percentiles of the scores of bootstrap resamples (Efron 1979).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmgpt.errors import DataError

RESAMPLES = 1000
Interval = tuple[float, float]


@dataclass(frozen=True)
class Score:
    """A score of `n` samples.

    Args:
        n: Number of samples.
        weighted: The score where sample i counts `weights[i]` times; nan where it is not defined.
        signature: What must be the same for scores to compare, where the original tells it (sacrebleu).
    """

    n: int
    weighted: Callable[[np.ndarray], float]
    signature: str = ""

    @property
    def value(self) -> float:
        """The score of the samples as they are."""
        return self.weighted(np.ones(self.n))

    def alone(self) -> list[float]:
        """The score of each sample, were it the only one."""
        weights = np.zeros(self.n)
        values = []
        for i in range(self.n):
            weights[i] = 1.0
            values.append(self.weighted(weights))
            weights[i] = 0.0
        return values


def mean(scores: Sequence[float] | np.ndarray) -> Score:
    """The mean of a score of each sample."""
    values = np.asarray(scores, dtype=float)

    def weighted(weights: np.ndarray) -> float:
        whole = float(weights.sum())
        return float(weights @ values) / whole if whole else math.nan

    return Score(len(values), weighted)


def bootstrap(scores: Mapping[str, Score], seed: int = 0) -> dict[str, np.ndarray]:
    """Each score on resamples of the samples, drawn with replacement: RESAMPLES values each.

    The draws are the same for all scores, and for those of another system on the same samples.
    """
    if not scores:
        return {}
    values = np.empty((len(scores), RESAMPLES))
    n = next(iter(scores.values())).n
    for i, weights in enumerate(_resamples(n, seed)):
        values[:, i] = [score.weighted(weights) for score in scores.values()]
    return dict(zip(scores, values, strict=True))


def percentiles(values: np.ndarray) -> Interval:
    """The 95 % interval of resampled scores: their 2.5th and 97.5th percentile."""
    if np.isnan(values).all():
        return math.nan, math.nan
    low, high = np.nanpercentile(values, (2.5, 97.5)).tolist()
    return low, high


def p_value(first: np.ndarray, second: np.ndarray, difference: float) -> float:
    """Two-sided p of the paired bootstrap test (Koehn 2004, as sacrebleu computes it).

    How often two systems that do equally well would differ as much as these two do.

    Args:
        first: Scores of one system on resamples.
        second: Scores of the other on the same resamples.
        difference: Between the two on the samples as they are.
    """
    differences = np.abs(first - second)
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return math.nan
    chance = np.count_nonzero(differences - differences.mean() >= abs(difference))
    return float((chance + 1) / (len(differences) + 1))


def wilson(successes: float, n: int, z: float = 1.96) -> Interval:
    """The Wilson score interval of a proportion, for z = 1.96 at 95 %: (low, high) in 0..1 (Wilson 1927).

    Honest for few samples and at 0 and 1, where the normal approximation and the bootstrap have no width.
    """
    if n < 1:
        return 0.0, 1.0
    share = successes / n
    centre = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, (centre - half) / (1 + z**2 / n)), min(1.0, (centre + half) / (1 + z**2 / n))


def check(candidates: Sequence, references: Sequence) -> None:
    """That there are samples, and one or more references to each. Raises DataError."""
    if not candidates:
        raise DataError("nothing to score: no candidates")
    if len(candidates) != len(references):
        raise DataError(f"{len(candidates)} candidates but {len(references)} lists of references: give one list each")
    for i, group in enumerate(references):
        if isinstance(group, str) or not group:
            raise DataError(f"references of sample {i}: expected a list of one or more texts, got {group!r}")


def _resamples(n: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n samples is drawn, RESAMPLES times."""
    draws = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        yield np.bincount(draws.integers(n, size=n), minlength=n).astype(float)
