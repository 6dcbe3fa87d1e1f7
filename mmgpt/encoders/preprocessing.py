"""Pictures as the image encoder takes them: resized and cropped by its own rule, which transformers may tell."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mmgpt.config import ImageEncoderConfig
from mmgpt.errors import CheckpointError, MediaError, MmgptError
from mmgpt.media.image import MAX_PIXELS
from mmgpt.pretrained import read_json

Size = tuple[int, int]  # height, width


def to_pixels(picture: PIL.Image.Image, config: ImageEncoderConfig) -> Tensor:
    """An RGB picture as (3, height, width) uint8 of config.size. Needs a resolved configuration.

    The rule is timm's and transformers': resized to config.size / config.crop_pct, squashed or covering it, and cropped
    in the middle. Raises MediaError for a picture so long and thin that covering the size takes too many pixels.
    """
    assert config.size is not None
    assert config.interpolation is not None
    tall, wide = _resized((picture.height, picture.width), config)
    if picture.size != (wide, tall):
        picture = picture.resize((wide, tall), PIL.Image.Resampling[config.interpolation.upper()])
    if (tall, wide) != config.size:
        height, width = config.size
        left, top = (wide - width) // 2, (tall - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def frames_to_pixels(frames: np.ndarray, config: ImageEncoderConfig) -> Tensor:
    """Frames, uint8 (time, height, width, 3), as (time, 3, height, width): each as `to_pixels` makes it."""
    size = frames.shape[1:3]
    if size == config.size == _resized(size, config):
        return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    return torch.stack([to_pixels(PIL.Image.fromarray(frame), config) for frame in frames])


def _resized(size: Size, config: ImageEncoderConfig) -> Size:
    """What a picture of this size is resized to, before it is cropped to config.size."""
    assert config.size is not None
    assert config.crop_pct is not None
    height, width = size
    # A whole number may come out of the division a hair too small.
    tall, wide = (math.floor(side / config.crop_pct + 1e-6) for side in config.size)
    if config.crop_mode == "center":
        if wide * height >= tall * width:
            tall = int(wide * height / width)
        else:
            wide = int(tall * width / height)
    if wide * tall > MAX_PIXELS:
        raise MediaError(f"a picture of {width} x {height} pixels is too long to be cropped in the middle")
    return tall, wide


def read_preprocessing(folder: Path, usual: dict[str, Any]) -> dict[str, Any]:
    """Size, mean, std, crop_mode, crop_pct and interpolation, as far as an image processor of transformers tells them.

    Args:
        folder: Of the checkpoint; its preprocessor_config.json or, before it, processor_config.json is read.
        usual: The crop_mode of models of this family.

    Raises:
        CheckpointError: it does what this rule cannot.
    """
    path, alone = folder / "processor_config.json", folder / "preprocessor_config.json"
    settings = read_json(path).get("image_processor") if path.is_file() else None
    if settings is None:
        path, settings = alone, read_json(alone) if alone.is_file() else {}
    try:
        return _preprocessing({name: value for name, value in settings.items() if value is not None}, usual)
    except (MmgptError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _preprocessing(settings: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if settings.get(name, True) is not True:
            raise CheckpointError(f"{name} = {settings[name]} is not supported")
    if not math.isclose(settings.get("rescale_factor", 1 / 255), 1 / 255):
        raise CheckpointError(f"rescale_factor = {settings['rescale_factor']} is not supported, only 1 / 255")
    found = _cropping(settings, centered=usual["crop_mode"] == "center") if "size" in settings else {}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if theirs in settings:
            found[ours] = tuple(float(value) for value in settings[theirs])
    if "resample" in settings:
        found["interpolation"] = PIL.Image.Resampling(settings["resample"]).name.lower()
    return found


def _cropping(settings: dict[str, Any], centered: bool) -> dict[str, Any]:
    """Size, crop_mode and crop_pct of an image processor that resizes and then may crop."""
    size, cropped = settings["size"], settings.get("do_center_crop", centered)
    edge = size if isinstance(size, int) and centered else None
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        edge = size["shortest_edge"]
    before = to_pair(size if edge is None else edge)
    after = to_pair(settings.get("crop_size", before)) if cropped else before
    if after[0] * before[1] != after[1] * before[0] or (edge is not None and not cropped):
        crop = f"cropped to {after}" if cropped else "not cropped"
        raise CheckpointError(f"size {size} {crop} is not supported")
    return {"size": after, "crop_mode": "squash" if edge is None else "center", "crop_pct": after[0] / before[0]}


def to_pair(value: Any) -> Size:
    """Height and width, told as one number, as two, or by name. Raises CheckpointError."""
    sides = value
    if isinstance(value, int):
        sides = [value, value]
    elif isinstance(value, dict):
        sides = [value.get("height"), value.get("width")]
    match sides:
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
    raise CheckpointError(f"{value} is no height and width")
