"""Predictions and references of the field's own formats: what is read, and what is told of files that do not fit."""

import json

import pytest

from mmgpt.errors import DataError
from mmgpt.evaluation.predictions import read_predictions, read_references

CAPTIONS = {
    "images": [{"id": 7}, {"id": 9}],
    "annotations": [
        {"id": 1, "image_id": 9, "caption": "A dog."},
        {"id": 2, "image_id": 7, "caption": "A cat."},
        {"id": 3, "image_id": 9, "caption": "The dog runs."},
    ],
}
VQA = {
    "annotations": [
        {
            "question_id": 5,
            "answer_type": "yes/no",
            "question_type": "is the",
            "answers": [{"answer": "yes", "answer_id": 1}, {"answer": "no"}],
        },
        {"question_id": 6, "answers": [{"answer": "2"}]},
    ]
}


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: object):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def test_coco_results_are_held_against_all_captions_of_their_picture(write):
    references = read_references(write("refs.json", CAPTIONS), "caption")
    assert {name: one.texts for name, one in references.items()} == {"9": ["A dog.", "The dog runs."], "7": ["A cat."]}
    results = [{"image_id": 7, "caption": "cat"}, {"image_id": 9, "caption": "dog"}]
    assert read_predictions(write("said.json", results), "caption", references) == ["dog", "cat"]


def test_vqa_results_are_held_against_all_answers_of_their_question(write):
    references = read_references(write("refs.json", VQA), "vqa")
    assert [(one.texts, one.kinds) for one in references.values()] == [
        (["yes", "no"], {"question type": "is the", "answer type": "yes/no"}), (["2"], {}),
    ]  # fmt: skip
    results = [{"question_id": 6, "answer": "two"}, {"question_id": 5, "answer": ""}]
    assert read_predictions(write("said.json", results), "vqa", references) == ["", "two"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("said.tsv", "id\ttext\nb\ttwo words\na\tone\n"),
        ("said.csv", 'text,id\n"two words",b\none,a\n'),
        ("said.jsonl", '{"id": "b", "text": "two words", "more": 1}\n{"id": "a", "text": "one"}\n'),
    ],
)
def test_tables_name_id_and_text(write, name, content):
    references = read_references(write("refs.csv", "id,text\na,1\nb,2\n"), "asr")
    assert read_predictions(write(name, content), "asr", references) == ["one", "two words"]


def test_an_id_may_have_several_right_texts_where_the_task_has_them(write):
    path = write("refs.tsv", "id\ttext\na\tone\na\tother\n")
    assert read_references(path, "qa")["a"].texts == read_references(path, "translation")["a"].texts == ["one", "other"]
    for task in ("asr", "classification"):
        with pytest.raises(DataError, match=r'refs.tsv:3: the id "a" is that of .*refs.tsv:2 too; keep one'):
            read_references(path, task)


def test_an_evaluations_answers_are_predictions_and_references_of_any_task(write):
    lines = [
        {"id": "a:1", "truths": ["dog"], "prediction": "cat", "control": "x"},
        {"id": "a:1", "truths": ["no", "yes"], "prediction": "yes", "kinds": {"answer type": "yes/no"}},
        {"id": "a:2", "truths": ["dog"], "prediction_failed": "a:2: not a picture"},
    ]
    path = write("answers.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for task in ("caption", "vqa", "qa"):
        references = read_references(path, task)
        assert [(one.texts, one.kinds) for one in references.values()] == [
            (["dog"], {}), (["no", "yes"], {"answer type": "yes/no"}),
        ]  # fmt: skip
        assert read_predictions(path, task, references) == ["cat", "yes"]
    with pytest.raises(DataError, match=r"answers.jsonl:1: no truths; an answers.jsonl is what `mmgpt eval` writes"):
        read_references(write("answers.jsonl", '{"id": "1", "text": "a"}\n'), "qa")
    costs = {"id": "a:1", "truths": ["a"], "prediction": {"nats": 1.0, "tokens": 2}}
    with pytest.raises(DataError, match=r"answers.jsonl:1: the prediction is .*; it is a text"):
        read_predictions(write("answers.jsonl", json.dumps(costs) + "\n"), "qa", {})


RESULTS = [{"image_id": 7, "caption": "cat"}, {"image_id": 9, "caption": "dog"}]


@pytest.mark.parametrize(
    ("results", "told"),
    [
        (
            RESULTS[:1],
            r'said.json: no prediction with the image_id "9", which .*refs.json: annotations\[0\] has; predict',
        ),
        ([], r'the list "results" is empty'),
        (
            [*RESULTS, {"image_id": 8, "caption": ""}],
            r'results\[2\]: there is no reference with the image_id "8"; remove',
        ),
        ([*RESULTS, *[{"image_id": i, "caption": ""} for i in (3, 4, 5)]], r'image_id "3" \(2 more are like it\)'),
        ([*RESULTS, RESULTS[0]], r'results\[2\]: the image_id "7" is that of .*results\[0\] too; keep one'),
        ([*RESULTS[:1], {"image_id": 9}], r"results\[1\]: the caption is missing"),
        ([{"image_id": 7, "caption": 3}], r"results\[0\]: the caption is 3; it is a text"),
        ([{"caption": "cat"}], r"results\[0\]: the image_id is missing"),
        ([{"image_id": True, "caption": "cat"}], r"the image_id is True; it is a number or a text"),
        (["cat"], r"results\[0\] is not an object"),
        ({"7": "cat"}, r'said.json: not a list; results are \[{"image_id": ..., "caption": ...}, ...\]'),
        ("[{", r"said.json:1: not JSON"),
    ],
)
def test_results_that_do_not_fit_are_told_with_their_place(write, results, told):
    references = read_references(write("refs.json", CAPTIONS), "caption")
    with pytest.raises(DataError, match=told):
        read_predictions(write("said.json", results), "caption", references)


@pytest.mark.parametrize(
    ("name", "content", "task", "told"),
    [
        ("refs.json", RESULTS, "caption", r'refs.json: no list "annotations"'),
        ("refs.tsv", "id\ttext\n", "caption", r"refs.tsv: caption is read from .json, as COCO writes it"),
        ("refs.json", VQA, "qa", r"refs.json: qa is read from .tsv, .csv or .jsonl with the columns id and text"),
        ("refs.json", {"annotations": [{"question_id": 1, "answers": []}]}, "vqa", r'"answers" is \[\]; it is a list'),
        ("refs.json", {"annotations": VQA["annotations"] * 2}, "vqa", r'annotations\[2\]: the question_id "5" is that'),
        ("refs.csv", "id,label\n1,a\n", "classification", r"no column for the text \(named text\); the columns are"),
        ("refs.csv", "id,text\n1,a,b\n", "asr", r"refs.csv:2: 3 fields, where the header has 2"),
        ("refs.jsonl", '{"id": 1, "text": "a"}\n{"id": 2}\n', "asr", r"refs.jsonl:2: the text is missing"),
        ("refs.tsv", "id\ttext\n \ta\n", "asr", r'refs.tsv:2: the id is " "; it is a number or a text'),
    ],
)
def test_references_that_cannot_be_read_are_told_with_their_place(write, name, content, task, told):
    with pytest.raises(DataError, match=told):
        read_references(write(name, content), task)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match=r"no.json: cannot be read: No such file"):
        read_references(tmp_path / "no.json", "caption")
