"""The end of a run: evaluate the best checkpoint, keep the scores with it, write the report, print a summary."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmgpt import checkpoint
from mmgpt.assistant import load
from mmgpt.config import TrainConfig
from mmgpt.data.sample import Sample
from mmgpt.data.world import score_answer
from mmgpt.evaluation.report import TaskScore, write_report
from mmgpt.evaluation.retrieval import retrieve
from mmgpt.evaluation.runner import Evaluation, Judge, evaluate, shown
from mmgpt.generation import Decoding
from mmgpt.training.run import Run

JUDGED = TaskScore.metric  # what a score is called where nothing else is said
SHOWN_PER_TASK = 12  # samples of each task in the report


def finish(
    config: TrainConfig,
    run: Run,
    samples: Sequence[Sample] | None = None,
    goals: Mapping[str, float] | None = None,
    title: str = "Training report",
) -> Evaluation:
    """Evaluate OUT/best on the samples (default: those it validated on) and leave OUT/report.html with its scores.

    Those are of its answers, where it was trained to give any, and of retrieval, where it pairs media with texts.
    """
    judge: Judge | None = score_answer if config.data.format == "world" else None
    assistant = load(run.out / "best")
    samples = run.val_samples if samples is None else samples
    asked = samples if assistant.model.config.answers else []
    evaluation = evaluate(assistant, asked, Decoding(max_new_tokens=48, beams=config.beams), judge=judge)
    if assistant.model.pair is not None:
        found, lost = retrieve(assistant, samples)
        evaluation.scores.extend(found)
        evaluation.broken.extend(reason for reason in lost if reason not in evaluation.broken)
    scores = [dataclasses.replace(score, goal=(goals or {}).get(score.task)) for score in evaluation.scores]
    best = checkpoint.resolve(run.out / "best")
    training = checkpoint.read_training(best)
    training["minutes"] = round(run.seconds / 60, 2)
    training["scores"] = [
        {"task": score.task, "metric": score.metric, "score": round(score.score, 4), "n": score.n,
         "control": None if score.control is None else round(score.control, 4),
         "chance": None if score.chance is None else round(score.chance, 4)}
        for score in scores
    ]  # fmt: skip
    checkpoint.save(run.out / "best", assistant.model, assistant.tokenizer, training)

    broken = list(dict.fromkeys([*run.broken, *evaluation.broken]))
    (run.out / "broken.txt").write_text("".join(f"{line}\n" for line in broken))
    samples_seen, epochs = training["samples"], training["epochs"]
    parameters = sum(parameter.numel() for parameter in assistant.model.parameters())
    summary = [
        ("parameters", f"{parameters / 1e6:.2f} M"),
        ("training samples", "a stream" if samples_seen is None else f"{samples_seen:,}"),
        ("trained for", f"{training['steps']:,} steps" if epochs is None else f"{epochs} epoch{'s' * (epochs > 1)}"),
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
    print_scores(scores, broken)
    return evaluation


def read_curve(out: Path) -> list[dict[str, float]]:
    """The rows of OUT/metrics.csv: step, loss, val_loss where logged."""
    with (out / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def print_scores(scores: Sequence[TaskScore], broken: Sequence[str]) -> None:
    console = Console()
    groups = list(dict.fromkeys(name for score in scores for name in score.groups))
    table = Table("task", box=None, pad_edge=False)
    chances = ["chance"] if any(score.chance is not None for score in scores) else []
    for column in ("score", "95 %", "shuffled", *chances, "goal", "n", *groups):
        table.add_column(column, justify="right", no_wrap=True)
    for score in scores:
        name = score.task if score.metric == JUDGED else f"{score.task}, {score.metric}"
        low_high = "" if score.interval is None else "–".join(f"{100 * end:.0f}" for end in score.interval)
        control = "" if score.control is None else score.shown(score.control)
        chance = [] if not chances else ["" if score.chance is None else score.shown(score.chance)]
        goal = "" if score.goal is None else score.shown(score.goal)
        own = [score.shown(score.groups[name][0]) if name in score.groups else "" for name in groups]
        colour = {True: "green", False: "red", None: "default"}[score.reached]
        table.add_row(
            name, f"[{colour}]{score.shown(score.score)}[/]", low_high, control, *chance, goal, str(score.n), *own
        )
    console.print()
    console.print(table)
    console.print("\nshuffled: the same questions with the media exchanged among the samples", style="dim")
    if broken:
        console.print(f"{len(broken)} samples or answers could not be used; the first: {broken[0]} (all in broken.txt)")
