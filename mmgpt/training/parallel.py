"""Several processes as one: what they must do alike, and what they tell each other."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmgpt.config import TrainConfig
from mmgpt.errors import ConfigError


def processes(config: TrainConfig) -> dict[str, Any]:
    """The Trainer's settings for the processes of a run: those that torchrun has started, or as many as are asked for.

    Raises ConfigError where the machine has fewer GPUs.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", config.devices))
    nodes = int(os.environ.get("WORLD_SIZE", here)) // here
    gpus = torch.cuda.device_count()
    if 0 < gpus < here:
        raise ConfigError(f"devices: {here}, but this machine has {gpus} GPUs")
    settings: dict[str, Any] = {"accelerator": "cuda" if gpus else "cpu", "devices": here, "num_nodes": nodes}
    return settings if here * nodes == 1 else {**settings, "strategy": "ddp"}


def zero_of(model: nn.Module) -> Tensor:
    """Zero, of which every trained parameter has a gradient of zero.

    Processes add up their gradients parameter by parameter, so all must have them for all: a process whose batch has no
    sound, or no document at all, too.
    """
    firsts = [parameter.flatten()[0] for parameter in model.parameters() if parameter.requires_grad]
    return 0.0 * torch.stack([first.float() for first in firsts]).sum()


def summed(*numbers: float) -> list[float]:
    """Each number's sum over all processes."""
    if not dist.is_initialized():
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(sums)
    return sums.tolist()


def gathered(value: Any) -> list[Any]:
    """The value of each process, in all of them."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
