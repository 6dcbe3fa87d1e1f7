"""Retrieval: whether a model that pairs media with texts finds the text of a medium, and the medium of a text."""

import math
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor

from mmgpt.assistant import Assistant
from mmgpt.batch import MediaInput
from mmgpt.content import Text
from mmgpt.data.sample import Sample
from mmgpt.errors import ConfigError, MediaError
from mmgpt.evaluation.metrics.score import Score, mean, wilson
from mmgpt.evaluation.report import TaskScore
from mmgpt.pairing import matches

CLASSES = "find the class"
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


@dataclass(frozen=True)
class Search:
    """A search for what belongs to each query, among all there is.

    Args:
        task: find the text, find the medium or find the class.
        queries: What each is called: a medium by the place of the first sample that has it, a text as it stands.
        nearest: What the nearest one to each query is called.
        way: How it went.
    """

    task: str
    queries: list[int] | list[str]
    nearest: list[int] | list[str]
    way: Retrieval

    @property
    def depths(self) -> dict[str, int]:
        """The depths that leave something out, by what recall is called there."""
        names = {"accuracy": 1, "top-5 accuracy": 5} if self.task == CLASSES else {f"R@{n}": n for n in (1, 5, 10)}
        return {name: depth for name, depth in names.items() if depth < self.way.items}

    def score(self, depth: int, queries: Collection[int | str]) -> Score:
        """Recall of some of the queries, in their order."""
        return mean(
            [rank <= depth for query, rank in zip(self.queries, self.way.ranks, strict=True) if query in queries]
        )

    def scores(self) -> list[TaskScore]:
        """Recall at each depth, and unless classes are searched the median rank; chance beside them."""
        way, n = self.way, len(self.queries)
        scores = []
        for name, depth in self.depths.items():
            recall = way.recall(depth)
            own = wilson(round(recall * n), n)
            scores.append(TaskScore(self.task, recall, n, metric=name, interval=own, chance=way.chance(depth)))
        if self.task == CLASSES:
            return scores
        # As a share of all, which, shown in percent as scores are, is small where a right one comes soon.
        median, chance = way.median() / way.items, way.chance_median() / way.items
        name = f"median rank, as a share of {way.items:,}"
        return [*scores, TaskScore(self.task, median, n, metric=name, chance=chance, lower_is_better=True)]


def search(assistant: Assistant, samples: Sequence[Sample]) -> tuple[list[Search], dict[int, str]]:
    """What a model that pairs finds among all samples; and why samples were lost, by their places.

    The text of each medium, and the medium of each text; of samples to classify, whose texts are classes, that of each
    medium: zero-shot classification, where the model has not learned them.

    A pair is a sample's only medium and one of its answers, as in training; samples with several media, or none, are
    left out. Equal texts are one text, and equal media one medium. Without any pair there is no search.

    Raises ConfigError for a model that does not pair.
    """
    if assistant.model.pair is None:
        raise ConfigError("this model does not pair media with texts (model.pair), so there is nothing to find by")
    classes = {i: sample for i, sample in enumerate(samples) if sample.task == "classify"}
    others = {i: sample for i, sample in enumerate(samples) if sample.task != "classify"}
    searches: list[Search] = []
    broken: dict[int, str] = {}
    for some in (others, classes):
        pairs, similarity = _compare(assistant, some, broken)
        if not pairs:
            continue
        media, texts = list(dict.fromkeys(medium for medium, _ in pairs)), sorted({text for _, text in pairs})
        match = matches(pairs, media, texts)
        by_text = [texts[i] for i in similarity.argmax(1).tolist()]
        searches.append(Search("find the text" if some is others else CLASSES, media, by_text, rank(similarity, match)))
        if some is others:
            by_medium = [media[i] for i in similarity.argmax(0).tolist()]
            searches.append(Search("find the medium", texts, by_medium, rank(similarity.T, match.T)))
    return searches, broken


def _compare(
    assistant: Assistant, samples: Mapping[int, Sample], broken: dict[int, str]
) -> tuple[list[tuple[int, str]], Tensor]:
    """Which media, by the place of their first sample, and texts are pairs; and the similarity (media, texts) of all.

    Media are in the order of the pairs, and texts sorted. Samples that are lost are put into `broken`.
    """
    first: dict[bytes, int] = {}
    vectors: list[Tensor] = []
    waiting: list[MediaInput] = []
    pairs: dict[tuple[int, str], None] = {}
    for i, sample in track(samples.items(), description="pairing", transient=True):
        media = sample.media()
        if len(media) != 1:
            continue
        try:
            item = assistant.processor.media_input(media[0])
        except MediaError as error:
            broken[i] = f"{sample.where}: {error}"
            continue
        if first.setdefault(item.digest, i) == i:
            waiting.append(item)
        pairs |= {(first[item.digest], answer): None for answer in sample.references}
        if len(waiting) == GROUP:
            vectors.append(_vectors(assistant, waiting))
            waiting = []
    if not pairs:
        return [], torch.empty(0)
    if waiting:
        vectors.append(_vectors(assistant, waiting))
    texts = sorted({text for _, text in pairs})
    groups = [texts[start : start + GROUP] for start in range(0, len(texts), GROUP)]
    said = torch.cat([assistant.embed([Text(text) for text in group]) for group in groups])  # texts, width
    return list(pairs), (torch.cat(vectors) @ said.T).cpu()


@torch.inference_mode()
def _vectors(assistant: Assistant, media: Sequence[MediaInput]) -> Tensor:
    return assistant.model.media_vectors([item.to(assistant.model.device) for item in media])  # media, width
