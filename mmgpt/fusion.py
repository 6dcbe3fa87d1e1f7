"""Fusion: adapters from encoder tokens to the GPT's width, and the splice of media tokens into the sequence.

The second way of fusion, cross-attention to tokens beside the sequence, is a part of the GPT's blocks: gpt/cross.py.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgpt.config import AdapterConfig, TokenGrid, slot_count
from mmgpt.encoders.base import sinusoids
from mmgpt.errors import ConfigError


class Adapter(nn.Module):
    """Encoder tokens to features of the GPT's width, which fill slots of the sequence or stand beside it.

    Called with tokens (batch, tokens, width), right-padded, and the TokenGrid of each input; returns the features of
    all inputs end to end (features, gpt width), `slot_count(config, grid)` for each.

    Args:
        config: Which kind, and its sizes.
        width: Width of the encoder's tokens.
        gpt_width: Width of the GPT.
        time_only: Tokens follow each other in time alone (sounds), so pixel_shuffle stacks along it.
        beside: The features stand beside the sequence, and are told their places if config.positions says so.
    """

    def __init__(
        self, config: AdapterConfig, width: int, gpt_width: int, *, time_only: bool = False, beside: bool = False
    ):
        super().__init__()
        self.config = config
        self.positions = beside and config.positions
        self.neighbours = config.factor if time_only else config.factor**2
        if config.kind == "linear":
            self.project = nn.Linear(width, gpt_width)
        elif config.kind == "mlp":
            self.project = _mlp(width, gpt_width)
        elif config.kind == "pixel_shuffle":
            self.project = _mlp(width * self.neighbours, gpt_width)
        elif config.kind == "resampler":
            self.project = Resampler(config, width, gpt_width)
        elif config.kind == "identity":
            if width != gpt_width:
                raise ConfigError(f"adapter identity: width {width} is not the GPT's {gpt_width}; use linear")
            self.project = nn.Identity()
        else:
            raise ConfigError(f"adapter {config.kind}: unknown; use identity, linear, mlp, pixel_shuffle or resampler")

    def forward(self, tokens: Tensor, grids: list[TokenGrid]) -> Tensor:
        if self.positions:
            tokens = tokens + sinusoids(tokens.shape[1], tokens.shape[2]).to(tokens)
        lengths = torch.tensor([grid.count for grid in grids], device=tokens.device)
        if self.config.kind == "resampler":
            return self.project(tokens, lengths).flatten(0, 1)
        valid = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        flat = tokens[valid]  # tokens of all inputs end to end, width
        if self.config.kind == "pixel_shuffle":
            flat = self._gather_neighbours(flat, grids)  # slots, neighbours x width
        return self.project(flat)

    def _gather_neighbours(self, flat: Tensor, grids: list[TokenGrid]) -> Tensor:
        """Space to depth as one gather: index -1 reads the row of zeros appended at the end."""
        index, start = [], 0
        for grid in grids:
            own = _neighbour_index(grid, self.config.factor, self.neighbours)
            index.append(torch.where(own < 0, own, own + start))
            start += grid.count
        padded = torch.cat([flat, flat.new_zeros(1, flat.shape[1])])
        return padded[torch.cat(index).to(flat.device)].flatten(1)


def _mlp(width: int, gpt_width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, gpt_width), nn.GELU(), nn.Linear(gpt_width, gpt_width))


@lru_cache(maxsize=4096)
def _neighbour_index(grid: TokenGrid, factor: int, neighbours: int) -> Tensor:
    """(slots, neighbours) places of the tokens each slot is made of; -1 beyond the rim and beside single tokens."""
    across = 1 if grid.columns == 1 else factor
    body = torch.arange(grid.rows * grid.columns).view(grid.rows, grid.columns) + grid.prefix
    body = F.pad(body, (0, -grid.columns % across, 0, -grid.rows % factor), value=-1)
    body = body.unfold(0, factor, factor).unfold(1, across, across).flatten(2).flatten(0, 1)  # slots, factor x across
    single = torch.cat([torch.arange(grid.prefix), torch.arange(grid.count - grid.suffix, grid.count)])[:, None]
    rows = [F.pad(part, (0, neighbours - part.shape[1]), value=-1) for part in (single, body)]
    return torch.cat([rows[0][: grid.prefix], rows[1], rows[0][grid.prefix :]])


class Resampler(nn.Module):
    """Perceiver resampler (Alayrac et al. 2022, Flamingo): learned queries read any number of tokens.

    tokens (batch, tokens, width), right-padded to their lengths (batch,) -> (batch, queries, gpt width).
    """

    def __init__(self, config: AdapterConfig, width: int, gpt_width: int):
        super().__init__()
        if gpt_width % config.heads:
            raise ConfigError(f"resampler: {config.heads} heads do not divide the GPT's width of {gpt_width}")
        self.queries = nn.Parameter(torch.randn(config.queries, gpt_width) * 0.02)
        self.project = nn.Linear(width, gpt_width)
        self.norm = nn.LayerNorm(gpt_width)
        self.blocks = nn.ModuleList(_ResamplerBlock(gpt_width, config.heads) for _ in range(config.layers))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        media = self.norm(self.project(tokens))  # batch, tokens, gpt width
        queries = self.queries.expand(len(tokens), -1, -1)  # batch, queries, gpt width
        own = torch.ones(self.queries.shape[0], dtype=torch.bool, device=tokens.device)
        visible = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        mask = torch.cat([visible, own.expand(len(tokens), -1)], dim=1)[:, None, None]  # batch, 1, 1, keys
        for block in self.blocks:
            queries = block(queries, media, mask)
        return queries


class _ResamplerBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, queries: Tensor, media: Tensor, mask: Tensor) -> Tensor:
        x = self.query_norm(queries)
        query = self.query(x)
        # As in Flamingo, the queries are among the keys, so they can also read each other.
        key, value = self.key_value(torch.cat([media, x], dim=1)).chunk(2, dim=-1)
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # batch, heads, queries, width
        queries = queries + self.out(attended.transpose(1, 2).flatten(2))
        return queries + self.mlp(queries)


def splice(embeddings: Tensor, features: Tensor, slots: Tensor) -> Tensor:
    """Token embeddings (tokens, width) with the features (slots, width) put at the places `slots` (slots,)."""
    return embeddings.index_copy(0, slots, features.to(embeddings.dtype))


def check_slots(modality: str, expected: list[TokenGrid], lengths: Tensor, config: AdapterConfig) -> None:
    """The encoder must return what the configuration promised, or slots and features would no longer match."""
    promised = [grid.count for grid in expected]
    if promised != lengths.tolist():
        place = next(i for i, (a, b) in enumerate(zip(promised, lengths.tolist(), strict=True)) if a != b)
        raise ConfigError(
            f"{modality} {place} of the batch: the encoder returned {lengths[place]} tokens, its configuration says "
            f"{promised[place]} ({slot_count(config, expected[place])} slots); the configuration is not that of the "
            "encoder: build it from encoder.config"
        )
