from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.config import AudioEncoderConfig, audio_grid
from mmgpt.encoders import AudioEncoder
from mmgpt.errors import ConfigError, MediaError

CONV = {"channels": 32, "layers": 2, "mels": 40}
CASES = {
    "conv, 2 frames a token": AudioEncoderConfig(**CONV, reduction=2),
    "conv, 4 frames a token": AudioEncoderConfig(**CONV, reduction=4),
    "conv, 8 frames a token, 8 kHz": AudioEncoderConfig(**CONV, reduction=8, sample_rate=8000, window=200, hop=80),
    "conv, odd sizes": AudioEncoderConfig(channels=24, layers=1, mels=37, reduction=4, window=333, hop=111),
    "batch norm": AudioEncoderConfig("resnet10t", mels=64),
    "batch norm, squeeze-excite": AudioEncoderConfig("mobilenetv3_small_050", mels=64),
    "layer norm": AudioEncoderConfig("test_convnext", mels=32),
    "whisper": AudioEncoderConfig(
        "whisper",
        args={
            "d_model": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "max_source_positions": 60,
        },
    ),
}
CAUSAL = [name for name in CASES if "conv" in name]
seldom = settings(max_examples=8, deadline=None, derandomize=True)
lengths = st.integers(1, 9000)


@cache
def encoder_of(case: str) -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(CASES[case]).train()


def sound(samples: int) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * 0.2


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
@seldom
@given(samples=st.lists(lengths, min_size=1, max_size=4))
def test_tokens_are_as_many_as_the_grid_tells_and_zero_behind_the_end(case, samples):
    encoder = encoder_of(case)
    with torch.no_grad():
        tokens, counts = encoder([sound(n) for n in samples])
    expected = [audio_grid(encoder.config, n).count for n in samples]
    assert counts.tolist() == expected
    assert counts.dtype == torch.int64
    assert tokens.shape == (len(samples), max(expected), encoder.width)
    for row, count in zip(tokens, expected, strict=True):
        assert not row[count:].any()
        assert row[:count].any()


@pytest.mark.parametrize("case", CASES)
@seldom
@given(samples=lengths, others=st.lists(lengths, min_size=1, max_size=3))
def test_other_sounds_in_the_batch_change_no_tokens_even_in_training_mode(case, samples, others):
    encoder = encoder_of(case)
    with torch.no_grad():
        alone, count = encoder([sound(samples)])
        together, counts = encoder([*(sound(n) for n in others), sound(samples)])
    assert counts[-1] == count[0]
    close(together[-1, : int(count)], alone[0])


@pytest.mark.parametrize("case", [*CAUSAL, "whisper"])
@seldom
@given(samples=lengths, silence=lengths)
def test_adding_silence_changes_no_tokens(case, samples, silence):
    encoder = encoder_of(case)
    with torch.no_grad():
        without, count = encoder([sound(samples)])
        longer, _ = encoder([torch.cat([sound(samples), torch.zeros(silence)])])
    close(longer[0, : int(count)], without[0])


@pytest.mark.parametrize("case", CAUSAL)
@seldom
@given(samples=lengths, rest=lengths)
def test_what_follows_changes_no_token_that_has_ended(case, samples, rest):
    encoder = encoder_of(case)
    step = encoder.config.hop * encoder.config.reduction
    with torch.no_grad():
        without, count = encoder([sound(samples)])
        longer, _ = encoder([torch.cat([sound(samples), sound(rest)])])
    ended = samples // step
    close(longer[0, :ended], without[0, :ended])
    assert count == -(-samples // step)


@pytest.mark.parametrize("case", CASES)
def test_pads_of_a_padded_batch_change_no_tokens(case):
    encoder = encoder_of(case)
    batch = torch.stack([torch.cat([sound(3000), torch.full((5000,), 9.0)]), sound(8000)])  # the pads are loud
    with torch.no_grad():
        padded, counts = encoder(batch, lengths=torch.tensor([3000, 8000]))
        expected, expected_counts = encoder([sound(3000), sound(8000)])
    assert torch.equal(counts, expected_counts)
    close(padded, expected)


@pytest.mark.parametrize("case", CASES)
def test_resolved_configuration_builds_the_same_model(case):
    encoder = encoder_of(case)
    again = AudioEncoder(encoder.config)
    assert again.config == encoder.config
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(again([sound(5000)])[0], encoder([sound(5000)])[0])


@pytest.mark.parametrize("case", CASES)
def test_intermediate_layers_are_there_and_the_last_is_the_output(case):
    encoder = encoder_of(case)
    sounds = [sound(9000), sound(2000)]
    with torch.no_grad():
        (first, first_counts), (last, counts) = encoder.forward_features(sounds, [0, -1])
        tokens, expected = encoder(sounds)
    close(last, tokens)
    assert torch.equal(counts, expected)
    assert first.shape[:2] == (2, first_counts.max())
    assert not first[1, first_counts[1] :].any()


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_takes_part(case):
    encoder = encoder_of(case)
    encoder.zero_grad()
    encoder([sound(9000)])[0].sum().backward()
    idle = [key for key, parameter in encoder.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert idle == []


def test_silence_is_zero_in_the_spectrogram_and_a_tone_stands_in_its_band():
    encoder = AudioEncoder(mels=40)
    silence = encoder.spectrogram([torch.zeros(16_000)])
    assert silence.shape == (1, 1, 40, 100)
    assert not silence.any()
    time = torch.arange(16_000) / 16_000
    bands = [
        int(encoder.spectrogram([torch.sin(6.2832 * hertz * time)]).mean(3).argmax()) for hertz in (200, 1000, 4000)
    ]
    assert bands == sorted(set(bands))
    assert 0 < bands[0] < bands[2] < 39


def test_a_frame_sees_the_window_before_its_end():
    encoder = AudioEncoder(mels=40, window=400, hop=160)
    for frame in (2, 7):
        click = torch.zeros(2000)
        click[(frame + 1) * 160 - 200] = 1.0  # the middle of its window
        assert encoder.spectrogram([click])[0, 0].sum(0).argmax() == frame


def test_spectrogram_keeps_its_precision_under_autocast():
    encoder = AudioEncoder(mels=40)
    expected = encoder.spectrogram([sound(4000)])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.spectrogram([sound(4000)]), expected)
        tokens, _ = encoder([sound(4000)])
    assert tokens.isfinite().all()


def test_masks_fall_in_training_alone_and_if_asked_for():
    torch.manual_seed(0)
    encoder = AudioEncoder(**CONV).train()
    sounds = [sound(9000)] * 3
    with torch.no_grad():
        plain = encoder(sounds)[0]
        encoder.augment = True
        masked = encoder(sounds)[0]
        assert torch.equal(encoder.eval()(sounds)[0], plain)
    assert not torch.allclose(masked, plain)
    assert not torch.allclose(masked[0], masked[1])  # each sound has its own


def test_masks_are_repeatable_and_stay_within_each_sound():
    encoder = AudioEncoder(**CONV).train()
    encoder.augment = True
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        with torch.no_grad():
            runs.append(encoder([sound(9000), sound(700)]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1].tolist() == [15, 2]


def test_dropout_is_repeatable_and_falls_in_training_alone():
    plain, dropping = AudioEncoder(**CONV), AudioEncoder(**CONV, dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    sounds = [sound(9000), sound(700)]
    with torch.no_grad():
        runs = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            runs.append(dropping.train()(sounds)[0])
        assert torch.equal(runs[0], runs[1])
        assert not torch.allclose(runs[0], runs[2])
        assert torch.equal(dropping.eval()(sounds)[0], plain.eval()(sounds)[0])


def test_frozen_encoder_trains_nothing_and_stays_in_evaluation_mode():
    for encoder in (AudioEncoder(**CONV, frozen=True), AudioEncoder("resnet10t").freeze()):
        encoder.augment = True
        encoder.train()
        assert encoder.config.frozen
        assert not any(module.training for module in encoder.modules())
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        assert torch.equal(encoder([sound(5000)])[0], encoder([sound(5000)])[0])


def test_weights_of_a_colour_backbone_are_fitted_to_one_channel(tmp_path):
    import timm
    from safetensors.torch import save_file

    model = timm.create_model("resnet10t")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = AudioEncoder("resnet10t", weights=str(tmp_path / "model.safetensors"))
    colour = model.conv1[0].weight
    assert torch.allclose(encoder.state_dict()["net.backbone.model.conv1.0.weight"], colour.sum(1, keepdim=True))


def test_sound_without_samples_is_refused():
    with pytest.raises(MediaError, match="0 samples"):
        encoder_of("conv, 4 frames a token")([sound(100), torch.zeros(0)])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"reduction": 3}, "2, 4 or 8"),
        ({"dropout": 1.0}, "audio.dropout: must be from 0 on and below 1, not 1.0"),
        ({"mels": 500}, "mels"),
        ({"window": 100}, "hop"),
        ({"config": "vit_tiny_patch16_224", "args": {"depth": 1}}, "vit_tiny_patch16_224"),
        ({"config": "resent18"}, "resnet18"),
    ],
)
@pytest.mark.filterwarnings("ignore:At least one mel")
def test_what_does_not_fit_is_told(fields, told):
    with pytest.raises(ConfigError, match=told):
        AudioEncoder(**fields)
