"""Pictures of samples for reports: small images, frames, spectrograms, and a sheet of them with texts. Pillow alone."""

import base64
import io
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from mmgpt.media import Waveform

TINY = 64  # pixels of a side, up to which every pixel counts
LISTEN_SECONDS = 10.0  # longer sounds and clips are cut in reports
BANDS = 64  # mel bands of a spectrogram
RANGE = 80.0  # decibels from darkest to brightest
_DARK_TO_BRIGHT = np.array([(8, 8, 28), (75, 22, 112), (178, 56, 118), (248, 140, 92), (252, 246, 196)], dtype=float)


def shrunk(image: Image.Image, width: int, height: int) -> Image.Image:
    """A copy of the picture, RGB, no larger than this; a smaller one keeps its size."""
    image = image.convert("RGB")
    image.thumbnail((width, height))
    return image


def picture_uri(image: Image.Image, side: int = 480) -> str:
    """The picture, no side longer than `side`, as a data URI: PNG if tiny, else JPEG."""
    image = shrunk(image, side, side)
    buffer = io.BytesIO()
    kind = "PNG" if max(image.size) <= TINY else "JPEG"
    image.save(buffer, kind, optimize=True, quality=85)
    return data_uri(f"image/{kind.lower()}", buffer.getvalue())


def sound_picture(sound: "Waveform", width: int = 480, height: int = 168) -> Image.Image:
    """A sound's first seconds (LISTEN_SECONDS): its waveform, the loudest as high as there is room, and below it its
    spectrogram.
    """
    samples = beginning(sound)
    edges = np.linspace(0, len(samples), width + 1).astype(int)
    loudest = np.array([np.abs(samples[start : max(end, start + 1)]).max(initial=0) for start, end in pairwise(edges)])
    high = height // 3
    middle = np.abs(np.arange(high) - (high - 1) / 2)[:, None] / (high / 2)  # rows, 1: how far from the axis
    wave = np.where(middle <= np.maximum(loudest / max(loudest.max(), 1e-4), 1 / high), 0.75, 0.0)  # rows, columns
    whole = Image.new("RGB", (width, height))
    whole.paste(heat(wave, width, high), (0, 0))
    whole.paste(spectrogram(sound, width, height - high), (0, high))
    return whole


def spectrogram(sound: "Waveform", width: int = 480, height: int = 128) -> Image.Image:
    """The log-mel spectrogram of a sound's first seconds (LISTEN_SECONDS): time to the right, pitch upwards."""
    rate = sound.sample_rate
    window, hop = max(rate // 40, 2), max(rate // 100, 1)  # 25 ms every 10 ms
    size = 2 * window  # the spectrum is padded to this, so that the lowest bands are not empty
    samples = np.pad(beginning(sound), window // 2)
    samples = np.pad(samples, (0, max(0, window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, size)) ** 2  # (time, frequency)
    decibels = 10 * np.log10(power @ _mel_filters(size, rate) + 1e-8)  # (time, bands)
    top = max(decibels.max(), 0.0)  # silence stays dark
    level = np.clip((decibels - top + RANGE) / RANGE, 0, 1).T[::-1]  # (bands from high to low, time)
    return heat(level, width, height)


def heat(level: np.ndarray, width: int, height: int) -> Image.Image:
    """Levels (rows, columns) in 0..1 as colours from dark to bright, in a picture of this size."""
    stops = np.linspace(0, 1, len(_DARK_TO_BRIGHT))
    colours = np.stack([np.interp(level, stops, channel) for channel in _DARK_TO_BRIGHT.T], axis=-1)
    return Image.fromarray(colours.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def spread(count: int, most: int) -> list[int]:
    """Up to `most` indices spread evenly over `count` things, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def strip(frames: np.ndarray, width: int, height: int) -> Image.Image:
    """Frames (time, height, width, 3) of a video side by side in a picture of at most this size."""
    chosen = [Image.fromarray(frames[i]) for i in spread(len(frames), 4)]
    gap = 2
    side = (width - gap * (len(chosen) - 1)) // len(chosen)
    scale = min(side / chosen[0].width, height / chosen[0].height)
    size = (max(1, round(chosen[0].width * scale)), max(1, round(chosen[0].height * scale)))
    sheet = Image.new("RGB", ((size[0] + gap) * len(chosen) - gap, size[1]), "white")
    for i, frame in enumerate(chosen):
        sheet.paste(frame.resize(size), (i * (size[0] + gap), 0))
    return sheet


def beginning(sound: "Waveform") -> np.ndarray:
    """The first samples of a sound (LISTEN_SECONDS), in -1..1."""
    samples = sound.samples[: round(LISTEN_SECONDS * sound.sample_rate)]
    return np.clip(np.nan_to_num(samples, posinf=0.0, neginf=0.0), -1, 1)


def _mel_filters(size: int, rate: int) -> np.ndarray:
    """Triangular filters (frequencies, bands), evenly spaced on the mel scale (O'Shaughnessy 1987)."""
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, BANDS + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(size, 1 / rate)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def data_uri(kind: str, data: bytes) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
