"""What the world asks: for each task its forms, each a function that draws a scene and puts one question about it.

Right answers are drawn first and scenes to fit them, so that every answer of a form is equally likely; where a
question needs two media, the state of each is drawn without regard to the other, so that neither alone helps.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mmgpt.content import Audio, Image, Part, Video
from mmgpt.data.world import sounds
from mmgpt.data.world.clips import DIRECTIONS, FRAME_RATE, Track, place_tracks, render_clip, stand, travel
from mmgpt.data.world.language import NUMBERS, captions, descriptions, name, options, plural, request
from mmgpt.data.world.scenes import COLOURS, SEEN, SHAPES, Kind, draw_kinds, make_thing, pick, place, render

Rng = np.random.Generator


@dataclass(frozen=True)
class Level:
    """How rich the world is.

    Args:
        things: Most shapes in a picture.
        count: Highest number asked for.
        syllables: Fewest and most syllables of an utterance.
        frames: Frames of a clip.
        movers: Shapes of a clip that move; of two shapes the rest stand still.
        forms: The forms of each task.
        turns: The tasks in turn, one for each sample.
        first: The level that training begins with, if it begins with an easier one.
        twice: In training, what is captioned is asked about too, and what is asked about is captioned: two documents of
            one picture teach more than two pictures.
    """

    things: int
    count: int
    syllables: tuple[int, int]
    frames: int
    movers: int
    forms: dict[str, tuple["Form", ...]]
    turns: tuple[str, ...]
    first: "Level | None" = None
    twice: bool = False


@dataclass(frozen=True)
class Exchange:
    """Media, the question about them, and its right answers; of a picture whose kinds tell more, these."""

    media: tuple[Part, ...]
    prompt: str
    answers: tuple[str, ...]
    kinds: tuple[Kind, ...] = ()


Form = Callable[[Rng, Level, bool], Exchange]  # the flag asks for a combination that training never shows


def picture(rng: Rng, kinds: list[Kind]) -> Image:
    return Image(render(rng, place(rng, kinds)))


def shown(rng: Rng, kinds: list[Kind], prompt: str, *answers: str) -> Exchange:
    """A picture of these kinds and what is asked about it."""
    return Exchange((picture(rng, kinds),), prompt, answers, tuple(kinds))


def sound(samples: np.ndarray) -> Audio:
    return Audio(samples, sounds.RATE)


def clip(rng: Rng, tracks: list[Track], axis: int, track: Audio | None = None) -> Video:
    return Video(render_clip(rng, tracks, axis), FRAME_RATE, track)


def some(rng: Rng, low: int, high: int) -> int:
    """A whole number, low and high included."""
    return int(rng.integers(low, high + 1))


def other_kinds(rng: Rng, count: int, side: int, value: str) -> list[Kind]:
    """So many kinds whose colour (side 0) or shape (side 1) is not `value`."""
    return [pick(rng, [kind for kind in SEEN if kind[side] != value]) for _ in range(count)]


# --- pictures


def caption(rng: Rng, level: Level, new: bool) -> Exchange:
    kinds = draw_kinds(rng, some(rng, 1, level.things), new)
    prompt = request(rng, "caption")
    return shown(rng, kinds, prompt, *captions(prompt, kinds))


def colour(rng: Rng, level: Level, new: bool) -> Exchange:
    """The colour of the only circle, say."""
    (kind,) = draw_kinds(rng, 1, new)
    kinds = [kind, *other_kinds(rng, some(rng, 0, level.things - 1), 1, kind.shape)]
    return shown(rng, kinds, request(rng, "colour", shape=kind.shape), kind.colour)


def shape(rng: Rng, level: Level, new: bool) -> Exchange:
    """The shape of the only red thing, say."""
    (kind,) = draw_kinds(rng, 1, new)
    kinds = [kind, *other_kinds(rng, some(rng, 0, level.things - 1), 0, kind.colour)]
    return shown(rng, kinds, request(rng, "shape", colour=kind.colour), kind.shape)


def count(rng: Rng, level: Level, new: bool) -> Exchange:
    number = some(rng, 1, level.count)
    return shown(rng, draw_kinds(rng, number, new), request(rng, "count"), NUMBERS[number])


def count_kind(rng: Rng, level: Level, new: bool) -> Exchange:
    """The number of circles, or of red shapes."""
    side, number = some(rng, 0, 1), some(rng, 0, level.count)
    (lead,) = draw_kinds(rng, 1, new)
    if number:
        value = lead[side]
        same = [kind for kind in SEEN if kind[side] == value]
        kinds = [lead] + [pick(rng, same) for _ in range(number - 1)]
        kinds += other_kinds(rng, some(rng, 0, level.count - number), side, value)
    else:
        value = pick(rng, [value for value in (tuple(COLOURS), SHAPES)[side] if value != lead[side]])
        kinds = [lead, *other_kinds(rng, some(rng, 0, level.count - 1), side, value)]
    asked = f"{value} shapes" if side == 0 else plural(value)
    return shown(rng, kinds, request(rng, "count kind", kind=asked), NUMBERS[number])


def ask_more(rng: Rng, task: str, kinds: Sequence[Kind]) -> tuple[str, str, str]:
    """Task, request and answer of something else about a picture of these kinds: its caption, or else a question."""
    if task != "caption":
        prompt = request(rng, "caption")
        return "caption", prompt, captions(prompt, kinds)[0]
    colours, shapes = Counter(kind.colour for kind in kinds), Counter(kind.shape for kind in kinds)
    asked = [("count", {}, NUMBERS[len(kinds)])]
    asked += [("colour", {"shape": kind.shape}, kind.colour) for kind in kinds if shapes[kind.shape] == 1]
    asked += [("shape", {"colour": kind.colour}, kind.shape) for kind in kinds if colours[kind.colour] == 1]
    form, words, answer = pick(rng, asked)
    return "question", request(rng, form, **words), answer


def presence(rng: Rng, level: Level, new: bool) -> Exchange:
    """Whether there is a red circle; if not, there often is another red shape and another circle."""
    (asked,) = draw_kinds(rng, 1, new)
    there = some(rng, 0, 1)
    if there:
        kinds = [asked, *draw_kinds(rng, some(rng, 0, level.things - 1), False)]
    else:
        near = [kind for kind in SEEN if (kind.colour == asked.colour) != (kind.shape == asked.shape)]
        others = [kind for kind in SEEN if kind != asked]
        kinds = [pick(rng, near if rng.random() < 0.6 else others) for _ in range(some(rng, 1, level.things))]
    prompt = request(rng, "presence", a_thing=f"a {name(asked)}")
    return Exchange((picture(rng, kinds),), prompt, (("no", "yes")[there],))


def relation(rng: Rng, level: Level, new: bool) -> Exchange:
    """Whether one shape is left of, right of, above or below another."""
    true = some(rng, 0, 1)
    while True:
        things = place(rng, draw_kinds(rng, some(rng, 2, level.things), new))
        one, other = (things[i] for i in rng.permutation(len(things))[:2])
        across, down = one.x - other.x, one.y - other.y
        kinds = [thing.kind for thing in things]
        if kinds.count(one.kind) == kinds.count(other.kind) == 1 and max(abs(across), abs(down)) > 10:
            break
    if abs(across) > abs(down):
        words = ("left of", "right of") if across < 0 else ("right of", "left of")
    else:
        words = ("above", "below") if down < 0 else ("below", "above")
    asked = {"thing": name(one.kind), "relation": words[1 - true], "other": name(other.kind)}
    return Exchange((Image(render(rng, things)),), request(rng, "relation", **asked), (("no", "yes")[true],))


# --- sounds


def pitch(rng: Rng, level: Level, new: bool) -> Exchange:
    high = some(rng, 0, 1)
    heard = sounds.tone(sounds.frequency(rng, bool(high)), rng.uniform(0.3, 0.7), pick(rng, sounds.INSTRUMENTS))
    prompt = request(rng, "pitch", options=options(rng, ("high", "low")))
    return Exchange((sound(sounds.finish(rng, [heard], 0)),), prompt, (("low", "high")[high],))


def instrument(rng: Rng, level: Level, new: bool) -> Exchange:
    instrument = pick(rng, sounds.INSTRUMENTS)
    heard = sounds.tone(sounds.frequency(rng, rng.random() < 0.5), rng.uniform(0.3, 0.7), instrument)
    return Exchange((sound(sounds.finish(rng, [heard], 0)),), request(rng, "instrument"), (instrument,))


def beeps(rng: Rng, level: Level, new: bool) -> Exchange:
    number = some(rng, 1, 4)
    return Exchange((sound(sounds.beeps(rng, number)),), request(rng, "beeps"), (NUMBERS[number],))


def order(rng: Rng, level: Level, new: bool) -> Exchange:
    high, instrument = some(rng, 0, 1), pick(rng, sounds.INSTRUMENTS)
    tones = [
        sounds.tone(sounds.frequency(rng, bool(which)), rng.uniform(0.2, 0.35), instrument)
        for which in (high, 1 - high)
    ]
    heard = sound(sounds.finish(rng, tones, rng.uniform(0.05, 0.15)))
    prompt = request(rng, "order", options=options(rng, ("high", "low")))
    return Exchange((heard,), prompt, (("low", "high")[high],))


def sequence(rng: Rng, level: Level, new: bool) -> Exchange:
    """Which of three instruments came first, second or last."""
    instruments = [sounds.INSTRUMENTS[i] for i in rng.permutation(len(sounds.INSTRUMENTS))]
    tones = [sounds.tone(sounds.frequency(rng, rng.random() < 0.5), rng.uniform(0.2, 0.3), i) for i in instruments]
    place = some(rng, 0, 2)
    prompt = request(rng, "sequence", place=("first", "second", "last")[place])
    return Exchange((sound(sounds.finish(rng, tones, 0.06)),), prompt, (instruments[place],))


def transcribe(rng: Rng, level: Level, new: bool) -> Exchange:
    syllables = [pick(rng, sounds.SYLLABLES) for _ in range(some(rng, *level.syllables))]
    return Exchange((sound(sounds.speak(rng, syllables)),), request(rng, "transcribe"), (" ".join(syllables),))


# --- clips


def _moving(rng: Rng, level: Level, new: bool, axis: int) -> tuple[list[Track], list[tuple[Kind, str]]]:
    """Tracks of one or two different shapes, of which level.movers move, and what they do."""
    kinds = draw_kinds(rng, some(rng, max(1, level.movers), 2), new)
    if len(kinds) == 2 and kinds[0] == kinds[1]:
        kinds.pop()
    tracks, motions = [], []
    for index, thing in enumerate(place_tracks(rng, kinds, axis)):
        if index < level.movers:
            side = some(rng, 0, 1)
            tracks.append(travel(rng, thing, axis, side, (1,) * (level.frames - 1)))
            motions.append((thing.kind, DIRECTIONS[axis][side]))
        else:
            tracks.append(stand(thing, level.frames))
            motions.append((thing.kind, ""))
    return tracks, motions


def direction(rng: Rng, level: Level, new: bool) -> Exchange:
    axis = some(rng, 0, 1)
    tracks, motions = _moving(rng, level, new, axis)
    kind, way = motions[0]
    prompt = request(rng, "direction", thing=name(kind), options=options(rng, DIRECTIONS[axis]))
    return Exchange((clip(rng, tracks, axis),), prompt, (way,))


def first_mover(rng: Rng, level: Level, new: bool) -> Exchange:
    """Which of two shapes moves first, and stops before the other starts."""
    axis = some(rng, 0, 1)
    one, other = draw_kinds(rng, 2, new)
    while other == one:
        other = pick(rng, SEEN)
    kinds = [(one, other), (other, one)][some(rng, 0, 1)]
    steps = level.frames - 1
    early = [1] * (steps // 2) + [0] * (steps - steps // 2)
    tracks = [
        travel(rng, thing, axis, some(rng, 0, 1), moves)
        for thing, moves in zip(place_tracks(rng, kinds, axis), (early, early[::-1]), strict=True)
    ]
    asked = kinds[:: 1 if rng.random() < 0.5 else -1]
    prompt = request(rng, "first mover", thing=name(asked[0]), other=name(asked[1]))
    return Exchange((clip(rng, tracks, axis),), prompt, (f"the {name(kinds[0])}",))


def describe(rng: Rng, level: Level, new: bool) -> Exchange:
    axis = some(rng, 0, 1)
    tracks, motions = _moving(rng, level, new, axis)
    prompt = request(rng, "describe")
    return Exchange((clip(rng, tracks, axis),), prompt, descriptions(prompt, motions))


# --- two media at once: the answer tells what is seen and what is heard, then the verdict


def match_count(rng: Rng, level: Level, new: bool) -> Exchange:
    shapes, alike = some(rng, 1, level.count), some(rng, 0, 1)
    heard = shapes if alike else pick(rng, [n for n in range(1, level.count + 1) if n != shapes])
    media = (picture(rng, draw_kinds(rng, shapes, new)), sound(sounds.beeps(rng, heard)))
    evidence = f"{NUMBERS[shapes]} shape{'s' * (shapes > 1)}, {NUMBERS[heard]} beep{'s' * (heard > 1)}"
    return Exchange(media, request(rng, "match count"), (f"{evidence}: {('no', 'yes')[alike]}",))


def match_height(rng: Rng, level: Level, new: bool) -> Exchange:
    """Whether a high tone goes with a shape in the upper half, or a low one with one in the lower half."""
    lower, high = some(rng, 0, 1), some(rng, 0, 1)
    (kind,) = draw_kinds(rng, 1, new)
    seen = Image(render(rng, [make_thing(rng, kind, half=lower)]))
    heard = sounds.tone(sounds.frequency(rng, bool(high)), rng.uniform(0.3, 0.7), pick(rng, sounds.INSTRUMENTS))
    evidence = f"{('high', 'low')[lower]} shape, {('low', 'high')[high]} tone"
    verdict = "yes" if high != lower else "no"
    media = (seen, sound(sounds.finish(rng, [heard], 0)))
    return Exchange(media, request(rng, "match height"), (f"{evidence}: {verdict}",))


def match_motion(rng: Rng, level: Level, new: bool) -> Exchange:
    """Whether the tone rises while the shape goes up, or falls while it goes down."""
    down, rises = some(rng, 0, 1), some(rng, 0, 1)
    thing = make_thing(rng, draw_kinds(rng, 1, new)[0])
    track = travel(rng, thing, 1, down, (1,) * (level.frames - 1))
    low = rng.uniform(250, 450)
    ends = (low, low * rng.uniform(2.0, 3.0))
    start, end = ends if rises else ends[::-1]
    glide = sounds.tone(start, rng.uniform(0.6, 0.8), pick(rng, ("flute", "buzzer")), end)
    seen = clip(rng, [track], 1, sound(sounds.finish(rng, [glide], 0)))
    evidence = f"{('up', 'down')[down]}, the tone {('falls', 'rises')[rises]}"
    verdict = "yes" if rises != down else "no"
    return Exchange((seen,), request(rng, "match motion"), (f"the shape moves {evidence}: {verdict}",))


# --- text alone


def add(rng: Rng, level: Level, new: bool) -> Exchange:
    a, b = some(rng, 0, 5), some(rng, 0, 5)
    return Exchange((), request(rng, "sum", a=NUMBERS[a], b=NUMBERS[b]), (NUMBERS[a + b],))


# What single shapes and sounds are called is learned soonest where nothing else is asked.
FIRST = Level(
    things=1,
    count=2,
    syllables=(2, 3),
    frames=4,
    movers=1,
    forms={
        "caption": (caption,),
        "question": (colour, shape),
        "sound": (pitch, instrument, beeps, order),
        "transcribe": (transcribe,),
        "text": (add,),
    },
    turns=(
        *("caption", "question", "sound", "caption", "question", "transcribe"),
        *("caption", "question", "caption", "question", "transcribe", "text"),
    ),
    twice=True,
)
SMALL = Level(
    things=2,
    count=2,
    syllables=(2, 3),
    frames=4,
    movers=1,
    forms={
        "caption": (caption,),
        "question": (colour, shape, count),
        "sound": (pitch, instrument, beeps, order),
        "transcribe": (transcribe,),
        "motion": (direction,),
        "describe": (describe,),
        "match": (match_count, match_height, match_motion),
        "text": (add,),
    },
    turns=(
        *("caption", "sound", "question", "motion", "match", "caption", "question", "describe", "motion", "sound"),
        *("caption", "question", "transcribe", "match", "sound", "motion", "caption", "match", "question", "text"),
    ),
    first=FIRST,
    twice=True,
)
HARD = Level(
    things=4,
    count=4,
    syllables=(3, 6),
    frames=8,
    movers=2,
    forms={
        "caption": (caption,),
        "question": (colour, shape, count, count_kind),
        "presence": (presence,),
        "relation": (relation,),
        "sound": (pitch, instrument, beeps, order, sequence),
        "transcribe": (transcribe,),
        "motion": (direction, first_mover),
        "describe": (describe,),
        "match": (match_count, match_height, match_motion),
        "text": (add,),
    },
    turns=(
        *("caption", "sound", "question", "match", "motion", "relation", "transcribe", "presence", "caption"),
        *("describe", "question", "match", "sound", "relation", "caption", "motion", "presence", "match", "text"),
    ),
)
LEVELS = {"small": SMALL, "hard": HARD}
WITHOUT_SHAPES = frozenset({"sound", "transcribe", "text"})
