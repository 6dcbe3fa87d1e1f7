"""One answer, token by token: from logits to the next token, its end, and guesses at what follows."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mmgpt.generation.constraints import Constraint
from mmgpt.generation.decoding import Answer, Choice, Decoding
from mmgpt.tokenizer import GrowingText, Tokenizer

COLDEST = 1e-4  # a temperature below which logits divided by it may be no numbers: the likeliest token is taken
LIKELIEST = 256  # tokens mostly hold top_p; the others are sorted only where they do not
GRAM = 2  # tokens that must have stood together before for what followed them to be guessed again


class Sampling:
    """The state of one answer that is decoded greedily or by draws.

    Args:
        prompt: Token ids of the prompt.
        decoding: How tokens are chosen.
        number: Which of the prompt's answers this is.
        room: Most tokens the answer may have.
        tokenizer: Knows the end token, and the text for stop texts.
        constraint: What may come next.
    """

    rows = 1  # of the cache

    def __init__(
        self,
        prompt: Sequence[int],
        decoding: Decoding,
        number: int,
        room: int,
        tokenizer: Tokenizer,
        constraint: Constraint | None,
    ):
        self.decoding, self.room, self.constraint = decoding, room, constraint
        self.ends = {tokenizer.end, *decoding.stop_tokens}
        self.tokens: list[int] = []
        self.text = GrowingText(tokenizer)
        self.choices: list[Choice] = []
        self.finish: Literal["stop", "length", "cancelled"] | None = None
        self.draws = torch.Generator().manual_seed((decoding.seed + 0x9E3779B97F4A7C15 * number) % 2**63)
        self.stopped_at: int | None = None  # where a stop text begins
        self.seen = set(prompt) - {tokenizer.slot} if decoding.repetition_penalty != 1 else set()
        self.lookup = Lookup(prompt, decoding.lookup) if decoding.lookup and decoding.greedy else None

    @property
    def answers(self) -> list[Answer]:
        """The answer as it stands."""
        text = self.text.of(self.tokens)[: self.stopped_at]
        told = self.choices if self.decoding.logprobs is not None else None
        return [Answer(self.tokens, text, self.finish or "cancelled", told)]

    def advance(self, logits: Tensor, likeliest: list[int], guesses: list[int]) -> int:
        """Choose the next tokens from the logits (1 + guesses, vocabulary) after the last token and after each guess.

        Returns how many of the guesses were right; what the cache holds of the rest is to be forgotten.
        """
        for right, best in enumerate(likeliest):
            token = best if self.decoding.greedy else self._choose(logits[right])
            self._take(token, logits[right])
            if self.finish is not None or right == len(guesses) or token != guesses[right]:
                return right
        raise AssertionError("the last logits have no guess behind them")

    def guess(self, most: int) -> list[int]:
        """Tokens that may follow, to be checked in one pass; at most so many."""
        if self.lookup is None:
            return []
        return self.lookup.guess(min(most, self.room - len(self.tokens) - 1))

    def _take(self, token: int, logits: Tensor) -> None:
        if token in self.ends:
            self.finish = "stop"
            return
        if self.decoding.logprobs is not None:
            logprobs = logits.float().log_softmax(dim=-1)
            top = logprobs.topk(min(self.decoding.logprobs, len(logprobs)))
            likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            self.choices.append(Choice(token, float(logprobs[token]), likeliest))
        self.tokens.append(token)
        if self.constraint is not None:
            self.constraint.accept(token)
        if self.lookup is not None:
            self.lookup.add(token)
        if self.decoding.stop:
            text = self.text.of(self.tokens)
            found = [place for stop in self.decoding.stop if (place := text.find(stop)) >= 0]
            if found:
                self.stopped_at, self.finish = min(found), "stop"
        if self.finish is None and len(self.tokens) >= self.room:
            self.finish = "length"

    def _choose(self, logits: Tensor) -> int:
        """One token from logits (vocabulary,)."""
        decoding = self.decoding
        scores = logits.float().cpu()
        if decoding.penalised:
            scores = self._penalise(scores.clone())
        if self.constraint is not None:
            allowed = self.constraint.allowed()
            known = scores[: len(allowed)].masked_fill(~allowed, -torch.inf)
            scores = torch.cat([known, scores[len(allowed) :].new_full((len(scores) - len(allowed),), -torch.inf)])
        if decoding.temperature < COLDEST:
            return int(scores.argmax())
        return draw(scores / decoding.temperature, decoding, self.draws)

    def _penalise(self, scores: Tensor) -> Tensor:
        counts = Counter(self.tokens)
        if (penalty := self.decoding.repetition_penalty) != 1:
            seen = torch.tensor(list(self.seen | counts.keys()), dtype=torch.long)
            scores[seen] = torch.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
        if counts:
            tokens = torch.tensor(list(counts), dtype=torch.long)
            times = torch.tensor(list(counts.values()), dtype=scores.dtype)
            scores[tokens] -= self.decoding.frequency_penalty * times + self.decoding.presence_penalty
        return scores


def draw(scores: Tensor, decoding: Decoding, draws: torch.Generator) -> int:
    """One token from softmax(scores (vocabulary,)), cut to its likeliest as the decoding says."""
    order = None
    if decoding.top_k and decoding.top_k < len(scores):
        scores, order = scores.topk(decoding.top_k)
    probabilities = scores.softmax(dim=-1)
    if decoding.top_p < 1:
        probabilities, places = _nucleus(probabilities, decoding.top_p)
        order = places if order is None else order[places]
    if decoding.min_p:
        probabilities = probabilities.masked_fill(probabilities < decoding.min_p * probabilities.max(), 0.0)
    # The inverse of the cumulative distribution: torch.multinomial draws a number for each token of the vocabulary.
    upto = probabilities.cumsum(dim=-1, dtype=torch.float64)
    place = torch.rand((), generator=draws, dtype=torch.float64) * upto[-1]
    chosen = int(torch.searchsorted(upto, place, right=True))  # the first beyond it: never one of no probability
    return chosen if order is None else int(order[chosen])


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest of the likeliest that together have `top_p`, at least one: probabilities and places."""
    likeliest, places = probabilities.topk(min(LIKELIEST, len(probabilities)))
    if likeliest.sum() < top_p:
        likeliest, places = probabilities.sort(descending=True)
    before = likeliest.cumsum(dim=-1) - likeliest  # of the likelier tokens
    count = max(1, int((before < top_p).sum()))
    return likeliest[:count], places[:count]


class Lookup:
    """Guesses what follows the last tokens from what followed them when they last stood together.

    It guesses more after guesses that were right, and fewer after wrong ones.
    """

    def __init__(self, tokens: Sequence[int], most: int):
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}  # the last tokens -> where what followed them begins
        self.most = most
        self.length = most
        self.guessed: list[int] = []
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        if self.guessed:
            right = token == self.guessed.pop(0)
            if right:
                self.length = min(self.most, self.length + 1)
            else:
                self.length, self.guessed = max(1, self.length // 2), []
        if len(self.tokens) >= GRAM:
            self.after[tuple(self.tokens[-GRAM:])] = len(self.tokens)
        self.tokens.append(token)

    def guess(self, most: int) -> list[int]:
        self.guessed = []
        if (start := self.after.get(tuple(self.tokens[-GRAM:]))) is not None:
            for place in range(start, start + max(0, min(most, self.length))):
                beyond = place - len(self.tokens)  # what goes round in a circle goes on so
                self.guessed.append(self.tokens[place] if beyond < 0 else self.guessed[beyond])
        return list(self.guessed)
