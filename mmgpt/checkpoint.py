"""One checkpoint is one directory: config.json, model.safetensors, tokenizer.json and training.json. No pickle.

    DIR/CURRENT             the name of the version in force, replaced in one step
    DIR/<version>/          the files; written under another name, then renamed

A save that fails anywhere leaves what was there before. A plain directory with the files in it (a copy of one version)
loads just as well, and a run's directory loads its best checkpoint.
"""

import dataclasses
import errno
import hashlib
import json
import math
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from mmgpt.config import ModelConfig, from_dict
from mmgpt.errors import CheckpointError, ConfigError, shown
from mmgpt.files import sync

if TYPE_CHECKING:  # what is told of a checkpoint (`mmgpt info`) is told without torch
    from torch import Tensor, nn

    from mmgpt.model import MultimodalGPT
    from mmgpt.tokenizer import Tokenizer

POINTER = "CURRENT"
FORMAT = 1
FOREIGN = "vision-encoder-decoder"  # a model_type of transformers
HUB_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@(\S+))?")  # owner/name or owner/name@revision
# Of a checkpoint on the Hub, besides the model itself.
HUB_FILES = ("training.json", "tokenizer.json", "vocab.json", "merges.txt", "generation_config.json")
MAX_HEADER = 100_000_000  # bytes, as safetensors has it; a damaged file may claim any number


def save(
    directory: str | Path,
    model: "MultimodalGPT",
    tokenizer: "Tokenizer",
    training: dict[str, Any] | None = None,
    tensors: "dict[str, Tensor] | None" = None,
) -> Path:
    """Write a new version of the checkpoint and put it in force; `training` is what is told of how it was made.

    `tensors` are written instead of the model's own, where these are not what is to be kept.

    Raises CheckpointError when it cannot be written; the version before it then stays in force.
    """
    from safetensors.torch import save_file

    directory = Path(directory)
    before = _version_in_force(directory)
    version = uuid.uuid4().hex[:12]
    draft = directory / f".{version}"
    try:
        draft.mkdir(parents=True)
        config = {"format": FORMAT, "model": dataclasses.asdict(model.config)}
        if tokenizer.plain is not None:
            config["plain"] = dataclasses.asdict(tokenizer.plain)
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (draft / "training.json").write_text(json.dumps(training or {}, indent=2) + "\n")
        (draft / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        kept = tensors_of(model) if tensors is None else tensors
        kept = {name: tensor.detach().contiguous().cpu() for name, tensor in kept.items()}
        save_file(kept, draft / "model.safetensors", metadata={"format": "pt"})
        for path in draft.iterdir():
            sync(path)
        draft.rename(directory / version)
        pointer = directory / version / POINTER  # goes with the version if the save fails here
        pointer.write_text(version + "\n")
        sync(pointer)
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


def load(directory: str | Path) -> "tuple[MultimodalGPT, Tokenizer]":
    """The model, in evaluation mode, and its tokenizer. Raises CheckpointError naming what does not fit.

    Besides our own checkpoints, those of transformers' VisionEncoderDecoder are read, from a directory or by a Hub id.
    """
    from mmgpt import vision_encoder_decoder
    from mmgpt.model import MultimodalGPT

    directory, values = _open(directory)
    if values.get("model_type") == FOREIGN:
        return vision_encoder_decoder.load(directory)
    model = MultimodalGPT(_config(values, directory))
    _load_tensors(model, directory / "model.safetensors")
    return model.eval(), _tokenizer(values, directory)


def load_tokenizer(directory: str | Path) -> "Tokenizer":
    """The tokenizer that `load` returns, without the model."""
    from mmgpt import vision_encoder_decoder

    directory, values = _open(directory)
    if values.get("model_type") == FOREIGN:
        return vision_encoder_decoder.load_tokenizer(directory)
    return _tokenizer(values, directory)


def read_config(directory: str | Path) -> ModelConfig:
    """The resolved configuration of the model that `load` returns; pretrained weights are not fetched again."""
    directory, values = _open(directory)
    if values.get("model_type") == FOREIGN:  # some of it is told by its weights alone
        return load(directory)[0].config
    return _config(values, directory)


def fingerprint(directory: str | Path) -> str:
    """SHA-256 of the files that `load` reads: weights, configuration, tokenizer; not of what is told of training."""
    directory, _ = _open(directory)
    whole = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix in (".json", ".safetensors", ".txt", ".bin") and path.name != "training.json":
            with path.open("rb") as file:
                whole.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _open(source: str | Path) -> tuple[Path, dict[str, Any]]:
    """The directory of the files in force, fetched if need be, and what its config.json says."""
    directory = locate(source)
    return directory, _read_settings(directory)


def locate(source: str | Path, revision: str | None = None) -> Path:
    """The directory that holds the files in force, as `resolve` gives it; of a Hub id it is fetched.

    Args:
        source: A checkpoint, one of its versions, a run, or on the Hub owner/name or owner/name@revision.
        revision: A branch, tag or commit of the Hub.

    Raises:
        CheckpointError: There is no checkpoint.
        ConfigError: A revision of a directory.
    """
    local = isinstance(source, Path) or Path(source).exists()
    if revision is not None:
        if local:
            raise ConfigError(
                f"revision {shown(revision)}: {source} is a directory, and only models of the Hub have revisions; "
                "leave it out"
            )
        source = f"{source}@{revision}"
    named = None if local else HUB_ID.fullmatch(str(source))
    if named is None:
        return resolve(source)
    from mmgpt.pretrained import fetch

    try:
        fetched = fetch(named[1], *HUB_FILES, revision=named[2])
    except CheckpointError as error:
        if named[2] is not None:
            raise
        raise CheckpointError(
            f"{source}: no such directory (`mmgpt demo` makes runs/demo), and nothing of the Hub: {error}"
        ) from None
    return resolve(fetched)


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


def _config(values: dict[str, Any], directory: Path) -> ModelConfig:
    path = directory / "config.json"
    try:
        if values["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {values['format']}; this mmgpt reads format {FORMAT}")
        config = from_dict(ModelConfig, values["model"], "model")
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path}: not a configuration of mmgpt: {error}") from None
    for modality in ("image", "audio"):
        if (encoder := getattr(config, modality)) is not None:
            setattr(config, modality, dataclasses.replace(encoder, pretrained=False, weights=None))
    return config


def _tokenizer(values: dict[str, Any], directory: Path) -> "Tokenizer":
    from mmgpt.tokenizer import Plain, Tokenizer

    return Tokenizer.load(directory, from_dict(Plain, values["plain"], "plain") if "plain" in values else None)


def _read_settings(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a configuration of mmgpt: {error}") from None


def told_by_run(directory: Path) -> dict[str, Any]:
    """What `read_training` reads; nothing of a foreign checkpoint, which has no run of ours."""
    return read_training(directory) if (directory / "training.json").is_file() else {}


def read_training(directory: Path) -> dict[str, Any]:
    """What the run told of itself: steps, samples, minutes, data, settings, scores."""
    try:
        return json.loads((directory / "training.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / 'training.json'}: {error}") from None


def read_sizes(directory: Path) -> dict[str, int]:
    """Number of parameters of each module (gpt, encoders.image, adapters.image, ...), from the file's header alone."""
    sizes: dict[str, int] = {}
    for name, shape in _shapes(directory / "model.safetensors").items():
        module = "gpt" if name.startswith("gpt.") else ".".join(name.split(".")[:2])
        sizes[module] = sizes.get(module, 0) + math.prod(shape)
    return sizes


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a safetensors file by name, from its header: 8 bytes of its length, then JSON.

    Read here, since safetensors' own readers import numpy or torch.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise ValueError("it does not begin with a header of safetensors")
            header = json.loads(file.read(length))
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        if path.stat().st_size != 8 + length + max(tensor["data_offsets"][1] for tensor in tensors.values()):
            raise ValueError("it is not as long as its header says")
        return {name: tuple(map(int, tensor["shape"])) for name, tensor in tensors.items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def tensors_of(model: "nn.Module") -> "dict[str, Tensor]":
    """Parameters and persistent buffers, each once, though encoders and the head may be shared."""
    tensors: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensors.setdefault(id(tensor), (name, tensor))
    return dict(tensors.values())


def _load_tensors(model: "nn.Module", path: Path) -> None:
    own, shapes = tensors_of(model), _shapes(path)
    if missing := sorted(own.keys() - shapes.keys()):
        raise CheckpointError(f"{path}: tensor {missing[0]} is missing ({len(missing)} in all)")
    if extra := sorted(shapes.keys() - own.keys()):
        raise CheckpointError(f"{path}: tensor {extra[0]} is not part of the model ({len(extra)} in all)")
    for name, tensor in own.items():
        if shapes[name] != tuple(tensor.shape):
            raise CheckpointError(f"{path}: tensor {name} is {shapes[name]}, the model's is {tuple(tensor.shape)}")
    try:
        with safe_open(path, framework="pt") as file:
            for name, tensor in own.items():
                tensor.data.copy_(file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
