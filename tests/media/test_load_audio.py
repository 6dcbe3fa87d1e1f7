import io
import struct
import subprocess
import sys
import tracemalloc

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt import MediaError
from mmgpt.media import load_audio

RAMP = np.linspace(-0.9, 0.9, 50)
PCM, FLOAT, MULAW, EXTENSIBLE = 1, 3, 7, 0xFFFE


def decoded(source, max_seconds=10.0):
    return load_audio(source, max_seconds=max_seconds)


def packed(samples: np.ndarray, bits: int) -> bytes:
    """Integers of 8 (unsigned), 16, 24 or 32 bits, little-endian, as WAV has them."""
    numbers = np.round(samples * 2 ** (bits - 1)).astype(np.int64)
    if bits == 8:
        return (numbers + 128).astype(np.uint8).tobytes()
    return b"".join(int(number).to_bytes(bits // 8, "little", signed=True) for number in numbers)


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_integer_samples_are_scaled_to_one(bits, write_wav):
    sound = decoded(write_wav(packed(RAMP, bits), 8000, 1, bits))
    assert sound.sample_rate == 8000
    assert sound.samples.dtype == np.float32
    assert np.allclose(sound.samples, RAMP, atol=2.0**-bits + 1e-7)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_float_samples_are_kept(kind, write_wav):
    samples = (RAMP * 1.5).astype(kind)  # beyond 1, as a float file may be
    sound = decoded(write_wav(samples.tobytes(), 44_100, 1, samples.itemsize * 8, FLOAT))
    assert np.array_equal(sound.samples, samples.astype(np.float32))


def test_mulaw_samples(write_wav):
    code = np.arange(256)  # ITU-T G.711: sign, 3 bits of segment, 4 bits of step, all inverted
    segment, step = (~code >> 4) & 7, ~code & 15
    expected = np.where(code < 128, -1, 1) * (((2 * step + 33) << segment) - 33) * 4 / 32768
    sound = decoded(write_wav(code.astype(np.uint8).tobytes(), 8000, 1, 8, MULAW))
    assert np.allclose(sound.samples, expected, atol=1e-6)


@pytest.mark.parametrize("channels", [2, 3, 6, 16])
def test_channels_are_averaged(channels, write_wav):
    samples = np.random.default_rng(0).uniform(-1, 1, (40, channels)).astype(np.float32)
    sound = decoded(write_wav(samples.tobytes(), 16_000, channels, 32, FLOAT))
    assert np.allclose(sound.samples, samples.mean(1), atol=1e-6)


def test_opposite_full_scale_channels_neither_clip_nor_wrap(write_wav):
    samples = np.tile([32767, 32767, -32768, -32768], 10).astype("<i2")
    sound = decoded(write_wav(samples.tobytes(), 8000, 2, 16))
    assert np.allclose(sound.samples[:2], [1, -1], atol=1e-4)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 10_000])
def test_header_that_claims_too_much_is_not_believed(size, write_wav):
    assert len(decoded(write_wav(packed(RAMP, 16), 8000, 1, 16, size=size)).samples) == len(RAMP)


def test_unknown_chunks_are_passed_over(write_wav):
    notes = b"LIST" + struct.pack("<I", 5) + b"INFOx\0" + b"junk" + struct.pack("<I", 0)
    sound = decoded(write_wav(packed(RAMP, 16), 8000, 1, 16, before=notes) + b"id3 " + struct.pack("<I", 3) + b"abc\0")
    assert len(sound.samples) == len(RAMP)


def test_extensible_header():
    head = struct.pack("<HHIIHHHHI", EXTENSIBLE, 1, 8000, 24_000, 3, 24, 22, 24, 4)
    head += struct.pack("<H", PCM) + bytes.fromhex("000000001000800000AA00389B71")
    payload = packed(RAMP, 24)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(payload)) + payload
    sound = decoded(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert np.allclose(sound.samples, RAMP, atol=1e-6)


def test_wav_of_no_samples_is_refused(write_wav, save, refusal):
    assert "silent.wav" in refusal(lambda: decoded(save("silent.wav", write_wav(b"", 8000, 2, 16))))
    refusal(lambda: decoded(write_wav(b"", 8000, 2, 16)[:20]))


def test_exactly_the_longest_is_taken_and_one_sample_more_is_refused(write_wav, refusal):
    assert decoded(write_wav(bytes(16_000), 8000, 1, 16), max_seconds=1.0).seconds == 1.0
    assert "longer than 1 seconds" in refusal(lambda: decoded(write_wav(bytes(16_002), 8000, 1, 16), max_seconds=1.0))


@pytest.mark.filterwarnings("error")
def test_not_finite_sounds_are_refused(write_wav, refusal):
    for bad in (np.nan, np.inf):
        samples = np.array([0, bad, 0], np.float32)
        assert "finite" in refusal(lambda s=samples: decoded(write_wav(s.tobytes(), 8000, 1, 32, FLOAT)))
        assert "finite" in refusal(lambda s=samples: load_audio(s, 8000, max_seconds=1))
    both = np.array([[np.inf, -np.inf]] * 3, np.float32)
    assert "finite" in refusal(lambda: decoded(write_wav(both.tobytes(), 8000, 2, 32, FLOAT)))
    assert "finite" in refusal(lambda: load_audio(np.array([1e300]), 8000, max_seconds=1))


def encoded(container: str, codec: str, seconds: float, rate: int = 16_000) -> bytes:
    """A tone of 440 Hz."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        track = out.add_stream(codec, rate=rate, layout="stereo")
        wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]).astype(np.float32), "fltp", "stereo")
        frame.sample_rate = rate
        resampler = av.AudioResampler(track.format, "stereo", rate, track.codec_context.frame_size or None)
        for part in resampler.resample(frame) + resampler.resample(None):
            out.mux(track.encode(part))
        out.mux(track.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(
    ("container", "codec"),
    [("flac", "flac"), ("mp4", "aac"), ("mp3", "libmp3lame"), ("ogg", "libopus"), ("matroska", "libopus")],
)
def test_compressed_sounds_keep_pitch_rate_and_length(container, codec):
    sound = decoded(encoded(container, codec, 1.0, 48_000))
    assert sound.sample_rate == 48_000
    assert sound.seconds == pytest.approx(1.0, abs=0.06)
    middle = sound.samples[12_000:36_000]
    assert np.abs(np.fft.rfft(middle)).argmax() * 2 == 440  # bins of 2 Hz
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.05)


def test_small_file_of_a_long_sound_is_refused_in_little_memory(refusal):
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as out:
        track = out.add_stream("flac", rate=48_000, layout="mono")
        for _ in range(600):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), "s16", "mono")
            frame.sample_rate = 48_000
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    assert len(file.getvalue()) < 200_000  # 600 seconds
    tracemalloc.start()
    refusal(lambda: decoded(file.getvalue(), max_seconds=5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6  # 5 seconds take 1 MB; all of it would be 115 MB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tag_that_claims_gigabytes_costs_little_memory(write_wav, save):
    tags = b"LIST" + struct.pack("<I", 0x80000000) + b"INFOINAM" + struct.pack("<I", 0x7F000000) + b"name"
    path = save("tag.wav", write_wav(packed(RAMP, 16), 8000, 1, 16, before=tags))
    script = f"""
from pathlib import Path
from mmgpt import MediaError
from mmgpt.media import load_audio
try:
    load_audio({str(path)!r}, max_seconds=9)
except MediaError:
    pass
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(printed) < 1_000_000  # kB at the peak


def test_first_of_several_tracks(write_clip):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    sound = decoded(write_clip([0] * 25, sounds=(tone, np.zeros(16_000))))
    assert sound.sample_rate == 16_000
    assert sound.samples.std() > 0.3


def test_files_without_sound_are_refused(write_clip, refusal):
    assert "no sound" in refusal(lambda: decoded(write_clip([0, 0])))


# Texts that would make FFmpeg open another file or address.
PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{path}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile {path}\n",
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
    "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet>'
    '<Representation id="0" bandwidth="9"><BaseURL>{path}</BaseURL></Representation></AdaptationSet></Period></MPD>',
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_are_not_followed(name, write_wav, save, refusal):
    path = save("other.wav", write_wav(packed(RAMP, 16), 8000, 1, 16))
    content = PLAYLISTS[name].format(path=path).encode()
    refusal(lambda: decoded(save(name, content)))
    refusal(lambda: decoded(content))


def test_name_of_a_file_is_not_taken_for_a_pattern_or_a_format(write_wav, save):
    content = write_wav(packed(RAMP, 16), 8000, 1, 16)
    for name in ("%03d.png", "list.m3u8", "a.mp3", "concat:a|b.wav"):
        assert len(decoded(save(name, content)).samples) == len(RAMP)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_arrays_are_taken_as_they_are(kind):
    sound = load_audio(RAMP.astype(kind), 22_050, max_seconds=1)
    assert np.array_equal(sound.samples, RAMP.astype(np.float32))
    assert sound.seconds == len(RAMP) / 22_050


@pytest.mark.parametrize(
    ("array", "rate"),
    [
        (np.zeros(10, np.int16), 8000),
        (np.zeros((2, 10)), 8000),
        (np.zeros(0), 8000),
        (np.zeros(10), None),
        (np.zeros(10), 0),
        (np.zeros(8001), 8000),
        (np.zeros(10, complex), 8000),
    ],
)
def test_arrays_of_another_kind_are_refused(array, rate, refusal):
    assert refusal(lambda: load_audio(array, rate, max_seconds=1)).startswith("array: ")


def test_rate_of_a_file_cannot_be_given(write_wav, refusal):
    refusal(lambda: load_audio(write_wav(bytes(100), 8000, 1, 16), 16_000, max_seconds=1))


SOUNDS = [
    encoded(*kind, 0.2) for kind in [("wav", "pcm_s16le"), ("flac", "flac"), ("mp4", "aac"), ("mp3", "libmp3lame")]
]


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    file=st.sampled_from(SOUNDS),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
    end=st.floats(0.05, 1),
)
def test_damaged_files_decode_or_are_refused(file, changes, end):
    damaged = bytearray(file[: int(end * len(file))])
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    told = ""
    try:
        assert np.isfinite(decoded(bytes(damaged)).samples).all()
    except MediaError as error:
        told = str(error)
    assert "\n" not in told
