"""Several processes as one: how a model is trained by them, whole in each or divided among them."""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed import is_torchelastic_launched
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from mmgpt.distributed import rank
from mmgpt.errors import ConfigError
from mmgpt.model import MultimodalGPT
from mmgpt.run_config import TrainConfig

FIRST = "MMGPT_FIRST_PROCESS"  # its number, for those that it starts


def processes(config: TrainConfig) -> dict[str, Any]:
    """The Trainer's settings for the processes of a run: those that torchrun has started, or as many as are asked for.

    Raises ConfigError where the machine has fewer GPUs, or what is asked for cannot be divided.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", config.devices))
    nodes = int(os.environ.get("WORLD_SIZE", here)) // here
    gpus = torch.cuda.device_count()
    if 0 < gpus < here:
        raise ConfigError(f"devices: {here}, but this machine has {gpus} GPUs")
    settings: dict[str, Any] = {"accelerator": "cuda" if gpus else "cpu", "devices": here, "num_nodes": nodes}
    if not config.sharded:
        if here * nodes == 1:
            return settings
        # Gradients lie in the buffers that are sent, instead of being copied to them.
        return {**settings, "strategy": DDPStrategy(gradient_as_bucket_view=True)}
    if here * nodes == 1:
        raise ConfigError("sharded: there is one process alone, nothing to divide among; set devices, or use torchrun")
    if config.optimizer.muon is not None:
        raise ConfigError("sharded: Muon needs whole matrices; leave optimizer.muon out")
    if config.lora is not None:
        raise ConfigError("sharded: LoRA has little to divide; leave sharded out")
    if config.model.gpt.cross is not None:
        raise ConfigError(
            "sharded: a block with cross-attention runs only part of its weights where there are no media"
        )
    return {**settings, "strategy": ModelParallelStrategy(data_parallel_size=here * nodes, tensor_parallel_size=1)}


def end_with_first() -> None:
    """Let a process that the first one has started end with it.

    Once they have met, each notices that another is gone; before that it would wait half an hour for one that was
    ended, or failed, at its start.
    """
    if is_torchelastic_launched():  # which watches over all
        return
    if not int(os.environ.get("LOCAL_RANK", 0)):
        os.environ[FIRST] = str(os.getpid())
    elif FIRST in os.environ:
        threading.Thread(target=_end_after, args=(int(os.environ[FIRST]),), daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def shard(model: MultimodalGPT, mesh: DeviceMesh) -> None:
    """Divide the weights among processes (FSDP2): each block of the GPT on its own, all else together.

    Blocks run in every process in the same order. Encoders do not, as media differ: theirs are gathered with the
    whole, so that it does not matter which process runs which.
    """
    for block in model.gpt.transformer.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss")


def zero_of(model: nn.Module) -> Tensor:
    """Zero, of which every trained parameter has a gradient of zero.

    Processes add up their gradients parameter by parameter, so all must have them for all: a process whose batch has no
    sound, or no document at all, too. Parts of divided parameters are left out: blocks, which run everywhere.
    """
    firsts = [
        parameter.flatten()[0].float()
        for parameter in model.parameters()
        if parameter.requires_grad and not isinstance(parameter, DTensor)
    ]
    return 0.0 * torch.stack(firsts).sum()


def reshard(model: nn.Module) -> None:
    """Let go of weights of other processes, which stay where a forward pass has no backward pass."""
    if isinstance(model, FSDPModule):
        model.reshard()


@contextmanager
def answering(model: MultimodalGPT) -> Iterator[None]:
    """Within it a divided model can be asked: by all processes together, the same things in the same order.

    Its blocks are gathered whenever they run, as in training, and all else at once. All processes go by the logits of
    the first: one that chose another token, as its GPU rounds otherwise, would soon wait for the others in vain.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    head = model.gpt.head

    def agreed(hidden: Tensor) -> Tensor:
        logits = head(hidden)
        dist.broadcast(logits, 0)
        return logits

    model.unshard()
    model.gpt.head = agreed
    try:
        yield
    finally:
        del model.gpt.head
        reshard(model)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def plain(tensor: Tensor) -> Tensor:
    """A tensor that is whole in this process; for one that is divided, all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors, whole, in the first process and its CPU's memory; all processes must ask, the others have nothing of it.

    One after the other: where a model is divided, no device need have room for all of it.
    """
    kept = {}
    for name, tensor in tensors.items():
        whole = plain(tensor.detach())
        if rank() == 0:
            kept[name] = whole.cpu()
    return kept


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A tensor of the optimizer, of which this is what this process holds, as the parameter's own is."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor) or not tensor.ndim:
        return tensor
    mesh, places = parameter.device_mesh, parameter.placements
    return DTensor.from_local(tensor, mesh, places, shape=parameter.shape, stride=parameter.stride())
