"""Sounds: a file, bytes or an array -> one channel of float32 at the file's own rate, with PyAV."""

import os
from dataclasses import dataclass, field

import numpy as np
from av import AudioFrame, AudioResampler, Packet

from mmgpt.errors import MediaError
from mmgpt.media.container import container, packets
from mmgpt.media.source import name_of
from mmgpt.stored import Stored

MAX_SAMPLES = 1 << 27  # of a whole sound, whatever the seconds allow: 0.5 GB, 50 minutes at 44.1 kHz


@dataclass(frozen=True, eq=False)
class Waveform:
    """A sound of one channel: float32 (samples,), in -1..1 (a float file may go beyond), and its rate in Hz."""

    samples: np.ndarray
    sample_rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


def load_audio(
    source: "str | os.PathLike[str] | bytes | Stored | np.ndarray",
    sample_rate: int | None = None,
    *,
    max_seconds: float,
) -> Waveform:
    """Decodes the first sound track and mixes it down: the mean of its channels, at its native rate.

    Args:
        source: A path or the bytes of a file, of sound or of video with sound; or a float array (samples,) in -1..1.
        sample_rate: Of an array, in Hz; a file has its own.
        max_seconds: A longer sound is refused, not cut.

    Raises:
        MediaError: It is missing, damaged, empty, too long, not finite, or without sound.
    """
    name = name_of(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, sample_rate, max_seconds)
    if sample_rate is not None:
        raise MediaError(f"{name}: a file has its own sample rate; give sample_rate with arrays only")
    with container(source, "a sound") as file:
        if not file.streams.audio:
            raise MediaError(f"{name}: has no sound; give a file with a sound track")
        track = SoundTrack(name, max_seconds)
        for packet in packets(file, name, file.streams.audio[0]):
            track.decode(packet)
        return track.waveform()


def _from_array(array: np.ndarray, sample_rate: int | None, max_seconds: float) -> Waveform:
    if array.ndim != 1 or array.dtype.kind != "f":
        raise MediaError(f"array: a sound is float (samples,) in -1..1, not {array.dtype} {array.shape}; convert it")
    if sample_rate is None or sample_rate <= 0:
        raise MediaError(f"array: a sound needs its sample rate in Hz, not {sample_rate}; give sample_rate=")
    track = SoundTrack("array", max_seconds, sample_rate)
    track.append(array)
    return track.waveform()


@dataclass
class SoundTrack:
    """Gathers one sound piece by piece; refuses it as soon as it is beyond the limits.

    `start` is the time of its first sample in seconds of the file's clock, None if the file does not say.
    """

    name: str
    max_seconds: float
    sample_rate: int = 0
    start: float | None = None
    _pieces: list[np.ndarray] = field(default_factory=list)
    _count: int = 0

    def decode(self, packet: Packet) -> None:
        """Appends what a packet decodes to, mixed down."""
        for frame in packet.decode():
            if self._count == 0:
                self.sample_rate, self.start = frame.sample_rate, frame.time
            if frame.sample_rate != self.sample_rate:
                raise MediaError(f"{self.name}: its sample rate changes within; convert it to one rate")
            self.append(mixed_down(frame))

    def append(self, samples: np.ndarray) -> None:
        """Appends samples of one channel."""
        self._count += len(samples)
        if self._count > min(self.max_seconds * self.sample_rate, MAX_SAMPLES):
            most = min(self.max_seconds, MAX_SAMPLES / self.sample_rate)
            raise MediaError(f"{self.name}: the sound is longer than {most:g} seconds; cut it into pieces")
        with np.errstate(over="ignore"):  # the infinity is found below
            self._pieces.append(samples.astype(np.float32))

    def waveform(self) -> Waveform:
        if self._count == 0:
            raise MediaError(f"{self.name}: the sound has no samples; remove it or record it again")
        samples = np.concatenate(self._pieces)
        self._pieces.clear()
        if not np.isfinite(samples).all():
            raise MediaError(f"{self.name}: the sound holds numbers that are not finite (NaN or infinity); replace it")
        return Waveform(samples, self.sample_rate)


@np.errstate(over="ignore", invalid="ignore")  # infinities of a float file are told of later
def mixed_down(frame: AudioFrame) -> np.ndarray:
    """The mean of a frame's channels, (samples,); integers are scaled to -1..1."""
    if frame.format.name in ("s64", "s64p"):  # unknown to numpy in PyAV
        (frame,) = AudioResampler(format="dblp").resample(frame)
    values: np.ndarray = frame.to_ndarray()
    channels = values if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels).T
    if channels.dtype == np.uint8:  # 8-bit PCM has its zero at 128
        return channels.mean(0, dtype=np.float32) / 128 - 1
    if channels.dtype.kind == "i":
        return channels.mean(0, dtype=np.float64) / -float(np.iinfo(channels.dtype).min)
    return channels.mean(0)
