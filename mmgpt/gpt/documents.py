"""A flat ragged batch: where each document's tokens lie, and how attention sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmgpt.gpt.attention import attention, within

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# A bucket takes in shorter documents while its pads stay below this share of its real tokens.
MOST_PADDING = 0.25


@dataclass(frozen=True)
class Bucket:
    """Documents of similar length that attention sees as one right-padded block (rows, longest)."""

    documents: tuple[int, ...]  # which, by number; the longest first
    lengths: tuple[int, ...]
    longest: int

    @property
    def slots(self) -> int:
        return len(self.documents) * self.longest

    def mask(self, device: torch.device | str) -> Tensor | None:
        """True at real tokens, (rows, 1, 1, longest); None where there are no pads."""
        if min(self.lengths) == self.longest:
            return None
        lengths = torch.tensor(self.lengths, device=device)
        return (torch.arange(self.longest, device=device) < lengths[:, None])[:, None, None]


class Documents:
    """The layout of a flat batch of documents, one after another without padding.

    Linear layers run over the flat tokens. Attention alone looks at documents: it sees them as right-padded buckets of
    similar length (`pad`), and what it returns is laid flat again (`flatten`). The indices are computed once. On a GPU,
    where a bucket is several kernels, it sees the flat tokens through a mask instead (FlexAttention, Dong et al. 2024).

    Args:
        lengths: Tokens of each document, in order; 0 is allowed.
        device: Where the indices live.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str | None = None):
        self.lengths = [int(length) for length in lengths]
        self.total = sum(self.lengths)
        self.longest = max(self.lengths, default=0)
        self.device = torch.device(device or "cpu")
        self._masks: dict[tuple[bool, int | None], BlockMask] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device | str) -> "Documents":
        """The same documents with their indices on another device."""
        return self if torch.device(device) == self.device else Documents(self.lengths, device)

    @cached_property
    def ragged(self) -> bool:
        """Whether lengths differ; else documents are one bucket without pads, as the flat layout already is."""
        return any(length != self.longest for length in self.lengths)

    @cached_property
    def positions(self) -> Tensor:
        """Position of each token in its document, (tokens,)."""
        lengths = torch.tensor(self.lengths, dtype=torch.long)
        starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        return (torch.arange(self.total) - starts).to(self.device)

    @cached_property
    def numbers(self) -> Tensor:
        """Number of the document that each token belongs to, (tokens,)."""
        lengths = torch.tensor(self.lengths, dtype=torch.long)
        return torch.arange(len(self)).repeat_interleave(lengths).to(self.device)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Buckets of similar length, longest first; documents without tokens are in none."""
        order = sorted((i for i, length in enumerate(self.lengths) if length), key=lambda i: -self.lengths[i])
        groups: list[list[int]] = []
        longest = tokens = 0
        for i in order:
            length = self.lengths[i]
            if not groups or (len(groups[-1]) + 1) * longest > (1 + MOST_PADDING) * (tokens + length):
                groups.append([])
                longest, tokens = length, 0
            groups[-1].append(i)
            tokens += length
        return [Bucket(tuple(group), tuple(self.lengths[i] for i in group), self.lengths[group[0]]) for group in groups]

    @cached_property
    def _indices(self) -> tuple[Tensor, Tensor] | None:
        """Token of each bucket slot (pads point to their document's first token), and slot of each token."""
        if not self.ragged:
            return None
        lengths = torch.tensor(self.lengths, dtype=torch.long)
        starts = lengths.cumsum(0) - lengths
        tokens, slots, offset = [], torch.zeros_like(lengths), 0
        for bucket in self.buckets:
            numbers = torch.tensor(bucket.documents)
            steps = torch.arange(bucket.longest).expand(len(numbers), -1)
            steps = steps.where(steps < lengths[numbers, None], 0)
            tokens.append((starts[numbers, None] + steps).flatten())
            slots[numbers] = offset + torch.arange(len(numbers)) * bucket.longest
            offset += bucket.slots
        token_slots = slots.repeat_interleave(lengths) + self.positions.cpu()
        return torch.cat(tokens).to(self.device), token_slots.to(self.device)

    @cached_property
    def masks(self) -> list[Tensor | None]:
        """Key mask of each bucket, for attention that is not causal; under a causal mask right padding needs none."""
        return [bucket.mask(self.device) for bucket in self.buckets]

    def pad(self, x: Tensor) -> list[Tensor]:
        """(tokens, ...) -> one (rows, longest, ...) for each bucket; what the pads hold is of no meaning."""
        if self._indices is not None:
            x = x.index_select(0, self._indices[0])
        parts = x.split([bucket.slots for bucket in self.buckets])
        return [part.unflatten(0, (-1, bucket.longest)) for part, bucket in zip(parts, self.buckets, strict=True)]

    def flatten(self, parts: list[Tensor]) -> Tensor:
        """One (rows, longest, ...) for each bucket -> (tokens, ...), without the pads."""
        flat = [part.flatten(0, 1) for part in parts]
        x = flat[0] if len(flat) == 1 else torch.cat(flat)
        return x if self._indices is None else x.index_select(0, self._indices[1])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None = None) -> Tensor:
        """Attention inside each document: (tokens, heads, head_width) each, k and v with kv_heads; that of q returned.

        Args:
            q, k, v: Queries, keys and values of all documents.
            causal: Tokens look back alone; else they see all of their document.
            window: Tokens that each token looks back on, itself among them.
        """
        if self._flat(q, k, v):
            from mmgpt.gpt.flex import attend

            return attend(q, k, v, self._seen(causal, window))
        parts = []
        for i, (bucket, queries, *kv) in enumerate(zip(self.buckets, *map(self.pad, (q, k, v)), strict=True)):
            mask, past = (None, causal) if causal else (self.masks[i], False)
            if causal and window is not None and window < bucket.longest:
                steps = torch.arange(bucket.longest, device=q.device)
                mask, past = within(steps[:, None] - steps, window), False
            keys, values = (part.transpose(1, 2) for part in kv)
            parts.append(attention(queries, keys, values, mask, past))
        return self.flatten(parts)

    def _flat(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        """Whether attention sees the flat tokens: on a GPU that can, where they are not one block anyway."""
        if not (q.is_cuda and self.ragged):
            return False
        from mmgpt.gpt.flex import works  # takes two seconds to import, which a CPU can do without

        return works(q.device, v.dtype, q.shape[1], k.shape[1], q.shape[2])

    def _seen(self, causal: bool, window: int | None) -> "BlockMask":
        """What tokens see of their documents; made once for all layers that see alike."""
        from mmgpt.gpt.flex import block_mask

        kind = causal, window if causal and window is not None and window < self.longest else None
        if kind not in self._masks:
            self._masks[kind] = block_mask(self.numbers, *kind)
        return self._masks[kind]
