import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel

from mmgpt import checkpoint
from mmgpt.batch import collate
from mmgpt.cli.train import parse
from mmgpt.config import AdapterConfig, AudioEncoderConfig, VideoEncoderConfig, slot_count
from mmgpt.content import Audio, Message, Video
from mmgpt.data.dataset import Broken, ExampleDataset
from mmgpt.data.sample import Sample
from mmgpt.encoders import AudioEncoder, ImageEncoder, VideoEncoder
from mmgpt.errors import CheckpointError, ConfigError, MediaError
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor

WINDOW = 20 * 320  # samples, of the encoder that is not drawn


def whisper_config(**settings) -> WhisperConfig:
    sizes = {
        "d_model": 24,
        "encoder_layers": 3,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 40,
        "max_source_positions": 20,
        "decoder_layers": 1,
        "decoder_attention_heads": 1,
        "decoder_ffn_dim": 8,
        "vocab_size": 12,
        "max_target_positions": 4,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "decoder_start_token_id": 0,
    }
    return WhisperConfig(**{**sizes, **settings})


def reference(config: WhisperConfig | None = None, kind: type = WhisperForConditionalGeneration):
    """A model of transformers in which no parameter is zero or one."""
    torch.manual_seed(0)
    model = kind(config or whisper_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    reference().save_pretrained(tmp_path / "whisper")
    return tmp_path / "whisper"


def sound(samples: int, loudness: float = 0.2) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * loudness


def features(sounds: list[torch.Tensor], mels: int = 80, samples: int = WINDOW) -> torch.Tensor:
    """transformers' own log-mel spectrograms (batch, mels, frames) of sounds padded to the window."""
    extractor = WhisperFeatureExtractor(feature_size=mels)
    arrays = [one.numpy() for one in sounds]
    return extractor(arrays, sampling_rate=16_000, max_length=samples, return_tensors="pt").input_features


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


CONFIGS = st.builds(
    lambda head_width, heads, **fields: whisper_config(
        d_model=head_width * heads, encoder_attention_heads=heads, **fields
    ),
    head_width=st.sampled_from([4, 6, 16]),
    heads=st.integers(1, 4),
    encoder_layers=st.integers(1, 3),
    encoder_ffn_dim=st.sampled_from([8, 50]),
    num_mel_bins=st.sampled_from([10, 80, 128]),
    max_source_positions=st.integers(2, 40),
    activation_function=st.sampled_from(["gelu", "relu", "gelu_new"]),
    scale_embedding=st.booleans(),
)


@settings(derandomize=True, deadline=None, max_examples=15)
@given(config=CONFIGS, share=st.floats(0.0, 1.0), part=st.sampled_from(["all", "no head", "encoder"]))
def test_checkpoints_of_any_configuration_give_the_hidden_states_of_transformers(tmp_path_factory, config, share, part):
    folder = tmp_path_factory.mktemp("whisper")
    theirs = reference(config, WhisperForConditionalGeneration if part == "all" else WhisperModel)
    (theirs.get_encoder() if part == "encoder" else theirs).save_pretrained(folder)
    window = config.max_source_positions * 320
    sounds = [sound(window), sound(1 + int(share * (window - 1)))]
    ours = AudioEncoder.from_pretrained(folder)
    assert not ours.training
    assert ours.config.max_seconds == window / 16_000
    with torch.no_grad():
        states = theirs.get_encoder()(features(sounds, config.num_mel_bins, window), output_hidden_states=True)
        levels = ours.forward_features(sounds, range(config.encoder_layers))
        last, counts = ours(sounds)
    assert counts.tolist() == [config.max_source_positions, -(-len(sounds[1]) // 320)]
    close(last, levels[-1][0])
    assert len(levels) == config.encoder_layers
    for (tokens, _), expected in zip(levels, states.hidden_states[1:], strict=True):
        close(tokens[0], expected[0])
        close(tokens[1, : counts[1]], expected[1, : counts[1]])
        assert not tokens[1, counts[1] :].any()
    close(last[0], states.last_hidden_state[0])


@pytest.mark.parametrize("mels", [80, 128])
def test_spectrograms_are_those_of_transformers(mels):
    time = torch.arange(WINDOW) / 16_000
    click = torch.zeros(WINDOW)
    click[1000] = 1.0
    sounds = [
        sound(WINDOW),
        sound(WINDOW, 1e-4),
        sound(700),
        *(0.5 * torch.sin(6.28318531 * hertz * time) for hertz in (50, 440, 3000, 7990)),
        torch.zeros(WINDOW),
        torch.zeros(1),
        torch.ones(WINDOW),
        click,
    ]
    encoder = AudioEncoder("whisper", args={"num_mel_bins": mels, "max_source_positions": 20, "encoder_layers": 1})
    expected = features(sounds, mels)
    actual = encoder.spectrogram(sounds)
    assert actual.shape == (len(sounds), 1, mels, 40)
    torch.testing.assert_close(actual[:, 0], expected, atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.spectrogram(sounds), actual)


def test_a_whole_window_of_whisper_is_thirty_seconds():
    encoder = AudioEncoder("whisper", args={"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 1})
    assert encoder.config.max_seconds == 30.0
    assert encoder.config.positions == 1500
    with torch.no_grad():
        tokens, counts = encoder([sound(16_000), sound(480_000)])
    assert counts.tolist() == [50, 1500]
    assert tokens.shape == (2, 1500, 8)
    with pytest.raises(MediaError, match=r"a sound of 30.0001 seconds is longer than whisper's 30; cut it"):
        encoder([sound(16_000), sound(480_001)])


def test_sharded_and_half_precision_checkpoints_load_too(tmp_path):
    theirs = reference()
    with torch.no_grad():
        expected = theirs.get_encoder()(features([sound(WINDOW)])).last_hidden_state
        theirs.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
        close(AudioEncoder.from_pretrained(tmp_path / "shards")([sound(WINDOW)])[0], expected)

        theirs.to(torch.float16).save_pretrained(tmp_path / "half")
        rounded = theirs.float().get_encoder()(features([sound(WINDOW)])).last_hidden_state
        half = AudioEncoder.from_pretrained(str(tmp_path / "half"))
        close(half([sound(WINDOW)])[0], rounded)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}


def test_a_loaded_encoder_can_be_trained_but_for_its_positions(saved):
    encoder = AudioEncoder.from_pretrained(saved)
    fixed = [name for name, parameter in encoder.named_parameters() if not parameter.requires_grad]
    assert fixed == ["net.model.embed_positions.weight"]
    assert not any(p.requires_grad for p in AudioEncoder("whisper", weights=str(saved), frozen=True).parameters())


def test_masks_fall_in_training_alone(saved):
    encoder = AudioEncoder("whisper", weights=str(saved)).train()
    sounds = [sound(WINDOW), sound(3000)]
    torch.manual_seed(0)
    with torch.no_grad():
        plain = encoder(sounds)[0]
        encoder.augment = True
        assert not torch.allclose(encoder(sounds)[0], plain)
        assert torch.equal(encoder.eval()(sounds)[0], plain)


def test_missing_extra_and_misshapen_tensors_are_named_and_the_decoder_is_passed_over(saved):
    path = saved / "model.safetensors"
    tensors = load_file(path)
    name = "model.encoder.layers.1.fc1.weight"

    def broken(**changes) -> str:
        save_file({k: v for k, v in {**tensors, **changes}.items() if v is not None}, path)
        with pytest.raises(CheckpointError) as error:
            AudioEncoder.from_pretrained(saved)
        assert str(error.value).startswith(str(saved))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert f"missing tensors: {name}" in broken(**{name: None})
    assert "missing tensors: model.encoder.conv1.weight" in broken(**{"model.encoder.conv1.weight": None})
    assert "unexpected tensors: model.encoder.extra" in broken(**{"model.encoder.extra": torch.zeros(1)})
    assert f"{name}: shape (40, 23), but config.json says (40, 24)" in broken(**{name: torch.zeros(40, 23)})
    assert f"{name}: torch.int8 cannot be used" in broken(**{name: torch.zeros(40, 24, dtype=torch.int8)})
    save_file({k: v for k, v in tensors.items() if "decoder" not in k} | {"more": torch.zeros(1)}, path)
    AudioEncoder.from_pretrained(saved)


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    changed = {key: value for key, value in {**config, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(changed))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "wav2vec2"}, "model_type 'wav2vec2' is not supported; supported: whisper"),
        ({"d_model": None}, r"config.json: d_model is missing"),
        ({"d_model": "wide"}, "d_model: must be a whole number from 1 on, not 'wide'"),
        ({"encoder_attention_heads": 5}, "embed_dim must be divisible by num_heads"),
        ({"activation_function": "sharp"}, "activation_function: 'sharp' is none of transformers'"),
        ({"activation_function": ["gelu"]}, "activation_function: .* is none of transformers'"),
        ({"encoder_layers": 10**12}, "has 3 encoder layers, config.json says 1000000000000"),
        ({"encoder_layers": 2}, "has 3 encoder layers, config.json says 2"),
        ({"max_source_positions": 10**9}, r"embed_positions.weight: shape \(20, 24\), but config.json says"),
        ({"encoder_ffn_dim": 10**30}, "no encoder of these sizes can be built"),
    ],
)
def test_configurations_that_cannot_be_used_are_refused_in_one_line(saved, changes, told):
    edit(saved, **changes)
    with pytest.raises(CheckpointError, match=told) as error:
        AudioEncoder.from_pretrained(saved)
    assert str(error.value).startswith(str(saved))
    assert "\n" not in str(error.value)


def test_missing_weights_and_a_directory_that_is_none_are_told(saved, tmp_path):
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        AudioEncoder.from_pretrained(saved)
    for nowhere in (tmp_path / "nowhere", "./nowhere"):
        with pytest.raises(CheckpointError, match="no such directory"):
            AudioEncoder.from_pretrained(nowhere)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"pretrained": True}, r"audio\.pretrained: whisper's weights are named by audio\.weights"),
        ({"sample_rate": 8000}, r"audio\.sample_rate: 8000, but whisper has 16000; leave it out"),
        ({"window": 512}, r"audio\.window: 512"),
        ({"hop": 80}, r"audio\.hop: 80, but whisper has 160"),
        ({"mels": 40}, r"audio\.mels: 40, but whisper has 80"),
        ({"reduction": 8}, r"audio\.reduction: 8, but whisper has 2"),
        ({"args": {"depth": 3}}, r"audio\.args\.depth: unknown to whisper; known are: d_model"),
        ({"args": {"d_model": 0}}, "d_model: must be a whole number from 1 on, not 0"),
        ({"args": {"d_model": 25}}, "embed_dim must be divisible"),
    ],
)
def test_settings_that_whisper_does_not_have_are_told(fields, told):
    with pytest.raises(ConfigError, match=told) as error:
        AudioEncoder("whisper", **fields)
    assert "\n" not in str(error.value)


def test_sizes_that_contradict_the_weights_are_told(saved):
    with pytest.raises(ConfigError, match=r"audio.args.d_model: 48, but .* has 24"):
        AudioEncoder("whisper", weights=str(saved), args={"d_model": 48})


def test_without_transformers_it_is_told_what_to_install(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="uv sync --extra transformers"):
        AudioEncoder("whisper")
    with pytest.raises(CheckpointError, match="uv sync --extra transformers"):
        AudioEncoder.from_pretrained(saved)


def test_shorter_limits_stay_and_longer_ones_become_the_window(saved):
    assert AudioEncoder("whisper", weights=str(saved), max_seconds=0.1).config.max_seconds == 0.1
    assert AudioEncoder("whisper", weights=str(saved), max_seconds=60.0).config.max_seconds == 0.4


def hearing(weights: Path, vocabulary: int, **changes) -> MultimodalGPT:
    """The tiny model with Whisper's encoder; sounds of up to 0.4 s, clips of up to 60."""
    audio = AudioEncoderConfig("whisper", weights=str(weights))
    torch.manual_seed(0)
    return MultimodalGPT(replace(tiny_config(vocabulary), audio=audio, **changes)).eval()


def noise(samples: int, rate: int = 16_000) -> Audio:
    return Audio(sound(samples).numpy(), rate)


def clip(track: Audio | None) -> Video:
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    return Video(frames, 4.0, track)


@pytest.mark.parametrize("kind", ["mlp", "pixel_shuffle", "resampler"])
@settings(derandomize=True, deadline=None, max_examples=6)
@given(samples=st.lists(st.integers(1, WINDOW), min_size=1, max_size=3))
def test_slots_are_as_many_as_features_and_follow_the_duration(tmp_path_factory, tokenizer, kind, samples):
    folder = tmp_path_factory.mktemp("whisper")
    reference().save_pretrained(folder)
    adapter = AdapterConfig(kind, queries=3, layers=1, heads=2)
    model = hearing(folder, len(tokenizer), adapters={"audio": adapter, "video": adapter})
    processor = Processor(model.config, tokenizer)
    sounds = [processor.media_input(noise(n)) for n in samples]
    clips = [processor.media_input(clip(noise(n))) for n in samples]
    for items, modality, own in ((sounds, "audio", 0), (clips, "video", 2)):  # frames have a token each
        assert [item.grid.count for item in items] == [own + -(-n // 320) for n in samples]
        assert [item.slots for item in items] == [slot_count(adapter, item.grid) for item in items]
        assert len(model.encode_media(modality, items)) == sum(item.slots for item in items)


def test_sounds_and_sound_tracks_longer_than_the_window_cost_their_own_sample(saved, tokenizer):
    model = hearing(saved, len(tokenizer))
    samples = [
        Sample((Message.of("user", part),), ("yes",), "hear", f"row {i}")
        for i, part in enumerate([noise(WINDOW), noise(WINDOW + 1), clip(noise(WINDOW)), clip(noise(WINDOW + 320))])
    ]
    dataset = ExampleDataset(samples, Processor(model.config, tokenizer))
    found = [dataset[i][0] for i in range(4)]
    assert [isinstance(one, Broken) for one in found] == [False, True, False, True]
    assert found[1].reason == "row 1: array: the sound is longer than 0.4 seconds; cut it into pieces"
    assert found[3].reason == "row 3: a sound of 0.42 seconds is longer than whisper's 0.4; cut it into pieces"


def test_a_checkpoint_answers_the_same_when_the_weights_it_began_with_are_gone(saved, tokenizer, tmp_path):
    model = hearing(saved, len(tokenizer))
    example = Processor(model.config, tokenizer).encode_prompt([Message.of("user", noise(5000), clip(noise(900)))])
    checkpoint.save(tmp_path / "run", model, tokenizer)
    shutil.rmtree(saved)
    config = json.loads((checkpoint.resolve(tmp_path / "run") / "config.json").read_text())["model"]["audio"]
    assert config["weights"] is None
    assert config["args"] == {
        "d_model": 24,
        "encoder_layers": 3,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 40,
        "num_mel_bins": 80,
        "max_source_positions": 20,
        "activation_function": "gelu",
    }
    loaded, _ = checkpoint.load(tmp_path / "run")
    assert loaded.config == model.config
    assert torch.equal(loaded(collate([example])), model(collate([example])))


def test_a_configuration_file_names_the_weights(saved, tokenizer, tmp_path):
    (tmp_path / "run.yaml").write_text(f"model: {{audio: {{name: whisper, weights: {saved}, frozen: true}}}}")
    config = parse(["--config", str(tmp_path / "run.yaml"), "--model.gpt.vocab_size", str(len(tokenizer))])
    encoder = MultimodalGPT(config.model).encoders["audio"]
    with torch.no_grad():
        assert torch.equal(encoder([sound(4000)])[0], AudioEncoder.from_pretrained(saved)([sound(4000)])[0])


def test_the_sound_track_of_a_clip_goes_through_it(saved):
    audio = AudioEncoder.from_pretrained(saved)
    image = ImageEncoder("test_vit", size=(64, 48), args={"depth": 1})
    video = VideoEncoder(VideoEncoderConfig(frames=3, grid=(1, 1)), image, audio).eval()
    with torch.no_grad():
        tokens, lengths = video(torch.zeros(2, 3, 3, 64, 48), [sound(3000), None])
        track, _ = audio([sound(3000)])
        close(tokens[0, 3:], video.sound(track)[0])
    assert lengths.tolist() == [3 + 10, 3]
    assert [video.grid(n).count for n in (3000, 0)] == [13, 3]
