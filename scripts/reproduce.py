"""Reproduces a row of the README's results: prepares the data, trains by configs/NAME.yaml, evaluates on dev.

    python scripts/reproduce.py sst2 FOLDER
    python scripts/reproduce.py sst2 FOLDER --epochs 2     # what follows goes to mmgpt train

FOLDER is the data set, laid out as prepare_data.py tells. What has been prepared is not prepared again; a run that was
interrupted goes on, and one that is finished is only evaluated again. All answers are in runs/NAME/eval/report.html.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mmgpt import checkpoint
from mmgpt.evaluation.report import number
from mmgpt.training.state import read_finished

CONFIGS = Path(__file__).parents[1] / "configs"
MMGPT = Path(sys.executable).with_name("mmgpt")


@dataclass(frozen=True)
class Recipe:
    """What is evaluated: answers as those of a task, how they are decoded, and on what: data as they are published, or
    those that prepare_data.py makes, by its name of them or else the recipe's own. `after` is the recipe whose model it
    goes on from.
    """

    task: str | None
    evaluate: tuple[str, ...] = ()
    format: str = "parquet"
    prepared: str | None = None
    after: str | None = None


RECIPES = {
    "flickr8k": Recipe("caption", ("--beams", "3"), "captions"),
    "flickr8k_cider": Recipe("caption", ("--beams", "3"), "captions", after="flickr8k"),
    "spoken_digits": Recipe("transcribe", format="sounds"),
    "easy_vqa": Recipe("ask"),
    "daquar": Recipe("ask"),
    **dict.fromkeys(("fashion_mnist", "cifar10", "esc10", "sst2", "sms_spam"), Recipe("classify", ("--choose",))),
    "multi30k": Recipe("translate", ("--beams", "4")),
    "tatoeba": Recipe("translate", ("--beams", "4")),
    "xquad": Recipe(None),
    "grid_sound": Recipe("transcribe", format="sounds"),
    "grid_lips": Recipe("transcribe", prepared="grid"),
    "grid_both": Recipe("transcribe", prepared="grid", after="grid_sound"),
    "shakespeare": Recipe(None, format="texts"),
    "fashion_pixels": Recipe(None),
}


def run(program: str | Path, *arguments: str | Path) -> None:
    command = [str(program), *map(str, arguments)]
    print("$", *command, flush=True)
    if code := subprocess.run(command).returncode:
        sys.exit(code)


def data_of(name: str, folder: Path) -> Path:
    """What a recipe trains and evaluates on: the data set's folder, or the file made of it, now if it is not yet."""
    recipe = RECIPES[name]
    if recipe.format != "parquet":
        return folder
    prepared = recipe.prepared or name
    data = Path("runs/data") / f"{prepared}.parquet"
    if not data.exists():
        run(sys.executable, Path(__file__).with_name("prepare_data.py"), prepared, folder, data)
    return data


def train(config: Path, out: Path, *arguments: str | Path) -> None:
    """Train by a configuration: a run that was interrupted goes on, one that came to its end is not trained anew."""
    run(MMGPT, "train", "--config", config, "--out", out, "--resume", "true", *arguments)


def train_recipe(name: str, folder: Path, *arguments: str) -> None:
    """Train a recipe's model, and before it the one that it goes on from."""
    before = RECIPES[name].after
    if before is not None and read_finished(Path("runs") / before) is None:
        train_recipe(before, folder)
    train(CONFIGS / f"{name}.yaml", Path("runs") / name, "--data.path", data_of(name, folder), *arguments)


def row(name: str, out: Path) -> str:
    """The row of the table, of what training and evaluation have left."""
    results = json.loads((out / "eval" / "results.json").read_text("utf-8"))
    best = checkpoint.resolve(out / "best")
    told, size = checkpoint.read_training(best), sum(checkpoint.read_sizes(best).values())
    lines = []
    for score in results["scores"]:
        values = (score["score"], *(score["interval"] or (float("nan"),) * 2))
        value, low, high = (number(one, score["times"]) for one in values)
        control = "" if score["control"] is None else number(score["control"], score["times"])
        what = f"{name}, dev, {score['n']:,}" if not lines else ""
        cost = f"{told['minutes']:.1f} | {size / 1e6:.2f} M" if not lines else " | "
        metric = f"{score['metric']} {value} [{low}–{high}]"
        lines.append(f"| {what} | {cost} | {metric} | {control} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("folder", type=Path)
    args, rest = parser.parse_known_args()
    recipe, out = RECIPES[args.name], Path("runs") / args.name
    train_recipe(args.name, args.folder, *rest)
    shutil.rmtree(out / "eval", ignore_errors=True)  # answers of the model that was there before
    what = ("--format", recipe.format, "--data", data_of(args.name, args.folder), "--out", out / "eval")
    task = () if recipe.task is None else ("--task", recipe.task)
    run(MMGPT, "eval", out, *what, *task, *recipe.evaluate)
    head = "| data | minutes | parameters | metric and score [95 %] | media shuffled |"
    print(f"\n{head}\n{'|---' * 5}|\n{row(args.name, out)}")


if __name__ == "__main__":
    main()
