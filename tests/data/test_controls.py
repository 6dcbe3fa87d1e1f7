import numpy as np
import pytest
from world_senses import steps

from mmgpt.content import Audio, Image, Message, Part, Text, Video
from mmgpt.data.controls import shuffle_frames, shuffle_media
from mmgpt.data.sample import Sample
from mmgpt.data.world import World
from mmgpt.data.world.clips import DIRECTIONS


def media_of(sample: Sample) -> list[Part]:
    return [part for message in sample.prompt for part in message.parts if not isinstance(part, Text)]


def kinds_of(sample: Sample) -> tuple[object, ...]:
    return sample.task, *map(type, media_of(sample))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(World("test", 96))


def test_every_sample_gets_the_media_of_another_of_its_task_and_kinds(samples):
    shuffled = shuffle_media(samples, np.random.default_rng(0))
    owner = {id(part): sample for sample in samples for part in media_of(sample)}
    for before, after in zip(samples, shuffled, strict=True):
        assert kinds_of(after) == kinds_of(before)
        for part in media_of(after):
            assert owner[id(part)] is not before
            assert kinds_of(owner[id(part)]) == kinds_of(before)
        assert len({id(owner[id(part)]) for part in media_of(after)}) == min(1, len(media_of(after)))
    given = [id(part) for sample in shuffled for part in media_of(sample)]
    assert sorted(given) == sorted(owner)


def test_shuffled_media_leave_questions_and_answers(samples):
    for before, after in zip(samples, shuffle_media(samples, np.random.default_rng(0)), strict=True):
        assert after.texts() == before.texts()
        assert (after.task, after.where, after.group) == (before.task, before.where, before.group)


def test_media_of_several_messages_keep_their_places():
    def sample(number: int, task: str) -> Sample:
        def sound(value: float) -> Audio:
            return Audio(np.full(1, number + value, np.float32), 8000)

        picture = Image(np.full((1, 1, 3), number, np.uint8))
        first = Message.of("user", picture, "and", sound(0.0))
        return Sample((first, Message.of("assistant", "yes"), Message.of("user", sound(0.5), "?")), ("a",), task, "")

    one, two, alone = shuffle_media([sample(1, "x"), sample(2, "x"), sample(3, "y")], np.random.default_rng(0))
    assert [float(part.source.flat[0]) for part in media_of(one)] == [2, 2, 2.5]
    assert [float(part.source.flat[0]) for part in media_of(two)] == [1, 1, 1.5]
    assert [float(part.source.flat[0]) for part in media_of(alone)] == [3, 3, 3.5]
    assert [[type(part) for part in message.parts] for message in one.prompt] == [
        [Image, Text, Audio],
        [Text],
        [Audio, Text],
    ]


def test_media_of_answers_are_exchanged_too():
    def document(number: int) -> Sample:
        pictures = [Image(np.full((1, 1, 3), 10 * number + place, np.uint8)) for place in range(2)]
        return Sample((), ((pictures[0], Text("a"), pictures[1], Text(f"b{number}")),), "continue", "")

    def told(sample: Sample) -> list[str | int]:
        [answer] = sample.answers
        return [p.text if isinstance(p, Text) else int(p.source.flat[0]) for p in answer]  # type: ignore[union-attr]

    one, two = shuffle_media([document(1), document(2)], np.random.default_rng(0))
    assert told(one) == [20, "a", 21, "b1"]
    assert told(two) == [10, "a", 11, "b2"]


def test_controls_are_the_same_for_the_same_seed(samples):
    for control in (shuffle_media, shuffle_frames):
        one, two, other = (control(samples, np.random.default_rng(seed)) for seed in (0, 0, 1))
        arrays = [[part.source for sample in run for part in media_of(sample)] for run in (one, two, other)]
        same = [all(map(np.array_equal, arrays[0], again)) for again in arrays[1:]]
        assert same == [True, False]


def test_shuffled_frames_are_the_same_frames_in_another_order(samples):
    orders = set()
    for before, after in zip(samples, shuffle_frames(samples, np.random.default_rng(0)), strict=True):
        assert after.texts() == before.texts()
        for part, changed in zip(media_of(before), media_of(after), strict=True):
            if isinstance(part, Video):
                assert isinstance(changed, Video)
                frames = [frame.tobytes() for frame in part.source]
                order = [frames.index(frame.tobytes()) for frame in changed.source]
                assert sorted(order) == list(range(len(frames)))
                assert (changed.sound, changed.frame_rate) == (part.sound, part.frame_rate)
                orders.add(tuple(order))
            else:
                assert changed is part
    assert len(orders) > 10


def test_videos_in_files_are_left_as_they_are():
    video = Video("clip.mp4")
    sample = Sample((Message.of("user", video, "?"),), ("left",), "motion", "")
    [after] = shuffle_frames([sample], np.random.default_rng(0))
    assert media_of(after) == [video]


def test_direction_is_in_the_order_of_the_frames_alone():
    samples = [sample for sample in World("train", 300, task="describe") if " and " not in sample.answers[0]]

    def share_told(samples: list[Sample]) -> float:
        told = []
        for sample in samples:
            way = sample.answers[0].split()[-1]
            axis = int(way in DIRECTIONS[1])
            [video] = media_of(sample)
            told.append(DIRECTIONS[axis][int(steps(video.source, axis).sum() > 0)] == way)
        return float(np.mean(told))

    assert share_told(samples) == 1.0
    assert share_told(shuffle_frames(samples, np.random.default_rng(0))) == pytest.approx(0.5, abs=0.15)
