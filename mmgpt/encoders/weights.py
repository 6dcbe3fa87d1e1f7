"""Vision towers of transformers read into timm's VisionTransformer: a family is one table of names."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from mmgpt.config import ImageEncoderConfig
from mmgpt.encoders.backbone import create
from mmgpt.encoders.preprocessing import Size, read_preprocessing, to_pair
from mmgpt.errors import CheckpointError, MmgptError
from mmgpt.pretrained import Tensors, fetch, few, open_tensors, read_json


@dataclass(frozen=True)
class Source:
    """The tensors of transformers that one of timm's is made of, one below the other unless `make` says otherwise."""

    names: tuple[str, ...]
    make: Callable[..., Tensor] = lambda *parts: torch.cat(parts)


@dataclass(frozen=True)
class Family:
    """One architecture of transformers in timm's terms. `{}` in a name stands for the block's number.

    Args:
        config: What config.json need not say, since transformers knows it.
        preprocessing: The published models' mean, std, crop_mode, crop_pct and interpolation.
        modules: timm's modules with weight and bias, and those of transformers that each is made of.
        tensors: The rest of timm's tensors.
        arguments: Arguments of timm.create_model that all of the family share.
        parents: What names start with where the tower is part of a model.
        unused: Starts of names inside the tower that make no tokens: pooling and the like.
        fit: How position embeddings are resampled for another size, as arguments of resample_abs_pos_embed.
    """

    config: dict[str, Any]
    preprocessing: dict[str, Any]
    modules: dict[str, tuple[str, ...]]
    tensors: dict[str, Source]
    arguments: dict[str, Any] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    fit: dict[str, Any] = field(default_factory=lambda: {"interpolation": "bicubic", "antialias": False})


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}

BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
}
HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
OPENAI = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
SQUASH = {"crop_mode": "squash", "crop_pct": 1.0}
CENTER = {"crop_mode": "center", "crop_pct": 1.0}

SIGLIP = Family(
    config={**BASE, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    preprocessing={**HALVES, **SQUASH, "interpolation": "bicubic"},
    arguments={"class_token": False},
    modules={
        "patch_embed.proj": ("embeddings.patch_embedding",),
        "blocks.{}.norm1": ("encoder.layers.{}.layer_norm1",),
        "blocks.{}.attn.qkv": tuple(f"encoder.layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
        "blocks.{}.attn.proj": ("encoder.layers.{}.self_attn.out_proj",),
        "blocks.{}.norm2": ("encoder.layers.{}.layer_norm2",),
        "blocks.{}.mlp.fc1": ("encoder.layers.{}.mlp.fc1",),
        "blocks.{}.mlp.fc2": ("encoder.layers.{}.mlp.fc2",),
        "norm": ("post_layernorm",),
    },
    tensors={"pos_embed": Source(("embeddings.position_embedding.weight",), lambda place: place[None])},
    parents=("vision_model.",),
    unused=("head.", "embeddings.position_ids"),
)


def _unpatch(weight: Tensor) -> Tensor:
    """A linear layer on the pixels of a patch, channels last, as a convolution."""
    side = math.isqrt(weight.shape[1] // 3)
    return weight.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)  # width, channels, height, width of a patch


# SigLIP 2 for pictures of any shape (NaFlex), used at one size. At fixed sizes, SigLIP 2 is a SigLIP.
SIGLIP2 = replace(
    SIGLIP,
    config={**SIGLIP.config, "num_patches": 256},
    preprocessing={**HALVES, **SQUASH, "interpolation": "bilinear"},
    modules={ours: theirs for ours, theirs in SIGLIP.modules.items() if ours != "patch_embed.proj"},
    tensors={
        **SIGLIP.tensors,
        "patch_embed.proj.weight": Source(("embeddings.patch_embedding.weight",), _unpatch),
        "patch_embed.proj.bias": Source(("embeddings.patch_embedding.bias",)),
    },
    fit={"interpolation": "bilinear", "antialias": True},
)

# The norm behind the last block is for the pooled class token alone.
CLIP = replace(
    SIGLIP,
    config={**BASE, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    preprocessing={**OPENAI, **CENTER, "interpolation": "bicubic"},
    arguments={"pre_norm": True, "final_norm": False},
    modules={
        **{ours: theirs for ours, theirs in SIGLIP.modules.items() if ours.startswith("blocks.")},
        "norm_pre": ("pre_layrnorm",),
    },
    tensors={
        **SIGLIP.tensors,
        "patch_embed.proj.weight": Source(("embeddings.patch_embedding.weight",)),
        "cls_token": Source(("embeddings.class_embedding",), lambda token: token[None, None]),
    },
    unused=("post_layernorm.", "embeddings.position_ids"),
)

VIT = Family(
    config={**BASE, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
    preprocessing={**HALVES, **SQUASH, "interpolation": "bilinear"},
    modules={
        "patch_embed.proj": ("embeddings.patch_embeddings.projection",),
        "blocks.{}.norm1": ("encoder.layer.{}.layernorm_before",),
        "blocks.{}.attn.qkv": tuple(
            f"encoder.layer.{{}}.attention.attention.{part}" for part in ("query", "key", "value")
        ),
        "blocks.{}.attn.proj": ("encoder.layer.{}.attention.output.dense",),
        "blocks.{}.norm2": ("encoder.layer.{}.layernorm_after",),
        "blocks.{}.mlp.fc1": ("encoder.layer.{}.intermediate.dense",),
        "blocks.{}.mlp.fc2": ("encoder.layer.{}.output.dense",),
        "norm": ("layernorm",),
    },
    tensors={
        "cls_token": Source(("embeddings.cls_token",)),
        "pos_embed": Source(("embeddings.position_embeddings",)),
    },
    parents=("vit.",),
    unused=("pooler.", "embeddings.mask_token"),
)

DINOV2 = replace(
    VIT,
    config={**BASE, "patch_size": 14, "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
    preprocessing={**IMAGENET, "crop_mode": "center", "crop_pct": 224 / 256, "interpolation": "bicubic"},
    arguments={"init_values": 1.0},  # there is layer scale
    modules={
        **VIT.modules,
        "blocks.{}.norm1": ("encoder.layer.{}.norm1",),
        "blocks.{}.norm2": ("encoder.layer.{}.norm2",),
        "blocks.{}.mlp.fc1": ("encoder.layer.{}.mlp.fc1",),
        "blocks.{}.mlp.fc2": ("encoder.layer.{}.mlp.fc2",),
    },
    tensors={
        **VIT.tensors,
        "blocks.{}.ls1.gamma": Source(("encoder.layer.{}.layer_scale1.lambda1",)),
        "blocks.{}.ls2.gamma": Source(("encoder.layer.{}.layer_scale2.lambda1",)),
    },
    parents=("dinov2.",),
)
SWIGLU = {
    "blocks.{}.mlp.fc1": ("encoder.layer.{}.mlp.weights_in",),
    "blocks.{}.mlp.fc2": ("encoder.layer.{}.mlp.weights_out",),
}

# In timm, the class token holds its own position, and registers have none.
DINOV2_WITH_REGISTERS = replace(
    DINOV2,
    config={**DINOV2.config, "patch_size": 16, "num_register_tokens": 4},
    arguments={**DINOV2.arguments, "no_embed_class": True},
    tensors={
        **DINOV2.tensors,
        "cls_token": Source(
            ("embeddings.cls_token", "embeddings.position_embeddings"), lambda token, place: token + place[:, :1]
        ),
        "reg_token": Source(("embeddings.register_tokens",)),
        "pos_embed": Source(("embeddings.position_embeddings",), lambda place: place[:, 1:]),
    },
    parents=("dinov2_with_registers.",),
    fit={"interpolation": "bicubic", "antialias": True},
)

FAMILIES = {
    "siglip_vision_model": SIGLIP,
    "siglip2_vision_model": SIGLIP2,
    "clip_vision_model": CLIP,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2_WITH_REGISTERS,
    "vit": VIT,
}

# Models with a tower: where config.json tells of it, its kind if that is not told, and what its names start with.
PARENTS = {
    "siglip": ("vision_config", "siglip_vision_model", ""),
    "siglip2": ("vision_config", "siglip2_vision_model", ""),
    "clip": ("vision_config", "clip_vision_model", ""),
    "vision-encoder-decoder": ("encoder", None, "encoder."),
}

# Starts of names of what such models have beside the tower.
BESIDE = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "logit_bias",
    "classifier.",
    "decoder.",
    "enc_to_dec_proj.",
)


def is_tower(weights: str) -> bool:
    """Whether these weights are a directory or Hub id of transformers, not a file."""
    return not weights.endswith(".safetensors") and not Path(weights).is_file()


def read_tower(source: str, config: ImageEncoderConfig) -> tuple[ImageEncoderConfig, dict[str, Tensor]]:
    """A vision tower of transformers as timm's: the configuration with all it decides filled in, and all tensors.

    The configuration then needs the source no more: it names a timm model and its arguments. What was set of size,
    mean, std, cropping, interpolation and arguments is kept. Position embeddings are resampled for another size, as
    transformers does it.

    Args:
        source: A directory with config.json and model.safetensors (whole or sharded), or a Hub id.
        config: What is set already.

    Raises:
        CheckpointError: nothing supported there; a tensor missing, unknown or of another shape.
    """
    folder = fetch(source)
    settings, family, start = _family(folder)
    try:
        size = _size(family, settings)
        name, arguments = _architecture(family, settings)
    except (MmgptError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json: {error}") from None
    found = {"size": size, **family.preprocessing, **read_preprocessing(folder, family.preprocessing)}
    config = replace(
        config,
        name=name,
        args={**arguments, **config.args},
        pretrained=False,
        weights=None,
        **{key: own for key, own in found.items() if getattr(config, key) is None},
    )
    try:
        state = _read(folder, family, settings, start, config, size)
    except (MmgptError, SafetensorError, OSError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: {str(error).splitlines()[0]}") from None
    return config, state


def _family(folder: Path) -> tuple[dict[str, Any], Family, str]:
    """The tower's settings, its family, and what the names of its tensors start with in a model with a tower."""
    settings, start = read_json(folder / "config.json"), ""
    kind = str(settings.get("model_type"))
    if kind in PARENTS:
        key, default, start = PARENTS[kind]
        settings = found if isinstance(found := settings.get(key), dict) else {}
        kind = str(settings.get("model_type", default))
    if kind not in FAMILIES:
        known = ", ".join([*FAMILIES, *PARENTS])
        raise CheckpointError(
            f"{folder}: model_type {kind!r} has no vision tower that is supported; supported: {known}"
        )
    family = FAMILIES[kind]
    settings = {**family.config, **settings}
    if settings.get("use_swiglu_ffn"):
        family = replace(family, modules={**family.modules, **SWIGLU})
    return settings, family, start


def _size(family: Family, settings: dict[str, Any]) -> Size:
    """What the position embeddings are made for. Raises CheckpointError."""
    if "num_patches" in family.config:
        return to_pair(math.isqrt(_whole(settings, "num_patches")) * _whole(settings, "patch_size"))
    return to_pair(settings["image_size"])


def _architecture(family: Family, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the timm model. Raises CheckpointError, TypeError or ValueError."""
    if settings["num_channels"] != 3:
        raise CheckpointError(f"num_channels = {settings['num_channels']} is not supported: pictures have 3")
    if (activation := settings["hidden_act"]) not in ACTIVATIONS:
        raise CheckpointError(f"hidden_act {activation!r} is none of {', '.join(ACTIVATIONS)}")
    width, gated = _whole(settings, "hidden_size"), settings.get("use_swiglu_ffn", False)
    hidden = int(width * settings["mlp_ratio"]) if "mlp_ratio" in settings else _whole(settings, "intermediate_size")
    if gated:
        hidden = 2 * ((int(hidden * 2 / 3) + 7) // 8 * 8)  # the gate's rows, then the values'
    arguments = {
        "patch_size": settings["patch_size"],
        "embed_dim": width,
        "depth": _whole(settings, "num_hidden_layers"),
        "num_heads": _whole(settings, "num_attention_heads"),
        "mlp_ratio": (hidden + 0.5) / width,  # timm rounds the product down
        "qkv_bias": settings.get("qkv_bias", True),
        "act_layer": "silu" if gated else ACTIVATIONS[activation],
        "norm_layer": {"eps": float(settings["layer_norm_eps"])},
        "reg_tokens": settings.get("num_register_tokens", 0),
        "global_pool": "",
        **family.arguments,
    }
    # Names of two of timm's functions, one with and one without SwiGLU; the arguments say all the rest.
    return "vit_giant_patch14_dinov2" if gated else "vit_base_patch16_224", arguments


def _whole(settings: dict[str, Any], name: str) -> int:
    if not isinstance(settings[name], int) or settings[name] < 1:
        raise CheckpointError(f"{name} must be a whole number from 1 on, not {settings[name]!r}")
    return settings[name]


def _read(
    folder: Path, family: Family, settings: dict[str, Any], start: str, config: ImageEncoderConfig, size: Size
) -> dict[str, Tensor]:
    """All tensors by timm's names, with position embeddings for config.size, in the default dtype."""
    with open_tensors(folder) as stored:
        start += next((parent for parent in family.parents if _has(stored, f"{start}{parent}")), "")
        sources = _match(family, settings, start, stored)
        with torch.device("meta"):  # takes no memory: sizes are believed only once the tensors have them
            model: Any = create(config.name, {"num_classes": 0, **config.args}, size)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        if unlike := sorted(shapes.keys() ^ sources.keys()):
            raise CheckpointError(f"the given args are of another model; it would differ in {few(unlike)}")
        state = {name: _tensor(source, stored, shapes[name]) for name, source in sources.items()}
    assert config.size is not None
    old, patch = model.patch_embed.grid_size, model.patch_embed.patch_size
    state["pos_embed"] = resample_abs_pos_embed(
        state["pos_embed"],
        [side // step for side, step in zip(config.size, patch, strict=True)],
        old,
        num_prefix_tokens=state["pos_embed"].shape[1] - math.prod(old),
        **family.fit,
    )
    return state


def _has(stored: Tensors, start: str) -> bool:
    return any(name.startswith(f"{start}embeddings.") for name in stored)


def _match(family: Family, settings: dict[str, Any], start: str, stored: Tensors) -> dict[str, Source]:
    """What each of timm's tensors is made of. Raises CheckpointError naming what is missing or unknown."""
    sources, missing = {}, []
    for ours, source in _instances(family, settings):
        names = tuple(start + name for name in source.names)
        sources[ours] = replace(source, names=names)
        missing += [name for name in names if name not in stored]
        if len(missing) > 5:  # config.json may promise any number of layers
            break
    if missing:
        raise CheckpointError(f"missing tensors: {few(missing)}")
    used = {name for source in sources.values() for name in source.names}
    known = (*BESIDE, *(start + name for name in family.unused))
    if extra := [name for name in stored if name not in used and not name.startswith(known)]:
        raise CheckpointError(f"unexpected tensors: {few(extra)}")
    return sources


def _instances(family: Family, settings: dict[str, Any]) -> Iterator[tuple[str, Source]]:
    """Each of timm's tensors and its source, block by block."""
    tensors = dict(family.tensors)
    for ours, theirs in family.modules.items():
        for kind in ("weight", "bias"):
            tensors[f"{ours}.{kind}"] = Source(tuple(f"{name}.{kind}" for name in theirs))
    if not settings.get("qkv_bias", True):
        del tensors["blocks.{}.attn.qkv.bias"]
    for ours, source in tensors.items():
        for layer in range(settings["num_hidden_layers"] if "{}" in ours else 1):
            yield ours.format(layer), replace(source, names=tuple(name.format(layer) for name in source.names))


def _tensor(source: Source, stored: Tensors, shape: torch.Size) -> Tensor:
    """One of timm's tensors. Raises CheckpointError for another shape or type than it should have."""
    parts = [stored[name]() for name in source.names]
    for name, part in zip(source.names, parts, strict=True):
        if not part.is_floating_point():
            raise CheckpointError(f"{name}: {part.dtype} cannot be used")
    try:
        made = source.make(*(part.to(torch.get_default_dtype()) for part in parts))
    except (RuntimeError, IndexError):
        made = None
    if made is None or made.shape != shape:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise CheckpointError(f"{few(source.names)}: shape {shapes}, but config.json says {tuple(shape)}")
    return made.contiguous()
