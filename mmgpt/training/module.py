"""The Lightning module: loss, optimizer, schedule. Captioning and question answering are presets of it."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

from mmgpt.config import OptimizerConfig
from mmgpt.data.loader import Step
from mmgpt.errors import ConfigError, DataError, TrainingError, shown
from mmgpt.evaluation.metrics import cider, exact_match
from mmgpt.model import MultimodalGPT
from mmgpt.training.muon import Muon
from mmgpt.training.parallel import summed, zero_of

LOGGED = 10  # steps from one entry of the log to the next
Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], float]


class MultimodalModule(L.LightningModule):
    """Trains a MultimodalGPT on the steps of a `Loader` by next-token cross-entropy on the supervised tokens.

    A model that pairs media with texts has the mean of its batches' contrastive losses beside it, or alone; that one
    depends on what shares a batch, but not on the number of processes (`Pairing.loss`).

    The losses of a step are summed and divided by the number of its supervised tokens, those of all its batches and
    all processes: neither packing, nor accumulation, nor the number of processes changes what is learned. Dropout and
    other chance are drawn from the seed and the number of the step, so a resumed run draws them again.

    Args:
        model: The model to train.
        optimizer: The optimizer's settings and its schedule over the epochs, or the steps, of the Trainer.
        freeze: Starts of parameter names that are not trained (encoders.image, gpt, ...).
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
        freeze: Sequence[str] = (),
        seed: int = 0,
    ):
        super().__init__()
        self.automatic_optimization = False  # a step is more than one backward pass
        self.model = model
        self.optimizer = optimizer or OptimizerConfig()
        self.seed = seed
        self.broken: list[str] = []
        self.position: dict[str, Any] = {}  # in the data, after the last step
        self._validated = torch.zeros(4, dtype=torch.float64)  # sum of the loss, supervised tokens, of pairs, batches
        freeze_parameters(model, freeze)

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
            loss = self.model.loss(batch).share(step.count, len(step.batches))
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
        for batch in step.batches if step.count else ():
            loss = self.model.loss(batch)
            values = [float(loss.sum), loss.count, float(loss.pair), 1 / self.trainer.world_size]
            self._validated += torch.tensor(values, dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        total, count, pair, batches = summed(*self._validated.tolist())
        if count:
            self.log("val_loss", total / count + pair / batches, prog_bar=True)

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


def parameter_groups(model: nn.Module, settings: OptimizerConfig) -> list[dict[str, Any]]:
    """Trainable parameters by how they are stepped: which optimizer, which learning rate, weight decay or not.

    Matrices (and kernels of convolutions that mix channels) are decayed, and are Muon's where it is chosen; norms,
    biases, embeddings, output heads, learned queries and depthwise kernels are AdamW's and are not decayed.
    """
    for prefix in settings.scales:
        if not any(name.startswith(prefix) for name, _ in model.named_parameters()):
            raise ConfigError(f"optimizer.scales: no parameter begins with {prefix!r}; {_modules(model)}")
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            single = parameter.ndim < 2 or parameter.shape[1] == 1 or id(parameter) in embeddings
            matrix = not single and not name.endswith(("queries", "lm_head.weight"))
            scale = next((factor for prefix, factor in settings.scales.items() if name.startswith(prefix)), 1.0)
            groups[matrix, scale].append(parameter)
    muon = settings.muon is not None
    return [
        {
            "params": parameters,
            "lr": scale * (settings.muon if settings.muon is not None and matrix else settings.learning_rate),
            "weight_decay": settings.weight_decay if matrix else 0.0,
            **({"matrices": matrix} if muon else {}),
        }
        for (matrix, scale), parameters in groups.items()
    ]


def freeze_parameters(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Stop training what the prefixes name; a prefix that names nothing is an error."""
    for prefix in prefixes:
        found = [p for name, p in model.named_parameters() if name.startswith(prefix)]
        if not found:
            raise ConfigError(f"freeze: no parameter begins with {prefix!r}; {_modules(model)}")
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise DataError("freeze: nothing is left to train")


def _modules(model: nn.Module) -> str:
    names = sorted({".".join(name.split(".")[:2]) for name, _ in model.named_parameters()})
    return f"the model has {', '.join(names)}"
