"""Checkpoints of transformers read into our GPT: a family is one table of names."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmgpt.config import GPTConfig
from mmgpt.errors import CheckpointError, MmgptError

INDEX = "model.safetensors.index.json"
FILES = ["config.json", "model.safetensors", INDEX, "model-*.safetensors"]
HEAD = "lm_head.weight"

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Source:
    """The tensors of transformers that, one below the other, are one of ours; `{}` stands for the block's number."""

    names: tuple[str, ...]
    transposed: bool = False  # (in, out), as GPT-2's Conv1D keeps its weights


@dataclass(frozen=True)
class Family:
    """One architecture of transformers: its configuration and its tensors in our terms.

    Args:
        config: Makes our configuration from config.json; raises KeyError for a missing setting.
        prefix: What names start with when the checkpoint holds the model with its head.
        tensors: Our names, `{}` for the block's number, and what each is made of.
        buffers: Ends of names of tensors that hold no weights.
    """

    config: Callable[[dict[str, Any]], GPTConfig]
    prefix: str
    tensors: dict[str, Source]
    buffers: tuple[str, ...] = ()


ACTIVATIONS: dict[str, Literal["gelu", "gelu_tanh"]] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def _gpt2_config(config: dict[str, Any]) -> GPTConfig:
    for name, needed in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if config.get(name, needed) is not needed:
            raise CheckpointError(f"{name} = {config[name]} is not supported")
    activation = config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"activation_function {activation!r} is none of {', '.join(ACTIVATIONS)}")
    return GPTConfig(
        vocab_size=config["vocab_size"],
        width=config["n_embd"],
        layers=config["n_layer"],
        heads=config["n_head"],
        mlp_width=config.get("n_inner"),
        context=config["n_positions"],
        position="learned",
        norm="layer",
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        activation=ACTIVATIONS[activation],
        attention_bias=True,
        bias=True,
        tied_head=config.get("tie_word_embeddings", True),
        dropout=float(config.get("resid_pdrop", 0.1)),
    )


GPT2 = Family(
    config=_gpt2_config,
    prefix="transformer.",
    tensors={
        "embedding.weight": Source(("wte.weight",)),
        "transformer.position.weight": Source(("wpe.weight",)),
        "transformer.blocks.{}.attention_norm.weight": Source(("h.{}.ln_1.weight",)),
        "transformer.blocks.{}.attention_norm.bias": Source(("h.{}.ln_1.bias",)),
        "transformer.blocks.{}.attention.qkv.weight": Source(("h.{}.attn.c_attn.weight",), transposed=True),
        "transformer.blocks.{}.attention.qkv.bias": Source(("h.{}.attn.c_attn.bias",)),
        "transformer.blocks.{}.attention.out.weight": Source(("h.{}.attn.c_proj.weight",), transposed=True),
        "transformer.blocks.{}.attention.out.bias": Source(("h.{}.attn.c_proj.bias",)),
        "transformer.blocks.{}.mlp_norm.weight": Source(("h.{}.ln_2.weight",)),
        "transformer.blocks.{}.mlp_norm.bias": Source(("h.{}.ln_2.bias",)),
        "transformer.blocks.{}.mlp.up.weight": Source(("h.{}.mlp.c_fc.weight",), transposed=True),
        "transformer.blocks.{}.mlp.up.bias": Source(("h.{}.mlp.c_fc.bias",)),
        "transformer.blocks.{}.mlp.down.weight": Source(("h.{}.mlp.c_proj.weight",), transposed=True),
        "transformer.blocks.{}.mlp.down.bias": Source(("h.{}.mlp.c_proj.bias",)),
        "transformer.norm.weight": Source(("ln_f.weight",)),
        "transformer.norm.bias": Source(("ln_f.bias",)),
        HEAD: Source(("lm_head.weight",)),
    },
    buffers=(".attn.bias", ".attn.masked_bias"),
)

FAMILIES = {"gpt2": GPT2}


def load_pretrained(source: str | Path, build: Callable[[GPTConfig], Model]) -> Model:
    """A checkpoint of transformers as our GPT, in the default dtype and evaluation mode. Raises CheckpointError.

    Args:
        source: A directory with config.json and model.safetensors (whole or sharded), or a Hub id.
        build: The class GPT.
    """
    folder = _folder(source)
    raw = _read_json(folder / "config.json")
    kind = str(raw.get("model_type"))
    if kind not in FAMILIES:
        raise CheckpointError(f"{folder}: model_type {kind!r} is not supported; supported: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    try:
        config = family.config(raw).resolved()
    except KeyError as error:
        raise CheckpointError(f"{folder}/config.json: {error.args[0]} is missing") from None
    except (MmgptError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json: {error}") from None
    with ExitStack() as stack:
        try:
            files = [stack.enter_context(safe_open(path, "pt")) for path in _tensor_files(folder)]
            stored = [(name, file) for file in files for name in file.keys()]  # noqa: SIM118 (a file is no dict)
            names = {name.removeprefix(family.prefix): (name, file) for name, file in stored}
            wanted = _match(family, config, names)
            with torch.device("meta"):  # takes no memory: sizes are believed only once the tensors have them
                model = build(config)
            shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
            state = {name: _read(source, names, shapes[name]) for name, source in wanted.items()}
        except (MmgptError, SafetensorError, OSError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: {str(error).splitlines()[0]}") from None
    model.load_state_dict(state, assign=True)
    return model.eval()


def _folder(source: str | Path) -> Path:
    """The directory of a checkpoint; a Hub id is fetched, but never a pickle of it."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise CheckpointError(f"{source}: no such directory; a directory with config.json or a Hub id is needed")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=FILES))
    except Exception as error:  # a foreign service, which fails in many ways
        raise CheckpointError(f"{source}: not fetched from the Hub: {str(error).splitlines()[0]}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold an object")
    return content


def _tensor_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards its index names."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {pickles[0]} is a pickle, which is not read: save it as safetensors" if pickles else ""
        raise CheckpointError(f"no model.safetensors{hint}")
    shards = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{INDEX}: weight_map is missing")
    for name in shards.values():
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{INDEX}: {name!r} is no file of this directory")
    return [folder / name for name in sorted(set(shards.values()))]


def _match(family: Family, config: GPTConfig, names: Collection[str]) -> dict[str, Source]:
    """What each of our tensors is made of. Raises CheckpointError naming what `names` lacks or has too much."""
    wanted, missing = {}, []
    for ours, source in _instances(family, config):
        wanted[ours] = source
        missing += [name for name in source.names if name not in names]
        if len(missing) > 5:  # config.json may promise any number of layers
            break
    if missing:
        raise CheckpointError(f"missing tensors: {_few(missing)}")
    used = {name for source in wanted.values() for name in source.names}
    if config.tied_head:
        used.update(family.tensors[HEAD].names)  # some files hold the tied weight twice
    extra = [name for name in names if name not in used and not name.endswith(family.buffers)]
    if extra:
        raise CheckpointError(f"unexpected tensors: {_few(extra)}")
    return wanted


def _instances(family: Family, config: GPTConfig) -> Iterator[tuple[str, Source]]:
    """Each of our tensors and its source, block by block."""
    for ours, source in family.tensors.items():
        if ours == HEAD and config.tied_head:
            continue
        for layer in range(config.layers if "{}" in ours else 1):
            yield ours.format(layer), Source(tuple(name.format(layer) for name in source.names), source.transposed)


def _read(source: Source, names: dict[str, tuple[str, Any]], shape: torch.Size) -> Tensor:
    """One of our tensors. Raises CheckpointError for another shape or type than it should have."""
    parts = []
    for name in source.names:
        original, file = names[name]
        tensor = file.get_tensor(original)
        if not tensor.is_floating_point() or tensor.ndim != len(shape):
            raise CheckpointError(f"{original}: {tensor.dtype} of shape {tuple(tensor.shape)} cannot be used")
        parts.append(tensor.T if source.transposed else tensor)
    joined = torch.cat(parts)
    if joined.shape != shape:
        found, needed = (tuple(size)[:: -1 if source.transposed else 1] for size in (joined.shape, shape))
        raise CheckpointError(f"{_few(source.names)}: shape {found}, but config.json says {needed}")
    return joined.to(torch.get_default_dtype())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
