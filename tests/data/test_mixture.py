from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.content import Message
from mmgpt.data.mixture import BLOCK, Mixture, chained, quotas, shuffled
from mmgpt.data.sample import Sample
from mmgpt.errors import ConfigError


def source(name: str, size: int) -> list[Sample]:
    return [Sample((Message.of("user", name),), (f"{name}{i}",), "ask", f"{name}:{i}") for i in range(size)]


def mixture(sizes: dict[str, int], weights: dict[str, float], seed: int = 0) -> Mixture:
    return Mixture({name: source(name, size) for name, size in sizes.items()}, weights, seed)


few = settings(max_examples=25, deadline=None, derandomize=True)
weighted = st.lists(st.tuples(st.integers(1, 400), st.floats(0.01, 100)), min_size=1, max_size=5)


@few
@given(weighted, st.integers(0, 5))
def test_every_block_of_draws_has_the_shares_of_the_weights(sources, block):
    weights = [weight for _, weight in sources]
    mixed = mixture({str(i): size for i, (size, _) in enumerate(sources)}, {str(i): w for i, w in enumerate(weights)})
    drawn = Counter(mixed.draw(block * BLOCK + i)[0] for i in range(BLOCK))
    for i, weight in enumerate(weights):
        share = weight / sum(weights)
        assert drawn[i] >= 1
        # Within a draw of the exact share, save what sources whose share is below a draw are given beyond it.
        assert abs(drawn[i] - share * BLOCK) <= 1 + len(weights)


@few
@given(weighted, st.integers(0, 3))
def test_a_source_is_gone_through_wholly_before_any_sample_comes_again(sources, seed):
    mixed = mixture(
        {str(i): size for i, (size, _) in enumerate(sources)}, {str(i): w for i, (_, w) in enumerate(sources)}, seed
    )
    places: dict[int, list[int]] = {i: [] for i in range(len(sources))}
    for number in range(2 * BLOCK + 137):
        chosen, place = mixed.draw(number)
        places[chosen].append(place)
    for i, (size, _) in enumerate(sources):
        for start in range(0, len(places[i]), size):
            epoch = places[i][start : start + size]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= set(range(size))
    told = mixed.shares(2 * BLOCK + 137)
    assert [share.epochs for share in told] == [len(places[i]) / size for i, (size, _) in enumerate(sources)]


@few
@given(st.integers(1, 700), st.text(max_size=3))
def test_a_key_makes_a_permutation(size, key):
    assert sorted(shuffled(i, size, key) for i in range(size)) == list(range(size))


def test_permutations_differ_by_key_and_scatter():
    orders = [[shuffled(i, 500, str(key)) for i in range(500)] for key in range(3)]
    for i, order in enumerate(orders):
        assert sum(here == place for place, here in enumerate(order)) < 10
        assert all(sum(a == b for a, b in zip(order, other, strict=True)) < 10 for other in orders[:i])
        assert sum(abs(a - b) < 25 for a, b in pairwise(order)) < 100  # by chance, a tenth


def test_a_draw_depends_on_the_seed_and_its_number_alone():
    def make(seed: int) -> Mixture:
        return mixture({"a": 70, "b": 1300}, {"a": 0.3, "b": 0.7}, seed)

    one, other = make(1), make(1)
    straight = [one.draw(i) for i in range(2500)]
    assert [other.draw(i) for i in reversed(range(2500))] == straight[::-1]
    blocks = [[source for source, _ in straight[start : start + BLOCK]] for start in (0, BLOCK)]
    assert blocks[0] != blocks[1]
    reseeded = make(2)
    assert [reseeded.draw(i) for i in range(2500)] != straight


def test_each_time_through_a_source_has_an_order_of_its_own():
    mixed = mixture({"a": 50}, {"a": 1.0})
    first, second = ([mixed.draw(start + i)[1] for i in range(50)] for start in (0, 50))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_a_mixture_is_a_sequence_of_samples_and_goes_on_beyond_its_end():
    mixed = mixture({"a": 3, "b": 5}, {"a": 1, "b": 1})
    assert len(mixed) == 8
    assert [sample.where for sample in mixed] == [mixed.sample(i).where for i in range(8)]
    assert mixed[-1] is mixed.sample(7)
    assert [sample.where for sample in mixed[2:6:2]] == [mixed[2].where, mixed[4].where]
    assert mixed.sample(123_456).where[0] in "ab"
    with pytest.raises(IndexError):
        mixed[8]


def test_the_table_of_shares_says_how_often_each_source_was_seen():
    mixed = mixture({"a": 100, "b": 4000}, {"a": 0.25, "b": 0.75})
    [a, b] = mixed.shares(4 * BLOCK)
    assert (a.source, a.samples, a.weight, a.epochs) == ("a", 100, 0.25, 10.0)
    assert (b.source, b.samples, b.weight, b.epochs) == ("b", 4000, 0.75, 0.75)
    assert sum(share.epochs * share.samples for share in mixed.shares()) == 4100


def test_weights_become_draws_of_a_block():
    assert list(quotas([0.7, 0.2, 0.1])) == [700, 200, 100]
    assert list(quotas([5, 5])) == [500, 500]
    assert list(quotas([1])) == [1000]
    assert sorted(quotas([1, 1, 1])) == [333, 333, 334]
    assert list(quotas([1e-9, 1])) == [1, 999]
    assert list(quotas([1] * 1000)) == [1] * 1000


def test_sources_in_a_chain_keep_their_order():
    chain = chained([source("a", 2), source("b", 0), source("c", 3)])
    assert [sample.answers[0] for sample in chain] == ["a0", "a1", "c0", "c1", "c2"]


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ({}, {}, r"data\.mix: a mixture has one source or more"),
        ({"a": 3}, {"b": 1.0}, r"data\.mix: a mixture has one source or more, and a weight for each"),
        ({"a": 3}, {"a": 0.0}, r"data\.mix\.a\.weight: must be a positive number, not 0"),
        ({"a": 3}, {"a": float("nan")}, r"data\.mix\.a\.weight: must be a positive number, not nan"),
        ({"a": 3}, {"a": float("inf")}, r"data\.mix\.a\.weight: must be a positive number, not inf"),
        ({"a": 0}, {"a": 1.0}, r"data\.mix\.a: has no samples"),
    ],
)
def test_a_mixture_of_nothing_is_told(sizes, weights, message):
    with pytest.raises(ConfigError, match=message):
        mixture(sizes, weights)
