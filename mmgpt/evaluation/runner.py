"""Evaluation: a model's answers to samples, and their scores beside those of a control with the media shuffled."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from mmgpt.assistant import Assistant
from mmgpt.content import Audio, Image, Medium, Text, Video
from mmgpt.data.controls import shuffle_media
from mmgpt.data.sample import Sample
from mmgpt.evaluation.asking import Answered, answer_all
from mmgpt.evaluation.metrics.captions import NGRAMS, bleu, cider, rouge_l
from mmgpt.evaluation.metrics.java import java_missing, meteor
from mmgpt.evaluation.metrics.likelihood import bits_per_byte, bits_per_character, perplexity
from mmgpt.evaluation.metrics.score import Score, bootstrap, percentiles, wilson
from mmgpt.evaluation.metrics.text import (
    character_error_rate,
    chrf,
    classification,
    exact_match,
    is_match,
    translation_bleu,
    word_error_rate,
    word_f1,
)
from mmgpt.evaluation.metrics.vqa import vqa_accuracy
from mmgpt.evaluation.metrics.wups import WUPS_LIMITS, WordNet, wups
from mmgpt.evaluation.report import FRAMES, ReportSample, TaskScore
from mmgpt.generation import Decoding
from mmgpt.tasks import TASKS

Judge = Callable[[Sample, str], bool]  # whether an answer is right


@dataclass(frozen=True)
class Evaluation:
    """Scores by task and metric, the answers they are made of, and the samples that were lost."""

    scores: list[TaskScore]
    answered: list[Answered]
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Metric:
    """How a list of predictions is scored against their references, and how it is called.

    Args:
        name: In words.
        compute: The score of predictions, or, of a measure of likelihood, of costs.
        unit, times: As in TaskScore.
        lower_is_better: True for error rates.
        share: It is a share of samples that are right, so that Wilson's interval holds.
        votes: The references are what each of the people said who were asked; samples without are left out.
        likelihood: It is of what the right answers cost the model.
    """

    name: str
    compute: Callable[[Sequence[Any], Sequence[Sequence[str]]], Score]
    unit: str = "%"
    times: int = 100
    lower_is_better: bool = False
    share: bool = False
    votes: bool = False
    likelihood: bool = False


METRICS: dict[str, Metric] = {
    "cider": Metric("CIDEr-D", cider, ""),
    **{
        f"bleu_{n}": Metric(f"BLEU-{n}", lambda candidates, references, n=n: bleu(candidates, references, n)[-1], "")
        for n in range(1, NGRAMS + 1)
    },
    "rouge_l": Metric("ROUGE-L", rouge_l, ""),
    "meteor": Metric("METEOR", meteor, ""),
    "translation_bleu": Metric("BLEU", translation_bleu, ""),
    "chrf": Metric("chrF", chrf, ""),
    "wer": Metric("word error rate", word_error_rate, lower_is_better=True),
    "cer": Metric("character error rate", character_error_rate, lower_is_better=True),
    "exact_match": Metric("exact match", exact_match, share=True),
    "f1": Metric("F1 of words", word_f1),
    "vqa": Metric("VQA accuracy", vqa_accuracy, votes=True),
    "accuracy": Metric(
        "accuracy", lambda candidates, references: classification(candidates, references)[0], share=True
    ),
    "macro_f1": Metric("macro-F1", lambda candidates, references: classification(candidates, references)[1]),
    **{
        name: Metric(words, compute, "", 1, lower_is_better=True, likelihood=True)
        for name, words, compute in (
            ("perplexity", "perplexity of tokens", perplexity),
            ("bits_per_byte", "bits per byte", bits_per_byte),
            ("bits_per_character", "bits per character", bits_per_character),
        )
    },
}


@dataclass(frozen=True)
class Measured:
    """A metric of a task, and the answers that it is of, in the order of its weights."""

    task: str
    metric: Metric
    score: Score
    answered: list[Answered]


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
    samples = [one for sample in samples for one in sample.exchanges]
    real = answer_all(assistant, samples, decoding, "asking")
    spoilt = answer_all(
        assistant, shuffle_media(samples, np.random.default_rng(seed)), decoding, "asking with shuffled media"
    )
    return Evaluation(scored(real.answered, spoilt.answered, judge), real.answered, real.broken)


def scored(answered: Sequence[Answered], control: Sequence[Answered], judge: Judge | None = None) -> list[TaskScore]:
    """The scores of answers, task by task, beside those of the answers with shuffled media.

    Args:
        answered: The answers.
        control: Those to the samples with other media; tasks without media have no control.
        judge: Tells right from wrong; without it, the metrics of the task are used.
    """
    if judge is None:
        return beside(measured(answered), control)
    controls = _grouped(_of_media(answered, control), lambda sample: sample.task)
    tasks = _grouped(answered, lambda sample: sample.task)
    return [_judged(task, some, controls[task], judge) for task, some in tasks.items()]


def beside(
    measures: Sequence[Measured], control: Sequence[Answered], wordnet: WordNet | None = None
) -> list[TaskScore]:
    """The scores that were measured, beside those of the answers with shuffled media."""
    answered = [one for measure in measures for one in measure.answered]
    spoilt = {(one.task, one.metric.name): one.score.value for one in measured(_of_media(answered, control), wordnet)}
    return [_row(one, spoilt.get((one.task, one.metric.name))) for one in measures]


def _of_media(answered: Sequence[Answered], control: Sequence[Answered]) -> list[Answered]:
    """The control of tasks that have media: others have none."""
    seeing = {one.sample.task for one in answered if media_of(one.sample)}
    return [one for one in control if one.sample.task in seeing]


def measured(answered: Sequence[Answered], wordnet: WordNet | None = None) -> list[Measured]:
    """The metrics of each task on its answers; one that no sample has references for is left out.

    METEOR is left out where its Java program cannot run. With WordNet, answers to questions are scored by WUPS too.
    """
    found = []
    for task, own in _grouped(answered, lambda sample: sample.task).items():
        metrics = [METRICS[name] for name in TASKS[task].metrics if name != "meteor" or not java_missing()]
        if wordnet is not None and task == "ask":
            metrics += [
                Metric(f"WUPS@{limit}", partial(wups, wordnet=wordnet, threshold=limit)) for limit in WUPS_LIMITS
            ]
        for metric in metrics:
            some = [one for one in own if one.sample.votes] if metric.votes else own
            if metric.likelihood:
                some = [one for one in some if one.cost is not None]
            if some:
                references = [one.sample.votes if metric.votes else one.sample.references for one in some]
                score = metric.compute([one.cost if metric.likelihood else one.prediction for one in some], references)
                found.append(Measured(task, metric, score, some))
    return found


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


def _row(one: Measured, control: float | None) -> TaskScore:
    metric, value, n = one.metric, one.score.value, one.score.n
    return TaskScore(
        one.task,
        value,
        n,
        metric=metric.name,
        unit=metric.unit,
        times=metric.times,
        interval=wilson(round(value * n), n)
        if metric.share
        else percentiles(bootstrap({metric.name: one.score})[metric.name]),
        control=control,
        lower_is_better=metric.lower_is_better,
        signature=one.score.signature,
    )


def shown(one: Answered, judge: Judge | None = None, *, media: bool = True, frames: int = FRAMES) -> ReportSample:
    """An answer for the report and for pictures of samples, with its media decoded if they are to be seen.

    Of a clip so many frames are.
    """
    sample = one.sample
    if judge is not None:
        correct = judge(sample, one.prediction)
    else:
        exact = TASKS.get(sample.task, TASKS["ask"]).exact  # the demo world has tasks of its own
        correct = is_match(one.prediction, sample.references) if exact else None
    seen = media_of(sample) if media else []
    return ReportSample(
        sample.task,
        request_of(sample),
        one.told,
        " / ".join(sample.references),
        correct,
        image=next((part.load() for part in seen if isinstance(part, Image)), None),
        audio=next((part.load() for part in seen if isinstance(part, Audio)), None),
        clip=next((part.load(frames) for part in seen if isinstance(part, Video)), None),
        where=sample.where,
    )


def request_of(sample: Sample) -> str:
    """The words of the last message of the prompt."""
    last = sample.prompt[-1].parts if sample.prompt else ()  # a text to continue has no prompt
    return " ".join(part.text for part in last if isinstance(part, Text))


def media_of(sample: Sample) -> list[Medium]:
    """The media that are seen by whoever is asked: those of the prompt."""
    return [part for message in sample.prompt for part in message.parts if not isinstance(part, Text)]
