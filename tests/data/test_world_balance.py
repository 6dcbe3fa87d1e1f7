"""No answer of the world is more likely than another, and none is given away by what is not to be judged by."""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable

import numpy as np
import pytest
from world_senses import places

from mmgpt.content import Video
from mmgpt.data.world import World
from mmgpt.data.world.clips import DIRECTIONS, Track, render_clip, travel
from mmgpt.data.world.language import normalise, read_description
from mmgpt.data.world.scenes import NEW, SIZE, Kind, Thing, make_thing
from mmgpt.data.world.tasks import LEVELS, Exchange

# The number of answers of each form, and of those that are left to who knows the question. (Of the 30 kinds 5 are
# new: each shape has five colours left, all colours but one have four shapes left.)
CHOICES = {
    **{"colour": (6, 5), "shape": (4, 3), "count": (2, 2), "count_kind": (5, 5), "presence": (2, 2)},
    **{"relation": (2, 2), "pitch": (2, 2), "instrument": (3, 3), "beeps": (4, 4), "order": (2, 2)},
    **{"sequence": (3, 3), "direction": (4, 2)},
}
MATCHES = ("match_count", "match_height", "match_motion")


@pytest.fixture
def drawn(monkeypatch):
    """Exchanges of a form of a level. Pictures and sounds are left blank: only what is drawn of them matters here."""
    monkeypatch.setattr("mmgpt.data.world.tasks.render", lambda rng, things: np.zeros((1, 1, 3), np.uint8))
    monkeypatch.setattr(
        "mmgpt.data.world.tasks.render_clip", lambda rng, tracks, axis: np.zeros((1, 1, 1, 3), np.uint8)
    )
    monkeypatch.setattr("mmgpt.data.world.sounds.tone", lambda *args: np.zeros(1, np.float32))
    monkeypatch.setattr("mmgpt.data.world.sounds._syllable", lambda *args: np.zeros(1, np.float32))

    def draw(name: str, count: int, new: bool = False, hard: bool = False) -> list[Exchange]:
        rng = np.random.default_rng(5)
        worlds = [LEVELS["hard"]] if hard else LEVELS.values()
        level, form = next((w, f) for w in worlds for forms in w.forms.values() for f in forms if f.__name__ == name)
        return [form(rng, level, new) for _ in range(count)]

    return draw


def guessed(pairs: list[tuple[Hashable, str]]) -> float:
    """The share of answers guessed rightly by who knows the clue, and of the other half what is answered to which."""
    right = []
    for half, other in ((pairs[::2], pairs[1::2]), (pairs[1::2], pairs[::2])):
        seen: dict[Hashable, Counter[str]] = defaultdict(Counter)
        for clue, answer in other:
            seen[clue][answer] += 1
            seen["any"][answer] += 1
        right += [seen.get(clue, seen["any"]).most_common(1)[0][0] == answer for clue, answer in half]
    return float(np.mean(right))


def test_guessing_by_a_clue_is_measured():
    letters = [str(letter) for letter in np.random.default_rng(0).choice(list("ab"), 1000)]
    assert guessed([(letter, letter) for letter in letters]) == 1
    assert guessed([(None, letter) for letter in letters]) == pytest.approx(0.5, abs=0.05)
    assert guessed([(i, letter) for i, letter in enumerate(letters)]) == pytest.approx(0.5, abs=0.05)


def test_every_form_is_among_those_tested():
    forms = {form.__name__ for level in LEVELS.values() for forms in level.forms.values() for form in forms}
    assert forms == {*CHOICES, *MATCHES, "caption", "describe", "transcribe", "first_mover", "add"}


@pytest.mark.parametrize("form", CHOICES)
def test_answers_are_equally_likely_and_not_told_by_the_question(form, drawn):
    asked = [(normalise(exchange.prompt), exchange.answers[0]) for exchange in drawn(form, 800)]
    answers, left = CHOICES[form]
    assert len({answer for _, answer in asked}) == answers
    assert guessed([(None, answer) for _, answer in asked]) < 1 / answers + 0.06
    assert guessed(asked) < 1 / left + 0.06


@pytest.mark.parametrize("form", ["pitch", "order", "direction", "first_mover"])
def test_the_first_of_two_options_is_right_half_the_time(form, drawn):
    first, option = [], r"the \w+ \w+" if form == "first_mover" else r"\w+"
    for exchange in drawn(form, 600):
        options = re.search(rf"({option}) or ({option})", exchange.prompt.lower())
        assert options is not None
        assert exchange.answers[0] in options.groups()
        first.append(options[1] == exchange.answers[0])
    assert np.mean(first) == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("form", ["presence", "relation", "first_mover", "match_count", "match_motion"])
def test_a_new_combination_makes_neither_answer_likelier(form, drawn):
    new = {" ".join(kind) for kind in NEW}
    answers = [exchange.answers[0] for exchange in drawn(form, 400, new=True)]
    answers = [answer.removeprefix("the ") in new or answer.endswith("yes") for answer in answers]
    assert np.mean(answers) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("form", ["caption", "describe", "transcribe"])
def test_sentences_are_many(form, drawn):
    told = Counter(answer for exchange in drawn(form, 300) for answer in exchange.answers)
    assert told.most_common(1)[0][1] < 0.05 * told.total()


@pytest.mark.parametrize(("form", "hard"), [*((form, False) for form in MATCHES), ("match_count", True)])
def test_neither_medium_alone_tells_whether_both_match(form, hard, drawn):
    """By who sees or hears perfectly, and has learnt from others what is said then."""
    told = [re.split(", |: ", exchange.answers[0]) for exchange in drawn(form, 1500, hard=hard)]
    assert guessed([(seen, verdict) for seen, _, verdict in told]) < 0.55
    assert guessed([(heard, verdict) for _, heard, verdict in told]) < 0.55
    assert guessed([((seen, heard), verdict) for seen, heard, verdict in told]) == 1


# --- the direction of motion is in the order of the frames alone

MOVES = pytest.mark.parametrize("moves", [(1,) * 3, (1,) * 7, (1, 1, 1, 0, 0, 0, 0), (0, 0, 0, 0, 1, 1, 1)])


@MOVES
@pytest.mark.parametrize("axis", [0, 1])
def test_a_way_played_backwards_is_as_likely_and_goes_the_other_way(moves, axis):
    """The same draws give the way there and, with what they move in reverse as well, the way back."""
    kind, ways = Kind("red", "circle"), set()
    for seed in range(300):
        there, back = np.random.default_rng(seed), np.random.default_rng(seed)
        one, other = (
            travel(rng, make_thing(rng, kind), axis, side, m)
            for rng, side, m in ((there, 1, moves), (back, 0, moves[::-1]))
        )
        assert one.thing == other.thing
        assert one.offsets == other.offsets[::-1]
        ways.add(one.offsets)
    assert len(ways) > 50


@MOVES
def test_a_thing_on_its_way_stays_in_the_picture_and_crosses_more_than_half_of_it(moves):
    rng = np.random.default_rng(0)
    for axis, side in ((0, 0), (0, 1), (1, 0), (1, 1)) * 100:
        thing = make_thing(rng, Kind("red", "square"))
        track = travel(rng, thing, axis, side, moves)
        at = (thing.y if axis else thing.x) + np.array(track.offsets)
        assert track.thing == thing
        assert thing.radius <= at.min() <= at.max() <= SIZE - thing.radius
        assert (np.sign(np.diff(at)) == np.array(moves) * (1 if side else -1)).all()
        assert len(set(np.diff(track.offsets)[np.array(moves) == 1])) == 1
        assert np.ptp(at) > SIZE / 2 - thing.radius - 1


def test_a_clip_of_ways_played_backwards_is_the_clip_played_backwards():
    things = [Thing(Kind("red", "square"), 12.3, 11.8, 8.0, 0.3), Thing(Kind("white", "circle"), 30.1, 35.2, 9.0, 0.0)]
    for axis in (0, 1):
        tracks = [
            travel(np.random.default_rng(axis), thing, axis, side, (1, 1, 0)) for side, thing in enumerate(things)
        ]
        back = [Track(track.thing, track.offsets[::-1]) for track in tracks]
        clip, reverse = (render_clip(np.random.default_rng(3), way, axis) for way in (tracks, back))
        assert (reverse == clip[::-1]).all()
        assert not (clip == clip[::-1]).all()


def test_frames_in_random_order_do_not_tell_the_direction():
    """By where the only shape is in which of them, which is all that differs."""
    ordered, unordered = [], []
    for sample in World("train", 800, task="describe"):
        motions = list(read_description(sample.answers[0]) or ())
        if len(motions) == 1:
            [video] = [part for part in sample.prompt[0].parts if isinstance(part, Video)]
            way = motions[0][1]
            axis = int(way in DIRECTIONS[1])
            at = places(video.source, axis)
            ordered.append(((axis, at[0] < at[-1]), way))
            unordered.append(((axis, *(int(place * 6 / SIZE) for place in (at.min(), at.max()))), way))
    assert len(ordered) > 300
    assert guessed(ordered) == 1
    assert guessed(unordered) < 0.6
