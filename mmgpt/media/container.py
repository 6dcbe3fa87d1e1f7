"""Sound and video files opened by FFmpeg (PyAV): known formats, one thread, and nothing but the given bytes."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import av
import av._core
from av import Packet
from av.container import InputContainer
from av.stream import Stream

from mmgpt.errors import MediaError
from mmgpt.media.source import name_of, opened, told_as_media_error
from mmgpt.stored import Stored

# Demuxers that read one self-contained file. Playlists (hls, dash, concat, sdp), numbered pictures (image2) and
# devices are not among them: they would open other files and addresses. Nor are bare streams without timestamps.
VIDEO_FORMATS = "mov,mp4,matroska,webm,avi,asf,flv,mpegts,mpeg,mxf,ogg,ivf,gif,apng,rm,dv,nut"
AUDIO_FORMATS = (
    "wav,w64,aiff,au,caf,flac,mp3,aac,wv,ape,tta,tak,mpc,mpc8,amr,ac3,eac3,dts,truehd,voc,qcp,loas,qoa,dsf,"
    "nistsphere,shn,ircam,xwma,oma"
)
MAX_FRAME_PIXELS = 8192 * 4352  # of one video frame (8K); larger ones are refused by the decoder before it allocates
MAX_FRAME_SAMPLES = 1 << 22  # of one frame of sound; a header may claim any number

MAX_ALLOCATION = 1 << 28  # bytes at once; a damaged tag of a small file may ask for 2 GB

LIMITS = {"max_pixels": str(MAX_FRAME_PIXELS), "max_samples": str(MAX_FRAME_SAMPLES), "threads": "1"}
ONLY_THIS_FILE = {"format_whitelist": f"{VIDEO_FORMATS},{AUDIO_FORMATS}", "protocol_whitelist": "none"}

# A setting of the FFmpeg that PyAV carries, which PyAV itself does not offer.
with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(av._core.__file__).av_max_alloc(ctypes.c_size_t(MAX_ALLOCATION))


@contextmanager
def container(source: str | os.PathLike[str] | bytes | Stored, kind: str) -> Iterator[InputContainer]:
    """Opens a path or bytes for decoding; whatever fails inside becomes a MediaError that says it is no `kind`."""
    name = name_of(source)
    with opened(source) as file, told_as_media_error(name, kind):
        try:
            opening = av.open(_Anonymous(file), "r", options=LIMITS, container_options=ONLY_THIS_FILE)
        except av.FFmpegError as error:
            raise MediaError(f"{name}: is damaged or not {kind} in a known format; save it as mp4 or wav") from error
        with opening as found:
            yield found


class _Anonymous:
    """A file without its name, lest FFmpeg take the format from the name instead of the content."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def packets(file: InputContainer, name: str, *streams: Stream) -> Iterator[Packet]:
    """The packets of some streams, whose decoders are limited; at the end an empty one that drains each decoder."""
    for stream in streams:
        if stream.codec_context is None:
            raise MediaError(f"{name}: unknown codec in stream {stream.index}; save it with H.264, AAC, Opus or PCM")
        stream.codec_context.options = LIMITS
    for packet in file.demux(*streams):
        if packet.size or packet.dts is None:  # an empty packet with a time is a gap; decoded, it would end the stream
            yield packet
