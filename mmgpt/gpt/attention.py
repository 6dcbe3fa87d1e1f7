"""Scaled dot-product attention with grouped queries, as all layouts call it."""

from typing import Protocol

from torch import Tensor
from torch.nn import functional as F


class Layout(Protocol):
    """How attention sees a flat batch: as blocks of rows of equal length, and flat again."""

    def pad(self, x: Tensor) -> list[Tensor]: ...
    def flatten(self, parts: list[Tensor]) -> Tensor: ...


def within(back: Tensor, window: int | None) -> Tensor:
    """Whether what lies so many tokens back is seen: not what is ahead, nor what is beyond the window."""
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """(rows, tokens, heads, head_width) of queries, (rows, kv_heads, seen, head_width) of keys and values.

    Returns the shape of the queries. `mask` (rows, 1, tokens, seen) is True at what is seen.
    """
    rows, tokens, heads, head_width = q.shape
    kv_heads = k.shape[1]
    if tokens == 1 and heads != kv_heads:
        # The heads of a group stand as its tokens, so that keys and values are read once for all of them.
        q = q.reshape(rows, kv_heads, heads // kv_heads, head_width)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).reshape(rows, 1, heads, head_width)
    grouped = heads != kv_heads
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
    return out.transpose(1, 2)
