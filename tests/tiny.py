"""The tiny model's configuration, and pictures, sounds and clips of noise for it.

Not in conftest.py, since tests in folders with a conftest.py of their own import from here too.
"""

from typing import Literal

import numpy as np
import torch

from mmgpt.config import (
    AdapterConfig,
    AudioEncoderConfig,
    GPTConfig,
    ImageEncoderConfig,
    ModelConfig,
    VideoEncoderConfig,
)
from mmgpt.content import Audio, Image, Video
from mmgpt.model import MultimodalGPT


def tiny_config(vocab_size: int) -> ModelConfig:
    return ModelConfig(
        gpt=GPTConfig(vocab_size=vocab_size, width=32, layers=2, heads=2, context=160),
        image=ImageEncoderConfig(
            "convnext_atto", size=(32, 32), args={"patch_size": 2, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
        ),
        audio=AudioEncoderConfig(sample_rate=8000, window=256, hop=80, mels=16, channels=16, layers=1, reduction=4),
        video=VideoEncoderConfig(frames=2, grid=(1, 1)),
        adapters={"audio": AdapterConfig("pixel_shuffle"), "video": AdapterConfig("linear")},
    )


def cross_config(vocab_size: int, cross: Literal["inside", "gated"] | None) -> ModelConfig:
    config = tiny_config(vocab_size)
    config.gpt.cross = cross
    return config


def seeing(config: ModelConfig, weights: float = 2.0, embedding: float | None = None) -> MultimodalGPT:
    """A model in evaluation mode in which media matter: weights are larger by these factors, and gates are open."""
    torch.manual_seed(0)
    model = MultimodalGPT(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(1.0)
            elif parameter.ndim >= 2:
                parameter.mul_(embedding if embedding and name == "gpt.embedding.weight" else weights)
    return model


def some_image(seed: int, size: int = 40) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def some_audio(seed: int, samples: int = 3000) -> Audio:
    return Audio(np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32), 8000)


def some_video(seed: int, sound: bool = True) -> Video:
    frames = np.random.default_rng(seed).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    return Video(frames, 4.0, some_audio(seed) if sound else None)
