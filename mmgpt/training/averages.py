"""Moving averages of the weights, which validation and checkpoints have in the place of the weights themselves."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from mmgpt.training.module import MultimodalModule
from mmgpt.training.parallel import own_part, reshard


class AverageWeights(L.Callback):
    """Averages what is trained over the steps (Polyak and Juditsky 1992); training goes on with the weights themselves.

    Step n keeps min(decay, (1 + n) / (10 + n)) of an average, so that the first weights are soon forgotten. A process
    averages what it holds; buffers stay as they are.

    It stands behind the callbacks that save what was validated, and before the one that saves the state. Lightning's
    own WeightAveraging holds a second model, frozen weights too, and cannot have it divided.

    Args:
        decay: How much of an average is kept in a step, in 0..1.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.averages: dict[str, Tensor] = {}
        self.steps = 0
        self.exchanged = False  # whether the model has the averages, and `averages` the weights

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MultimodalModule)
        self.averages = {name: part.clone() for name, part in _trained(pl_module.model).items()}
        self.steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, MultimodalModule)
        if trainer.global_step == self.steps:  # all samples of the batch were broken
            return
        self.steps = trainer.global_step
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights = _trained(pl_module.model)
        torch._foreach_lerp_(list(self.averages.values()), [weights[name] for name in self.averages], 1 - decay)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.exchange(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.exchange(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self.exchanged:
            self.exchange(pl_module)

    def exchange(self, module: L.LightningModule) -> None:
        """Give the model the averages and keep its weights, or the other way round."""
        assert isinstance(module, MultimodalModule)
        reshard(module.model)
        weights = _trained(module.model)
        for name, average in self.averages.items():
            kept = average.clone()
            average.copy_(weights[name])
            weights[name].copy_(kept)
        self.exchanged = not self.exchanged


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """What this process holds of the weights that are trained."""
    return {
        name: own_part(parameter.detach()) for name, parameter in model.named_parameters() if parameter.requires_grad
    }
