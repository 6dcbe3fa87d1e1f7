"""The key and value cache of decoding: what each row's document holds so far, and passes of new tokens over it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mmgpt.config import GPTConfig
from mmgpt.errors import ConfigError
from mmgpt.gpt.attention import attention, within
from mmgpt.gpt.cross import NEVER, CrossAttention, Media, View

# On a CPU, rows of unequal length share one call of attention while what it reads of pads costs less than a call of
# their own; on a GPU calls are what costs, and all rows share one.
MOST_PADDING_BYTES = 400_000


class Cache:
    """Keys and values of `rows` documents, up to `capacity` tokens each.

    `keys` and `values` are (layers, rows, kv_heads, capacity, head_width); `lengths` says how many tokens each row
    holds. Beside them stand keys and values of the media that a row's tokens look at, up to `media` tokens of them
    (cross-attention alone): `media_lengths`, and the position `since` (rows, media) from which each is seen. No
    gradient flows through a cache.
    """

    def __init__(
        self,
        config: GPTConfig,
        rows: int,
        capacity: int,
        media: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        config = config.resolved()
        shape = (config.layers, rows, config.kv_heads or 0, capacity, config.head_width or 0)
        # Zeros, not empty memory: masked slots are multiplied by zero, which a NaN would survive.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * rows
        shape = (*shape[:3], media, shape[4])
        self.media_keys = torch.zeros(shape, dtype=dtype, device=device)
        self.media_values = torch.zeros(shape, dtype=dtype, device=device)
        self.media_lengths = [0] * rows
        self.since = torch.full((rows, media), NEVER, device=device)

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def media_capacity(self) -> int:
        return self.media_keys.shape[3]

    @property
    def token_bytes(self) -> int:
        """Memory of a token's keys and values in all layers."""
        layers, _, kv_heads, _, head_width = self.keys.shape
        return 2 * layers * kv_heads * head_width * self.keys.element_size()

    def extend(self, lengths: Sequence[int], rows: Sequence[int] | None = None) -> "Extension":
        """A pass of new tokens: `lengths[i]` of them follow what row `rows[i]` holds (rows ascend; None means all).

        Raises ConfigError where there is no room for them.
        """
        rows = range(self.rows) if rows is None else rows
        if len(lengths) != len(rows):
            raise ConfigError(f"{len(lengths)} documents do not fit {len(rows)} rows of the cache")
        extension = Extension(self, lengths, rows)
        if extension.longest > self.capacity:
            raise ConfigError(
                f"a document of {extension.longest} tokens does not fit the cache's capacity of {self.capacity}"
            )
        return extension

    def copy(self, source: int, target: int, start: int = 0) -> None:
        """Make row `target` hold what row `source` does; up to token `start` it already does."""
        end = self.lengths[source]
        for part in (self.keys, self.values):
            part[:, target, :, start:end] = part[:, source, :, start:end]
        if not start and (seen := max(self.media_lengths[source], self.media_lengths[target])):
            for part in (self.media_keys, self.media_values):
                part[:, target, :, :seen] = part[:, source, :, :seen]
            self.since[target] = self.since[source]
        self.lengths[target], self.media_lengths[target] = end, self.media_lengths[source]

    def permute(self, sources: dict[int, int], start: int) -> None:
        """At once for all, row `target` goes on as row `source` from token `start` on, for target: source."""
        if not (moved := {target: source for target, source in sources.items() if target != source}):
            return
        longest = max(self.lengths[source] for source in moved.values())
        to, source = (torch.tensor(list(some), device=self.keys.device) for some in (moved, moved.values()))
        for part in (self.keys[:, :, :, start:longest], self.values[:, :, :, start:longest]):
            part[:, to] = part[:, source]
        self.lengths = [self.lengths[sources.get(row, row)] for row in range(self.rows)]

    def clear(self, row: int) -> None:
        """Forget what a row holds."""
        self.truncate(row, 0)

    def truncate(self, row: int, length: int) -> None:
        """Forget what row `row` holds from token `length` on, and the media that no token before it sees."""
        self.lengths[row] = min(self.lengths[row], length)
        if before := self.media_lengths[row]:
            kept = (self.since[row, :before] < length).nonzero().squeeze(1)
            if len(kept) == before:
                return
            media = torch.stack([part[:, row, :, kept] for part in (self.media_keys, self.media_values)])
            since = self.since[row, kept]
            self.since[row], self.media_lengths[row] = NEVER, 0
            self.write_media(row, media, since)

    def read(self, row: int, start: int, end: int) -> Tensor:
        """A copy of keys and values of tokens start..end: (2, layers, kv_heads, tokens, head_width)."""
        return torch.stack([part[:, row, :, start:end] for part in (self.keys, self.values)])

    def write(self, row: int, tokens: Tensor) -> None:
        """Put keys and values that `read` gave behind what the row holds."""
        start = self.lengths[row]
        end = start + tokens.shape[3]
        self.keys[:, row, :, start:end], self.values[:, row, :, start:end] = tokens
        self.lengths[row] = end

    def read_media(self, row: int) -> Tensor:
        """A copy of keys and values of the media that a row's tokens see: (2, layers, kv_heads, media, head_width)."""
        seen = self.media_lengths[row]
        return torch.stack([part[:, row, :, :seen] for part in (self.media_keys, self.media_values)])

    def write_media(self, row: int, media: Tensor, since: Tensor) -> None:
        """Put what `read_media` gave beside a row without media; each is seen from position since (media,) on."""
        seen = len(since)
        self.media_keys[:, row, :, :seen], self.media_values[:, row, :, :seen] = media
        self.since[row, :seen], self.media_lengths[row] = since, seen

    def grown(self, rows: int, capacity: int, media: int) -> "Cache":
        """A cache of another size that holds the same; what it has no room for must have been cleared."""
        other = Cache.__new__(Cache)
        kept = range(min(rows, self.rows))
        for names, size, lengths in (
            (("keys", "values"), capacity, self.lengths),
            (("media_keys", "media_values"), media, self.media_lengths),
        ):
            for name in names:
                old = getattr(self, name)
                new = old.new_zeros((old.shape[0], rows, old.shape[2], size, old.shape[4]))
                for row in kept:
                    new[:, row, :, : lengths[row]] = old[:, row, :, : lengths[row]]
                setattr(other, name, new)
        empty = [0] * (rows - len(kept))
        other.lengths = self.lengths[: len(kept)] + empty
        other.media_lengths = self.media_lengths[: len(kept)] + empty
        other.since = self.since.new_full((rows, media), NEVER)
        for row in kept:
            seen = self.media_lengths[row]
            other.since[row, :seen] = self.since[row, :seen]
        return other


@dataclass(frozen=True)
class Run:
    """Consecutive rows of a cache that get equally many new tokens: one call of attention, without any gathering.

    `rows` of the cache; `old` tokens that each held; `new` tokens that each gets, at `tokens` of the flat batch.
    """

    rows: slice
    old: tuple[int, ...]
    new: int
    tokens: slice

    @property
    def total(self) -> int:
        return max(self.old) + self.new


@dataclass(frozen=True)
class Sight:
    """What a run may attend to: keys and values of each layer, (rows, kv_heads, seen, head_width), and how far."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    mask: Tensor | None
    causal: bool


class Extension:
    """One forward pass of new tokens over a cache: where they are written, and what each run of rows may attend to.

    It stands where `Documents` stands in a pass without a cache: the new tokens of all its rows lie one after another.
    """

    def __init__(self, cache: Cache, lengths: Sequence[int], rows: Sequence[int]):
        self.cache = cache
        self.lengths = list(lengths)
        self.rows = list(rows)
        self.device = cache.keys.device
        self.longest = max((cache.lengths[row] + new for row, new in zip(rows, lengths, strict=True)), default=0)
        self._token_bytes = cache.token_bytes // len(cache.keys)  # in one layer
        self._sights: dict[int | None, list[Sight]] = {}  # by window, shared by the layers
        self.buckets = list(self._runs())

    def to(self, device: torch.device | str) -> "Extension":
        """Itself: the cache says where it is."""
        return self

    def _runs(self) -> Iterable[Run]:
        start = 0  # of the next run, in the flat tokens
        rows: list[int] = []
        old: list[int] = []
        new = 0
        on_cpu = self.device.type == "cpu"
        for row, length in [*zip(self.rows, self.lengths, strict=True), (None, 0)]:
            if rows and (row is None or row != rows[-1] + 1 or length != new or self._too_wasteful(row, old, on_cpu)):
                tokens = slice(start, start + new * len(rows))
                yield Run(slice(rows[0], rows[-1] + 1), tuple(old), new, tokens)
                start = tokens.stop
                rows, old = [], []
            if row is not None and length:
                rows, old, new = [*rows, row], [*old, self.cache.lengths[row]], length

    def _too_wasteful(self, row: int, old: list[int], on_cpu: bool) -> bool:
        """Whether the row should have an attention call of its own; mixing new documents with old ones costs a mask."""
        length, longest = self.cache.lengths[row], max(old)
        if (length == 0) != (longest == 0):
            return True
        pads = longest - length if length <= longest else (length - longest) * len(old)
        return on_cpu and pads * self._token_bytes > MOST_PADDING_BYTES

    @cached_property
    def positions(self) -> Tensor:
        """Position of each new token in its document, (tokens,)."""
        starts = torch.tensor([self.cache.lengths[row] for row in self.rows])
        lengths = torch.tensor(self.lengths)
        ends = lengths.cumsum(0)
        first = (starts - ends + lengths).repeat_interleave(lengths)
        return (first + torch.arange(len(first))).to(self.device)

    @cached_property
    def _where(self) -> Tensor:
        """The cache's row of each new token, (tokens,)."""
        return torch.tensor(self.rows).repeat_interleave(torch.tensor(self.lengths)).to(self.device)

    def pad(self, x: Tensor) -> list[Tensor]:
        """(tokens, ...) -> one (rows, new, ...) for each run."""
        return [x[run.tokens].unflatten(0, (-1, run.new)) for run in self.buckets]

    def flatten(self, parts: list[Tensor]) -> Tensor:
        """One (rows, new, ...) for each run -> (tokens, ...)."""
        flat = [part.flatten(0, 1) for part in parts]
        return flat[0] if len(flat) == 1 else torch.cat(flat)

    def look(self, media: Media | None) -> bool:
        """Count new media of the documents into the cache; whether any row of this pass sees media at all.

        They stand beside those that a row has already. Raises ConfigError where there is no room for them.
        """
        if media is not None:
            ends = [self.cache.media_lengths[row] + new for row, new in zip(self.rows, media.lengths, strict=True)]
            if max(ends, default=0) > self.cache.media_capacity:
                raise ConfigError(f"{max(ends)} media tokens do not fit the cache's {self.cache.media_capacity}")
            for row, end, since in zip(self.rows, ends, media.since.split(media.lengths), strict=True):
                self.cache.since[row, end - len(since) : end], self.cache.media_lengths[row] = since, end
        return any(self.cache.media_lengths[row] for row in self.rows)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        """Store the new tokens' keys and values; attention of each new token to its document up to itself.

        q (tokens, heads, head_width), k and v (tokens, kv_heads, head_width) -> (tokens, heads, head_width).
        """
        cache = self.cache
        q, k, v = (part.detach().to(cache.keys.dtype) for part in (q, k, v))
        if self._level is not None:
            keys, values = self._level
            keys[layer].copy_(k)
            values[layer].copy_(v)
        else:
            cache.keys[layer, self._where, :, self.positions] = k
            cache.values[layer, self._where, :, self.positions] = v
        if window not in self._sights:
            self._sights[window] = [self._sight(run, window) for run in self.buckets]
        parts = [
            attention(queries, sight.keys[layer], sight.values[layer], sight.mask, sight.causal)
            for sight, queries in zip(self._sights[window], self.pad(q), strict=True)
        ]
        return self.flatten(parts)

    @cached_property
    def _level(self) -> tuple[Sequence[Tensor], Sequence[Tensor]] | None:
        """Where keys and values of each layer go if each row gets one, all at one place: the usual case, and fast."""
        if len(self.buckets) != 1 or self.buckets[0].new != 1 or len(set(self.buckets[0].old)) != 1:
            return None
        rows, at = self.buckets[0].rows, self.buckets[0].old[0]
        return self.cache.keys[:, rows, :, at].unbind(), self.cache.values[:, rows, :, at].unbind()

    def _sight(self, run: Run, window: int | None) -> "Sight":
        start = 0 if window is None else max(0, min(run.old) + 1 - window)
        keys, values = (part[:, run.rows, :, start : run.total] for part in (self.cache.keys, self.cache.values))
        return Sight(keys.unbind(), values.unbind(), *self._mask(run, start, window))

    def _mask(self, run: Run, start: int, window: int | None) -> tuple[Tensor | None, bool]:
        """The mask (rows, 1, new, total - start) of a run, or whether attention is plainly causal."""
        level = len(set(run.old)) == 1
        all_seen = window is None or run.total - start <= window
        if level and all_seen and run.new == 1:
            return None, False
        if level and all_seen and run.old[0] == 0:
            return None, True
        positions = self.positions[run.tokens].view(-1, 1, run.new, 1)
        back = positions - torch.arange(start, run.total, device=self.device)  # rows, 1, new, seen
        return within(back, window), False

    def close(self) -> None:
        """All layers are written: count the new tokens."""
        for row, new in zip(self.rows, self.lengths, strict=True):
            self.cache.lengths[row] += new


class CachedView(View):
    """Media kept beside a cache: keys and values of new media are written once, then read for each token."""

    def __init__(self, extension: Extension, media: Media | None):
        self.media, self.cache = media, extension.cache
        self.sights: list[tuple[slice, int, Tensor | None]] = []  # rows, how many they see at most, and the mask
        blind = []
        for run, positions in zip(extension.buckets, extension.pad(extension.positions), strict=True):
            seen = max(self.cache.media_lengths[run.rows])
            mask, unseeing = self.look(self.cache.since[run.rows, :seen], positions)
            self.sights.append((run.rows, seen, mask))
            blind.append(unseeing)
        if media is not None:
            ends = [self.cache.media_lengths[row] for row in extension.rows]  # they are counted already
            places = [torch.arange(end - new, end) for end, new in zip(ends, media.lengths, strict=True)]
            device = media.features.device
            self.rows = torch.tensor(extension.rows).repeat_interleave(torch.tensor(media.lengths)).to(device)
            self.places = torch.cat(places).to(device)
        super().__init__(extension, blind)

    def attend(self, layer: CrossAttention, q: Tensor) -> Tensor:
        keys, values = self.cache.media_keys[layer.layer], self.cache.media_values[layer.layer]
        if self.media is not None:
            k, v = layer.keys_values(self.media.features)[self.media.index].unbind(1)  # seen, kv_heads, head_width
            keys[self.rows, :, self.places] = k.detach().to(keys.dtype)
            values[self.rows, :, self.places] = v.detach().to(values.dtype)
        parts = []
        for part, (rows, seen, mask) in zip(self.layout.pad(q), self.sights, strict=True):
            if seen:
                k, v = (kept[rows, :, :seen].to(q.dtype) for kept in (keys, values))
                part = attention(part, k, v, mask)
            parts.append(part)
        return self.layout.flatten(parts)
