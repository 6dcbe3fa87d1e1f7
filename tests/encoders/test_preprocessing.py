import json

import numpy as np
import PIL.Image
import pytest
import timm.data
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.config import ImageEncoderConfig
from mmgpt.encoders import ImageEncoder
from mmgpt.encoders.preprocessing import read_preprocessing, to_pixels
from mmgpt.errors import CheckpointError, MediaError

SQUASH, CENTER = {"crop_mode": "squash"}, {"crop_mode": "center"}
# As published with the families' checkpoints, at small sizes; what the family does where the file does not tell.
PROCESSORS = {
    "siglip": ("SiglipImageProcessor", {"size": {"height": 48, "width": 48}}, SQUASH),
    "siglip, not square": ("SiglipImageProcessor", {"size": {"height": 32, "width": 48}, "resample": 2}, SQUASH),
    "vit": ("ViTImageProcessor", {"size": {"height": 48, "width": 48}}, SQUASH),
    "vit, squashed, then cropped": (
        "DeiTImageProcessor",
        {"size": {"height": 64, "width": 64}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": True},
        SQUASH,
    ),
    "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": 48}, "crop_size": 48}, CENTER),
    "dinov2": (
        "BitImageProcessor",
        {
            "size": {"shortest_edge": 41},
            "crop_size": {"height": 23, "width": 23},
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
        CENTER,
    ),
}


def photo(width: int, height: int) -> PIL.Image.Image:
    """Something smooth with edges and grain in it."""
    y, x = np.mgrid[:height, :width] / 20
    waves = np.stack([np.sin(x + y), np.cos(2 * x), np.sign(np.sin(y))], axis=-1)
    grain = np.random.default_rng(width * height).normal(0, 0.1, waves.shape)
    return PIL.Image.fromarray(np.clip(127 + 100 * (waves + grain), 0, 255).astype(np.uint8))


def normalised(pixels: torch.Tensor, config: ImageEncoderConfig) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    return (pixels / 255 - mean) / std


@pytest.mark.parametrize("name", PROCESSORS)
@settings(derandomize=True, deadline=None, max_examples=20)
@given(width=st.integers(1, 150), height=st.integers(1, 150))
def test_pixels_of_any_picture_are_those_of_transformers(name, tmp_path_factory, width, height):
    kind, fields, usual = PROCESSORS[name]
    folder = tmp_path_factory.mktemp("processor")
    getattr(hf, kind)(**fields).save_pretrained(folder)
    config = ImageEncoderConfig(**read_preprocessing(folder, usual))
    picture = photo(width, height)
    pixels = to_pixels(picture, config)
    assert pixels.dtype == torch.uint8
    ours = normalised(pixels, config)
    # Exact with Pillow; torchvision's own resampling of bytes differs by a few of the 255 levels.
    levels = {"pil": 1e-3, "torchvision": 4}
    for backend, level in levels.items():
        processor = hf.AutoImageProcessor.from_pretrained(folder, backend=backend)
        theirs = processor(picture, return_tensors="pt").pixel_values[0]
        assert theirs.shape == ours.shape
        assert ((theirs - ours).abs().amax((1, 2)) * torch.tensor(config.std) * 255).max() < level, backend


@pytest.mark.parametrize(
    ("older", "usual", "told"),
    [
        ({"size": 48}, SQUASH, ((48, 48), "squash", 1.0)),
        ({"size": 48}, CENTER, ((48, 48), "center", 1.0)),
        ({"size": 64, "crop_size": 48}, CENTER, ((48, 48), "center", 0.75)),
        ({"size": 64, "crop_size": 48, "do_center_crop": True}, SQUASH, ((48, 48), "squash", 0.75)),
        ({"size": {"height": 48, "width": 32}, "do_center_crop": False}, CENTER, ((48, 32), "squash", 1.0)),
        ({"size": [48, 32]}, SQUASH, ((48, 32), "squash", 1.0)),
    ],
)
def test_files_of_older_versions_are_understood(tmp_path, older, usual, told):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(older))
    found = read_preprocessing(tmp_path, usual)
    assert (found["size"], found["crop_mode"], found["crop_pct"]) == told


def test_the_image_processor_may_be_part_of_the_whole_processors_file(tmp_path):
    part = {"size": {"height": 48, "width": 48}, "image_mean": [0.1, 0.2, 0.3], "resample": 1}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": part}))
    found = read_preprocessing(tmp_path, SQUASH)
    assert (found["size"], found["mean"], found["interpolation"]) == ((48, 48), (0.1, 0.2, 0.3), "lanczos")
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "SomeProcessor"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_std": [1, 1, 1], "size": None}))
    assert read_preprocessing(tmp_path, SQUASH) == {"std": (1.0, 1.0, 1.0)}


def test_without_a_file_nothing_is_told(tmp_path):
    assert read_preprocessing(tmp_path, SQUASH) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_normalize": False}, "do_normalize = False is not supported"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor = 0.00784"),
        ({"size": {"shortest_edge": 48}}, "not cropped is not supported"),
        ({"size": {"shortest_edge": 48, "longest_edge": 96}}, "is no height and width"),
        ({"size": 0}, "0 is no height and width"),
        ({"size": 48, "do_center_crop": True, "crop_size": [48, 32]}, r"cropped to \(48, 32\) is not supported"),
        ({"resample": 9}, "9 is not a valid Resampling"),
        ({"image_mean": 0.5}, "not iterable"),
    ],
)
def test_what_this_rule_cannot_do_is_refused_in_one_line(tmp_path, settings, message):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=message) as error:
        read_preprocessing(tmp_path, SQUASH)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cfg", "shape"),
    [
        ({"crop_mode": "center", "crop_pct": 0.9, "interpolation": "bicubic"}, (224, 224)),
        ({"crop_mode": "center", "crop_pct": 1.0, "interpolation": "bilinear"}, (224, 224)),
        ({"crop_mode": "squash", "crop_pct": 0.75, "interpolation": "bicubic"}, (96, 64)),
        ({"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bicubic"}, (96, 64)),
    ],
)
@pytest.mark.parametrize("picture", [(300, 200), (200, 301), (500, 40), (30, 30)])
def test_pixels_are_those_of_timms_transform(cfg, shape, picture):
    theirs = timm.data.create_transform((3, *shape), is_training=False, mean=(0, 0, 0), std=(1, 1, 1), **cfg)
    expected = (theirs(photo(*picture)) * 255).round().to(torch.uint8)  # type: ignore[operator]
    # Here no odd number of pixels is cut off of which timm would round the half up; transformers and we round it down.
    assert torch.equal(to_pixels(photo(*picture), ImageEncoderConfig(size=shape, **cfg)), expected)


def test_a_picture_that_is_not_square_covers_a_size_that_is_not_either():
    config = ImageEncoderConfig(size=(20, 40), crop_mode="center", crop_pct=0.5, interpolation="nearest")
    picture = PIL.Image.fromarray(np.arange(160, dtype=np.uint8).repeat(3).reshape(1, 160, 3).repeat(40, axis=0))
    pixels = to_pixels(picture, config)  # resized to (40, 160), of which the middle is taken
    assert pixels.shape == (3, 20, 40)
    assert pixels[0, 0].tolist() == list(range(60, 100))


def test_a_picture_too_long_to_be_covered_is_refused_before_it_takes_memory():
    config = ImageEncoderConfig(size=(224, 224), crop_mode="center", crop_pct=1.0, interpolation="bicubic")
    with pytest.raises(MediaError, match="1 x 30000 pixels is too long to be cropped in the middle"):
        to_pixels(PIL.Image.new("RGB", (1, 30_000)), config)


def test_a_tower_sees_a_picture_as_transformers_does_at_its_processors_size(tmp_path):
    config = hf.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=35, patch_size=5, initializer_range=0.2
    )
    torch.manual_seed(0)
    theirs = hf.Dinov2Model(config).eval()
    theirs.save_pretrained(tmp_path)
    usual = ImageEncoder.from_pretrained(tmp_path).config
    assert usual.size == (35, 35)
    assert (usual.mean, usual.crop_mode, usual.crop_pct) == ((0.485, 0.456, 0.406), "center", 224 / 256)

    fields = {"size": {"shortest_edge": 30}, "crop_size": {"height": 25, "width": 25}, "image_mean": [0.1, 0.2, 0.3]}
    hf.BitImageProcessor(**fields).save_pretrained(tmp_path)
    ours = ImageEncoder.from_pretrained(tmp_path, prefix=True)
    inputs = hf.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(photo(90, 70), return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs).last_hidden_state
        torch.testing.assert_close(ours(ours.pixels(photo(90, 70))[None])[0], expected, rtol=1e-4, atol=1e-5)
    told = ImageEncoder.from_pretrained(tmp_path, size=(50, 50), mean=(0.5, 0.5, 0.5)).config
    assert (told.size, told.mean, told.crop_pct) == ((50, 50), (0.5, 0.5, 0.5), 25 / 30)
