"""The page of an evaluation, of answers that are made up."""

import re

import numpy as np
import PIL.Image
import pytest
from tiny import some_audio, some_image, some_video

from mmgpt.content import Image, Message
from mmgpt.data.sample import Sample
from mmgpt.evaluation.asking import Answered
from mmgpt.evaluation.exam_report import PLAYED, write_exam_report
from mmgpt.evaluation.runner import beside, measured

SETTINGS = {
    "model": {"name": "runs/some", "int8": False},
    "data": {"path": "my-photos", "format": "captions", "split": "dev", "samples": 9},
    "decoding": {"beams": 1, "temperature": 0.0, "max_new_tokens": 48, "seed": 0, "choose": False},
}


def said(task: str, truth: str, prediction: str, *parts, where: str = "x:1", **fields) -> Answered:
    return Answered(Sample((Message.of("user", *parts, "What?"),), (truth,), task, where, **fields), prediction)


@pytest.fixture
def page(tmp_path):
    """page(answers, failed) -> the text of the page."""

    def make(answers, failed=()) -> str:
        answered = dict(enumerate(answers))
        controls = {i: Answered(one.sample, f"shuffled {i}") for i, one in answered.items()}
        measures, path = measured(answers), tmp_path / "report.html"
        lost = dict(enumerate(failed, 900))
        write_exam_report(path, SETTINGS, measures, beside(measures, []), answered, controls, lost)
        return path.read_text("utf-8")

    return make


def cards(page: str) -> list[str]:
    return re.findall(r'<dd class="prediction" dir="auto">(.*?)</dd>', page)


def test_samples_come_worst_first_in_each_task(page):
    told = page(
        [
            said("transcribe", "a b c d", "a b c d"),
            said("classify", "dog", "dog"),
            said("transcribe", "a b c d", "x y z"),
            said("transcribe", "a b c d", "a b c"),
            said("classify", "cat", "dog again"),
        ]
    )
    assert cards(told) == ["x y z", "a b c", "a b c d", "dog again", "dog"]
    assert re.findall(r'<p class="verdict">(.*?)</p>', told) == ["✗ wrong", "✗ wrong", "✓ right", "✗ wrong", "✓ right"]
    assert told.count("shuffled 2</dd>") == 1


def test_the_confusion_matrix_counts_what_is_taken_for_what(page):
    pairs = [("cat", "cat"), ("cat", "dog"), ("cat", "dog"), ("dog", "dog"), ("dog", "<b>owl")]
    told = page([said("classify", *pair) for pair in pairs])
    (table,) = re.findall(r'<section class="confusion">.*?</section>', told, re.DOTALL)
    heads = re.findall(r'<th scope="col">(.*?)</th>', table)
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table)
    found = {name: re.findall(r"<td[^>]*>(.*?)</td>", cells) for name, cells in rows}
    assert heads == ["cat", "dog", "&lt;b&gt;owl"]
    assert found == {"cat": ["1", "2", ""], "dog": ["", "1", "1"]}


def test_classes_beyond_the_most_frequent_share_one_place(page):
    answers = [said("classify", f"kind {i}", f"kind {i}") for i in range(20) for _ in range(30 - i)]
    told = page(answers)
    assert re.findall(r'<th scope="col">(kind \d+|.*?others)</th>', told) == [*(f"kind {i}" for i in range(12)),
                                                                              "8 others"]  # fmt: skip
    assert f">{sum(30 - i for i in range(12, 20))}</td></tr></tbody>" in told


def test_scores_are_told_by_the_length_of_the_right_answer(page):
    told = page([said("ask", "a", "a"), said("ask", "b", "c"), said("ask", "one two three", "one two three")])
    assert split(told, "length of the right answer") == [("1 word", "50.0", "2"), ("3 – 4 words", "100.0", "1")]
    assert not split(page([said("ask", "a", "a"), said("ask", "b", "c")]), "length of the right answer")


def split(page: str, by: str) -> list[tuple[str, str, str]]:
    """The rows of a chart: name, score, number."""
    sections = re.findall(rf'<section class="split"><h2>By the {by}.*?</section>', page, re.DOTALL)
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>.*?</td><td>(.*?)</td><td>(.*?)</td></tr>', "".join(sections))
    return [(name, score.split()[0], n) for name, score, n in rows]


def test_scores_are_told_by_the_kinds_that_the_data_tell(page):
    kinds = [{"question type": "how many"}, {"question type": "how many"}, {"question type": "is"}, {}]
    told = page([said("ask", "a", "a" if i else "b", kinds=kind) for i, kind in enumerate(kinds)])
    assert split(told, "question type") == [("how many", "50.0", "2"), ("is", "100.0", "1"), ("not told", "100.0", "1")]
    assert re.findall(r"<option [^>]*>([^<]*)<", told) == ["all", "how many (2)", "is (1)"]


def test_where_people_were_asked_vqa_accuracy_sorts_and_some_agreement_is_no_verdict(page):
    votes = [("a",) * 10, ("b",) * 9 + ("a",), ("b",) * 8 + ("a",) * 2]
    told = page([said("ask", "a", "a", votes=one, where=str(i)) for i, one in enumerate(votes)])
    assert re.findall(r'class="where">(.*?)<', told) == ["1", "2", "0"]
    # One who agrees is left out once of ten times, and counts a third else; of two, one is, or both count two thirds.
    assert re.findall(r'class="verdict">(.*?)<', told) == ["score 0.30", "score 0.60", "✓ right"]
    assert "by the score" not in told


def test_a_thousand_samples_make_a_page_that_shows_all_their_media(page):
    noise = PIL.Image.effect_noise((400, 400), 20).convert("RGB").resize((200, 200)).resize((400, 400))
    answers = [said("caption", f"a dog {i}", "a dog", Image(noise)) for i in range(1100)]
    told = page([*answers, *(said("transcribe", "a", "a", some_audio(i)) for i in range(30))])
    assert len(told) < 20_000_000
    assert told.count("<article") == 500 + 30
    assert "the best and worst 530 of 1,130" in told
    assert told.count("<img") == 500 + 30  # pictures, spectrograms
    assert told.count("<audio") == 30


def test_of_many_clips_some_can_be_played_and_all_are_seen(page):
    told = page([said("describe", f"it {i}", "it", some_video(i % 3)) for i in range(PLAYED + 2)])
    assert told.count("<article") == told.count('<ol class="frames"') == PLAYED + 2
    assert told.count("<video") == PLAYED
    assert told.count("<audio") == 2  # the sound tracks of the others


def test_samples_are_filtered_by_class_length_and_score(page):
    told = page([said("classify", "dog", "dog"), said("classify", "big cat", "dog"), said("classify", "dog", "cat")])
    assert re.findall(r"<option [^>]*>([^<]*)<", told) == [
        "all", "1 word (2)", "2 words (1)", "all", "big cat (1)", "dog (2)",
    ]  # fmt: skip
    told = page([said("caption", "a dog", "a dog"), said("caption", "red cars", "red"), said("caption", "x y", "z")])
    assert "Score <select" in told
    assert 'id="show-all"' not in told  # nothing is right or wrong


def test_nothing_is_fetched_and_nothing_runs(page, tmp_path):
    evil = "<script>alert(1)</script>"
    told = page([said("classify", evil, evil, some_image(1), where=evil), said("ask", evil, "a b")], [evil] * 30)
    assert "<script" not in told
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', told))
    assert "and 10 more" in told


def test_tasks_and_right_and_wrong_can_be_chosen(page):
    told = page([said("ask", "a", "a"), said("classify", "b", "c")])
    assert re.findall(r'id="((?:show|only)-\w+)"( checked)?', told) == [
        ("show-all", " checked"), ("show-right", ""), ("show-wrong", ""),
        ("only-all", " checked"), ("only-0", ""), ("only-1", ""),
    ]  # fmt: skip
    assert "body:has(#only-1:checked) .task:not(#task-1)" in told
    assert 'id="only-' not in page([said("ask", "a", "a")])


def test_a_medium_that_has_gone_since_costs_its_picture_alone(page, tmp_path):
    told = page([said("ask", "a", "b", Image(tmp_path / "gone.jpg")), said("ask", "a", "a", some_image(1))])
    assert told.count("<article") == 2
    assert told.count("<img") == 1


def test_a_task_without_a_metric_is_shown_as_it_is(page):
    told = page([said("continue", "a tale", "once"), said("continue", "another", "upon")])
    assert cards(told) == ["once", "upon"]
    assert not np.any([mark in told for mark in ("✓", "✗")])
