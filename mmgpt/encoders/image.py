"""The image encoder: a timm backbone with its own normalisation."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, get_args

import PIL.Image
import torch
from torch import Tensor

from mmgpt.config import CropMode, ImageEncoderConfig, Interpolation, TokenGrid, image_grid
from mmgpt.encoders.backbone import Backbone, Level
from mmgpt.encoders.base import Encoder, Tokens, even
from mmgpt.encoders.preprocessing import to_pixels
from mmgpt.encoders.weights import is_tower, read_tower
from mmgpt.errors import ConfigError

# Of a backbone that has not learned to look otherwise: the whole picture.
WHOLE = {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bicubic"}


class ImageEncoder(Encoder):
    """Pictures to tokens through a timm backbone: all patch tokens of a ViT, or the last map of a convolutional net.

    Args:
        config: The configuration, or the name of a timm model.
        fields: Fields of the configuration to set.

    Raises:
        ConfigError: unknown name; arguments, size or weights that do not fit.
        CheckpointError: weights of transformers that cannot be used.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ImageEncoderConfig | str = "vit_small_patch16_224", **fields: Any):
        super().__init__()
        config = ImageEncoderConfig(config, **fields) if isinstance(config, str) else replace(config, **fields)
        state = None
        if config.weights is not None and is_tower(config.weights):
            config, state = read_tower(config.weights, config)
        self.backbone = backbone = Backbone(
            config.name, 3, config.size, config.pretrained, config.weights, config.layer, config.args, state
        )
        resizing = backbone.resizing if config.pretrained or config.weights is not None else WHOLE
        self.config: ImageEncoderConfig = replace(
            config,
            size=backbone.size,
            mean=config.mean or backbone.mean,
            std=config.std or backbone.std,
            grid=(backbone.rows, backbone.columns),
            prefix_tokens=backbone.prefix if config.prefix else 0,
            width=backbone.width,
            **{name: own for name, own in resizing.items() if getattr(config, name) is None},
        )
        _check_resizing(self.config)
        # The configuration knows them, so they are not saved.
        self.register_buffer("mean", _per_channel(self.config.mean), persistent=False)
        self.register_buffer("std", _per_channel(self.config.std), persistent=False)
        self.freeze() if config.frozen else self.train()

    @classmethod
    def from_pretrained(cls, source: str | Path, **fields: Any) -> Self:
        """The tower of a checkpoint of transformers, with its own preprocessing, in evaluation mode.

        Its tokens are transformers' last_hidden_state; with prefix=True, class and register tokens too.

        Args:
            source: A directory with config.json and model.safetensors (whole or sharded), or a Hub id, of a SigLIP,
                CLIP, DINOv2 or ViT; or of a model with such a tower (both towers of CLIP, VisionEncoderDecoder).
            fields: Fields of the configuration to set.
        """
        return cls(ImageEncoderConfig(weights=str(source)), **fields).eval()

    def grid(self) -> TokenGrid:
        """The tokens of any picture."""
        return image_grid(self.config)

    def pixels(self, picture: PIL.Image.Image) -> Tensor:
        """An RGB picture as (3, height, width) uint8 of config.size, resized and cropped as the backbone knows it."""
        return to_pixels(picture, self.config)

    def forward(self, pixels: Tensor) -> Tokens:
        """Tokens (batch, tokens, width), row by row behind any prefix tokens, and their numbers (batch,).

        Args:
            pixels: (batch, 3, height, width) of config.size; uint8, or float in 0..1.
        """
        tokens, lengths = self._tokens(self.backbone(self._normalise(pixels)))
        if tokens.shape[1] != self.grid().count:
            raise ConfigError(
                f"{self.config.name} gives {tokens.shape[1]} tokens, its configuration says {self.grid().count}"
            )
        return tokens, lengths

    def forward_features(self, pixels: Tensor, layers: Sequence[int]) -> list[Tokens]:
        """What forward returns, after each of these blocks (ViTs) or stages; -1 is the last."""
        return [self._tokens(level) for level in self.backbone.forward_features(self._normalise(pixels), layers)]

    def maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Feature maps (batch, width, rows, columns) after each of the layers, without prefix tokens."""
        return [spatial for _, spatial in self.backbone.forward_features(self._normalise(pixels), layers)]

    def _tokens(self, level: Level) -> Tokens:
        single, spatial = level
        tokens = spatial.flatten(2).mT
        return even(torch.cat([single, tokens], dim=1) if self.config.prefix else tokens)

    def _normalise(self, pixels: Tensor) -> Tensor:
        height, width = self.backbone.size
        if tuple(pixels.shape[1:]) != (3, height, width):
            raise ConfigError(
                f"{self.config.name} is built for pictures (batch, 3, {height}, {width}), not {tuple(pixels.shape)}"
            )
        scale = 255 if pixels.dtype == torch.uint8 else 1
        return (pixels.to(self.mean.dtype) / scale - self.mean) / self.std


def _check_resizing(config: ImageEncoderConfig) -> None:
    for name, known in (("crop_mode", CropMode), ("interpolation", Interpolation)):
        if (value := getattr(config, name)) not in get_args(known):
            raise ConfigError(f"image.{name}: {value!r} is none of {', '.join(get_args(known))}")
    if not (isinstance(config.crop_pct, int | float) and config.crop_pct > 0):
        raise ConfigError(f"image.crop_pct: must be above 0, not {config.crop_pct!r}")


def _per_channel(values: tuple[float, float, float] | None) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
