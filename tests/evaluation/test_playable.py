"""Sounds and clips in pages, decoded again."""

import base64

import numpy as np
import pytest

from mmgpt.evaluation.playable import sound_uri, video_uri
from mmgpt.media import Clip, Waveform, load_audio, load_video


def data_of(uri: str, kind: str) -> bytes:
    start, _, data = uri.partition(",")
    assert start == f"data:{kind};base64"
    return base64.b64decode(data)


def tone(seconds: float, rate: int, hertz: float = 440.0) -> Waveform:
    return Waveform(0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32), rate)


def pitch(sound: Waveform) -> float:
    spectrum = np.abs(np.fft.rfft(sound.samples * np.hanning(len(sound.samples))))
    return spectrum.argmax() * sound.sample_rate / len(sound.samples)


@pytest.mark.parametrize("rate", [8000, 11_111, 16_000, 44_100])
def test_a_sound_is_the_same_to_hear_and_small(rate):
    data = data_of(sound_uri(tone(2.0, rate)), "audio/mpeg")
    heard = load_audio(data, max_seconds=60)
    assert heard.seconds == pytest.approx(2.0, abs=0.15)
    assert pitch(heard) == pytest.approx(440, abs=2)
    assert np.abs(heard.samples).max() == pytest.approx(0.5, abs=0.1)
    assert len(data) < 2.5 * 3000


def test_a_long_sound_is_cut_and_a_broken_one_is_silent():
    assert load_audio(data_of(sound_uri(tone(15, 8000)), "audio/mpeg"), max_seconds=60).seconds < 10.2
    broken = Waveform(np.full(8000, np.nan, np.float32), 8000)
    assert np.abs(load_audio(data_of(sound_uri(broken), "audio/mpeg"), max_seconds=60).samples).max() < 0.01


def test_a_clip_is_the_same_to_see_and_hear():
    colours = np.array([(200, 30, 30), (30, 200, 30), (30, 30, 200)], np.uint8)
    frames = np.repeat(colours, 4, axis=0)[:, None, None, :] * np.ones((1, 90, 121, 1), np.uint8)
    clip = Clip(frames, np.arange(12) / 6, 2.0, tone(2.0, 8000))
    seen = load_video(data_of(video_uri(clip, 60), "video/mp4"), frames=3, max_seconds=60)
    assert seen.frames.shape[1:3] in ((44, 60), (46, 60))  # even sides
    assert seen.duration == pytest.approx(2.0, abs=0.05)
    assert np.abs(seen.frames.mean(axis=(1, 2)) - colours).max() < 12
    assert seen.sound is not None
    assert pitch(seen.sound) == pytest.approx(440, abs=2)


def test_a_long_clip_is_cut_and_a_tiny_one_stays_as_large_as_it_is():
    frames = np.zeros((40, 16, 16, 3), np.uint8)
    seen = load_video(data_of(video_uri(Clip(frames, np.arange(40) / 2, 20.0, None), 480), "video/mp4"), frames=2,
                      max_seconds=60)  # fmt: skip
    assert seen.duration == pytest.approx(10, abs=0.1)
    assert seen.frames.shape[1:3] == (16, 16)
    assert seen.sound is None
