"""Sounds and clips of samples as data URIs that a page plays: small ones, since a page has many. PyAV alone."""

import io
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
from av.container import OutputContainer

from mmgpt.evaluation.pictures import LISTEN_SECONDS, beginning, data_uri

if TYPE_CHECKING:
    from mmgpt.media import Clip, Waveform

RATE, BIT_RATE = 16_000, 24_000  # samples and bits a second
SHARPNESS = {"crf": "30", "preset": "veryfast"}  # of H.264


def sound_uri(sound: "Waveform") -> str:
    """The first seconds of a sound (LISTEN_SECONDS) as an MP3 data URI: 3 kB a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3") as file:
        stream = file.add_stream("libmp3lame", rate=RATE, layout="mono")
        stream.bit_rate = BIT_RATE
        _encode(file, stream, sound)
    return data_uri("audio/mpeg", buffer.getvalue())


def video_uri(clip: "Clip", side: int) -> str:
    """The first seconds of a clip (LISTEN_SECONDS) with their sound as an MP4 data URI (H.264, AAC).

    Args:
        clip: As many frames as it has are shown, each as long as the others.
        side: Most pixels of the larger side.
    """
    frames = clip.frames[clip.times < LISTEN_SECONDS]
    rate = Fraction(len(clip.frames) / clip.duration).limit_denominator(1000)
    scale = min(1.0, side / max(frames.shape[1:3]))
    height, width = (max(2, round(scale * size / 2) * 2) for size in frames.shape[1:3])  # H.264 wants even sides
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        video = file.add_stream("libx264", rate=rate, options=SHARPNESS)
        video.height, video.width, video.pix_fmt = height, width, "yuv420p"
        audio = None if clip.sound is None else file.add_stream("aac", rate=RATE, layout="mono")
        for frame in frames:
            file.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(width, height)))
        file.mux(video.encode())
        if clip.sound is not None and audio is not None:
            audio.bit_rate = BIT_RATE
            _encode(file, audio, clip.sound)
    return data_uri("video/mp4", buffer.getvalue())


def _encode(file: OutputContainer, stream: av.AudioStream, sound: "Waveform") -> None:
    samples = (beginning(sound) * 32767).astype(np.int16)[None]
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = sound.sample_rate, Fraction(1, sound.sample_rate), 0
    resampler = av.AudioResampler(format=stream.format, layout="mono", rate=RATE)
    for piece in (*resampler.resample(frame), *resampler.resample(None)):
        file.mux(stream.encode(piece))
    file.mux(stream.encode())
