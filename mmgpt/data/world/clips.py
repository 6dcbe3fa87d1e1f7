"""Clips: shapes that move along one axis, or stand still.

A clip played backwards is as likely as the clip, and what was right of the one is wrong of the other: the frames in
random order tell nothing of which way a shape moves or which moves first. A single frame whose number is known may:
what stays in the picture and crosses more than half of it goes right if it is on the left in the first frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from mmgpt.data.world.scenes import (
    GAP,
    SIZE,
    SUPERSAMPLING,
    Kind,
    Thing,
    draw_outline,
    make_ground,
    make_paint,
    make_thing,
)

FRAME_RATE = 4.0
DIRECTIONS = (("left", "right"), ("up", "down"))  # by axis: towards 0, away from 0


@dataclass(frozen=True)
class Track:
    """A thing and its way: its offset from its place in pixels along the axis, one for each frame."""

    thing: Thing
    offsets: tuple[int, ...]


def place_tracks(rng: np.random.Generator, kinds: Sequence[Kind], axis: int) -> list[Thing]:
    """Things whose ways along `axis` (0: horizontal, 1: vertical) never meet, each anywhere on its way."""
    while True:
        things = [make_thing(rng, kind) for kind in kinds]
        across = sorted((thing.y if axis == 0 else thing.x, thing.radius) for thing in things)
        if all(b - a > r + s + GAP for (a, r), (b, s) in pairwise(across)):
            return things


def travel(rng: np.random.Generator, thing: Thing, axis: int, side: int, moves: Sequence[int]) -> Track:
    """The thing moves along `axis` towards `side` (0 or 1) at a steady speed wherever `moves`, one for each frame step,

    is 1. It stays in the picture and crosses more than half of the room it has there.
    """
    low, high = thing.radius + 1, SIZE - thing.radius - 1
    fastest = int((high - low) / sum(moves))  # pixels a frame
    slowest = max(fastest * 2 // 3, int((high - low) / sum(moves) / 2) + 1)
    step = int(rng.integers(slowest, fastest + 1))
    way = step * sum(moves)
    start = rng.uniform(low, high - way) + (0 if side else way)
    first = round(start - (thing.y if axis else thing.x))
    return Track(thing, tuple(int(offset) for offset in first + (step if side else -step) * np.cumsum([0, *moves])))


def stand(thing: Thing, frames: int) -> Track:
    return Track(thing, (0,) * frames)


def render_clip(rng: np.random.Generator, tracks: Sequence[Track], axis: int) -> np.ndarray:
    """The clip: uint8 (time, height, width, 3)."""
    frames = len(tracks[0].offsets)
    clip = np.empty((frames, SIZE, SIZE, 3), np.uint8)
    clip[:] = np.array(make_ground(rng), np.uint8)
    for track in tracks:
        patch, mask = _sprite(rng, track.thing)
        for frame, offset in zip(clip, track.offsets, strict=True):
            moved = np.roll(mask, offset, axis=1 - axis)
            frame[:] = frame + ((patch - frame) * moved[..., None]).astype(np.int16)
    return clip


def _sprite(rng: np.random.Generator, thing: Thing) -> tuple[np.ndarray, np.ndarray]:
    """The thing's colour as float32 (3,), and how much of each pixel it covers, 0..1 (height, width)."""
    side = SIZE * SUPERSAMPLING
    mask = Image.new("L", (side, side))
    draw_outline(ImageDraw.Draw(mask), thing, 255)
    cover = np.asarray(mask.reduce(SUPERSAMPLING), np.float32) / 255
    return np.array(make_paint(rng, thing.kind.colour), np.float32), cover
