"""Videos: a file, bytes or an array -> a few frames, evenly spaced in time, and the sound track, with PyAV.

A file is read twice. The first pass decodes the sound but only reads the times of the pictures, and from them
chooses which to keep; the second decodes no more than the groups of pictures that hold those. A long clip thus
costs the memory of the kept frames, and a clip of any frame rate, even or not, is sampled by its clock.
"""

import os
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av import VideoFrame, VideoStream
from av.container import InputContainer
from av.stream import Disposition

from mmgpt.errors import MediaError
from mmgpt.media.audio import SoundTrack, Waveform
from mmgpt.media.container import MAX_FRAME_PIXELS, container, packets
from mmgpt.media.source import name_of
from mmgpt.stored import Stored

MAX_SIDE = 1280  # pixels; larger frames are scaled down while decoding, their shape kept
MAX_RATIO = 4  # of the sides of a pixel; DVDs and anamorphic lenses have less than 3, and more is taken for an error
MAX_FRAMES = 250_000  # in a clip: over an hour at 60 a second; bounds the time that a made-up file can cost
MAX_FRAME_RATE = 240  # a second of the longest clip that is allowed, for the same reason; as phones do in slow motion


@dataclass(frozen=True, eq=False)
class Clip:
    """A decoded video.

    frames: uint8 (time, height, width, 3), RGB, upright, of square pixels. times: seconds of each frame from the first
    picture of the clip, float64 (time,). duration: seconds of the pictures. sound: begins with the pictures, or None.
    """

    frames: np.ndarray
    times: np.ndarray
    duration: float
    sound: Waveform | None


def load_video(
    source: "str | os.PathLike[str] | bytes | Stored | np.ndarray",
    frame_rate: float | None = None,
    track: Waveform | None = None,
    *,
    frames: int,
    max_seconds: float,
    sound: bool = True,
    max_pixels: int = MAX_FRAME_PIXELS,
) -> Clip:
    """Decodes `frames` frames: those on show at the middles of as many equal parts of the clip.

    A clip of fewer pictures repeats some. Of several video streams the best is taken (by FFmpeg: one marked default,
    then that of the highest bit rate), of several sound tracks the first. Frames over MAX_SIDE are scaled down, and
    pixels that are not square are made so.

    Args:
        source: A path or the bytes of a file, or an array (time, height, width, 3) of uint8.
        frame_rate: Frames a second of an array; a file has its own clock.
        track: The sound of an array, or of a file in place of its own.
        frames: How many frames to return.
        max_seconds: A longer clip is refused, not cut.
        sound: Return the sound track too; a clip without one has sound None.
        max_pixels: A clip with larger frames is refused from its header, before one is decoded.

    Raises:
        MediaError: It is missing, damaged, empty, too long or too large, or has no pictures.
    """
    name = name_of(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, frame_rate, track if sound else None, frames, max_seconds, max_pixels)
    if frame_rate is not None:
        raise MediaError(f"{name}: a file has its own clock; give frame_rate with arrays only")
    with container(source, "a video") as file:
        video = _video_stream(file, name)
        _check_size(name, video.width, video.height, max_pixels)
        index = _read_index(file, video, name, max_seconds, sound and track is None)
    chosen = index.evenly_spaced(frames)
    with container(source, "a video") as file:
        pictures = _decode(file, name, index, chosen, max_pixels)
    first = index.times[0]
    return Clip(
        frames=np.stack([pictures[time] for time in chosen]),
        times=np.array([float((time - first) * index.unit) for time in chosen]),
        duration=float((index.end - first) * index.unit),
        sound=(track or index.sound) if sound else None,
    )


def _from_array(
    array: np.ndarray,
    frame_rate: float | None,
    track: Waveform | None,
    frames: int,
    max_seconds: float,
    max_pixels: int,
) -> Clip:
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise MediaError(
            f"array: a video is uint8 (time, height, width, 3) in 0..255, not {array.dtype} {array.shape}; convert it"
        )
    if frame_rate is None or not 0 < frame_rate < float("inf"):
        raise MediaError(f"array: a video needs its frames a second, not {frame_rate}; give frame_rate=")
    count, height, width, _ = array.shape
    _check_size("array", width, height, max_pixels)
    if count / frame_rate > max_seconds:
        raise MediaError(f"array: the video is longer than {max_seconds:g} seconds; cut it into pieces")
    chosen = [(2 * part + 1) * count // (2 * frames) for part in range(frames)]
    return Clip(array[chosen], np.array(chosen) / frame_rate, count / frame_rate, track)


@dataclass
class _Index:
    """What the first pass learns: when pictures are shown, and where decoding can start."""

    unit: Fraction  # seconds
    times: list[int]  # of the pictures, ascending, in units
    end: int  # of the last picture
    keys: list[tuple[int, int]]  # (time, number of the packet) of the key frames, ascending
    sound: Waveform | None

    def evenly_spaced(self, frames: int) -> list[int]:
        """The times of the pictures on show at the middles of equal parts of the clip."""
        first, length = self.times[0], self.end - self.times[0]
        moments = [first + (2 * part + 1) * length // (2 * frames) for part in range(frames)]
        return [self.times[bisect_right(self.times, moment) - 1] for moment in moments]

    def start_for(self, time: int) -> int:
        """The packet from which the picture of this time can be decoded."""
        before = bisect_right(self.keys, (time, MAX_FRAMES)) - 1
        return self.keys[before][1] if before >= 0 else 0


def _video_stream(file: InputContainer, name: str) -> VideoStream:
    streams = [s for s in file.streams.video if not s.disposition & Disposition.attached_pic]  # not the cover of a song
    if not streams:
        raise MediaError(f"{name}: has no video; give a file with moving pictures")
    best = file.streams.best("video")
    return next((stream for stream in streams if stream is best), streams[0])


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise MediaError(f"{name}: frames of {width} x {height} are over {max_pixels:,} pixels; scale the video down")


def _read_index(file: InputContainer, video: VideoStream, name: str, max_seconds: float, sound: bool) -> _Index:
    """The first pass: reads all packets, decodes the sound but no picture."""
    most = min(MAX_FRAMES, int(max_seconds * MAX_FRAME_RATE))
    tracks = file.streams.audio[:1] if sound else ()
    heard = SoundTrack(name, max_seconds)
    unit = video.time_base or Fraction(0)
    times: list[int] = []
    keys: list[tuple[int, int]] = []
    first = end = number = 0
    for packet in packets(file, name, video, *tracks):
        if packet.stream is not video:
            heard.decode(packet)
            continue
        if packet.size == 0:
            continue
        time = packet.dts if packet.pts is None else packet.pts
        if time is None or not unit:
            raise MediaError(f"{name}: the video has no timestamps; save it as mp4")
        if packet.is_keyframe:
            keys.append((time, number))
        number += 1
        if packet.is_discard:  # needed to decode others, but not to be shown
            continue
        after = time + (packet.duration or 0)
        first, end = (min(first, time), max(end, after)) if times else (time, after)
        times.append(time)
        if (end - first) * unit > max_seconds:
            raise MediaError(f"{name}: the video is longer than {max_seconds:g} seconds; cut it into pieces")
        if number > most:
            raise MediaError(f"{name}: the video has over {most:,} pictures; cut it into pieces")
    keys.sort()
    times = sorted(time for time in times if not keys or time >= keys[0][0])  # nothing before a key frame decodes
    if not times:
        raise MediaError(f"{name}: the video has no pictures; remove it or fetch it again")
    if end <= times[-1]:  # the last has no duration: take the mean of the others
        end = times[-1] + (times[-1] - times[0]) // max(1, len(times) - 1)
    track = heard.waveform() if heard.sample_rate else None
    if track is not None and heard.start is not None:
        track = _aligned(track, heard.start - float(times[0] * unit), float((end - times[0]) * unit))
    return _Index(unit, times, end, keys, track)


def _aligned(track: Waveform, start: float, seconds: float) -> Waveform:
    """`track`, which starts at the second `start` of a clip of some `seconds`, made to start with the clip."""
    late = round(start * track.sample_rate)
    if start >= seconds or -late >= len(track.samples):  # clocks that do not even overlap cannot be compared
        return track
    silence = np.zeros(max(0, late), np.float32)
    return Waveform(np.concatenate([silence, track.samples[max(0, -late) :]]), track.sample_rate)


def _decode(
    file: InputContainer, name: str, index: _Index, chosen: list[int], max_pixels: int
) -> dict[int, np.ndarray]:
    """The second pass: the pictures of the chosen times.

    Packets are passed over up to the key frame from which the next chosen picture can be decoded; there is no
    seeking, which many formats do inexactly.
    """
    video = _video_stream(file, name)
    ratio = video.sample_aspect_ratio or Fraction(1)
    wanted = sorted(set(chosen))
    pictures: dict[int, np.ndarray] = {}
    latest: VideoFrame | None = None
    size: tuple[int, int] | None = None
    number, decoding = -1, False
    for packet in packets(file, name, video):
        if packet.size:
            number += 1
            if not decoding and number < index.start_for(wanted[0]):
                continue
            if not decoding:
                video.codec_context.flush_buffers()
                decoding = True
        for frame in packet.decode():
            _check_size(name, frame.width, frame.height, max_pixels)  # which may change within a clip
            latest, size = frame, size or _size(frame, ratio)
            time = frame.dts if frame.pts is None else frame.pts
            while wanted and time is not None and time >= wanted[0]:
                pictures[wanted.pop(0)] = _upright_rgb(frame, size, name)
        if not wanted:
            return pictures
        decoding = decoding and index.start_for(wanted[0]) <= number
    if latest is None or size is None:
        raise MediaError(f"{name}: no picture of the video can be decoded; replace it")
    # The last packets hold no picture of their own, but say "as before".
    return pictures | dict.fromkeys(wanted, _upright_rgb(latest, size, name))


def _size(frame: VideoFrame, ratio: Fraction) -> tuple[int, int]:
    """Width and height in square pixels, within MAX_SIDE, for all frames of a clip even if it changes its size.

    `ratio` is the width of a stored pixel to its height; the shorter of its sides is stretched, so nothing is lost.
    """
    stretch = float(ratio) if 1 / MAX_RATIO <= ratio <= MAX_RATIO else 1.0
    width, height = frame.width * max(1.0, stretch), frame.height * max(1.0, 1 / stretch)
    scale = min(1.0, MAX_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _upright_rgb(frame: VideoFrame, size: tuple[int, int], name: str) -> np.ndarray:
    """(height, width, 3), scaled to `size`, then turned and mirrored as the display matrix of the file says."""
    if frame.is_corrupt:
        raise MediaError(f"{name}: the video is damaged at {frame.time or 0:g} s; replace it")
    pixels = frame.reformat(*size, "rgb24", interpolation="AREA", threads=1).to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # 3 x 3, fixed-point, applied as (x, y, 1) @ matrix: quarter turns and mirrorings are made, other angles are not.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
