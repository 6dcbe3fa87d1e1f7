"""The audio encoder: a log-mel spectrogram, then a causal CNN, a convolutional backbone of timm, or Whisper."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.config import AudioEncoderConfig, TokenGrid, audio_grid
from mmgpt.encoders.backbone import Backbone
from mmgpt.encoders.base import Encoder, Tokens, ragged, unpad
from mmgpt.encoders.spectrogram import Spectrogram, mask_at_random
from mmgpt.encoders.whisper import WhisperNet, WhisperSpectrogram
from mmgpt.errors import ConfigError, MediaError
from mmgpt.pretrained import fetch

KERNEL = 7  # of the residual blocks, in tokens


class AudioEncoder(Encoder):
    """Sounds of any length to tokens, one for each hop x reduction samples begun.

    Whisper was trained on sounds padded with silence to its window of 30 seconds. Each is padded to that here too, and
    the tokens of its own duration are kept; a longer sound is refused.

    `augment`, if set, masks the spectrograms at random in training mode (SpecAugment).

    Args:
        config: The configuration, or "conv", "whisper" or the name of a timm model.
        fields: Fields of the configuration to set.

    Raises:
        ConfigError: a backbone that is not convolutional, or settings that do not fit together.
        CheckpointError: weights of Whisper that cannot be used.
    """

    def __init__(self, config: AudioEncoderConfig | str = "conv", **fields: Any):
        super().__init__()
        config = AudioEncoderConfig(config, **fields) if isinstance(config, str) else replace(config, **fields)
        self.augment = False
        nets = {"conv": CausalNet, "whisper": WhisperNet}
        self.net: CausalNet | WhisperNet | BackboneNet = nets.get(config.name, BackboneNet)(config)
        self.config: AudioEncoderConfig = self.net.config
        self.log_mel = (WhisperSpectrogram if config.name == "whisper" else Spectrogram)(self.config)
        self.freeze() if config.frozen else self.train()

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """Whisper's encoder from a checkpoint of transformers; in evaluation mode. Raises CheckpointError.

        Args:
            source: A directory with config.json and model.safetensors (whole or sharded) of Whisper or of its encoder
                alone, or a Hub id such as "openai/whisper-tiny". Other formats of weights are not read.
        """
        return cls("whisper", weights=str(fetch(source))).eval()

    def grid(self, samples: int) -> TokenGrid:
        """The tokens of a sound of so many samples."""
        return audio_grid(self.config, samples)

    def forward(self, waveforms: Sequence[Tensor] | Tensor, lengths: Tensor | None = None) -> Tokens:
        """Tokens (batch, tokens, width), zero behind each sound's end, and their numbers (batch,).

        Args:
            waveforms: One (samples,) per sound, at config.sample_rate; or (batch, samples) with lengths (batch,).
        """
        return self.forward_features(waveforms, [-1], lengths)[0]

    def forward_features(
        self, waveforms: Sequence[Tensor] | Tensor, layers: Sequence[int], lengths: Tensor | None = None
    ) -> list[Tokens]:
        """What forward returns, after each of these blocks (or stages of a timm backbone); -1 is the last.

        Of Whisper, as in transformers' hidden_states, the last alone has gone through the final norm.
        """
        sounds = unpad(waveforms, lengths)
        counts = torch.tensor([self.grid(len(sound)).count for sound in sounds])
        if not counts.all():
            raise MediaError("a sound of 0 samples cannot be encoded")
        spectrogram = self.spectrogram(sounds)
        if self.augment and self.training:
            spectrogram = mask_at_random(spectrogram, counts * self.config.reduction)
        # Computed in single precision, then passed on in the net's own.
        spectrogram = spectrogram.to(next(self.net.parameters()).dtype)
        return self.net(spectrogram, counts.to(spectrogram.device), layers)

    def spectrogram(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Log-mel spectrograms (batch, 1, mels, frames), about 0 to 2, silence is 0; reduction frames to a token.

        Whisper's are of its whole window, about -1 to 2, and silence is the least of each.
        """
        tokens = self.config.positions or max(self.grid(len(waveform)).count for waveform in waveforms)
        longest = tokens * self.config.hop * self.config.reduction
        return self.log_mel(torch.stack([F.pad(waveform, (0, longest - len(waveform))) for waveform in waveforms]))


class CausalNet(nn.Module):
    """The CNN "conv": strided convolutions over time and frequency, then residual blocks over time.

    A token sees nothing that comes after it, so what pads the end of a short sound changes none of its tokens, and
    norms are over the channels at each position.
    """

    def __init__(self, config: AudioEncoderConfig):
        super().__init__()
        self.config = replace(config, width=config.channels)
        if config.reduction not in (2, 4, 8):
            raise ConfigError(f"audio.reduction: {config.reduction}: conv has 2, 4 or 8 frames to a token")
        if not 0 <= config.dropout < 1:
            raise ConfigError(f"audio.dropout: must be from 0 on and below 1, not {config.dropout}")
        halvings = config.reduction.bit_length() - 1
        inner = max(config.channels // 4, 8)
        self.stem = nn.ModuleList(
            nn.Conv2d(1 if i == 0 else inner, inner, 3, stride=2, padding=(1, 0)) for i in range(halvings)
        )
        rows = -(-config.mels // config.reduction)
        self.project = nn.Linear(inner * rows, config.channels)
        self.blocks = nn.ModuleList(CausalBlock(config.channels, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.channels)

    def forward(self, spectrogram: Tensor, counts: Tensor, layers: Sequence[int]) -> list[Tokens]:
        x = spectrogram
        for convolution in self.stem:
            # Output j sees inputs 2j - 1, 2j and 2j + 1, the last of its own two.
            x = F.gelu(convolution(F.pad(x, (1, 0))))  # batch, channels, frequency, time
        x = self.project(x.flatten(1, 2).mT)  # batch, time, channels
        levels = []
        for block in self.blocks:
            x = block(x)
            levels.append(x)
        real = torch.arange(x.shape[1], device=x.device) < counts[:, None]
        return [(self.norm(levels[layer]) * real[..., None], counts) for layer in layers]


class CausalBlock(nn.Module):
    """A ConvNeXt block (Liu et al. 2022) in one dimension: (batch, time, channels) in and out."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.depthwise = nn.Conv1d(channels, channels, KERNEL, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.depthwise(F.pad(x.mT, (KERNEL - 1, 0))).mT
        return x + self.mlp(self.norm(mixed))


class BackboneNet(nn.Module):
    """A convolutional backbone of timm; the frequency rows of its feature map are laid into the width of a token.

    It is not causal, so sounds of different length go through apart.
    """

    def __init__(self, config: AudioEncoderConfig):
        super().__init__()
        frames = 256
        self.backbone = Backbone(
            config.name, 1, (config.mels, frames), config.pretrained, config.weights, args=config.args
        )
        rows, columns = self.backbone.rows, self.backbone.columns
        reduction = frames // columns
        self.config = replace(config, reduction=reduction, width=rows * self.backbone.width)
        for tokens in (1, 3, columns + 5):
            if self.backbone.shape_at((config.mels, tokens * reduction)) != (rows, tokens):
                raise ConfigError(f"audio: {config.name}: not one token to {reduction} frames; choose another model")

    def forward(self, spectrogram: Tensor, counts: Tensor, layers: Sequence[int]) -> list[Tokens]:
        found: list[list[Tensor]] = [[] for _ in layers]
        order = []
        for count in counts.unique():
            (rows,) = torch.where(counts == count)
            order.append(rows)
            batch = spectrogram[rows, :, :, : int(count) * self.config.reduction]
            for level, (_, maps) in zip(found, self.backbone.forward_features(batch, layers), strict=True):
                level += maps.flatten(1, 2).mT  # time, channels x frequency
        places = torch.cat(order).argsort().tolist()
        return [ragged([level[place] for place in places]) for level in found]
