"""A few held-out samples of the world as ordinary files, to try a trained model on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmgpt.content import Audio, Image, Text, Video
from mmgpt.data.world.make import world_sample
from mmgpt.media.write import write_audio, write_image, write_video

TASKS = ("caption", "transcribe", "describe")


@dataclass(frozen=True)
class ExampleFile:
    """A file, the request that goes with it, and what is true of it."""

    path: Path
    request: str
    truth: str


def write_examples(folder: Path, seed: int = 0) -> dict[str, ExampleFile]:
    """A picture, an utterance and a clip as FOLDER/caption.png, transcribe.wav and describe.mp4, by task."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for task in TASKS:
        sample = world_sample(0, "test", seed, task=task)
        request = ""
        path = folder / task
        for part in sample.prompt[-1].parts:
            if isinstance(part, Text):
                request = part.text
            elif isinstance(part, Image) and isinstance(part.source, np.ndarray):
                path = path.with_suffix(".png")
                write_image(path, part.source)
            elif isinstance(part, Audio):
                path = path.with_suffix(".wav")
                write_audio(path, part.load())
            elif isinstance(part, Video) and isinstance(part.source, np.ndarray):
                path = path.with_suffix(".mp4")
                write_video(path, part.source, part.frame_rate or 1.0, part.sound.load() if part.sound else None)
        written[task] = ExampleFile(path, request, sample.references[0])
    return written
