import av
import numpy as np
import PIL.Image
import pytest

from mmgpt.errors import WriteError
from mmgpt.media import Waveform, load_audio, load_image, load_video
from mmgpt.media.write import write_audio, write_image, write_video


def squares(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A bright square that goes from the left to the right, on a dark ground."""
    clip = np.full((frames, height, width, 3), (30, 40, 50), np.uint8)
    for i, frame in enumerate(clip):
        frame[10:26, 4 * i : 4 * i + 16] = (220, 200, 40)
    return clip


def test_a_picture_is_kept_to_the_pixel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    write_image(tmp_path / "a.png", pixels)
    assert PIL.Image.open(tmp_path / "a.png").format == "PNG"
    assert (np.asarray(load_image(tmp_path / "a.png")) == pixels).all()


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_a_sound_is_kept_to_16_bits(tmp_path, rate):
    samples = np.random.default_rng(0).uniform(-1, 1, 1001).astype(np.float32)
    write_audio(tmp_path / "a.wav", Waveform(samples, rate))
    heard = load_audio(tmp_path / "a.wav", max_seconds=1)
    assert heard.sample_rate == rate
    assert len(heard.samples) == 1001
    assert np.abs(heard.samples - samples).max() < 2 / 2**15


def test_what_is_too_loud_is_cut_and_does_not_wrap_around(tmp_path):
    write_audio(tmp_path / "a.wav", Waveform(np.array([1.5, -1.5, 0.0, 1.0], np.float32), 8000))
    heard = load_audio(tmp_path / "a.wav", max_seconds=1).samples
    assert heard == pytest.approx([1, -1, 0, 1], abs=2 / 2**15)


@pytest.mark.parametrize("rate", [1.0, 4.0, 12.5, 30_000 / 1001])
def test_a_clip_has_its_frames_at_their_times(tmp_path, rate):
    frames = squares(10)
    write_video(tmp_path / "a.mp4", frames, rate)
    clip = load_video(tmp_path / "a.mp4", frames=10, max_seconds=20)
    assert clip.times == pytest.approx(np.arange(10) / rate, abs=1e-3)
    assert clip.duration == pytest.approx(10 / rate, rel=1e-3)
    assert clip.sound is None
    wrong = np.abs(clip.frames.astype(int) - frames)
    assert wrong.mean() < 2
    assert np.abs(clip.frames[:, 12:24, :, 0].astype(int) - frames[:, 12:24, :, 0]).max() < 60  # no frame is another


def test_a_clip_keeps_its_sound(tmp_path):
    time = np.arange(12_000) / 8000
    tone = np.where(time < 0.75, 0.0, 0.6 * np.sin(2 * np.pi * 500 * time)).astype(np.float32)
    write_video(tmp_path / "a.mp4", squares(6), 4.0, Waveform(tone, 8000))
    sound = load_video(tmp_path / "a.mp4", frames=6, max_seconds=20).sound
    assert sound is not None
    assert sound.sample_rate == 8000
    assert sound.seconds == pytest.approx(1.5, abs=0.05)
    assert np.abs(sound.samples[:5900]).max() < 0.05
    heard = sound.samples[6100:11_900]
    assert heard.std() == pytest.approx(0.6 / 2**0.5, rel=0.1)
    assert np.abs(np.fft.rfft(heard)).argmax() * 8000 / len(heard) == pytest.approx(500, abs=5)


def test_a_clip_is_of_a_kind_that_browsers_play(tmp_path):
    write_video(tmp_path / "a.mp4", squares(4), 4.0, Waveform(np.zeros(8000, np.float32), 8000))
    with av.open(str(tmp_path / "a.mp4")) as file:
        [video], [audio] = file.streams.video, file.streams.audio
        assert (video.codec_context.name, video.pix_fmt, audio.codec_context.name) == ("h264", "yuv420p", "aac")


def test_files_are_written_whole_or_not_at_all(tmp_path):
    write_image(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    write_video(tmp_path / "a.mp4", squares(2), 4.0)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for write in (
        lambda: write_image(tmp_path / "a.png", np.zeros((4, 4, 7), np.uint8)),
        lambda: write_video(tmp_path / "a.mp4", np.zeros((2, 48, 64, 4), np.uint8), 4.0),
    ):
        with pytest.raises((TypeError, ValueError)):
            write()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_missing_folders_are_made_and_impossible_ones_told(tmp_path):
    write_audio(tmp_path / "b" / "c" / "a.wav", Waveform(np.zeros(4, np.float32), 8000))
    assert (tmp_path / "b" / "c" / "a.wav").exists()
    with pytest.raises(WriteError, match="cannot write"):
        write_audio(tmp_path / "b" / "c" / "a.wav" / "d.wav", Waveform(np.zeros(4, np.float32), 8000))
