"""Retrieval: whether a model that pairs media with texts finds the text of a medium, and the medium of a text."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
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
    """What a model that pairs finds among all samples, chance beside it; and why samples were lost.

    R@1, R@5, R@10 and the median rank both ways; of samples to classify, whose texts are classes, how often that of a
    medium is the nearest of all that the samples have, or one of the nearest five: zero-shot classification, where the
    model has not learned them.

    A pair is a sample's only medium and one of its answers, as in training; samples with several media, or none, are
    left out. Equal texts are one text, and equal media one medium. Without any pair there is no score.
    """
    classes = [sample for sample in samples if sample.task == "classify"]
    others = [sample for sample in samples if sample.task != "classify"]
    scores, broken = [], []
    for some in (others, classes):
        found, lost = _compare(assistant, some)
        broken += lost
        if found is None:
            continue
        similarity, match = found
        if some is classes:
            scores += _recalls("find the class", rank(similarity, match), {1: "accuracy", 5: "top-5 accuracy"})
            continue
        for task, way in (("find the text", rank(similarity, match)), ("find the medium", rank(similarity.T, match.T))):
            scores += [*_recalls(task, way, {depth: f"R@{depth}" for depth in DEPTHS}), _median(task, way)]
    return scores, broken


def _compare(assistant: Assistant, samples: Sequence[Sample]) -> tuple[tuple[Tensor, Tensor] | None, list[str]]:
    """Similarity (media, texts) of the samples' media and texts, and which of them are pairs; None without any."""
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
        return None, broken
    texts = sorted({text for _, text in right})
    groups = [texts[start : start + GROUP] for start in range(0, len(texts), GROUP)]
    said = torch.cat([assistant.embed([Text(text) for text in group]) for group in groups])  # texts, width
    similarity = (torch.stack([*vectors.values()]) @ said.T).cpu()  # media, texts
    return (similarity, matches(right, vectors, texts)), broken


@torch.inference_mode()
def _vectors(assistant: Assistant, media: dict[bytes, MediaInput]) -> dict[bytes, Tensor]:
    if not media:
        return {}
    inputs = [item.to(assistant.model.device) for item in media.values()]
    return dict(zip(media, assistant.model.media_vectors(inputs), strict=True))


def _recalls(task: str, way: Retrieval, names: Mapping[int, str]) -> list[TaskScore]:
    """Recall at those of the depths, by what it is called there, that leave something out."""
    n = len(way.ranks)
    scores = []
    for depth, name in names.items():
        if depth < way.items:
            recall = way.recall(depth)
            own = wilson(round(recall * n), n)
            scores.append(TaskScore(task, recall, n, metric=name, interval=own, chance=way.chance(depth)))
    return scores


def _median(task: str, way: Retrieval) -> TaskScore:
    # As a share of all, which, shown in percent as scores are, is small where a right one comes soon.
    median, chance = way.median() / way.items, way.chance_median() / way.items
    name = f"median rank, as a share of {way.items:,}"
    return TaskScore(task, median, len(way.ranks), metric=name, chance=chance, lower_is_better=True)
