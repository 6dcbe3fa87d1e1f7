"""mmgpt plan on files: a trial in a process of its own."""

import json
import subprocess
import sys

import pytest
from walls import wall_config, write_walls

import mmgpt.training.plan
from mmgpt.cli.train import save_config
from mmgpt.training import trial
from mmgpt.training.memory import available_memory
from mmgpt.training.plan import Plan


@pytest.fixture
def walls(tmp_path):
    save_config(wall_config(write_walls(tmp_path / "data"), tmp_path / "run"))
    return tmp_path / "run" / "config.yaml"


@pytest.fixture
def trial_here(monkeypatch) -> None:
    """In this process, which has imported torch already."""

    def run(command: list[str], **_) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", command[2:])
        trial.main()
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)


def test_a_run_of_two_processes_that_fits_is_told_and_nothing_is_left_behind(
    mmgpt_command, walls, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", "")  # no Java, with which METEOR's program takes ten seconds to begin
    free = available_memory()
    cache = tmp_path / "features"
    settings = ("--epochs", 5, "--out", walls.parent, "--devices", 2, "--train", "[adapters, gpt]", "--cache", cache)
    told = mmgpt_command("plan", "--config", walls, *settings, "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert found["fits"]
    assert free / 4 < found["available"] < free * 3 / 4  # half of it, for each
    assert (found["samples"], found["steps"]) == (9, 5)
    assert 1e8 < found["memory"] < found["available"]
    assert found["features"] > 0
    assert 0 < found["seconds"]["first_epoch"] < found["seconds"]["training"]
    assert not cache.exists()
    assert [path.name for path in walls.parent.iterdir()] == ["config.yaml"]


@pytest.mark.usefixtures("trial_here")
def test_a_run_that_does_not_fit_is_told_with_what_to_do(mmgpt_command, walls, monkeypatch):
    monkeypatch.setattr(mmgpt.training.plan, "available_memory", lambda: 100_000)
    told = mmgpt_command("plan", walls)
    assert told.code == 1
    assert "does not fit: weights, gradients and the optimizer alone do not fit" in told.out
    assert "checkpoint_activations" in told.out
    assert ["gpt", "71,360", "0"] in [line.split() for line in told.out.splitlines()]


def test_the_first_epoch_is_told_apart_where_it_fills_a_cache(mmgpt_command, walls, monkeypatch):
    seconds = {"training": 900.0, "validation": 30.0, "evaluation": 20.0, "first_epoch": 480.0}
    found = Plan({}, 9, 3, 300, "cpu", 10**9, 0, 10**10, seconds, 4 * 10**9, None)
    monkeypatch.setattr(mmgpt.training.plan, "plan", lambda config: found)
    told = " ".join(mmgpt_command("plan", walls, "--cache_gb", 1).out.split())
    assert "features 4.00 GB to keep; the cache has room for 1.00 GB: raise cache_gb" in told
    assert "15 min (3 s a step; 8 min of them the first epoch, which fills the cache), and 30 s of validation" in told


@pytest.mark.usefixtures("trial_here")
def test_what_the_run_would_stop_at_stops_the_plan(mmgpt_command, walls, tmp_path):
    told = mmgpt_command("plan", "--config", walls, "--data.path", tmp_path / "no")
    assert f"{tmp_path / 'no'}: no such file or folder" in told.error(1)
