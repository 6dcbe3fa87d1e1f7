"""mmgpt eval: a checkpoint's answers to a data set, their scores and a report."""

from argparse import ArgumentParser
from typing import TYPE_CHECKING, Any, get_args

from mmgpt.cli import options
from mmgpt.errors import ConfigError
from mmgpt.run_config import FileFormat
from mmgpt.tasks import RETRIEVE, TASKS

if TYPE_CHECKING:
    from mmgpt.evaluation.exam import Compared, Examined


def main(arguments: list[str]) -> None:
    args = _parser().parse_args(arguments)
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit: must be a whole number from 1 on, not {args.limit}")
    if args.shots < 0:
        raise ConfigError(f"--shots: must be a whole number from 0 on, not {args.shots}")
    if args.task == RETRIEVE and (args.choose or args.shots or args.wordnet):
        raise ConfigError("--task retrieve: asks nothing; leave --choose, --shots and --wordnet out")

    from pathlib import Path

    from mmgpt.data.readers import format_of
    from mmgpt.evaluation.exam import Exam, compared_json, examine, examine_all, text_length
    from mmgpt.evaluation.table import print_scores
    from mmgpt.generation import Decoding

    format = args.format or format_of(args.data)
    length = text_length(args.models) if format == "texts" else Exam.text_length
    decoding = Decoding(**options.decoding(args))
    exams = [
        Exam(
            model,
            format,
            args.data,
            args.split,
            args.task,
            args.limit,
            decoding,
            int8=args.int8,
            choose=args.choose,
            text_length=length,
            shots=args.shots,
            wordnet=args.wordnet,
        )
        for model in args.models
    ]
    if len(exams) > 1:
        out = Path(args.out or "runs/eval")
        found, rows = examine_all(exams, out)
        if args.json:
            options.show({"models": [_told(one) for one in found], "comparison": [compared_json(row) for row in rows]})
        else:
            _print_comparison([Path(model).name for model in args.models], rows)
            print(f"\nthe comparison, and in the folder of each model its report: {out}")
        return
    out = Path(args.out or Path("runs/eval") / Path(args.models[0]).name)
    one = examine(exams[0], out)
    if args.json:
        options.show(_told(one))
    else:
        print_scores(one.scores, list(one.failed.values()), str(out / "results.json"))
        print(f"\nreport: {out / 'report.html'} (open it in a browser)")


def _parser() -> ArgumentParser:
    formats = ", ".join(get_args(FileFormat))
    parser = options.parser(
        "eval",
        "Ask a model a whole data set, beside each question the same one with the media shuffled, and score its "
        "answers. What was begun in --out is gone on with.",
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="a trained model, or one of the Hub; several are compared"
    )
    parser.add_argument("--data", required=True, metavar="PATH", help="the folder or file to read")
    parser.add_argument(
        "--format",
        choices=get_args(FileFormat),
        metavar="FORMAT",
        help=f"of the data (default: what the names of its files tell): {formats}",
    )
    parser.add_argument("--split", default="dev", metavar="NAME", help="which part of the data (default: %(default)s)")
    parser.add_argument(
        "--task",
        choices=(*TASKS, RETRIEVE),
        metavar="TASK",
        help=f"score the answers as those of this task: {', '.join(TASKS)}; or of a model that pairs: {RETRIEVE}",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="most samples, spread over the split")
    parser.add_argument(
        "--choose", action="store_true", help="take the likeliest of the answers that the data has: to classify"
    )
    parser.add_argument(
        "--shots",
        type=int,
        default=0,
        metavar="N",
        help="so many samples of the train part, with their answers, stand before each question (default: 0)",
    )
    parser.add_argument("--wordnet", metavar="DIR", help="WordNet's files: answers to questions get WUPS too")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where answers, scores and report go (default: runs/eval/MODEL, "
        "or runs/eval for several, each in a folder of its own)",
    )
    options.add_how(parser)
    options.add_decoding(parser)
    return parser


def _told(one: "Examined") -> dict[str, Any]:
    from mmgpt.evaluation.exam import score_json

    return {"model": one.model, "scores": [score_json(score) for score in one.scores], "failed": len(one.failed)}


def _print_comparison(names: list[str], rows: "list[Compared]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mmgpt.evaluation.report import number

    table = Table("task", box=None, pad_edge=False)
    for i, name in enumerate(names):
        for column in (escape(name), "95 %", *(("difference", "p") if i else ())):
            table.add_column(column, justify="right")
    table.add_column("n", justify="right")
    for row in rows:
        cells = []
        for i, (score, interval) in enumerate(zip(row.scores, row.intervals, strict=True)):
            cells += [number(score, row.times), "–".join(number(end, row.times, 0) for end in interval)]
            if i:
                cells += [number(score - row.scores[0], row.times, sign="+"), f"{row.p[i - 1]:.3f}"]
        table.add_row(f"{row.task}, {row.metric}{' ↓' if row.lower_is_better else ''}", *cells, str(row.n))
    console = Console()
    console.print(table)
    told = "shares times 100, on the samples that all models answered; p of the paired bootstrap test against the first"
    console.print(f"\n{told}", style="dim")
