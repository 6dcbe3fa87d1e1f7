"""The Lightning module: loss, optimizer, schedule. Captioning and question answering are presets of it."""

import math
from collections.abc import Callable, Sequence

import lightning as L
import torch
from torch import Tensor, nn

from mmgpt.config import OptimizerConfig
from mmgpt.data.dataset import LoadedBatch
from mmgpt.errors import ConfigError, DataError
from mmgpt.evaluation.metrics import cider, exact_match
from mmgpt.model import MultimodalGPT

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
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, settings.weight_decay),
            lr=settings.learning_rate,
            betas=settings.betas,
            fused=True,
        )
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


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters, weight decay on matrices alone: not on norms, biases, embeddings or learned queries."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.ndim >= 2 and id(p) not in embeddings and not name.endswith("queries")]
    chosen = {id(p) for p in decayed}
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for _, p in trained if id(p) not in chosen], "weight_decay": 0.0},
    ]


def freeze_parameters(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Stop training what the prefixes name; a prefix that names nothing is an error."""
    for prefix in prefixes:
        found = [p for name, p in model.named_parameters() if name.startswith(prefix)]
        if not found:
            modules = ", ".join(sorted({".".join(name.split(".")[:2]) for name, _ in model.named_parameters()}))
            raise ConfigError(f"freeze: no parameter begins with {prefix!r}; the model has {modules}")
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise DataError("freeze: nothing is left to train")
