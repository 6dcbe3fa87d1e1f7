from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import some_audio, some_image

from mmgpt.content import Message
from mmgpt.data.packing import WINDOW, cost, pack


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(100, 300))
@settings(derandomize=True, deadline=None)
def test_a_batch_has_the_first_and_fits_its_budget(costs, budget):
    chosen = pack(costs, budget)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    room = budget - sum(costs[number] for number in chosen)
    assert room >= 0
    left = [costs[number] for number in range(len(costs)) if number not in chosen]
    assert not left or min(left) > room  # nothing that still fits is left


def test_the_largest_that_fits_comes_next_and_of_equals_the_one_that_waits_longest():
    assert pack([3, 9, 5, 5, 2], budget=10) == [0, 2, 4]


def test_one_that_never_fits_is_alone():
    assert pack([12, 1, 1], budget=10) == [0]


@given(st.integers(0, 50))
@settings(derandomize=True, deadline=None, max_examples=20)
def test_a_window_of_captions_fills_batches(seed):
    """Lengths as of captions with their picture, a tenth of a batch: hardly any room is left."""
    import numpy as np

    lengths = iter(np.random.default_rng(seed).integers(30, 150, 4000).tolist())
    waiting: list[int] = []
    filled = []
    for _ in range(100):
        while sum(waiting) < WINDOW * 1000:
            waiting.append(next(lengths))
        chosen = pack(waiting, 1000)
        filled.append(sum(waiting[number] for number in chosen))
        waiting = [size for number, size in enumerate(waiting) if number not in chosen]
    assert sum(filled) / len(filled) > 990


def test_what_is_encoded_counts_and_a_shared_medium_counts_once(processor):
    def example(*parts):
        return processor.encode([Message.of("user", *parts), Message.of("assistant", "yes")])

    text, picture, sound = example("What?"), example(some_image(0)), example(some_audio(0))
    seen, heard = (one.media[0][1].grid.count for one in (picture, sound))
    assert cost([text]) == len(text)
    assert cost([picture, picture]) == 2 * len(picture) + seen
    assert cost([picture, sound, text]) == len(picture) + len(sound) + len(text) + seen + heard
