"""What a forward pass holds."""

from collections.abc import Callable

import torch
from torch import Tensor


def held(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What run returns, and the bytes of the tensors that are held for its backward pass."""
    sizes: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        return run(), sum(sizes)
