"""Samples of the demo world by number, and the scoring of what a model answers to them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmgpt.content import Message
from mmgpt.data.sample import Sample
from mmgpt.data.world.language import normalise, read_caption, read_description, read_verdict, read_word
from mmgpt.data.world.scenes import pick
from mmgpt.data.world.tasks import LEVELS, WITHOUT_SHAPES, ask_more
from mmgpt.errors import ConfigError

SPLITS = ("train", "dev", "test")
FIRST_SHARE = 0.35  # of training samples that are of the level's easier first part (Bengio et al. 2009)
NEW_SHARE = 0.2  # of held-out samples that show a combination never seen in training


def tasks_of(level: str = "small") -> tuple[str, ...]:
    """The names of a level's tasks."""
    return tuple(LEVELS[level].forms)


def world_sample(
    index: int, split: str, seed: int, level: str = "small", task: str | None = None, first: bool = False
) -> Sample:
    """Sample number `index` of a split, the same whenever it is asked for; in training with more about some pictures.

    Args:
        index: Its number. Tasks take turns, the more important ones more often.
        split: train, dev or test. The latter two have combinations of colour and shape that training never has:
            their group is "new combination".
        seed: Of the whole world.
        level: small (one or two shapes) or hard (up to four; relations, presence and order of events as well).
        task: Make a sample of this task, whoever's turn it is.
        first: Make one of the easier samples that training begins with, if the level has them.

    Raises:
        ConfigError: There is no such split, level or task.
    """
    for value, known, what in ((level, LEVELS, "level"), (split, SPLITS, "split")):
        if value not in known:
            raise ConfigError(f"world {what}: {value} is unknown; it may be {', '.join(known)}")
    world = LEVELS[level]
    world = world.first or world if first else world
    task = task or world.turns[index % len(world.turns)]
    if task not in world.forms:
        raise ConfigError(f"world task: {task} is unknown; it may be {', '.join(world.forms)}")
    entropy = (seed, SPLITS.index(split), list(LEVELS).index(level), list(world.forms).index(task), index)
    rng = np.random.default_rng(entropy)
    new = split != "train" and task not in WITHOUT_SHAPES and rng.random() < NEW_SHARE
    exchange = pick(rng, world.forms[task])(rng, world, new)
    group = "new combination" if new else ""
    where = f"world {index}"

    def asked(prompt: str) -> tuple[Message]:
        return (Message.of("user", *exchange.media, prompt),)

    more = ()
    if split == "train" and world.twice and exchange.kinds:
        other, request, answer = ask_more(rng, task, exchange.kinds)
        more = (Sample(asked(request), (answer,), other, where),)
    return Sample(asked(exchange.prompt), exchange.answers, task, where, group, more=more)


def score_answer(sample: Sample, prediction: str) -> bool:
    """Whether a prediction answers a sample of the world rightly, in whatever wording.

    A caption must name exactly the shapes there are, a description exactly what moves where and what stands still; a
    transcript must be exact; a match is judged by the verdict at the end; other answers by the first word that could
    be one. What cannot be read is wrong.
    """
    answer = sample.references[0]
    if sample.task == "caption":
        return read_caption(prediction) == read_caption(answer)
    if sample.task == "describe":
        return read_description(prediction) == read_description(answer)
    if sample.task == "match":
        return read_verdict(prediction) == read_verdict(answer)
    if len(answer.split()) > 1 or sample.task == "transcribe":
        return normalise(prediction) == normalise(answer)
    return read_word(prediction, answer) == answer


class World(Sequence[Sample]):
    """The samples of a split as a sequence; each is rendered when it is asked for.

    Each has one of its answers, so that as many scenes as answers are seen. Training begins with the easy ones, so its
    samples are to be taken in order.

    Args:
        split: train, dev or test.
        length: Number of samples.
        seed: Of the whole world.
        level: small or hard.
        task: Samples of this task alone.
    """

    def __init__(self, split: str, length: int, seed: int = 0, level: str = "small", task: str | None = None):
        self.split, self.length, self.seed, self.level, self.task = split, length, seed, level, task

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < self.length:
            raise IndexError(index)
        first = self.split == "train" and self.task is None and index < FIRST_SHARE * self.length
        sample = world_sample(index, self.split, self.seed, self.level, self.task, first)
        return replace(sample, answers=sample.answers[:1])
