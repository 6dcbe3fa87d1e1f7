"""Where a disk is full, what it holds stays whole."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from walls import train_until, wall_config, write_walls

from mmgpt import checkpoint
from mmgpt.cli.train import save_config
from mmgpt.run_config import TrainConfig
from mmgpt.training.run import train
from mmgpt.training.state import states

WEIGHTS = 363_296  # bytes that a checkpoint's file of weights has, and half of what the optimizer's has


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def below(found: dict[str, bytes], folder: str) -> dict[str, bytes]:
    return {name.removeprefix(f"{folder}/"): data for name, data in found.items() if name.startswith(f"{folder}/")}


@dataclasses.dataclass(frozen=True)
class Full:
    """A run that met a full disk: what it is, what was there before it, its exit code and what it said on stderr."""

    config: TrainConfig
    before: dict[str, bytes]
    code: int
    told: str


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> dict[str, Full]:
    """By what there was no room for: the state of a resumed run, the checkpoint of one that begins anew, a cache."""
    place = tmp_path_factory.mktemp("full")
    walls = write_walls(place / "walls", train=17, dev=4)
    configs = {name: wall_config(walls, place / name, epochs=2) for name in ("state", "checkpoint", "cache")}
    configs["state"] = dataclasses.replace(configs["state"], save_every=2, val_every=3)
    train_until(configs["state"], losses=6)
    configs["state"].resume = True
    train(dataclasses.replace(configs["checkpoint"], epochs=1))
    configs["cache"].train, configs["cache"].cache = ["gpt", "adapters"], str(place / "features")
    before = {name: files(Path(config.out)) for name, config in configs.items()}
    limits = {"state": ("all", WEIGHTS * 3 // 2), "checkpoint": ("all", WEIGHTS * 3 // 4), "cache": ("cache", 100)}
    runs = []
    for name, config in configs.items():
        save_config(config)
        runs.append((*limits[name], ["train", f"{config.out}/config.yaml"]))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("full_disk.py")), json.dumps(runs)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout)
    return {name: Full(configs[name], before[name], *end) for name, end in zip(configs, ends, strict=True)}


def assert_told(run: Full, begins: str, ends: str) -> None:
    """It said one line, and nothing else."""
    assert run.told.startswith(begins)
    assert run.told.endswith(f"{ends}\n")
    assert run.told.count("\n") == 1


def test_a_state_that_has_no_room_ends_the_run_which_goes_on_from_the_one_before_when_there_is_some(full):
    run = full["state"]
    out = Path(run.config.out)
    assert run.code == 1
    assert_told(run, f"mmgpt: error: {out}/state: the state of step 6 is not saved: ", "File too large (os error 27)")
    assert [path.name for path in states(out)] == ["000000002", "000000004"]
    assert files(out / "state") == below(run.before, "state")
    for name in ("best", "last"):
        checkpoint.load(out / name)
    train(run.config)
    assert checkpoint.read_training(checkpoint.resolve(out / "last"))["steps"] == 8


def test_a_checkpoint_that_has_no_room_leaves_the_one_that_was_there(full):
    run = full["checkpoint"]
    out = Path(run.config.out)
    assert run.code == 1
    assert_told(run, f"mmgpt: error: {out}/last: checkpoint not saved: ", "File too large (os error 27)")
    for name in ("best", "last"):
        assert files(out / name) == below(run.before, name)
        checkpoint.load(out / name)


def test_a_cache_that_has_no_room_is_told_once_and_the_run_goes_on_without(full):
    run = full["cache"]
    assert run.code == 0
    told = f"feature cache: cannot write {run.config.cache}/"
    assert_told(run, told, "File too large; no more features are kept")
    assert not files(Path(str(run.config.cache)))
    checkpoint.load(Path(run.config.out) / "best")
