"""A run that was killed and resumed is the run that never was."""

import csv
import dataclasses
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import pytest
import torch
from walls import train_until, wall_config, write_shards, write_stream, write_walls

from mmgpt import checkpoint
from mmgpt.cli.train import save_config
from mmgpt.errors import DataError, TrainingError, WriteError
from mmgpt.run_config import AugmentConfig, RewardConfig, TrainConfig
from mmgpt.training.module import MultimodalModule
from mmgpt.training.run import fit, read, train
from mmgpt.training.state import read_values, save_state, states

WAYS = {
    "by samples": {"batch_size": 4},
    "packed": {"batch_size": None, "batch_tokens": 50, "accumulate": 2, "ema": 0.8},  # with workers and Muon
    "stream": {"batch_size": None, "batch_tokens": 50, "accumulate": 2, "steps": 9},  # with workers
    "by reward": {"batch_size": 4, "reward": RewardConfig("f1", samples=3, max_new_tokens=6)},
    "two processes": {"batch_size": 2, "devices": 2},
    "divided among two": {"batch_size": 2, "devices": 2, "sharded": True, "save_every": 2},  # after validation, too
}


def config_of(way: str, folder: Path, out: Path) -> TrainConfig:
    """Dropout, random crops, broken pictures; validation and saves out of step with each other and with epochs."""
    augment = AugmentConfig(crop=0.6, mirror=True, randaugment=1)
    settings = {"epochs": 2, "val_every": 4, "save_every": 3, "augment": augment}
    config = wall_config(folder, out, **{**settings, **WAYS[way]})
    config.model.gpt.dropout = 0.1
    if way in ("packed", "stream"):
        config.data.workers = 1
    if way == "packed":
        config.optimizer.muon = 0.01
    if way == "stream":
        config.data.format, config.data.path = "hf_stream", str(folder / "stream")
    return config


@dataclass(frozen=True)
class Ended:
    """How the processes of a run ended, and where it is."""

    codes: list[int]
    out: Path


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[tuple[str, str], Ended]:
    """Runs by their way and how they were ended; each goes on until it ends by itself."""
    place = tmp_path_factory.mktemp("runs")
    folder = write_walls(place / "walls", train=17, dev=9, broken=("train", "dev"))
    write_stream(folder)
    moments = random.Random(0)
    kills = {
        "SIGKILL": [
            ("state", 2),  # the first is half written
            ("loss", moments.randint(4, 7)),  # the first is there, the second not
            ("checkpoint", moments.randint(1, 4)),
            ("drop", 6),
            ("loss", moments.randint(4, 7)),
        ],
        "SIGTERM": [("loss", 3), ("loss", 2, "all"), ("validation", 1), ("validation", 1), ("validation", 8)],
        "never": [],
    }
    kills_of_two = {
        "SIGKILL": [("state", 2, "all"), ("loss", moments.randint(4, 7), "all")],
        "SIGTERM": [("loss", 3, "first"), ("validation", 1, "second"), ("loss", 2, "all")],
        "never": [],
    }
    asked = [(way, how) for way in WAYS for how in kills]
    runs = []
    for way, how in asked:
        config = config_of(way, folder, place / f"{way} {how}")
        if how == "SIGTERM":
            config.save_every = 1000
        save_config(config)
        strikes = (kills if config.devices == 1 else kills_of_two)[how]
        runs.append((f"{config.out}/config.yaml", how.replace("never", "SIGKILL"), strikes))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "kills.py"), json.dumps(runs)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    codes = [json.loads(line) for line in done.stdout.splitlines()]
    return {(way, how): Ended(ends, place / f"{way} {how}") for (way, how), ends in zip(asked, codes, strict=True)}


def what_was_learned(log: Path) -> list[dict[str, str]]:
    """The log without what it tells of time and memory."""
    with log.open(newline="") as file:
        measured = ("tokens_per_second", "wait", "memory_gb", "supervised", "fill")  # since the process began
        return [{name: value for name, value in row.items() if name not in measured} for row in csv.DictReader(file)]


def left_by(out: Path) -> dict:
    """All that a run leaves: weights bit for bit, what is told of them, the log, what else lies there."""
    kept = {name: checkpoint.resolve(out / name) for name in ("best", "last")}
    return {
        **{name: (path / "model.safetensors").read_bytes() for name, path in kept.items()},
        **{f"{name} told": checkpoint.read_training(path) for name, path in kept.items()},
        "log": what_was_learned(out / "metrics.csv"),
        "files": sorted(str(path.relative_to(out)) for path in out.rglob("*.png")),
        "state": states(out),
    }


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_any_moment_and_resumed_is_never_killed(ended, way):
    killed = ended[way, "SIGKILL"]
    assert killed.codes[-1] == 0
    assert set(killed.codes) == {-9, 0}  # nothing else ended it
    assert killed.codes.count(-9) >= len(killed.codes) - 2  # one kill may come too late
    assert left_by(killed.out) == left_by(ended[way, "never"].out)


@pytest.mark.parametrize("way", WAYS)
def test_told_to_end_it_keeps_its_state_at_once(ended, way):
    """Though none would be due."""
    told = ended[way, "SIGTERM"]
    assert told.codes[-1] == 0
    assert set(told.codes[:-1]) == {128 + signal.SIGTERM}
    assert left_by(told.out) == left_by(ended[way, "never"].out)


def test_a_divided_model_is_kept_as_the_whole_one(ended):
    """Its last checkpoint is that of processes which have it whole."""
    whole, divided = (
        checkpoint.load(ended[way, "never"].out / "last")[0].state_dict()
        for way in ("two processes", "divided among two")
    )
    assert whole.keys() == divided.keys()
    for name, tensor in whole.items():
        assert torch.allclose(tensor, divided[name], rtol=1e-3, atol=1e-4), name


def a_state(tmp_path: Path, **changes) -> TrainConfig:
    """A run that stopped in its fifth step."""
    config = config_of("by samples", write_walls(tmp_path / "walls", train=17, dev=4), tmp_path / "run")
    config = dataclasses.replace(config, **changes)
    train_until(config, losses=4)
    assert [path.name for path in states(tmp_path / "run")] == ["000000003"]
    return config


@pytest.mark.parametrize(("added", "told"), [(1, "number of samples: 17, not 18"), (0, "tokenizer")])
def test_a_run_is_not_resumed_on_other_data(tmp_path, added, told):
    """Its order, and the tokenizer that is trained on them, would be others."""
    config = a_state(tmp_path)
    captions = tmp_path / "walls" / "captions.csv"
    lines = captions.read_text().splitlines()
    more = [lines[1].replace("0.png", "more.png")] if added else []
    if not added:
        lines[1] = lines[1].replace(" wall", " well")
    (tmp_path / "walls" / "more.png").touch()
    captions.write_text("\n".join([*lines, *more]) + "\n")
    with pytest.raises(TrainingError, match=f"is of a run with another {told}"):
        train(dataclasses.replace(config, resume=True))


def test_a_run_that_is_not_finished_is_not_written_over(tmp_path):
    config = a_state(tmp_path)
    with pytest.raises(TrainingError, match=r"holds the state of a run that is not finished; go on with --resume true"):
        train(config)


def test_only_the_same_run_is_resumed(tmp_path):
    config = a_state(tmp_path)
    changed = dataclasses.replace(config, resume=True, batch_size=5)
    with pytest.raises(TrainingError, match=r"is of a run with another batch_size: 4, not 5"):
        train(changed)
    moved = dataclasses.replace(config, resume=True, save_every=2, keep=1)  # which do not change what is learned
    moved.data.workers = 1
    train(moved)
    assert states(tmp_path / "run") == []


def test_a_run_that_came_to_its_end_is_not_trained_again_when_it_is_resumed(tmp_path, monkeypatch):
    """Whoever was stopped while it was evaluated, or does not know, says --resume true."""
    config = config_of(
        "by samples", write_walls(tmp_path / "walls", train=17, dev=4, broken=("train",)), tmp_path / "run"
    )
    first = train(config)
    left = left_by(tmp_path / "run")
    monkeypatch.setattr(MultimodalModule, "training_step", lambda *_: pytest.fail("trained again"))
    again = train(dataclasses.replace(config, resume=True))
    assert left_by(tmp_path / "run") == left
    assert (again.broken, len(again.val_samples)) == (first.broken, 4)
    assert len(again.broken) == 1
    assert again.seconds == pytest.approx(first.seconds, abs=0.1)
    with pytest.raises(TrainingError, match=r"run: is of a run with another epochs: 2, not 3; .*begin anew in another"):
        train(dataclasses.replace(config, resume=True, epochs=3))


def test_without_resume_a_run_begins_anew_where_one_came_to_its_end(tmp_path):
    config = config_of("by samples", write_walls(tmp_path / "walls", train=17, dev=4), tmp_path / "run")
    train(config)
    log = what_was_learned(tmp_path / "run" / "metrics.csv")
    train(dataclasses.replace(config, seed=1))
    assert what_was_learned(tmp_path / "run" / "metrics.csv") != log


def test_the_time_of_a_resumed_run_is_that_of_all_its_parts(tmp_path):
    config = a_state(tmp_path)
    state = states(tmp_path / "run")[-1]
    values = read_values(state)
    assert values["seconds"] > 0
    (state / "state.json").write_text(json.dumps({**values, "seconds": 5000.0}))
    assert 5000 < train(dataclasses.replace(config, resume=True)).seconds < 5600


def test_a_run_is_resumed_by_as_many_processes(tmp_path):
    """Those of torchrun, of which the configuration does not tell."""
    config = a_state(tmp_path)
    state = states(tmp_path / "run")[-1]
    values = read_values(state)
    (state / "state.json").write_text(json.dumps({**values, "processes": 2 * values["processes"]}))
    with pytest.raises(TrainingError, match=r"000000003: is of 2 processes, .*; resume with as many, not 1"):
        train(dataclasses.replace(config, resume=True))
    (state / "state.json").write_text(json.dumps(values))
    train(dataclasses.replace(config, resume=True))


def test_a_state_that_cannot_be_read_is_named(tmp_path):
    config = a_state(tmp_path)
    state = states(tmp_path / "run")[-1]
    (state / "state.json").write_text("{")
    with pytest.raises(TrainingError, match=r"000000003: cannot be read: .*remove it"):
        train(dataclasses.replace(config, resume=True))


def saved(out: Path, steps: list[int], keep: int) -> list[str]:
    model = torch.nn.Linear(2, 2)
    for step in steps:
        save_state(out, step, model, torch.optim.AdamW(model.parameters()), {"step": step}, keep)
    return [path.name for path in states(out)]


def test_the_last_ones_are_kept(tmp_path):
    assert saved(tmp_path, [1, 2, 30, 4], keep=2) == ["000000004", "000000030"]
    assert [read_values(path)["step"] for path in states(tmp_path)] == [4, 30]


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    saved(tmp_path, [1], keep=1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmgpt.training.state.save_file", full)
    with pytest.raises(WriteError, match=r"the state of step 2 is not saved: .*No space left on device"):
        saved(tmp_path, [2], keep=1)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["000000001"]


class After(L.Callback):
    """Something that happens in the middle of the second epoch, after its first step, which was validated."""

    def __init__(self, happens: Callable[[MultimodalModule], object]):
        self.happens = happens

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_) -> None:
        if trainer.global_step == 4:
            assert isinstance(pl_module, MultimodalModule)
            self.happens(pl_module)


def sharded(folder: Path, out: Path) -> TrainConfig:
    config = wall_config(folder, out, epochs=3, batch_size=6, val_every=4, save_every=3)
    config.data.format, config.data.path, config.data.workers = "webdataset", str(folder / "shards"), 1
    return config


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> tuple[Path, dict]:
    """Walls in shards, and what an undisturbed run on them leaves."""
    place = tmp_path_factory.mktemp("shards")
    folder = write_walls(place / "walls", train=18, dev=4)
    write_shards(folder)
    train(sharded(folder, place / "run"))
    return folder, left_by(place / "run")


def test_a_shard_that_goes_missing_in_an_epoch_stops_the_run_which_goes_on_when_it_is_back(shards, tmp_path):
    folder, undisturbed = shards
    config, shard = sharded(folder, tmp_path), folder / "shards" / "train-1.tar"
    away = shard.with_suffix(".away")
    with pytest.raises(DataError, match=r"train-1\.tar: \d+\.txt: cannot be read: No such file or directory"):
        fit(config, read(config), [After(lambda _: shard.rename(away))])
    away.rename(shard)
    assert_goes_on(config, undisturbed)


def test_a_worker_that_is_killed_stops_the_run_which_goes_on_when_asked(shards, tmp_path):
    folder, undisturbed = shards
    config, before = sharded(folder, tmp_path), set(multiprocessing.active_children())

    def kill(_: MultimodalModule) -> None:
        workers = set(multiprocessing.active_children()) - before
        assert workers
        for worker in workers:
            worker.kill()

    with pytest.raises(DataError, match="a data worker died: "):
        fit(config, read(config), [After(kill)])
    assert_goes_on(config, undisturbed)


def test_a_loss_that_is_not_finite_stops_the_run_which_goes_on_from_before_it(shards, tmp_path):
    folder, undisturbed = shards
    config = sharded(folder, tmp_path)
    with pytest.raises(TrainingError, match=r"step 5: the gradient is not finite \(loss nan\)"):
        fit(config, read(config), [After(lambda module: module.model.gpt.embedding.weight.data.fill_(torch.nan))])
    assert_goes_on(config, undisturbed)


def assert_goes_on(config: TrainConfig, undisturbed: dict) -> None:
    """Whatever stopped a run after its fourth step, what it kept is whole and ends as if nothing had been."""
    out = Path(config.out)
    assert [path.name for path in states(out)] == ["000000003"]
    for name in ("best", "last"):
        model, _ = checkpoint.load(out / name)
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
        assert checkpoint.read_training(checkpoint.resolve(out / name))["steps"] == 4
    train(dataclasses.replace(config, resume=True))
    assert left_by(out) == undisturbed
