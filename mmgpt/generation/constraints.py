"""What an answer may be: one of some texts, a match of a regular expression, or JSON of a schema.

Before each token of an answer a constraint tells which tokens may come next. The texts are a trie of our own; regular
expressions and schemas are llguidance's (an optional package), which walks the bytes of the vocabulary along a lexer
and an Earley parser, so that a token may end inside a character.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmgpt.errors import ConfigError, shown
from mmgpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Constraint(Protocol):
    """What may come next in one answer. It remembers how far the answer has come: every answer needs its own."""

    def allowed(self) -> Tensor:
        """The tokens that may come next: a new bool tensor (vocabulary,) on the CPU; the end token where it may stop.

        The vocabulary is the tokenizer's, `len(tokenizer)`. A model's may be larger (padded); the ids behind it are
        never allowed. There is always a token that is. Raises ConfigError where the answer became too complex.
        """
        ...

    def accept(self, token: int) -> None:
        """Go on behind the token that was chosen: an allowed one, never the end token."""
        ...


def choices(tokenizer: Tokenizer, options: Sequence[str]) -> Constraint:
    """The answer is one of these texts, in the tokens that the tokenizer makes of it. Raises ConfigError."""
    return Trie(tokenizer, options)


def regex(tokenizer: Tokenizer, pattern: str) -> Constraint:
    """The answer matches the whole pattern: Rust's syntax, nearly Python's, without look-around and back-references.

    Raises ConfigError for a malformed pattern, for one that nothing matches, and without llguidance.
    """
    grammar = _llguidance().LLMatcher.grammar_from_regex(pattern)
    return Grammar(tokenizer, grammar, f"regex {shown(pattern)}")


def json_schema(tokenizer: Tokenizer, schema: dict[str, Any]) -> Constraint:
    """The answer is JSON of this schema, with properties in the schema's order, laid out as json.dumps does.

    Raises ConfigError for a malformed schema, for keywords that are not supported, and without llguidance.
    """
    # Where whitespace is free, models can write it without end.
    layout = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
    llguidance = _llguidance()
    try:
        text = json.dumps(schema, allow_nan=False)
        grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=layout)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"JSON schema: {error}") from None
    return Grammar(tokenizer, grammar, "JSON schema")


class Trie:
    """The options' tokens as nested dictionaries, the end token as a leaf."""

    def __init__(self, tokenizer: Tokenizer, options: Sequence[str]):
        if isinstance(options, str) or not options:
            raise ConfigError(f"choices: {shown(options)}: give a list of at least one text")
        self._vocabulary = len(tokenizer)
        self._node: dict[int, Any] = {}
        for option in options:
            if not option:
                raise ConfigError("choices: one of them is empty; leave it out")
            tokens = tokenizer.encode(option)
            if (read := tokenizer.decode(tokens)) != option:
                raise ConfigError(f"choices: the tokenizer turns {shown(option)} into {shown(read)}; choose that")
            node = self._node
            for token in [*tokens, tokenizer.end]:
                node = node.setdefault(token, {})

    def allowed(self) -> Tensor:
        allowed = torch.zeros(self._vocabulary, dtype=torch.bool)
        allowed[list(self._node)] = True
        return allowed

    def accept(self, token: int) -> None:
        self._node = self._node[token]


class Grammar:
    """A grammar in llguidance's own format; its name stands at the head of errors."""

    def __init__(self, tokenizer: Tokenizer, grammar: str, name: str):
        self._matcher = _llguidance().LLMatcher(_ll_tokenizer(tokenizer), grammar, log_level=0)
        self._vocabulary, self._name = len(tokenizer), name
        self.allowed()  # so that a grammar that cannot be used is told here; the next call finds it computed

    def allowed(self) -> Tensor:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()  # only now: llguidance answers an error by allowing the end alone
        return torch.from_numpy(np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(np.bool_))

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if not self._matcher.is_error():
            return
        first, *others = self._matcher.get_error().splitlines()
        if first == "NoExtensionBias":
            raise ConfigError(f"{self._name}: no text is like that")
        # A malformed pattern is drawn over several lines, the reason after it.
        reason = next((line.removeprefix("error: ") for line in others if line.startswith("error: ")), first)
        raise ConfigError(f"{self._name}: {reason.rpartition('(in regex): ')[2][:300]}")


class Words:
    """The vocabulary as llguidance wants it: the bytes of each token, and the tokens of text that a grammar forces.

    It can read both from the tokenizer's JSON itself, but would turn a forced "<|end|>" into the token of that name.
    """

    is_tokenizer_wrapper = True  # llguidance asks for it
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer):
        try:
            self._reader = _llguidance().LLTokenizer(tokenizer.to_json(), slices=[])
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"regex and JSON schema: need a tokenizer of bytes: {reason}") from None
        ids = range(len(tokenizer))
        self.eos_token_id = tokenizer.end
        self.tokens: list[bytes] = [self._reader.decode_bytes([token]) for token in ids]
        self.special_token_ids = list(filter(self._reader.is_special_token, ids))

    def __call__(self, text: str) -> list[int]:
        tokens = self._reader.tokenize_str(text)
        special = any(map(self._reader.is_special_token, tokens))
        return self._reader.greedy_tokenize(text) if special else tokens


@lru_cache(maxsize=4)  # it takes about a second for 50,000 tokens, and grammars share it
def _ll_tokenizer(tokenizer: Tokenizer) -> "LLTokenizer":
    return _llguidance().LLTokenizer(Words(tokenizer))


def _llguidance() -> ModuleType:
    try:
        import llguidance
    except ImportError:
        raise ConfigError(
            "regex and JSON schema need llguidance; install the extra: uv sync --extra constraints, or pip install "
            "llguidance"
        ) from None
    return llguidance
