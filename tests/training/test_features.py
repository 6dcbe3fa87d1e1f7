"""Training with a cache of features: the same losses for less work, and nothing random in front of it."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import some_audio, some_image, some_video, tiny_config
from walls import wall_config, write_walls

import mmgpt.media
from mmgpt.content import Image, Text
from mmgpt.encoders import ImageEncoder
from mmgpt.errors import ConfigError, MediaError
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor
from mmgpt.run_config import AugmentConfig, TrainConfig
from mmgpt.training.augment import PictureAugment
from mmgpt.training.callbacks import ShowSamples
from mmgpt.training.features import fingerprint, prepare
from mmgpt.training.run import train

MEDIA = [some_image(0), some_audio(0), some_video(0), some_image(1), some_audio(1, 900), some_video(1, sound=False)]
FROZEN = ("encoders.image", "encoders.audio", "encoders.video")


def frozen_model(tokenizer, *prefixes: str, **changes) -> MultimodalGPT:
    torch.manual_seed(0)
    model = MultimodalGPT(replace(tiny_config(len(tokenizer)), **changes))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes or FROZEN))
    return model


def cached_processor(model: MultimodalGPT, tokenizer, directory: Path) -> Processor:
    return Processor(model.config, tokenizer, caches=prepare(model, TrainConfig(cache=str(directory)), "32-true"))


# The model and the processor


def test_found_tokens_are_those_of_the_batch_that_made_them(tokenizer, tmp_path):
    model = frozen_model(tokenizer)
    processor, plain = cached_processor(model, tokenizer, tmp_path), Processor(model.config, tokenizer)
    for modality in ("image", "audio", "video"):
        media = [part for part in MEDIA if type(part).__name__.lower() == modality]
        expected = model.encode_media(modality, [plain.media_input(part) for part in media])
        for encoded in (False, True):
            items = [processor.media_input(part) for part in media]
            assert [item.encoded for item in items] == [encoded, encoded]
            assert torch.equal(model.encode_media(modality, items), expected)


def test_what_is_found_takes_the_same_room_as_what_is_decoded(tokenizer, tmp_path):
    model = frozen_model(tokenizer)
    processor = cached_processor(model, tokenizer, tmp_path)
    for part in MEDIA:
        decoded = processor.media_input(part)
        model.encode_media(decoded.modality, [decoded])
        found = processor.media_input(part)
        assert (found.encoded, decoded.encoded) == (True, False)
        for name in ("modality", "grid", "features", "slots", "key"):
            assert getattr(found, name) == getattr(decoded, name)


def test_found_and_new_media_mix_in_any_order(tokenizer, tmp_path):
    model = frozen_model(tokenizer)
    processor, plain = cached_processor(model, tokenizer, tmp_path), Processor(model.config, tokenizer)
    sounds = [some_audio(i, samples) for i, samples in enumerate((900, 3000, 1500, 2100, 400))]
    model.encode_media("audio", [processor.media_input(sounds[i]) for i in (1, 3)])
    items = [processor.media_input(sound) for sound in sounds]
    assert [item.encoded for item in items] == [False, True, False, True, False]
    expected = model.encode_media("audio", [plain.media_input(sound) for sound in sounds])
    torch.testing.assert_close(model.encode_media("audio", items), expected)


def test_equal_media_of_a_batch_are_encoded_once(tokenizer, tmp_path, encoded):
    model = frozen_model(tokenizer)
    processor, plain = cached_processor(model, tokenizer, tmp_path), Processor(model.config, tokenizer)
    pictures = [some_image(i) for i in (0, 1, 0, 0)]
    features = model.encode_media("image", [processor.media_input(picture) for picture in pictures]).unflatten(
        0, (4, -1)
    )
    assert encoded == [2]
    assert torch.equal(features[0], features[2])
    assert torch.equal(features[0], features[3])
    expected = model.encode_media("image", [plain.media_input(picture) for picture in pictures])
    torch.testing.assert_close(features.flatten(0, 1), expected)


def test_what_was_kept_since_the_worker_looked_is_not_encoded_again(tokenizer, tmp_path, encoded):
    model = frozen_model(tokenizer)
    processor = cached_processor(model, tokenizer, tmp_path)
    first, again = processor.media_input(some_image(0)), processor.media_input(some_image(0))
    assert not again.encoded
    features = model.encode_media("image", [first])
    assert torch.equal(model.encode_media("image", [again]), features)
    assert encoded == [1]


@pytest.mark.parametrize("how", ["weight", "buffer", "size", "crop", "precision", "matmul"])
def test_other_weights_preprocessing_or_precision_find_nothing(tokenizer, how):
    model = frozen_model(tokenizer)
    before = {modality: fingerprint(model, modality, "32-true") for modality in model.encoders}
    assert before == {modality: fingerprint(frozen_model(tokenizer), modality, "32-true") for modality in before}
    assert len({*before.values()}) == 3
    precision, image = "32-true", model.encoders["image"]
    changed = {"image", "video"}
    if how == "weight":
        with torch.no_grad():
            next(image.parameters()).flatten()[0] += 1e-6
    elif how == "buffer":
        image.get_buffer("std")[0] += 1e-6
    elif how == "size":
        assert model.config.audio is not None
        model.config.audio = replace(model.config.audio, sample_rate=8001)
        changed = {"audio", "video"}
    elif how == "crop":
        assert model.config.image is not None
        model.config.image = replace(model.config.image, crop_pct=0.9)
    elif how == "precision":
        precision, changed = "bf16-mixed", set(before)
    else:
        torch.set_float32_matmul_precision("high")
        changed = set(before)
    try:
        after = {modality: fingerprint(model, modality, precision) for modality in before}
    finally:
        torch.set_float32_matmul_precision("highest")
    assert {modality for modality in before if before[modality] != after[modality]} == changed


def test_where_weights_came_from_and_how_they_were_frozen_changes_nothing(tokenizer):
    model = frozen_model(tokenizer)
    before = fingerprint(model, "video", "32-true")
    assert model.config.image is not None
    model.config.image = replace(model.config.image, frozen=True, pretrained=True, weights="x.safetensors")
    assert fingerprint(model, "video", "32-true") == before


@pytest.mark.parametrize(
    ("prefixes", "kept"),
    [
        (FROZEN, ["image", "audio", "video"]),
        (("encoders.image", "encoders.audio"), ["image", "audio"]),
        (("encoders.image", "encoders.video"), ["image"]),  # the sound track goes through a trained encoder
        (("encoders.video",), []),
        (("encoders.image.backbone.model.stem",), []),
    ],
)
def test_an_encoder_is_kept_if_nothing_of_it_and_of_those_it_borrows_is_trained(tokenizer, tmp_path, prefixes, kept):
    model = frozen_model(tokenizer, *prefixes)
    assert list(prepare(model, TrainConfig(cache=str(tmp_path)), "32-true")) == kept


def test_a_silent_video_encoder_does_not_borrow_the_audio_encoder(tokenizer, tmp_path):
    video = tiny_config(len(tokenizer)).video
    assert video is not None
    model = frozen_model(tokenizer, "encoders.image", "encoders.video", video=replace(video, sound=False))
    assert list(prepare(model, TrainConfig(cache=str(tmp_path)), "32-true")) == ["image", "video"]


@pytest.mark.parametrize("cache", [None, False, "features"])
def test_frozen_encoders_are_in_evaluation_mode_whatever_the_mode_of_the_model(tokenizer, tmp_path, cache):
    image = tiny_config(len(tokenizer)).image
    assert image is not None
    image.args |= {"drop_path_rate": 0.9, "depths": [3, 3, 3, 3]}
    model = frozen_model(tokenizer, "encoders.image", image=image)
    assert model.encoders["image"].training
    caches = prepare(model, TrainConfig(cache=cache and str(tmp_path / cache)), "32-true")
    assert bool(caches) == bool(list(tmp_path.iterdir())) == bool(cache)
    assert not any(module.training for module in model.encoders["image"].modules())
    model.train()
    assert not any(module.training for module in model.encoders["image"].modules())
    assert model.encoders["audio"].training
    assert model.encoders["video"].training
    item = Processor(model.config, tokenizer).media_input(some_image(0))
    assert torch.equal(model.encode_media("image", [item]), model.encode_media("image", [item]))


def test_broken_media_are_told_as_without_a_cache(tokenizer, tmp_path):
    model = frozen_model(tokenizer)
    processor = cached_processor(model, tokenizer, tmp_path / "cache")
    (tmp_path / "no.png").write_text("no picture")
    for _ in range(2):
        with pytest.raises(MediaError, match=r"no\.png: is damaged or not a picture"):
            processor.media_input(Image(tmp_path / "no.png"))
    with pytest.raises(TypeError, match="Text is not a media part"):
        processor.media_input(Text("a"))


def test_pictures_changed_at_random_have_no_cache(tokenizer, tmp_path):
    model = frozen_model(tokenizer)
    caches = prepare(model, TrainConfig(cache=str(tmp_path)), "32-true")
    with pytest.raises(ConfigError, match="changed at random"):
        Processor(model.config, tokenizer, PictureAugment(AugmentConfig(crop=0.6)), caches)


def test_only_what_is_changed_at_random_cannot_be_kept(tokenizer, tmp_path):
    cached = {
        name: TrainConfig(cache=str(tmp_path), augment=augment)
        for name, augment in (("image", AugmentConfig(spec=True)), ("audio", AugmentConfig(crop=0.6)))
    }
    for modality, config in cached.items():
        model = frozen_model(tokenizer, f"encoders.{modality}", video=None)
        assert list(prepare(model, config, "32-true")) == [modality]
    with pytest.raises(ConfigError, match="cache: what is kept of the frozen image encoder is the same in every epoch"):
        prepare(frozen_model(tokenizer, "encoders.image"), cached["audio"], "32-true")


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("augment", "frozen", "told"),
    [
        (AugmentConfig(spec=True), "encoders.audio", r"spec: masks .* and the audio encoder is frozen; leave out one"),
        (AugmentConfig(frames=True), "encoders", r"frames: hides .* that of clips is frozen; leave out one"),
        (AugmentConfig(hide=0.5), "encoders", r"hide: hides .* that of clips is frozen; leave out one"),
    ],
)
def test_masks_for_an_encoder_that_does_not_learn_are_refused(tokenizer, tmp_path, augment, frozen, told, cached):
    """It is in evaluation mode, in which nothing is masked."""
    config = TrainConfig(cache=str(tmp_path) if cached else None, augment=augment)
    with pytest.raises(ConfigError, match=rf"augment\.{told}"):
        prepare(frozen_model(tokenizer, frozen), config, "32-true")
    assert prepare(frozen_model(tokenizer, "encoders.image"), replace(config, cache=None), "32-true") == {}


# Runs


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Numbers of pictures that went through an image encoder, call by call."""
    counts: list[int] = []
    forward = ImageEncoder.forward

    def counted(self, pixels):
        counts.append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(ImageEncoder, "forward", counted)
    return counts


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the pictures that were decoded."""
    names: list[str] = []
    load = mmgpt.media.load_image

    def counted(source, **limits):
        names.append(Path(source).name)
        return load(source, **limits)

    monkeypatch.setattr(mmgpt.media, "load_image", counted)
    return names


@pytest.fixture
def no_samples_shown(monkeypatch) -> None:
    """Answers are inference, which has no cache."""
    monkeypatch.setattr(ShowSamples, "on_validation_epoch_end", lambda *_: None)


def losses(config: TrainConfig) -> list[float]:
    found = []
    with (Path(config.out) / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found += [float(row[name]) for name in ("loss", "val_loss") if row.get(name)]
    return found


def frozen_walls(tmp_path: Path, name: str, **changes) -> TrainConfig:
    settings = {"train": ["gpt", "adapters"], "epochs": 2, "val_every": 1, "cache": str(tmp_path / "cache")}
    if not (tmp_path / "data").exists():
        write_walls(tmp_path / "data")
    config = wall_config(tmp_path / "data", tmp_path / name, **{**settings, **changes})
    assert config.model.image is not None
    config.model.image.args["drop_path_rate"] = 0.5
    return config


def run(config: TrainConfig) -> list[float]:
    """All losses of a run that logs each step."""
    train(config)
    return losses(config)


@pytest.mark.usefixtures("no_samples_shown")
def test_media_are_decoded_and_encoded_in_the_first_epoch_of_the_first_run_alone(tmp_path, encoded, decoded):
    first = run(frozen_walls(tmp_path, "first"))
    assert sum(encoded) == 12
    assert sorted(decoded) == sorted(f"{i}.png" for i in range(12))
    encoded.clear()
    decoded.clear()
    assert run(frozen_walls(tmp_path, "second")) == first  # the very same
    assert run(frozen_walls(tmp_path, "third", cache=None)) == pytest.approx(first, rel=1e-5)
    assert len(decoded) == 2 * 9 + 4 * 3  # of the third alone
    assert sum(encoded) == 2 * 9 + 2 * 4 * 3  # validation looks at each picture twice: in another's place too
    workers = frozen_walls(tmp_path, "fourth")
    workers.data.workers = 1
    encoded.clear()
    assert run(workers) == first
    assert not encoded


def test_a_first_epoch_with_a_cache_has_the_losses_of_one_without(tmp_path):
    with_cache, without = (
        run(frozen_walls(tmp_path, str(cache), cache=cache, epochs=1)) for cache in (str(tmp_path / "cache"), None)
    )
    assert with_cache == without


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path, capfd):
    without = run(frozen_walls(tmp_path, "without", cache=None))
    (tmp_path / "cache").mkdir()
    for number in range(256):  # a file in the place of each folder
        (tmp_path / "cache" / f"{number:02x}").write_text("")
    assert run(frozen_walls(tmp_path, "with")) == without
    assert capfd.readouterr().err.count("feature cache: cannot write") == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"augment": AugmentConfig(mirror=True)},
            "cache: what is kept of the frozen image encoder is the same in every",
        ),
        ({"cache_gb": 0}, "cache_gb: must be above 0, not 0"),
    ],
)
def test_what_does_not_go_with_a_cache_is_told_before_training(tmp_path, changes, told):
    config = frozen_walls(tmp_path, "run", **changes)
    with pytest.raises(ConfigError, match=told):
        train(config)
    assert not (tmp_path / "run" / "metrics.csv").exists()
    assert not (tmp_path / "cache").exists()


def test_a_run_that_trains_its_encoder_keeps_nothing_and_may_augment(tmp_path, capsys):
    run(frozen_walls(tmp_path, "run", train=["*"], augment=AugmentConfig(crop=0.6), epochs=1))
    assert "features kept in" in (said := capsys.readouterr().out)
    assert "none, as no encoder is frozen" in said
    assert not list((tmp_path / "cache").iterdir())
