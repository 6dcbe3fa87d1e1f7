import json
import random
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as BPETokenizer

from mmgpt.errors import ConfigError
from mmgpt.generation.constraints import Constraint, choices, json_schema, regex
from mmgpt.tokenizer import SPECIAL_TOKENS, Tokenizer

TEXTS = [
    '{"näme": "日本語の本", "tags": ["a", "b"], "n": 120}',
    "naïve été 日本 日曜日",
    "A red circle. No blue square!",
]
tokenizer = Tokenizer.train(TEXTS * 4, 380)
some = settings(max_examples=30, deadline=None, derandomize=True)


def ids(allowed: torch.Tensor) -> set[int]:
    return set(allowed.nonzero().flatten().tolist())


def answer(constraint: Constraint, seed: int, end_allowed: Callable[[list[int]], bool]) -> str:
    """The text of a random walk over the allowed tokens: any of them, later rather those that end something.

    On the way it is checked that there always is a token, that none is special, and when the answer may end.
    """
    draw, answer = random.Random(seed), []
    while True:
        allowed = constraint.allowed()
        assert allowed.shape == (len(tokenizer),)
        assert allowed.dtype == torch.bool
        assert allowed.device.type == "cpu"
        tokens = ids(allowed)
        assert tokens
        assert not tokens & specials(tokenizer)
        assert (tokenizer.end in tokens) == end_allowed(answer)
        closing = {token for token in tokens if token == tokenizer.end or tokenizer.decode([token])[:1] in '"]}.'}
        token = draw.choice(sorted(closing if closing and len(answer) > 15 else tokens))
        if token == tokenizer.end:
            return tokenizer.decode(answer)
        constraint.accept(token)
        answer.append(token)
        assert len(answer) < 500


def specials(tokenizer: Tokenizer) -> set[int]:
    """All special tokens but the end."""
    return {tokenizer.slot, *(id for role in ("system", "user", "assistant") for id in tokenizer.opening(role))}


def may_be(constraint: Constraint, text: str) -> bool:
    """Is the text an answer, in the tokens that the tokenizer makes of it?"""
    for token in tokenizer.encode(text):
        if not constraint.allowed()[token]:
            return False
        constraint.accept(token)
    return bool(constraint.allowed()[tokenizer.end])


def test_the_tokenizer_of_these_tests_has_tokens_of_several_bytes_that_split_a_character():
    vocabulary = json.loads(tokenizer.to_json())["model"]["vocab"]  # one letter for each byte
    assert any(len(letters) > 1 and "\ufffd" in tokenizer.decode([token]) for letters, token in vocabulary.items())


# choices


option = st.text(min_size=1, max_size=6) | st.text("aré日", min_size=1, max_size=4) | st.sampled_from(SPECIAL_TOKENS)


@given(options=st.lists(option, min_size=1, max_size=6), seed=st.integers(0, 99))
@some
def test_at_each_step_of_a_choice_exactly_the_next_tokens_of_the_options_that_began_so_are_allowed(options, seed):
    wholes = [[*tokenizer.encode(option), tokenizer.end] for option in options]
    draw, constraint, answer = random.Random(seed), choices(tokenizer, options), []
    while tokenizer.end not in answer:
        begun = [whole for whole in wholes if whole[: len(answer)] == answer]
        assert ids(constraint.allowed()) == {whole[len(answer)] for whole in begun}
        answer.append(draw.choice(sorted(ids(constraint.allowed()))))
        if answer[-1] != tokenizer.end:
            constraint.accept(answer[-1])
    assert tokenizer.decode(answer) in options


@given(options=st.lists(option, min_size=1, max_size=6))
@some
def test_every_option_can_be_chosen(options):
    assert all(may_be(choices(tokenizer, options), option) for option in options)


@pytest.mark.parametrize(
    ("options", "told"),
    [([], "at least one"), ("yes", "list"), (["a", ""], "empty")],
)
def test_options_that_cannot_be_chosen_are_an_error(options, told):
    with pytest.raises(ConfigError, match=told):
        choices(tokenizer, options)


def test_an_option_that_the_tokenizer_cannot_write_is_an_error():
    bpe = BPETokenizer.from_str(tokenizer.to_json())
    bpe.normalizer = normalizers.Lowercase()
    with pytest.raises(ConfigError, match='"Red" into "red"'):
        choices(Tokenizer(bpe), ["red", "Red"])


# regular expressions


PATTERNS = [
    r"",
    r"a*",
    r"[a-z]+",
    r"[0-9]{3}-[0-9]{4}",
    r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$",
    r"(red|green|blue) (circle|square)( [a-z]{2,4})?",
    r"(a|ab)(c|bcd)?",
    r"[A-Z][a-z]*(,? [a-z]+)*\.",
    r"naïve|日+本?|[à-ü]{1,3}",
    r"[^a]{2}",
    r".{0,5}",
    r"a/b|/[*][0-9]{2}[*]/|\"\\n\n",
    *map(re.escape, SPECIAL_TOKENS),
]


@pytest.mark.parametrize("pattern", PATTERNS)
@given(seed=st.integers(0, 999))
@settings(some, max_examples=15)
def test_a_walk_along_a_regex_may_end_exactly_where_the_whole_pattern_matches(pattern, seed):
    def matched(tokens: list[int]) -> bool:
        text = tokenizer.decode(tokens)
        return "\ufffd" not in text and re.fullmatch(pattern, text) is not None  # within a character it does not

    assert re.fullmatch(pattern, answer(regex(tokenizer, pattern), seed, matched))


@pytest.mark.parametrize("pattern", PATTERNS)
@given(data=st.data())
@settings(some, max_examples=15)
def test_every_text_that_matches_can_be_written(pattern, data):
    assert may_be(regex(tokenizer, pattern), data.draw(st.from_regex(pattern.strip("^$"), fullmatch=True)))


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(", "unclosed group"),
        ("a{2,1}", "repetition"),
        ("(?=a)b", "look-ahead"),
        (r"(a)\1", "backreferences"),
        (r"\bred", "lookarounds not supported"),
        (r"[^\s\S]", "no text"),
        ("(" * 5000, "unclosed group"),
        (r"\b" + "a" * 5000, "lookarounds not supported"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_an_error_of_one_line_that_shows_it(pattern, told):
    with pytest.raises(ConfigError, match=told) as error:
        regex(tokenizer, pattern)
    assert str(error.value).startswith('regex "' + pattern[:1].replace("\\", "\\\\"))
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


def test_a_pattern_that_becomes_too_complex_on_the_way_is_an_error():
    constraint = regex(tokenizer, r"(a{1,500}){1,500}x")
    with pytest.raises(ConfigError, match=r"regex .*too many"):
        may_be(constraint, "a" * 300)


def test_a_token_that_was_not_allowed_is_an_error():
    with pytest.raises(ConfigError, match='regex "a"'):
        regex(tokenizer, "a").accept(tokenizer.encode("b")[0])


# JSON


def plain(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Of this type, where True is no number."""
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


def is_thing(value: Any) -> bool:
    return (
        plain(value, dict)
        and {"näme", "at"} <= set(value) <= {"näme", "at", "tags"}
        and plain(value["näme"], str)
        and len(value["näme"]) <= 6
        and plain(value["at"], dict)
        and set(value["at"]) == {"x", "y"}
        and all(plain(n, int) and 0 <= n <= 99 for n in value["at"].values())
        and plain(value.get("tags", []), list)
        and all(tag in ("日", "b") for tag in value.get("tags", []))
    )


def is_tree(value: Any) -> bool:
    return plain(value, list) and len(value) <= 2 and all(map(is_tree, value))


def closed(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


COORDINATE = {"type": "integer", "minimum": 0, "maximum": 99}
TAGS = {"type": "array", "items": {"enum": ["日", "b"]}}
THING = closed(
    {
        "näme": {"type": "string", "maxLength": 6},
        "at": closed({"x": COORDINATE, "y": COORDINATE}, ["x", "y"]),
        "tags": TAGS,
    },
    ["näme", "at"],
)
TREE = {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}

words = st.text(max_size=6)
numbers = st.integers(0, 99)
things = st.builds(
    lambda name, x, y, tags: {"näme": name, "at": {"x": x, "y": y}} | tags,
    *(words, numbers, numbers),
    st.just({}) | st.fixed_dictionaries({"tags": st.lists(st.sampled_from(["日", "b"]), max_size=3)}),
)

# A schema, whether a value is of it, and values of it.
SCHEMAS: dict[str, tuple[dict[str, Any], Callable[[Any], bool], st.SearchStrategy]] = {
    "enum": (
        {"enum": ["red", "rot é日", 3, None, {"a": [1, 2]}]},
        lambda value: not isinstance(value, bool) and value in ["red", "rot é日", 3, None, {"a": [1, 2]}],
        st.sampled_from(["red", "rot é日", 3, None, {"a": [1, 2]}]),
    ),
    "integer": (
        {"type": "integer", "minimum": -3, "maximum": 120},
        lambda value: plain(value, int) and -3 <= value <= 120,
        st.integers(-3, 120),
    ),
    "number": ({"type": "number"}, lambda value: plain(value, (int, float)), st.floats(-1e6, 1e6) | st.integers()),
    "string": (
        {"type": "string", "minLength": 1, "maxLength": 4},
        lambda value: plain(value, str) and 1 <= len(value) <= 4,
        st.text(min_size=1, max_size=4),
    ),
    "pattern": (
        {"type": "string", "pattern": "^[a-c]{2}é$"},
        lambda value: plain(value, str) and re.fullmatch("[a-c]{2}é", value) is not None,
        st.from_regex("[a-c]{2}é", fullmatch=True),
    ),
    "array": (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        lambda value: plain(value, list) and 1 <= len(value) <= 3 and all(plain(item, bool) for item in value),
        st.lists(st.booleans(), min_size=1, max_size=3),
    ),
    "any of two": (
        {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}}]},
        lambda value: plain(value, bool) or (plain(value, list) and all(item is None for item in value)),
        st.booleans() | st.lists(st.none(), max_size=3),
    ),
    "nested objects": (THING, is_thing, things),
    "tree": (TREE, is_tree, st.recursive(st.just([]), lambda trees: st.lists(trees, max_size=2), max_leaves=6)),
}


@pytest.mark.parametrize("name", SCHEMAS)
@given(seed=st.integers(0, 999))
@settings(some, max_examples=15)
def test_a_walk_along_a_schema_may_end_exactly_where_it_is_json_of_the_schema(name, seed):
    schema, valid, _ = SCHEMAS[name]

    def complete(tokens: list[int]) -> bool:
        try:
            return valid(json.loads(tokenizer.decode(tokens)))
        except json.JSONDecodeError:
            return False

    assert valid(json.loads(answer(json_schema(tokenizer, schema), seed, complete)))


@pytest.mark.parametrize("name", SCHEMAS)
@given(data=st.data())
@settings(some, max_examples=15)
def test_every_value_of_the_schema_can_be_written_as_json_writes_it(name, data):
    schema, _, values = SCHEMAS[name]
    assert may_be(json_schema(tokenizer, schema), json.dumps(data.draw(values), ensure_ascii=False))


def test_whitespace_is_that_of_json_dumps_alone():
    schema = closed({"x": COORDINATE, "tags": TAGS}, ["x", "tags"])
    assert may_be(json_schema(tokenizer, schema), '{"x": 7, "tags": ["b", "b"]}')
    for other in (
        '{"x":7, "tags": ["b"]}',
        '{"x": 7,"tags": ["b"]}',
        '{ "x": 7, "tags": ["b"]}',
        ' {"x": 7, "tags": []}',
    ):
        assert not may_be(json_schema(tokenizer, schema), other)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "text"}, "Invalid type: text"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum .3. is greater"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "https://example.org/schema.json"}, "example.org"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"$ref": "#"}, "no text"),
        ({"enum": [{1}]}, "set"),
        ({"const": float("nan")}, "float"),
        (["integer"], "object"),
    ],
)
def test_a_schema_that_cannot_be_used_is_an_error_of_one_line(schema, told):
    with pytest.raises(ConfigError, match=told) as error:
        json_schema(tokenizer, schema)
    assert str(error.value).startswith("JSON schema: ")
    assert len(str(error.value).splitlines()) == 1


# all of them


MAKERS = [
    lambda: choices(tokenizer, ["red", "rot", "blue"]),
    lambda: regex(tokenizer, "red|rot|blue"),
    lambda: json_schema(tokenizer, {"enum": ["red", "rot", "blue"]}),
]


@pytest.mark.parametrize("make", MAKERS)
def test_two_constraints_share_no_state_and_what_a_caller_does_to_the_answer_changes_nothing(make):
    first, second = make(), make()
    start = ids(first.allowed())
    first.allowed().fill_(True)
    assert ids(first.allowed()) == start
    kept = first.allowed()
    while tokenizer.end not in (tokens := ids(first.allowed())):
        first.accept(min(tokens))
    assert ids(kept) == ids(second.allowed()) == ids(make().allowed()) == start


def test_special_tokens_of_a_pretrained_tokenizer_are_never_allowed():
    bpe = BPETokenizer.from_str(tokenizer.to_json())
    bpe.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    theirs = Tokenizer(bpe)
    assert len(theirs) == len(tokenizer) + 1
    allowed = regex(theirs, r"(?s).*").allowed()
    assert ids(~allowed) >= specials(theirs) | {len(theirs) - 1}
    assert allowed[theirs.end]


@pytest.mark.parametrize("make", [lambda t: regex(t, "a"), lambda t: json_schema(t, {"type": "integer"})])
def test_a_tokenizer_of_words_is_an_error(make):
    bpe = BPETokenizer(models.WordPiece({"[UNK]": 0, "red": 1}, unk_token="[UNK]"))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    with pytest.raises(ConfigError, match="tokenizer of bytes"):
        make(Tokenizer(bpe))


def test_without_llguidance_choices_work_and_the_others_tell_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert may_be(choices(tokenizer, ["red"]), "red")
    for make in (lambda: regex(tokenizer, "a"), lambda: json_schema(tokenizer, {})):
        with pytest.raises(ConfigError, match="pip install llguidance"):
            make()
