"""A folder of walls to learn the colours of, and a configuration that learns them in seconds."""

from pathlib import Path

import numpy as np
import PIL.Image

from mmgpt.config import DataConfig, GPTConfig, ImageEncoderConfig, ModelConfig, OptimizerConfig, TrainConfig

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (240, 240, 240)}


def write_walls(folder: Path, train: int = 8, dev: int = 4, broken: tuple[str, ...] = ()) -> Path:
    """Pictures of one colour each, named in turn, and one that is none for each split in `broken`."""
    folder.mkdir(parents=True)
    rows = ["image,caption,split"]
    for i in range(train + dev):
        name = list(COLOURS)[i % 4]
        grain = np.random.default_rng(i).integers(-9, 10, (32, 32, 3))
        PIL.Image.fromarray(np.clip(np.array(COLOURS[name]) + grain, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,the wall is {name},{'train' if i < train else 'dev'}")
    for split in broken:
        (folder / f"broken-{split}.png").write_text("no picture")
        rows.append(f"broken-{split}.png,the wall is broken,{split}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder


def wall_config(folder: Path, out: Path, **changes) -> TrainConfig:
    settings = {
        "out": str(out),
        "batch_size": 4,
        "epochs": 1,
        "data": DataConfig("captions", str(folder), vocab_size=280),
        "optimizer": OptimizerConfig(learning_rate=1e-2, weight_decay=0.0),
        "precision": "32-true",
        "model": ModelConfig(
            GPTConfig(width=32, layers=1, heads=2, context=64),
            ImageEncoderConfig(
                "convnext_atto", size=(32, 32), args={"patch_size": 2, "depths": [1] * 4, "dims": [8] * 4}
            ),
        ),
    }
    return TrainConfig(**{**settings, **changes})
