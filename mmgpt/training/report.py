"""The end of a run: evaluate the best checkpoint, keep the scores with it, write the report, print a summary."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmgpt import checkpoint
from mmgpt.assistant import Assistant, load
from mmgpt.card import trained_on
from mmgpt.data.sample import Sample
from mmgpt.data.world import score_answer
from mmgpt.evaluation.report import TaskScore, write_report
from mmgpt.evaluation.retrieval import search
from mmgpt.evaluation.runner import Evaluation, Judge, evaluate, shown
from mmgpt.evaluation.table import print_scores
from mmgpt.generation import Decoding
from mmgpt.run_config import TrainConfig
from mmgpt.training.run import Run

SHOWN_PER_TASK = 12  # samples of each task in the report


def finish(
    config: TrainConfig,
    run: Run,
    samples: Sequence[Sample] | None = None,
    goals: Mapping[str, float] | None = None,
    title: str = "Training report",
) -> Evaluation:
    """Evaluate OUT/best on the samples (default: those it validated on) and leave OUT/report.html with its scores.

    Those are of its answers, where it was trained to give any, and of retrieval, where it pairs media with texts; then
    beside what the model of `init` reaches, so that one sees whether it was kept (not where it took other media).
    """
    judge: Judge | None = score_answer if config.data.format == "world" else None
    assistant = load(run.out / "best")
    samples = run.val_samples if samples is None else samples
    asked = samples if assistant.model.config.answers else []
    evaluation = evaluate(assistant, asked, Decoding(max_new_tokens=48, beams=config.beams), judge=judge)
    if assistant.model.pair is not None:
        found, lost = _found(assistant, samples)
        if config.init is not None and not config.model.encoders:
            before, _ = _found(load(config.init), samples)
            found = [dataclasses.replace(own, before=other.score) for own, other in zip(found, before, strict=True)]
        evaluation.scores.extend(found)
        evaluation.broken.extend(reason for reason in lost.values() if reason not in evaluation.broken)
    scores = [dataclasses.replace(score, goal=(goals or {}).get(score.task)) for score in evaluation.scores]
    best = checkpoint.resolve(run.out / "best")
    training = checkpoint.read_training(best)
    training["minutes"] = round(run.seconds / 60, 2)
    training["scores"] = [
        {"task": score.task, "metric": score.metric, "score": round(score.score, 4), "n": score.n,
         "control": None if score.control is None else round(score.control, 4),
         "chance": None if score.chance is None else round(score.chance, 4),
         "before": None if score.before is None else round(score.before, 4)}
        for score in scores
    ]  # fmt: skip
    checkpoint.save(run.out / "best", assistant.model, assistant.tokenizer, training)

    broken = list(dict.fromkeys([*run.broken, *evaluation.broken]))
    text = "".join(f"{line}\n" for line in broken)
    (run.out / "broken.txt").write_text(text, "utf-8", errors="backslashreplace")  # names need not be UTF-8
    parameters = sum(checkpoint.read_sizes(checkpoint.resolve(run.out / "best")).values())
    summary = [
        ("parameters", f"{parameters / 1e6:.2f} M"),
        ("training samples", trained_on(training)),
        ("training time", f"{run.seconds / 60:.1f} min"),
        ("held-out samples", f"{len(samples) - len(set(evaluation.broken)):,}"),
        ("unusable samples or answers", f"{len(broken)}"),
    ]
    kept: dict[str, int] = {}
    picked = []
    for one in evaluation.answered:
        if kept.setdefault(one.sample.task, 0) < SHOWN_PER_TASK:
            kept[one.sample.task] += 1
            picked.append(shown(one, judge))
    write_report(
        run.out / "report.html", title=title, summary=summary, curve=read_curve(run.out), scores=scores, samples=picked
    )
    print_scores(scores, broken, "broken.txt")
    return evaluation


def _found(assistant: Assistant, samples: Sequence[Sample]) -> tuple[list[TaskScore], dict[int, str]]:
    searches, lost = search(assistant, samples)
    return [score for one in searches for score in one.scores()], lost


def read_curve(out: Path) -> list[dict[str, float]]:
    """The rows of OUT/metrics.csv: step, loss, val_loss and the like where logged."""
    with (out / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
