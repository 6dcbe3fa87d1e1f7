"""Evaluation of a real, if tiny and untrained, model; what its answers are right for is made to fit."""

import dataclasses

import numpy as np
import pytest
from tiny import some_audio, some_image, some_video

from mmgpt.content import Image, Message, Text
from mmgpt.data.controls import shuffle_media
from mmgpt.data.sample import Sample
from mmgpt.evaluation import asking
from mmgpt.evaluation.asking import Answered, answer_all
from mmgpt.evaluation.metrics.captions import cider
from mmgpt.evaluation.metrics.text import exact_match
from mmgpt.evaluation.runner import evaluate, scored, shown
from mmgpt.generation import Decoding

# Drawn: the likeliest tokens of this model are no text; by rank, so that the draws follow the picture.
DECODING = Decoding(max_new_tokens=6, temperature=1.0, top_k=50)


def ask(number: int, *parts, answer: str = "a", task: str = "ask", group: str = "") -> Sample:
    return Sample((Message.of("user", *parts, "What?"),), (answer,), task, f"x:{number}", group)


@pytest.fixture
def pictures() -> list[Sample]:
    return [ask(i, some_image(i)) for i in range(6)]


@pytest.fixture
def right(assistant, pictures) -> list[Sample]:
    """The same, where the model's own answer is the right one."""
    answered = answer_all(assistant, pictures, DECODING).answered
    assert len({one.prediction for one in answered}) > 3
    return [dataclasses.replace(one.sample, answers=(one.prediction,)) for one in answered]


@pytest.fixture
def broken(tmp_path) -> Sample:
    (tmp_path / "no.jpg").write_text("no picture")
    return ask(99, Image(tmp_path / "no.jpg"))


def test_answers_come_in_order_and_as_each_alone(assistant, pictures, monkeypatch):
    monkeypatch.setattr(asking, "GROUP", 4)
    together = answer_all(assistant, pictures, DECODING)
    assert [one.sample for one in together.answered] == pictures
    alone = [answer_all(assistant, [one], DECODING).answered[0].prediction for one in pictures]
    assert [one.prediction for one in together.answered] == alone


def test_broken_and_too_long_samples_are_named_and_the_rest_is_answered(assistant, pictures, broken):
    long = ask(98, "zebra? " * 60)
    answers = answer_all(assistant, [*pictures[:2], broken, long, pictures[2]], DECODING)
    assert [one.sample for one in answers.answered] == pictures[:3]
    assert [line.partition(": ")[0] for line in answers.broken] == ["x:99", "x:98"]
    assert "not a picture" in answers.broken[0]
    assert "more than the context" in answers.broken[1]
    assert answers.broken[1].count("x:98") == 1


def test_a_model_that_is_right_scores_one_and_less_with_shuffled_media(assistant, right):
    score, _ = evaluate(assistant, right, DECODING).scores
    assert (score.task, score.metric, score.n, score.score) == ("ask", "exact match", 6, 1.0)
    assert score.interval is not None
    assert score.interval[0] < 1 <= score.interval[1]
    assert score.control is not None
    assert score.control < 1


def test_the_control_is_the_score_of_the_same_questions_with_other_media(assistant, right):
    score, _ = evaluate(assistant, right, DECODING, seed=5).scores
    spoilt = answer_all(assistant, shuffle_media(right, np.random.default_rng(5)), DECODING).answered
    assert score.control == exact_match([one.prediction for one in spoilt], [one.answers for one in right]).value


def test_there_is_no_control_without_media(assistant):
    score, _ = evaluate(assistant, [ask(i) for i in range(3)], DECODING).scores
    assert score.control is None


def test_each_task_has_the_metrics_of_its_kind(assistant):
    samples = [
        ask(0, some_image(0), task="caption"),
        ask(1, some_audio(1), task="transcribe"),
        ask(2, some_video(2), task="describe"),
        ask(3, some_audio(3), task="classify"),
        ask(4, some_image(4)),
    ]
    evaluation = evaluate(assistant, samples, DECODING)
    told = ["CIDEr-D", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]
    assert [(score.task, score.metric) for score in evaluation.scores] == [
        *[("caption", name) for name in told], ("transcribe", "word error rate"),
        ("transcribe", "character error rate"), *[("describe", name) for name in told],
        ("classify", "accuracy"), ("classify", "macro-F1"), ("ask", "exact match"),
        ("ask", "F1 of words"),
    ]  # fmt: skip
    assert {score.metric for score in evaluation.scores if score.lower_is_better} == {
        "word error rate", "character error rate",
    }  # fmt: skip
    assert all(score.n == 1 for score in evaluation.scores)
    assert len(evaluation.answered) == 5


def test_a_metric_gets_predictions_and_all_references(assistant, pictures):
    samples = [dataclasses.replace(one, task="caption", answers=("a red circle", "a dog")) for one in pictures]
    evaluation = evaluate(assistant, samples, DECODING)
    predictions = [one.prediction for one in evaluation.answered]
    assert evaluation.scores[0].score == cider(predictions, [one.answers for one in samples]).value


def test_questions_with_the_answers_of_ten_people_have_vqa_accuracy(assistant, right):
    said = [one.answers[0] for one in right]
    votes = [(said[0], *["another"] * 7, said[0], said[0]), (*["another"] * 9, said[1])]
    samples = [dataclasses.replace(one, votes=v) for one, v in zip(right, votes, strict=False)] + right[2:]
    exact, _, vqa = evaluate(assistant, samples, DECODING).scores
    assert (exact.metric, exact.score, exact.n) == ("exact match", 1.0, 6)
    assert (vqa.metric, vqa.n) == ("VQA accuracy", 2)
    # Leaving one of the three out leaves two who agree: 2/3 in 3 of 10 cases, 1 in 7; of the one: 0 in 1, 1/3 in 9.
    assert vqa.score == pytest.approx(((3 * 2 / 3 + 7) / 10 + 9 / 3 / 10) / 2)


def test_a_judge_decides_and_groups_are_told_apart_from_the_rest(assistant, pictures):
    groups = ["", "new", "", "odd", "new", ""]
    samples = [dataclasses.replace(one, group=group) for one, group in zip(pictures, groups, strict=True)]
    right = {"x:0", "x:1", "x:2"}
    (score,) = evaluate(assistant, samples, DECODING, judge=lambda sample, _: sample.where in right).scores
    assert (score.score, score.n) == (2 / 3, 3)
    assert score.groups == {"odd": (0, 1), "new": (1 / 2, 2)}
    assert score.control == 2 / 3  # this judge does not look at answers


def test_broken_samples_are_in_no_score(assistant, right, broken):
    evaluation = evaluate(assistant, [*right, broken], DECODING)
    assert (evaluation.scores[0].n, evaluation.scores[0].score) == (6, 1.0)
    assert len(evaluation.broken) == 1


def test_where_all_samples_are_broken_there_is_nothing_to_score(assistant, broken):
    evaluation = evaluate(assistant, [broken], DECODING)
    assert (evaluation.scores, evaluation.answered) == ([], [])
    assert len(evaluation.broken) == 1


def test_a_task_whose_controls_are_all_broken_has_a_score_without_control(assistant, pictures, broken):
    """Each of the two gets the other's picture: the good one's control cannot be asked."""
    evaluation = evaluate(assistant, [pictures[0], broken], DECODING)
    assert evaluation.scores[0].n == 1


def test_what_is_shown_has_the_media_decoded_and_says_what_is_right(assistant, right):
    (one,) = answer_all(assistant, right[:1], DECODING).answered
    sample = shown(one)
    assert (sample.question, sample.prediction, sample.truth, sample.correct) == (
        "What?", right[0].answers[0], right[0].answers[0], True,
    )  # fmt: skip
    assert sample.image is not None
    assert sample.image.size == (40, 40)
    both = ask(0, some_audio(0), some_video(1), answer="nothing of the kind")
    (one,) = answer_all(assistant, [both], DECODING).answered
    sample = shown(one)
    assert sample.correct is False
    assert sample.audio is not None
    assert sample.clip is not None
    assert sample.image is None


def test_a_caption_is_neither_right_nor_wrong_unless_a_judge_says(assistant, pictures):
    (one,) = answer_all(assistant, [dataclasses.replace(pictures[0], task="caption")], DECODING).answered
    assert shown(one).correct is None
    assert shown(one, lambda *_: True).correct is True


def test_a_text_to_continue_is_answered_and_shown_without_a_prompt(assistant):
    text = Sample((), ("Once upon a time.",), "continue", "a.txt: byte 0")
    evaluation = evaluate(assistant, [text], DECODING)
    assert evaluation.scores == []
    told = shown(evaluation.answered[0])
    assert (told.question, told.truth, told.correct) == ("", "Once upon a time.", None)


def test_the_text_of_an_answer_with_media_is_the_reference(assistant):
    document = Sample((), ((Text("A red "), some_image(0), Text("circle.")),), "continue", "a.jsonl:1")
    told = shown(answer_all(assistant, [document], DECODING).answered[0])
    assert (told.question, told.truth, told.correct) == ("", "A red circle.", None)
    assert told.image is None  # nobody was shown it
    question = Sample((Message.of("user", "Draw."),), ((some_image(0), Text("Here.")),), "ask", "a.jsonl:2")
    score, _ = scored([Answered(question, "Here.")], [])
    assert score.score == 1.0
