"""Cross-attention, the second way of fusion: tokens look at media that stand beside their sequence, not in it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmgpt.config import GPTConfig
from mmgpt.gpt.attention import Layout, attention
from mmgpt.gpt.documents import Documents

NEVER = 1 << 40  # a position that no token reaches: what stands there is a pad


@dataclass(frozen=True)
class Media:
    """What the documents of a batch may look at.

    `features` (features, width) are those of all media, each once. Document i sees `lengths[i]` of them, which ones is
    told by `index`, document after document; a token sees feature j from position `since[j]` of its document on.
    """

    features: Tensor
    index: Tensor
    lengths: list[int]
    since: Tensor

    def padded(self) -> tuple[Tensor, Tensor]:
        """Index and since as (documents, longest), filled up with features that are never seen."""
        index = nn.utils.rnn.pad_sequence(list(self.index.split(self.lengths)), batch_first=True)
        since = nn.utils.rnn.pad_sequence(list(self.since.split(self.lengths)), batch_first=True, padding_value=NEVER)
        return index, since


@dataclass(frozen=True)
class Sight:
    """What the documents of one bucket see: so many features each, and a mask (rows, 1, tokens, seen) or None."""

    rows: int
    seen: int
    mask: Tensor | None


class View(ABC):
    """Media as one forward pass sees them. `sees` (tokens, 1) is 0 at tokens that see none; None where all see some."""

    def __init__(self, layout: Layout, blind: list[Tensor]):
        self.layout = layout
        self.sees: Tensor | None = None
        if any(bool(part.any()) for part in blind):
            self.sees = 1 - layout.flatten([part.to(torch.int8) for part in blind])[:, None]

    @abstractmethod
    def attend(self, layer: "CrossAttention", q: Tensor) -> Tensor:
        """Queries (tokens, heads, head_width) -> what they find, of the same shape."""

    @staticmethod
    def look(since: Tensor, positions: Tensor) -> tuple[Tensor | None, Tensor]:
        """The mask of features seen from since (rows, seen) at positions (rows, tokens); which tokens see none."""
        visible = since[:, None] <= positions[:, :, None]  # rows, tokens, seen
        blind = ~visible.any(dim=-1)  # rows, tokens
        # Attention over nothing is not a number: blind tokens look at everything, and what they see is dropped.
        return (None if bool(visible.all()) else (visible | blind[:, :, None])[:, None]), blind


class FreshView(View):
    """Media seen by documents without a cache."""

    def __init__(self, documents: Documents, media: Media):
        index, since = media.padded()
        self.sights: list[Sight] = []
        places, blind = [], []
        for bucket, positions in zip(documents.buckets, documents.pad(documents.positions), strict=True):
            rows = torch.tensor(bucket.documents, device=index.device)
            seen = max(media.lengths[document] for document in bucket.documents)
            mask, unseeing = self.look(since[rows, :seen], positions)
            self.sights.append(Sight(len(rows), seen, mask))
            places.append(index[rows, :seen].flatten())
            blind.append(unseeing)
        super().__init__(documents, blind)
        # Features in the order of the sights: where each is seen once, they are laid so for all layers; those that
        # several documents see have their keys and values computed once, and these are laid so in each layer.
        order = torch.cat(places)
        once = len(order) == len(media.features) and bool((order.bincount(minlength=len(order)) == 1).all())
        self.features = media.features.index_select(0, order) if once else media.features
        self.order = None if once else order

    def attend(self, layer: "CrossAttention", q: Tensor) -> Tensor:
        kv = layer.keys_values(self.features)  # features, 2, kv_heads, head_width
        if self.order is not None:
            kv = kv.index_select(0, self.order)
        parts = []
        shown = kv.split([sight.rows * sight.seen for sight in self.sights])
        for part, own, sight in zip(self.layout.pad(q), shown, self.sights, strict=True):
            if sight.seen:
                k, v = own.unflatten(0, (sight.rows, -1)).permute(2, 0, 3, 1, 4)  # rows, kv_heads, seen, head_width
                part = attention(part, k, v, sight.mask)
            parts.append(part)
        return self.layout.flatten(parts)


class CrossAttention(nn.Module):
    """Attention of tokens to media (Vaswani et al. 2017): (tokens, width) in and out, 0 at tokens that see no media."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.heads, config.kv_heads or config.heads
        self.head_width = config.head_width or config.width // config.heads
        self.q = nn.Linear(config.width, self.heads * self.head_width, bias=config.qkv_bias)
        self.kv = nn.Linear(config.width, 2 * self.kv_heads * self.head_width, bias=config.qkv_bias)
        self.out = nn.Linear(self.heads * self.head_width, config.width, bias=config.out_bias)

    def forward(self, x: Tensor, view: View) -> Tensor:
        found = view.attend(self, self.q(x).unflatten(-1, (self.heads, -1)))
        out = self.out(found.flatten(1))
        return out if view.sees is None else out * view.sees

    def keys_values(self, features: Tensor) -> Tensor:
        """(features, width) -> (features, 2, kv_heads, head_width)."""
        return self.kv(features).unflatten(-1, (2, self.kv_heads, self.head_width))
