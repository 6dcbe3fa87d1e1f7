"""Trains one model on all data sets that were prepared (configs/generalist.yaml), and sets it beside the specialists.

    for each source NAME of the mixture: python scripts/prepare_data.py NAME FOLDER runs/data/NAME.parquet
    python scripts/generalist.py
    python scripts/generalist.py --steps 5000      # what follows goes to mmgpt train

Each source's dev part is asked as reproduce.py asks it; a specialist's scores are those that reproduce.py left in
runs/NAME/eval. A run that was interrupted goes on, and one that is finished is only evaluated again.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from reproduce import CONFIGS, MMGPT, RECIPES, run, train

from mmgpt.evaluation.report import number

OUT = Path("runs/generalist")


def scores(folder: Path) -> dict[str, dict[str, Any]]:
    """The scores of an evaluation by metric; none where there was no evaluation."""
    path = folder / "results.json"
    found = json.loads(path.read_text("utf-8"))["scores"] if path.exists() else []
    return {score["metric"]: score for score in found}


def main() -> None:
    config = CONFIGS / "generalist.yaml"
    train(config, OUT, *map(str, sys.argv[1:]))
    rows = []
    for name, source in yaml.safe_load(config.read_text("utf-8"))["data"]["mix"].items():
        specialist, recipe = [one for one in RECIPES.items() if name in (one[0], one[1].prepared)][-1]
        asked = ("--format", source["format"], "--data", source["path"], "--out", OUT / "eval" / name)
        run(MMGPT, "eval", OUT, *asked, "--task", recipe.task, *recipe.evaluate)
        alone = scores(Path("runs") / specialist / "eval")
        for metric, score in scores(OUT / "eval" / name).items():
            other, control = alone.get(metric), score["control"]
            cells = [None if one is None else one["score"] for one in (score, other)]
            told = ["" if value is None else number(value, score["times"]) for value in (*cells, control)]
            rows.append(f"| {name} | {score['n']:,} | {metric} | {' | '.join(told)} |")
    print(f"\n| data | n | metric | generalist | specialist | media shuffled |\n{'|---' * 6}|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
