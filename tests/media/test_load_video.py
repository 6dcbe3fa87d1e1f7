import io
import struct
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest
from av.stream import Disposition
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt import MediaError
from mmgpt.media import Waveform, load_audio, load_video


def decoded(source, frames=4, max_seconds=20.0, **options):
    return load_video(source, frames=frames, max_seconds=max_seconds, **options)


def greys(clip) -> list[int]:
    return clip.frames.mean((1, 2, 3)).round().astype(int).tolist()


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "flv"])
def test_frames_are_those_at_the_middles_of_equal_parts(container, write_clip):
    shades = list(range(10, 250, 12))  # 20 frames
    clip = decoded(write_clip(shades, container=container, bframes=2))
    assert clip.frames.shape == (4, 48, 64, 3)
    assert clip.frames.dtype == np.uint8
    assert greys(clip) == pytest.approx([shades[i] for i in (2, 7, 12, 17)], abs=3)
    assert clip.times == pytest.approx([0.08, 0.28, 0.48, 0.68])
    assert clip.duration == pytest.approx(0.8)
    assert clip.sound is None


def test_all_frames_when_asked_for_all(write_clip):
    shades = list(range(0, 240, 20))
    assert greys(decoded(write_clip(shades), frames=12)) == pytest.approx(shades, abs=3)


def test_clips_that_do_not_start_at_zero(write_clip):
    clip = decoded(write_clip([30, 60, 90, 120], times=[500, 501, 502, 503], container="mpegts"), max_seconds=1)
    assert greys(clip) == pytest.approx([30, 60, 90, 120], abs=3)
    assert clip.times == pytest.approx([0, 0.04, 0.08, 0.12])


def test_few_frames_are_repeated(write_clip):
    assert greys(decoded(write_clip([40, 200]), frames=6)) == pytest.approx([40] * 3 + [200] * 3, abs=3)
    assert greys(decoded(write_clip([90]), frames=3)) == pytest.approx([90] * 3, abs=3)


def test_uneven_frames_are_chosen_by_the_clock(write_clip):
    # Nine frames in the first 9/25 s, then one that stays until 91/25 s, then one more.
    clip = decoded(write_clip([10] * 9 + [120, 240], times=[*range(9), 9, 90], container="matroska"), frames=4)
    assert greys(clip) == pytest.approx([120] * 4, abs=3)
    assert clip.times == pytest.approx([0.36] * 4)
    assert clip.duration == pytest.approx(91 / 25, abs=0.4)


def test_clip_without_a_written_duration(write_clip):
    shades = [20, 60, 100, 140, 180, 220, 90, 30]
    content = write_clip(shades, container="matroska", seekable=False)
    with av.open(io.BytesIO(content)) as file:
        assert file.duration is None
    clip = decoded(content)
    assert greys(clip) == pytest.approx([shades[i] for i in (1, 3, 5, 7)], abs=3)
    assert clip.duration == pytest.approx(0.32, abs=0.01)


def test_last_picture_without_a_duration_lasts_as_long_as_the_others(write_clip):
    clip = decoded(write_clip([20] * 10, container="asf", codec="wmv2"))
    assert clip.duration == pytest.approx(0.4)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    count=st.integers(1, 40),
    frames=st.integers(1, 12),
    gop=st.integers(1, 15),
    bframes=st.integers(0, 3),
    container=st.sampled_from(["mp4", "matroska", "mpegts"]),
)
def test_passing_over_packets_changes_no_picture(write_clip, count, frames, gop, bframes, container):
    shades = np.random.default_rng(count).integers(20, 235, count).tolist()
    content = write_clip(shades, container=container, gop=gop, bframes=bframes)
    with av.open(io.BytesIO(content)) as file:
        every = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    expected = [every[(2 * part + 1) * count // (2 * frames)] for part in range(frames)]
    assert np.abs(decoded(content, frames=frames).frames.astype(int) - np.stack(expected)).max() <= 1


def with_display_matrix(mp4: bytes, *abcd: int) -> bytes:
    """Overwrites a, b, c, d of the track's matrix: (x, y) -> (a x + c y, b x + d y)."""
    a, b, c, d = (number * 65536 for number in abcd)
    at = mp4.index(b"tkhd") + 4 + 40
    return mp4[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + mp4[at + 36 :]


def quarters(_: int) -> np.ndarray:
    """Upper left 220, upper right 160, lower left 100, lower right 40."""
    return np.kron([[220, 160], [100, 40]], np.ones((24, 32)))[..., None].repeat(3, 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("abcd", "shown"),
    [
        ((1, 0, 0, 1), [[220, 160], [100, 40]]),
        ((0, 1, -1, 0), [[100, 220], [40, 160]]),  # a quarter turn clockwise
        ((-1, 0, 0, -1), [[40, 100], [160, 220]]),
        ((0, -1, 1, 0), [[160, 40], [220, 100]]),
        ((-1, 0, 0, 1), [[160, 220], [40, 100]]),  # mirrored
        ((0, 1, 1, 0), [[220, 100], [160, 40]]),
    ],
)
def test_frames_are_turned_upright(abcd, shown, write_clip):
    content = with_display_matrix(write_clip([0], picture=quarters), *abcd)
    frame = decoded(content, frames=1).frames[0]
    assert frame.shape[:2] == ((48, 64) if abcd[0] else (64, 48))
    height, width = frame.shape[0] // 4, frame.shape[1] // 4
    corners = [[frame[y, x, 0] for x in (width, -width)] for y in (height, -height)]
    assert np.allclose(corners, shown, atol=4)


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize(
    ("ratio", "shape"),
    [
        (Fraction(2), (48, 128)),
        (Fraction(1, 2), (96, 64)),
        (Fraction(16, 15), (48, 68)),
        (Fraction(1), (48, 64)),
        (Fraction(5), (48, 64)),  # nonsense
        (Fraction(1, 5), (48, 64)),
    ],
)
def test_pixels_that_are_not_square_are_made_so(ratio, shape, container, write_clip):
    frame = decoded(write_clip([0], picture=quarters, ratio=ratio, container=container), frames=1).frames[0]
    assert frame.shape == (*shape, 3)
    height, width = shape[0] // 4, shape[1] // 4
    corners = [[frame[y, x, 0] for x in (width, -width)] for y in (height, -height)]
    assert np.allclose(corners, [[220, 160], [100, 40]], atol=4)


def test_wide_pixels_are_made_square_before_the_frame_is_turned(write_clip):
    content = with_display_matrix(write_clip([0], picture=quarters, ratio=Fraction(2)), 0, 1, -1, 0)
    assert decoded(content, frames=1).frames[0].shape == (128, 48, 3)


def test_frames_of_wide_pixels_stay_within_the_limit(write_clip):
    content = write_clip([80] * 2, size=(1000, 500), codec="mpeg4", ratio=Fraction(2))
    assert decoded(content).frames.shape == (4, 320, 1280, 3)


def test_sound_comes_with_the_frames(write_clip):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    for container in ("mp4", "matroska"):
        content = write_clip([50] * 25, container=container, sounds=(tone,))
        clip = decoded(content)
        assert clip.frames.shape[0] == 4
        assert clip.sound is not None
        assert clip.sound.sample_rate == 16_000
        assert clip.sound.seconds == pytest.approx(1.0, abs=0.07)
        assert np.abs(np.fft.rfft(clip.sound.samples[4000:12_000])).argmax() * 2 == 440
        assert decoded(content, sound=False).sound is None


def test_sound_that_starts_later_is_preceded_by_silence(write_clip):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000)
    content = write_clip([50] * 50, container="matroska", sounds=(noise,), sound_start=0.5)
    clip = decoded(content)
    assert clip.sound is not None
    assert clip.sound.seconds == pytest.approx(1.5, abs=0.1)
    assert np.abs(clip.sound.samples[: 16_000 * 4 // 10]).max() < 0.01
    assert clip.sound.samples[16_000 * 6 // 10 :].std() > 0.1
    assert load_audio(content, max_seconds=9).seconds == pytest.approx(1.0, abs=0.1)


def test_short_sound_in_the_middle_stays_there(write_clip):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4000)
    clip = decoded(write_clip([50] * 50, container="matroska", sounds=(noise,), sound_start=1.0))
    assert clip.sound is not None
    assert clip.sound.seconds == pytest.approx(1.25, abs=0.1)


def test_a_given_track_replaces_the_files_own(write_clip):
    track = Waveform(np.ones(8000, np.float32), 8000)
    assert decoded(write_clip([0] * 25, sounds=(np.zeros(16_000),)), track=track).sound is track


def test_default_one_of_several_video_streams():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        streams = [out.add_stream("mpeg4", rate=25, width=w, height=w, pix_fmt="yuv420p") for w in (32, 64)]
        streams[1].disposition = Disposition.default
        for i in range(5):
            for stream in streams:
                noise = np.random.default_rng(i).integers(0, 256, (stream.height, stream.width, 3), dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(noise, "rgb24")
                frame.pts = i
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode(None))
    assert decoded(file.getvalue()).frames.shape == (4, 64, 64, 3)


def test_large_frames_are_scaled_down_and_keep_their_shape(write_clip):
    assert decoded(write_clip([80] * 2, size=(2000, 500), codec="mpeg4")).frames.shape == (4, 320, 1280, 3)


def test_long_clips_cost_the_memory_of_the_kept_frames(write_clip):
    content = write_clip([i % 200 for i in range(400)], size=(320, 240))
    tracemalloc.start()
    decoded(content, frames=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 320 * 240 * 3


def test_longer_clips_are_refused(write_clip, refusal):
    content = write_clip([0] * 26, sounds=(np.zeros(16_000),))
    assert "longer than 1 seconds" in refusal(lambda: decoded(content, max_seconds=1))
    assert "longer" in refusal(lambda: decoded(write_clip([0] * 5, sounds=(np.zeros(48_000),)), max_seconds=1))
    assert "longer" in refusal(lambda: decoded(write_clip([0] * 26), max_seconds=1))
    assert decoded(write_clip([0] * 25), max_seconds=1).duration == 1


def test_clips_of_too_many_pictures_are_refused(write_clip, refusal, monkeypatch):
    content = write_clip([0] * 20)
    monkeypatch.setattr("mmgpt.media.video.MAX_FRAMES", 20)
    assert decoded(content).duration == pytest.approx(0.8)
    monkeypatch.setattr("mmgpt.media.video.MAX_FRAMES", 19)
    assert "over 19 pictures" in refusal(lambda: decoded(content))


def test_clips_of_more_pictures_than_the_time_allows_are_refused(write_clip, refusal, monkeypatch):
    content = write_clip([0] * 20)  # 25 a second
    monkeypatch.setattr("mmgpt.media.video.MAX_FRAME_RATE", 10)
    assert decoded(content, max_seconds=2).duration == pytest.approx(0.8)
    assert "over 19 pictures" in refusal(lambda: decoded(content, max_seconds=1.9))


def gif_of(width: int, height: int) -> bytes:
    """A GIF of 40 bytes whose header claims a size."""
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    picture = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + screen + picture + b";"


def test_huge_frames_are_refused_from_the_header(refusal):
    assert decoded(gif_of(64, 64)).frames.shape == (4, 64, 64, 3)
    refusal(lambda: decoded(gif_of(65_000, 65_000)))
    refusal(lambda: decoded(gif_of(10_000, 5_000)))


def test_a_limit_of_pixels_holds_for_frames(write_clip, refusal):
    content = write_clip([0] * 5, size=(64, 48))
    assert decoded(content, max_pixels=64 * 48).frames.shape == (4, 48, 64, 3)
    assert "frames of 64 x 48 are over 3,071 pixels" in refusal(lambda: decoded(content, max_pixels=64 * 48 - 1))
    array = np.zeros((3, 48, 64, 3), np.uint8)
    assert len(decoded(array, frame_rate=4.0, max_pixels=64 * 48).frames) == 4
    refusal(lambda: decoded(array, frame_rate=4.0, max_pixels=64 * 48 - 1))


def test_frames_that_grow_within_a_clip_are_refused(write_clip, refusal):
    """MPEG streams may be laid end to end, and each begins with its own size."""
    small, large = (write_clip([0] * 13, container="mpegts", size=size) for size in ((64, 48), (128, 96)))
    assert decoded(small, max_pixels=64 * 48).frames.shape == (4, 48, 64, 3)
    refusal(lambda: decoded(small + large, max_pixels=64 * 48))


def test_truncated_clip_is_refused(write_clip, save, refusal):
    content = write_clip(list(range(100)))
    assert "cut.mp4" in refusal(lambda: decoded(save("cut.mp4", content[: len(content) // 2])))


def test_a_song_with_a_cover_is_no_video(refusal):
    song = io.BytesIO()
    with av.open(song, "w", format="mp3") as out:
        track = out.add_stream("libmp3lame", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        out.mux(track.encode(frame))
        out.mux(track.encode(None))
    cover = io.BytesIO()
    PIL.Image.new("RGB", (32, 32)).save(cover, "PNG")
    body = b"\0image/png\0\3\0" + cover.getvalue()
    tag = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = bytes(len(tag) >> shift & 127 for shift in (21, 14, 7, 0))
    content = b"ID3\3\0\0" + size + tag + song.getvalue()
    with av.open(io.BytesIO(content)) as file:
        assert file.streams.video
    assert "no video" in refusal(lambda: decoded(content))
    assert load_audio(content, max_seconds=9).seconds == pytest.approx(1, abs=0.2)


def test_pictures_are_no_video(refusal):
    file = io.BytesIO()
    PIL.Image.new("RGB", (32, 32)).save(file, "JPEG")
    refusal(lambda: decoded(file.getvalue()))


def test_arrays_are_sampled_as_files_are(write_clip):
    frames = np.arange(20, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    track = Waveform(np.zeros(100, np.float32), 8000)
    clip = load_video(frames, 10.0, track, frames=4, max_seconds=2)
    assert greys(clip) == [2, 7, 12, 17]
    assert clip.times.tolist() == [0.2, 0.7, 1.2, 1.7]
    assert (clip.duration, clip.sound) == (2.0, track)
    assert load_video(frames, 10.0, track, frames=4, max_seconds=2, sound=False).sound is None
    assert greys(load_video(frames[:2], 10.0, frames=5, max_seconds=2)) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("array", "rate"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), 10),
        (np.zeros((8, 8, 3), np.uint8), 10),
        (np.zeros((4, 3, 8, 8), np.uint8), 10),
        (np.zeros((0, 8, 8, 3), np.uint8), 10),
        (np.zeros((4, 8, 8, 3), np.uint8), None),
        (np.zeros((4, 8, 8, 3), np.uint8), 0),
        (np.zeros((4, 8, 8, 3), np.uint8), float("nan")),
        (np.zeros((30, 8, 8, 3), np.uint8), 1),
    ],
)
def test_arrays_of_another_kind_are_refused(array, rate, refusal):
    assert refusal(lambda: load_video(array, rate, frames=2, max_seconds=20)).startswith("array: ")


def test_frame_rate_of_a_file_cannot_be_given(write_clip, refusal):
    refusal(lambda: decoded(write_clip([0]), frame_rate=10.0))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    container=st.sampled_from(["mp4", "matroska"]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
    end=st.floats(0.3, 1),
)
def test_damaged_files_decode_or_are_refused(write_clip, container, changes, end):
    file = write_clip([10, 60, 200] * 3, container=container, sounds=(np.zeros(4000),))
    damaged = bytearray(file[: int(end * len(file))])
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    told = ""
    try:
        assert decoded(bytes(damaged)).frames.dtype == np.uint8
    except MediaError as error:
        told = str(error)
    assert "\n" not in told
