"""Two processes learn what one learns, whatever media each of them has."""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import ranks
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from safetensors.torch import load_file
from torch import nn
from walls import wall_config, write_shards, write_stream, write_walls

from mmgpt import checkpoint
from mmgpt.cli.train import save_config
from mmgpt.config import GPTConfig, ModelConfig
from mmgpt.errors import ConfigError
from mmgpt.run_config import LoraConfig, OptimizerConfig, TrainConfig
from mmgpt.training.parallel import processes, zero_of

CASES = [
    "text and sound",
    "pictures and clips",
    "sound and pictures",
    "nothing for the second",
    "encoders alike",
    "clip",
    "siglip",
    "text and sound beside the sequence",
    "sound and pictures accumulated",
    "by reward",
]
WALLS = 40  # and a broken one, so that they do not divide evenly


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> dict[int, Path]:
    """Where one process and two have left their weights."""
    places = {count: tmp_path_factory.mktemp(f"processes{count}") for count in (1, 2)}
    write_stream(write_walls(places[2] / "walls", train=WALLS, broken=("train",)))
    write_shards(places[2] / "walls")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*torchrun, ranks.__file__, str(places[2])], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as two:
        with warnings.catch_warnings(action="ignore"):
            ranks.main(places[1])
        output, _ = two.communicate(timeout=280)
    assert two.returncode == 0, output.decode()
    return places


@pytest.mark.parametrize("case", [*CASES, *(f"{case} divided" for case in CASES[:5])])
def test_two_processes_learn_what_one_learns(learned, case):
    """Each with the whole model (DDP), or with the model divided among them (FSDP2)."""
    one, two = (load_file(learned[count] / f"{case}.safetensors") for count in (1, 2))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], rtol=1e-5, atol=1e-6), name


def test_the_cases_differ(learned):
    losses = {case: float(load_file(learned[1] / f"{case}.safetensors")["val_loss"]) for case in CASES}
    # Accumulation alone changes nothing.
    assert losses["sound and pictures"] == pytest.approx(losses["sound and pictures accumulated"], rel=1e-6)
    assert len({round(loss, 5) for loss in losses.values()}) == len(CASES) - 1


def test_where_the_loss_is_not_finite_every_process_names_the_samples_of_all(learned):
    told = [(learned[2] / f"error.{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1]
    assert "step 1: the gradient is not finite (loss nan)" in told[0]
    assert '"x:0, x:2, x:1, x:3"' in told[0]


def test_a_divided_model_is_whole_in_the_first_process_alone(learned):
    """The others have one tensor and the one before it."""
    most = [int((learned[2] / f"alive.{rank}").read_text()) for rank in range(2)]
    assert most[1] <= 2 < 20 < most[0]


def test_a_divided_model_answers_what_a_whole_one_does_and_goes_on_learning(learned):
    """But for the sample that one of its processes cannot read; that one would have said nothing, too."""
    whole, divided = (json.loads((learned[count] / "shown.json").read_text()) for count in (1, 2))
    assert all(answers.pop("x:9") for answers in whole)
    assert divided == whole
    assert len(divided) == 2
    assert len({answer for answers in divided for answer in answers.values()}) > 2
    one, two = (load_file(learned[count] / "shown.safetensors") for count in (1, 2))
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("source", ["webdataset", "hf_stream"])
def test_two_processes_learn_each_sample_once_in_an_epoch_and_go_on_where_they_stood(learned, source):
    """With batches packed by tokens, of samples that any process can reach, and of a stream that all read."""
    place = learned[2]
    first, second = (json.loads((place / f"{source}.{rank}.json").read_text()) for rank in range(2))
    if source == "webdataset":
        walls = [f"{place}/walls/shards/train-{i // 6}.tar: {i}" for i in range(WALLS)]
    else:
        walls = [f"{place}/walls/stream: row {i}" for i in range(WALLS)]
    epochs: list[list[str]] = [[]]
    for one, other in zip(first["whole"], second["whole"], strict=True):
        epochs[-1] += one["samples"] + other["samples"]
        assert one["after"]["epoch"] == other["after"]["epoch"]
        if one["after"]["epoch"] == len(epochs):
            epochs.append([])
    *over, begun = epochs
    assert len(over) == 2
    assert [sorted(epoch) for epoch in over] == [sorted(walls)] * 2
    assert 0 < len(begun) == len(set(begun)) < WALLS
    for own in (first, second):
        kept = own["died"][ranks.KEPT - 1]["after"]  # in an epoch, while documents wait for their batch
        assert kept["waiting"]
        assert kept["next"] < WALLS // 2
        assert own["died"] == own["whole"][: ranks.LAST]
        assert own["rest"] == own["whole"][ranks.KEPT :]
    whole, resumed = (checkpoint.resolve(place / f"{source} {name}" / "last") for name in ("whole", "resumed"))
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def test_zero_gives_each_trained_parameter_a_gradient_of_zero():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[1].weight.requires_grad_(False)
    zero_of(model).backward()
    assert model[1].weight.grad is None
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_processes_are_those_asked_for_or_those_torchrun_started(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert processes(TrainConfig()) == {"accelerator": "cpu", "devices": 1, "num_nodes": 1}
    two = processes(TrainConfig(devices=2))
    assert isinstance(two.pop("strategy"), DDPStrategy)
    assert two == {"accelerator": "cpu", "devices": 2, "num_nodes": 1}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    started = processes(TrainConfig())
    assert (started["devices"], started["num_nodes"], type(started["strategy"])) == (4, 2, DDPStrategy)
    strategy = processes(TrainConfig(sharded=True))["strategy"]
    assert isinstance(strategy, ModelParallelStrategy)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="devices: 4, but this machine has 2 GPUs"):
        processes(TrainConfig())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (TrainConfig(sharded=True), "one process alone"),
        (TrainConfig(sharded=True, devices=2, optimizer=OptimizerConfig(muon=0.1)), "Muon needs whole matrices"),
        (TrainConfig(sharded=True, devices=2, lora=LoraConfig()), "LoRA"),
        (TrainConfig(sharded=True, devices=2, model=ModelConfig(GPTConfig(cross="inside"))), "cross-attention"),
    ],
)
def test_what_cannot_be_divided_is_refused(config, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=f"sharded: .*{reason}"):
        processes(config)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_none_is_left_waiting_for_a_first_process_that_was_killed_at_the_start(tmp_path):
    """Before the second has come so far as to look for it."""
    save_config(wall_config(write_walls(tmp_path / "walls"), tmp_path / "run", devices=2))
    command = [Path(sys.executable).with_name("mmgpt"), "train", tmp_path / "run" / "config.yaml"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
        while not (second := children.read_text().split()):
            assert first.poll() is None
            time.sleep(0.1)
        first.kill()
    ended = time.monotonic() + 60
    while is_running(second[0]):
        assert time.monotonic() < ended, "the second process is still there"
        time.sleep(0.1)


def is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
