"""Weights laid out as the processor reads them fastest, for inference of the GPT on a CPU; their values stay."""

from typing import Any

import torch
from torch import Tensor, nn

from mmgpt.errors import ConfigError
from mmgpt.gpt.transformer import GPT, replace_linear

ROWS = 8  # of activations that oneDNN packs for; with other numbers of them it is as fast to a few per cent


class PackedLinear(nn.Module):
    """A linear layer whose weight oneDNN has cut into the blocks that its kernels read: (..., in) -> (..., out).

    Given a plain matrix, every product either reads it badly or packs it anew. With two threads or more, products of
    2 to 16 rows, as a decoder has them, take half the time of those with a plain matrix, and those of one row less.

    It has no parameters, but the state_dict of a linear layer, so that it is saved like one; to train, load the model
    anew. Raises ConfigError for an input on another device or one that wants a gradient.

    Args:
        weight: Float32, or another type that oneDNN computes in on this processor, (out, in).
        bias: (out,).
        saved: Whether the state_dict has it; a copy of the embedding is not in it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, saved: bool = True):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        self.bias = None if bias is None else bias.detach()
        self.saved = saved

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            raise ConfigError(f"the GPT is packed for a CPU, but its input is on {x.device}; load it on that device")
        if x.requires_grad and torch.is_grad_enabled():
            raise ConfigError("the GPT is packed for inference and has no gradients; train what checkpoint.load gives")
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if not self.saved:
            return
        destination[f"{prefix}weight"] = self.packed.to_dense()
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias

    def __getstate__(self) -> dict[str, Any]:  # of copies
        return {**self.__dict__, "packed": self.packed.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.packed, ROWS)


def pack(gpt: GPT) -> GPT:
    """Make a GPT on a CPU read its weights faster, in place; for inference alone. On other devices it stays as it is.

    With several threads, linear layers become `PackedLinear`; a head tied to the embedding becomes a copy. A single
    thread reads a row's product faster from plain matrices, where wide ones (more outputs than inputs) have their
    columns in one piece: then those are turned in memory, and nothing else is changed.
    """
    weight = gpt.embedding.weight
    if weight.device.type != "cpu":
        return gpt
    if torch.get_num_threads() == 1 or not _packs(weight.dtype):
        for module in gpt.modules():
            if isinstance(module, nn.Linear | nn.Embedding) and module.weight.shape[0] > module.weight.shape[1]:
                module.weight.data = module.weight.data.t().contiguous().t()
        return gpt
    head = PackedLinear(weight, saved=False) if gpt.lm_head is None else PackedLinear(gpt.lm_head.weight)
    return replace_linear(gpt, PackedLinear, head)


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this type on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32
