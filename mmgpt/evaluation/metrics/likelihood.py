"""How likely a model thinks the truth: perplexity, and bits per byte or character, whatever its tokens are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mmgpt.evaluation.metrics.score import Score, check


@dataclass(frozen=True)
class Cost:
    """What a model pays for the right answers to a sample: the nats and tokens of all of them, their ends included."""

    nats: float
    tokens: int

    def __str__(self) -> str:
        return f"{self.nats / math.log(2):,.1f} bits in {self.tokens:,} tokens"


def perplexity(costs: Sequence[Cost], references: Sequence[Sequence[str]]) -> Score:
    """Of all tokens together. Models compare by it only where their tokens are the same."""
    check(costs, references)
    ratio = _ratio([cost.nats for cost in costs], [cost.tokens for cost in costs])
    return Score(len(costs), lambda weights: math.exp(ratio(weights)))


def bits_per_byte(costs: Sequence[Cost], references: Sequence[Sequence[str]]) -> Score:
    """Of all texts together, in UTF-8; the ends that a model must tell are paid for and are no bytes."""
    check(costs, references)
    return _bits(costs, [sum(len(text.encode()) for text in texts) for texts in references])


def bits_per_character(costs: Sequence[Cost], references: Sequence[Sequence[str]]) -> Score:
    """As `bits_per_byte`. Where a character stands for the value of a pixel, these are bits per dimension."""
    check(costs, references)
    return _bits(costs, [sum(map(len, texts)) for texts in references])


def _bits(costs: Sequence[Cost], sizes: Sequence[int]) -> Score:
    return Score(len(costs), _ratio([cost.nats / math.log(2) for cost in costs], sizes))


def _ratio(over: Sequence[float], under: Sequence[float]) -> Callable[[np.ndarray], float]:
    """The ratio of two sums, as a function of how often each term counts; nan where there is nothing to divide by."""
    above, below = np.array(over, dtype=float), np.array(under, dtype=float)

    def weighted(weights: np.ndarray) -> float:
        whole = float(weights @ below)
        return float(weights @ above) / whole if whole else math.nan

    return weighted
