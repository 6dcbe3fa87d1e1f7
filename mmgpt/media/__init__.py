"""Files, bytes and arrays to decoded pictures, sounds and clips. Free of torch; every failure is one MediaError."""

from mmgpt.media.audio import Waveform, load_audio
from mmgpt.media.image import load_image
from mmgpt.media.video import Clip, load_video

__all__ = ["Clip", "Waveform", "load_audio", "load_image", "load_video"]
