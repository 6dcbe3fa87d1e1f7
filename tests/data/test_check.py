"""What a check of the data finds, beside what was put there."""

import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import some_audio, some_image, some_video

from mmgpt.content import Audio, Image, Message, Text
from mmgpt.data.check import DataCheck, Media, Repeats, Spread, check, unread
from mmgpt.data.lazy import LazySamples
from mmgpt.data.mixture import Mixture
from mmgpt.data.packing import cost
from mmgpt.data.readers import read_samples
from mmgpt.data.sample import Sample
from mmgpt.errors import DataError
from mmgpt.run_config import DataConfig, SourceConfig


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


# Rows that make no samples


CHAT = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
SEEN = {"messages": [{"role": "user", "content": [{"type": "image", "path": "no"}]}, CHAT["messages"][1]]}
LLAVA = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
PICTURES = [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "no"}]


def lines(*rows) -> str:
    return "".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in rows)


@pytest.mark.parametrize(
    ("format", "file", "text", "malformed", "missing"),
    [
        ("captions", "captions.csv", "image,caption\na,A\na,\nno,A\na\nno,B\na,B\n", (":3", ":5"), (":4",)),
        ("captions", "captions.txt", "a\tA\na\nno\tA\nb A\n", (":2", ":4"), (":3",)),
        ("captions", "captions.csv", 'image,caption\na,A\na,\nno,A\na,"A\n', (":3", ":5"), (":4",)),
        ("sounds", "labels.jsonl", lines({"file": "a", "label": "A"}, "{\n", "[]\n", {"file": "no", "label": "A"}),
         (":2", ":3"), (":4",)),
        ("speech", "manifest.json",
         lines({"audio_filepath": "a", "text": "A"}, "x\n", {"audio_filepath": "a"},
               {"audio_filepath": "no", "text": "A"}),
         (":2", ":3"), (":4",)),
        ("chat", "chat.jsonl", lines(CHAT, "{\n", SEEN, {"messages": []}), (":2", ":4"), (":3",)),
        ("llava", "rows.jsonl", lines(LLAVA, "{\n", "[]\n", {"image": "no", **LLAVA}, {}), (":2", ":3", ":5"), (":4",)),
        ("llava", "rows.json", json.dumps([LLAVA, 1, {"image": "no", **LLAVA}, {}]), (": [1]", ": [3]"), (": [2]",)),
        ("texts", "rows.csv", "image,question,answer\n,Q,A\n,Q\nno,Q,A\n,,A\n", (":3", ":5"), (":4",)),
        ("coco", "captions_train.json",
         json.dumps({"images": PICTURES, "annotations": [
             {"image_id": 1, "caption": "A"}, {"image_id": 3, "caption": "A"}, {"image_id": 1},
             {"image_id": 2, "caption": "A"},
         ]}), (": annotations[1]", ": annotations[2]"), (": annotations[3]",)),
        ("coco", "captions_train.json", json.dumps({"images": [{}, *PICTURES, PICTURES[0]], "annotations": [{}]}),
         (": images[0]", ": images[3]"), ()),
        ("coco", "captions_train.json", "{", (":1",), ()),  # which is where it ends
    ],
)  # fmt: skip
def test_all_malformed_rows_and_missing_files_are_told(tmp_path, format, file, text, malformed, missing):
    (tmp_path / "a").touch()
    (tmp_path / file).write_text(text)
    config = DataConfig(format, str(tmp_path / file))
    with pytest.raises(DataError) as ended:
        read_samples(config, "train")
    found = unread(config, ended.value)
    for reasons, places in ((found.malformed, malformed), (found.missing, missing)):
        assert len(reasons) == len(places), reasons
        for reason, place in zip(sorted(reasons), places, strict=True):
            assert reason.startswith(f"{tmp_path / file}{place}: ")
    assert str(ended.value).startswith(found.malformed[0])


def test_all_annotations_of_vqa_are_told_and_then_all_questions(tmp_path):
    said = {"answers": [{"answer": "A"}]}
    annotations = [
        {"question_id": 1, **said},
        {"question_id": 2},
        {"question_id": 3, **said},
        {"question_id": 1, **said},
    ]
    questions = [
        {"question_id": 1, "image_id": 1, "question": "Q"},
        {"question_id": 9},
        {"question_id": 3, "image_id": 3},
    ]
    (tmp_path / "000000000001.jpg").touch()
    (tmp_path / "train_questions.json").write_text(json.dumps({"questions": questions}))
    config, places = DataConfig("vqa", str(tmp_path)), []
    for more in (annotations, [one for i, one in enumerate(annotations) if i in (0, 2)]):
        (tmp_path / "train_annotations.json").write_text(json.dumps({"annotations": more}))
        found = unread(config, DataError(""))
        assert not found.missing
        places.append([reason.split(": ")[1] for reason in found.malformed])
    assert places == [["annotations[1]", "annotations[3]"], ["questions[1]", "questions[2]"]]


def test_rows_of_tables_that_are_read_one_by_one_are_told_too(tmp_path):
    answers = ["A", "", "A", "", "A"]
    pq.write_table(pa.table({"question": ["Q"] * 5, "answer": answers, "split": ["train"] * 4 + ["dev"]}),
                   tmp_path / "rows.parquet")  # fmt: skip
    found = unread(DataConfig("parquet", str(tmp_path)), DataError(""))
    assert len(found.malformed) == 2
    assert all("the answer is" in reason for reason in found.malformed)


def test_both_splits_and_all_sources_of_a_mixture_are_told_each_fault_once(tmp_path):
    for name, rows in (("a", "Q,\nQ,A\nQ,B\n"), ("b", "Q,A\n,B\nQ,C\n")):
        (tmp_path / f"{name}.csv").write_text("question,answer\n" + rows)
    mix = {name: SourceConfig("texts", str(tmp_path / f"{name}.csv")) for name in "ab"}
    mix["c"] = SourceConfig("captions", str(tmp_path / "no"))
    found = unread(DataConfig("mix", mix=mix), DataError(""))
    assert [reason.partition(": ")[0] for reason in found.malformed] == [
        f"{tmp_path / 'a.csv'}:2", f"{tmp_path / 'b.csv'}:3", f"{tmp_path / 'no'}",
    ]  # fmt: skip


def test_where_every_row_is_well_the_error_is_what_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\nQ,A\nQ,B\n")
    found = unread(DataConfig("texts", str(tmp_path / "a.csv")), DataError("no room"))
    assert (found.malformed, found.missing) == (["no room"], [])
