import math

import pytest
import torch

from mmgpt.errors import ConfigError
from mmgpt.generation import Decoding
from mmgpt.generation.sampling import Lookup, Sampling, draw

A, B, C, D = 65, 66, 67, 68
PROBABILITIES = torch.zeros(300)
PROBABILITIES[[A, B, C]] = torch.tensor([0.6, 0.3, 0.1])
LOGITS = PROBABILITIES.log()


def shares(**settings) -> list[float]:
    """How often A, B and C are drawn, in 400 draws."""
    decoding = Decoding(**settings)
    draws = torch.Generator().manual_seed(0)
    drawn = [draw(LOGITS / decoding.temperature, decoding, draws) for _ in range(400)]
    assert set(drawn) <= {A, B, C}
    return [drawn.count(token) / len(drawn) for token in (A, B, C)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.6, 0.3, 0.1]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0]),
        ({"top_k": 1000}, [0.6, 0.3, 0.1]),
        ({"top_p": 0.5}, [1, 0, 0]),
        ({"top_p": 0.7}, [2 / 3, 1 / 3, 0]),
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0]),
        ({"min_p": 0.4}, [2 / 3, 1 / 3, 0]),
        ({"min_p": 0.6}, [1, 0, 0]),
        ({"top_p": 0.95, "min_p": 0.1}, [0.6, 0.3, 0.1]),
    ],
)
def test_draws_follow_the_probabilities_that_are_left(settings, expected):
    # Four standard deviations of a share of 400 draws are at most 0.1.
    assert shares(temperature=1.0, **settings) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("settings", [{}, {"top_k": 900}, {"top_p": 0.9999}])
def test_draws_pass_a_test_of_their_distribution(settings):
    """Pearson's chi-squared of 8000 draws: beyond its 99.9 % point for 7 degrees of freedom they would not be these."""
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    scores = torch.full((1000,), -torch.inf)
    scores[::125] = weights.log()
    decoding, draws = Decoding(temperature=1.0, **settings), torch.Generator().manual_seed(0)
    drawn = torch.tensor([draw(scores, decoding, draws) for _ in range(8000)])
    observed, expected = drawn.bincount(minlength=1000), 8000 * weights / weights.sum()
    assert observed[::125].sum() == 8000
    assert ((observed[::125] - expected) ** 2 / expected).sum() < 24.32


@pytest.mark.parametrize("flat", [0.01, 0.0001])
def test_the_nucleus_is_that_of_all_tokens_whether_few_hold_it_or_most(flat):
    scores = -flat * torch.randperm(2000, generator=torch.Generator().manual_seed(1)).double()
    ranked = sorted(range(2000), key=lambda token: -float(scores[token]))
    left, held = set(), 0.0
    for token in ranked:
        if held < 0.5:
            left.add(token)
            held += float(scores.softmax(-1)[token])
    draws = torch.Generator().manual_seed(0)
    drawn = {draw(scores.float(), Decoding(temperature=1.0, top_p=0.5), draws) for _ in range(4000)}
    assert drawn <= left
    assert len(drawn) > 0.8 * len(left)


def test_temperature_sharpens_and_flattens():
    total = sum(p**2 for p in (0.6, 0.3, 0.1))
    assert shares(temperature=0.5) == pytest.approx([p**2 / total for p in (0.6, 0.3, 0.1)], abs=0.1)
    assert shares(temperature=0.01) == [1, 0, 0]


@pytest.fixture
def sampling(tokenizer):
    def make(prompt=(), room=50, number=0, **settings) -> Sampling:
        return Sampling(list(prompt), Decoding(**settings), number, room, tokenizer, None)

    return make


def feed(state: Sampling, *rows: dict[int, float], guesses: tuple[int, ...] = ()) -> int:
    logits = torch.full((len(rows), 300), -20.0)
    for place, row in enumerate(rows):
        for token, value in row.items():
            logits[place, token] = value
    return state.advance(logits, logits.argmax(dim=-1).tolist(), list(guesses))


@pytest.mark.parametrize("tiny", [5e-324, 1e-45, 1e-30, 1e-9])
@pytest.mark.parametrize("setting", ["top_p", "temperature"])
def test_what_is_nearly_nothing_leaves_the_likeliest(sampling, setting, tiny):
    """Though in single precision it is nothing."""
    state = sampling(**{"temperature": 1.0, setting: tiny})
    feed(state, {A: 3.0, B: 3.5}, guesses=())
    assert state.tokens == [B]


def test_the_end_token_ends_an_answer_and_is_no_part_of_it(sampling, tokenizer):
    state = sampling(stop_tokens=(D,))
    feed(state, {A: 1})
    feed(state, {tokenizer.end: 1})
    assert (state.tokens, state.finish) == ([A], "stop")
    state = sampling(stop_tokens=(D,))
    feed(state, {D: 1})
    assert (state.tokens, state.finish) == ([], "stop")


def test_an_answer_without_an_end_stops_where_its_room_does(sampling):
    state = sampling(room=2)
    feed(state, {A: 1})
    assert state.finish is None
    feed(state, {A: 1})
    assert (state.tokens, state.finish) == ([A, A], "length")


def test_stop_texts_cut_the_answer_before_them_even_across_tokens(sampling, tokenizer):
    ids = tokenizer.encode("red. blue")
    stop = "d. b"
    state = sampling(stop=(stop, "never"))
    for token in ids:
        if state.finish is None:
            feed(state, {token: 1})
    assert state.finish == "stop"
    assert state.answers[0].text == "re"


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_what_was_there(sampling):
    assert _best(sampling(prompt=[A], repetition_penalty=2.0), {A: 3.0, B: 2.0}) == B
    assert _best(sampling(prompt=[A], repetition_penalty=2.0), {A: 5.0, B: 2.0}) == A
    assert _best(sampling(prompt=[A], repetition_penalty=2.0), {A: -2.0, B: -3.0}, others=-9.0) == B
    assert _best(sampling(prompt=[], repetition_penalty=2.0), {A: 3.0, B: 2.0}) == A


def test_slots_of_media_are_not_penalised(sampling, tokenizer):
    assert (
        _best(sampling(prompt=[tokenizer.slot], repetition_penalty=9.0), {tokenizer.slot: 3.0, B: 2.0})
        == tokenizer.slot
    )


def test_frequency_counts_each_time_and_presence_once_and_neither_the_prompt(sampling):
    state = sampling(prompt=[A, A, A], frequency_penalty=1.0)
    picked = []
    for _ in range(5):
        feed(state, {A: 2.5, B: 0.0})
        picked.append(state.tokens[-1])
    assert picked == [A, A, A, B, B] or picked == [A, A, A, B, A]
    state = sampling(presence_penalty=2.0)
    for _ in range(3):
        feed(state, {A: 2.5, B: 1.0, C: 0.6})
    assert state.tokens == [A, B, C]


def _best(state: Sampling, logits: dict[int, float], others: float = -20.0) -> int:
    row = torch.full((300,), others)
    for token, value in logits.items():
        row[token] = value
    state.advance(row[None], [int(row.argmax())], [])
    return state.tokens[-1]


def test_logprobs_are_those_of_the_model_before_temperature_and_penalties(sampling):
    state = sampling(temperature=0.01, presence_penalty=0.5, logprobs=2)
    feed(state, {A: math.log(0.6), B: math.log(0.3), C: math.log(0.1)})
    [choice] = state.answers[0].choices
    assert choice.token == A
    assert choice.logprob == pytest.approx(math.log(0.6), abs=1e-3)
    assert [token for token, _ in choice.likeliest] == [A, B]
    assert [value for _, value in choice.likeliest] == pytest.approx([math.log(0.6), math.log(0.3)], abs=1e-3)


def test_each_of_n_answers_has_draws_of_its_own(sampling):
    def answer(number: int, seed: int = 0) -> list[int]:
        state = sampling(temperature=1.0, seed=seed, n=3, number=number)
        for _ in range(20):
            feed(state, {A: 0.0, B: 0.0, C: 0.0})
        return state.tokens

    assert answer(1) == answer(1)
    assert len({tuple(answer(n, seed)) for n in range(3) for seed in range(3)}) == 9


def test_right_guesses_are_taken_and_the_first_wrong_one_is_replaced(sampling):
    state = sampling(lookup=4)
    assert feed(state, {A: 1}, {B: 1}, {C: 1}, {D: 1}, guesses=(A, B, D)) == 2
    assert state.tokens == [A, B, C]
    assert feed(state, {A: 1}, {B: 1}, guesses=(A,)) == 1
    assert state.tokens == [A, B, C, A, B]
    assert feed(state, {A: 1}, {B: 1}, guesses=(D,)) == 0
    assert state.tokens == [A, B, C, A, B, A]


def test_guesses_are_what_followed_the_last_tokens_before():
    lookup = Lookup([A, B, C, D, A, B], most=3)
    assert lookup.guess(9) == [C, D, A]
    assert lookup.guess(1) == [C]
    assert lookup.guess(0) == []
    assert Lookup([A, B, C], most=3).guess(9) == []


def test_what_goes_round_in_a_circle_is_guessed_to_go_on_so():
    assert Lookup([A, A, A], most=5).guess(9) == [A] * 5
    assert Lookup([A, B, A, B], most=5).guess(9) == [A, B, A, B, A]


def test_the_newest_occurrence_counts():
    assert Lookup([A, B, C, A, B, D, A, B], most=1).guess(9) == [D]


def test_fewer_are_guessed_after_wrong_guesses_and_more_after_right_ones():
    lookup = Lookup([A, B, C, D] * 5, most=4)
    assert lookup.guess(9) == [A, B, C, D]
    for token in (B, A, B):
        lookup.add(token)
    assert lookup.guess(9) == [C, D]
    for token in (C, D):
        lookup.add(token)
    assert len(lookup.guess(9)) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0},
        {"temperature": -1},
        {"temperature": math.nan},
        {"top_p": 0},
        {"min_p": 1.5},
        {"repetition_penalty": 0},
        {"beams": 2, "temperature": 1.0},
        {"beams": 2, "stop": ("a",)},
        {"beams": 2, "regex": "a"},
        {"beams": 2, "n": 3},
        {"n": 2},
        {"stop": "abc"},
        {"stop": ("",)},
        {"regex": "a", "choices": ("b",)},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigError, match=r"^decoding: "):
        Decoding(**settings)
