import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import timm
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import some_image, tiny_config
from torch import Tensor, nn

from mmgpt import checkpoint
from mmgpt.batch import collate
from mmgpt.config import ImageEncoderConfig, ModelConfig, from_dict
from mmgpt.content import Message
from mmgpt.encoders import ImageEncoder
from mmgpt.encoders.weights import FAMILIES
from mmgpt.errors import CheckpointError, ConfigError
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor

CLOSE = {"rtol": 2e-5, "atol": 2e-5}
# The configuration, the vision model, and the name of the norm behind its last block, through which all tokens go.
TOWERS = {
    "siglip_vision_model": (hf.SiglipVisionConfig, hf.SiglipVisionModel, "post_layernorm"),
    "clip_vision_model": (hf.CLIPVisionConfig, hf.CLIPVisionModel, None),
    "dinov2": (hf.Dinov2Config, hf.Dinov2Model, "layernorm"),
    "dinov2_with_registers": (hf.Dinov2WithRegistersConfig, hf.Dinov2WithRegistersModel, "layernorm"),
    "vit": (hf.ViTConfig, hf.ViTModel, "layernorm"),
}
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 20, "patch_size": 5}
WIDE = {"intermediate_size": 52}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
TEXT |= {"max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}


@st.composite
def configs(draw, kind: str) -> hf.PreTrainedConfig:
    heads = draw(st.integers(1, 4))
    fields = {
        "hidden_size": heads * draw(st.sampled_from([4, 7, 16])),
        "num_attention_heads": heads,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "image_size": draw(st.integers(9, 31)),
        "patch_size": draw(st.integers(3, 9)),
        "hidden_act": draw(st.sampled_from(["gelu", "gelu_pytorch_tanh", "gelu_new", "quick_gelu", "relu"])),
        "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-6, 1e-2])),
    }
    if kind.startswith("dinov2"):
        fields |= {"mlp_ratio": draw(st.integers(1, 5)), "use_swiglu_ffn": draw(st.booleans())}
    else:
        fields["intermediate_size"] = draw(st.integers(1, 70))
    if not kind.startswith(("siglip", "clip")):
        fields["qkv_bias"] = draw(st.booleans())
    if kind == "dinov2_with_registers":
        fields["num_register_tokens"] = draw(st.integers(1, 6))
    return TOWERS[kind][0](**fields)


def shaken(model: nn.Module) -> nn.Module:
    """In which no parameter is zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def small(kind: str, **fields) -> nn.Module:
    configuration, build, _ = TOWERS[kind]
    return shaken(build(configuration(**SMALL, **({} if kind.startswith("dinov2") else WIDE), **fields)))


def some_pixels(encoder: ImageEncoder) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, *encoder.config.size), generator=generator, dtype=torch.uint8)


def normalised(pixels: Tensor, encoder: ImageEncoder) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.config.mean, encoder.config.std))
    return (pixels / 255 - mean) / std


def assert_same_tokens(encoder: ImageEncoder, tower: nn.Module, **arguments) -> None:
    pixels = some_pixels(encoder)
    with torch.no_grad():
        expected = tower(pixel_values=normalised(pixels, encoder), **arguments).last_hidden_state
        torch.testing.assert_close(encoder(pixels)[0], expected, **CLOSE)


@pytest.mark.parametrize("kind", TOWERS)
@settings(derandomize=True, deadline=None, max_examples=10)
@given(data=st.data())
def test_towers_of_any_configuration_give_the_numbers_of_transformers(kind, tmp_path_factory, data):
    config = data.draw(configs(kind))
    folder = tmp_path_factory.mktemp(kind)
    theirs = shaken(TOWERS[kind][1](config))
    theirs.save_pretrained(folder)
    rows, columns = (config.image_size // config.patch_size,) * 2
    fields, arguments = {}, {}
    if data.draw(st.booleans()):  # another size: the positions are resampled
        rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
        fields["size"] = (rows * config.patch_size + 1, columns * config.patch_size)
        arguments = {} if kind.startswith("dinov2") else {"interpolate_pos_encoding": True}
    ours = ImageEncoder.from_pretrained(folder, prefix=True, **fields)
    pixels = some_pixels(ours)
    with torch.no_grad():
        expected = theirs(pixel_values=normalised(pixels, ours), output_hidden_states=True, **arguments)
        torch.testing.assert_close(ours(pixels)[0], expected.last_hidden_state, **CLOSE)
        norm = getattr(theirs, TOWERS[kind][2] or "", nn.Identity())
        levels = ours.forward_features(pixels, range(config.num_hidden_layers))
        for (level, _), hidden in zip(levels, expected.hidden_states[1:], strict=True):
            torch.testing.assert_close(level, norm(hidden), **CLOSE)
    assert ours.config.grid == (rows, columns)
    assert expected.last_hidden_state.shape[1] == rows * columns + ours.config.prefix_tokens


def test_widths_whose_ratio_is_no_exact_number_are_kept(tmp_path):
    width, hidden = 11, 15
    assert int(width * (hidden / width)) == 14
    fields = {**SMALL, "hidden_size": width, "num_attention_heads": 1, "intermediate_size": hidden}
    theirs = shaken(hf.ViTModel(hf.ViTConfig(**fields)))
    theirs.save_pretrained(tmp_path)
    assert_same_tokens(ImageEncoder.from_pretrained(tmp_path, prefix=True), theirs)


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_siglip_2_for_any_shape_gives_the_numbers_of_transformers_at_one_shape(tmp_path, size):
    config = hf.Siglip2VisionConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, num_patches=16, **WIDE)
    theirs = shaken(hf.Siglip2VisionModel(config))
    theirs.save_pretrained(tmp_path)
    processor = hf.Siglip2ImageProcessor(patch_size=16, max_num_patches=size[0] * size[1] // 256)
    processor.save_pretrained(tmp_path)
    assert ImageEncoder.from_pretrained(tmp_path).config.size == (64, 64)
    ours = ImageEncoder.from_pretrained(tmp_path, size=size)
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    inputs = processor(picture, return_tensors="pt")
    assert inputs["spatial_shapes"].tolist() == [[size[0] // 16, size[1] // 16]]
    with torch.no_grad():
        expected = theirs(**inputs).last_hidden_state
        torch.testing.assert_close(ours(ours.pixels(picture)[None])[0], expected, **CLOSE)
    assert ours.config.interpolation == "bilinear"


def two_towers(name: str) -> nn.Module:
    configuration, build = getattr(hf, f"{name}Config"), getattr(hf, f"{name}Model")
    return shaken(build(configuration(text_config=TEXT, vision_config=SMALL | WIDE)))


def captioner(encoder: hf.PreTrainedConfig) -> nn.Module:
    decoder = hf.BertConfig(**TEXT)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    return shaken(hf.VisionEncoderDecoderModel(config))


# Models with a tower, and where in them it is.
PARENTS = {
    "both towers of SigLIP": (partial(two_towers, "Siglip"), "vision_model"),
    "both towers of CLIP": (partial(two_towers, "CLIP"), "vision_model"),
    "CLIP's with its projection": (
        lambda: shaken(hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**SMALL, **WIDE))),
        "vision_model",
    ),
    "a ViT captioner": (lambda: captioner(hf.ViTConfig(**SMALL, **WIDE)), "encoder"),
    "a DINOv2 captioner": (lambda: captioner(hf.Dinov2Config(**SMALL, use_swiglu_ffn=True)), "encoder"),
    "a ViT classifier": (lambda: shaken(hf.ViTForImageClassification(hf.ViTConfig(**SMALL, **WIDE))), "vit"),
    "a ViT with a mask token": (
        lambda: shaken(hf.ViTForMaskedImageModeling(hf.ViTConfig(**SMALL, **WIDE, encoder_stride=5))),
        "vit",
    ),
    "a DINOv2 classifier": (lambda: shaken(hf.Dinov2ForImageClassification(hf.Dinov2Config(**SMALL))), "dinov2"),
}


@pytest.mark.parametrize("name", PARENTS)
def test_the_tower_is_found_in_a_model_that_has_more(name, tmp_path):
    build, where = PARENTS[name]
    model = build()
    model.save_pretrained(tmp_path)
    assert_same_tokens(ImageEncoder.from_pretrained(tmp_path, prefix=True), getattr(model, where))


@pytest.mark.parametrize("kind", ["siglip_vision_model", "clip_vision_model"])
def test_vision_only_files_of_older_versions_load_too(kind, tmp_path):
    theirs = small(kind)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {f"vision_model.{name}": tensor for name, tensor in load_file(file).items()}
    tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(tensors, file)
    assert_same_tokens(ImageEncoder.from_pretrained(tmp_path, prefix=True), theirs)


@pytest.mark.parametrize("kind", [*TOWERS, "siglip2_vision_model"])
def test_what_a_configuration_need_not_say_is_what_transformers_takes_for_granted(kind):
    configuration = TOWERS[kind][0] if kind in TOWERS else hf.Siglip2VisionConfig
    known = configuration().to_dict()
    family = FAMILIES[kind]
    assert {name: known[name] for name in family.config if name in known} == {
        name: value for name, value in family.config.items() if name in known
    }
    assert family.config.keys() - known.keys() <= {"intermediate_size" if "mlp_ratio" in known else "image_size"}


@pytest.mark.parametrize("kind", TOWERS)
def test_a_lower_layer_without_prefix_tokens_is_transformers_intermediate(kind, tmp_path):
    theirs = small(kind)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        ours = ImageEncoder.from_pretrained(tmp_path, layer=-2)
        pixels = some_pixels(ours)
        hidden = theirs(pixel_values=normalised(pixels, ours), output_hidden_states=True).hidden_states[-2]
        expected = getattr(theirs, TOWERS[kind][2] or "", nn.Identity())(hidden)[:, -ours.grid().count :]
        torch.testing.assert_close(ours(pixels)[0], expected, **CLOSE)


def test_sharded_and_half_precision_files_load_too(tmp_path):
    theirs = small("dinov2")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert_same_tokens(ImageEncoder.from_pretrained(str(tmp_path / "shards"), prefix=True), theirs)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    half = ImageEncoder.from_pretrained(tmp_path / "half", prefix=True)
    assert_same_tokens(half, theirs.float())
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", TOWERS)
def test_a_loaded_tower_is_whole_and_can_be_trained(kind, tmp_path):
    small(kind).save_pretrained(tmp_path)
    encoder = ImageEncoder.from_pretrained(tmp_path, prefix=True)
    assert not encoder.training
    encoder.train()(some_pixels(encoder))[0].sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.is_contiguous(), name
        assert parameter.device.type == "cpu", name


@pytest.mark.parametrize("kind", TOWERS)
def test_a_checkpoint_with_a_tower_needs_its_files_no_more(kind, tmp_path, tokenizer):
    small(kind).save_pretrained(tmp_path / "tower")
    settings = {"image": {"weights": str(tmp_path / "tower"), "prefix": True, "frozen": True}}
    config = dataclasses.replace(
        tiny_config(len(tokenizer)), image=from_dict(ModelConfig, settings).image, audio=None, video=None
    )
    model = MultimodalGPT(config).eval()
    checkpoint.save(tmp_path / "run", model, tokenizer)
    shutil.rmtree(tmp_path / "tower")
    loaded, _ = checkpoint.load(tmp_path / "run")
    saved = json.loads((checkpoint.resolve(tmp_path / "run") / "config.json").read_text())["model"]["image"]
    assert saved["weights"] is None
    assert saved["args"]["embed_dim"] == 24
    assert loaded.config == model.config
    prompt = [Message.of("user", some_image(0, 50), "What?")]
    ours, theirs = (Processor(each.config, tokenizer).encode_prompt(prompt) for each in (loaded, model))
    assert torch.equal(ours.media[0][1].data, theirs.media[0][1].data)
    assert torch.equal(loaded(collate([ours])), model(collate([theirs])))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small("dinov2_with_registers").save_pretrained(tmp_path)
    return tmp_path


def refusal(folder: Path, **fields) -> str:
    with pytest.raises(CheckpointError) as error:
        ImageEncoder.from_pretrained(folder, **fields)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(folder: Path, **settings) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "swin"}, "model_type 'swin' has no vision tower that is supported; supported: siglip_vision_"),
        ({"model_type": "siglip", "vision_config": []}, "missing tensors: embeddings.position_embedding.weight, "),
        ({"model_type": "vision-encoder-decoder"}, "model_type 'None' has no vision tower"),
        ({"hidden_act": "selu"}, "hidden_act 'selu' is none of gelu, "),
        ({"num_channels": 1}, "num_channels = 1 is not supported"),
        ({"hidden_size": "wide"}, "hidden_size must be a whole number from 1 on, not 'wide'"),
        ({"num_hidden_layers": 10**12}, "missing tensors: encoder.layer.2.layer_scale1.lambda1, "),
        (
            {"hidden_size": 24 * 10**6},
            "embeddings.cls_token, embeddings.position_embeddings: shape (1, 1, 24), (1, 17,",
        ),
        ({"num_attention_heads": 5}, "divisible by num_heads"),
        ({"image_size": 30}, "embeddings.position_embeddings: shape (1, 17, 24), but config.json says (1, 36, 24)"),
        ({"image_size": [1, 2, 3]}, "[1, 2, 3] is no height and width"),
        ({"qkv_bias": False}, "unexpected tensors: encoder.layer.0.attention.attention.key.bias, "),
    ],
)
def test_configurations_that_cannot_be_used_are_refused_in_one_line(saved, settings, message):
    edit(saved, **settings)
    assert message in refusal(saved)


def test_missing_extra_and_misshapen_tensors_are_named(saved):
    path = saved / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.layer.1.mlp.fc1.weight"
    query = "encoder.layer.1.attention.attention.query.weight"

    def broken(**changes) -> str:
        save_file({k: v for k, v in {**tensors, **changes}.items() if v is not None}, path)
        return refusal(saved)

    assert f"missing tensors: {name}" in broken(**{name: None})
    assert "unexpected tensors: encoder.layer.1.extra" in broken(**{"encoder.layer.1.extra": torch.zeros(1)})
    assert "unexpected tensors: other.weight" in broken(**{"other.weight": torch.zeros(1)})
    assert f"{name}: shape (96, 23), but config.json says (96, 24)" in broken(**{name: torch.zeros(96, 23)})
    assert f"{query}, " in broken(**{query: torch.zeros(24, 23)})
    assert f"{query}, " in broken(**{query: torch.zeros(23, 24)})
    assert f"{name}: torch.int8 cannot be used" in broken(**{name: torch.zeros(96, 24, dtype=torch.int8)})
    path.write_bytes(b"\x10\0\0\0\0\0\0\0not a header")
    assert "eader" in refusal(saved)
    path.unlink()
    (saved / "pytorch_model.bin").write_bytes(b"no pickle at all")
    assert "pytorch_model.bin: cannot be read" in refusal(saved)


def test_arguments_that_make_another_model_are_refused(saved):
    assert "the given args are of another model" in refusal(saved, args={"depth": 3})
    assert ImageEncoder.from_pretrained(saved, args={"proj_drop_rate": 0.1}).config.args["proj_drop_rate"] == 0.1


def test_what_is_neither_a_directory_nor_on_the_hub_is_told_in_one_line(tmp_path, monkeypatch):
    assert "no such directory" in refusal(tmp_path / "nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="nobody/nothing: not fetched from the Hub"):
        ImageEncoder.from_pretrained("nobody/nothing")


TIMM = ["vit_base_patch16_siglip_224", "vit_base_patch32_clip_224", "vit_small_patch14_dinov2"]


@pytest.mark.parametrize("name", [*TIMM, "vit_small_patch14_reg4_dinov2"])
def test_timms_own_towers_load_from_a_file_with_timms_preprocessing(name, tmp_path):
    args = {"embed_dim": 24, "depth": 2, "num_heads": 3}
    theirs = shaken(timm.create_model(name, num_classes=0, img_size=64, **args))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = ImageEncoder(name, size=(64, 64), args=args, weights=str(tmp_path / "model.safetensors"), prefix=True)
    own = timm.get_pretrained_cfg(name)
    assert own is not None
    for field in ("mean", "std", "interpolation", "crop_pct", "crop_mode"):
        assert getattr(ours.config, field) == getattr(own, field)
    pixels = some_pixels(ours)
    with torch.no_grad():
        expected = theirs.forward_features(normalised(pixels, ours))
        torch.testing.assert_close(ours.eval()(pixels)[0], expected, **CLOSE)


def test_a_backbone_from_scratch_sees_the_whole_picture_unless_told_otherwise():
    whole = ImageEncoder("test_vit").config
    assert (whole.crop_mode, whole.crop_pct, whole.interpolation) == ("squash", 1.0, "bicubic")
    told = ImageEncoder("test_vit", crop_mode="center", crop_pct=0.5, interpolation="nearest").config
    assert (told.crop_mode, told.crop_pct, told.interpolation) == ("center", 0.5, "nearest")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_mode": "border"}, "image.crop_mode: 'border' is none of squash, center"),
        ({"interpolation": "cubic"}, "image.interpolation: 'cubic' is none of nearest, "),
        ({"crop_pct": 0}, "image.crop_pct: must be above 0, not 0"),
        ({"args": {"norm_layer": {"epsilon": 1e-5}}}, "epsilon"),
    ],
)
def test_rules_that_are_none_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        ImageEncoder(ImageEncoderConfig("test_vit", **fields))
