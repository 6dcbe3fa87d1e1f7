"""mmgpt plan: what a training run will take, from a short trial of it."""

import sys
from typing import TYPE_CHECKING

from mmgpt.cli import options
from mmgpt.cli.train import parse_with

if TYPE_CHECKING:
    from rich.console import Console

    from mmgpt.training.plan import Plan


def main(arguments: list[str]) -> None:
    parser = options.run_parser(
        "plan",
        "What a training run will take: parameters, steps, memory and time, measured on a few of its steps. Exits with "
        "1 if it does not fit into memory.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    args, config = parse_with(parser, arguments)

    import dataclasses

    from rich.console import Console

    from mmgpt.training.plan import plan

    with Console(stderr=True).status("making a few steps, to measure them"):
        found = plan(config)
    if args.json:
        options.show(dataclasses.asdict(found) | {"fits": found.fits})
    else:
        _print(found, config.cache_gb * 1e9, Console(highlight=False))
    if not found.fits:
        sys.exit(1)


def _print(found: "Plan", cache: float, console: "Console") -> None:
    from rich.table import Table

    table = Table("parameters", "trained", "frozen", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, count in found.modules.items():
        table.add_row(name, f"{count['trained']:,}", f"{count['frozen']:,}")
    totals = [sum(count[kind] for count in found.modules.values()) for kind in ("trained", "frozen")]
    table.add_row("in all", *(f"{total:,}" for total in totals), style="bold")
    console.print(table)

    table = Table(show_header=False, box=None, pad_edge=False)
    count = "a stream" if found.samples is None else f"{found.samples:,}"
    table.add_row("samples", f"{count} to train on, {found.validation_samples:,} to validate on")
    table.add_row("steps", f"about {found.steps:,}")
    kind = "GPU memory" if found.device == "cuda" else "memory"
    least = "" if found.fits else "at least "
    workers = f", and {_gigabytes(found.workers)} of data workers" if found.workers else ""
    table.add_row(kind, f"{least}{_gigabytes(found.memory)}{workers}; {_gigabytes(found.available)} are free")
    if found.seconds is not None:
        training, validation, evaluation = (found.seconds[n] for n in ("training", "validation", "evaluation"))
        each = f"{training / max(1, found.steps):.3g} s a step"
        if "first_epoch" in found.seconds:
            each += f"; {_duration(found.seconds['first_epoch'])} of them the first epoch, which fills the cache"
        table.add_row("training", f"{_duration(training)} ({each}), and {_duration(validation)} of validation")
        table.add_row("evaluation", f"up to {_duration(evaluation)} at the end")
    if found.features is not None:
        enough = "" if found.features <= cache else f"; the cache has room for {_gigabytes(cache)}: raise cache_gb"
        table.add_row("features", f"{_gigabytes(found.features)} to keep{enough}")
    console.print()
    console.print(table)
    if found.fits:
        console.print("\n[green]it fits[/]")
    else:
        console.print(f"\n[red]does not fit:[/] {found.no_room}", soft_wrap=True)
        console.print(
            "a smaller batch_size or batch_tokens (with accumulate, to learn the same), checkpoint_activations, or "
            "frozen encoders with a cache take less",
            soft_wrap=True,
        )


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
