"""An evaluation on disk: a model's answers to a data set as they come, then their scores and a report.

    OUT/settings.json   all that the answers depend on
    OUT/answers.jsonl   a line for each sample: its id, task, prompt, truths, the prediction, and as the control what is
                        said to the same question with the media shuffled among the samples; or why there is none. Where
                        likelihood is measured, what the truth costs takes the place of what is said
    OUT/results.json    the scores, and what must be known to get them again
    OUT/report.html     the scores, and the samples, worst first

An evaluation that was killed goes on after its last whole line, and leaves the files of one that never was. Where a
model is to retrieve nothing is asked, so that there are no answers.jsonl.
"""

import dataclasses
import hashlib
import json
import math
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mmgpt import checkpoint
from mmgpt.assistant import Assistant, load
from mmgpt.content import Part, Text
from mmgpt.data.controls import shuffle_media
from mmgpt.data.readers import limited, read_samples
from mmgpt.data.sample import Sample
from mmgpt.errors import ConfigError, DataError
from mmgpt.evaluation.asking import Answered, Lost, choices, costs, replies, settings_of
from mmgpt.evaluation.exam_report import write_exam_report, write_retrieval_report
from mmgpt.evaluation.metrics.likelihood import Cost
from mmgpt.evaluation.metrics.score import Interval, Score, bootstrap, p_value, percentiles
from mmgpt.evaluation.metrics.wups import WordNet
from mmgpt.evaluation.report import TaskScore
from mmgpt.evaluation.retrieval import Search, search
from mmgpt.evaluation.runner import beside, measured, media_of, request_of
from mmgpt.files import atomic_write
from mmgpt.generation import Decoding
from mmgpt.resumable import agree, as_json, held, progress
from mmgpt.run_config import DataConfig
from mmgpt.stored import Stored
from mmgpt.tasks import RETRIEVE, TASKS, few_shot

PROMPTS = 8  # told of each task in the results; answers.jsonl has all
LIBRARIES = ("mmgpt", "torch", "torchaudio", "timm", "tokenizers", "numpy", "pillow", "av", "sacrebleu", "jiwer")

PREPARED = {  # what of a configuration decides what an encoder is given
    "image": ("size", "mean", "std", "crop_mode", "crop_pct", "interpolation"),
    "audio": ("name", "sample_rate", "window", "hop", "mels"),
    "video": ("frames", "sound"),
}


@dataclass(frozen=True)
class Exam:
    """What a model is asked.

    Args:
        model: Its directory, or a Hub id.
        format: How the data are read, a name of `mmgpt.data.readers.READERS`.
        path: Where they are.
        split: Which part of them.
        task: Score all samples as those of this task; None leaves each the one that its reader gives it. RETRIEVE asks
            nothing: it tells what a model that pairs finds among the samples.
        limit: Most samples, spread over the split.
        decoding: How answers are decoded; its seed is that of the shuffling too.
        int8: Compute in int8.
        choose: Take for the answer the likeliest of those that the samples have, instead of decoding one: what
            `classify` does.
        text_length: Most bytes of a document of plain text, which some formats cut.
        shots: How many samples of the train part, with their answers, stand before each question (few-shot).
        wordnet: The folder of WordNet's files: with them answers to questions are scored by WUPS too.
    """

    model: str
    format: str
    path: str
    split: str = "dev"
    task: str | None = None
    limit: int | None = None
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=48))
    int8: bool = False
    choose: bool = False
    text_length: int = DataConfig.text_length
    shots: int = 0
    wordnet: str | None = None

    def samples(self) -> list[Sample]:
        """What is asked, in order. Raises ConfigError, DataError."""
        found = self._part(self.split)
        some = found if self.limit is None else limited(found, self.limit)
        found = [one for sample in some for one in sample.exchanges][: self.limit]
        if self.task in (None, RETRIEVE):
            return found
        return [dataclasses.replace(one, task=self.task) for one in found]

    def examples(self) -> list[Sample]:
        """What stands before each question. Raises ConfigError, DataError."""
        if not self.shots:
            return []
        if self.split == "train":
            raise ConfigError("shots: are taken from train, so another split must be asked about")
        return [one.exchanges[0] for one in limited(self._part("train"), self.shots)]

    def _part(self, split: str) -> Sequence[Sample]:
        return read_samples(DataConfig(self.format, self.path, text_length=self.text_length), split)  # type: ignore[arg-type]


def preprocessing_hash(model: str) -> str:
    """SHA-256 of all that makes pixels, samples, frames and token ids of media and texts for a model."""
    config = checkpoint.read_config(model)
    prepared = {
        modality: {name: getattr(encoder, name) for name in names}
        for modality, names in PREPARED.items()
        if (encoder := getattr(config, modality)) is not None
    }
    tokenizer = checkpoint.load_tokenizer(model)
    plain = None if tokenizer.plain is None else dataclasses.asdict(tokenizer.plain)
    return hashlib.sha256(as_json([prepared, tokenizer.to_json(), plain])).hexdigest()


def text_length(models: Sequence[str]) -> int:
    """Most bytes of a document of plain text that all the models can be asked about.

    Those that learned from plain text are asked about documents cut as theirs were: cut elsewhere, some that were held
    out would be learned ones in part. Raises ConfigError where they were cut differently.
    """
    lengths, fits = {}, DataConfig.text_length
    for model in models:
        directory = checkpoint.locate(model)
        fits = min(fits, checkpoint.read_config(directory).gpt.context - 2)  # no token is less than a byte
        if (length := checkpoint.told_by_run(directory).get("text_length")) is not None:
            lengths[length] = model
    if len(lengths) > 1:
        told = ", ".join(f"{model} of {length} bytes" for length, model in lengths.items())
        raise ConfigError(f"these models learned from documents of different lengths: {told}; evaluate each alone")
    return next(iter(lengths), fits)


@dataclass(frozen=True)
class Examined:
    """An evaluation's scores, its answers by the places of their samples, why others have none, and its searches."""

    model: str
    scores: list[TaskScore]
    answered: dict[int, Answered]
    failed: dict[int, str]
    searches: list[Search] = field(default_factory=list)


def examine(exam: Exam, out: Path) -> Examined:
    """Ask the model what OUT has no answers to, score all answers and write OUT/results.json and OUT/report.html.

    Raises:
        ConfigError: OUT holds answers made with other settings, or is being written to; or the model answers nothing,
            or is to retrieve and does not pair.
        CheckpointError, DataError: The model or the data cannot be read.
        WriteError: OUT cannot be written.
    """
    if exam.task == RETRIEVE:
        return _examine_retrieval(exam, out)
    samples = exam.samples()
    spoilt = shuffle_media(samples, np.random.default_rng(exam.decoding.seed))
    examples = exam.examples()
    settings = _settings(exam, samples, examples)
    wordnet = None if exam.wordnet is None else WordNet(exam.wordnet)
    out.mkdir(parents=True, exist_ok=True)
    with held(out / ".lock"):
        agree(out / "settings.json", settings, out / "answers.jsonl")
        lines = _all_lines(exam, out / "answers.jsonl", samples, spoilt, examples)
    answered = {i: _answered(samples[i], line["prediction"]) for i, line in enumerate(lines) if "prediction" in line}
    controls = {i: _answered(spoilt[i], line["control"]) for i, line in enumerate(lines) if "control" in line}
    failed = {i: line["prediction_failed"] for i, line in enumerate(lines) if "prediction_failed" in line}
    measures = measured(list(answered.values()), wordnet)
    scores = beside(measures, list(controls.values()), wordnet)
    more = {
        "prompts": _prompts(samples),
        "controls_failed": [
            {"id": line["id"], "reason": line["control_failed"]} for line in lines if "control_failed" in line
        ],
    }
    _write(out / "results.json", _results(settings, samples, scores, failed) | more)
    write_exam_report(out / "report.html", settings, measures, scores, answered, controls, failed)
    return Examined(exam.model, scores, answered, failed)


def _examine_retrieval(exam: Exam, out: Path) -> Examined:
    samples = exam.samples()
    settings = _settings(exam, samples, [])
    out.mkdir(parents=True, exist_ok=True)
    with held(out / ".lock"):
        agree(out / "settings.json", settings, out / "results.json")
        searches, failed = search(load(exam.model, int8=exam.int8), samples)
        if not searches:
            raise DataError(
                f"{exam.path}: no sample is of one medium alone and what is said of it, so there are no pairs"
            )
        scores = [score for one in searches for score in one.scores()]
        _write(out / "results.json", _results(settings, samples, scores, failed))
        write_retrieval_report(out / "report.html", settings, scores, searches, samples, failed)
    return Examined(exam.model, scores, {}, failed, searches)


def _results(
    settings: dict[str, Any], samples: Sequence[Sample], scores: Sequence[TaskScore], failed: Mapping[int, str]
) -> dict[str, Any]:
    return settings | {
        "scores": [score_json(score) for score in scores],
        "failed": [{"id": samples[i].where, "reason": reason} for i, reason in failed.items()],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
    }


@dataclass(frozen=True)
class Compared:
    """One metric of several models on the samples that all of them answered.

    Args:
        task: The task.
        metric: In words.
        n: Number of these samples.
        scores: Of each model.
        intervals: Their 95 % intervals.
        p: Of each but the first, in the paired bootstrap test against the first (Koehn 2004).
        lower_is_better: True for error rates.
        times: As in TaskScore.
    """

    task: str
    metric: str
    n: int
    scores: list[float]
    intervals: list[Interval]
    p: list[float]
    lower_is_better: bool
    times: int = 100


def compare(found: Sequence[Examined], wordnet: WordNet | None = None) -> list[Compared]:
    """Each metric of evaluations of several models on the same data."""
    common = sorted(set.intersection(*(set(one.answered) for one in found)))
    rows = []
    for own in zip(*(measured([one.answered[i] for i in common], wordnet) for one in found), strict=True):
        task, metric = own[0].task, own[0].metric
        row = _compared(task, metric.name, [one.score for one in own])
        rows.append(dataclasses.replace(row, lower_is_better=metric.lower_is_better, times=metric.times))
    for own in zip(*(one.searches for one in found), strict=True):
        queries = set.intersection(*(set(one.queries) for one in own))
        rows += [
            _compared(own[0].task, name, [one.score(depth, queries) for one in own])
            for name, depth in own[0].depths.items()
        ]
    return rows


def _compared(task: str, metric: str, scores: Sequence[Score]) -> Compared:
    values = [one.value for one in scores]
    resampled = [bootstrap({"": one})[""] for one in scores]  # the same draws for all
    p = [
        p_value(resampled[0], other, values[0] - value) for other, value in zip(resampled[1:], values[1:], strict=True)
    ]
    return Compared(task, metric, scores[0].n, values, [percentiles(one) for one in resampled], p, False)


def examine_all(exams: Sequence[Exam], out: Path) -> tuple[list[Examined], list[Compared]]:
    """Evaluations of several models on the same data, each in OUT/NAME; leaves OUT/comparison.json. As `examine`."""
    names = [Path(exam.model).name for exam in exams]
    if len(set(names)) < len(names):
        names = [f"{i}-{name}" for i, name in enumerate(names, 1)]
    found = [examine(exam, out / name) for exam, name in zip(exams, names, strict=True)]
    rows = compare(found, WordNet(exams[0].wordnet) if exams[0].wordnet else None)
    told = {"models": [exam.model for exam in exams], "comparison": [compared_json(row) for row in rows]}
    _write(out / "comparison.json", told)
    return found, rows


def compared_json(row: Compared) -> dict[str, Any]:
    """A row of a comparison as JSON; None where a number is not defined."""
    return dataclasses.asdict(row) | {
        "scores": [_number(value) for value in row.scores],
        "intervals": [[_number(end) for end in interval] for interval in row.intervals],
        "p": [_number(value) for value in row.p],
    }


def score_json(score: TaskScore) -> dict[str, Any]:
    """A score as the results tell it: with all digits, None where a number is not defined."""
    return {
        "task": score.task,
        "metric": score.metric,
        "score": _number(score.score),
        "interval": None if score.interval is None else [_number(end) for end in score.interval],
        "control": None if score.control is None else _number(score.control),
        "n": score.n,
        "lower_is_better": score.lower_is_better,
        "times": score.times,
    } | ({"signature": score.signature} if score.signature else {})


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _settings(exam: Exam, samples: Sequence[Sample], examples: Sequence[Sample]) -> dict[str, Any]:
    """All that the answers depend on, as JSON: other settings may make other answers."""
    config = dataclasses.asdict(checkpoint.read_config(exam.model))
    data = hashlib.sha256()
    for sample in (*examples, *samples):
        data.update(as_json([_asked(sample), sample.references]))
    settings = settings_of(exam.model, exam.int8, exam.decoding)
    return {
        "model": settings["model"]
        | {
            "configuration_sha256": hashlib.sha256(as_json(config)).hexdigest(),
            "preprocessing_sha256": preprocessing_hash(exam.model),
        },
        "data": {
            "format": exam.format,
            "path": exam.path,
            "split": exam.split,
            "task": exam.task,
            "limit": exam.limit,
            "shots": exam.shots,
            "text_length": exam.text_length,
            "samples": len(samples),
            "sha256": data.hexdigest(),
        },
        "decoding": settings["decoding"] | {"choose": exam.choose},
    }


def _all_lines(
    exam: Exam, path: Path, samples: Sequence[Sample], spoilt: Sequence[Sample], examples: Sequence[Sample]
) -> list[dict[str, Any]]:
    """A line for each sample: those of the file, and those that are still to be asked for, which are added to it."""
    lines, size = _kept(path, samples)
    if len(lines) == len(samples):
        return lines
    assistant = load(exam.model, int8=exam.int8)
    assistant.require_answers()
    shots = [(one.prompt, one.answers[0]) for one in examples]
    asked = (
        dataclasses.replace(one, prompt=tuple(few_shot(shots, one.prompt)))
        for i in range(len(lines), len(samples))
        for one in (samples[i], spoilt[i])[: 1 + bool(media_of(samples[i]))]
    )
    answers = sorted({answer for sample in samples for answer in sample.references}) if exam.choose else []
    found = _found(assistant, asked, exam, answers)
    with path.open("ab", buffering=0) as file, progress("asking", len(samples), len(lines)) as advance:
        file.truncate(size)  # of what was half written when it was killed
        for i in range(len(lines), len(samples)):
            line = _asked(samples[i]) | {"truths": samples[i].votes or samples[i].references}
            line |= {"kinds": dict(samples[i].kinds)} if samples[i].kinds else {}
            for name in ("prediction", "control")[: 1 + bool(media_of(samples[i]))]:
                one = next(found)
                line |= {name: _said(one)} if isinstance(one, Answered) else {f"{name}_failed": one.reason}
            file.write(as_json(line) + b"\n")
            lines.append(line)
            advance()
    return lines


def _found(
    assistant: Assistant, asked: Iterable[Sample], exam: Exam, answers: Sequence[str]
) -> Iterator[Answered | Lost]:
    """What is said to each sample, in order: the likeliest of `answers`, or what is decoded; or its truth's cost."""
    for likelihood, some in groupby(asked, lambda sample: TASKS[sample.task].likelihood):
        if likelihood:
            yield from costs(assistant, some)
        elif answers:
            yield from choices(assistant, some, answers)
        else:
            yield from replies(assistant, some, exam.decoding)


def _said(one: Answered) -> str | dict[str, Any]:
    return one.prediction if one.cost is None else dataclasses.asdict(one.cost)


def _answered(sample: Sample, said: str | dict[str, Any]) -> Answered:
    return Answered(sample, said) if isinstance(said, str) else Answered(sample, "", Cost(**said))


def _kept(path: Path, samples: Sequence[Sample]) -> tuple[list[dict[str, Any]], int]:
    """The whole lines at the beginning of the file, one for each sample, and how many bytes they are."""
    lines: list[dict[str, Any]] = []
    size = 0
    data = path.read_bytes() if path.exists() else b""
    for sample, raw in zip(samples, data.split(b"\n")[:-1], strict=False):  # what no line end follows is not whole
        try:
            line = json.loads(raw)
        except ValueError:
            break
        if not isinstance(line, dict) or line.get("id") != _asked(sample)["id"]:
            break
        lines.append(line)
        size += len(raw) + 1
    return lines, size


def _asked(sample: Sample) -> dict[str, Any]:
    prompt = [{"role": message.role, "content": [_part(part) for part in message.parts]} for message in sample.prompt]
    return {"id": sample.where, "task": sample.task, "prompt": prompt}


def _part(part: Part) -> dict[str, str]:
    """As Hugging Face writes them."""
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    named = isinstance(part.source, str | Path | Stored)
    return {"type": type(part).__name__.lower()} | ({"path": str(part.source)} if named else {})


def _prompts(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """The first wordings of each task's requests."""
    found: dict[str, dict[str, None]] = {}
    for sample in samples:
        known = found.setdefault(sample.task, {})
        if len(known) < PROMPTS:
            known[request_of(sample)] = None
    return {task: list(texts) for task, texts in found.items()}


def _write(path: Path, value: Any) -> None:
    """JSON for people to read, whole or not at all."""
    with atomic_write(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, "utf-8", errors="backslashreplace")
