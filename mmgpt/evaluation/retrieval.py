"""Retrieval: whether a model that pairs media with texts finds the text of a medium, and the medium of a text."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor

from mmgpt.assistant import Assistant
from mmgpt.batch import MediaInput
from mmgpt.content import Text
from mmgpt.data.sample import Sample
from mmgpt.errors import MediaError
from mmgpt.evaluation.metrics.score import wilson
from mmgpt.evaluation.report import TaskScore
from mmgpt.pairing import matches

DEPTHS = (1, 5, 10)
GROUP = 64  # media, or texts, embedded together


@dataclass(frozen=True)
class Retrieval:
    """Where the first right one stands when everything is sorted by similarity to a query, the nearest first.

    Args:
        ranks: Of the first right one for each query, from 1; one that ties with a wrong one stands behind it.
        right: How many are right for each query.
        items: How many there are to find.
    """

    ranks: list[int]
    right: list[int]
    items: int

    def recall(self, depth: int) -> float:
        """R@depth: the share of queries with a right one among the first so many."""
        return sum(rank <= depth for rank in self.ranks) / len(self.ranks)

    def median(self) -> float:
        """The median rank."""
        return float(statistics.median(self.ranks))

    def chance(self, depth: int) -> float:
        """R@depth in random order: it differs from depth / items where a query has several right ones."""
        total = math.comb(self.items, depth)
        missed = sum(n * math.comb(self.items - right, depth) / total for right, n in Counter(self.right).items())
        return 1 - missed / len(self.right)

    def chance_median(self) -> float:
        """The median rank in random order."""
        return next(float(depth) for depth in range(1, self.items + 1) if self.chance(depth) >= 0.5)


def rank(similarity: Tensor, match: Tensor) -> Retrieval:
    """How a search goes by similarity (queries, items), where match (queries, items) bool says what is right.

    Each query has at least one right item.
    """
    best = similarity.masked_fill(~match, -math.inf).amax(1, keepdim=True)  # queries, 1
    before = ((similarity >= best) & ~match).sum(1)
    return Retrieval((before + 1).tolist(), match.sum(1).tolist(), match.shape[1])


def retrieve(assistant: Assistant, samples: Sequence[Sample]) -> tuple[list[TaskScore], list[str]]:
    """R@1, R@5, R@10 and median rank both ways over all samples, chance beside them; and why samples were lost.

    A pair is a sample's only medium and one of its answers, as in training; samples with several media, or none, are
    left out. Equal texts are one text, and equal media one medium. Without any pair there is no score.
    """
    vectors: dict[bytes, Tensor] = {}
    waiting: dict[bytes, MediaInput] = {}
    right: set[tuple[bytes, str]] = set()
    broken: list[str] = []
    for sample in track(samples, description="pairing", transient=True):
        media = sample.media()
        if len(media) != 1:
            continue
        try:
            item = assistant.processor.media_input(media[0])
        except MediaError as error:
            broken.append(f"{sample.where}: {error}")
            continue
        right |= {(item.digest, answer) for answer in sample.references}
        if item.digest not in vectors:
            waiting[item.digest] = item
        if len(waiting) == GROUP:
            vectors |= _vectors(assistant, waiting)
            waiting = {}
    vectors |= _vectors(assistant, waiting)
    if not right:
        return [], broken
    texts = sorted({text for _, text in right})
    groups = [texts[start : start + GROUP] for start in range(0, len(texts), GROUP)]
    said = torch.cat([assistant.embed([Text(text) for text in group]) for group in groups])  # texts, width
    similarity = (torch.stack([*vectors.values()]) @ said.T).cpu()  # media, texts
    match = matches(right, vectors, texts)
    ways = {"find the text": rank(similarity, match), "find the medium": rank(similarity.T, match.T)}
    return [score for task, way in ways.items() for score in _scores(task, way)], broken


@torch.inference_mode()
def _vectors(assistant: Assistant, media: dict[bytes, MediaInput]) -> dict[bytes, Tensor]:
    if not media:
        return {}
    inputs = [item.to(assistant.model.device) for item in media.values()]
    return dict(zip(media, assistant.model.media_vectors(inputs), strict=True))


def _scores(task: str, way: Retrieval) -> list[TaskScore]:
    n = len(way.ranks)
    scores = []
    for depth in (depth for depth in DEPTHS if depth < way.items):
        recall = way.recall(depth)
        own = wilson(round(recall * n), n)
        scores.append(TaskScore(task, recall, n, metric=f"R@{depth}", interval=own, chance=way.chance(depth)))
    # As a share of all, which, shown in percent as scores are, is small where a right one comes soon.
    median, chance = way.median() / way.items, way.chance_median() / way.items
    name = f"median rank, as a share of {way.items:,}"
    return [*scores, TaskScore(task, median, n, metric=name, chance=chance, lower_is_better=True)]
