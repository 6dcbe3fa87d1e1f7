"""A short run in a process of its own, to be measured: `python -m mmgpt.training.trial CONFIG RESULT AVAILABLE`.

It goes through all that a run goes through, by as many processes as the run has on this machine: steps on typical
batches, whose time is taken, then on the largest to be expected, a state and a checkpoint kept, validation, and the
evaluation at the end. Where the run would have a cache of features in its later epochs, typical steps and validation
are done again, on what was kept of them. What the first process finds out is written to RESULT as it goes, since it may
be ended for want of memory at any moment.
"""

import gc
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from mmgpt.batch import Example
from mmgpt.config import from_dict
from mmgpt.data.dataset import ExampleDataset
from mmgpt.data.loader import Step
from mmgpt.data.order import Order
from mmgpt.data.packing import cost, too_large
from mmgpt.data.sample import Sample
from mmgpt.data.stream import head
from mmgpt.encoders import build_encoders
from mmgpt.errors import DataError, MmgptError
from mmgpt.evaluation.asking import GROUP
from mmgpt.files import atomic_write
from mmgpt.processor import Processor
from mmgpt.run_config import TrainConfig
from mmgpt.training.memory import peak_memory, workers_memory
from mmgpt.training.module import MultimodalModule
from mmgpt.training.parallel import processes
from mmgpt.training.report import finish
from mmgpt.training.run import Data, fit, model_config, read

LOOKED_AT = 512  # samples whose sizes are measured
DRAWS = 10_000  # batches of them among which the largest is looked for
WARM_UP, TIMED = 1, 3  # steps on typical batches: not timed, as memory is first asked for in them; and timed


class NoRoomError(Exception):
    """The run does not fit into memory."""


@dataclass(frozen=True)
class Sized:
    """A sample with its cost, in tokens, as a whole and of its media by modality."""

    sample: Sample
    costs: dict[str, int]


class Findings:
    """What is found out, written whenever there is more of it."""

    def __init__(self, path: Path):
        self.path = path
        self.values: dict[str, Any] = {}

    def add(self, **values: Any) -> None:
        self.values.update(values)
        if int(os.environ.get("LOCAL_RANK", 0)):  # told before the processes have met
            return
        with atomic_write(self.path, wait=False) as draft:
            draft.write_text(json.dumps(self.values))


class Times(L.Callback):
    """Takes the times of the last epoch and its validation."""

    def __init__(self) -> None:
        self.ends: list[float] = []  # of steps; before them the epoch's beginning
        self.costs: list[int] = []  # of steps, in tokens
        self.begun = self.ended = 0.0  # validation: its beginning, and the end of its last batch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.ends, self.costs = [time.monotonic()], [0]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.monotonic())
        self.costs.append(sum(one.cost for one in batch.batches if one is not None))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = time.monotonic()

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self.ended = time.monotonic()

    @property
    def validation(self) -> float:
        return self.ended - self.begun

    @property
    def seconds_per_token(self) -> float:
        """Of the timed steps; of all of them where there are no more."""
        first = min(WARM_UP, len(self.ends) - 2)
        last = min(first + TIMED, len(self.ends) - 1)
        return (self.ends[last] - self.ends[first]) / max(1, sum(self.costs[first + 1 : last + 1]))


class Watch(Times):
    """Counts parameters and memory too, and ends the trial where the weights alone do not fit."""

    def __init__(self, findings: Findings, available: int, shares: int):
        super().__init__()
        self.findings = findings
        self.available = available
        self.shares = shares  # of a process that has its share of the weights alone: so many are a whole

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MultimodalModule)
        modules: dict[str, dict[str, int]] = {}
        least = 0
        for name, parameter in pl_module.model.named_parameters():
            parts = name.split(".")
            count = modules.setdefault(
                ".".join(parts[: 2 if parts[0] in ("encoders", "adapters") else 1]), {"trained": 0, "frozen": 0}
            )
            count["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
            # The weights; of those trained a gradient and a tensor of the optimizer's at least.
            least += parameter.nbytes * (3 if parameter.requires_grad else 1)
        least //= self.shares
        self.findings.add(modules=modules, memory=least)
        if least > self.available:
            raise NoRoomError("weights, gradients and the optimizer alone do not fit")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.findings.add(memory=peak_memory(), workers=workers_memory())


def run(config: TrainConfig, findings: Findings, available: int) -> None:
    """Make the trial. Raises what a run raises, and NoRoomError."""
    machines = processes(config)
    here = machines["devices"]
    ranks = here * machines["num_nodes"]
    available = torch.cuda.mem_get_info()[0] if machines["accelerator"] == "cuda" else available // here
    findings.add(device=machines["accelerator"], available=available)
    data = read(config)
    sized, share = measure(config, data)
    mean = float(np.mean([one.costs["all"] for one in sized]))
    per_batch = mean * config.batch_size if config.batch_size is not None else float(config.batch_tokens or 0)
    count = len(data.train) if isinstance(data.train, Sequence) else None
    usable = len(sized) if count is None else round(count * share)
    if config.steps is not None:
        steps = config.steps
        batches = steps * config.accumulate
        tokens = batches * per_batch
    else:
        tokens = config.epochs * usable * mean / ranks
        per_epoch = math.ceil(usable * mean / ranks / per_batch)
        batches, steps = config.epochs * per_epoch, config.epochs * math.ceil(per_epoch / config.accumulate)
    fresh = tokens if count is None else min(tokens, usable * mean / ranks)  # of the first epoch
    findings.add(samples=count, validation_samples=len(data.val), steps=steps)

    short = replace(config, batch_size=config.batch_size and min(config.batch_size, usable))
    chosen = trial_samples(short, sized, batches)
    size = short.batch_size or 1
    trial_steps = len(chosen) // size // config.accumulate
    held_out = [data.val[i] for i in range(min(len(data.val), max(GROUP, size)))]
    short = replace(
        short,
        out=str(findings.path.parent / "run"),
        devices=here,
        epochs=1,
        steps=None,
        val_every=0,
        save_every=max(1, trial_steps - 1) if steps > config.save_every else sys.maxsize,
        resume=False,
        cache=None,
        loggers=[],
    )
    watch = Watch(findings, available, here if config.sharded else 1)
    everyone = [sample for sample in chosen for _ in range(here)]  # each process takes steps on all that is chosen
    done = fit(short, Data(everyone, held_out, data.tokenizer, shuffle=False), [watch])
    validated = time.monotonic()
    if done.first:
        finish(short, done)
    evaluated, memory = time.monotonic(), peak_memory()
    kept: Times = watch  # of epochs whose media are kept
    share = 0.0
    if config.cache and tokens > fresh:
        gc.collect()  # frees the first model
        typical = (WARM_UP + TIMED) * config.accumulate * size * here if short.batch_size else len(everyone)
        again = Data(everyone[:typical], held_out, data.tokenizer, shuffle=False)
        kept, written = with_cache(short, again)
        features = round(written / distinct(again) * (usable + len(data.val)))
        # What was written first goes first; in epochs of ever new orders a cache then has as much of what is asked for
        # as it has of all.
        share = min(1.0, config.cache_gb * 1e9 / max(1, features))
        findings.add(features=features)
    if not done.first:
        return

    validations = math.ceil(steps / config.val_every) if config.val_every else config.epochs  # of steps: one at least
    more = len(data.val) / len(held_out)
    answers = validated - watch.ended  # to the samples shown, and a checkpoint
    per_token = share * kept.seconds_per_token + (1 - share) * watch.seconds_per_token  # after the first epoch
    later = share * kept.validation + (1 - share) * watch.validation
    seconds = {
        "training": fresh * watch.seconds_per_token + (tokens - fresh) * per_token,
        "validation": (watch.validation + (validations - 1) * later) * more * here / ranks + validations * answers,
        "evaluation": (evaluated - validated) * more,
    }
    if kept is not watch:
        seconds["first_epoch"] = fresh * watch.seconds_per_token
    findings.add(memory=memory, seconds=seconds)


def with_cache(config: TrainConfig, data: Data) -> tuple[Times, int]:
    """The times of a second epoch, and its validation, of a run whose first has kept the features of all media; and how
    many bytes these are.
    """
    out, times = Path(config.out), Times()
    cache = out / "features"
    settings: dict[str, Any] = {"epochs": 2, "save_every": sys.maxsize, "cache": str(cache), "cache_gb": 1e6}
    fit(replace(config, out=str(out / "again"), **settings), data, [times])
    return times, sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())


def distinct(data: Data) -> int:
    """How many samples there are, each counted once."""
    return len({id(sample) for samples in (data.train, data.val) for sample in samples})


def measure(config: TrainConfig, data: Data) -> tuple[list[Sized], float]:
    """The first usable samples of a run, in its order, and the share of those looked at that they are."""
    resolved, _ = build_encoders(model_config(config))
    first = head(data.train, LOOKED_AT)
    examples = ExampleDataset(first, Processor(resolved, data.tokenizer))
    order = Order(first, data.shuffle, config.seed)
    found = []
    looked_at = min(LOOKED_AT, len(first))
    for place in range(looked_at):
        sample = examples.sample(order.index(0, place))
        documents = [part for part in examples.encode(sample) if isinstance(part, Example)]
        if config.batch_tokens is not None:
            documents = [one for one in documents if not too_large(one, config.batch_tokens)]
        if documents:
            costs = {"all": cost(documents)}
            for item in {id(item): item for one in documents for _, item in one.media}.values():
                costs[item.modality] = costs.get(item.modality, 0) + item.grid.count
            found.append(Sized(sample, costs))
    if not found:
        raise DataError(f"none of the first {looked_at} samples can be used; `mmgpt data check` tells why")
    return found, len(found) / looked_at


def trial_samples(config: TrainConfig, sized: Sequence[Sized], batches: int) -> list[Sample]:
    """Samples for the typical steps, then for those on the largest batches to be expected in a run of so many.

    Batches packed by tokens are all as large, so there are typical ones alone.
    """
    if config.batch_tokens is not None:
        budget = config.batch_tokens * config.accumulate * (WARM_UP + TIMED + 1)
        return list(_until(sized, budget))
    assert config.batch_size is not None
    size = config.batch_size
    chosen = [sized[place % len(sized)].sample for place in range((WARM_UP + TIMED) * config.accumulate * size)]
    draws = np.random.default_rng(config.seed)
    drawn = [draws.choice(len(sized), size, replace=size > len(sized)) for _ in range(min(DRAWS, max(1, batches)))]
    largest: dict[bytes, np.ndarray] = {}
    for kind in sorted({kind for one in sized for kind in one.costs}):
        costs = np.array([one.costs.get(kind, 0) for one in sized])
        batch = max(drawn, key=lambda numbers: costs[numbers].sum())
        largest[batch.tobytes()] = batch
    for batch in largest.values():
        chosen += [sized[number].sample for _ in range(config.accumulate) for number in batch]
    return chosen


def _until(sized: Sequence[Sized], budget: int) -> Iterator[Sample]:
    """Samples, again from the first where need be, until they cost so much."""
    place = 0
    while budget > 0:
        one = sized[place % len(sized)]
        yield one.sample
        budget -= one.costs["all"]
        place += 1


def main() -> None:
    config_path, result, available = sys.argv[1:]
    findings = Findings(Path(result))
    try:
        run(from_dict(TrainConfig, json.loads(Path(config_path).read_text())), findings, int(available))
    except MmgptError as error:
        findings.add(error=[type(error).__name__, str(error)])
    except (NoRoomError, MemoryError, torch.OutOfMemoryError) as error:
        findings.add(no_room=str(error).partition("\n")[0] or "memory ran out")
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        findings.add(no_room=str(error).partition("\n")[0])


if __name__ == "__main__":
    main()
