"""The Lightning module: loss, optimizer, schedule. Captioning and question answering are presets of it."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from mmgpt.config import OptimizerConfig
from mmgpt.data.dataset import LoadedBatch
from mmgpt.errors import ConfigError, DataError
from mmgpt.evaluation.metrics import cider, exact_match
from mmgpt.model import MultimodalGPT
from mmgpt.training.muon import Muon

Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], float]


class MultimodalModule(L.LightningModule):
    """Trains a MultimodalGPT on batches of `make_loader` by next-token cross-entropy on the supervised tokens.

    Args:
        model: The model to train.
        optimizer: AdamW's settings and its schedule over the steps of the Trainer.
        freeze: Starts of parameter names that are not trained (encoders.image, gpt, ...).
        metric: What generated answers of the validation samples are scored with, predictions against references.
    """

    metric: Metric = staticmethod(exact_match)

    def __init__(self, model: MultimodalGPT, optimizer: OptimizerConfig | None = None, freeze: Sequence[str] = ()):
        super().__init__()
        self.model = model
        self.optimizer = optimizer or OptimizerConfig()
        self.broken: list[str] = []
        freeze_parameters(model, freeze)

    def training_step(self, loaded: LoadedBatch, index: int) -> Tensor | None:
        self._note_broken(loaded)
        if loaded.batch is None:
            return None
        loss = self.model.loss(loaded.batch)
        self.log("loss", loss.mean, prog_bar=True, batch_size=loss.count)
        return loss.mean

    def validation_step(self, loaded: LoadedBatch, index: int) -> None:
        self._note_broken(loaded)
        if loaded.batch is None:
            return
        loss = self.model.loss(loaded.batch)
        # Lightning weighs by batch_size: the mean over all supervised tokens, whatever the batches.
        self.log("val_loss", loss.mean, prog_bar=True, batch_size=loss.count)

    def configure_optimizers(self) -> dict:  # type: ignore[override]
        settings = self.optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        groups = parameter_groups(self.model, settings)
        build = Muon if settings.muon is not None else partial(torch.optim.AdamW, fused=True)
        optimizer = build(groups, lr=settings.learning_rate, betas=settings.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps, settings))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _note_broken(self, loaded: LoadedBatch) -> None:
        for sample in loaded.broken:
            if sample.reason not in self.broken:
                self.broken.append(sample.reason)


class CaptioningModule(MultimodalModule):
    """Training for captions: validation samples are scored by CIDEr-D."""

    metric = staticmethod(cider)


class QAModule(MultimodalModule):
    """Training for question answering: validation samples are scored by exact match."""

    metric = staticmethod(exact_match)


def learning_rate(step: int, steps: int, settings: OptimizerConfig) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine down to `final`."""
    warmup = settings.warmup if settings.warmup >= 1 else settings.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    return settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * done))


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
