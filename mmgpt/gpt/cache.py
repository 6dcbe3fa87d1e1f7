"""The key and value cache of decoding: what each row's document holds so far."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmgpt.config import GPTConfig
from mmgpt.errors import ConfigError
from mmgpt.gpt.documents import Documents


class Cache:
    """Keys and values of `rows` documents, up to `capacity` tokens each.

    `keys` and `values` are (layers, rows, kv_heads, capacity, head_width); `lengths` says how many tokens each row
    holds. No gradient flows through a cache.
    """

    def __init__(
        self,
        config: GPTConfig,
        rows: int,
        capacity: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        config = config.resolved()
        shape = (config.layers, rows, config.kv_heads or 0, capacity, config.head_width or 0)
        # Zeros, not empty memory: masked slots are multiplied by zero, which a NaN would survive.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * rows

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows in this order; a row may be taken more than once (beams)."""
        device, longest = self.keys.device, max(self.lengths, default=0)
        if len(rows) != len(self.lengths):
            index = torch.tensor(rows, dtype=torch.long, device=device)
            self.keys, self.values = self.keys.index_select(1, index), self.values.index_select(1, index)
        elif moved := [i for i, row in enumerate(rows) if row != i]:  # in place, and no more than is needed
            to = torch.tensor(moved, device=device)
            source = torch.tensor([rows[i] for i in moved], device=device)
            for part in (self.keys[..., :longest, :], self.values[..., :longest, :]):
                part[:, to] = part[:, source]
        self.lengths = [self.lengths[row] for row in rows]

    def extend(self, documents: Documents) -> "Extension":
        """Make room for the new tokens of document i after what row i holds. Raises ConfigError if there is none."""
        if len(documents) != len(self.lengths):
            raise ConfigError(f"{len(documents)} documents do not fit a cache of {len(self.lengths)} rows")
        longest = max((old + new for old, new in zip(self.lengths, documents.lengths, strict=True)), default=0)
        if longest > self.capacity:
            raise ConfigError(f"a document of {longest} tokens does not fit the cache's capacity of {self.capacity}")
        return Extension(self, documents)


class Extension:
    """One forward pass of new tokens over a cache: where they are written, and what each bucket may attend to."""

    def __init__(self, cache: Cache, documents: Documents):
        self.cache = cache
        self.documents = documents
        device = documents.device
        starts = torch.tensor(cache.lengths, device=device)
        self.positions = documents.positions + starts[documents.numbers]  # (tokens,), continuing each row
        self.longest = max((old + new for old, new in zip(cache.lengths, documents.lengths, strict=True)), default=0)
        self.rows: list[Tensor | None] = []  # of the cache, for each bucket; None means all
        self.totals: list[int] = []  # cached tokens each bucket looks at; 0 means its new tokens alone
        self.masks: list[Tensor | None] = []  # (rows, 1, longest, total); None means no mask
        for bucket in documents.buckets:
            old = [cache.lengths[i] for i in bucket.documents]
            total = max(a + b for a, b in zip(old, bucket.lengths, strict=True)) if any(old) else 0
            everyone = bucket.documents == tuple(range(len(documents)))
            self.totals.append(total)
            self.rows.append(None if everyone else torch.tensor(bucket.documents, device=device))
            if total == 0 or (bucket.longest == 1 and len(set(old)) == 1):
                self.masks.append(None)
            else:
                last = torch.tensor(old, device=device)[:, None] + torch.arange(bucket.longest, device=device)
                self.masks.append((torch.arange(total, device=device) <= last[:, :, None])[:, None])

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store the new tokens' keys and values (tokens, kv_heads, head_width)."""
        where = (self.documents.numbers, slice(None), self.positions)
        self.cache.keys[layer][where] = keys.detach().to(self.cache.keys.dtype)
        self.cache.values[layer][where] = values.detach().to(self.cache.values.dtype)

    def read(self, layer: int, bucket: int) -> tuple[Tensor, Tensor]:
        """Keys and values, old and new, of a bucket's rows: (rows, kv_heads, total, head_width) each."""
        keys = self.cache.keys[layer, :, :, : self.totals[bucket]]
        values = self.cache.values[layer, :, :, : self.totals[bucket]]
        rows = self.rows[bucket]
        return (keys, values) if rows is None else (keys.index_select(0, rows), values.index_select(0, rows))

    def close(self) -> None:
        """All layers are written: count the new tokens."""
        new = self.documents.lengths
        self.cache.lengths = [a + b for a, b in zip(self.cache.lengths, new, strict=True)]
