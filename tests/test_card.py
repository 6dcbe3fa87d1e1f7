"""The model card: what it says of models of each kind, and that it says no more than is known."""

import dataclasses

import pytest
from huggingface_hub import ModelCard
from tiny import tiny_config

from mmgpt.card import model_card
from mmgpt.config import ModelConfig, PairConfig

SCORE = {"task": "caption", "metric": "CIDEr-D", "score": 0.165, "n": 1000, "control": 0.079, "chance": None}
RUN = {
    "data": "photos", "format": "captions", "split": "train", "samples": 6000, "epochs": 4, "steps": 752,
    "minutes": 23.7, "val_loss": 2.5, "batch_size": 32, "batch_tokens": None, "learning_rate": 0.001, "seed": 0,
    "scores": [SCORE],
}  # fmt: skip


def card(config: ModelConfig, training=RUN, **given) -> ModelCard:
    return ModelCard(model_card("me/model", config, {"gpt": 1_500_000, "encoders.image": 900_000}, training, **given))


def with_only(*modalities: str, **changes) -> ModelConfig:
    config = tiny_config(300)
    config.image.mean, config.image.std, config.image.grid = (0.5, 0.25, 0.125), (1.0, 0.5, 0.25), (1, 1)
    config.image.crop_mode, config.image.interpolation = "squash", "bicubic"
    gone = {name: None for name in ("image", "audio", "video") if name not in modalities}
    return dataclasses.replace(config, **gone, **changes)


def row(told: ModelCard, name: str) -> list[str]:
    """The cells of a table's row behind its name."""
    (line,) = [line for line in told.text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("| ").split("|")][1:]


def test_what_is_known_is_said():
    told = card(with_only("image"), licence="mit", data_licence="their photographers'", datasets=["a/b"])
    assert "A GPT of 2.40 M parameters that sees pictures and reads text" in told.text
    assert row(told, "trained on") == ["photos (format captions, split train)"]
    assert row(told, "samples") == ["6,000 × 4 epochs"]
    assert row(told, "licence of the data") == ["their photographers'"]
    assert row(told, "licence of the model") == ["mit"]
    assert row(told, "learning rate") == ["0.001"]
    assert row(told, "caption") == ["CIDEr-D", "16.5", "7.9", "", "1,000"]
    assert told.data.to_dict()["model-index"][0]["results"][0]["metrics"] == [
        {"type": "cider", "value": 16.5, "name": "caption: CIDEr-D"}
    ]
    assert "batch tokens" not in told.text


def test_what_is_not_known_is_not_stated():
    told = card(with_only("image"), {})
    for name in ("trained on", "licence of the data", "licence of the model"):
        assert row(told, name) == ["not stated"]
    assert "None were measured." in told.text
    assert "license" not in told.data.to_dict()
    assert "model-index" not in told.data.to_dict()


def test_the_preprocessing_is_that_of_the_configuration():
    text = card(with_only("image", "audio", "video")).text
    assert "stretched to 32 × 32 pixels (bicubic), in 0..1, less the mean (0.5, 0.25, 0.125)" in text
    assert "over the standard deviation (1, 0.5, 0.25)" in text
    assert "8,000 Hz" in text
    assert "16 bands, windows of 256 samples, one every 80" in text
    assert "2 frames, evenly spaced, as pictures, the sound track as sounds" in text
    config = with_only("image")
    config.image.crop_mode, config.image.crop_pct = "center", 0.875
    text = card(config).text
    assert "cropped in the middle (by 0.875 of its size) to 32 × 32 pixels" in text
    assert "Sounds:" not in text
    assert "Clips:" not in text


@pytest.mark.parametrize(
    ("modalities", "tasks", "pipeline"),
    [
        ((), ["write"], "text-generation"),
        ((), ["translate"], "translation"),
        (("image",), ["caption"], "image-to-text"),
        (("image",), ["caption", "ask"], "image-text-to-text"),
        (("audio",), ["transcribe"], "automatic-speech-recognition"),
        (("audio",), [], "audio-text-to-text"),
        (("image", "video"), [], "video-text-to-text"),
        (("image", "audio"), ["caption"], "image-to-text"),
        (("image", "audio", "video"), [], None),
    ],
)
def test_the_hub_is_told_what_the_model_takes_and_does(modalities, tasks, pipeline):
    told = card(with_only(*modalities), {"scores": [SCORE | {"task": task} for task in tasks]})
    assert told.data.pipeline_tag == pipeline
    assert told.data.tags == [*modalities, "text"]


@pytest.mark.parametrize(
    ("config", "tasks", "calls"),
    [
        (with_only("image"), ["caption"], ['model.caption("photo.jpg")']),
        (with_only("audio"), ["transcribe"], ['model.transcribe("sound.wav")']),
        (with_only("image"), ["classify"], ['model.classify("photo.jpg", ["cat", "dog"])']),
        (with_only(), ["classify"], ['model.classify(mmgpt.Text("A text."), ["cat", "dog"])']),
        (with_only("image"), [], ['model.ask("What is it?", image="photo.jpg")']),
        (with_only(), [], ['model.ask("What is it?")']),
        (with_only("image", pair=PairConfig(caption=0.0)), [], ['model.classify("photo.jpg", ["cat", "dog"])']),
    ],
)
def test_its_lines_ask_what_the_model_can_answer(config, tasks, calls):
    text = card(config, {}, tasks=tasks).text
    python = text.partition("```python\n")[2].partition("```")[0]
    compile(python, "card", "exec")
    assert python.splitlines()[3:] == [f"print({call})" for call in calls]
    assert text.count("uv run mmgpt ") == text.count("--model me/model") == len(calls)


def test_words_of_the_user_do_not_break_the_card():
    told = card(with_only("image"), RUN | {"data": "a|b\n---\nlicense: mit"}, data_licence="one: two\n| three")
    assert row(told, "licence of the data")[0] == "one: two \\"
    assert "license" not in told.data.to_dict()
    assert told.data.eval_results[0].dataset_name == "a|b\n---\nlicense: mit"
