from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.evaluation.retrieval import Retrieval, rank


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_the_rank_is_the_place_of_the_first_right_one_in_the_sorted_list(seed):
    generator = torch.Generator().manual_seed(seed)
    queries, items = torch.randint(1, 8, (2,), generator=generator).tolist()
    similarity = torch.randn(queries, items, generator=generator)
    match = torch.rand(queries, items, generator=generator) < 0.3
    match[:, 0] |= ~match.any(1)
    expected = []
    for scores, right in zip(similarity.tolist(), match.tolist(), strict=True):
        order = sorted(range(items), key=lambda i, scores=scores: -scores[i])
        expected.append(next(place for place, i in enumerate(order, 1) if right[i]))
    way = rank(similarity, match)
    assert way.ranks == expected
    assert way.right == [sum(right) for right in match.tolist()]
    assert way.items == items


def test_a_model_that_cannot_tell_finds_nothing():
    way = rank(torch.zeros(4, 4), torch.eye(4, dtype=torch.bool))
    assert way.ranks == [4] * 4


def test_recall_and_median():
    way = Retrieval([1, 1, 3, 8], [1] * 4, 10)
    assert [way.recall(depth) for depth in (1, 2, 3, 8)] == [0.5, 0.5, 0.75, 1.0]
    assert way.median() == 2.0


@pytest.mark.parametrize("right", [[1], [2], [1, 3], [5]])
def test_chance_is_what_all_orders_of_the_items_give_on_average(right):
    items = 5
    way = Retrieval([1] * len(right), right, items)
    ranks = [next(i for i, item in enumerate(order, 1) if item < n) for n in right for order in permutations(range(5))]
    for depth in range(1, items + 1):
        assert way.chance(depth) == pytest.approx(sum(r <= depth for r in ranks) / len(ranks))
    assert way.chance_median() == sorted(ranks)[(len(ranks) - 1) // 2]
