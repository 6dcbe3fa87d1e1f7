"""Perplexity and bits: worked out by hand."""

import math

import numpy as np
import pytest

from mmgpt.errors import DataError
from mmgpt.evaluation.metrics.likelihood import Cost, bits_per_byte, bits_per_character, perplexity

# Two texts: 4 tokens of one bit each, and 2 of 7 bits each.
COSTS = [Cost(4 * math.log(2), 4), Cost(14 * math.log(2), 2)]
TEXTS = [["abc"], ["äöü"]]  # 3 bytes, 6 bytes


def test_perplexity_is_of_all_tokens_together():
    assert perplexity(COSTS, TEXTS).value == pytest.approx(2 ** (18 / 6))
    assert perplexity(COSTS, TEXTS).alone() == pytest.approx([2.0, 2.0**7])


def test_bits_are_of_all_bytes_or_characters_together():
    assert bits_per_byte(COSTS, TEXTS).value == pytest.approx(18 / 9)
    assert bits_per_character(COSTS, TEXTS).value == pytest.approx(18 / 6)
    assert bits_per_byte(COSTS, TEXTS).weighted(np.array([2.0, 0.0])) == pytest.approx(4 / 3)


def test_all_right_answers_count():
    assert bits_per_character([Cost(12 * math.log(2), 5)], [["ab", "cdef"]]).value == pytest.approx(2)


def test_texts_without_a_byte_have_no_bits_to_a_byte():
    assert math.isnan(bits_per_byte([Cost(1.0, 1)], [[""]]).value)
    with pytest.raises(DataError, match="nothing to score"):
        perplexity([], [])


def test_a_cost_is_told_in_bits():
    assert str(Cost(1500 * math.log(2), 1024)) == "1,500.0 bits in 1,024 tokens"
