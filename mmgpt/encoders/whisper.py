"""Whisper's encoder and its own spectrogram (Radford et al. 2022), read from checkpoints of transformers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mmgpt.config import AudioEncoderConfig
from mmgpt.encoders.base import Tokens
from mmgpt.errors import CheckpointError, ConfigError, MmgptError
from mmgpt.pretrained import fetch, few, open_tensors, read_json

# What decides its shape, by transformers' names, in whisper-tiny. Dropout does not, and Whisper is trained without.
TINY: dict[str, Any] = {
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "activation_function": "gelu",
}
PREFIXES = ("model.encoder.", "encoder.")  # of its tensors beside a decoder, with and without a head; alone, none


class WhisperSpectrogram(nn.Module):
    """Waveforms (batch, samples) -> (batch, 1, mels, frames): 1 + log10(mel power) / 4, in float32.

    Power below a 10^8th of the most in its sound is raised to that. Frame i has sample i x hop in its middle.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: AudioEncoderConfig):
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.size, self.hop = config.window, config.hop
        filters = mel_filter_bank(
            self.size // 2 + 1, config.mels, 0.0, config.sample_rate / 2, config.sample_rate, "slaney", "slaney"
        )  # frequencies, mels
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters).float().T.contiguous(), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        with torch.autocast(waveforms.device.type, enabled=False):
            spectrum = torch.stft(
                waveforms.float(), self.size, self.hop, window=self.window.float(), return_complex=True
            )
            power = torch.view_as_real(spectrum[..., :-1]).square().sum(-1)  # batch, frequencies, frames
            decades = (self.filters.float() @ power).clamp(min=1e-10).log10()
            decades = decades.maximum(decades.amax((1, 2), keepdim=True) - 8)
            return (decades.unsqueeze(1) + 4) / 4


class WhisperNet(nn.Module):
    """Whisper's encoder on spectrograms of its whole window; tokens behind the end of a sound are dropped.

    As in transformers' hidden_states, the final norm is applied to the last layer alone.

    Args:
        config: `weights`, a directory or a Hub id, decides the sizes; without it they are in `args`, and those that are
            not are whisper-tiny's. `self.config` is resolved, and has the sizes in `args` and no weights any more.

    Raises:
        ConfigError: settings that Whisper does not have.
        CheckpointError: the weights cannot be used.
    """

    def __init__(self, config: AudioEncoderConfig):
        super().__init__()
        if config.pretrained:
            raise ConfigError("audio.pretrained: whisper's weights are named by audio.weights, a directory or a Hub id")
        if unknown := sorted(config.args.keys() - TINY.keys()):
            raise ConfigError(f"audio.args.{unknown[0]}: unknown to whisper; known are: {', '.join(TINY)}")
        if config.weights is None:
            sizes = TINY | config.args
            self.model = _build(sizes)
        else:
            folder = fetch(config.weights)
            sizes = _read_sizes(folder)
            for name, value in config.args.items():
                if value != sizes[name]:
                    raise ConfigError(f"audio.args.{name}: {value!r}, but {config.weights} has {sizes[name]!r}")
            self.model = _load(folder, sizes)
        # Two frames to a token, since its second convolution has stride 2.
        own = {"sample_rate": 16_000, "window": 400, "hop": 160, "mels": sizes["num_mel_bins"], "reduction": 2}
        for name, value in own.items():
            if getattr(config, name) not in (value, getattr(AudioEncoderConfig, name)):
                raise ConfigError(f"audio.{name}: {getattr(config, name)}, but whisper has {value}; leave it out")
        seconds = sizes["max_source_positions"] * 320 / 16_000
        self.config = replace(
            config,
            **own,
            args=sizes,
            weights=None,
            max_seconds=min(config.max_seconds, seconds),
            width=sizes["d_model"],
        )

    def forward(self, spectrogram: Tensor, counts: Tensor, layers: Sequence[int]) -> list[Tokens]:
        last = self.config.args["encoder_layers"] - 1
        wanted = [range(last + 1)[layer] for layer in layers]
        out = self.model(spectrogram.squeeze(1), output_hidden_states=any(layer < last for layer in wanted))
        longest = int(counts.max())
        real = torch.arange(longest, device=counts.device) < counts[:, None]
        found = []
        for layer in wanted:
            level = out.last_hidden_state if layer == last else out.hidden_states[layer + 1]  # [0] is before the first
            found.append((level[:, :longest] * real[..., None], counts))
        return found


def _build(sizes: dict[str, Any]) -> nn.Module:
    """transformers' encoder of these sizes, with random weights. Raises ConfigError."""
    try:
        from transformers import WhisperConfig
        from transformers.activations import ACT2FN
        from transformers.models.whisper.modeling_whisper import WhisperEncoder
    except ImportError:
        raise ConfigError("audio: whisper needs transformers: `uv sync --extra transformers`") from None
    for name, size in sizes.items():
        if name != "activation_function" and not (type(size) is int and size >= 1):
            raise ConfigError(f"whisper: {name}: must be a whole number from 1 on, not {size!r}")
    if sizes["activation_function"] not in list(ACT2FN):
        raise ConfigError(f"whisper: activation_function: {sizes['activation_function']!r} is none of transformers'")
    try:
        return WhisperEncoder(WhisperConfig(**sizes))
    except Exception as error:  # what does not fit is found in many places
        raise ConfigError(f"whisper: no encoder of these sizes can be built: {str(error).splitlines()[0]}") from None


def _read_sizes(folder: Path) -> dict[str, Any]:
    """The sizes in a checkpoint's config.json. Raises CheckpointError."""
    path = folder / "config.json"
    raw = read_json(path)
    if raw.get("model_type") != "whisper":
        raise CheckpointError(f"{path}: model_type {raw.get('model_type')!r} is not supported; supported: whisper")
    if missing := [name for name in TINY if name not in raw]:
        raise CheckpointError(f"{path}: {missing[0]} is missing")
    return {name: raw[name] for name in TINY}


def _load(folder: Path, sizes: dict[str, Any]) -> nn.Module:
    """The encoder of a checkpoint, in the default dtype; other parts of the model are passed over."""
    try:
        with open_tensors(folder) as tensors:
            prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in tensors)), "")
            names = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
            layers = len({name.split(".")[1] for name in names if name.startswith("layers.")})
            if sizes["encoder_layers"] != layers:  # before so many are built
                raise CheckpointError(f"has {layers} encoder layers, config.json says {sizes['encoder_layers']}")
            with torch.device("meta"):  # takes no memory: sizes are believed only once the tensors have them
                model = _build(sizes)
            shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
            if missing := sorted(shapes.keys() - names):
                raise CheckpointError(f"missing tensors: {few([prefix + name for name in missing])}")
            if extra := sorted(names - shapes.keys()):
                raise CheckpointError(f"unexpected tensors: {few([prefix + name for name in extra])}")
            state = {name: _read(tensors[prefix + name](), prefix + name, shape) for name, shape in shapes.items()}
    except (MmgptError, SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: {str(error).splitlines()[0]}") from None
    model.load_state_dict(state, assign=True)
    return model


def _read(tensor: Tensor, name: str, shape: torch.Size) -> Tensor:
    if not tensor.is_floating_point():
        raise CheckpointError(f"{name}: {tensor.dtype} cannot be used")
    if tensor.shape != shape:
        raise CheckpointError(f"{name}: shape {tuple(tensor.shape)}, but config.json says {tuple(shape)}")
    return tensor.to(torch.get_default_dtype(), copy=True)
