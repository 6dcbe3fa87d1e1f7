"""VQA accuracy as VQA's own evaluation computes it (Antol et al. 2015, Goyal et al. 2017): answers of ten people."""

import re
from collections.abc import Sequence

from mmgpt.evaluation.metrics.score import Score, check, mean

AGREED = 3  # people whose answer is wholly right

_NUMBERS = ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {word: str(max(0, i - 1)) for i, word in enumerate(_NUMBERS)}  # none is 0, as zero is
_ARTICLES = {"a", "an", "the"}
_CONTRACTED = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
# What each is written as when one of its apostrophes is forgotten. The last one is the other way about in the original.
_CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTED.split()
    for i, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA = re.compile(r"\d,\d")


def vqa_accuracy(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """The mean over questions of the share of people that agree with the answer: three of them make it wholly right.

    Each person in turn is left out, and the answer held against those of the others. Where all people gave the same
    answer it is compared as it stands, otherwise both sides are normalised first (see `normalised`), as the original
    does.
    """
    check(candidates, references)
    return mean([_accuracy(*pair) for pair in zip(candidates, references, strict=True)])


def normalised(answer: str) -> str:
    """An answer in lower case without punctuation and articles, number words as digits, apostrophes put back."""
    spaced = answer
    for mark in _PUNCTUATION:
        alone = f"{mark} " in answer or f" {mark}" in answer or _COMMA.search(answer)
        spaced = spaced.replace(mark, "" if alone else " ")
    words = [_DIGITS.get(word, word) for word in _PERIOD.sub("", spaced).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _accuracy(candidate: str, answers: Sequence[str]) -> float:
    candidate, *answers = (text.replace("\n", " ").replace("\t", " ").strip() for text in (candidate, *answers))
    if len(set(answers)) > 1:
        candidate, *answers = map(normalised, (candidate, *answers))
    same = sum(answer == candidate for answer in answers)
    return sum(min(1.0, (same - (answer == candidate)) / AGREED) for answer in answers) / len(answers)
