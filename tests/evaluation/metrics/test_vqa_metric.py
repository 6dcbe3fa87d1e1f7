"""VQA accuracy. The values are those of VQAEval of VQA's own PythonEvaluationTools (vqaEval.py, ported to Python 3)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.evaluation.metrics.vqa import normalised, vqa_accuracy

CASES = [
    ("Two", ["2"] * 6 + ["two", "3", "3", "4"], 100),
    ("yes", ["yes"] * 10, 100),
    ("Yes", ["yes"] * 10, 0),  # where all people agree nothing is normalised
    ("the red/blue", ["red blue"] * 2 + ["a red, blue", "red"] + ["blue"] * 6, 90),
    ("dont know", ["don't know", "dont know.", "unknown"] + ["no idea"] * 7, 60),
    ("3,000.", ["3000", "3,000"] + ["many"] * 8, 60),
    ("x-ray", ["x ray", "xray", "X-Ray"] + ["scan"] * 7, 60),
    ("1.5", ["1.5"] + ["1"] * 9, 30),
]


@pytest.mark.parametrize(("said", "answers", "expected"), CASES)
def test_an_answer_scores_as_vqas_own_evaluation_says(said, answers, expected):
    assert 100 * vqa_accuracy([said], [answers]).value == pytest.approx(expected, rel=1e-12)


def test_the_accuracy_is_the_mean_over_questions():
    said, answers, _ = zip(*CASES, strict=True)
    assert 100 * vqa_accuracy(said, answers).value == pytest.approx(62.5)


@pytest.mark.parametrize(
    ("answer", "expected"),
    # By processPunctuation and processDigitArticle.
    [
        ("The dog, and a cat.", "dog and cat"),
        ("none", "0"),
        ("Ten o'clock", "10 o'clock"),
        ("oclock couldnt've couldn'tve", "o'clock couldn't've couldn't've"),
        ("somebody'd yall'll", "somebodyd y'all'll"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("1,2-3", "123"),
        ("U.S. 1.5", "us 1.5"),
    ],
)
def test_answers_are_normalised_as_in_the_original(answer, expected):
    assert normalised(answer) == expected


@given(st.lists(st.sampled_from(["a cat", "cat", "2", "two", "no"]), min_size=10, max_size=10), st.randoms())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_what_four_people_say_is_right_and_their_order_does_not_matter(answers, random):
    shuffled = random.sample(answers, len(answers))
    assert vqa_accuracy(["cat"], [answers]).value == pytest.approx(vqa_accuracy(["cat"], [shuffled]).value)
    assert vqa_accuracy([answers[0]], [answers[:1] * 4 + answers[4:]]).value == pytest.approx(1)
