"""Families of decoders in transformers: tables between their settings and tensors and ours, used in both directions."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from mmgpt.config import GPTConfig, RotaryScaling
from mmgpt.errors import CheckpointError, ConfigError, shown

Raw = dict[str, Any]  # what config.json holds

HEAD = "lm_head"
MOST_LAYERS = 10_000  # config.json may promise any number


@dataclass(frozen=True)
class Source:
    """The tensors of transformers that, one below the other, are one of ours.

    Args:
        names: Theirs; in a table without .weight and .bias, and with `{}` for the block's number.
        transposed: Weights are (in, out), as GPT-2's Conv1D keeps them.
        shares: Settings of ours that say in what proportion they have rows; without any they have equally many.
    """

    names: tuple[str, ...]
    transposed: bool = False
    shares: tuple[str, ...] = ()

    def rows(self, config: GPTConfig, total: int) -> list[int]:
        """How many of our tensor's rows are from each."""
        shares = [getattr(config, name) for name in self.shares] or [1] * len(self.names)
        return [total * share // sum(shares) for share in shares]


@dataclass(frozen=True)
class Special:
    """Settings that are more than another name: what config.json says in our terms, and our configuration in its."""

    read: Callable[[Raw], dict[str, Any]]
    write: Callable[[GPTConfig], Raw]


@dataclass(frozen=True)
class Family:
    """One architecture of transformers.

    Args:
        architecture: Its class.
        settings: Our settings and their names in config.json.
        defaults: What transformers takes for settings that config.json lacks.
        fixed: Our settings that are the same for all of the family.
        only: Settings of theirs with the only value that we compute.
        special: The other settings.
        prefix: What names start with when the checkpoint holds the model with its head.
        tensors: Our modules, `{}` for the block's number, and what their weights and biases are made of.
        buffers: Ends of names of tensors that hold no weights.
        whole_heads: transformers insists that the heads divide the width.
    """

    architecture: str
    settings: dict[str, str]
    defaults: Raw
    fixed: dict[str, Any]
    only: Raw
    special: tuple[Special, ...]
    prefix: str
    tensors: dict[str, Source]
    buffers: tuple[str, ...]
    whole_heads: bool = False

    def read(self, raw: Raw) -> GPTConfig:
        """Our configuration from config.json. Raises KeyError for a missing setting, CheckpointError for an unknown."""
        for name, known in self.only.items():
            if (value := raw.get(name)) is not None and value != known:
                raise CheckpointError(f"{name} = {shown(value)} is not supported")
        values = dict(self.fixed)
        for ours, theirs in self.settings.items():
            value = raw[theirs] if theirs in raw else self.defaults[theirs]
            values[ours] = float(value) if isinstance(getattr(GPTConfig, ours), float) else value
        for special in self.special:
            values |= special.read(raw)
        return GPTConfig(**values)

    def write(self, config: GPTConfig) -> Raw:
        """config.json's settings of a resolved configuration."""
        raw = {theirs: getattr(config, ours) for ours, theirs in self.settings.items()}
        for special in self.special:
            raw |= special.write(config)
        return raw

    def source(self, ours: str) -> Source:
        """What one of our tensors is made of."""
        module, kind = ours.rsplit(".", 1)
        number = re.search(r"(?<=\.blocks\.)\d+", module)
        template = module if number is None else f"{module[: number.start()]}{{}}{module[number.end() :]}"
        source = self.tensors[template]
        names = tuple(f"{name.format(number and number[0])}.{kind}" for name in source.names)
        return replace(source, names=names, transposed=source.transposed and kind == "weight")


def choose(config: GPTConfig) -> str:
    """The model_type of the first family that reads a configuration back as it is. Raises ConfigError if none does."""
    misfits = {kind: _misfits(family, config) for kind, family in FAMILIES.items()}
    nearest = min(misfits, key=lambda kind: len(misfits[kind]))
    if misfits[nearest]:
        raise ConfigError(f"no family of transformers has {', '.join(misfits[nearest])}; the nearest is {nearest}")
    return nearest


def _misfits(family: Family, config: GPTConfig) -> list[str]:
    """The settings that a family cannot hold, with their values."""
    held = family.read(family.write(config))
    held = replace(held, kv_heads=held.kv_heads or held.heads, head_width=held.head_width or held.width // held.heads)
    kept = _effective(held)
    found = [name for name, value in _effective(config).items() if name in kept and kept[name] != value]
    if family.whole_heads and config.width % config.heads:
        found.append("heads")
    return [f"gpt.{name} = {shown(getattr(config, name))}" for name in found]


def _effective(config: GPTConfig) -> dict[str, Any]:
    """The settings that have a say in what a model computes, one way to say each."""
    settings = asdict(config)
    del settings["dropout"]
    if config.cross is None:
        del settings["cross_layers"]
    if config.position != "rotary":
        del settings["rotary_base"], settings["rotary_scaling"]
    elif (scaling := config.rotary_scaling) is not None and scaling.kind == "linear":
        settings["rotary_scaling"] = asdict(RotaryScaling("linear", scaling.factor))
    layers = _windowed(config)
    settings["window"] = config.window if any(layers) else None
    settings["window_layers"] = None if len(set(layers)) == 1 else layers
    return settings


def _windowed(config: GPTConfig) -> list[bool]:
    """Whether each layer looks back on a window alone."""
    layers = range(config.layers) if config.window_layers is None else config.window_layers
    return [config.window is not None and layer in layers for layer in range(config.layers)]


def _activation(theirs: str, names: dict[str, str]) -> Special:
    """The activation by its name in transformers; of several names for one, the first is written."""
    default = next(iter(names))

    def read(raw: Raw) -> dict[str, Any]:
        name = raw.get(theirs, default)
        if name not in names:
            raise CheckpointError(f"{theirs} {name!r} is none of {', '.join(names)}")
        return {"activation": names[name]}

    def write(config: GPTConfig) -> Raw:
        return {theirs: next((name for name, ours in names.items() if ours == config.activation), default)}

    return Special(read, write)


def _read_rotary(raw: Raw) -> dict[str, Any]:
    """rope_theta and rope_scaling, or rope_parameters that hold both (transformers 5)."""
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise CheckpointError(f"rope_parameters = {shown(rope)} are not supported")
    if (share := rope.get("partial_rotary_factor", raw.get("partial_rotary_factor"))) not in (None, 1):
        raise CheckpointError(f"partial_rotary_factor = {shown(share)} is not supported")
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaling = None
    if kind == "linear":
        scaling = RotaryScaling("linear", float(rope["factor"]))
    elif kind == "llama3":
        scaling = RotaryScaling(
            "llama3",
            float(rope["factor"]),
            low=float(rope["low_freq_factor"]),
            high=float(rope["high_freq_factor"]),
            original_context=rope.get("original_max_position_embeddings", raw["max_position_embeddings"]),
        )
    elif kind != "default":
        raise CheckpointError(f"rope type {shown(kind)} is not supported; supported: default, linear, llama3")
    base = rope.get("rope_theta", raw.get("rope_theta", 10_000.0))
    return {"rotary_base": float(base), "rotary_scaling": scaling}


def _write_rotary(config: GPTConfig) -> Raw:
    """In the style that every version of transformers reads."""
    rope = None
    if (scaling := config.rotary_scaling) is not None:
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope["low_freq_factor"], rope["high_freq_factor"] = scaling.low, scaling.high
            rope["original_max_position_embeddings"] = scaling.original_context
    return {"rope_theta": config.rotary_base, "rope_scaling": rope}


def _read_windows(raw: Raw) -> dict[str, Any]:
    """Qwen's windows: in the layers that layer_types says or, in older files, in those from max_window_layers on."""
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window") else None
    layers = raw["num_hidden_layers"]
    kinds = raw.get("layer_types")
    if kinds is None:
        first = raw.get("max_window_layers", 28)
        windowed = tuple(range(first, min(layers, MOST_LAYERS))) if window is not None else ()
        return {"window": window, "window_layers": windowed}
    known = {"full_attention"} if window is None else {"full_attention", "sliding_attention"}
    if strange := sorted(set(kinds) - known):
        raise CheckpointError(f"layer_types: {strange[0]} is not supported with sliding_window = {window}")
    if len(kinds) != layers:
        raise CheckpointError(f"layer_types: {len(kinds)} kinds for {layers} layers")
    return {"window": window, "window_layers": tuple(i for i, kind in enumerate(kinds) if kind != "full_attention")}


def _write_windows(config: GPTConfig) -> Raw:
    layers = _windowed(config)
    return {
        "use_sliding_window": any(layers),
        "sliding_window": config.window,
        "max_window_layers": layers.index(True) if any(layers) else config.layers,
        "layer_types": ["sliding_attention" if windowed else "full_attention" for windowed in layers],
    }


def _read_dropout(raw: Raw) -> dict[str, Any]:
    return {"dropout": float(raw.get("resid_pdrop", 0.1))}


def _write_dropout(config: GPTConfig) -> Raw:
    return {"resid_pdrop": config.dropout, "embd_pdrop": config.dropout, "attn_pdrop": 0.0}


GPT2 = Family(
    architecture="GPT2LMHeadModel",
    settings={
        "vocab_size": "vocab_size",
        "width": "n_embd",
        "layers": "n_layer",
        "heads": "n_head",
        "mlp_width": "n_inner",
        "context": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "tied_head": "tie_word_embeddings",
    },
    defaults={"n_inner": None, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    fixed={"position": "learned", "norm": "layer", "qkv_bias": True, "out_bias": True, "mlp_bias": True},
    only={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "quantization_config": None,
    },
    special=(
        Special(
            lambda raw: {"cross": "inside" if raw.get("add_cross_attention") else None},
            lambda config: {"add_cross_attention": config.cross == "inside"},
        ),
        _activation(
            "activation_function",
            {"gelu_new": "gelu_tanh", "gelu": "gelu", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"},
        ),
        Special(_read_dropout, _write_dropout),
    ),
    prefix="transformer.",
    tensors={
        "embedding": Source(("wte",)),
        "transformer.position": Source(("wpe",)),
        "transformer.blocks.{}.attention_norm": Source(("h.{}.ln_1",)),
        "transformer.blocks.{}.attention.qkv": Source(("h.{}.attn.c_attn",), transposed=True),
        "transformer.blocks.{}.attention.out": Source(("h.{}.attn.c_proj",), transposed=True),
        "transformer.blocks.{}.cross_norm": Source(("h.{}.ln_cross_attn",)),
        "transformer.blocks.{}.cross.q": Source(("h.{}.crossattention.q_attn",), transposed=True),
        "transformer.blocks.{}.cross.kv": Source(("h.{}.crossattention.c_attn",), transposed=True),
        "transformer.blocks.{}.cross.out": Source(("h.{}.crossattention.c_proj",), transposed=True),
        "transformer.blocks.{}.mlp_norm": Source(("h.{}.ln_2",)),
        "transformer.blocks.{}.mlp.up": Source(("h.{}.mlp.c_fc",), transposed=True),
        "transformer.blocks.{}.mlp.down": Source(("h.{}.mlp.c_proj",), transposed=True),
        "transformer.norm": Source(("ln_f",)),
        HEAD: Source((HEAD,)),
    },
    buffers=(".attn.bias", ".attn.masked_bias", ".crossattention.bias", ".crossattention.masked_bias"),
)

LLAMA = Family(
    architecture="LlamaForCausalLM",
    settings={
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_width": "head_dim",
        "mlp_width": "intermediate_size",
        "context": "max_position_embeddings",
        "norm_eps": "rms_norm_eps",
        "tied_head": "tie_word_embeddings",
        "qkv_bias": "attention_bias",
        "out_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
    },
    defaults={
        "num_key_value_heads": None,
        "head_dim": None,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    fixed={"position": "rotary", "norm": "rms"},
    only={"rope_interleaved": False, "quantization_config": None},
    special=(_activation("hidden_act", {"silu": "swiglu"}), Special(_read_rotary, _write_rotary)),
    prefix="model.",
    tensors={
        "embedding": Source(("embed_tokens",)),
        "transformer.blocks.{}.attention_norm": Source(("layers.{}.input_layernorm",)),
        "transformer.blocks.{}.attention.qkv": Source(
            ("layers.{}.self_attn.q_proj", "layers.{}.self_attn.k_proj", "layers.{}.self_attn.v_proj"),
            shares=("heads", "kv_heads", "kv_heads"),
        ),
        "transformer.blocks.{}.attention.q_norm": Source(("layers.{}.self_attn.q_norm",)),
        "transformer.blocks.{}.attention.k_norm": Source(("layers.{}.self_attn.k_norm",)),
        "transformer.blocks.{}.attention.out": Source(("layers.{}.self_attn.o_proj",)),
        "transformer.blocks.{}.mlp_norm": Source(("layers.{}.post_attention_layernorm",)),
        "transformer.blocks.{}.mlp.up": Source(("layers.{}.mlp.gate_proj", "layers.{}.mlp.up_proj")),
        "transformer.blocks.{}.mlp.down": Source(("layers.{}.mlp.down_proj",)),
        "transformer.norm": Source(("norm",)),
        HEAD: Source((HEAD,)),
    },
    buffers=(".rotary_emb.inv_freq",),
    whole_heads=True,
)

# Without biases, and all the same where Llama's are set.
_PLAIN = {ours: theirs for ours, theirs in LLAMA.settings.items() if not ours.endswith("_bias")}

MISTRAL = replace(
    LLAMA,
    architecture="MistralForCausalLM",
    settings={**_PLAIN, "window": "sliding_window"},
    defaults={**LLAMA.defaults, "num_key_value_heads": 8, "sliding_window": 4096},
    only={**LLAMA.only, "layer_types": None},
    whole_heads=False,
)

QWEN2 = replace(
    LLAMA,
    architecture="Qwen2ForCausalLM",
    settings=_PLAIN,
    defaults={**LLAMA.defaults, "num_key_value_heads": 32},
    fixed={**LLAMA.fixed, "qkv_bias": True},
    special=(*LLAMA.special, Special(_read_windows, _write_windows)),
    whole_heads=False,
)

QWEN3 = replace(
    QWEN2,
    architecture="Qwen3ForCausalLM",
    settings={**_PLAIN, "qkv_bias": "attention_bias", "out_bias": "attention_bias"},
    defaults={**QWEN2.defaults, "head_dim": 128},
    fixed={**LLAMA.fixed, "qk_norm": True},
)

FAMILIES = {"gpt2": GPT2, "llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3}  # in order of preference
