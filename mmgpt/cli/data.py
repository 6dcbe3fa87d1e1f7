"""mmgpt data check: whether every row is readable, and what is in the data, before a run is paid for."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmgpt.cli import options
from mmgpt.cli.train import parse_with
from mmgpt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mmgpt.data.check import DataCheck, Repeats, SplitCheck, Spread, Unread

SHOWN = 10  # reasons; --json tells all


def main(arguments: list[str]) -> None:
    parser = options.run_parser(
        "data check",
        "Read every sample of the training and validation split as training would. Exits with 1 if a row is "
        "malformed, or a sample or an answer would be lost.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    command, *rest = arguments or [""]
    if command in ("-h", "--help"):
        rest = ["--help"]
    elif command != "check":
        raise ConfigError(f"data {command}: there is `mmgpt data check`")
    args, config = parse_with(parser, rest)

    import dataclasses

    from rich.console import Console
    from rich.progress import track

    from mmgpt.data.check import check, unread
    from mmgpt.encoders import build_encoders
    from mmgpt.processor import Processor
    from mmgpt.training.run import model_config, read, spare_cores

    if config.data.format == "hf_stream":
        raise ConfigError("data.format: a stream is not read to its end; check the data set on disk (format hf)")
    try:
        data = read(config, whole=True)
    except DataError as error:
        rows = unread(config.data, error)
        if args.json:
            options.show(dataclasses.asdict(rows) | {"sound": False})
        else:
            _print_unread(rows, Console())
        sys.exit(1)
    assert isinstance(data.train, Sequence)  # since it is no stream
    resolved, _ = build_encoders(model_config(config))
    told = Console(stderr=True)
    found = check(
        data.train,
        data.val,
        Processor(resolved, data.tokenizer),
        batch_tokens=config.batch_tokens,
        workers=spare_cores() if config.data.workers is None else config.data.workers,  # no model needs them
        progress=lambda name, total, rows: track(rows, f"reading {name}", total, console=told, transient=True),
    )
    if args.json:
        options.show(dataclasses.asdict(found) | {"sound": found.sound})
    else:
        _print(found, Console())
    if not found.sound:
        sys.exit(1)


def _print_unread(rows: "Unread", console: "Console") -> None:
    from rich.table import Table

    kinds = {"malformed": rows.malformed, "files missing": rows.missing}
    table = Table("rows", "", box=None, pad_edge=False, show_header=False)
    table.columns[1].justify = "right"
    for kind, reasons in kinds.items():
        table.add_row(kind, f"{len(reasons):,}")
    console.print(table)
    for kind, reasons in kinds.items():
        if reasons:
            _print_reasons(console, kind, reasons)
    console.print("\n[red]mend these first; then every sample is read[/]")


def _print_reasons(console: "Console", what: str, reasons: Sequence[str]) -> None:
    from rich.markup import escape

    console.print(f"\n[red]{what}[/]")
    for reason in reasons[:SHOWN]:
        console.print(f"  {escape(reason)}", soft_wrap=True)
    if len(reasons) > SHOWN:
        console.print(f"  and {len(reasons) - SHOWN:,} more (--json tells all)")


def _print(found: "DataCheck", console: "Console") -> None:
    from rich.table import Table

    splits = {"training": found.train, "validation": found.val}
    table = Table("", *splits, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    _rows(table, list(splits.values()))
    console.print(table)
    console.print("\nof many numbers: least · median · 95 % · most", style="dim")
    for name, split in splits.items():
        for what, reasons in (("cannot be read", split.broken), ("too long", split.too_long)):
            if reasons:
                _print_reasons(console, f"{name}: {len(reasons):,} {what}", reasons)
        _print_repeats(console, f"{name}: media that another sample before has too", split.same_media)
        _print_repeats(console, f"{name}: samples without media whose texts are those of one before", split.same_text)
    _print_repeats(console, "[red]leakage:[/] validation media that are in training too", found.leaked_media)
    _print_repeats(console, "[red]leakage:[/] validation texts that are in training too", found.leaked_text)
    console.print("\n[green]every sample is readable[/]" if found.sound else "\n[red]these would be lost[/]")


def _rows(table: "Table", splits: "list[SplitCheck]") -> None:
    table.add_row("samples", *(f"{split.samples:,}" for split in splits))
    table.add_row("documents", *(f"{split.documents:,}" for split in splits))
    table.add_row("cannot be read", *(f"{len(split.broken):,}" for split in splits))
    table.add_row("too long", *(f"{len(split.too_long):,}" for split in splits))
    table.add_row("tokens to a document", *(_spread(split.tokens) for split in splits))
    table.add_row("learned of them", *(f"{split.supervised:.1%}" for split in splits))
    for modality in dict.fromkeys(modality for split in splits for modality in split.media):
        media = [split.media.get(modality) for split in splits]
        table.add_row(modality, *(f"{one.count:,}" if one else "0" for one in media))
        for name in ("width", "height", "seconds"):
            spreads = [getattr(one, name, None) for one in media]
            if any(spreads):
                table.add_row(f"  {name}", *map(_spread, spreads))
    table.add_row("media there before", *(f"{split.same_media.count:,}" for split in splits))
    table.add_row("texts there before", *(f"{split.same_text.count:,}" for split in splits))


def _spread(spread: "Spread | None") -> str:
    if spread is None:
        return ""
    return " · ".join(f"{value:,g}" for value in (spread.least, spread.median, spread.percentile_95, spread.most))


def _print_repeats(console: "Console", what: str, repeats: "Repeats") -> None:
    from rich.markup import escape

    if repeats.count:
        console.print(f"\n{what}: {repeats.count:,}")
        for here, there in repeats.pairs:
            console.print(f"  {escape(here)} = {escape(there)}", soft_wrap=True)
