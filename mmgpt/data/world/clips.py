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
    empty = Image.new("RGB", (SIZE, SIZE), make_ground(rng))
    frames = [empty.copy() for _ in tracks[0].offsets]
    for track in tracks:
        paint, cover = make_paint(rng, track.thing.kind.colour), _cover(track.thing)
        for frame, offset in zip(frames, track.offsets, strict=True):
            frame.paste(paint, (0, offset) if axis else (offset, 0), cover)
    return np.stack([np.asarray(frame) for frame in frames])


def _cover(thing: Thing) -> Image.Image:
    """How much of each pixel the thing covers where it stands, 0..255."""
    side = SIZE * SUPERSAMPLING
    mask = Image.new("L", (side, side))
    draw_outline(ImageDraw.Draw(mask), thing, 255)
    return mask.reduce(SUPERSAMPLING)
