"""Evaluation: a model's answers to samples, and their scores beside those of a control with the media shuffled."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.progress import track

from mmgpt.assistant import Assistant
from mmgpt.content import Audio, Image, Text, Video
from mmgpt.data.controls import shuffle_media
from mmgpt.data.sample import Sample
from mmgpt.errors import MediaError
from mmgpt.evaluation.metrics.captions import bleu, cider
from mmgpt.evaluation.metrics.score import Score, bootstrap, percentiles, wilson
from mmgpt.evaluation.metrics.text import exact_match, is_match, word_error_rate
from mmgpt.evaluation.report import ReportSample, TaskScore
from mmgpt.generation import Decoding
from mmgpt.processor import TooLongError
from mmgpt.tasks import TASKS

GROUP = 64  # samples decoded and answered together
Judge = Callable[[Sample, str], bool]  # whether an answer is right


@dataclass(frozen=True)
class Answered:
    """A sample and what the model said to it."""

    sample: Sample
    prediction: str


@dataclass(frozen=True)
class Answers:
    """All answers, and the reasons for which samples could not be asked."""

    answered: list[Answered]
    broken: list[str]


@dataclass(frozen=True)
class Evaluation:
    """Scores by task and metric, the answers they are made of, and the samples that were lost."""

    scores: list[TaskScore]
    answered: list[Answered]
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Metric:
    """How a list of predictions is scored against their references, and how it is called."""

    name: str
    compute: Callable[[Sequence[str], Sequence[Sequence[str]]], Score]
    unit: str = "%"
    lower_is_better: bool = False


METRICS: dict[str, Metric] = {
    "cider": Metric("CIDEr-D", cider, ""),
    "bleu": Metric("BLEU-4", lambda candidates, references: bleu(candidates, references)[3], ""),
    "wer": Metric("word error rate", word_error_rate, lower_is_better=True),
    "exact_match": Metric("exact match", exact_match),
}


def answer_all(assistant: Assistant, samples: Sequence[Sample], decoding: Decoding, progress: str = "") -> Answers:
    """The model's answer to each sample, in order, a group at a time; broken media cost their own sample."""
    answered: list[Answered] = []
    broken: list[str] = []
    groups = range(0, len(samples), GROUP)
    for start in track(groups, description=progress, transient=True) if progress else groups:
        asked, prompts = [], []
        for i in range(start, min(start + GROUP, len(samples))):
            sample = samples[i]
            try:
                prompts.append(assistant.processor.encode_prompt(sample.prompt, where=sample.where))
                asked.append(sample)
            except MediaError as error:
                broken.append(f"{sample.where}: {error}")
            except TooLongError as error:  # which names the sample itself
                broken.append(str(error))
        replies = assistant.reply_examples(prompts, decoding)
        answered += [Answered(sample, reply) for sample, reply in zip(asked, replies, strict=True)]
    return Answers(answered, broken)


def evaluate(
    assistant: Assistant,
    samples: Sequence[Sample],
    decoding: Decoding,
    *,
    judge: Judge | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score the model's answers, task by task, and those it gives when the media are shuffled among the samples.

    Args:
        assistant: The model.
        samples: What to ask; their answers are the references.
        decoding: How answers are decoded.
        judge: Tells right from wrong; without it, the metrics of the task are used.
        seed: Of the shuffling.
    """
    samples = list(samples)
    real = answer_all(assistant, samples, decoding, "asking")
    spoilt = answer_all(
        assistant, shuffle_media(samples, np.random.default_rng(seed)), decoding, "asking with shuffled media"
    )
    controls = _grouped(spoilt.answered, lambda sample: sample.task)
    scores: list[TaskScore] = []
    for task, answered in _grouped(real.answered, lambda sample: sample.task).items():
        control = controls[task] if any(_media(a.sample) for a in answered) else []
        if judge is not None:
            scores.append(_judged(task, answered, control, judge))
            continue
        for metric in (METRICS[name] for name in TASKS[task].metrics):
            scores.append(_measured(task, answered, control, metric))
    return Evaluation(scores, real.answered, real.broken)


def _grouped(answered: Sequence[Answered], name: Callable[[Sample], str]) -> dict[str, list[Answered]]:
    groups: dict[str, list[Answered]] = defaultdict(list)
    for one in answered:
        groups[name(one.sample)].append(one)
    return groups


def _judged(task: str, answered: list[Answered], control: list[Answered], judge: Judge) -> TaskScore:
    def share(some: list[Answered]) -> float:
        return sum(judge(one.sample, one.prediction) for one in some) / len(some)

    groups = _grouped(answered, lambda sample: sample.group)
    answered = groups.pop("", answered)
    control = _grouped(control, lambda sample: sample.group).get("", control)
    score = share(answered)
    return TaskScore(
        task,
        score,
        len(answered),
        interval=wilson(round(score * len(answered)), len(answered)),
        control=share(control) if control else None,
        groups={name: (share(some), len(some)) for name, some in sorted(groups.items())},
    )


def _measured(task: str, answered: list[Answered], control: list[Answered], metric: Metric) -> TaskScore:
    def measure(some: list[Answered]) -> Score:
        return metric.compute([one.prediction for one in some], [one.sample.references for one in some])

    score = measure(answered)
    value, n = score.value, len(answered)
    share = metric.compute is exact_match
    return TaskScore(
        task,
        value,
        n,
        metric=metric.name,
        unit=metric.unit,
        interval=wilson(round(value * n), n) if share else percentiles(bootstrap({metric.name: score})[metric.name]),
        control=measure(control).value if control else None,
        lower_is_better=metric.lower_is_better,
    )


def shown(one: Answered, judge: Judge | None = None) -> ReportSample:
    """An answer with its media decoded, for the report and for pictures of samples."""
    sample = one.sample
    media = _media(sample)
    last = sample.prompt[-1].parts if sample.prompt else ()  # a text to continue has no prompt
    text = " ".join(part.text for part in last if isinstance(part, Text))
    texts_only = sample.task in ("caption", "describe", "write", "continue") and judge is None
    correct = (
        judge(sample, one.prediction) if judge else None if texts_only else is_match(one.prediction, sample.references)
    )
    return ReportSample(
        sample.task,
        text,
        one.prediction,
        " / ".join(sample.references),
        correct,
        image=next((part.load() for part in media if isinstance(part, Image)), None),
        audio=next((part.load() for part in media if isinstance(part, Audio)), None),
        clip=next((part.load() for part in media if isinstance(part, Video)), None),
    )


def _media(sample: Sample) -> list[Image | Audio | Video]:
    return [part for message in sample.prompt for part in message.parts if not isinstance(part, Text)]
