import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmgpt.content import Message
from mmgpt.generation import Decoding, Engine

END, A, B, C = 0, 65, 66, 67


@pytest.fixture
def ask(model, tokenizer, processor, monkeypatch):
    """Decode with a model whose next token depends on the token before alone, by a table of log-probabilities."""

    def decode(table, **decoding):
        size = len(processor.tokenizer)
        end = processor.tokenizer.end
        logits = torch.full((size, size), -30.0)
        for before, row in table.items():
            for after, value in row.items():
                rows = [token for token in range(size) if token not in table] if before is None else [before]
                logits[rows, end if after == END else after] = value
        monkeypatch.setattr(model.gpt, "transform", lambda x, layout, media, at: (x[at], layout.close())[0])
        monkeypatch.setattr(model.gpt, "embed", lambda ids: torch.eye(size)[ids])
        monkeypatch.setattr(model.gpt, "head", lambda hidden: hidden @ logits)
        example = processor.encode_prompt([Message.of("user", "x")])
        first, second = Engine(model, tokenizer).run([example] * 2, Decoding(**decoding))
        assert first == second
        return first[0].tokens

    return decode


def normalised(table):
    return {
        before: {after: float(torch.tensor(list(row.values())).log_softmax(0)[i]) for i, after in enumerate(row)}
        for before, row in table.items()
    }


GARDEN_PATH = normalised(
    {None: {A: 0.0, B: -0.3, END: -9.0}, A: {A: 0.0, B: 0.0, END: 0.0}, B: {A: -9.0, B: -9.0, END: 0.0}}
)


def test_beams_find_what_greedy_decoding_walks_past(ask):
    assert ask(GARDEN_PATH, max_new_tokens=2)[0] == A
    assert ask(GARDEN_PATH, max_new_tokens=2, beams=2, length_penalty=0.0) == [B]


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0])
def test_wide_beams_find_the_best_of_all_continuations(ask, penalty):
    torch.manual_seed(int(penalty * 10))
    table = normalised({before: {key: float(torch.randn(())) for key in (A, B, END)} for before in (None, A, B)})
    most = 3

    def score(tokens):
        total, before = 0.0, None
        for token in tokens:
            total += table[before][token]
            before = token
        return total / len(tokens) ** penalty

    endings = [(*path, END) for n in range(most) for path in itertools.product((A, B), repeat=n)]
    endings += list(itertools.product((A, B), repeat=most))
    best = max(endings, key=score)
    found = ask(table, max_new_tokens=most, beams=16, length_penalty=penalty)
    assert found == [token for token in best if token != END]


def test_beams_are_hypotheses_of_their_own_in_the_cache(model, tokenizer, processor):
    """The score of what is found is that of a full forward pass over it."""
    example = processor.encode_prompt([Message.of("user", "What do you see?")])
    answers = Engine(model, tokenizer).run([example], Decoding(max_new_tokens=6, beams=4, n=4, length_penalty=0.0))[0]

    def score(answer) -> float:
        targets = [*answer.tokens, tokenizer.end][: 6 if answer.finish == "length" else None]
        ids = torch.tensor([*example.ids, *targets])
        with torch.no_grad():
            logprobs = model.gpt(ids[None])[0].log_softmax(-1)
        return sum(float(logprobs[len(example) - 1 + i, token]) for i, token in enumerate(targets))

    scores = [score(answer) for answer in answers]
    assert scores == sorted(scores, reverse=True)
    assert len({tuple(answer.tokens) for answer in answers}) == 4
    greedy = Engine(model, tokenizer).run([example], Decoding(max_new_tokens=6))[0][0]
    assert scores[0] >= score(greedy) - 1e-4


@pytest.mark.parametrize("beams", [2, 3])
@given(seed=st.integers(0, 10_000), penalty=st.sampled_from([0.0, 0.7, 1.0, 2.0]))
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_narrow_beams_keep_what_a_search_that_never_stops_early_keeps(ask, beams, seed, penalty):
    torch.manual_seed(seed)
    letters = (A, B, C, END)
    table = normalised({before: {key: 2 * float(torch.randn(())) for key in letters} for before in (None, A, B, C)})
    most = 4
    going, done = [(0.0, ())], []
    for _ in range(most):
        longer = [(score + table[path[-1] if path else None][t], (*path, t)) for score, path in going for t in letters]
        longer.sort(reverse=True)
        # As transformers does: an end counts if it is among the best `beams`.
        done += [(score / len(path) ** penalty, path) for score, path in longer[:beams] if path[-1] == END]
        going = [(score, path) for score, path in longer if path[-1] != END][:beams]
    done += [(score / len(path) ** penalty, path) for score, path in going]
    expected = [token for token in max(done)[1] if token != END]
    assert ask(table, max_new_tokens=most, beams=beams, length_penalty=penalty) == expected
