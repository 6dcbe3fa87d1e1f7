"""What a check of the data finds, beside what was put there."""

import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from tiny import some_audio, some_image, some_video

from mmgpt.content import Audio, Image, Message, Text
from mmgpt.data.check import DataCheck, Media, Repeats, Spread, check
from mmgpt.data.lazy import LazySamples
from mmgpt.data.mixture import Mixture
from mmgpt.data.packing import cost
from mmgpt.data.sample import Sample
from mmgpt.errors import DataError


def sample(number: int, *parts, answers=("yes",)) -> Sample:
    return Sample((Message.of("user", *parts, f"What is {number}?"),), answers, "ask", f"x:{number}")


def row(number: int) -> Sample:
    if number == 1:
        raise DataError("x:1: the row is malformed")
    return sample(number)


def test_tokens_and_supervised_ones_are_those_of_the_examples(processor):
    samples = [sample(0, some_image(0), answers=("yes", "a circle")), sample(1)]
    documents = [
        processor.encode_answer(processor.encode_prompt(one.prompt), answer)
        for one in samples
        for answer in one.answers
    ]
    found = check(samples, [sample(2)], processor).train
    assert (found.samples, found.documents) == (2, 3)
    lengths = sorted(map(len, documents))
    assert found.tokens == Spread(lengths[0], lengths[1], lengths[2], lengths[2])
    assert found.supervised == sum(sum(one.supervised) for one in documents) / sum(lengths)


def test_media_are_measured_as_they_are_and_not_as_the_encoders_take_them(processor, tmp_path):
    PIL.Image.new("RGB", (60, 20)).save(tmp_path / "wide.png")
    samples = [
        sample(0, Image(tmp_path / "wide.png"), some_image(1, size=50)),
        sample(1, some_audio(1, samples=4000)),  # at 8000 Hz
        sample(2, Audio(np.zeros(48_000, np.float32), 32_000)),
        sample(3, some_video(1)),  # 3 frames, 4 a second
    ]
    found = check(samples, samples[:1], processor)
    assert found.sound
    assert found.train.media == {
        "image": Media(2, width=Spread(50, 50, 60, 60), height=Spread(20, 20, 50, 50)),
        "audio": Media(2, seconds=Spread(0.5, 0.5, 1.5, 1.5)),
        "video": Media(1, seconds=Spread(0.75, 0.75, 0.75, 0.75)),
    }


def test_media_of_answers_are_counted_once_and_a_broken_one_costs_its_answer(processor, tmp_path):
    (tmp_path / "no.jpg").write_text("no picture")
    shared, own = some_image(0, size=50), some_image(1, size=60)
    answers = ("yes", (Text("so "), own, some_audio(2, samples=4000)), (Text("no "), Image(tmp_path / "no.jpg")))
    document = Sample((), ((own, Text("A circle.")),), "continue", "x:1")
    found = check([sample(0, shared, answers=answers), document], [sample(2)], processor).train
    assert found.documents == 3
    assert found.media["image"] == Media(3, width=Spread(50, 60, 60, 60), height=Spread(50, 60, 60, 60))
    assert found.media["audio"] == Media(1, seconds=Spread(0.5, 0.5, 0.5, 0.5))
    assert found.same_media == Repeats(1, [("x:1", "x:0")])
    (reason,) = found.broken
    assert reason.startswith(f"x:0: {tmp_path / 'no.jpg'}: is damaged or not a picture")


def test_what_several_samples_show_is_counted_once(processor):
    picture = some_image(1)
    first, *more = (sample(i, picture, Text(f"Q{i}?"), answers=("yes",) * i) for i in (1, 2, 3))
    found = check([replace(first, more=tuple(more))], [row(4)], processor).train
    assert (found.samples, found.documents) == (1, 6)
    assert found.media["image"].count == 1
    assert (found.broken, found.too_long) == ([], [])


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_told_by_its_place_and_the_rest_is_read(processor, tmp_path, workers):
    (tmp_path / "no.jpg").write_text("no picture")
    lazy = LazySamples(range(3), row)
    found = check(lazy, [sample(0, Image(tmp_path / "no.jpg")), sample(1)], processor, workers=workers)
    assert not found.sound
    assert found.train.broken == ["x:1: the row is malformed"]
    assert found.train.documents == 2
    (reason,) = found.val.broken
    assert reason.startswith(f"x:0: {tmp_path / 'no.jpg'}: is damaged or not a picture")
    assert found.val.documents == 1


def test_what_is_too_long_for_the_context_or_a_batch_is_told_apart_from_what_is_broken(processor):
    samples = [sample(0, "long " * 200), sample(1, answers=("yes", "long " * 200)), sample(2)]
    found = check(samples, samples[2:], processor)
    assert not found.sound
    assert found.train.broken == []
    assert [reason.partition(":")[0] + reason.partition(":")[2][:2] for reason in found.train.too_long] == [
        "x0:",
        "x1:",
    ]
    assert found.train.documents == 2

    seen = processor.encode_answer(processor.encode_prompt(sample(2, some_image(0)).prompt), "yes")
    for budget, lost in ((cost([seen]), 0), (cost([seen]) - 1, 1)):
        found = check([sample(2, some_image(0))], [sample(3)], processor, batch_tokens=budget)
        assert len(found.train.too_long) == lost
        assert found.sound == (not lost)


def test_the_same_media_and_texts_are_found_within_and_between_the_splits(processor, tmp_path):
    PIL.Image.fromarray(some_image(0).source).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.bmp")  # under another name
    one, other = some_image(1), some_image(2)
    train = [
        sample(0, Image(tmp_path / "a.png")),
        sample(1, one, one),  # twice in one sample is meant so
        sample(2, Image(tmp_path / "b.bmp")),
        sample(3),
        sample(4),
        sample(3),
    ]
    val = [sample(5, other), sample(6, one), sample(4), sample(7, other)]
    found = check(train, val, processor)
    assert found.sound  # there may be reasons for it
    assert found.train.same_media == Repeats(1, [("x:2", "x:0")])
    assert found.train.same_text == Repeats(1, [("x:3", "x:3")])
    assert found.val.same_media == Repeats(1, [("x:7", "x:5")])
    assert found.val.same_text == Repeats(0, [])
    assert found.leaked_media == Repeats(1, [("x:6", "x:1")])
    assert found.leaked_text == Repeats(1, [("x:4", "x:4")])


def test_the_same_words_about_other_media_are_no_repetition(processor):
    train = [sample(0, some_image(number)) for number in range(3)]
    found = check(train, [sample(0, some_image(3))], processor)
    assert found.train.same_text.count == found.leaked_text.count == 0


def test_of_a_mixture_every_sample_is_read_once(processor):
    mixture = Mixture({"a": [sample(i) for i in range(8)], "b": [sample(8)]}, {"a": 1.0, "b": 9.0})
    found = check(mixture, [sample(9)], processor)
    assert found.train.documents == 9
    assert found.train.same_text.count == 0


def test_a_worker_that_dies_is_told(processor):
    def die(number: int) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)
        return sample(number)

    with pytest.raises(DataError, match="a data worker died"):
        check(LazySamples(range(2), die), [sample(0)], processor, workers=1)


def test_progress_goes_by_samples(processor):
    seen = []

    def progress(name, total, rows):
        for number, one in enumerate(rows, 1):
            seen.append((name, number, total))
            yield one

    found = check([sample(0), sample(1)], [sample(2)], processor, progress=progress)
    assert isinstance(found, DataCheck)
    assert seen == [("training", 1, 2), ("training", 2, 2), ("validation", 1, 1)]
