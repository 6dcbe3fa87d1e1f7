import itertools

import pytest
import torch

from mmgpt.batch import collate
from mmgpt.content import Message
from mmgpt.generation import Decoding, generate

END, A, B = 0, 65, 66


@pytest.fixture
def ask(model, processor, monkeypatch):
    """Decode with a model whose next token depends on the token before alone, by a table of log-probabilities."""

    def decode(table, **decoding):
        size = len(processor.tokenizer)
        end = processor.tokenizer.end
        names = {END: end, A: A, B: B}
        logits = torch.full((size, size), -30.0)
        for before in (None, A, B):
            for after, value in table[before].items():
                rows = [row for row in range(size) if row not in (A, B)] if before is None else [before]
                logits[rows, names[after]] = value
        monkeypatch.setattr(model.gpt, "transform", lambda x, documents, cache=None: x)
        monkeypatch.setattr(model.gpt, "embed", lambda ids: torch.eye(size)[ids])
        monkeypatch.setattr(model.gpt, "head", lambda hidden: hidden @ logits)
        batch = collate([processor.encode_prompt([Message.of("user", "x")])] * 2)
        first, second = generate(model, batch, end, Decoding(**decoding))
        assert first == second
        return first

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
