"""A folder of walls to learn the colours of, and a configuration that learns them in seconds."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmgpt.config import AdapterConfig, GPTConfig, ImageEncoderConfig, ModelConfig
from mmgpt.model import MultimodalGPT
from mmgpt.run_config import DataConfig, OptimizerConfig, TrainConfig
from mmgpt.training.run import train

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}


def colour_of(number: int) -> str:
    return list(COLOURS)[(number + number // 3) % 3]


def write_walls(folder: Path, train: int = 9, dev: int = 3, broken: tuple[str, ...] = ()) -> Path:
    """Pictures of one colour each, and one that is none for each split in `broken`.

    Training goes through three wordings of the request in turn; the colours do not come in step with them.
    """
    folder.mkdir(parents=True)
    rows = ["image,caption,split"]
    for i in range(train + dev):
        name = colour_of(i)
        grain = np.random.default_rng(i).integers(-9, 10, (32, 32, 3))
        PIL.Image.fromarray(np.clip(np.array(COLOURS[name]) + grain, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{name} wall,{'train' if i < train else 'dev'}")
    for split in broken:
        (folder / f"broken-{split}.png").write_text("no picture")
        rows.append(f"broken-{split}.png,broken wall,{split}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_walks(folder: Path, train: int = 9, dev: int = 3, broken: tuple[str, ...] = ()) -> Path:
    """Documents of format chat that pass two walls each and tell their colours: texts and pictures in turn."""
    write_walls(folder, train, dev, broken)
    lines = []
    for i in range(train + dev):
        split, other = ("train", (2 * i + 1) % train) if i < train else ("dev", train + (i + 1 - train) % dev)
        parts: list[dict[str, str]] = []
        for text, number in (("A walk: ", i), ("Then ", other)):
            colour = f" {colour_of(number)}. "
            parts += [
                {"type": "text", "text": text},
                {"type": "image", "path": f"{number}.png"},
                {"type": "text", "text": colour},
            ]
        lines.append({"messages": [{"role": "assistant", "content": parts}], "split": split})
    for split in broken:
        parts = [{"type": "text", "text": "A walk: "}, {"type": "image", "path": f"broken-{split}.png"}]
        lines.append({"messages": [{"role": "assistant", "content": parts}], "split": split})
    (folder / "walks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "walks.jsonl"


def write_stream(folder: Path) -> None:
    """The same walls as a data set for `datasets` to stream, in `folder`/stream."""
    with (folder / "captions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for split in ("train", "dev"):
        own = [row for row in rows if row["split"] == split]
        media = [{"bytes": (folder / row["image"]).read_bytes(), "path": row["image"]} for row in own]
        table = pa.table({"image": media, "caption": [row["caption"] for row in own]})
        (folder / "stream").mkdir(exist_ok=True)
        pq.write_table(table, folder / "stream" / f"{split.replace('dev', 'validation')}.parquet")


def write_shards(folder: Path) -> None:
    """The same walls in tar shards of a few, in `folder`/shards."""
    with (folder / "captions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (folder / "shards").mkdir()
    for i, row in enumerate(rows):
        picture = folder / row["image"]
        with tarfile.open(folder / "shards" / f"{row['split']}-{i // 6}.tar", "a") as tar:
            tar.add(picture, picture.name)
            text = tarfile.TarInfo(f"{picture.stem}.txt")
            text.size = len(row["caption"].encode())
            tar.addfile(text, io.BytesIO(row["caption"].encode()))


def wall_config(folder: Path, out: Path, **changes) -> TrainConfig:
    settings = {
        "out": str(out),
        "batch_size": 5,
        "epochs": 1,
        "data": DataConfig("captions", str(folder), vocab_size=280),
        "optimizer": OptimizerConfig(learning_rate=5e-3, weight_decay=0.0),
        "precision": "32-true",
        "model": ModelConfig(
            GPTConfig(width=64, layers=1, heads=2, context=64),
            ImageEncoderConfig(
                "convnext_atto", size=(32, 32), args={"patch_size": 2, "depths": [1] * 4, "dims": [16] * 4}
            ),
            adapters={"image": AdapterConfig("linear")},
        ),
    }
    return TrainConfig(**{**settings, **changes})


def train_until(config: TrainConfig, losses: int) -> None:
    """A run that dies after so many losses, those of validation among them."""
    loss, calls = MultimodalGPT.loss, []

    def dying(self, *arguments, **settings):
        calls.append(1)
        if len(calls) > losses:
            raise ZeroDivisionError
        return loss(self, *arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultimodalGPT, "loss", dying)
        with pytest.raises(ZeroDivisionError):
            train(config)
