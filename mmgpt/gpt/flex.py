"""Attention over packed documents in one kernel on a GPU: FlexAttention (Dong et al. 2024)."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch._dynamo
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128  # tokens; FlexAttention leaves out blocks of queries by keys of which nothing is seen

VARIANTS = 64  # that may be compiled: of types and numbers of heads, with gradients and without


def build(backend: str | Callable[..., Any] = "inductor") -> Callable[..., Tensor]:
    """FlexAttention compiled for all lengths. It fails where it cannot be: uncompiled it makes tokens x tokens."""
    return torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=backend)


compiled = build()


def block_mask(numbers: Tensor, causal: bool, window: int | None = None) -> BlockMask:
    """What tokens see of their documents, padded to whole blocks; the pads are a document of their own.

    It is `create_block_mask`'s, which would look at each token by each: gigabytes for a batch of 32,000. Documents lie
    one after another, so the first and last token of blocks tell as much.

    Args:
        numbers: Number of the document of each token, ascending, (tokens,).
        causal: Tokens look back alone; else they see all of their document.
        window: Tokens that each token looks back on, itself among them.
    """
    # Two at least: what has a size of 1 is compiled on its own.
    length = BLOCK * max(2, -(-len(numbers) // BLOCK))
    numbers = F.pad(numbers.int(), (0, length - len(numbers)), value=torch.iinfo(torch.int32).max)
    # As tensors, so that all kinds of attention are compiled as one.
    most = numbers.new_tensor(length if window is None else window - 1)
    least = numbers.new_tensor(0 if causal else -length)

    def seen(row: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (numbers[q] == numbers[k]) & (q - k >= least) & (q - k <= most)

    first, last = numbers[::BLOCK], numbers[BLOCK - 1 :: BLOCK]
    places = BLOCK * torch.arange(len(first), device=numbers.device)
    back = places[:, None] - places  # from a block's tokens to those of another, BLOCK - 1 more or less
    some = (first[:, None] <= last) & (first <= last[:, None])
    some &= (back + BLOCK - 1 >= least) & (back - BLOCK + 1 <= most)
    whole = (first[:, None] == last) & (first == last[:, None])
    whole &= (back - BLOCK + 1 >= least) & (back + BLOCK - 1 <= most)
    return BlockMask.from_kv_blocks(*_listed(some & ~whole), *_listed(whole), BLOCK_SIZE=BLOCK, mask_mod=seen)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many there are in each row, and which, before all others; of one example and for all heads."""
    which = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], which.int()[None, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Attention as the mask has it: (tokens, heads, head_width) each, k and v with kv_heads; that of q returned."""
    tokens, pads = len(q), mask.seq_lengths[0] - len(q)
    # Norms of queries and keys may be in float32 where the rest is in bfloat16.
    q, k, v = (F.pad(x.to(v.dtype), (0, 0, 0, 0, 0, pads)).transpose(0, 1)[None] for x in (q, k, v))
    with torch._dynamo.config.patch(recompile_limit=VARIANTS):
        return compiled(q, k, v, block_mask=mask, enable_gqa=True)[0].transpose(0, 1)[:tokens]


@cache
def works(device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_width: int) -> bool:
    """Whether this machine can compile FlexAttention for such heads; tried once, on a few tokens.

    It cannot for heads narrower than 16, on GPUs that are too old for Triton, or without a C compiler.
    """
    # More blocks than heads: sizes that are equal by chance are taken for one, and compiled anew when they differ.
    tokens = BLOCK * (heads + 1)
    try:
        # Forward and backward, whatever is asked for now; the hooks keep out those of a checkpoint that this is within.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
        ):
            shapes = ((tokens, n, head_width) for n in (heads, kv_heads, kv_heads))
            q, k, v = (torch.zeros(shape, dtype=dtype, device=device, requires_grad=True) for shape in shapes)
            mask = block_mask(torch.zeros(tokens, dtype=torch.int, device=device), causal=True)
            attend(q, k, v, mask).sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"documents are padded for attention, which is slower: FlexAttention fails, {reason}", stacklevel=2
        )
        return False
    return True
