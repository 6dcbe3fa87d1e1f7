"""The GPT: a decoder-only transformer over flat ragged batches; GPT-2, Llama and Qwen are settings of it.

Tokens of all documents lie one after another, (tokens, width). Norms and linear layers never see where a document ends;
attention alone does, through `Documents`.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.config import GPTConfig
from mmgpt.errors import ConfigError
from mmgpt.gpt.cache import Cache, Extension
from mmgpt.gpt.documents import Documents
from mmgpt.gpt.weights import load_pretrained

Rotary = tuple[Tensor, Tensor]  # cosines and sines, (tokens, 1, head_width / 2)

INITIAL_STD = 0.02


def norm(config: GPTConfig) -> nn.Module:
    if config.norm == "rms":
        return nn.RMSNorm(config.width, eps=config.norm_eps)
    return nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.bias)


def angles(positions: Tensor, width: int, base: float) -> Rotary:
    """Cosine and sine of position x base^(-2i / width), (tokens, width / 2) each, always of float32's precision."""
    frequencies = base ** (-torch.arange(0, width, 2, device=positions.device).float() / width)
    phase = positions.float()[:, None] * frequencies
    return phase.cos(), phase.sin()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn each head's halves (x1, x2) by their position's angles: (tokens, heads, head_width) in and out."""
    cos, sin = rotary
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention, with fewer key and value heads if so configured (grouped queries, Ainslie et al. 2023)."""

    def __init__(self, config: GPTConfig, layer: int, causal: bool):
        super().__init__()
        self.layer, self.causal = layer, causal
        self.heads, self.kv_heads = config.heads, config.kv_heads or config.heads
        self.head_width = config.head_width or config.width // config.heads
        qkv_width = (self.heads + 2 * self.kv_heads) * self.head_width
        self.qkv = nn.Linear(config.width, qkv_width, bias=config.attention_bias)
        self.out = nn.Linear(self.heads * self.head_width, config.width, bias=config.bias)

    def forward(self, x: Tensor, documents: Documents, rotary: Rotary | None, past: Extension | None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_width))  # tokens, heads + 2 kv_heads, head_width
        if rotary is not None:
            qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
            qkv = torch.cat([rotate(qk, rotary), v], dim=1)
        if past is not None:
            _, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            past.write(self.layer, k, v)
        parts = [self.attend(part, i, documents, past) for i, part in enumerate(documents.pad(qkv))]
        return self.out(documents.flatten(parts).flatten(1))

    def attend(self, qkv: Tensor, bucket: int, documents: Documents, past: Extension | None) -> Tensor:
        """One bucket: (rows, longest, heads + 2 kv_heads, head_width) -> (rows, longest, heads, head_width)."""
        q, k, v = qkv.transpose(1, 2).split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        mask, causal = None, self.causal
        if not self.causal:
            mask = documents.masks[bucket]
        elif past is not None and past.totals[bucket]:
            k, v = (cached.to(q.dtype) for cached in past.read(self.layer, bucket))
            mask, causal = past.masks[bucket], False
        grouped = self.kv_heads != self.heads
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return out.transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.activation = config.activation
        hidden = config.mlp_width or 4 * config.width
        gates = 2 if config.activation == "swiglu" else 1  # swiglu: the gate's rows, then the values'
        self.up = nn.Linear(config.width, gates * hidden, bias=config.bias)
        self.down = nn.Linear(hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.activation == "swiglu":
            gate, value = x.chunk(2, dim=-1)
            return self.down(F.silu(gate) * value)
        return self.down(F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none"))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream: (tokens, width) in and out."""

    def __init__(self, config: GPTConfig, layer: int = 0, causal: bool = True):
        super().__init__()
        self.attention_norm = norm(config)
        self.attention = Attention(config, layer, causal)
        self.mlp_norm = norm(config)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, documents: Documents, rotary: Rotary | None = None, past: Extension | None = None
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), documents, rotary, past))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Transformer(nn.Module):
    """Positions, blocks and the final norm: what a decoder (causal) and an encoder (not causal) share."""

    def __init__(self, config: GPTConfig, causal: bool = True):
        super().__init__()
        self.config = config = config.resolved()
        self.position = nn.Embedding(config.context, config.width) if config.position == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer, causal) for layer in range(config.layers))
        self.norm = norm(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """GPT-2's: small weights; those that write to the residual stream smaller still, the deeper the network is."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                residual = name.endswith((".out", ".down"))
                nn.init.normal_(module.weight, std=INITIAL_STD * ((2 * self.config.layers) ** -0.5 if residual else 1))
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, documents: Documents, cache: Cache | None = None) -> Tensor:
        """(tokens, width) -> (tokens, width). With a cache, document i continues what the cache's row i holds."""
        for state in self.states(x, documents, cache):
            x = state
        return x

    def states(self, x: Tensor, documents: Documents, cache: Cache | None = None) -> Iterator[Tensor]:
        """The residual stream with positions, then after each block; the last one after the final norm."""
        documents = documents.to(x.device)
        past = cache.extend(documents) if cache is not None else None
        longest = past.longest if past is not None else documents.longest
        if longest > self.config.context:
            raise ConfigError(f"a document of {longest} tokens is longer than the context of {self.config.context}")
        positions = past.positions if past is not None else documents.positions
        rotary = None
        if self.config.position == "rotary":
            cos, sin = angles(positions, self.config.head_width or 0, self.config.rotary_base)
            rotary = cos[:, None], sin[:, None]
        elif self.position is not None:
            x = x + self.position(positions)
        else:
            cos, sin = angles(positions, self.config.width + 1, 10_000.0)
            wave = torch.cat([sin, cos], dim=-1)[:, : self.config.width]
            # As large as the embeddings at their start, as it is in Vaswani et al. 2017.
            x = x + (math.sqrt(2) * INITIAL_STD * wave).to(x.dtype)
        x = self.dropout(x)
        for block in self.blocks:
            yield x
            x = block(x, documents, rotary, past)
        if past is not None:
            past.close()
        yield self.norm(x)


class GPT(nn.Module):
    """Token embedding, transformer and output head."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        if config.vocab_size < 1:
            raise ConfigError("gpt.vocab_size: a GPT needs the number of its token ids")
        self.config = config.resolved()
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.transformer = Transformer(config)
        nn.init.normal_(self.embedding.weight, std=INITIAL_STD)
        self.lm_head = None if config.tied_head else nn.Linear(config.width, config.vocab_size, bias=False)
        if self.lm_head is not None:
            nn.init.normal_(self.lm_head.weight, std=INITIAL_STD)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "GPT":
        """A checkpoint of transformers' GPT-2 family: a directory, or a Hub id such as "gpt2"; in evaluation mode.

        Raises CheckpointError.
        """
        return load_pretrained(source, cls)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (tokens,) -> (tokens, width), as yet without positions."""
        return self.embedding(ids)

    def transform(self, x: Tensor, documents: Documents, cache: Cache | None = None) -> Tensor:
        """Blocks and final norm: (tokens, width) -> (tokens, width). Raises ConfigError beyond the context.

        With a cache, document i is what follows the tokens of its row i, and is added to them.
        """
        return self.transformer(x, documents, cache)

    def head(self, hidden: Tensor) -> Tensor:
        """Final hidden states (..., width) -> logits (..., vocabulary)."""
        return F.linear(hidden, self.embedding.weight if self.lm_head is None else self.lm_head.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (batch, tokens) -> logits (batch, tokens, vocabulary)."""
        return self.head(self.hidden_states(ids, [-1])[0])

    def hidden_states(self, ids: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Hidden states (batch, tokens, width) of each of `layers`, for token ids (batch, tokens).

        0 is the embeddings with their positions, n is after block n, and the last (-1) is after the final norm.
        """
        count = self.config.layers + 1
        wanted = [layer + count if layer < 0 else layer for layer in layers]
        if not all(0 <= layer < count for layer in wanted):
            raise ConfigError(f"layers: {list(layers)} are not all in {-count}..{count - 1}")
        documents = Documents([ids.shape[1]] * ids.shape[0], ids.device)
        states = self.transformer.states(self.embed(ids.flatten()), documents)
        kept = {layer: state.view(*ids.shape, -1) for layer, state in enumerate(states) if layer in wanted}
        return [kept[layer] for layer in wanted]

    def cache(self, rows: int, capacity: int) -> Cache:
        """An empty cache of this model's type and device."""
        weight = self.embedding.weight
        return Cache(self.config, rows, capacity, weight.dtype, weight.device)
