"""What several processes tell each other; a process on its own tells itself."""

from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def meet() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


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
