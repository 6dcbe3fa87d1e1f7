"""A trial of a run, and what is predicted from it."""

import json
import math
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tiny import some_audio, some_image
from walls import wall_config, write_walls

from mmgpt import checkpoint
from mmgpt.cli.train import save_config
from mmgpt.content import Message
from mmgpt.data.dataset import ExampleDataset
from mmgpt.data.packing import cost
from mmgpt.data.sample import Sample
from mmgpt.encoders import ImageEncoder
from mmgpt.errors import TrainingError
from mmgpt.feature_cache import HEADER
from mmgpt.processor import Processor
from mmgpt.training import trial
from mmgpt.training.plan import plan
from mmgpt.training.run import Data, read, train
from mmgpt.training.trial import TIMED, WARM_UP, Findings, NoRoomError, Sized, measure, trial_samples


@pytest.fixture
def walls(tmp_path):
    return wall_config(write_walls(tmp_path / "data", train=12, broken=("train",)), tmp_path / "run", epochs=3)


def sized(number: int, **costs: int) -> Sized:
    return Sized(Sample((Message.of("user", str(number)),), ("yes",), "ask", f"x:{number}"), costs)


def test_the_trial_counts_what_the_run_then_has(walls, tmp_path, monkeypatch):
    findings = Findings(tmp_path / "trial" / "result.json")
    monkeypatch.setattr("mmgpt.training.run.WandbLogger", lambda **_: pytest.fail("the trial is told to wandb"))
    trial.run(replace(walls, train=["adapters", "gpt"], loggers=["wandb"]), findings, 1 << 40)
    found = json.loads(findings.path.read_text())
    assert found == findings.values
    run = train(walls)
    told = checkpoint.read_training(checkpoint.resolve(run.out / "last"))
    assert (found["steps"], found["samples"], found["validation_samples"]) == (told["steps"], 13, 3)
    sizes = checkpoint.read_sizes(checkpoint.resolve(run.out / "last"))
    assert {name: sum(count.values()) for name, count in found["modules"].items()} == sizes
    assert {name for name, count in found["modules"].items() if count["frozen"]} == {"encoders.image"}
    assert found["modules"]["encoders.image"]["trained"] == 0
    assert all(0 < seconds < 60 for seconds in found["seconds"].values())
    assert found["memory"] > 1e8


def test_costs_are_those_the_loader_packs_by_and_broken_samples_are_left_out(walls, model, processor, tokenizer):
    data = read(walls)
    config = replace(walls, model=model.config)
    found, share = measure(config, replace(data, tokenizer=tokenizer))
    assert share == 12 / 13
    assert len(found) == 12
    examples = ExampleDataset(data.train, Processor(model.config, tokenizer))
    for one in found:
        assert one.costs["all"] == cost(examples.encode(one.sample))
        assert one.costs["image"] == processor.media_input(some_image(0)).grid.count
    assert [one.sample for one in found] != [one for one in data.train if one in [s.sample for s in found]]  # shuffled

    texts = [Sample((Message.of("user", some_audio(0), "x"),), ("y" * 30, "y"), "ask", "x:0")]
    alone = Data(texts, texts, tokenizer, shuffle=False)
    budget = max(cost([one]) for one in ExampleDataset(texts, processor)[0])
    (whole,), _ = measure(replace(config, batch_size=None, batch_tokens=budget), alone)
    (part,), _ = measure(replace(config, batch_size=None, batch_tokens=budget - 1), alone)
    assert part.costs["all"] < whole.costs["all"]


def test_the_last_steps_are_on_the_largest_batches_to_be_expected(walls):
    texts = [sized(i, all=2 if i % 5 else 500) for i in range(100)]
    pictures = [sized(100 + i, all=20, image=10) for i in range(100)]
    some = [one for pair in zip(texts, pictures, strict=True) for one in pair]
    by_sample = {id(one.sample): one for one in some}
    config = replace(walls, batch_size=4, accumulate=2)
    chosen = [by_sample[id(one)] for one in trial_samples(config, some, batches=3000)]
    batches = [chosen[i : i + 4] for i in range(0, len(chosen), 4)]
    largest = batches[2 * (WARM_UP + TIMED) :]
    assert chosen[:32] == some[:32]
    assert len(largest) == 2 * 2  # by all tokens and by those of pictures; each as many times as there are in a step
    assert largest[0] == largest[1] != largest[2] == largest[3]
    costs = [sum(one.costs["all"] for one in batch) for batch in largest]
    assert 1500 < costs[0] <= 2000  # of 3000 batches some have three of the long texts, few have four
    assert all("image" in one.costs for one in largest[2])  # one batch in sixteen is of pictures alone

    once = trial_samples(replace(config, accumulate=1), some, batches=1)
    assert len(once) == 4 * (WARM_UP + TIMED + 1)  # one batch, which is the largest of its kind by either measure


def test_packed_batches_are_all_typical(walls):
    some = [sized(i, all=10) for i in range(7)]
    config = replace(walls, batch_size=None, batch_tokens=100)
    chosen = trial_samples(config, some, batches=1000)
    assert len(chosen) == (WARM_UP + TIMED + 1) * 10
    assert chosen[:8] == [one.sample for one in [*some, some[0]]]


def test_steps_of_packed_batches_are_near_those_made(walls, tmp_path):
    config = replace(walls, batch_size=None, batch_tokens=60)
    findings = Findings(tmp_path / "trial" / "result.json")
    trial.run(config, findings, 1 << 40)
    run = train(config)
    made = checkpoint.read_training(checkpoint.resolve(run.out / "last"))["steps"]
    assert math.isclose(findings.values["steps"], made, rel_tol=0.25)


def test_of_a_run_with_a_cache_the_first_epoch_alone_is_told_as_slow_as_its_encoder(walls, tmp_path, monkeypatch):
    def slowly(self, pictures):
        time.sleep(0.1 * len(pictures))
        return forward(self, pictures)

    forward = ImageEncoder.forward
    monkeypatch.setattr(ImageEncoder, "forward", slowly)
    config = replace(walls, train=["adapters", "gpt"], epochs=6, cache=str(tmp_path / "features"))
    findings = Findings(tmp_path / "trial" / "result.json")
    trial.run(config, findings, 1 << 40)
    assert not Path(str(config.cache)).exists()
    told = findings.values["seconds"]
    slept = 0.1 * 12
    assert told["first_epoch"] > slept
    later = told["training"] - told["first_epoch"]
    assert later < (config.epochs - 1) * slept  # which later epochs are spared
    assert findings.values["features"] == (12 + 3) * (HEADER.size + 16 * 4)  # one token of 16 floats a picture

    half = findings.values["features"] / 2 / 1e9
    trial.run(replace(config, cache_gb=half), findings, 1 << 40)
    told = findings.values["seconds"]
    assert told["training"] - told["first_epoch"] > later + 0.4 * (config.epochs - 1) * slept

    trial.run(replace(config, epochs=1), findings, 1 << 40)
    alone = findings.values["seconds"]
    assert "first_epoch" not in alone
    assert alone["training"] > slept


@pytest.mark.parametrize(
    ("changes", "available", "told"),
    [
        ({"train": ["gtp"]}, 1 << 40, {"error": "train: nothing is named 'gtp'"}),
        ({}, 1_000_000, {"no_room": "weights, gradients and the optimizer alone do not fit"}),
    ],
)
def test_what_ends_a_trial_is_handed_over(walls, tmp_path, monkeypatch, changes, available, told):
    (tmp_path / "config.json").write_text(json.dumps(asdict(replace(walls, **changes))))
    result = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["trial", str(tmp_path / "config.json"), str(result), str(available)])
    trial.main()
    found = json.loads(result.read_text())
    for name, value in told.items():
        assert value in str(found[name])
    assert "seconds" not in found


def test_room_is_needed_for_the_weights_alone_even_of_what_is_frozen(walls, tmp_path):
    findings = Findings(tmp_path / "trial" / "result.json")
    with pytest.raises(NoRoomError):
        trial.run(walls, findings, 1_000)
    counts = findings.values["modules"].values()
    assert findings.values["memory"] == 4 * sum(3 * count["trained"] + count["frozen"] for count in counts)


def test_a_run_has_the_memory_that_was_told(walls):
    """Of a GPT of 20 M parameters: weights, gradients and optimizer are a third of it all."""
    walls.model.gpt = replace(walls.model.gpt, width=640, layers=4)
    save_config(replace(walls, epochs=1))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "memories.py"), f"{walls.out}/config.yaml"],
        stdout=subprocess.PIPE, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    told, had = map(int, done.stdout.split())
    assert told > 4 * 4 * 19.7e6
    assert told == pytest.approx(had, rel=0.15)


@pytest.fixture
def ended_trial(walls, tmp_path, monkeypatch):
    """ended_trial(found, "exit 0") -> Plan: what is told after a trial that found this and ended so."""

    def run(found: dict, end: str):
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nprintf %s {shlex.quote(json.dumps(found))} > "$4"\n{end}\n')
        script.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(script))
            return plan(walls)

    return run


def test_a_trial_that_the_system_ends_does_not_fit(ended_trial):
    told = ended_trial({"device": "cpu", "available": 1000, "memory": 900, "steps": 5}, "kill -9 $$")
    assert (told.fits, told.no_room) == (False, "the trial was ended by the system, which had no memory left")
    assert (told.memory, told.available, told.steps, told.seconds) == (900, 1000, 5, None)


@pytest.mark.parametrize(("device", "workers", "fits"), [("cpu", 400, True), ("cpu", 401, False), ("cuda", 401, True)])
def test_the_memory_of_data_workers_must_be_free_too(ended_trial, device, workers, fits):
    """That of a GPU, of which the trial was a part, is another."""
    found = {"device": device, "available": 1000, "memory": 600, "workers": workers, "seconds": {"training": 1.0}}
    told = ended_trial(found, "exit 0")
    assert (told.fits, told.no_room) == (fits, None if fits else "more memory than is free")
    assert told.seconds == ({"training": 1.0} if fits else None)


def test_a_trial_that_fails_for_another_reason_is_an_error(ended_trial):
    with pytest.raises(TrainingError, match=r"^the trial failed: ValueError: no$"):
        ended_trial({}, 'echo "ValueError: no" >&2; exit 1')
