"""Controls: the same questions with the evidence spoilt. What a model still gets right, it did not see or hear."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mmgpt.content import Medium, Part, Text, Video
from mmgpt.data.sample import Sample


def shuffle_media(samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """The same questions and answers with the media exchanged among samples of the same task and kinds of media.

    Nobody keeps their own, unless no other sample has the same task and kinds. The other sample's truth may happen to
    be the same.
    """
    alike: dict[tuple, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        alike[sample.task, *(type(part) for part in sample.media())].append(index)
    shuffled = list(samples)
    for indices in alike.values():
        order = [indices[i] for i in rng.permutation(len(indices))]
        for index, other in zip(order, order[1:] + order[:1], strict=True):
            media = iter(samples[other].media())
            shuffled[index] = _exchange(samples[index], lambda part, media=media: next(media))
    return shuffled


def shuffle_frames(samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """The same samples with the frames of every video that is an array in random order; sound tracks stay as is."""

    def permuted(part: Medium) -> Medium:
        if isinstance(part, Video) and isinstance(part.source, np.ndarray):
            return replace(part, source=rng.permutation(part.source))
        return part

    return [_exchange(sample, permuted) for sample in samples]


def _exchange(sample: Sample, change: Callable[[Medium], Medium]) -> Sample:
    def changed(parts: Sequence[Part]) -> tuple[Part, ...]:
        return tuple(part if isinstance(part, Text) else change(part) for part in parts)

    prompt = tuple(replace(message, parts=changed(message.parts)) for message in sample.prompt)
    answers = tuple(answer if isinstance(answer, str) else changed(answer) for answer in sample.answers)
    return replace(sample, prompt=prompt, answers=answers)
