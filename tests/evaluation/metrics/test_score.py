"""Intervals and tests: by formula where there is one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.evaluation.metrics.captions import bleu, cider, rouge_l
from mmgpt.evaluation.metrics.score import RESAMPLES, Score, bootstrap, mean, p_value, percentiles, wilson
from mmgpt.evaluation.metrics.text import (
    chrf,
    classification,
    exact_match,
    translation_bleu,
    word_error_rate,
    word_f1,
)
from mmgpt.evaluation.metrics.vqa import vqa_accuracy

words = st.lists(st.sampled_from(["a", "red", "dog", "runs", "snow"]), min_size=1, max_size=6).map(" ".join)


def all_scores(said, truths):
    """Those whose resample is the score of the samples drawn; CIDEr keeps the frequencies of the whole set."""
    return [*bleu(said, truths), rouge_l(said, truths), word_error_rate(said, truths), exact_match(said, truths),
            word_f1(said, truths),
            *classification(said, truths), vqa_accuracy(said, truths),
            translation_bleu(said, truths), chrf(said, truths)]  # fmt: skip


@given(st.lists(st.tuples(words, words, st.integers(0, 3)), min_size=2, max_size=5))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_weights_count_samples_as_often_as_if_they_were_there(samples):
    if not any(times for *_, times in samples):
        return
    said, truths, times = map(list, zip(*samples, strict=True))
    repeated = [(one, truth) for one, truth, n in samples for _ in range(n)]
    expected = all_scores([one for one, _ in repeated], [[truth] for _, truth in repeated])
    found = all_scores(said, [[truth] for truth in truths])
    weights = np.array(times, dtype=float)
    assert [score.weighted(weights) for score in found] == pytest.approx([score.value for score in expected])


def test_resamples_of_cider_are_means_of_the_samples_scores():
    score = cider(["red dog", "blue bird"], [["red dog"], ["blue cat"]])
    assert score.weighted(np.array([3.0, 1.0])) == pytest.approx((3 * 5 + 10 * 0.5 / 4) / 4)


def test_the_interval_of_a_mean_is_about_that_of_the_normal_distribution():
    values = np.random.default_rng(3).normal(0.5, 0.2, 400)
    low, high = percentiles(bootstrap({"it": mean(values)})["it"])
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_a_resample_is_as_large_as_the_set():
    assert set(bootstrap({"drawn": Score(7, lambda weights: weights.sum())})["drawn"]) == {7}


def test_the_same_seed_draws_the_same_and_all_scores_share_the_draws():
    values = np.arange(20.0)
    drawn = bootstrap({"one": mean(values), "two": mean(2 * values)}, seed=4)
    assert len(drawn["one"]) == RESAMPLES
    assert np.allclose(drawn["two"], 2 * drawn["one"])
    assert np.array_equal(bootstrap({"one": mean(values)}, seed=4)["one"], drawn["one"])
    assert not np.array_equal(bootstrap({"one": mean(values)}, seed=5)["one"], drawn["one"])


def test_the_paired_test_tells_a_difference_of_every_sample_from_none():
    values = np.random.default_rng(0).normal(0, 1, 200)
    noise = np.random.default_rng(1).normal(0, 0.1, 200)
    scores = {"first": mean(values), "noisy": mean(values + noise - noise.mean()), "better": mean(values + 0.1 + noise)}
    drawn = bootstrap(scores)
    p = {name: p_value(drawn[name], drawn["first"], scores[name].value - scores["first"].value) for name in scores}
    assert p["first"] == 1
    assert p["noisy"] > 0.2
    assert p["better"] == 1 / (RESAMPLES + 1)


def test_a_score_that_some_resamples_lack_has_an_interval_by_the_others():
    assert percentiles(np.array([math.nan, 0.5, 0.5])) == (0.5, 0.5)
    assert all(map(math.isnan, percentiles(np.array([math.nan]))))


def test_wilsons_interval_ends_where_its_equation_says():
    # Ends of the Wilson interval are where (p - share)^2 = z^2 p (1 - p) / n.
    for successes, n in ((3, 10), (0, 20), (20, 20), (450, 500)):
        low, high = wilson(successes, n)
        assert 0 <= low <= successes / n <= high + 1e-12 <= 1 + 1e-12
        for end in (low, high):
            if 0 < end < 1:
                assert (end - successes / n) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / n)
    assert wilson(0, 0) == (0, 1)
