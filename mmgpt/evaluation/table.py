"""Scores on the screen."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mmgpt.evaluation.report import TaskScore

JUDGED = TaskScore.metric  # what a score is called where nothing else is said


def print_scores(scores: Sequence[TaskScore], broken: Sequence[str], listed: str) -> None:
    """The scores, one row each, and how many samples were lost; `listed` is the file that names them all."""
    console = Console()
    groups = list(dict.fromkeys(name for score in scores for name in score.groups))
    table = Table("task", box=None, pad_edge=False)
    beside = {"shuffled": "control", "before": "before", "chance": "chance", "goal": "goal"}
    told = [column for column, name in beside.items() if any(getattr(score, name) is not None for score in scores)]
    for column in ("score", "95 %", *told, "n", *groups):
        table.add_column(column, justify="right", no_wrap=True)
    for score in scores:
        name = score.task if score.metric == JUDGED else f"{score.task}, {score.metric}"
        low_high = "" if score.interval is None else "–".join(score.number(end, 0) for end in score.interval)
        values = [getattr(score, beside[column]) for column in told]
        more = ["" if value is None else score.shown(value) for value in values]
        own = [score.shown(score.groups[name][0]) if name in score.groups else "" for name in groups]
        colour = {True: "green", False: "red", None: "default"}[score.reached]
        table.add_row(name, f"[{colour}]{score.shown(score.score)}[/]", low_high, *more, str(score.n), *own)
    if scores:
        console.print()
        console.print(table)
    if "shuffled" in told:
        console.print("\nshuffled: the same questions with the media exchanged among the samples", style="dim")
    for score in scores:
        if score.signature:
            console.print(f"{score.task}, {score.metric}: {score.signature}", style="dim", soft_wrap=True, markup=False)
    if broken:
        console.print(
            f"{len(broken)} samples or answers could not be used; the first: {broken[0]} (all in {listed})",
            markup=False,
        )
