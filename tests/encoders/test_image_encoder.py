import copy
import dataclasses
from functools import cache

import pytest
import timm
import torch
from memory import held
from safetensors.torch import load_file, save_file

from mmgpt.config import ImageEncoderConfig, image_grid
from mmgpt.encoders import ImageEncoder
from mmgpt.errors import ConfigError

SMALL_VIT = {"depth": 2, "embed_dim": 48, "num_heads": 3}
SMALL_STAGES = {"depths": (1, 1, 1, 1), "drop_path_rate": 0.0}

# What is odd about each, its input size, rows x columns of its tokens, number of its prefix tokens, timm's arguments.
MODELS = {
    "vit_tiny_patch16_224": ("class token, not square", (48, 80), (3, 5), 1, SMALL_VIT),
    "vit_base_patch16_siglip_gap_224": ("no class token", (64, 64), (4, 4), 0, SMALL_VIT),
    "vit_base_patch16_siglip_224": ("attention pool", (64, 64), (4, 4), 0, SMALL_VIT),
    "vit_small_patch14_reg4_dinov2": ("class and registers", (56, 42), (4, 3), 5, SMALL_VIT),
    "vit_little_patch16_reg1_gap_256": ("register, no class token", (64, 64), (4, 4), 1, SMALL_VIT),
    "vit_tiny_r_s16_p8_224": ("hybrid", (64, 64), (2, 2), 1, SMALL_VIT),
    "deit_tiny_distilled_patch16_224": ("class and distillation tokens", (64, 64), (4, 4), 2, SMALL_VIT),
    "beit_base_patch16_224": ("relative positions", (64, 48), (4, 3), 1, SMALL_VIT),
    "eva02_tiny_patch14_224": ("rotary positions", (56, 56), (4, 4), 1, SMALL_VIT),
    "swin_tiny_patch4_window7_224": (
        "channels last, not square",
        (64, 96),
        (2, 3),
        0,
        SMALL_STAGES | {"embed_dim": 24, "num_heads": (1, 2, 2, 4)},
    ),
    "swinv2_tiny_window8_256": (
        "channels last",
        (64, 64),
        (2, 2),
        0,
        SMALL_STAGES | {"embed_dim": 24, "num_heads": (1, 2, 2, 4)},
    ),
    "test_mambaout": ("channels last, convolutional", (64, 64), (2, 2), 0, {}),
    "efficientnet_b0": ("batch norm, squeeze-excite", (64, 96), (2, 3), 0, {}),
    "mobilenetv3_small_050": ("batch norm, squeeze-excite, head convolution", (64, 64), (2, 2), 0, {}),
    "regnety_002": ("batch norm, squeeze-excite", (64, 64), (2, 2), 0, {}),
    "resnet18": ("batch norm, not square", (64, 48), (2, 2), 0, {}),
    "resnet10t": ("batch norm, tiered stem", (64, 64), (2, 2), 0, {}),
    "densenet121": ("batch norm everywhere", (64, 64), (2, 2), 0, {"block_config": (1, 1, 1, 1)}),
    "convnext_atto": ("layer norm in the head", (64, 64), (2, 2), 0, SMALL_STAGES | {"dims": (16, 16, 32, 48)}),
    "levit_128s": ("stages of tokens, batch norm on tokens", (224, 224), (4, 4), 0, {"drop_path_rate": 0.0}),
    "mobilevit_xxs": ("convolutions and attention", (64, 64), (2, 2), 0, {}),
    "davit_tiny": (
        "channel attention",
        (64, 64),
        (2, 2),
        0,
        SMALL_STAGES | {"embed_dims": (16, 16, 32, 32), "num_heads": (1, 1, 2, 2)},
    ),
    "pvt_v2_b0": ("pooled attention", (64, 96), (2, 3), 0, SMALL_STAGES),
    "test_nfnet": ("no norm, standardised weights", (64, 64), (2, 2), 0, {}),
    "coat_lite_tiny": ("class token that timm does not count", (64, 64), (2, 2), 1, {"drop_path_rate": 0.0}),
}
NAMES = list(MODELS)


@cache
def encoder_of(name: str, **fields) -> ImageEncoder:
    _, size, _, _, args = MODELS[name]
    torch.manual_seed(0)
    return ImageEncoder(name, size=size, args=args, **fields)


def pictures(encoder: ImageEncoder, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, 256, (batch, 3, *encoder.config.size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_the_grid_tells(name, prefix):
    _, _, (rows, columns), prefix_tokens, _ = MODELS[name]
    encoder = encoder_of(name, prefix=prefix)
    tokens, lengths = encoder(pictures(encoder))
    count = rows * columns + prefix * prefix_tokens
    assert tokens.shape == (2, count, encoder.width)
    assert lengths.tolist() == [count, count]
    assert lengths.dtype == torch.int64
    grid = image_grid(encoder.config)
    assert (grid.rows, grid.columns, grid.prefix) == (rows, columns, prefix * prefix_tokens)
    assert encoder.grid() == grid


@pytest.mark.parametrize("name", NAMES)
def test_another_sample_in_the_batch_changes_no_tokens_even_in_training_mode(name):
    encoder = encoder_of(name).train()
    pixels = pictures(encoder)
    with torch.no_grad():
        alone, _ = encoder(pixels[:1])
        together, _ = encoder(torch.cat([pixels, 255 - pixels]))
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_resolved_configuration_builds_the_same_model(name):
    encoder = encoder_of(name, prefix=True).eval()
    again = ImageEncoder(encoder.config).eval()
    assert again.config == encoder.config
    again.load_state_dict(encoder.state_dict())
    pixels = pictures(encoder)
    with torch.no_grad():
        assert torch.equal(again(pixels)[0], encoder(pixels)[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_takes_part(name):
    encoder = encoder_of(name)
    encoder.zero_grad()
    encoder(pictures(encoder))[0].sum().backward()
    assert [key for key, parameter in encoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_activations_computed_again_give_the_same_gradients_in_less_memory_where_timm_can(name):
    encoder = copy.deepcopy(encoder_of(name)).train()
    pixels = pictures(encoder)
    sizes, gradients = [], []
    for again in (False, True):
        if again:
            encoder.checkpoint_activations()
        torch.manual_seed(0)  # of dropped paths
        tokens, size = held(lambda: encoder(pixels)[0])
        sizes.append(size)
        gradients.append(torch.autograd.grad(tokens.square().sum(), list(encoder.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert sizes[1] == sizes[0] if name == "coat_lite_tiny" else sizes[1] < sizes[0]


@pytest.mark.parametrize("name", NAMES)
def test_intermediate_layers_are_there_and_the_last_is_the_output(name):
    encoder = encoder_of(name).eval()
    pixels = pictures(encoder)
    with torch.no_grad():
        (first, count), (last, _) = encoder.forward_features(pixels, [0, -1])
        torch.testing.assert_close(last, encoder(pixels)[0])
    assert count.tolist() == [first.shape[1]] * 2
    assert first.shape[1] >= last.shape[1]


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224", "resnet18"])
def test_a_lower_layer_is_the_whole_models_intermediate_and_drops_what_comes_after(name):
    whole = encoder_of(name).eval()
    _, size, _, _, args = MODELS[name]
    cut = ImageEncoder(name, size=size, args=args, layer=0).eval()
    cut.load_state_dict({key: value for key, value in whole.state_dict().items() if key in cut.state_dict()})
    assert len(cut.state_dict()) < len(whole.state_dict())
    pixels = pictures(whole)
    with torch.no_grad():
        torch.testing.assert_close(cut(pixels)[0], whole.forward_features(pixels, [0])[0][0])
    assert cut.width == cut(pixels)[0].shape[2]


def test_last_layer_by_its_number_is_the_last_layer():
    encoder = encoder_of("efficientnet_b0").eval()
    by_number = ImageEncoder("efficientnet_b0", size=(64, 96), layer=4).eval()
    by_number.load_state_dict(encoder.state_dict())
    pixels = pictures(encoder)
    with torch.no_grad():
        assert torch.equal(by_number(pixels)[0], encoder(pixels)[0])


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext"])
def test_weights_from_a_file_give_timms_own_features(name, tmp_path):
    torch.manual_seed(1)
    model = timm.create_model(name).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = ImageEncoder(name, weights=str(tmp_path / "model.safetensors"), prefix=True).eval()
    pixels = pictures(encoder)
    own = model.pretrained_cfg
    mean, std = (torch.tensor(own[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        features = model.forward_features((pixels / 255 - mean) / std)
        expected = features if features.ndim == 3 else features.flatten(2).mT
        torch.testing.assert_close(encoder(pixels)[0], expected)


def test_weights_are_fitted_to_another_input_size(tmp_path):
    model = timm.create_model("test_vit")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = ImageEncoder("test_vit", weights=str(tmp_path / "model.safetensors"), size=(64, 96))
    assert encoder.config.grid == (4, 6)
    assert torch.equal(encoder.state_dict()["backbone.model.blocks.0.attn.qkv.weight"], model.blocks[0].attn.qkv.weight)


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    state = load_file(file)
    del state["blocks.0.norm1.weight"]
    save_file(state, file)
    with pytest.raises(ConfigError, match=r"lacks blocks\.0\.norm1\.weight"):
        ImageEncoder("test_vit", weights=str(file))


@pytest.mark.parametrize("content", [None, b"not weights"])
def test_weights_that_are_none_are_refused(tmp_path, content):
    file = tmp_path / "model.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="test_vit"):
        ImageEncoder("test_vit", weights=str(file))


def test_weights_in_a_pickle_are_refused(tmp_path):
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(ConfigError, match="safetensors"):
        ImageEncoder("test_vit", weights=str(tmp_path / "model.pt"))


def test_pixels_of_bytes_and_of_floats_are_the_same():
    encoder = encoder_of("resnet10t").eval()
    pixels = pictures(encoder)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels)[0], encoder(pixels / 255)[0])


def test_normalisation_is_the_backbones_own_unless_given():
    assert encoder_of("resnet18").config.mean == (0.485, 0.456, 0.406)
    assert encoder_of("beit_base_patch16_224").config.mean == (0.5, 0.5, 0.5)
    own, given = encoder_of("resnet10t").eval(), ImageEncoder("resnet10t", size=(64, 64), mean=(0, 0, 0), std=(1, 1, 1))
    given.load_state_dict(own.state_dict())
    given.eval()
    pixels = pictures(own) / 255
    with torch.no_grad():
        normalised = (pixels - torch.tensor(own.config.mean).view(3, 1, 1)) / torch.tensor(own.config.std).view(3, 1, 1)
        torch.testing.assert_close(given(normalised)[0], own(pixels)[0])


def test_frozen_encoder_trains_nothing_and_stays_in_evaluation_mode():
    config = ImageEncoderConfig("test_vit", size=(64, 64), args={"proj_drop_rate": 0.5}, frozen=True)
    for encoder in (ImageEncoder(config), ImageEncoder(dataclasses.replace(config, frozen=False)).freeze()):
        assert encoder.config.frozen
        encoder.train()
        assert not any(module.training for module in encoder.modules())
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        pixels = pictures(encoder)
        assert torch.equal(encoder(pixels)[0], encoder(pixels)[0])


def test_encoder_that_is_not_frozen_trains_save_for_its_running_statistics():
    encoder = ImageEncoder("resnet10t", size=(64, 64)).train()
    before = encoder.state_dict()["backbone.model.bn1.running_mean"].clone()
    encoder(pictures(encoder))
    assert encoder.training
    assert encoder.backbone.model.layer1.training
    assert torch.equal(encoder.state_dict()["backbone.model.bn1.running_mean"], before)


def test_pictures_of_another_size_are_refused():
    encoder = encoder_of("resnet10t")
    with pytest.raises(ConfigError, match=r"64, 64.*32, 64"):
        encoder(torch.zeros(1, 3, 32, 64))


def test_tokens_that_differ_from_the_configuration_are_an_error():
    encoder = ImageEncoder("test_vit", size=(64, 64))
    encoder.config.grid = (3, 3)
    with pytest.raises(ConfigError, match=r"16 tokens.*9"):
        encoder(torch.zeros(1, 3, 64, 64))


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="vit_tiny_patch16_224"):
        ImageEncoder("vit_tyni_patch16_224")


@pytest.mark.parametrize(
    ("name", "fields", "told"),
    [
        ("crossvit_9_240", {}, "grid of tokens"),  # two branches of tokens
        ("resnet10t", {"args": {"dephts": 3}}, "dephts"),
        ("resnet10t", {"layer": 5}, r"layers 0\.\.4"),
        ("resnet10t.no_such_weights", {}, "no_such_weights"),
    ],
)
def test_what_does_not_fit_is_told(name, fields, told):
    with pytest.raises(ConfigError, match=told):
        ImageEncoder(name, **fields)


@pytest.mark.parametrize(
    ("name", "size", "args"),
    [
        ("vit_tiny_patch16_224", (32, 32), {**SMALL_VIT, "proj_drop_rate": 0.5}),
        ("vit_tiny_patch16_224", (32, 32), {**SMALL_VIT, "drop_path_rate": 0.5}),
        ("resnet10t", (64, 64), {"drop_path_rate": 0.5, "zero_init_last": False}),
    ],
)
def test_dropout_of_a_backbone_falls_in_training_alone(name, size, args):
    torch.manual_seed(0)
    encoder = ImageEncoder(name, size=size, args=args)
    pixels = torch.rand(4, 3, *size)
    with torch.no_grad():
        first, second = (encoder.train()(pixels)[0] for _ in range(2))
        assert not torch.allclose(first, second)
        first, second = (encoder.eval()(pixels)[0] for _ in range(2))
        assert torch.equal(first, second)
