"""mmgpt eval: a checkpoint's answers to a data set, their scores and a report."""

from typing import get_args

from mmgpt.cli import options
from mmgpt.config import FileFormat
from mmgpt.errors import ConfigError
from mmgpt.tasks import TASKS


def main(arguments: list[str]) -> None:
    formats = ", ".join(get_args(FileFormat))
    parser = options.parser(
        "eval",
        "Ask a model a whole data set, beside each question the same one with the media shuffled, and score its "
        "answers. What was begun in --out is gone on with.",
    )
    parser.add_argument("model", metavar="MODEL", help="a trained model, or one of the Hub")
    parser.add_argument(
        "--format", required=True, choices=get_args(FileFormat), metavar="FORMAT", help=f"of the data: {formats}"
    )
    parser.add_argument("--data", required=True, metavar="PATH", help="the folder or file to read")
    parser.add_argument("--split", default="dev", metavar="NAME", help="which part of the data (default: %(default)s)")
    parser.add_argument(
        "--task", choices=TASKS, metavar="TASK", help=f"score the answers as those of this task: {', '.join(TASKS)}"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="most samples, spread over the split")
    parser.add_argument("--out", metavar="DIR", help="where answers, scores and report go (default: runs/eval/MODEL)")
    options.add_how(parser)
    options.add_decoding(parser)
    args = parser.parse_args(arguments)
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit: must be a whole number from 1 on, not {args.limit}")

    from pathlib import Path

    from mmgpt.evaluation.exam import Exam, examine, score_json
    from mmgpt.evaluation.table import print_scores
    from mmgpt.generation import Decoding

    out = Path("runs/eval") / Path(args.model).name if args.out is None else Path(args.out)
    decoding = Decoding(**options.decoding(args))
    found = examine(
        Exam(args.model, args.format, args.data, args.split, args.task, args.limit, decoding, args.int8), out
    )
    if args.json:
        options.show({"scores": [score_json(score) for score in found.scores], "failed": len(found.failed)})
    else:
        print_scores(found.scores, list(found.failed.values()), str(out / "results.json"))
        print(f"\nreport: {out / 'report.html'} (open it in a browser)")
