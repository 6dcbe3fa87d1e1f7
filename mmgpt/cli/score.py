"""mmgpt score: predictions of any system against references, by the metrics of the field."""

import argparse
from typing import TYPE_CHECKING, Any

from mmgpt.cli import options

if TYPE_CHECKING:
    from mmgpt.evaluation.scoring import Scores

TASKS = {
    "caption": "COCO results .json against COCO captions .json: BLEU, ROUGE-L, CIDEr-D; METEOR and SPICE with Java",
    "vqa": "VQA results .json against VQA v2 annotations .json: VQA accuracy, of each type of question and answer too",
    "asr": "word and character error rate, as jiwer has them",
    "translation": "BLEU and chrF, as sacrebleu has them",
    "classification": "accuracy and macro-F1",
    "qa": "exact match and F1 of words, as SQuAD has them; WUPS with --wordnet",
}


def main(arguments: list[str]) -> None:
    parser = options.parser("score", "Score predictions of any system against references.")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "tasks:\n"
        + "\n".join(f"  {name:16}{what}" for name, what in TASKS.items())
        + "\n\nThe last four read .tsv, .csv or .jsonl with the columns id and text; all of them an answers.jsonl of\n"
        "`mmgpt eval`, which has both predictions and references. Intervals hold 95 %."
    )
    parser.add_argument("predictions", metavar="PREDICTIONS", help="what the system says")
    parser.add_argument(
        "references", nargs="?", metavar="REFERENCES", help="what is right (default: PREDICTIONS, an answers.jsonl)"
    )
    parser.add_argument("--task", required=True, choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--against", metavar="PREDICTIONS", help="another system, compared sample by sample")
    parser.add_argument("--wordnet", metavar="DIR", help="WordNet's files (Debian: /usr/share/wordnet), for WUPS of qa")
    parser.add_argument("--json", action="store_true", help="print JSON with all digits, as fractions, for scripts")
    args = parser.parse_args(arguments)

    from pathlib import Path

    from mmgpt.evaluation.metrics.wups import WordNet
    from mmgpt.evaluation.predictions import read_predictions, read_references
    from mmgpt.evaluation.scoring import compared, score

    references = read_references(Path(args.references or args.predictions), args.task)
    files = [Path(name) for name in (args.predictions, args.against) if name is not None]
    said = [read_predictions(path, args.task, references) for path in files]
    wordnet = WordNet(args.wordnet) if args.wordnet else None
    found = [score(args.task, one, list(references.values()), wordnet) for one in said]
    differences = compared(*found) if args.against else {}
    if args.json:
        first, *others = found
        told: dict[str, Any] = _as_json(first) | {"n": len(references), "signature": first.signature}
        if first.left_out:
            told["left_out"] = first.left_out
        for other in others:
            told["against"] = _as_json(other) | {
                "difference": {name: difference for name, (difference, _) in differences.items()},
                "p": {name: p for name, (_, p) in differences.items()},
            }
        options.show(told)
    else:
        _print(found, [path.name for path in files], differences, len(references))


def _as_json(scores: "Scores") -> dict[str, Any]:
    return {"metrics": scores.scores, "intervals": scores.intervals}


def _print(found: "list[Scores]", names: list[str], differences: dict[str, tuple[float, float]], n: int) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mmgpt.evaluation.scoring import LOWER_IS_BETTER

    table = Table("", box=None, pad_edge=False)
    for name in names:
        table.add_column(escape(name), justify="right", overflow="fold")
        table.add_column("95 % interval", justify="right", no_wrap=True)
    for name in ("difference", "p") if differences else ():
        table.add_column(name, justify="right", no_wrap=True)
    for metric in found[0].scores:
        cells = []
        for one in found:
            low, high = one.intervals[metric] if metric in one.scores else (float("nan"),) * 2
            cells += [f"{100 * one.scores.get(metric, float('nan')):.2f}", f"{100 * low:.2f} – {100 * high:.2f}"]
        if metric in differences:
            difference, p = differences[metric]
            cells += [f"{100 * difference:+.2f}", f"{p:.3f}"]
        table.add_row(escape(metric) + (" ↓" if metric in LOWER_IS_BETTER else ""), *cells)
    console = Console()
    console.print(table)
    console.print(f"\n{n:,} samples, all times 100", style="dim", highlight=False)
    for of, signature in found[0].signature.items():
        console.print(f"{of}: {signature}", style="dim", soft_wrap=True, highlight=False, markup=False)
    reasons: dict[str, list[str]] = {}
    for metric, reason in found[0].left_out.items():
        reasons.setdefault(reason, []).append(metric)
    for reason, metrics in reasons.items():
        console.print(f"left out: {' and '.join(metrics)}: {reason}", soft_wrap=True, highlight=False, markup=False)
