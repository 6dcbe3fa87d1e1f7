"""What a training run will take, told from a short trial of it in a process of its own, before it is paid for."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmgpt import errors
from mmgpt.errors import ConfigError, TrainingError
from mmgpt.run_config import TrainConfig
from mmgpt.training.memory import available_memory


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Args:
        modules: Parameters by module, trained and frozen.
        samples: To train on; None of a stream.
        validation_samples: To validate on.
        steps: Of the optimizer, in all.
        device: cpu or cuda.
        memory: Most bytes that the process will have (cpu) or allocate on the GPU (cuda); of several processes, each.
            Of a run that does not fit, what it had when it was known.
        workers: Bytes that the data workers have beside it.
        available: Bytes that are free for it; of several processes on a CPU, for each.
        seconds: Of training, of all validations, and at most of the evaluation at the end; None if it does not fit.
            Where later epochs take features from a cache, also of training in the first epoch.
        features: Bytes of all features that the cache is to hold, where there is one; what it has no room for is
            encoded in each epoch.
        no_room: Why it does not fit into memory; None if it does.
    """

    modules: dict[str, dict[str, int]]
    samples: int | None
    validation_samples: int
    steps: int
    device: str
    memory: int
    workers: int
    available: int
    seconds: dict[str, float] | None
    features: int | None
    no_room: str | None

    @property
    def fits(self) -> bool:
        return self.no_room is None


def plan(config: TrainConfig) -> Plan:
    """Predict what a run will take from a few of its steps; nothing is left behind.

    A cache of features is taken for empty at the run's beginning.

    Raises:
        MmgptError: what the run itself would stop at.
    """
    out = Path(config.out).absolute()
    # On the disk of the run, since checkpoints are large and other places may be memory.
    disk = next(folder for folder in (out, *out.parents) if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=disk) as folder:
        described, result = Path(folder, "config.json"), Path(folder, "result.json")
        described.write_text(json.dumps(dataclasses.asdict(config)))
        free = available_memory()
        command = [sys.executable, "-m", "mmgpt.training.trial", str(described), str(result), str(free)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        found: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
    if "error" in found:
        kind, message = found["error"]
        raise getattr(errors, kind, ConfigError)(message)
    no_room = found.get("no_room")
    memory, workers = found.get("memory", 0), found.get("workers", 0)
    if done.returncode == -9:
        no_room = "the trial was ended by the system, which had no memory left"
    elif done.returncode:
        raise TrainingError(f"the trial failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}")
    elif no_room is None and found["device"] == "cpu" and memory + workers > found["available"]:
        no_room = "more memory than is free"
    return Plan(
        modules=found.get("modules", {}),
        samples=found.get("samples"),
        validation_samples=found.get("validation_samples", 0),
        steps=found.get("steps", 0),
        device=found.get("device", "cpu"),
        memory=memory,
        workers=workers,
        available=found.get("available", free),
        seconds=None if no_room else found["seconds"],
        features=found.get("features"),
        no_room=no_room,
    )
