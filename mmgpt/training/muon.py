"""Muon (Jordan et al. 2024): steps for weight matrices whose directions all weigh alike; AdamW for everything else.

Small models learn from about half the samples with it. torch.optim.Muon computes in bfloat16, which processors without
instructions for it emulate many times slower than single precision, and takes one matrix at a time; this one computes
in float32 and takes all matrices of a shape together.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
# Coefficients of the quintic iteration; five of them bring all singular values near 1 (Jordan et al. 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# Steps get the root mean square that AdamW's usually have, so both take one learning rate (Liu et al. 2025).
MATCH_ADAMW = 0.2


class Muon(torch.optim.AdamW):
    """AdamW, save for groups with `matrices: True`: those are stepped by Muon with Nesterov momentum.

    Kernels of convolutions are matrices (out, in x height x width).
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float]):
        super().__init__(groups, lr=lr, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            if group.get("matrices"):
                self._step_matrices(group)
        # AdamW then sees the other groups alone.
        self.param_groups = [group for group in groups if not group.get("matrices")]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:  # AdamW, when it reads a saved state, looks for a step in each parameter's
                state.update(step=torch.zeros(()), momentum=torch.zeros_like(parameter))
            state["step"] += 1
            momentum = state["momentum"]
            momentum.lerp_(parameter.grad, 1 - MOMENTUM)
            direction = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)
            alike[tuple(direction.shape)].append((parameter, direction))  # type: ignore[index]
        for shape, pairs in alike.items():
            steps = orthogonalise(torch.stack([direction for _, direction in pairs]))
            scale = MATCH_ADAMW * max(shape) ** 0.5
            for (parameter, _), step in zip(pairs, steps, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step.view_as(parameter), alpha=-group["lr"] * scale)


def orthogonalise(matrices: Tensor) -> Tensor:
    """(count, rows, columns) -> the same with all singular values brought near 1, by Newton-Schulz iteration."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.float().mT if tall else matrices.float()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT  # count, rows, rows: the smaller side
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
