"""Controls: the same questions with the evidence spoilt. What a model still gets right, it did not see or hear."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mmgpt.content import Audio, Image, Message, Part, Text, Video
from mmgpt.data.sample import Sample

Medium = Image | Audio | Video


def shuffle_media(samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """The same questions and answers with the media exchanged among samples of the same task and kinds of media.

    Nobody keeps their own, unless no other sample has the same task and kinds. The other sample's truth may happen to
    be the same.
    """
    alike: dict[tuple, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        alike[sample.task, *(type(part) for part in _media(sample))].append(index)
    shuffled = list(samples)
    for indices in alike.values():
        order = [indices[i] for i in rng.permutation(len(indices))]
        for index, other in zip(order, order[1:] + order[:1], strict=True):
            media = iter(_media(samples[other]))
            shuffled[index] = _exchange(samples[index], lambda part, media=media: next(media))
    return shuffled


def shuffle_frames(samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """The same samples with the frames of every video that is an array in random order; sound tracks stay as is."""

    def permuted(part: Medium) -> Medium:
        if isinstance(part, Video) and isinstance(part.source, np.ndarray):
            return replace(part, source=rng.permutation(part.source))
        return part

    return [_exchange(sample, permuted) for sample in samples]


def _media(sample: Sample) -> list[Medium]:
    return [part for message in sample.prompt for part in message.parts if not isinstance(part, Text)]


def _exchange(sample: Sample, change: Callable[[Medium], Part]) -> Sample:
    prompt = tuple(
        Message(message.role, tuple(part if isinstance(part, Text) else change(part) for part in message.parts))
        for message in sample.prompt
    )
    return replace(sample, prompt=prompt)
