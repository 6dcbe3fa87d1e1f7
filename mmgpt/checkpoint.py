"""One checkpoint is one directory: config.json, model.safetensors, tokenizer.json and training.json. No pickle.

    DIR/CURRENT             the name of the version in force, replaced in one step
    DIR/<version>/          the files; written under another name, then renamed

A save that fails anywhere leaves what was there before. A plain directory with the files in it (a copy of one version)
loads just as well, and a run's directory loads its best checkpoint.
"""

import dataclasses
import errno
import json
import math
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmgpt.config import ModelConfig, from_dict
from mmgpt.errors import CheckpointError, ConfigError
from mmgpt.model import MultimodalGPT
from mmgpt.tokenizer import Tokenizer

POINTER = "CURRENT"
FORMAT = 1


def save(
    directory: str | Path, model: MultimodalGPT, tokenizer: Tokenizer, training: dict[str, Any] | None = None
) -> Path:
    """Write a new version of the checkpoint and put it in force; `training` is what is told of how it was made.

    Raises CheckpointError when it cannot be written; the version before it then stays in force.
    """
    directory = Path(directory)
    before = _version_in_force(directory)
    version = uuid.uuid4().hex[:12]
    draft = directory / f".{version}"
    try:
        draft.mkdir(parents=True)
        config = {"format": FORMAT, "model": dataclasses.asdict(model.config)}
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (draft / "training.json").write_text(json.dumps(training or {}, indent=2) + "\n")
        (draft / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in _tensors(model).items()}
        save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
        for path in draft.iterdir():
            _sync(path)
        draft.rename(directory / version)
        pointer = directory / f".{version}"
        pointer.write_text(version + "\n")
        _sync(pointer)
        pointer.replace(directory / POINTER)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(directory / version, ignore_errors=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        reason = "no space left on the device; free some and save again" if full else str(error)
        raise CheckpointError(f"{directory}: checkpoint not saved: {reason}") from None
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)
    return directory


def load(directory: str | Path) -> tuple[MultimodalGPT, Tokenizer]:
    """The model, in evaluation mode, and its tokenizer. Raises CheckpointError naming what does not fit."""
    directory = resolve(directory)
    model = MultimodalGPT(read_config(directory))
    _load_tensors(model, directory / "model.safetensors")
    return model.eval(), Tokenizer.load(directory)


def resolve(directory: str | Path) -> Path:
    """The directory that holds the files in force, given a checkpoint, one of its versions, or a run."""
    directory = Path(directory)
    if (version := _version_in_force(directory)) is not None:
        return version
    if (directory / "config.json").is_file():
        return directory
    if (directory / "best" / POINTER).is_file():
        return resolve(directory / "best")
    if not directory.exists():
        raise CheckpointError(f"{directory}: no such directory; name a trained model (`mmgpt demo` makes runs/demo)")
    raise CheckpointError(f"{directory}: no checkpoint here (no {POINTER}, no config.json)")


def _version_in_force(directory: Path) -> Path | None:
    pointer = directory / POINTER
    if not pointer.is_file():
        return None
    name = pointer.read_text().strip()
    if not re.fullmatch(r"[0-9a-f]{12}", name):
        raise CheckpointError(f"{pointer}: does not name a version of the checkpoint")
    return directory / name


def read_config(directory: Path) -> ModelConfig:
    """The resolved configuration of the model; pretrained weights are not fetched again."""
    path = directory / "config.json"
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {values['format']}; this mmgpt reads format {FORMAT}")
        config = from_dict(ModelConfig, values["model"], "model")
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path}: not a configuration of mmgpt: {error}") from None
    for modality in ("image", "audio"):
        if (encoder := getattr(config, modality)) is not None:
            setattr(config, modality, dataclasses.replace(encoder, pretrained=False, weights=None))
    return config


def read_training(directory: Path) -> dict[str, Any]:
    """What the run told of itself: steps, samples, minutes, data, scores."""
    try:
        return json.loads((directory / "training.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / 'training.json'}: {error}") from None


def read_sizes(directory: Path) -> dict[str, int]:
    """Number of parameters of each module (gpt, encoders.image, adapters.image, ...), from the file's header alone."""
    sizes: dict[str, int] = {}
    path = directory / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, not a dict
                module = "gpt" if name.startswith("gpt.") else ".".join(name.split(".")[:2])
                sizes[module] = sizes.get(module, 0) + math.prod(file.get_slice(name).get_shape())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    return sizes


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each once, though encoders and the head may be shared."""
    kept = model.state_dict().keys()
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if name in kept}


def _load_tensors(model: nn.Module, path: Path) -> None:
    own = _tensors(model)
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if missing := sorted(own.keys() - names):
                raise CheckpointError(f"{path}: tensor {missing[0]} is missing ({len(missing)} in all)")
            if extra := sorted(names - own.keys()):
                raise CheckpointError(f"{path}: tensor {extra[0]} is not part of the model ({len(extra)} in all)")
            for name, tensor in own.items():
                shape = tuple(file.get_slice(name).get_shape())
                if shape != tuple(tensor.shape):
                    raise CheckpointError(f"{path}: tensor {name} is {shape}, the model's is {tuple(tensor.shape)}")
                tensor.data.copy_(file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
