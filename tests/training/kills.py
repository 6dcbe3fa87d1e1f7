"""Trains in child processes that die at told moments, each going on where the one before it died; a script.

python kills.py '[["CONFIG.yaml", "SIGKILL", [["loss", 7, "all"], ["state", 2, "all"], ...]], ...]'

For each run the configuration, the signal, and when it comes: a function, which of its calls is not survived, and which
processes are struck: the first, the second (by its own calls), or all, with the data workers of the first. The last
child of a run, or the last children of several processes, are left alone. Forking is quicker than importing torch again
for each.
"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

import datasets  # noqa: F401  so that children need not import these
import timm  # noqa: F401
import torch

import mmgpt.checkpoint
import mmgpt.training.state
from mmgpt.cli.train import parse
from mmgpt.model import MultimodalGPT
from mmgpt.run_config import TrainConfig
from mmgpt.training.module import MultimodalModule
from mmgpt.training.run import train

PLACES = {
    "loss": (MultimodalGPT, "loss"),  # in a step, between accumulated batches too, and in validation
    "validation": (MultimodalModule, "validation_step"),
    "state": (mmgpt.training.state, "save_file"),  # while a state is written: two calls each, three with averages
    "drop": (mmgpt.training.state.shutil, "rmtree"),  # while an old one is removed
    "checkpoint": (mmgpt.checkpoint, "sync"),  # while a checkpoint is written
}


HANGS = 120  # seconds after which processes that wait for each other in vain are ended


def deadly(place: str, call: int, others: Sequence[int] | None, how: signal.Signals) -> None:
    """Strike this process in that call; unless they are None, these others and all data workers before it."""
    owner, name = PLACES[place]
    function, calls = getattr(owner, name), []

    def instead(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            workers = [] if others is None else [str(worker.pid) for worker in multiprocessing.active_children()]
            if workers:  # by another process: they heed their parent in a way of their own
                subprocess.run(["sh", "-c", f"kill -{how:d} {' '.join(workers)}; sleep 0.3"], check=True)
            for process in (*(others or ()), os.getpid()):
                os.kill(process, how)
        return function(*args, **kwargs)

    setattr(owner, name, instead)


def as_torchrun(rank: int, processes: int, port: int) -> None:
    """Tell this process which one of several it is."""
    environment = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "kills",
    }  # fmt: skip
    os.environ.update({name: str(value) for name, value in environment.items()})


def children(config: TrainConfig, how: signal.Signals, place: str = "", call: int = 0, who: str = "first") -> int:
    """How they ended, all alike: 0, or minus the signal, or their exit code."""
    started: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for rank in reversed(range(config.devices)):  # so that the first knows the others
        process = os.fork()
        if process == 0:
            os.dup2(2, 1)  # standard output is for the codes
            signal.alarm(HANGS)
            if config.devices > 1:
                as_torchrun(rank, config.devices, port)
            if place and rank == (who == "second"):
                deadly(place, call, started if who == "all" else None, how)
            try:
                train(config)
            except SystemExit as stop:
                os._exit(stop.code if isinstance(stop.code, int) else 1)
            os._exit(0)
        started.append(process)
    codes = {os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started}
    if len(codes) > 1:
        sys.exit(f"the processes of a run ended with {codes} after {place} {call} of {who}")
    return codes.pop()


def main(runs: str) -> None:
    os.fsync = lambda _: None  # processes die, the machine does not: a file need not be on the disk to outlive them
    torch.set_num_threads(1)  # no pool of threads, which a fork would lose
    for path, how, kills in json.loads(runs):
        config = parse(["--config", path, "--resume", "true"])
        print(json.dumps([children(config, signal.Signals[how], *kill) for kill in (*kills, ())]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
