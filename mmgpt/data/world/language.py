"""The world's English: how questions are put, how scenes are told, and how such sentences are read back.

The grammar is small and closed. A sentence that is not of it reads as None, which scores as wrong.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmgpt.data.world.clips import DIRECTIONS
from mmgpt.data.world.scenes import COLOURS, SHAPES, Kind, pick
from mmgpt.data.world.sounds import INSTRUMENTS
from mmgpt.tasks import TASKS

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

# The wordings of each request. Captions, descriptions and transcripts are asked for as they are everywhere.
PROMPTS: dict[str, tuple[str, ...]] = {
    "caption": TASKS["caption"].prompts,
    "describe": TASKS["describe"].prompts[:2],
    "transcribe": TASKS["transcribe"].prompts,
    "colour": ("What colour is the {shape}?", "What color is the {shape}?", "Which colour is the {shape}?"),
    "shape": ("What shape is {colour}?", "Which shape is {colour}?", "What is the {colour} shape?"),
    "count": ("How many shapes are there?", "How many shapes?", "Count the shapes."),
    "count kind": ("How many {kind} are there?", "How many {kind}?", "Count the {kind}."),
    "presence": ("Is there {a_thing}?", "Do you see {a_thing}?", "Is {a_thing} in the picture?"),
    "relation": ("Is the {thing} {relation} the {other}?",),
    "pitch": ("Is the tone {options}?", "Is this tone {options}?", "What is the pitch, {options}?"),
    "instrument": ("What makes this sound?", "What instrument is this?", "Which instrument do you hear?"),
    "beeps": ("How many beeps are there?", "How many beeps do you hear?", "Count the beeps."),
    "order": ("Which tone came first, {options}?", "Does the {options} tone come first?"),
    "sequence": ("Which instrument came {place}?", "What do you hear {place}?"),
    "direction": ("Does the {thing} move {options}?", "Which way does the {thing} go, {options}?"),
    "first mover": ("What moves first, the {thing} or the {other}?", "Which moves first, the {thing} or the {other}?"),
    "match count": ("Are there as many beeps as shapes?", "Is there one beep for each shape?"),
    "match height": ("Does the tone match the height of the shape?", "Do the tone and the height of the shape match?"),
    "match motion": ("Does the tone move like the shape?", "Do the tone and the shape move alike?"),
    "sum": ("What is {a} plus {b}?", "How much is {a} plus {b}?", "Add {a} and {b}."),
}


def request(rng: np.random.Generator, form: str, **words: str) -> str:
    """A wording of the request with the words filled in; one in five as if typed in haste."""
    text = pick(rng, PROMPTS[form]).format(**words)
    return text.lower().rstrip("?.") if rng.random() < 0.2 else text


def options(rng: np.random.Generator, pair: Sequence[str]) -> str:
    """ "left or right" or "right or left"."""
    return " or ".join(pair if rng.random() < 0.5 else pair[::-1])


def name(kind: Kind) -> str:
    return f"{kind.colour} {kind.shape}"


def plural(shape: str) -> str:
    return "crosses" if shape == "cross" else shape + "s"


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:-1]) + " and " + items[-1] if len(items) > 1 else items[0]


# --- captions


# How a caption begins follows from how it was asked for, so that only what is seen is left to be learned.
_OPENINGS = {
    "describe the picture": "",
    "what is in the picture": "there {is_are} ",
    "what does the picture show": "the picture shows ",
}


def captions(prompt: str, kinds: Sequence[Kind]) -> tuple[str, ...]:
    """The caption in the wording that goes with the prompt, then in the others.

    Shapes are named by colour and then shape, in the world's order of these, equal ones together.
    """
    counts = Counter(sorted(kinds, key=lambda kind: (list(COLOURS).index(kind.colour), SHAPES.index(kind.shape))))
    items = [
        f"a {name(kind)}" if n == 1 else f"{NUMBERS[n]} {kind.colour} {plural(kind.shape)}"
        for kind, n in counts.items()
    ]
    is_are = "is" if next(iter(counts.values())) == 1 else "are"
    asked = _OPENINGS[normalise(prompt)]
    openings = [asked, *(opening for opening in _OPENINGS.values() if opening != asked)]
    return tuple(opening.format(is_are=is_are) + _listed(items) for opening in openings)


_COLOUR, _SHAPE = "|".join(COLOURS), "|".join(SHAPES)
_OPENING = re.compile(r"^(there (is|are)|the picture shows) ")
_ITEM = re.compile(rf"(a|one|two|three|four) ({_COLOUR}) ({_SHAPE})(?:s|es)?")


def read_caption(text: str) -> Counter[Kind] | None:
    """What a caption says is in the picture, or None if it is no caption."""
    found: Counter[Kind] = Counter()
    for item in _items(_OPENING.sub("", normalise(text))):
        match = _ITEM.fullmatch(item)
        if match is None:
            return None
        count, colour, shape = match.groups()
        found[Kind(colour, shape)] += 1 if count == "a" else NUMBERS.index(count)
    return found


# --- clips


def descriptions(prompt: str, motions: Sequence[tuple[Kind, str]]) -> tuple[str, ...]:
    """What moves where, in the wording that goes with the prompt, then in the other; "" stands still."""
    wordings = []
    for article, rests in (("a", "stands still"), ("the", "does not move")):
        items = [
            f"{article} {name(kind)} {'moves ' + direction if direction else rests}" for kind, direction in motions
        ]
        wordings.append(_listed(items))
    return tuple(wordings if normalise(prompt).startswith("what") else wordings[::-1])


_MOTION = re.compile(
    rf"(?:a|the) ({_COLOUR}) ({_SHAPE}) (?:moves ({'|'.join(sum(DIRECTIONS, ()))})|stands still|does not move)"
)


def read_description(text: str) -> Counter[tuple[Kind, str]] | None:
    """What a description says moves where ("" for what stands still), or None if it is no description."""
    found: Counter[tuple[Kind, str]] = Counter()
    for item in _items(normalise(text)):
        match = _MOTION.fullmatch(item)
        if match is None:
            return None
        colour, shape, direction = match.groups(default="")
        found[Kind(colour, shape), direction] += 1
    return found


# --- short answers

# Words of which a short answer is one: the first word of the right answer's family counts.
_FAMILIES = (tuple(COLOURS), SHAPES, NUMBERS, INSTRUMENTS, ("high", "low"), *DIRECTIONS, ("yes", "no"))
_DIGITS = {str(i): number for i, number in enumerate(NUMBERS)}


def read_word(text: str, answer: str) -> str | None:
    """The first word of the text that could stand where `answer` stands (a colour for a colour, ...)."""
    family = next(family for family in _FAMILIES if answer in family)
    return next((word for word in normalise(text.replace(",", " ")).split() if word in family), None)


def read_verdict(text: str) -> str | None:
    """ "yes" or "no" if the text ends with it; the evidence told before does not count."""
    last = normalise(text.replace(",", " ")).split()[-1:]
    return last[0] if last and last[0] in ("yes", "no") else None


def normalise(text: str) -> str:
    """Lower case, numbers as words, no punctuation but commas, single spaces."""
    words = re.sub(r"[^\w,]+", " ", text.lower()).split()
    return " ".join(_DIGITS.get(word, word) for word in words)


def _items(text: str) -> list[str]:
    return [item.strip() for item in re.split(r",| and ", text)]
