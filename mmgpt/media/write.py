"""Pictures, sounds and clips to files, for people to look at and listen to."""

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from mmgpt.files import atomic_write
from mmgpt.media.audio import Waveform


def write_image(path: Path, pixels: np.ndarray) -> None:
    """uint8 (height, width, 3) to a PNG."""
    with atomic_write(path) as draft:
        Image.fromarray(pixels).save(draft, format="png")


def write_audio(path: Path, sound: Waveform) -> None:
    """A 16-bit WAV."""
    with atomic_write(path) as draft, wave.open(str(draft), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sound.sample_rate)
        file.writeframes(_int16(sound).tobytes())


def write_video(path: Path, frames: np.ndarray, frame_rate: float, sound: Waveform | None = None) -> None:
    """uint8 (time, height, width, 3) of even sides to an MP4 (H.264, AAC)."""
    rate = Fraction(frame_rate).limit_denominator(1000)
    with atomic_write(path) as draft, av.open(str(draft), "w", format="mp4") as file:
        video = file.add_stream("libx264", rate=rate, options={"crf": "4", "g": "1"})
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        audio = None if sound is None else file.add_stream("aac", rate=sound.sample_rate, layout="mono")
        for frame in frames:
            file.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(video.encode())
        if sound is not None and audio is not None:
            packed = av.AudioFrame.from_ndarray(_int16(sound)[None], format="s16", layout="mono")
            packed.sample_rate, packed.time_base, packed.pts = sound.sample_rate, Fraction(1, sound.sample_rate), 0
            file.mux(audio.encode(packed))
            file.mux(audio.encode())


def _int16(sound: Waveform) -> np.ndarray:
    return (np.clip(sound.samples, -1, 1) * 32767).astype("<i2")
