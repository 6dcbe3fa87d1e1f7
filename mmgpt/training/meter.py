"""What each kind of document costs, and what a run does with its time."""

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from mmgpt.batch import Batch
from mmgpt.data.loader import Step
from mmgpt.distributed import gathered, summed
from mmgpt.model import Loss
from mmgpt.training.memory import peak_memory

LOGGED = 10  # steps from one entry of the log to the next
TOLD = 30.0  # seconds from one line to the next where there is no terminal
REDRAWN = 0.1  # seconds from one state of the bar to the next where there is one


@dataclass
class Meter:
    """Mean losses by task and by modality, of the documents since it was last read."""

    _seen: list[tuple[Tensor, list[list[str]]]] = field(default_factory=list)

    def learned(self, batch: Batch, loss: Loss, only: set[int] | None = None) -> None:
        """Note the losses of a batch's documents, or of some, by number. Nothing is read from the device yet."""
        targets, count = batch.numbers[batch.targets], len(batch.lengths)
        sums = torch.zeros(count, dtype=torch.float64, device=targets.device).index_add(0, targets, loss.each.double())
        kinds = [["", *{task, shown} - {""}] for task, shown in zip(batch.tasks, batch.modalities, strict=True)]
        if only is not None:
            kinds = [names if number in only else [] for number, names in enumerate(kinds)]
        self._seen.append((torch.stack([sums, targets.bincount(minlength=count).double()]), kinds))

    def means(self) -> dict[str, float]:
        """The mean per supervised token by task and by modality, and of all as "", of all processes; begins anew."""
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for numbers, kinds in self._seen:
            for (total, count), names in zip(numbers.T.tolist(), kinds, strict=True):
                for name in names:
                    totals[name][0] += total
                    totals[name][1] += count
        self._seen = []
        merged: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for own in gathered(dict(totals)):
            for name, (total, count) in own.items():
                merged[name][0] += total
                merged[name][1] += count
        return {name: total / count for name, (total, count) in sorted(merged.items())}


class Watch(L.Callback):
    """Shows how far the run is, and logs what it does with its time.

    tokens_per_second (of the GPT, in all processes), supervised (share of these tokens that are learned), wait (share
    of the time that the model waited for data), fill (share of batch_tokens that batches hold) and memory_gb (the most
    so far). Validation is not counted, and of a run by reward the answers given, not those drawn.

    Args:
        batch_tokens: The budget of a batch, if it has one.
    """

    def __init__(self, batch_tokens: int | None = None):
        self.batch_tokens = batch_tokens
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._told = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._tokens = self._learned = self._cost = self._batches = 0
        self._waited = self._worked = 0.0
        self._mark = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
            details = TextColumn("{task.fields[told]}")
            console = Console()
            self._bar = Progress(
                *columns,
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                details,
                console=console,
                disable=not console.is_terminal,
            )
            self._task = self._bar.add_task("training", total=1.0, told="")
            self._bar.start()
        self._reset()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self._waited += now - self._mark
        self._mark = now

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self._worked += now - self._mark
        self._mark = now
        for one in filter(None, batch.batches):
            self._batches += 1
            self._tokens += len(one.ids)
            self._cost += one.cost
        self._learned += batch.count
        if trainer.global_step % LOGGED == 0:
            pl_module.log_dict(self._measured())
            self._reset()
        if trainer.is_global_zero:
            self._show(trainer, batch)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description="validating")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description="training")
        self._mark = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _measured(self) -> dict[str, float]:
        tokens, cost, batches = summed(self._tokens, self._cost, self._batches)
        spent = max(1e-9, self._waited + self._worked)
        found = {
            "tokens_per_second": tokens / spent,
            "supervised": self._learned / max(1.0, tokens),
            "wait": self._waited / spent,
        }
        if self.batch_tokens is not None:
            found["fill"] = cost / max(1.0, batches * self.batch_tokens)
        return {**found, "memory_gb": peak_memory() / 1e9}

    def _show(self, trainer: L.Trainer, step: Step) -> None:
        if self._bar is None or self._task is None:
            return
        lines, now, done = self._bar.disable, time.monotonic(), progress(trainer, step, trainer.global_step)
        if now - self._told < (TOLD if lines else REDRAWN) and (lines or done < 1):
            return
        self._told = now
        metrics = trainer.callback_metrics
        shown = [
            ("loss", "loss", ".3f"),
            ("reward", "reward", ".3f"),
            ("val_loss", "validation", ".3f"),
            ("val_reward", "its reward", ".3f"),
            ("val_score", "score", ".3f"),
        ]
        told = [f"step {trainer.global_step}"]
        told += [f"{name} {float(metrics[key]):{form}}" for key, name, form in shown if key in metrics]
        if "tokens_per_second" in metrics:
            told += [f"{float(metrics['tokens_per_second']):,.0f} tokens/s"]
            shares = [name for name in ("supervised", "wait", "fill") if name in metrics]
            told += [f"{name} {float(metrics[name]):.0%}" for name in shares]
            told += [f"{float(metrics['memory_gb']):.1f} GB"]
        self._bar.update(self._task, completed=done, told=", ".join(told))
        if lines:
            print(f"{done:.0%}: {', '.join(told)}", flush=True)


def progress(trainer: L.Trainer, step: Step, number: int) -> float:
    """Share of the whole run that is done after a step.

    Args:
        trainer: Has so many epochs, or steps, to make.
        step: The one.
        number: Its number, from 1.
    """
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    by_epochs = step.epochs / epochs if epochs > 0 else 0.0
    by_steps = number / steps if steps > 0 else 0.0
    return min(1.0, max(by_epochs, by_steps))
