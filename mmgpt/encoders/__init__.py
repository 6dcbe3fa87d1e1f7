"""Encoders: what turns pictures, sounds, videos and texts into tokens. Each works alone, without the GPT.

tokens, lengths = encoder(inputs)                      # (batch, tokens, width), (batch,)
levels = encoder.forward_features(inputs, layers=[0])  # the same, of intermediate layers
encoder.width, encoder.grid(...), encoder.config       # size of a token; how many come; the resolved configuration
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmgpt.config import ModelConfig
from mmgpt.errors import ConfigError

if TYPE_CHECKING:
    from mmgpt.encoders.audio import AudioEncoder as AudioEncoder
    from mmgpt.encoders.base import Encoder as Encoder
    from mmgpt.encoders.image import ImageEncoder as ImageEncoder
    from mmgpt.encoders.text import TextEncoder as TextEncoder
    from mmgpt.encoders.video import VideoEncoder as VideoEncoder

__all__ = ["ENCODERS", "AudioEncoder", "ImageEncoder", "TextEncoder", "VideoEncoder", "build_encoders"]


def __getattr__(name: str) -> Any:
    """Encoders are imported, and with them torch and timm, when they are first asked for."""
    if name in __all__:
        return getattr(import_module(f"mmgpt.encoders.{name.removesuffix('Encoder').lower()}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _image(config: Any, _: Mapping[str, "Encoder"]) -> "Encoder":
    from mmgpt.encoders.image import ImageEncoder

    return ImageEncoder(config)


def _audio(config: Any, _: Mapping[str, "Encoder"]) -> "Encoder":
    from mmgpt.encoders.audio import AudioEncoder

    return AudioEncoder(config)


def _video(config: Any, built: Any) -> "Encoder":
    from mmgpt.encoders.video import VideoEncoder

    if "image" not in built:
        raise ConfigError("model.video: frames go through the image encoder; configure model.image too")
    return VideoEncoder(config, built["image"], built["audio"] if "audio" in built else None)  # noqa: SIM401


# Modality of media -> how its encoder is built from its configuration and the encoders built before it.
ENCODERS: dict[str, Callable[[Any, Any], "Encoder"]] = {"image": _image, "audio": _audio, "video": _video}


def build_encoders(config: ModelConfig) -> tuple[ModelConfig, dict[str, "Encoder"]]:
    """A model's resolved configuration and its encoders by modality, for those who need no GPT."""
    built: dict[str, Encoder] = {}
    resolved = replace(config)
    for modality, build in ENCODERS.items():
        if (own := getattr(config, modality)) is not None:
            built[modality] = build(own, built)
            setattr(resolved, modality, built[modality].config)
    return resolved, built
