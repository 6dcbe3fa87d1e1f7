import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice, product

import numpy as np
import pytest

import mmgpt
from mmgpt.content import Audio, Image, Text, Video
from mmgpt.data.sample import Sample
from mmgpt.data.world import World, score_answer, tasks_of, world_sample
from mmgpt.data.world.examples import TASKS, write_examples
from mmgpt.data.world.language import NUMBERS, read_caption
from mmgpt.data.world.make import FIRST_SHARE, NEW_SHARE, SPLITS
from mmgpt.data.world.scenes import COLOURS, NEW, SEEN, SHAPES, SIZE, Kind, draw_outline
from mmgpt.data.world.sounds import RATE
from mmgpt.data.world.tasks import LEVELS, WITHOUT_SHAPES
from mmgpt.errors import ConfigError

WITH_SHAPES = {level: [task for task in tasks_of(level) if task not in WITHOUT_SHAPES] for level in LEVELS}
MENTION = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


def content(sample: Sample) -> list[object]:
    """All of a sample in a form that can be compared."""
    told: list[object] = [sample.answers, sample.task, sample.where, sample.group]
    for part in sample.prompt[0].parts:
        if isinstance(part, Text):
            told.append(part.text)
        else:
            told.append((type(part), part.source.shape, part.source.tobytes()))
            if isinstance(part, Video) and part.sound is not None:
                told.append(part.sound.source.tobytes())
    return told


@pytest.fixture
def drawn(monkeypatch) -> list[Kind]:
    """The kinds of all shapes drawn so far."""
    kinds: list[Kind] = []

    def draw(canvas, thing, fill):
        kinds.append(thing.kind)
        draw_outline(canvas, thing, fill)

    monkeypatch.setattr("mmgpt.data.world.scenes.draw_outline", draw)
    monkeypatch.setattr("mmgpt.data.world.clips.draw_outline", draw)
    return kinds


def mentioned(sample: Sample) -> set[Kind]:
    return {Kind(*match) for text in sample.texts() for match in MENTION.findall(text.lower())}


# --- the same sample whenever asked, another one for another number, split, seed or level


@pytest.mark.parametrize("level", LEVELS)
def test_a_sample_is_the_same_whenever_it_is_asked_for(level):
    turns = range(len(LEVELS[level].turns))
    first = [content(world_sample(index, "test", 3, level)) for index in turns]
    assert first == [content(world_sample(index, "test", 3, level)) for index in reversed(turns)][::-1]
    samples = [world_sample(index, "test", 3, level) for index in turns]
    one_answer = [content(replace(sample, answers=sample.answers[:1])) for sample in samples]
    assert one_answer == [content(sample) for sample in World("test", len(turns), 3, level)]


@pytest.mark.parametrize("first", [False, True])
def test_in_training_more_is_asked_about_pictures_and_the_answer_is_true(first, drawn):
    asked = Counter()
    for index, task in product(range(150), ("caption", "question")):
        drawn.clear()
        sample = world_sample(index, "train", 3, task=task, first=first)
        [other] = sample.more
        image, text = other.prompt[0].parts
        assert image is sample.prompt[0].parts[0]
        assert other.where == sample.where
        words = re.findall("[a-z]+", text.text.lower())
        [answer] = other.answers
        if task == "question":
            assert other.task == "caption"
            assert read_caption(answer) == Counter(drawn)
            continue
        assert other.task == "question"
        named = [word for word in words if word in COLOURS or word in SHAPES]
        if not named:
            assert answer == NUMBERS[len(drawn)]
        else:
            [kind] = [kind for kind in drawn if named[0] in kind]
            assert {named[0], answer} == set(kind)
        asked["how many" if not named else "shape" if named[0] in COLOURS else "colour"] += 1
    assert min(asked.values()) > 15
    assert len(asked) == 3


def test_held_out_pictures_are_asked_about_once():
    for split in ("dev", "test"):
        assert not any(world_sample(index, split, 3).more for index in range(40))
    assert sum(bool(sample.more) for sample in islice(World("train", 400, 3), 200, 400)) > 60


def test_numbers_splits_and_seeds_differ():
    for task in tasks_of():
        if task == "text":  # of which there are only a few
            continue
        samples = [world_sample(i, split, seed, task=task) for i in range(4) for split in SPLITS for seed in range(3)]
        media = {tuple(part for part in content(sample) if isinstance(part, tuple)) for sample in samples}
        assert len(media) == len(samples)


@pytest.mark.parametrize("level", LEVELS)
def test_every_task_has_its_turn_with_the_media_it_needs(level):
    kinds = {}
    for sample in World("train", 6 * len(LEVELS[level].turns), level=level):
        assert [type(part) for part in sample.prompt[0].parts].count(Text) == 1
        assert isinstance(sample.prompt[0].parts[-1], Text)
        kinds.setdefault(sample.task, set()).add(tuple(type(part) for part in sample.prompt[0].parts[:-1]))
    assert set(kinds) == set(tasks_of(level))
    expected = {"sound": {(Audio,)}, "transcribe": {(Audio,)}, "motion": {(Video,)}, "describe": {(Video,)}}
    expected |= {"text": {()}, "match": {(Image, Audio), (Video,)}}
    assert kinds == {task: expected.get(task, {(Image,)}) for task in kinds}


@pytest.mark.parametrize("level", LEVELS)
def test_media_have_one_scale(level):
    for sample in World("dev", len(LEVELS[level].turns), level=level):
        for part in sample.prompt[0].parts:
            if isinstance(part, Image):
                assert (part.source.shape, part.source.dtype) == ((SIZE, SIZE, 3), np.uint8)
            elif isinstance(part, Video):
                shape = (LEVELS[level].frames, SIZE, SIZE, 3)
                assert (part.source.shape, part.source.dtype) == (shape, np.uint8)
            elif isinstance(part, Audio):
                assert part.sample_rate == RATE


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"split": "val"}, "world split: val is unknown; it may be train, dev, test"),
        ({"level": "huge"}, "world level: huge is unknown; it may be small, hard"),
        ({"task": "relation"}, "world task: relation is unknown; it may be caption, "),
    ],
)
def test_what_the_world_does_not_have_is_told(asked, message):
    with pytest.raises(ConfigError, match=message):
        world_sample(**{"index": 0, "split": "train", "seed": 0, **asked})


# --- as a sequence


def test_a_world_is_a_sequence():
    world = World("test", 5, seed=2)
    assert isinstance(world, Sequence)
    assert len(world) == 5
    samples = [world_sample(index, "test", 2) for index in range(5)]
    expected = [content(replace(sample, answers=sample.answers[:1])) for sample in samples]
    assert [content(sample) for sample in world] == expected
    assert [content(sample) for sample in reversed(world)] == expected[::-1]
    assert content(world[np.int64(3)]) == expected[3]
    for index in (5, -6):
        with pytest.raises(IndexError):
            world[index]
    assert list(World("test", 0)) == []


def test_a_sample_of_the_world_has_one_of_the_answers():
    for index, sample in enumerate(World("train", 10, task="caption")):
        answers = world_sample(index, "train", 0, task="caption").answers
        assert len(set(answers)) == len(answers) > 1
        assert sample.answers == answers[:1]


# --- training begins with what is easier


def test_the_first_part_of_training_is_easier(drawn):
    easy, level = LEVELS["small"].first, LEVELS["small"]
    length = 120
    part = round(FIRST_SHARE * length)
    world, shown = World("train", length, seed=3), set()
    for index, task in enumerate(islice(cycle(easy.turns), part)):
        sample = world[index]
        expected = replace(easier := world_sample(index, "train", 3, first=True), answers=easier.answers[:1])
        assert content(sample) == content(expected)
        assert sample.task == task
    assert set(easy.turns) == set(easy.forms) < set(level.forms)
    assert set(drawn) <= set(SEEN)
    drawn.clear()
    for task in ("caption", "question"):
        for index in range(20):
            shown |= mentioned(world_sample(index, "train", 3, task=task, first=True))
    assert len(drawn) == 40  # a single shape each
    assert shown <= set(drawn)
    for index in range(part, part + len(level.turns)):
        sample = world_sample(index, "train", 3)
        assert content(world[index]) == content(replace(sample, answers=sample.answers[:1]))
        assert sample.task == level.turns[index % len(level.turns)]


@pytest.mark.parametrize("asked", [{"split": "dev"}, {"split": "test"}, {"split": "train", "level": "hard"}])
def test_what_is_held_out_or_hard_begins_with_no_easier_samples(asked):
    level = LEVELS[asked.get("level", "small")]
    tasks = [sample.task for sample in World(**asked, length=len(level.turns))]
    assert tasks == list(level.turns)


def test_training_on_one_task_has_no_easier_samples():
    samples = [world_sample(index, "train", 0, task="caption") for index in range(20)]
    for sample, same in zip(World("train", 20, task="caption"), samples, strict=True):
        assert content(sample) == content(replace(same, answers=same.answers[:1]))


# --- combinations that training never has


def test_training_never_shows_or_tells_a_new_combination(drawn):
    told = set()
    for level, count in (("small", 400), ("hard", 150)):  # times 5 and 7 tasks: over 3,000 samples
        for task in WITH_SHAPES[level]:
            for sample in World("train", count, level=level, task=task):
                told |= mentioned(sample)
                assert not sample.group
    assert told == set(drawn) == set(SEEN)


@pytest.mark.parametrize("level", LEVELS)
def test_a_fifth_of_held_out_samples_has_a_new_combination(level, drawn):
    counts = {False: 0, True: 0}
    for task in WITH_SHAPES[level]:
        for sample in World("test", 60, level=level, task=task):
            new = not set(NEW).isdisjoint(mentioned(sample) | set(drawn))
            assert sample.group == ("new combination" if new else "")
            counts[new] += 1
            drawn.clear()
    assert counts[True] > 0
    assert counts[True] / sum(counts.values()) == pytest.approx(NEW_SHARE, abs=0.08)
    assert all(sample.group == "" for task in WITHOUT_SHAPES for sample in World("test", 5, task=task))


def test_each_shape_and_most_colours_have_a_new_combination():
    assert {kind.shape for kind in NEW} == set(SHAPES)
    assert len({kind.colour for kind in NEW}) == len(NEW)
    assert set(SEEN) | set(NEW) == {Kind(colour, shape) for colour in COLOURS for shape in SHAPES}
    assert set(SEEN).isdisjoint(NEW)


# --- examples as files


def test_examples_are_files_that_decode_to_what_they_show(tmp_path):
    written = write_examples(tmp_path / "new" / "folder", seed=4)
    assert tuple(written) == TASKS
    for task, example in written.items():
        sample = world_sample(0, "test", 4, task=task)
        media, question = sample.prompt[0].parts
        assert example.path.parent == tmp_path / "new" / "folder"
        assert question == Text(example.request)
        assert score_answer(sample, example.truth)
        if isinstance(media, Image):
            assert (np.asarray(mmgpt.Image(example.path).load()) == media.source).all()
        elif isinstance(media, Audio):
            heard = mmgpt.Audio(example.path).load()
            assert heard.sample_rate == media.sample_rate
            assert np.abs(heard.samples - media.source).max() < 1e-4
        else:
            frames = len(media.source)
            clip = mmgpt.Video(example.path).load(frames)
            assert clip.duration == pytest.approx(frames / media.frame_rate)
            assert np.abs(clip.frames.astype(int) - media.source).mean() < 4
    assert {example.path.name for example in written.values()} == {"caption.png", "transcribe.wav", "describe.mp4"}
