"""Pictures: coloured shapes on a dark ground, placed apart from each other, drawn with Pillow."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw

SIZE = 48  # pixels a side
SUPERSAMPLING = 3
TILT = pi / 18  # radians at most
GAP = 3  # pixels at least between two shapes
STAGGER = 4  # pixels at least between the centres of two shapes from left to right, so that their order is plain
RADII = (8.0, 11.0)
CROWD, CROWDED = 2, 0.7  # more things than this are drawn smaller, by this factor, or they would not fit

COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 175, 60),
    "blue": (55, 90, 235),
    "yellow": (240, 215, 40),
    "purple": (170, 60, 205),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")


class Kind(NamedTuple):
    """What a shape is called by."""

    colour: str
    shape: str


# Kinds never seen, heard of or written about in training: each shape once, four of the six colours once.
NEW = (
    Kind("red", "cross"),
    Kind("green", "triangle"),
    Kind("blue", "circle"),
    Kind("yellow", "square"),
)
SEEN = tuple(kind for colour in COLOURS for shape in SHAPES if (kind := Kind(colour, shape)) not in NEW)


@dataclass(frozen=True)
class Thing:
    """A shape in a picture: centre and radius in pixels, angle in radians."""

    kind: Kind
    x: float
    y: float
    radius: float
    angle: float


T = TypeVar("T")


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of the items, each as likely as the other."""
    return items[int(rng.integers(len(items)))]


def draw_kinds(rng: np.random.Generator, count: int, new: bool) -> list[Kind]:
    """So many kinds, independent of each other, all seen in training save the first one if `new`."""
    return [pick(rng, NEW if new and not i else SEEN) for i in range(count)]


def make_thing(rng: np.random.Generator, kind: Kind, half: int | None = None, scale: float = 1.0) -> Thing:
    """A thing of random size and place, wholly in the picture; in the upper (0) or lower (1) half if one is given."""
    size, across, down, turn = rng.random(4).tolist()  # in one call: most things are drawn to find no room
    radius = scale * (RADII[0] + size * (RADII[1] - RADII[0]))
    low, high = radius + 1, SIZE - radius - 1
    top, bottom = low, high
    if half is not None:  # clearly above or below the middle
        top, bottom = ((low, SIZE / 2 - radius), (SIZE / 2 + radius, high))[half]
    x, y = low + across * (high - low), top + down * (bottom - top)
    return Thing(kind, x, y, radius, (2 * turn - 1) * TILT)


def place(rng: np.random.Generator, kinds: Sequence[Kind]) -> list[Thing]:
    """Things of these kinds, apart from each other, sorted from left to right."""
    things: list[Thing] = []
    attempts = 0
    scale = 1.0 if len(kinds) <= CROWD else CROWDED
    while len(things) < len(kinds):
        thing = make_thing(rng, kinds[len(things)], scale=scale)
        if all(_apart(thing, other) for other in things):
            things.append(thing)
        attempts += 1
        if attempts % 30 == 0:  # stuck: begin again
            things = []
    return sorted(things, key=lambda thing: thing.x)


def _apart(a: Thing, b: Thing) -> bool:
    distance = ((a.x - b.x) ** 2 + (a.y - b.y) ** 2) ** 0.5
    return distance > a.radius + b.radius + GAP and abs(a.x - b.x) > STAGGER


def make_ground(rng: np.random.Generator) -> tuple[int, ...]:
    """A dark, nearly grey colour."""
    grey = rng.integers(15, 60)
    return tuple((grey + rng.integers(-6, 7, 3)).tolist())


def make_paint(rng: np.random.Generator, colour: str) -> tuple[int, ...]:
    """A shade of the colour."""
    shade = rng.integers(-15, 16, 3).tolist()
    return tuple(min(max(value + change, 0), 255) for value, change in zip(COLOURS[colour], shade, strict=True))


def render(rng: np.random.Generator, things: Sequence[Thing]) -> np.ndarray:
    """The picture of the things: uint8 (height, width, 3)."""
    side = SIZE * SUPERSAMPLING
    picture = Image.new("RGB", (side, side), make_ground(rng))
    draw = ImageDraw.Draw(picture)
    for thing in things:
        draw_outline(draw, thing, make_paint(rng, thing.kind.colour))
    return np.asarray(picture.reduce(SUPERSAMPLING))


def draw_outline(draw: ImageDraw.ImageDraw, thing: Thing, fill: tuple[int, ...] | int) -> None:
    """Fills the thing's outline, SUPERSAMPLING times as large."""
    x, y, radius = thing.x * SUPERSAMPLING, thing.y * SUPERSAMPLING, thing.radius * SUPERSAMPLING
    if thing.kind.shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        return
    draw.polygon(
        [
            (x + radius * r * cos(thing.angle + turn), y + radius * r * sin(thing.angle + turn))
            for r, turn in OUTLINES[thing.kind.shape]
        ],
        fill=fill,
    )


def _cross() -> list[tuple[float, float]]:
    """Twelve corners of a plus sign whose arms are 0.6 of the radius wide."""
    long, short = 0.95, 0.3
    arm = [(long, -short), (long, short), (short, short)]
    corners = []
    for _ in range(4):
        corners += arm
        arm = [(-y, x) for x, y in arm]
    return [(float(np.hypot(x, y)), float(np.arctan2(y, x))) for x, y in corners]


# Corners as (distance from the centre in radii, direction), the first one pointing up where there is a top.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(1.0, pi / 4 + i * pi / 2) for i in range(4)],
    "triangle": [(1.0, -pi / 2 + i * 2 * pi / 3) for i in range(3)],
    "cross": _cross(),
}
