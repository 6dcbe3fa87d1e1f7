"""Makes a trial of a run, and the run, in two child processes, and prints what memory the one told and the other had.

python memories.py CONFIG.yaml

Forking is quicker than importing torch again for each.
"""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import timm  # noqa: F401  so that children need not import it
import torch

from mmgpt.cli.train import parse
from mmgpt.cli.train import run as train_and_evaluate
from mmgpt.run_config import TrainConfig
from mmgpt.training import trial
from mmgpt.training.memory import peak_memory


def told(config: TrainConfig) -> int:
    findings = trial.Findings(Path(config.out) / "trial" / "result.json")
    trial.run(config, findings, available=1 << 40)
    return findings.values["memory"]


def had(config: TrainConfig) -> int:
    train_and_evaluate(replace(config, out=f"{config.out}/run"))
    return peak_memory()


def start(measure: Callable[[TrainConfig], int], config: TrainConfig) -> tuple[int, int]:
    """The child, and where it will write its number."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        os.write(writer, str(measure(config)).encode())
        os._exit(0)
    os.close(writer)
    return child, reader


def main(path: str) -> None:
    shutil.which = lambda *_: None  # METEOR's Java, as in the tests
    torch.set_num_threads(1)  # no pool of threads, which a fork would lose
    config = parse(["--config", path])
    for child, reader in [start(measure, config) for measure in (told, had)]:
        with os.fdopen(reader) as answer:
            print(answer.read())
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
