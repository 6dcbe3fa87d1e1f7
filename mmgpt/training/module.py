"""The Lightning module: loss, optimizer, schedule. Captioning and question answering are presets of it."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

from mmgpt.config import LoraConfig, OptimizerConfig
from mmgpt.data.loader import Step
from mmgpt.errors import TrainingError, shown
from mmgpt.evaluation.metrics import cider, exact_match
from mmgpt.model import MultimodalGPT
from mmgpt.training.lora import add_lora
from mmgpt.training.muon import Muon
from mmgpt.training.parallel import summed, zero_of
from mmgpt.training.parts import parameter_groups, train_only

LOGGED = 10  # steps from one entry of the log to the next
Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], float]


class MultimodalModule(L.LightningModule):
    """Trains a MultimodalGPT on the steps of a `Loader` by next-token cross-entropy on the supervised tokens.

    The losses of a step are summed and divided by the number of its supervised tokens, those of all its batches and
    all processes: neither packing, nor accumulation, nor the number of processes changes what is learned. Dropout and
    other chance are drawn from the seed and the number of the step, so a resumed run draws them again.

    Args:
        model: The model to train.
        optimizer: The optimizer's settings and its schedule over the epochs, or the steps, of the Trainer.
        train: Patterns of what is trained, as TrainConfig has them.
        lora: Adapters to train beside layers.
        seed: Of all chance in training.
        metric: What generated answers of the validation samples are scored with, predictions against references.

    Raises:
        TrainingError: A gradient is not finite; the message names the step and its samples, and the weights are those
            before it.
    """

    metric: Metric = staticmethod(exact_match)

    def __init__(
        self,
        model: MultimodalGPT,
        optimizer: OptimizerConfig | None = None,
        train: Sequence[str] = ("*",),
        lora: LoraConfig | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.automatic_optimization = False  # a step is more than one backward pass
        self.model = model
        self.optimizer = optimizer or OptimizerConfig()
        self.seed = seed
        self.broken: list[str] = []
        self.position: dict[str, Any] = {}  # in the data, after the last step
        self._validated = torch.zeros(2, dtype=torch.float64)  # sum of the loss, supervised tokens
        train_only(model, train)
        if lora is not None:
            add_lora(model, lora)

    def training_step(self, step: Step, index: int) -> None:
        self._note_broken(step)
        self.position = step.state
        if not step.count:
            return
        torch.manual_seed(hash((self.seed, self.trainer.global_step, self.global_rank)) % 2**63)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for batch in step.batches:
            if batch is None and self.trainer.world_size == 1:
                continue
            loss = torch.zeros((), device=self.device) if batch is None else self.model.loss(batch).sum / step.count
            total += loss.detach()
            if self.trainer.world_size > 1:
                loss = loss * self.trainer.world_size + zero_of(self.model)  # gradients are averaged over processes
            self.manual_backward(loss)
        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(trained, self.optimizer.clip or math.inf)
        if not norm.isfinite():
            raise TrainingError(
                f"step {self.trainer.global_step + 1}: the gradient is not finite (loss {float(total):g}); nothing was "
                f"changed by it. Its samples: {shown(', '.join(step.names))}. Lower the learning rate, or look at them"
            )
        factor = learning_rate(self.trainer.global_step + 1, self._progress(step), self.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = factor * group["initial_lr"]
        optimizer.step()
        if self.trainer.world_size == 1 or self.trainer.global_step % LOGGED == 0:
            (mean,) = summed(float(total))
            self.log("loss", mean, prog_bar=True, batch_size=step.count)

    def _progress(self, step: Step) -> float:
        """Share of the whole run that is done after a step."""
        epochs, steps = self.trainer.max_epochs or -1, self.trainer.max_steps
        by_epochs = step.epochs / epochs if epochs > 0 else 0.0
        by_steps = (self.trainer.global_step + 1) / steps if steps > 0 else 0.0
        return min(1.0, max(by_epochs, by_steps))

    def on_validation_epoch_start(self) -> None:
        self._validated.zero_()

    def validation_step(self, step: Step, index: int) -> None:
        self._note_broken(step)
        for batch in step.batches:
            if batch is not None:
                loss = self.model.loss(batch)
                self._validated += torch.tensor([float(loss.sum), loss.count], dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        total, count = summed(*self._validated.tolist())
        if count:
            self.log("val_loss", total / count, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:  # type: ignore[override]
        settings = self.optimizer
        build = Muon if settings.muon is not None else partial(torch.optim.AdamW, fused=True)
        optimizer = build(parameter_groups(self.model, settings), lr=settings.learning_rate, betas=settings.betas)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def _note_broken(self, step: Step) -> None:
        for sample in step.broken:
            if sample.reason not in self.broken:
                self.broken.append(sample.reason)


class CaptioningModule(MultimodalModule):
    """Training for captions: validation samples are scored by CIDEr-D."""

    metric = staticmethod(cider)


class QAModule(MultimodalModule):
    """Training for question answering: validation samples are scored by exact match."""

    metric = staticmethod(exact_match)


def learning_rate(step: int, progress: float, settings: OptimizerConfig) -> float:
    """Share of the peak learning rate in a step: linear warm-up, then a cosine down to `final`.

    Args:
        step: Its number, from 1.
        progress: Share of the run that is done after it, in 0..1.
        settings: The schedule.
    """
    # A warm-up of so many steps is the share of the run that so many of the steps so far have been.
    warmup = settings.warmup * progress / step if settings.warmup >= 1 else settings.warmup
    if progress < warmup:
        return progress / warmup
    done = (progress - warmup) / max(1e-9, 1 - warmup)
    return settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
