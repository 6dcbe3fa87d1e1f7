"""Checkpoints of transformers read into our GPT, and our GPT written as one; families.py has the tables."""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mmgpt.config import GPTConfig
from mmgpt.errors import CheckpointError, MmgptError
from mmgpt.files import atomic_write
from mmgpt.gpt.families import FAMILIES, HEAD, Family, Source, choose
from mmgpt.pretrained import INDEX, fetch, few, open_tensors, read_json

MAX_SHARD_BYTES = 5_000_000_000

# Models with a GPT in them: where config.json tells of it, and what the names of its tensors start with.
PARENTS = {"vision-encoder-decoder": ("decoder", "decoder.")}

Model = TypeVar("Model", bound=nn.Module)
Stored = dict[str, tuple[str, Callable[[], Tensor]]]
"""A checkpoint's tensors by their names without the prefix: their whole names, and what reads them."""


def load_pretrained(source: str | Path, build: Callable[[GPTConfig], Model]) -> Model:
    """A checkpoint of transformers as our GPT, in the default dtype and evaluation mode. Raises CheckpointError.

    Args:
        source: A directory with config.json and model.safetensors (whole or sharded), or a Hub id; of the model or of
            one that it is the decoder of.
        build: The class GPT.
    """
    folder = fetch(source)
    raw, start = read_json(folder / "config.json"), ""
    if raw.get("model_type") in PARENTS:
        key, start = PARENTS[raw["model_type"]]
        raw = raw.get(key) or {}
    kind = str(raw.get("model_type"))
    if kind not in FAMILIES:
        raise CheckpointError(f"{folder}: model_type {kind!r} is not supported; supported: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    try:
        config = family.read(raw).resolved()
    except KeyError as error:
        raise CheckpointError(f"{folder}/config.json: {error.args[0]} is missing") from None
    except (MmgptError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{folder}/config.json: {error}") from None
    try:
        with open_tensors(folder) as tensors:
            names = {
                name.removeprefix(start).removeprefix(family.prefix): (name, read)
                for name, read in tensors.items()
                if name.startswith(start)
            }
            config = replace(config, tied_head=config.tied_head and not _has_own_head(family, names))
            with torch.device("meta"):  # takes no memory: sizes are believed only once the tensors have them
                wanted = _match(family, config, names, build(replace(config, layers=1, window_layers=None)))
                model = build(config)
            shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
            state = {name: _read(source, config, names, shapes[name]) for name, source in wanted.items()}
    except (MmgptError, SafetensorError, OSError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: {str(error).splitlines()[0]}") from None
    model.load_state_dict(state, assign=True)
    return model.eval()


def _has_own_head(family: Family, names: Stored) -> bool:
    """Whether a head is stored that is not the embedding: transformers then believes it rather than config.json."""
    wanted = [family.source(f"{module}.weight").names[0] for module in ("embedding", HEAD)]
    if not all(name in names for name in wanted):
        return False
    embedding, head = (names[name][1]() for name in wanted)
    return not torch.equal(embedding, head)


def _match(family: Family, config: GPTConfig, names: Collection[str], model: nn.Module) -> dict[str, Source]:
    """What each of our tensors is made of. Raises CheckpointError naming what `names` lacks or has too much.

    Args:
        family: The family.
        config: The configuration.
        names: The checkpoint's tensors, without the family's prefix.
        model: One of that configuration with a single block.
    """
    wanted, missing = {}, []
    for ours in _all_blocks(model, config.layers):
        wanted[ours] = source = family.source(ours)
        missing += [name for name in source.names if name not in names]
        if len(missing) > 5:  # config.json may promise any number of layers
            break
    if missing:
        raise CheckpointError(f"missing tensors: {few(missing)}")
    used = {name for source in wanted.values() for name in source.names}
    if config.tied_head:
        used.add(f"{HEAD}.weight")  # some files hold the tied weight twice
    extra = [name for name in names if name not in used and not name.endswith(family.buffers)]
    if extra:
        raise CheckpointError(f"unexpected tensors: {few(extra)}")
    return wanted


def _all_blocks(model: nn.Module, layers: int) -> Iterator[str]:
    """The names that a model's tensors have with so many blocks like its first."""
    for name, _ in model.named_parameters():
        for layer in range(layers if ".blocks.0." in name else 1):
            yield name.replace(".blocks.0.", f".blocks.{layer}.")


def _read(source: Source, config: GPTConfig, names: Stored, shape: torch.Size) -> Tensor:
    """One of our tensors. Raises CheckpointError for another shape or type than its parts should have."""
    parts = []
    for name, rows in zip(source.names, source.rows(config, shape[0]), strict=True):
        original, read = names[name]
        tensor = read()
        if not tensor.is_floating_point() or tensor.ndim != len(shape):
            raise CheckpointError(f"{original}: {tensor.dtype} of shape {tuple(tensor.shape)} cannot be used")
        needed = (rows, *shape[1:])[:: -1 if source.transposed else 1]
        if tensor.shape != needed:
            raise CheckpointError(f"{name}: shape {tuple(tensor.shape)}, but config.json says {needed}")
        parts.append(tensor.T if source.transposed else tensor)
    return torch.cat(parts).to(torch.get_default_dtype())


def save_pretrained(model: nn.Module, config: GPTConfig, directory: str | Path) -> None:
    """Write config.json and model.safetensors, or its shards and their index, as transformers reads them.

    Every file is whole before the first of them appears. Raises ConfigError where no family of transformers has the
    configuration, WriteError where the files cannot be written.

    Args:
        model: A GPT.
        config: Its configuration, resolved.
        directory: Where to; it is made if need be.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    directory, kind = Path(directory), choose(config)
    family = FAMILIES[kind]
    tensors: dict[str, Tensor] = {}
    for ours, parameter in model.state_dict().items():
        source = family.source(ours)
        prefix = "" if ours.startswith(HEAD) else family.prefix
        parts = parameter.split(source.rows(config, len(parameter)))
        for name, part in zip(source.names, parts, strict=True):
            tensors[prefix + name] = part.T if source.transposed else part
    settings = {
        "model_type": kind,
        "architectures": [family.architecture],
        "torch_dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        "bos_token_id": None,  # else transformers assumes ids, which a tokenizer of ours may use otherwise
        "eos_token_id": None,
        **family.write(config),
    }
    sizes = {name: tensor.to("meta") for name, tensor in tensors.items()}  # parts of one tensor, but counted each
    shards = split_torch_state_dict_into_shards(
        sizes, filename_pattern="model{suffix}.safetensors", max_shard_size=MAX_SHARD_BYTES
    )
    files = shards.filename_to_tensors
    with ExitStack() as stack:

        def draft(name: str) -> Path:
            return stack.enter_context(atomic_write(directory / name))

        _write_json(draft("config.json"), settings)
        for file, names in files.items():
            held = {name: tensors[name].cpu().contiguous() for name in names}
            save_file(held, draft(file), metadata={"format": "pt"})
        if shards.is_sharded:
            _write_json(draft(INDEX), {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename})
    written = {*files, INDEX} if shards.is_sharded else files
    for path in [directory / INDEX, directory / "model.safetensors", *directory.glob("model-*-of-*.safetensors")]:
        if path.name not in written:  # of a checkpoint that was here before
            path.unlink(missing_ok=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
