"""What a conversation is made of: Text, Image, Audio and Video parts in Messages. The only format inside mmgpt."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from mmgpt.stored import Stored

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

    from mmgpt.media import Clip, Waveform

Role = Literal["system", "user", "assistant"]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Text:
    """A piece of text."""

    text: str


@dataclass(frozen=True, eq=False)
class Image:
    """A picture: a path, the bytes of a file, Stored ones, a PIL image, or an array (height, width, 3) of uint8."""

    source: "str | Path | bytes | Stored | PIL.Image.Image | np.ndarray"

    def load(self, max_pixels: int = 100_000_000) -> "PIL.Image.Image":
        """The decoded picture, upright, RGB. Raises MediaError."""
        from mmgpt.media import load_image

        return load_image(self.source, max_pixels=max_pixels)


@dataclass(frozen=True, eq=False)
class Audio:
    """A sound: a path, the bytes of a file, Stored ones, or a float array (samples,) in -1..1 with its rate in Hz."""

    source: "str | Path | bytes | Stored | np.ndarray"
    sample_rate: int | None = None

    def load(self, max_seconds: float = 600.0) -> "Waveform":
        """The decoded sound, mixed down to one channel. Raises MediaError."""
        from mmgpt.media import load_audio

        return load_audio(self.source, self.sample_rate, max_seconds=max_seconds)


@dataclass(frozen=True, eq=False)
class Video:
    """A video: a path, the bytes of a file, Stored ones, or a uint8 array (time, height, width, 3) with its frame rate.

    `sound` is the sound track that goes with an array; that of a file is read from the file.
    """

    source: "str | Path | bytes | Stored | np.ndarray"
    frame_rate: float | None = None
    sound: Audio | None = None

    def load(
        self, frames: int = 8, max_seconds: float = 600.0, sound: bool = True, max_pixels: int = 100_000_000
    ) -> "Clip":
        """`frames` evenly spaced frames and, if `sound`, the sound track. Raises MediaError."""
        from mmgpt.media import load_video

        track = self.sound.load(max_seconds) if self.sound is not None and sound else None
        return load_video(
            self.source,
            self.frame_rate,
            track,
            frames=frames,
            max_seconds=max_seconds,
            sound=sound,
            max_pixels=max_pixels,
        )


Medium: TypeAlias = Image | Audio | Video
MODALITIES: dict[type, str] = {Image: "image", Audio: "audio", Video: "video"}
Part: TypeAlias = Text | Medium
Content: TypeAlias = str | tuple[Part, ...]
"""What is said: a text, or texts and media in any order."""


def text_of(content: Content) -> str:
    """Its text alone; of the media that stand between texts, spaces are left."""
    if isinstance(content, str):
        return content
    return " ".join(part.text.strip() for part in content if isinstance(part, Text))


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: who speaks, and the parts in order."""

    role: Role
    parts: tuple[Part, ...]

    @staticmethod
    def of(role: Role, *parts: Part | str) -> "Message":
        """A message from parts; a plain string is Text."""
        return Message(role, tuple(Text(part) if isinstance(part, str) else part for part in parts))
