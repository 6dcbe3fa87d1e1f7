"""Log-mel spectrograms whose frames look only backwards in time, and in which silence is zero; masks on any."""

import torch
import torchaudio.functional as AF
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.config import AudioEncoderConfig
from mmgpt.errors import ConfigError

# Power of the quietest sound that shows, relative to a sine of full scale (-80 dB), and what brings speech near 1.
FLOOR = 1e-8
SCALE = 8.0

# SpecAugment (Park et al. 2019): so many masks of each kind, each up to this share of the bands or of the sound.
MASKS = 2
LARGEST_MASK = 0.15


class Spectrogram(nn.Module):
    """Waveforms (batch, samples) -> (batch, 1, mels, frames): log(1 + mel power / FLOOR) / SCALE, in float32.

    Frame i sees the `window` samples before sample (i + 1) x hop. Before the sound there is silence.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: AudioEncoderConfig):
        super().__init__()
        if config.window < config.hop:
            raise ConfigError(f"audio.window: {config.window} samples are less than the hop of {config.hop}")
        self.hop = config.hop
        self.size = 1 << (config.window - 1).bit_length()  # of the Fourier transform
        window = torch.hann_window(config.window)
        window = window / (window.sum() / 2)  # a sine of full scale has power 1
        filters = AF.melscale_fbanks(
            self.size // 2 + 1, 0.0, config.sample_rate / 2, config.mels, config.sample_rate, mel_scale="slaney"
        )
        if (filters.sum(0) == 0).any():
            raise ConfigError(
                f"audio.mels: {config.mels} bands are more than a window of {config.window} can tell apart"
            )
        self.register_buffer("window", F.pad(window, (self.size - config.window, 0)), persistent=False)
        self.register_buffer("filters", filters.T.contiguous(), persistent=False)  # mels, frequencies

    def forward(self, waveforms: Tensor) -> Tensor:
        with torch.autocast(waveforms.device.type, enabled=False):
            padded = F.pad(waveforms.float(), (self.size - self.hop, 0))
            spectrum = torch.stft(
                padded, self.size, self.hop, window=self.window.float(), center=False, return_complex=True
            )
            power = torch.view_as_real(spectrum).square().sum(-1)  # batch, frequencies, frames
            return torch.log1p(self.filters.float() @ power / FLOOR).unsqueeze(1) / SCALE


def mask_at_random(spectrogram: Tensor, frames: Tensor) -> Tensor:
    """Spectrograms (batch, 1, mels, frames) with random bands and stretches of each set to zero (SpecAugment)."""
    rows = []
    for row, length in zip(spectrogram, frames.tolist(), strict=True):
        sound, rest = row[..., :length], row[..., length:]
        for axis in (1, 2):
            for _ in range(MASKS):
                sound = AF.mask_along_axis(sound, int(LARGEST_MASK * sound.shape[axis]) + 1, 0.0, axis)
        rows.append(torch.cat([sound, rest], dim=-1))
    return torch.stack(rows)
