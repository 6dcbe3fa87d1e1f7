"""Checkpoints of transformers as files: a directory or Hub id, its JSON, its tensors. No code of theirs is run."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmgpt.errors import CheckpointError
from mmgpt.hub import download

# What reads each tensor of a checkpoint, by the tensor's name.
Tensors: TypeAlias = dict[str, Callable[[], Tensor]]

INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
FILES = [
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors",
    INDEX,
    "model-*.safetensors",
]


def fetch(source: str | Path, *also: str, revision: str | None = None) -> Path:
    """The directory of a checkpoint; a Hub id is fetched, at a revision, with the files `also`. Raises CheckpointError.

    A pickle is fetched only where the weights are in no other file.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise CheckpointError(f"{source}: no such directory; a directory with config.json or a Hub id is needed")
    folder = download(source, [*FILES, *also], revision)
    if not any((folder / name).is_file() for name in ("model.safetensors", INDEX)):
        folder = download(source, [*FILES, *also, PICKLE], revision)
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold an object")
    return content


@contextmanager
def open_tensors(folder: Path) -> Iterator[Tensors]:
    """The tensors of a checkpoint; its files are open inside the block.

    They are model.safetensors, the shards its index names, or else pytorch_model.bin, a pickle, of which torch reads
    tensors alone. Raises CheckpointError where none of these is there or one of them is damaged.
    """
    with ExitStack() as stack:
        tensors: Tensors = {}
        for path in _tensor_files(folder):
            try:
                if path.name == PICKLE:
                    state = _unpickle(path)
                    tensors |= {name: partial(state.__getitem__, name) for name in state}
                else:
                    file = stack.enter_context(safe_open(path, "pt"))
                    tensors |= {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118
            except (SafetensorError, OSError, RuntimeError, EOFError, UnpicklingError) as error:
                reason = next(iter(str(error).splitlines()), "it ends too early")
                raise CheckpointError(f"{path.name}: cannot be read: {reason}") from None
        yield tensors


def _unpickle(path: Path) -> dict[str, Tensor]:
    """Tensors alone, without running anything that a pickle says."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path.name}: not a table of tensors")
    return state


def _tensor_files(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        if (folder / PICKLE).is_file():
            return [folder / PICKLE]
        raise CheckpointError("no model.safetensors")
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{INDEX}: weight_map is missing")
    for name in shards.values():
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{INDEX}: {name!r} is no file of this directory")
    return [folder / name for name in sorted(set(shards.values()))]


def few(names: Sequence[str]) -> str:
    """The first five of the names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
