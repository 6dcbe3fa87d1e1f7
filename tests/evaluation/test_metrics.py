import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.errors import DataError
from mmgpt.evaluation.metrics import (
    bleu,
    character_error_rate,
    cider,
    cider_scores,
    edit_distance,
    exact_match,
    interval,
    tokenize,
    word_error_rate,
)

words = st.lists(st.sampled_from(["a", "red", "dog", "runs", "in", "snow"]), min_size=1, max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man, in a red-and-white shirt.", ["a", "man", "in", "a", "red-and-white", "shirt"]),
        ("They don't look; she's smiling!", ["they", "do", "n't", "look", "she", "'s", "smiling"]),
        ("Two dogs (one black) run", ["two", "dogs", "-lrb-", "one", "black", "-rrb-", "run"]),
        ("", []),
    ],
)
def test_words_are_counted_as_the_penn_treebank_does(text, expected):
    assert tokenize(text) == expected


def test_bleu_by_hand():
    # Unigrams: the (clipped at 1) + cat = 2 of 4; bigrams: "the cat" alone, 1 of 3; candidate longer than reference.
    scores = bleu(["the cat the the"], [["the cat sat"]], 2)
    assert scores[0] == pytest.approx(2 / 4, rel=1e-6)
    assert scores[1] == pytest.approx(math.sqrt(2 / 4 * 1 / 3), rel=1e-6)


def test_bleu_takes_the_reference_closest_in_length_for_its_penalty():
    # Three words against references of five and nine: penalty exp(1 - 5 / 3); all unigrams match.
    references = [["a red dog runs home", "a red dog runs home in the deep snow"]]
    assert bleu(["a red dog"], references, 1)[0] == pytest.approx(math.exp(1 - 5 / 3), rel=1e-6)


def test_cider_by_hand():
    # "red dog" and "blue cat" share nothing: each n-gram is in one of two samples, so all weights are log 2, and
    # identical captions have similarity 1 for n = 1 and 2; of n = 3 and 4 there are none. 10 x (1 + 1 + 0 + 0) / 4.
    assert cider_scores(["red dog", "blue cat"], [["red dog"], ["blue cat"]]) == pytest.approx([5, 5])
    assert cider_scores(["blue cat", "red dog"], [["red dog"], ["blue cat"]]) == [0, 0]
    # Half of the unigrams, none of the bigrams: cosine 1/2 for n = 1.
    assert cider_scores(["red cat", "blue cat"], [["red dog"], ["blue bird"]])[0] == pytest.approx(10 * 0.5 / 4)


def test_cider_punishes_another_length():
    same = [["a b c d e"], ["v w x y z"]]
    longer = cider_scores(["a b c d e a b c d e", "v"], same)[0]
    assert longer < cider_scores(["a b c d e", "v"], same)[0]


@given(st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=6), st.randoms())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_scores_lie_in_their_range_and_do_not_depend_on_the_order(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    for metric, most in ((cider, 10), (exact_match, 1), (lambda c, r: bleu(c, r)[3], 1)):
        value = metric(*map(list, zip(*pairs, strict=True)))
        assert -1e-9 <= value <= most + 1e-9
        assert value == pytest.approx(metric(*map(list, zip(*shuffled, strict=True))))


@given(words, words, words)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_edit_distance_is_a_metric(a, b, c):
    a, b, c = a.split(), b.split(), c.split()
    assert edit_distance(a, a) == 0
    assert edit_distance(a, b) == edit_distance(b, a) >= abs(len(a) - len(b))
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


def test_error_rates_are_of_the_whole_corpus():
    # One substitution and one insertion over 2 + 3 reference words.
    assert word_error_rate(["one too", "a b c d"], [["one two"], ["a b c"]]) == pytest.approx(2 / 5)
    assert character_error_rate(["cat"], [["cart"]]) == pytest.approx(1 / 4)
    assert word_error_rate([""], [["one two"]]) == 1
    assert word_error_rate(["x"], [["one two", "x"]]) == 0


def test_exact_match_minds_neither_case_nor_punctuation():
    assert exact_match(["Red.", "two dogs", "no"], [["red"], ["a dog", "Two dogs!"], ["yes"]]) == pytest.approx(2 / 3)


def test_the_interval_is_wilsons():
    # Ends of the Wilson interval are where (p - share)^2 = z^2 p (1 - p) / n.
    for successes, n in ((3, 10), (0, 20), (20, 20), (450, 500)):
        low, high = interval(successes, n)
        assert 0 <= low <= successes / n <= high + 1e-12 <= 1 + 1e-12
        for end in (low, high):
            if 0 < end < 1:
                assert (end - successes / n) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / n)
    assert interval(0, 0) == (0, 1)


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([], [], "nothing to score"),
        (["a"], [], "1 candidates but 0"),
        (["a"], ["text"], "sample 0"),
        (["a"], [[]], "0"),
    ],
)
def test_input_that_cannot_be_scored_is_told(candidates, references, message):
    with pytest.raises(DataError, match=message):
        cider(candidates, references)
