"""Random changes of pictures in training."""

import random

import PIL.Image
import torch
from torchvision.transforms.v2 import InterpolationMode, RandAugment

from mmgpt.run_config import AugmentConfig


class PictureAugment:
    """Crops pictures, mirrors them and puts them through RandAugment (Cubuk et al. 2020), as configured.

    All chance is drawn from `random`, which the Loader seeds for each sample.
    """

    def __init__(self, config: AugmentConfig):
        self.config = config
        self.operations = RandAugment(config.randaugment, config.magnitude, interpolation=InterpolationMode.BILINEAR)

    def __call__(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        if self.config.crop < 1:
            picture = _cropped(picture, self.config.crop)
        if self.config.mirror and random.random() < 0.5:
            picture = picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        if self.config.randaugment:
            with torch.random.fork_rng(devices=()):
                torch.default_generator.manual_seed(random.getrandbits(63))
                picture = self.operations(picture)
        return picture


def picture_augment(config: AugmentConfig) -> PictureAugment | None:
    """What a Processor does to pictures in training; None where they stay as they are."""
    return PictureAugment(config) if config.pictures else None


def _cropped(picture: PIL.Image.Image, least: float) -> PIL.Image.Image:
    width, height = picture.size
    w, h = (max(1, round(side * random.uniform(least, 1.0))) for side in (width, height))
    x, y = random.randint(0, width - w), random.randint(0, height - h)
    return picture.crop((x, y, x + w, y + h))
