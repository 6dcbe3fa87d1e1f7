import json
from pathlib import Path
from typing import Any

import pytest

from mmgpt.content import Image, Text
from mmgpt.data.vqa import read_vqa
from mmgpt.errors import DataError

TEN = ["dog"] * 5 + ["puppy"] * 3 + ["cat", ""]


def question(number: int, picture: Any, text: Any = "What is it?") -> dict[str, Any]:
    return {"question_id": number, "image_id": picture, "question": text}


def annotation(number: Any, answers: list[Any] = TEN, **fields: Any) -> dict[str, Any]:
    return {"question_id": number, "answers": [{"answer": answer, "answer_id": 1} for answer in answers], **fields}


def write(root: Path, subset: str, questions: list[Any], annotations: list[Any] | None, place: str = "") -> Path:
    (root / f"v2_OpenEnded_mscoco_{subset}_questions.json").write_text(json.dumps({"questions": questions}))
    if annotations is not None:
        (root / f"v2_mscoco_{subset}_annotations.json").write_text(json.dumps({"annotations": annotations}))
    (root / place).mkdir(parents=True, exist_ok=True)
    for picture in (one["image_id"] for one in questions if isinstance(one, dict)):
        if isinstance(picture, int):
            (root / place / f"COCO_{subset}_{picture:012}.jpg").touch()
    return root


def names(samples) -> list[str]:
    return [sample.prompt[0].parts[0].source.name for sample in samples]


@pytest.mark.parametrize("place", ["", "images", "train2014", "images/train2014"])
def test_training_learns_the_answer_of_the_majority_alone(tmp_path, place):
    questions = [question(1, 9), question(2, 12, "Why?\n"), question(3, 12)]
    annotations = [annotation(i, multiple_choice_answer="a dog") for i in (3, 2, 1)]
    samples = read_vqa(write(tmp_path, "train2014", questions, annotations, place), "train")
    assert names(samples) == ["COCO_train2014_000000000012.jpg"]  # 9 is held out
    [other] = samples[0].more
    picture, text = samples[0].prompt[0].parts
    assert other.prompt[0].parts == (picture, Text("What is it?"))
    assert other.where.endswith("questions.json: questions[2]")
    assert isinstance(picture, Image)
    assert picture.source == tmp_path / place / "COCO_train2014_000000000012.jpg"
    assert (text, samples[0].answers, samples[0].task) == (Text("Why?"), ("a dog",), "ask")
    assert samples[0].where.endswith("questions.json: questions[1]")


def test_held_out_questions_may_be_answered_as_three_of_ten_did(tmp_path):
    types = {"question_type": "what is", "answer_type": "other"}
    annotations = [annotation(1, multiple_choice_answer="dog", **types), annotation(2, ["a", "b", "b"]),
                   annotation(3, ["x"])]  # fmt: skip
    [*samples] = read_vqa(write(tmp_path, "val2014", [question(i, 1) for i in (1, 2, 3)], annotations), "dev")
    assert [sample.answers for sample in samples] == [("dog", "puppy"), ("b",), ("x",)]
    assert [sample.votes for sample in samples] == [tuple(TEN), (), ()]  # as VQA's own measure wants them
    assert [sample.kinds for sample in samples] == [{"question type": "what is", "answer type": "other"}, {}, {}]


def test_each_split_has_its_files_and_without_dev_a_tenth_of_the_pictures_is_held_out(tmp_path):
    pictures = [picture for picture in range(20) for _ in range(2)]
    write(tmp_path, "train2014", [question(i, p) for i, p in enumerate(pictures)], [annotation(i) for i in range(40)])
    held = names(read_vqa(tmp_path, "dev"))
    assert held == [f"COCO_train2014_{picture:012}.jpg" for picture in (0, 0, 10, 10)]
    assert not set(held) & set(names(read_vqa(tmp_path, "train")))
    write(tmp_path, "val2014", [question(1, 7)], [annotation(1)])
    assert names(read_vqa(tmp_path, "val")) == ["COCO_val2014_000000000007.jpg"]
    assert [len(sample.exchanges) for sample in read_vqa(tmp_path, "train")] == [2] * 20


def test_pictures_may_have_the_names_of_coco_2017(tmp_path):
    write(tmp_path, "val2014", [question(1, 7)], [annotation(1)])
    (tmp_path / "COCO_val2014_000000000007.jpg").rename(tmp_path / "000000000007.jpg")
    assert names(read_vqa(tmp_path, "dev")) == ["000000000007.jpg"]


@pytest.mark.parametrize(
    ("questions", "annotations", "message"),
    [
        ([], [annotation(1)], r'questions.json: the list "questions" is empty'),
        ([3], [annotation(1)], r"questions.json: questions\[0\] is not an object"),
        ([question(2, 1)], [annotation(1)], r"questions\[0\]: question_id 2 has no annotation, so no answers"),
        ([question(1, "9")], [annotation(1)], r'questions\[0\]: image_id is "9"; it is a number'),
        ([question(1, 9, " ")], [annotation(1)], r'questions\[0\]: the question is " "; it is a string'),
        (
            [question(1, 9)],
            [annotation(1), annotation(1)],
            r"annotations\[1\]: question_id 1 is missing, or that of an",
        ),
        ([question(1, 9)], [annotation([1])], r"annotations\[0\]: question_id \[1\] is missing"),
        ([question(1, 9)], [annotation(1, answers=[5])], r"annotations\[0\]: an answer is 5; it is a string"),
        ([question(1, 9)], [annotation(1, answers=[])], r"annotations\[0\]: the answer is None; fill it in"),
        ([question(1, 9)], [annotation(1, multiple_choice_answer=" ")], r'annotations\[0\]: the answer is " "'),
        (
            [question(1, 9)],
            [{"question_id": 1, "answers": "dog"}],
            r'annotations\[0\]: "answers" is "dog"; it is a list',
        ),
    ],
)
def test_malformed_json_is_told_with_its_place(tmp_path, questions, annotations, message):
    with pytest.raises(DataError, match=message):
        read_vqa(write(tmp_path, "val2014", questions, annotations), "dev")


def test_missing_pictures_are_counted_and_missing_files_told(tmp_path):
    with pytest.raises(DataError, match=r"no such folder; format vqa reads the folder"):
        read_vqa(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r'no questions of the split "dev"; there are none'):
        read_vqa(tmp_path, "dev")
    write(tmp_path, "test2015", [question(1, 7)], None)
    with pytest.raises(DataError, match=r"test2015_questions.json: no annotations beside it"):
        read_vqa(tmp_path, "test")
    write(tmp_path, "val2014", [question(i, i) for i in (1, 2)], [annotation(i) for i in (1, 2)])
    for file in tmp_path.glob("COCO_val*"):
        file.unlink()
    with pytest.raises(DataError, match=r'questions\[0\]: "COCO_val2014_000000000001.jpg" is not in .*\(1 more are'):
        read_vqa(tmp_path, "dev")
    write(tmp_path, "val2017", [question(1, 7)], [annotation(1)])
    with pytest.raises(DataError, match=r"which file: .*val2014_questions.json or .*val2017_questions.json\?"):
        read_vqa(tmp_path, "dev")
