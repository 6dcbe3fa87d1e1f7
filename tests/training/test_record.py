"""What a run writes of itself into its checkpoints."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from walls import wall_config, write_walls

from mmgpt import checkpoint
from mmgpt.config import AudioEncoderConfig, GPTConfig, ImageEncoderConfig, ModelConfig
from mmgpt.run_config import DataConfig, SourceConfig, TrainConfig
from mmgpt.training.record import record
from mmgpt.training.run import train


def test_a_run_tells_its_data_and_settings(tmp_path):
    train(wall_config(write_walls(tmp_path / "walls"), tmp_path / "run"))
    for name in ("best", "last"):
        told = checkpoint.read_training(checkpoint.resolve(tmp_path / "run" / name))
        assert told["data"] == str(tmp_path / "walls")
        assert (told["format"], told["split"], told["samples"], told["epochs"]) == ("captions", "train", 9, 1)
        assert (told["begun_from"], told["batch_size"], told["learning_rate"]) == ([], 5, 5e-3)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (DataConfig("world", world="hard"), ("world hard", "world", None)),
        (
            DataConfig("mix", mix={"a": SourceConfig("coco", "x"), "b": SourceConfig("vqa", "y")}),
            ("mix of a, b", "mix", None),
        ),
        (DataConfig("hf_stream", "owner/name", split="all"), ("owner/name", "hf_stream", "all")),
    ],
)
def test_data_that_are_no_folder_are_told_by_what_they_are(data, told):
    found = record(TrainConfig(data=data), None)
    assert (found["data"], found["format"], found.get("split")) == told


def test_batches_are_told_as_they_are_made():
    assert record(TrainConfig(batch_tokens=8192), 5)["batch_size"] is None
    assert record(TrainConfig(batch_size=7), 5)["batch_size"] == 7


def test_what_it_began_from_is_told_a_directory_by_its_name_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("towers/siglip").mkdir(parents=True)
    model = ModelConfig(
        GPTConfig(weights="gpt2"),
        ImageEncoderConfig(weights="towers/siglip"),
        AudioEncoderConfig("whisper", weights="openai/whisper-tiny"),
    )
    assert record(TrainConfig(model=model), 5)["begun_from"] == ["gpt2", "./siglip", "openai/whisper-tiny"]
    assert record(TrainConfig(model=replace(model, image=ImageEncoderConfig("resnet18", pretrained=True))), 5)[
        "begun_from"
    ] == ["gpt2", "timm/resnet18.a1_in1k", "openai/whisper-tiny"]


def test_what_init_began_from_is_told_too(tmp_path, model, tokenizer):
    start = checkpoint.save(tmp_path / "align", model, tokenizer, {"begun_from": ["gpt2", "./siglip"]})
    assert record(TrainConfig(init=str(start)), 5)["begun_from"] == ["gpt2", "./siglip", "./align"]
    (checkpoint.resolve(start) / "training.json").unlink()
    assert record(TrainConfig(init=str(start)), 5)["begun_from"] == ["./align"]
    assert json.dumps(record(TrainConfig(init=str(start)), 5))
