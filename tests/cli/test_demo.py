"""The demo to its end, on few samples, and the commands that it tells the user to type next."""

import shlex

import pytest

from mmgpt import checkpoint
from mmgpt.cli.demo import GOALS, demo_config
from mmgpt.cli.train import parse
from mmgpt.data.world import tasks_of


def test_the_demo_runs_to_its_end_and_what_it_says_next_works(mmgpt_command, tmp_path):
    out = tmp_path / "my demo"  # a name that a shell must have quoted
    told = mmgpt_command("demo", "--samples", 64, "--held-out", 2, "--seed", 3, "--out", out)
    assert told.code == 0, told.err

    report = (out / "report.html").read_text(encoding="utf-8")
    assert "64 × 1 epoch<" in report
    training = checkpoint.read_training(checkpoint.resolve(out))
    for task in tasks_of():
        assert task in report
        assert task in told.out
    assert [score["task"] for score in training["scores"]] == list(tasks_of())
    assert all(1 <= score["n"] <= 2 for score in training["scores"])  # new combinations are told apart
    assert parse(["--config", str(out / "config.yaml")]) == demo_config(str(out), 64, 3)
    assert (out / "broken.txt").read_text() == ""

    lines = [line.strip() for line in told.out.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("uv run mmgpt ")]
    assert [command[3] for command in commands] == ["caption", "ask", "transcribe", "ask", "info"]
    assert sum("# truth: " in line for line in lines) == 3
    last = shlex.split(lines[-1], comments=True)
    assert last == ["uv", "run", "--extra", "serve", "mmgpt", "serve", str(out)]
    for command in commands:
        again = mmgpt_command(*command[3:])
        assert (again.code, again.err) == (0, ""), command
    for task in tasks_of():
        assert task in again.out  # mmgpt info tells the scores


def test_goals_are_about_tasks_that_there_are():
    assert GOALS.keys() <= set(tasks_of())


@pytest.mark.parametrize("samples", [0, -1])
def test_no_samples_are_bad_usage(mmgpt_command, tmp_path, samples):
    assert "data.samples" in mmgpt_command("demo", "--samples", samples, "--out", tmp_path).error(2)
