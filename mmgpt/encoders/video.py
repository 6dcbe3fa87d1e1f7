"""The video encoder: frames through the image encoder, the sound track through the audio encoder."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.config import TokenGrid, VideoEncoderConfig, video_grid
from mmgpt.encoders.audio import AudioEncoder
from mmgpt.encoders.base import Encoder, Tokens, even, ragged, sinusoids
from mmgpt.encoders.image import ImageEncoder
from mmgpt.errors import ConfigError

# Time masking (Ma et al. 2022, Training Strategies for Improved Lip-reading): so many stretches of a clip, each up to
# this share of its frames.
MASKS = 3
LONGEST_MASK = 0.15


class VideoEncoder(Encoder):
    """Clips to tokens: each frame's grid averaged down to config.grid, frame by frame, then the sound track's tokens.

    Each token is told what has changed at its place since the frame before, so that motion need not be found by
    comparing tokens far apart (as temporal convolutions and differences do: Wang et al. 2021, TDN). Where config.layers
    asks for it, convolutions over time follow (as in R(2+1)D, Tran et al. 2018), so that a token knows of what happens
    around it: what lips say is not seen in one frame.

    The image and audio encoder are not copied: a model that also sees pictures and hears sounds shares them.

    `hide`, if set, is the share of clips with sound whose frames' tokens are zero in training mode, so that a model
    that could learn clips by heart by their looks has to listen (modality dropout, as in AV-HuBERT, Shi et al. 2022).
    `augment`, if set, hides stretches of each clip's frames at random in training mode (time masking).

    Args:
        config: The configuration.
        image: Encodes the frames.
        audio: Encodes the sound track; None for clips without sound.
    """

    def __init__(self, config: VideoEncoderConfig, image: ImageEncoder, audio: AudioEncoder | None = None):
        super().__init__()
        grid = image.grid()
        if config.grid[0] > grid.rows or config.grid[1] > grid.columns:
            raise ConfigError(f"video.grid: {config.grid} is finer than the image encoder's {grid.rows, grid.columns}")
        self.config: VideoEncoderConfig = replace(config, width=image.width)
        self.image = image
        self.audio = audio if config.sound else None
        self.hide = 0.0
        self.augment = False
        self.time = nn.Linear(image.width, image.width)
        self.place = nn.Linear(image.width, image.width, bias=False)
        self.change = nn.Linear(image.width, image.width, bias=False)
        self.layers = nn.ModuleList(TimeConvolution(image.width) for _ in range(config.layers))
        self.sound = nn.Linear(self.audio.width, image.width) if self.audio is not None else None

    def hear(self, audio: AudioEncoder) -> None:
        """Encode sound tracks by this from now on, by weights that are new, if the configuration wants them."""
        if self.config.sound:
            self.audio, self.sound = audio, nn.Linear(audio.width, self.width)

    def grid(self, sound_samples: int = 0) -> TokenGrid:
        """The tokens of a clip with a sound track of so many samples; 0: none."""
        return video_grid(self.config, self.audio.config if self.audio is not None else None, sound_samples)

    def forward(self, frames: Tensor, sounds: Sequence[Tensor | None] | None = None) -> Tokens:
        """Tokens (batch, tokens, width), zero behind each clip's end, and their numbers (batch,).

        Args:
            frames: (batch, time, 3, height, width) of the image encoder's size, uint8 or float in 0..1.
            sounds: The sound track of each clip, (samples,) at the audio encoder's rate, or None.
        """
        (tokens, _) = self.forward_features(frames, [-1])[0]
        x = tokens.unflatten(1, (frames.shape[1], -1))  # batch, time, tokens of a frame, width
        if self.augment and self.training:
            x = mask_stretches(x)
        # Pooled cells say little of where they were: each is told its frame and its place in the grid.
        time = self.time(sinusoids(x.shape[1], self.width).to(x))  # time, width
        place = self.place(sinusoids(x.shape[2], self.width).to(x))  # tokens of a frame, width
        change = self.change(x.diff(dim=1, prepend=x[:, :1]))  # of the first frame nothing
        x = x + change + time[:, None] + place
        for layer in self.layers:
            x = layer(x)
        tokens = x.flatten(1, 2)
        tracks = self._sound_tokens(list(sounds or [None] * len(frames)), tokens)
        if self.training and self.hide:
            heard = torch.tensor([len(track) > 0 for track in tracks], device=tokens.device)
            hidden = heard & (torch.rand(len(tokens), device=tokens.device) < self.hide)
            tokens = tokens.masked_fill(hidden[:, None, None], 0)
        return ragged([torch.cat([one, track]) for one, track in zip(tokens, tracks, strict=True)])

    def forward_features(self, frames: Tensor, layers: Sequence[int]) -> list[Tokens]:
        """The frames' tokens alone, without positions, after each of these layers of the image encoder."""
        maps = self.image.maps(frames.flatten(0, 1), layers)
        pooled = [F.adaptive_avg_pool2d(each, self.config.grid).flatten(2).mT for each in maps]
        return [even(each.reshape(len(frames), -1, each.shape[2])) for each in pooled]

    def _sound_tokens(self, sounds: list[Tensor | None], like: Tensor) -> list[Tensor]:
        """The tokens (tokens, width) of each sound track, none where there is none."""
        tracks = [like[i, :0] for i in range(len(sounds))]
        heard = [i for i, sound in enumerate(sounds) if sound is not None and len(sound)]
        if self.audio is not None and self.sound is not None and heard:
            tokens, lengths = self.audio([sounds[i] for i in heard])
            for i, track, length in zip(heard, self.sound(tokens), lengths, strict=True):
                tracks[i] = track[:length]
        return tracks


def mask_stretches(x: Tensor) -> Tensor:
    """Clips (batch, time, places, width), random stretches of each replaced by its mean over time."""
    count = x.shape[1]
    longest, start = torch.rand(2, len(x), MASKS, 1, device=x.device)  # batch, masks, 1
    length = (longest * (LONGEST_MASK * count + 1)).floor()
    start = (start * (count - length + 1)).floor()
    frames = torch.arange(count, device=x.device)
    hidden = ((frames >= start) & (frames < start + length)).any(dim=1)  # batch, time
    return torch.where(hidden[:, :, None, None], x.mean(dim=1, keepdim=True), x)


class TimeConvolution(nn.Module):
    """Each token and what a convolution over its place in neighbouring frames adds: (batch, time, places, width)."""

    def __init__(self, width: int, reach: int = 2):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, 2 * reach + 1, padding=reach)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        series = self.norm(x).permute(0, 2, 3, 1)  # batch, places, width, time
        mixed = self.mix(series.flatten(0, 1)).unflatten(0, series.shape[:2]).permute(0, 3, 1, 2)
        return x + self.out(F.gelu(mixed))
