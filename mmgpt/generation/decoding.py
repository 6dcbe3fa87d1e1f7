"""How new tokens are chosen, as the user sets it, and what comes back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmgpt.errors import ConfigError


@dataclass(frozen=True)
class Decoding:
    """How new tokens are chosen.

    Args:
        max_new_tokens: Most tokens to add; a prompt near the end of the context gets as many as fit.
        temperature: 0 takes the likeliest token (greedy); above, tokens are drawn from softmax(logits / temperature).
        top_k: Draw among the k likeliest alone; 0 means all.
        top_p: Draw among the fewest tokens that hold this probability (Holtzman et al. 2020).
        min_p: Draw among tokens at least this share as probable as the likeliest (Nguyen et al. 2024).
        repetition_penalty: Above 1, tokens of prompt and answer are made less likely: positive logits are divided by
            it, negative ones multiplied (Keskar et al. 2019).
        frequency_penalty: Taken off a token's logit for each time it is in the answer (OpenAI).
        presence_penalty: Taken off the logit of each token that is in the answer (OpenAI).
        beams: Width of the beam search; 1 means none. Not together with draws, constraints and logprobs.
        length_penalty: Beams are ranked by log-probability / tokens ** length_penalty.
        n: Answers to each prompt: draws of their own, or the best beams.
        stop: Texts that end the answer, which is cut before them.
        stop_tokens: Tokens that end the answer, beside the end token.
        seed: Of the draws. Each answer draws from its own stream, so it does not depend on what shares its batch.
        logprobs: Tell log-probabilities: of each token, and of so many of the likeliest in its place.
        choices: The answer is one of these texts.
        regex: The whole answer matches this regular expression.
        json_schema: The answer is JSON of this schema.
        lookup: Guess up to so many tokens at once from what followed the last ones earlier in the text (prompt lookup,
            Saxena 2023). Guesses are checked, so greedy answers stay what they are. Greedy decoding alone uses it.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    beams: int = 1
    length_penalty: float = 1.0
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    seed: int = 0
    logprobs: int | None = None
    choices: tuple[str, ...] = ()
    regex: str | None = None
    json_schema: dict[str, Any] | None = None
    lookup: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("beams", 1), ("n", 1), ("top_k", 0), ("lookup", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"decoding: {name} must be at least {least}, not {getattr(self, name)}")
        for name in ("temperature", "length_penalty", "frequency_penalty", "presence_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"decoding: {name} must be a finite number, not {getattr(self, name)}")
        if self.temperature < 0 or self.length_penalty < 0:
            raise ConfigError("decoding: temperature and length_penalty must not be negative")
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ConfigError("decoding: top_p must be above 0 and at most 1, min_p from 0 to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise ConfigError("decoding: repetition_penalty must be above 0; 1 means none")
        if isinstance(self.stop, str) or isinstance(self.choices, str):
            raise ConfigError("decoding: stop and choices are lists of texts")
        if "" in self.stop:
            raise ConfigError("decoding: an empty stop text would end every answer at once")
        if sum(map(bool, (self.choices, self.regex is not None, self.json_schema is not None))) > 1:
            raise ConfigError("decoding: choose one of choices, regex and json_schema")
        if self.beams > 1:
            if self.temperature > 0:
                raise ConfigError("decoding: beam search does not sample; use beams=1 or temperature=0")
            if self.constrained or self.penalised or self.logprobs is not None or self.stop:
                raise ConfigError("decoding: beam search takes no constraints, penalties, stop texts or logprobs")
            if self.n > self.beams:
                raise ConfigError(f"decoding: {self.beams} beams have no {self.n} answers; set beams to n or more")
        elif self.n > 1 and self.temperature == 0:
            raise ConfigError("decoding: without a temperature all n answers are the same; set one")

    @property
    def constrained(self) -> bool:
        return bool(self.choices) or self.regex is not None or self.json_schema is not None

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0

    @property
    def greedy(self) -> bool:
        """Whether the next token is plainly the likeliest."""
        return self.temperature == 0 and not self.constrained and not self.penalised


@dataclass(frozen=True)
class Choice:
    """One token of an answer: its log-probability before temperature and penalties, and the likeliest in its place."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Answer:
    """One answer to a prompt.

    `finish` is "stop" (the model ended it, or a stop text or token did), "length" (no room was left), "cancelled", or
    "content_filter" (a server's moderation ended it).
    `choices` are there if log-probabilities were asked for.
    """

    tokens: list[int]
    text: str
    finish: Literal["stop", "length", "cancelled", "content_filter"]
    choices: list[Choice] | None = None


def settled(answer: Answer, stops: Sequence[str]) -> str:
    """The text of an answer under way as far as it stays as it is; all of one that is finished.

    A character may take several tokens; until the last of them it decodes to the replacement mark. What may be the
    beginning of a stop text is one only once the rest has come.
    """
    text = answer.text
    if answer.finish != "cancelled":
        return text
    beginnings = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - max([len(text) - len(text.rstrip("�")), *beginnings])]
