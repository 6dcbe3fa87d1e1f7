"""What the world's answers say is what its pictures, sounds and clips show."""

import re

import numpy as np
import pytest
from world_senses import active, height, hertz, see, steps

from mmgpt.content import Audio, Image, Video
from mmgpt.data.sample import Sample
from mmgpt.data.world import World
from mmgpt.data.world.clips import DIRECTIONS, place_tracks, render_clip, stand, travel
from mmgpt.data.world.language import NUMBERS, read_caption, read_description
from mmgpt.data.world.scenes import COLOURS, GAP, OUTLINES, SEEN, SHAPES, SIZE, STAGGER, Kind, pick, place, render
from mmgpt.data.world.sounds import RATE, SYLLABLES, speak
from mmgpt.data.world.tasks import LEVELS


def media_of(sample: Sample) -> dict[type, np.ndarray]:
    return {type(part): part.source for part in sample.prompt[0].parts if isinstance(part, Image | Audio | Video)}


def question_of(sample: Sample) -> str:
    return sample.texts()[0].lower()


def counted(number: int, thing: str) -> str:
    return f"{NUMBERS[number]} {thing}" + ("s" if number > 1 else "")


def glide(sound: np.ndarray) -> str:
    [(start, end)] = active(sound)
    third = (end - start) // 3
    return "rises" if hertz(sound[end - third : end]) > hertz(sound[start : start + third]) else "falls"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shapes_are_apart_and_within_the_picture(count):
    rng = np.random.default_rng(count)
    for _ in range(200):
        things = place(rng, [pick(rng, SEEN) for _ in range(count)])
        for thing in things:
            assert thing.radius <= min(thing.x, thing.y) <= max(thing.x, thing.y) <= SIZE - thing.radius
        for i, one in enumerate(things):
            for other in things[i + 1 :]:
                assert np.hypot(one.x - other.x, one.y - other.y) > one.radius + other.radius + GAP
                assert other.x - one.x > STAGGER


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_stays_within_its_radius(shape):
    assert all(distance <= 1 for distance, _ in OUTLINES.get(shape, []))
    rng = np.random.default_rng(0)
    for _ in range(20):
        [thing] = place(rng, [Kind("white", shape)])
        picture = render(rng, [thing]).astype(int)
        rows, columns = np.nonzero(np.abs(picture - picture[0, 0]).max(2))
        reach = np.hypot(columns + 0.5 - thing.x, rows + 0.5 - thing.y).max()
        assert 0.75 * thing.radius < reach < thing.radius + 1


@pytest.mark.parametrize("level", LEVELS)
def test_captions_name_the_shapes_there_are_by_colour_then_shape(level):
    for sample in World("test", 80, level=level, task="caption"):
        told = read_caption(sample.answers[0])
        blobs = see(media_of(sample)[Image])
        assert told is not None
        assert sorted(blob.colour for blob in blobs) == sorted(kind.colour for kind in told.elements())
        order = [(list(COLOURS).index(kind.colour), SHAPES.index(kind.shape)) for kind in told]
        assert order == sorted(order)


@pytest.mark.parametrize("level", LEVELS)
def test_counts_and_colours_are_those_of_the_picture(level):
    checked = set()
    for sample in World("test", 100, level=level, task="question"):
        question, [answer] = question_of(sample), sample.answers
        colours = [blob.colour for blob in see(media_of(sample)[Image])]
        named = next((colour for colour in COLOURS if colour in question), None)
        if "many" in question or "count" in question:
            if any(shape in question for shape in SHAPES):
                continue
            expected = colours.count(named) if named else len(colours)
            assert answer == NUMBERS[expected]
        elif named:
            assert colours.count(named) == 1
            assert answer in SHAPES
        else:
            assert answer in colours
        checked.add((named is None, answer in NUMBERS))
    assert len(checked) == (4 if level == "hard" else 3)  # counting by kind is of the hard level alone


def test_relations_hold_where_the_answer_is_yes():
    verdicts = set()
    for sample in World("test", 80, level="hard", task="relation"):
        blobs = see(media_of(sample)[Image])
        pattern = r"is the (\w+) \w+ (left of|right of|above|below) the (\w+)"
        one, relation, other = re.match(pattern, question_of(sample)).groups()
        found = [[blob for blob in blobs if blob.colour == colour] for colour in (one, other)]
        if [len(blobs) for blobs in found] == [1, 1]:
            [[a], [b]] = found
            true = {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[relation]
            assert sample.answers == ("yes" if true else "no",)
            verdicts.add((relation, true))
    assert len(verdicts) == 8


def test_what_is_not_there_is_denied():
    denied = 0
    for sample in World("test", 100, level="hard", task="presence"):
        named = next(colour for colour in COLOURS if colour in question_of(sample))
        if named not in [blob.colour for blob in see(media_of(sample)[Image])]:
            assert sample.answers == ("no",)
            denied += 1
    assert denied > 10


def test_tones_and_beeps_are_those_of_the_sound():
    checked = set()
    for sample in World("test", 120, task="sound"):
        sound, question, [answer] = media_of(sample)[Audio], question_of(sample), sample.answers
        start, _ = active(sound)[0]
        if answer in NUMBERS:
            assert answer == NUMBERS[len(active(sound))]
        elif answer in ("high", "low"):
            assert answer == height(sound[start : start + RATE // 6])
            if "first" in question:
                assert answer != height(sound[active(sound)[-1][1] - RATE // 6 : active(sound)[-1][1]])
        checked.add(answer)
    assert {"high", "low", "one", "two", "three", "four"} < checked


def test_a_syllable_sounds_alike_whoever_speaks():
    def spectra(seed: int) -> np.ndarray:
        """The mean log power of eight speakers in bands of 100 Hz: syllables, bands."""
        rng = np.random.default_rng(seed)
        spoken = [[speak(rng, [syllable]) for _ in range(8)] for syllable in SYLLABLES]
        power = np.array([[np.abs(np.fft.rfft(sound, RATE)[:-1]) ** 2 for sound in row] for row in spoken])
        return np.log(power.reshape(len(SYLLABLES), 8, 40, -1).mean(3)).mean(1)

    apart = ((spectra(0)[:, None] - spectra(1)) ** 2).sum(2)
    assert (apart.argmin(1) == np.arange(len(SYLLABLES))).mean() > 0.6


@pytest.mark.parametrize("level", LEVELS)
def test_sounds_and_clips_stay_within_their_scale(level):
    for task in ("sound", "transcribe", "match"):
        for sample in World("train", 30, level=level, task=task):
            if Audio in media_of(sample):
                sound = media_of(sample)[Audio]
                assert sound.dtype == np.float32
                assert 0.1 < np.abs(sound).max() <= 1
                assert 0.45 < len(sound) / RATE < 2.5


@pytest.mark.parametrize("level", LEVELS)
def test_descriptions_tell_what_moves_where(level):
    still = 0
    for sample in World("test", 60, level=level, task="describe"):
        told = read_description(sample.answers[0])
        assert told is not None
        if len({kind.colour for kind, _ in told}) < len(told):
            continue
        clip = media_of(sample)[Video]
        assert all(len(see(frame)) == len(told) for frame in clip)  # whole shapes: none is cut by the edge
        axis = int(any(direction in DIRECTIONS[1] for _, direction in told))
        for kind, direction in told:
            moved = steps(clip, axis, kind.colour)
            if direction:
                signed = moved if direction == DIRECTIONS[axis][1] else -moved
                assert 1 < signed.min() <= signed.max() < signed.min() + 0.5
            else:
                assert np.abs(moved).max() < 0.5
                still += 1
    assert still or LEVELS[level].movers > 1


def test_the_first_mover_moves_first():
    seen = 0
    for sample in World("test", 60, level="hard", task="motion"):
        [answer] = sample.answers
        if not answer.startswith("the "):
            continue
        colours = re.findall(rf"the ({'|'.join(COLOURS)})", question_of(sample))
        if colours[0] == colours[1]:
            continue
        clip, named = media_of(sample)[Video], answer.split()[1]
        starts = {}
        for colour in colours:
            moved = np.abs([steps(clip, axis, colour) for axis in (0, 1)]).max(0)
            starts[colour] = int((moved > 1).argmax())
        assert min(starts, key=starts.__getitem__) == named
        seen += 1
    assert seen > 15


def test_a_match_tells_what_is_seen_and_heard_and_judges_it():
    verdicts = set()
    for sample in World("test", 100, task="match"):
        media, [answer] = media_of(sample), sample.answers
        if Video in media:
            up = steps(media[Video], 1).mean() < 0
            tone = glide(next(p for p in sample.prompt[0].parts if isinstance(p, Video)).sound.source)
            same = up == (tone == "rises")
            expected = f"the shape moves {'up' if up else 'down'}, the tone {tone}"
        elif "beep" in answer:
            shapes, beeps = len(see(media[Image])), len(active(media[Audio]))
            same = shapes == beeps
            expected = f"{counted(shapes, 'shape')}, {counted(beeps, 'beep')}"
        else:
            [blob] = see(media[Image])
            [(start, end)] = active(media[Audio])
            where, tone = "high" if blob.y < SIZE / 2 else "low", height(media[Audio][start:end])
            same = where == tone
            expected = f"{where} shape, {tone} tone"
        assert answer == f"{expected}: {'yes' if same else 'no'}"
        verdicts.add((*media, same))
    assert len(verdicts) == 4


def test_things_that_move_never_meet():
    rng = np.random.default_rng(0)
    for axis in (0, 1) * 40:
        one, other = place_tracks(rng, SEEN[:2], axis)
        across = abs(one.y - other.y) if axis == 0 else abs(one.x - other.x)
        assert across > one.radius + other.radius + GAP


def test_a_thing_that_stands_looks_the_same_in_every_frame():
    rng = np.random.default_rng(0)
    one, other = place_tracks(rng, [Kind("red", "square"), Kind("white", "cross")], 0)
    clip = render_clip(rng, [stand(one, 4), travel(rng, other, 0, 1, (1, 1, 1))], 0)
    rows = np.arange(SIZE)
    band = np.abs(rows + 0.5 - one.y) < one.radius + 1
    assert (clip[:, band] == clip[0, band]).all()
    assert not (clip[:, ~band] == clip[0, ~band]).all()
