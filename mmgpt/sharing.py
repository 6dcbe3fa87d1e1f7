"""Sharing a checkpoint on the Hugging Face Hub: its files, without what is private, and a model card."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from mmgpt import checkpoint, hub
from mmgpt.card import LOCAL, model_card
from mmgpt.errors import CheckpointError, ConfigError, shown

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

CARD = "README.md"


def push(
    directory: str | Path,
    repo_id: str,
    *,
    licence: str | None = None,
    data_licence: str | None = None,
    datasets: Sequence[str] = (),
    private: bool | None = None,
    tag: str | None = None,
    token: str | None = None,
) -> "CommitInfo":
    """Upload the checkpoint in force, and a model card, to the Hub in one commit. Gives its address; `.oid` is the
    revision that `mmgpt.load(repo_id, revision=...)` takes.

    The card is made of the checkpoint and of what its run told; data and weights are named by the last part of their
    paths alone. Where the directory itself has a README.md, that is the card instead and is uploaded as it is. Either
    takes the place of the card on the Hub.

    Args:
        directory: A checkpoint of ours, or a run that holds one.
        repo_id: owner/name; it is made where it is not there.
        licence: Of the model, by its short name on the Hub (apache-2.0, cc-by-4.0, other).
        data_licence: Of the data it was trained on, in words.
        datasets: Their ids on the Hub, or names.
        private: Make the repository private; None leaves it to the owner's settings. Nothing is uploaded to one that is
            there already and is public.
        tag: A name for this version, which must be new.
        token: A token of the Hub; None takes that of `hf auth login` or HF_TOKEN.

    Raises:
        ConfigError: repo_id is no owner and name; or there is a README.md, which says licences and data sets itself.
        CheckpointError: There is no checkpoint, or it cannot be uploaded.
    """
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", repo_id):
        raise ConfigError(f"{shown(repo_id)}: a model of the Hub has an owner and a name: owner/name")
    directory = Path(directory)
    files = checkpoint.resolve(directory)
    config = json.loads(_read(files / "config.json"))
    if config.get("format") != checkpoint.FORMAT:
        raise CheckpointError(
            f"{files}: not a checkpoint of mmgpt; `mmgpt.load({str(directory)!r}).save(DIR)` makes one of it"
        )
    resolved = checkpoint.read_config(files)
    config["model"] = dataclasses.asdict(resolved)
    training = _public(checkpoint.read_training(files))
    own = directory / CARD
    if own.is_file():
        if licence or data_licence or datasets:
            raise ConfigError(f"{own}: is the model card, and says licences and data sets itself; leave them out")
        card = _read(own)
    else:
        card = model_card(
            repo_id,
            resolved,
            checkpoint.read_sizes(files),
            training,
            tasks=[config["plain"]["task"]] if "plain" in config else [],
            licence=licence,
            data_licence=data_licence,
            datasets=datasets,
        )
    return hub.upload(
        repo_id,
        {
            CARD: card.encode(),
            "config.json": _json(config),
            "training.json": _json(training),
            "tokenizer.json": files / "tokenizer.json",
            "model.safetensors": files / "model.safetensors",
        },
        message="Upload a model of mmgpt",
        private=private,
        tag=tag,
        token=token,
    )


def _public(value: Any) -> Any:
    """The same without folders: each path by its last part."""
    if isinstance(value, dict):
        return {key: _sources(inner) if key == "begun_from" else _public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    if isinstance(value, str) and re.search(r"[/\\]", value):
        return PureWindowsPath(value).name or "data"  # either separator ends a folder there
    return value


def _sources(begun_from: Sequence[str]) -> list[str]:
    """Hub ids as they are."""
    return [one if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", one) else LOCAL + _public(one) for one in begun_from]


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()  # as `checkpoint.save` writes it


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
