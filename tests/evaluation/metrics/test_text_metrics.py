"""Scores of answers, transcripts, translations and labels."""

import jiwer
import pytest
import sacrebleu as original
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.evaluation.metrics.score import Score, bootstrap, p_value
from mmgpt.evaluation.metrics.text import (
    character_error_rate,
    chrf,
    classification,
    exact_match,
    translation_bleu,
    word_error_rate,
    word_f1,
)

texts = st.lists(st.sampled_from(["the", "cat", "Cat", "sat,", "on", "mats"]), min_size=1, max_size=8).map(" ".join)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=6)


def test_squad_is_that_of_its_own_script():
    # The values are those of get_raw_scores in SQuAD's evaluate-v2.0.py.
    cases = [
        ("the Eiffel Tower", ["Eiffel Tower!", "tower"], 1, 1.0),
        ("a big red dog", ["red dog"], 0, 0.8),
        ("", ["a", "The ..."], 1, 1),
        ("", ["Paris"], 0, 0),
        ("in New-York", ["in new york", "Newyork"], 0, 2 / 3),
        ("dog dog cat", ["dog cat cat"], 0, 2 / 3),
        ("The", ["the", "x"], 0, 0),
    ]
    for said, truths, exact, f1 in cases:
        assert exact_match([said], [truths]).value == exact
        assert word_f1([said], [truths]).value == pytest.approx(f1, rel=1e-14)
    said, truths, *_ = zip(*cases, strict=True)
    assert exact_match(said, truths).value == pytest.approx(2 / 7)
    assert word_f1(said, truths).value == pytest.approx((1 + 0.8 + 1 + 2 / 3 + 2 / 3) / 7)


@given(pairs)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_error_rates_of_a_corpus_are_those_of_jiwer(some):
    said, truths = map(list, zip(*some, strict=True))
    alone = [[truth] for truth in truths]
    assert word_error_rate(said, alone).value == pytest.approx(jiwer.wer(truths, said), rel=1e-14)
    assert character_error_rate(said, alone).value == pytest.approx(jiwer.cer(truths, said), rel=1e-14)
    assert word_error_rate(truths, alone).value == character_error_rate(truths, alone).value == 0


def test_error_rates_by_hand():
    # One substitution and one insertion over 2 + 3 reference words.
    assert word_error_rate(["one too", "a b c d"], [["one two"], ["a b c"]]).value == pytest.approx(2 / 5)
    assert character_error_rate(["cat"], [["cart"]]).value == pytest.approx(1 / 4)
    assert word_error_rate([""], [["one two"]]).value == 1
    assert word_error_rate(["x"], [["one two", "x"]]).value == 0
    assert word_error_rate(["a b"], [[""]]).value == 2  # as jiwer has it where there is nothing to get right


@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_bleu_and_chrf_of_a_corpus_are_those_of_sacrebleu(some):
    said, truths = map(list, zip(*some, strict=True))
    streams = [[group[i] if i < len(group) else None for group in truths] for i in range(max(map(len, truths)))]
    for score, metric in ((translation_bleu(said, truths), original.BLEU()), (chrf(said, truths), original.CHRF())):
        assert 100 * score.value == pytest.approx(metric.corpus_score(said, streams).score, rel=1e-13, abs=1e-13)
        assert score.signature == str(metric.get_signature())


def test_chinese_is_cut_as_sacrebleu_cuts_chinese():
    said, truths = ["一只狗在公园里跑。", "他买了三台 PC。"], ["一只狗在草地上跑。", "他买了两台 PC。"]
    metric = original.BLEU(tokenize="zh")
    found = translation_bleu(said, [[truth] for truth in truths])
    assert 100 * found.value == pytest.approx(metric.corpus_score(said, [truths]).score, rel=1e-13)
    assert found.value > 0.3
    assert found.signature == str(metric.get_signature())
    assert "|tok:zh|" in found.signature
    mostly = ["In China a dog is called 狗.", "Ein Hund läuft im Park."]  # the references decide
    assert "|tok:13a|" in translation_bleu(said, [[truth] for truth in mostly]).signature


def test_the_paired_test_is_that_of_sacrebleu(monkeypatch):
    from sacrebleu.significance import PairedTest

    truths = [f"the {colour} cat sat on the {thing} today" for colour in ("red", "old") for thing in "abcdefghi"]
    some = [text.replace("sat", "is") if i % 5 < 2 else text for i, text in enumerate(truths)]
    other = [text.replace("on", "in") if i % 5 > 2 else text for i, text in enumerate(truths)]
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    _, told = PairedTest([("a", some), ("b", other)], {"BLEU": original.BLEU()}, [truths], "bs", 1000)()
    metrics = [translation_bleu(said, [[truth] for truth in truths]) for said in (some, other)]
    first, second = (bootstrap({"BLEU": metric}, seed=7)["BLEU"] for metric in metrics)
    assert 0.01 < told["BLEU"][1].p_value < 0.99
    assert p_value(first, second, metrics[0].value - metrics[1].value) == told["BLEU"][1].p_value


def test_macro_f1_by_hand():
    # a: 1 hit of 2 said, 1 true: F1 2/3; b: 1 hit, 1 said, 2 true: 2/3; c is said and never true: 0.
    said, truths = ["a", "a", "b ", "c"], [["a"], ["b"], ["b"], ["d"]]
    accuracy, macro_f1 = classification(said, truths)
    assert accuracy.value == 2 / 4
    assert macro_f1.value == pytest.approx((2 / 3 + 2 / 3 + 0 + 0) / 4)


def test_exact_match_minds_neither_case_nor_punctuation_nor_articles():
    score = exact_match(["Red.", "two dogs", "the table", "no"], [["red"], ["a dog", "Two dogs!"], ["table"], ["yes"]])
    assert score.value == pytest.approx(3 / 4)


@given(pairs, st.randoms())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_text_equal_to_its_reference_scores_most_and_order_does_not_matter(some, random):
    def scores(some: list[tuple[str, str]]) -> list[Score]:
        said, truths = [said for said, _ in some], [[truth] for _, truth in some]
        return [exact_match(said, truths), word_f1(said, truths), *classification(said, truths),
                translation_bleu(said, truths), chrf(said, truths)]  # fmt: skip

    shuffled = random.sample(some, len(some))
    assert [one.value for one in scores(some)] == pytest.approx([one.value for one in scores(shuffled)])
    *equal, _, by_characters = (one.value for one in scores([(truth, truth) for _, truth in some]))
    assert [*equal, by_characters] == pytest.approx([1] * 5)
