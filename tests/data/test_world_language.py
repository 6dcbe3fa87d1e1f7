"""Sentences of the world are read back as what they tell, and answers are scored by what they tell."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.data.world import World, score_answer, tasks_of
from mmgpt.data.world.clips import DIRECTIONS
from mmgpt.data.world.language import (
    NUMBERS,
    PROMPTS,
    captions,
    descriptions,
    normalise,
    read_caption,
    read_description,
    read_verdict,
    read_word,
    request,
)
from mmgpt.data.world.scenes import COLOURS, NEW, SEEN, SHAPES, Kind
from mmgpt.data.world.sounds import INSTRUMENTS, SYLLABLES
from mmgpt.data.world.tasks import LEVELS

KINDS = st.sampled_from([*SEEN, *NEW])
WAYS = st.sampled_from(["", *sum(DIRECTIONS, ())])
FAMILIES = (tuple(COLOURS), SHAPES, NUMBERS, INSTRUMENTS, SYLLABLES, ("high", "low"), *DIRECTIONS, ("yes", "no"))
several = settings(derandomize=True, deadline=None, max_examples=60)


def typed(text: str) -> str:
    """As somebody else would type it."""
    text = text[0].upper() + text[1:] + "."
    return re.sub(rf"\b({'|'.join(NUMBERS)})\b", lambda match: str(NUMBERS.index(match[0])), text)


@several
@given(st.lists(KINDS, min_size=1, max_size=max(level.things for level in LEVELS.values())))
def test_captions_of_every_wording_are_read_back(kinds):
    for told in (captions(prompt, kinds) for prompt in PROMPTS["caption"]):
        assert len(set(told)) == len(told) > 1
        for text in told:
            assert read_caption(text) == read_caption(typed(text)) == Counter(kinds)


@several
@given(st.lists(st.tuples(KINDS, WAYS), min_size=1, max_size=2))
def test_descriptions_of_every_wording_are_read_back(motions):
    for told in (descriptions(prompt, motions) for prompt in PROMPTS["describe"]):
        assert len(set(told)) == len(told) > 1
        for text in told:
            assert read_description(text) == read_description(typed(text)) == Counter(motions)


def test_the_wording_of_an_answer_follows_from_that_of_the_request():
    kinds, motions = [SEEN[0]], [(SEEN[0], "up")]
    for form, tell in (
        ("caption", lambda asked: captions(asked, kinds)),
        ("describe", lambda a: descriptions(a, motions)),
    ):
        told = [tell(prompt) for prompt in PROMPTS[form]]
        assert len({answers[0] for answers in told}) == len(told)
        assert all(set(answers) == set(told[0]) for answers in told)
        assert told == [tell(prompt.lower().rstrip("?.")) for prompt in PROMPTS[form]]


def test_captions_are_english():
    circle, cross = Kind("red", "circle"), Kind("white", "cross")
    asked = PROMPTS["caption"][0]
    assert "there is a red circle and two white crosses" in captions(asked, [circle, cross, cross])
    assert "there is a red circle and two white crosses" in captions(asked, [cross, circle, cross])
    described = descriptions(PROMPTS["describe"][0], [(circle, "left"), (cross, "")])
    assert "the red circle moves left and the white cross does not move" in described


@pytest.mark.parametrize(
    "text",
    ["", "and", "a circle", "a red", "red circle", "a pink circle", "a red circle and", "a red circle moves left"],
)
def test_what_is_no_caption_is_not_read(text):
    assert read_caption(text) is None


@pytest.mark.parametrize("text", ["", "a red circle", "a red circle moves", "a red circle moves left and right"])
def test_what_is_no_description_is_not_read(text):
    assert read_description(text) is None


def test_short_answers_are_the_first_word_that_could_be_one():
    assert read_word("It is Red, not blue.", "green") == "red"
    assert read_word("I hear 2, not 3", "four") == "two"
    assert read_word("it moves up", "left") is None
    assert read_verdict("two shapes, no beeps: Yes.") == "yes"
    assert read_verdict("no, no, yes, ") == "yes"
    assert read_verdict("yes, they do") is None


def test_requests_are_put_in_every_wording_and_some_in_haste():
    rng = np.random.default_rng(0)
    words = {"shape": "square", "colour": "red", "kind": "red shapes", "a_thing": "a red square", "place": "first"}
    words |= {"thing": "red square", "other": "blue cross", "relation": "left of", "options": "high or low"}
    words |= {"a": "one", "b": "two"}
    for form, wordings in PROMPTS.items():
        asked = [request(rng, form, **words) for _ in range(100)]
        assert {normalise(text) for text in asked} == {normalise(wording.format(**words)) for wording in wordings}
        hasty = sum(text == text.lower() and text[-1] not in "?." for text in asked)
        assert 5 <= hasty <= 40


def altered(answer: str) -> list[str]:
    """The answer with each of its telling words replaced by others of its kind, one at a time."""
    words = re.findall(r"\w+|\W+", answer)
    return [
        "".join([*words[:i], other, *words[i + 1 :]])
        for i, word in enumerate(words)
        for family in FAMILIES
        if word in family
        for other in family
        if other != word
    ]


@pytest.mark.parametrize(("level", "task"), [(level, task) for level in LEVELS for task in tasks_of(level)])
def test_all_answers_of_a_sample_are_right_and_altered_ones_wrong(level, task):
    for sample in World("test", 15, level=level, task=task):
        for answer in sample.answers:
            assert score_answer(sample, answer)
            assert score_answer(sample, typed(answer))
            verdict = answer.split()[-1]
            wrong = [text for text in altered(answer) if task != "match" or text.split()[-1] != verdict]
            assert len(wrong) >= 1
            assert [text for text in wrong if score_answer(sample, text)] == []
        assert not any(score_answer(sample, text) for text in ("", "and", "I do not know"))


def test_a_caption_must_name_what_is_there_and_nothing_else():
    for sample in World("test", 60, task="caption"):
        first, *others = sample.answers
        assert not score_answer(sample, f"{first} and a red square")
        if " and " in first:
            assert not score_answer(sample, first.split(" and ")[0])
        assert all(read_caption(first) == read_caption(other) for other in others)
