"""The GPT: a decoder-only transformer over flat ragged batches; GPT-2, Llama, Mistral and Qwen are settings of it.

Tokens of all documents lie one after another, (tokens, width). Norms and linear layers never see where a document ends;
attention alone does, through its layout: `Documents`, or the `Extension` of a cache.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmgpt.config import GPTConfig, RotaryScaling
from mmgpt.errors import ConfigError
from mmgpt.gpt.cache import Cache, CachedView, Extension
from mmgpt.gpt.cross import CrossAttention, FreshView, Media, View
from mmgpt.gpt.documents import Documents
from mmgpt.gpt.loss import cross_entropy
from mmgpt.gpt.weights import load_pretrained, save_pretrained

Rotary = tuple[Tensor, Tensor]  # cosines and sines, (tokens, 1, head_width / 2)

INITIAL_STD = 0.02


def norm(config: GPTConfig) -> nn.Module:
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.width, eps=config.norm_eps)


def frequencies(width: int, base: float, scaling: RotaryScaling | None = None) -> Tensor:
    """The angle from one position to the next of each pair, (width / 2,): base^(-2i / width), stretched if so asked.

    Rounded as transformers rounds it: at position 10,000 an angle is off by 10,000 times the error of its frequency.
    """
    plain = 1 / base ** (torch.arange(0, width, 2).float() / width)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    turns = scaling.original_context / (2 * math.pi / plain)  # over the context trained on at first
    keep = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return (1 - keep) * plain / scaling.factor + keep * plain


def angles(positions: Tensor, frequencies: Tensor) -> Rotary:
    """Cosine and sine of position x frequency, (tokens, width / 2) each, always of float32's precision."""
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
        windowed = config.window_layers is None or layer in config.window_layers
        self.window = config.window if windowed else None
        qkv_width = (self.heads + 2 * self.kv_heads) * self.head_width
        self.qkv = nn.Linear(config.width, qkv_width, bias=config.qkv_bias)
        self.q_norm = nn.RMSNorm(self.head_width, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(self.head_width, eps=config.norm_eps) if config.qk_norm else None
        self.out = nn.Linear(self.heads * self.head_width, config.width, bias=config.out_bias)

    def forward(
        self, x: Tensor, layout: Documents | Extension, rotary: Rotary | None, places: Tensor | None = None
    ) -> Tensor:
        """(tokens, width) -> (tokens, width), or of those at `places` alone."""
        qkv = self.qkv(x).view(len(x), -1, self.head_width)  # tokens, heads + 2 kv_heads, head_width
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if isinstance(layout, Extension):
            found = layout.attend(self.layer, q, k, v, self.window)
        else:
            found = layout.attend(q, k, v, self.causal, self.window)
        return self.out(at(found, places).flatten(1))


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its approximation with tanh (Hendrycks and Gimpel 2016): x (1 + tanh u) / 2, with u a polynomial of x.

    That is x sigmoid(2u), which a CPU computes in half the time, since an exponential costs it less than tanh; in
    float32, since smaller types would be rounded at each step.
    """
    if x.requires_grad or x.device.type != "cpu" or x.dtype != torch.float32:
        return F.gelu(x, approximate="tanh")
    factor = 2 * math.sqrt(2 / math.pi)
    twice = torch.addcmul(x.new_tensor(factor), x, x, value=0.044715 * factor).mul_(x)
    return twice.sigmoid_().mul_(x)


class MLP(nn.Module):
    """Two linear layers with GELU between them, or SwiGLU: (tokens, width) in and out."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.activation = config.activation
        hidden = config.mlp_width or 4 * config.width
        gates = 2 if config.activation == "swiglu" else 1  # swiglu: the gate's rows, then the values'
        self.up = nn.Linear(config.width, gates * hidden, bias=config.mlp_bias)
        self.down = nn.Linear(hidden, config.width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.activation == "swiglu":
            gate, value = x.chunk(2, dim=-1)
            return self.down(F.silu(gate) * value)
        return self.down(gelu_tanh(x) if self.activation == "gelu_tanh" else F.gelu(x))


def at(x: Tensor, places: Tensor | None) -> Tensor:
    """(tokens, ...) -> (places, ...), or all of it without any."""
    return x if places is None else x.index_select(0, places)


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream: (tokens, width) in and out.

    Given `places`, those tokens alone come out, and what is not seen by others is computed for them alone.

    Layers that attend to media do so between the two, or in a `GatedCross` before them.
    """

    def __init__(self, config: GPTConfig, layer: int = 0, causal: bool = True):
        super().__init__()
        looks = config.cross is not None and (config.cross_layers is None or layer in config.cross_layers)
        self.gated = GatedCross(config, layer) if looks and config.cross == "gated" else None
        self.attention_norm = norm(config)
        self.attention = Attention(config, layer, causal)
        self.cross_norm = norm(config) if looks and config.cross == "inside" else None
        self.cross = CrossAttention(config, layer) if looks and config.cross == "inside" else None
        self.mlp_norm = norm(config)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(
        self,
        x: Tensor,
        layout: Documents | Extension,
        rotary: Rotary | None = None,
        media: View | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        if self.gated is not None and media is not None:
            x = self.gated(x, media)
        if self.cross is not None and self.cross_norm is not None and media is not None:
            x = x + self._drop(self.attention(self.attention_norm(x), layout, rotary))
            x = at(x + self._drop(self.cross(self.cross_norm(x), media)), places)
        else:
            x = at(x, places) + self._drop(self.attention(self.attention_norm(x), layout, rotary, places))
        return x + self._drop(self.mlp(self.mlp_norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class GatedCross(nn.Module):
    """Attention to media and an MLP, both behind gates that start closed, so that a pretrained GPT starts as it was.

    The gated cross-attention block of Flamingo (Alayrac et al. 2022). Tokens that see no media pass unchanged, so that
    texts without media stay what they were after training too.
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.norm = norm(config)
        self.attention = CrossAttention(config, layer)
        self.gate = nn.Parameter(torch.zeros(1))
        self.mlp_norm = norm(config)
        self.mlp = MLP(config)
        self.mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, media: View) -> Tensor:
        x = x + self.gate.tanh() * self.attention(self.norm(x), media)
        out = self.mlp_gate.tanh() * self.mlp(self.mlp_norm(x))
        return x + (out if media.sees is None else out * media.sees)


class Transformer(nn.Module):
    """Positions, blocks and the final norm: what a decoder (causal) and an encoder (not causal) share.

    `checkpointing`, if set, holds only what goes into each block while training, and computes the rest again in the
    backward pass (activation checkpointing, Chen et al. 2016).
    """

    def __init__(self, config: GPTConfig, causal: bool = True):
        super().__init__()
        self.config = config = config.resolved()
        self.position = nn.Embedding(config.context, config.width) if config.position == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer, causal) for layer in range(config.layers))
        self.norm = norm(config)
        self.checkpointing = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """GPT-2's: small weights; those that write to the residual stream smaller still, the deeper the network is."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                residual = name.endswith((".out", ".down"))
                nn.init.normal_(module.weight, std=INITIAL_STD * ((2 * self.config.layers) ** -0.5 if residual else 1))
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self, x: Tensor, layout: Documents | Extension, media: Media | None = None, places: Tensor | None = None
    ) -> Tensor:
        """(tokens, width) -> (tokens, width), or of those at `places` alone.

        In an Extension, documents continue what the rows of its cache hold.
        """
        for state in self.states(x, layout, media, places):
            x = state
        return x

    def states(
        self, x: Tensor, layout: Documents | Extension, media: Media | None = None, places: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The residual stream with positions, then after each block; the last one after the final norm, at `places`."""
        layout = layout.to(x.device)
        if layout.longest > self.config.context:
            raise ConfigError(
                f"a document of {layout.longest} tokens is longer than the context of {self.config.context}"
            )
        rotary = None
        config = self.config
        if config.position == "rotary":
            steps = frequencies(config.head_width or 0, config.rotary_base, config.rotary_scaling).to(x.device)
            cos, sin = angles(layout.positions, steps)
            rotary = cos[:, None], sin[:, None]
        elif self.position is not None:
            x = x + self.position(layout.positions)
        else:
            cos, sin = angles(layout.positions, frequencies(config.width + 1, 10_000.0).to(x.device))
            wave = torch.cat([sin, cos], dim=-1)[:, : config.width]
            # As large as the embeddings at their start, as it is in Vaswani et al. 2017.
            x = x + (math.sqrt(2) * INITIAL_STD * wave).to(x.dtype)
        x = self.dropout(x)
        seen: View | None = None
        if isinstance(layout, Extension):
            seen = CachedView(layout, media) if layout.look(media) else None
        elif media is not None and any(media.lengths):
            seen = FreshView(layout, media)
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            yield x
            step = partial(checkpoint, block, use_reentrant=False) if again else block
            x = step(x, layout, rotary, seen, places if block is self.blocks[-1] else None)
        if isinstance(layout, Extension):
            layout.close()
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
    def build(cls, config: GPTConfig) -> "GPT":
        """A new GPT; where config.weights names a pretrained one, that one with the vocabulary, the cross-attention and
        the dropout of the configuration.

        Embeddings of new tokens start near the mean of those there are (Hewitt 2021), rows of no token are dropped,
        and new cross-attention starts as in a new GPT.

        Raises:
            ConfigError: Another setting than these is neither left out nor that of the pretrained one.
            CheckpointError: The weights cannot be used.
        """
        if config.weights is None:
            return cls(config)
        start = cls.from_pretrained(config.weights)
        has = start.config
        free = {"weights", "vocab_size", "dropout", *(("cross", "cross_layers") if has.cross is None else ())}
        for name in (field.name for field in fields(GPTConfig) if field.name not in free):
            if (value := getattr(config, name)) not in (getattr(GPTConfig, name), getattr(has, name)):
                raise ConfigError(
                    f"gpt.{name}: {value!r}, but {config.weights} has {getattr(has, name)!r}; leave it out"
                )
        own = replace(has, vocab_size=config.vocab_size or has.vocab_size, dropout=config.dropout)
        if has.cross is None:
            own = replace(own, cross=config.cross, cross_layers=config.cross_layers)
        model, state = cls(own), start.state_dict()
        for name in ("embedding.weight", "lm_head.weight"):
            if name in state:
                new = state[name].mean(0) + INITIAL_STD * torch.randn_like(model.embedding.weight)  # vocabulary, width
                state[name] = torch.cat([state[name], new[len(state[name]) :]])[: own.vocab_size]
        model.load_state_dict(state, strict=False)
        return model

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "GPT":
        """A checkpoint of transformers: GPT-2, Llama, Mistral, Qwen2 or Qwen3; in evaluation mode and default dtype.

        The families are those of config.json's model_type; Llama's has TinyLlama, SmolLM2 and others too. What changes
        the numbers and is not supported is refused (rope types other than default, linear and llama3, quantization).
        Raises CheckpointError.

        Args:
            source: A directory with config.json and model.safetensors (whole or sharded), or a Hub id such as "gpt2".
        """
        return load_pretrained(source, cls)

    def save_pretrained(self, directory: str | Path, format: Literal["hf"] = "hf") -> None:
        """Write config.json and model.safetensors, which transformers' AutoModelForCausalLM and from_pretrained load.

        The family is the first of GPT-2, Llama, Mistral, Qwen2 and Qwen3 that has the configuration; dropout is left
        out where it has none. Weights keep their dtype; more than 5 GB of them are written in shards. What was in the
        directory is replaced once all files are whole. Raises ConfigError naming the settings that no family has, and
        WriteError.

        Args:
            directory: Where to; it is made if need be.
            format: Hugging Face's, the only one.
        """
        if format != "hf":
            raise ConfigError(f'format: {format!r} is unknown; "hf" is the only one')
        save_pretrained(self, self.config, directory)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (tokens,) -> (tokens, width), as yet without positions."""
        return self.embedding(ids)

    def transform(
        self, x: Tensor, layout: Documents | Extension, media: Media | None = None, places: Tensor | None = None
    ) -> Tensor:
        """Blocks and final norm: (tokens, width) -> (tokens, width), or (places, width).

        The last block computes what is asked for alone: of a picture and its caption, the keys and values of the
        picture, and all of the caption. Raises ConfigError beyond the context.

        Args:
            x: Embeddings of all documents, one after another.
            layout: Where documents begin and end; `cache.extend(...)` for documents that go on from a cache.
            media: What the documents' layers may look at, where the configuration has cross-attention.
            places: Numbers of the tokens whose hidden states are asked for; all of them if None.
        """
        return self.transformer(x, layout, media, places)

    def head(self, hidden: Tensor) -> Tensor:
        """Final hidden states (..., width) -> logits (..., vocabulary)."""
        return F.linear(hidden, self.embedding.weight) if self.lm_head is None else self.lm_head(hidden)

    def loss(
        self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropy, in nats, of the head's logits; their whole matrix is never held.

        Returned with it is each target's own (targets,), unweighted and without a gradient.

        Args:
            hidden: Final hidden states (targets, width) from which the targets are predicted.
            targets: Token ids (targets,).
            weights: How much each target counts, (targets,); 1 if None.
            smoothing: Share of a target's probability that is spread evenly over the vocabulary.
        """
        if self.lm_head is None or type(self.lm_head) is nn.Linear:
            weight = self.embedding.weight if self.lm_head is None else self.lm_head.weight
            return cross_entropy(hidden, weight, targets, weights, smoothing)
        # Of heads that are more than a matrix (int8, adapted), the logits alone are known.
        losses = F.cross_entropy(self.head(hidden).float(), targets, reduction="none", label_smoothing=smoothing)
        return (losses if weights is None else losses * weights).sum(), losses.detach()

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

    def cache(self, rows: int, capacity: int, media: int = 0) -> Cache:
        """An empty cache of this model's type and device; `media` tokens to look at for each row."""
        weight = self.embedding.weight
        return Cache(self.config, rows, capacity, media, weight.dtype, weight.device)


def replace_linear(gpt: GPT, make: Callable[[Tensor, Tensor | None], nn.Module], head: nn.Module) -> GPT:
    """Put what `make` makes of weight and bias in the place of each linear layer of the blocks; for inference.

    The head is made by the caller, before anything is changed: what cannot be made leaves the GPT as it was.
    """
    for module in list(gpt.transformer.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, make(child.weight, child.bias))
    gpt.lm_head = head  # pyright: ignore
    return gpt.eval()
