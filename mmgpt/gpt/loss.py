"""Cross-entropy of a GPT's next tokens, computed without ever holding the logits of all of them."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Of float32 logits computed at once. Half as much is slower where the vocabulary is large, since each chunk reads and
# writes the whole gradient of the weight; twice as much is no faster.
CHUNK_BYTES = 64 << 20


def cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy of targets under softmax(hidden @ weight.T), in nats; float32, or float64 of float64.

    Returned with it is each target's own (targets,), unweighted and without a gradient.

    Logits are computed a chunk of rows at a time, and the gradients with them, so that the backward pass has nothing
    left to compute: the fused linear cross-entropy of Liger Kernel (Hsu et al. 2024). Products are of the type that a
    linear layer has here, under autocast too; the weight's gradient is summed in float32 at least. It is scaled in
    place, so that a second backward pass through one loss is an error.

    Args:
        hidden: Final hidden states (targets, width).
        weight: The output head's, (vocabulary, width).
        targets: Token ids (targets,).
        weights: How much each target counts, (targets,); 1 if None. They get no gradient.
        smoothing: Share of a target's probability that is spread evenly over the vocabulary (label smoothing, Szegedy
            et al. 2016).
    """
    return _CrossEntropy.apply(hidden, weight, targets, weights, smoothing, torch.is_grad_enabled())


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        smoothing: float,
        training: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = F.linear(hidden[:0], weight[:0]).dtype
        exact = torch.promote_types(dtype, torch.float32)
        factors = torch.ones_like(targets, dtype=exact) if weights is None else weights.to(exact)
        hidden_grad = torch.empty_like(hidden) if training and ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight, dtype=exact) if training and ctx.needs_input_grad[1] else None
        losses = torch.empty_like(factors)
        matrix, rows = weight.to(dtype), _rows(len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                grads = None if hidden_grad is None else hidden_grad[part], weight_grad
                losses[part] = _chunk(
                    hidden[part].to(dtype), matrix, targets[part, None], factors[part, None], smoothing, *grads
                )
        ctx.save_for_backward(hidden_grad, weight_grad if weight_grad is None else weight_grad.to(weight.dtype))
        ctx.mark_non_differentiable(losses)
        return (losses * factors).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden_grad, weight_grad = ctx.saved_tensors
        return (
            hidden_grad if hidden_grad is None else hidden_grad * grad,
            weight_grad if weight_grad is None else weight_grad.mul_(grad),  # as large as the weight: no second one
            None,
            None,
            None,
            None,
        )


def _chunk(
    hidden: Tensor,
    matrix: Tensor,
    targets: Tensor,
    factors: Tensor,
    smoothing: float,
    hidden_grad: Tensor | None,
    weight_grad: Tensor | None,
) -> Tensor:
    """Losses (rows,) of rows (rows, width) whose targets and factors are (rows, 1); gradients are set and added."""
    scores = F.linear(hidden, matrix).log_softmax(1, dtype=factors.dtype)  # rows, vocabulary
    losses = -scores.gather(1, targets).squeeze(1)
    if smoothing:
        losses = losses.lerp(-scores.mean(1), smoothing)
    if hidden_grad is not None or weight_grad is not None:
        chances = scores.exp_()
        if smoothing:
            chances -= smoothing / len(matrix)
        slope = chances.mul_(factors).scatter_add_(1, targets, (smoothing - 1) * factors)  # d loss / d logits
        slope = slope.to(hidden.dtype)
        if hidden_grad is not None:
            hidden_grad[:] = slope @ matrix
        if weight_grad is not None:
            _add_product(weight_grad, slope, hidden)
    return losses


def _rows(width: int) -> int:
    """How many rows of so many numbers make a chunk."""
    return max(1, CHUNK_BYTES // (4 * width))


def _add_product(total: Tensor, slope: Tensor, x: Tensor) -> None:
    """Add slope.T @ x to total (vocabulary, width), from slope (rows, vocabulary) and x (rows, width)."""
    if total.dtype == x.dtype:
        total.addmm_(slope.T, x)
        return
    rows = _rows(x.shape[1])  # no product takes sums in another type: it is made, and added, in parts
    for part, columns in zip(total.split(rows), slope.split(rows, dim=1), strict=True):
        part += columns.T @ x
