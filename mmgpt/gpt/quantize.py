"""Int8 inference of the GPT on a CPU: a quarter of the weights' memory, and integer products instead of float ones.

As LLM.int8 (Dettmers et al. 2022) scales them: weights by output channel, once; activations by row, when they come. A
row's scale is its own and its sums are exact integers, so its result is the same, to the bit, in any batch.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from mmgpt.errors import ConfigError
from mmgpt.gpt.transformer import GPT, replace_linear

# Without VNNI, fbgemm adds two products in 16 bits, where two of 255 x 127 saturate without a word. One side has to do
# with seven bits: the weights, since activations have the outliers. 2 x 255 x 64 fits.
WEIGHT_LEVELS = 64
ACTIVATION_LEVELS = 127
ZERO = 128  # of the activations, which are unsigned in fbgemm
# Without the look at each argument that torch.ops has, which takes longer than a small product.
PRODUCT = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default._op
TINY = torch.finfo(torch.float32).tiny  # the least scale, of rows of zeros


class Int8Linear(nn.Module):
    """A linear layer in int8, for inference on x86 CPUs: (..., in) -> (..., out) of the input's type.

    Nothing of it is in a state_dict: what is saved and trained is the float layer. Raises ConfigError for a weight or
    an input on another device, and for an input that wants a gradient.

    Args:
        weight: Float, (out, in). Rounded to 64 levels of either sign, the largest of each row being the 64th.
        bias: (out,); stays float.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        if weight.device.type != "cpu" or torch.backends.quantized.engine not in ("x86", "fbgemm"):
            raise ConfigError(f"int8: runs on x86 CPUs only, not on this {weight.device.type}; leave the model float")
        weight = weight.detach().float()
        scales = (weight.abs().amax(1) / WEIGHT_LEVELS).clamp_min(TINY)
        integers = (weight / scales[:, None]).round().to(torch.int8)
        with warnings.catch_warnings():  # torch means to drop this type one day, but its int8 kernels take no other
            warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
            quantized = torch._make_per_channel_quantized_tensor(integers, scales, torch.zeros(len(scales)).long(), 0)
        self.packed = torch.ops.quantized.linear_prepack(quantized, None)
        self.bias = None if bias is None else bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            raise ConfigError(f"int8: runs on x86 CPUs only, not on this {x.device.type}; leave the model float")
        if x.requires_grad and torch.is_grad_enabled():
            raise ConfigError("int8: has no gradients; train the float model, or run this one under torch.no_grad()")
        if x.dtype != torch.float32:
            return self(x.float()).to(x.dtype)
        scales = x.abs().amax(-1, keepdim=True)  # ..., 1
        rows = x / scales  # of zeros, no numbers; as integers they are some, and their product is multiplied by zero
        # Asking `packed` for its __torch_function__, as torch does at every call, takes longer than a small product.
        with torch._C.DisableTorchFunctionSubclass():
            out = PRODUCT(rows, 1 / ACTIVATION_LEVELS, ZERO, self.packed)
        # In two steps: of a fused one, the compiler may round sums once in vectors and twice in what is left of a row.
        out = out.mul_(scales)
        return out if self.bias is None else out.add_(self.bias)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise ConfigError("int8: is not saved; save the float model, from which it is made in seconds")


def quantize_int8(gpt: GPT) -> GPT:
    """Replace, in place, the linear layers of the blocks and the head by `Int8Linear`; for inference on x86 CPUs alone.

    A head tied to the embedding becomes a copy in int8; the embedding itself stays float. Raises ConfigError.
    """
    head = Int8Linear(gpt.embedding.weight if gpt.lm_head is None else gpt.lm_head.weight)
    return replace_linear(gpt, Int8Linear, head)
