"""Trains in child processes that die at told moments, each going on where the one before it died; a script.

python kills.py '[["CONFIG.yaml", "SIGKILL", [["loss", 7], ["state", 2], ...]], ...]'

For each run the configuration, the signal, and when it comes: a function and which of its calls is not survived. The
last child of a run is left alone. Forking is quicker than importing torch again for each.
"""

import json
import os
import signal
import sys

import datasets  # noqa: F401  so that children need not import these
import timm  # noqa: F401
import torch

import mmgpt.checkpoint
import mmgpt.training.state
from mmgpt.cli.train import parse
from mmgpt.model import MultimodalGPT
from mmgpt.training.module import MultimodalModule
from mmgpt.training.run import train

PLACES = {
    "loss": (MultimodalGPT, "loss"),  # in a step, between accumulated batches too, and in validation
    "validation": (MultimodalModule, "validation_step"),
    "state": (mmgpt.training.state, "save_file"),  # while a state is written: two calls each
    "drop": (mmgpt.training.state.shutil, "rmtree"),  # while an old one is removed
    "checkpoint": (mmgpt.checkpoint, "sync"),  # while a checkpoint is written
}


def deadly(place: str, call: int, how: signal.Signals) -> None:
    owner, name = PLACES[place]
    function, calls = getattr(owner, name), []

    def instead(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), how)
        return function(*args, **kwargs)

    setattr(owner, name, instead)


def child(arguments: list[str], place: str, call: int, how: signal.Signals) -> int:
    """How it ended: 0, or minus the signal, or its exit code."""
    process = os.fork()
    if process == 0:
        os.dup2(2, 1)  # standard output is for the codes
        if place:
            deadly(place, call, how)
        try:
            train(parse(arguments))
        except SystemExit as stop:
            os._exit(stop.code if isinstance(stop.code, int) else 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(runs: str) -> None:
    torch.set_num_threads(1)  # no pool of threads, which a fork would lose
    for config, how, kills in json.loads(runs):
        arguments = ["--config", config, "--resume", "true"]
        print(json.dumps([child(arguments, *kill, signal.Signals[how]) for kill in (*kills, ("", 0))]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
