"""Eyes and ears for the demo world: what pictures, clips and sounds show, read back from pixels and samples alone."""

from collections import deque
from typing import NamedTuple

import numpy as np

from mmgpt.data.world.scenes import COLOURS
from mmgpt.data.world.sounds import HIGH, LOW, RATE

PALETTE = np.array(list(COLOURS.values()))


class Blob(NamedTuple):
    """A connected patch of a picture: its colour's name, and its centre in pixels."""

    colour: str
    x: float
    y: float


def ground(picture: np.ndarray) -> np.ndarray:
    """The most frequent colour: (3,)."""
    pixels = picture.reshape(-1, 3).astype(int)
    _, first, counts = np.unique(pixels @ (1 << 16, 1 << 8, 1), return_index=True, return_counts=True)
    return pixels[first[counts.argmax()]]


def see(picture: np.ndarray) -> list[Blob]:
    """The patches that differ from the ground, from left to right."""
    contrast = np.abs(picture.astype(int) - ground(picture)).sum(2)
    left = {(int(y), int(x)) for y, x in np.argwhere(contrast > 40)}
    blobs = []
    while left:
        patch, queue = [], deque([left.pop()])
        while queue:
            y, x = queue.popleft()
            patch.append((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            queue.extend(near)
        rows, columns = np.array(patch).T
        blobs.append(Blob(colour_of(picture[rows, columns]), float(columns.mean()), float(rows.mean())))
    return sorted(blobs, key=lambda blob: blob.x)


def colour_of(pixels: np.ndarray) -> str:
    return list(COLOURS)[int(np.abs(PALETTE - np.median(pixels, axis=0)).sum(1).argmin())]


def places(clip: np.ndarray, axis: int, colour: str | None = None) -> np.ndarray:
    """Where along the axis the only thing, or the only one of a colour, is in each frame: pixels (time,)."""
    if colour is None:
        cover = np.abs(clip.astype(int) - ground(clip[0])).sum(3) > 40
    else:
        cover = np.abs(clip.astype(int) - COLOURS[colour]).max(3) <= 15
    profile = cover.sum(1 + axis)  # time, pixels along the axis
    return profile @ (np.arange(profile.shape[1]) + 0.5) / profile.sum(1)


def steps(clip: np.ndarray, axis: int, colour: str | None = None) -> np.ndarray:
    """How far it goes from each frame to the next: pixels (time - 1,)."""
    return np.diff(places(clip, axis, colour))


def active(sound: np.ndarray) -> list[tuple[int, int]]:
    """From which sample to which there is more than noise, in pieces at least 40 ms apart."""
    window = RATE // 100
    loud = np.convolve(np.abs(sound), np.ones(window) / window, "same") > 0.01
    edges = np.flatnonzero(np.diff(loud.astype(int), prepend=0, append=0)).reshape(-1, 2)
    pieces: list[tuple[int, int]] = []
    for start, end in edges.tolist():
        if pieces and start - pieces[-1][1] < 4 * window:
            start = pieces.pop()[0]
        pieces.append((start, end))
    return pieces


def hertz(sound: np.ndarray) -> float:
    """The strongest frequency."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 4 * RATE))
    return float(spectrum.argmax()) / 4


def height(sound: np.ndarray) -> str:
    """ "high" or "low"."""
    return "high" if hertz(sound) > (LOW[1] * HIGH[0]) ** 0.5 else "low"
