"""Scores of captions as coco-caption computes them (Chen et al. 2015): BLEU, ROUGE-L and CIDEr-D.

Pure Python, no Java. Every score takes one candidate a sample and all captions of that sample: `candidates[i]` is held
against `references[i]`, a list of one or more texts. Scores are fractions; papers print them times 100.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mmgpt.evaluation.metrics.score import Score, check, mean

NGRAMS = 4  # the longest n-gram of BLEU and CIDEr
SIGMA = 6.0  # width of CIDEr-D's length penalty, in words
BETA = 1.2  # weight of recall in ROUGE-L
_TINY, _SMALL = 1e-15, 1e-9  # coco-caption's smoothing: no n-gram at all scores nearly nothing

Ngram = tuple[str, ...]

# The parts of a text that the Penn Treebank splits off or keeps whole, in the order in which they are tried.
_TOKEN = re.compile(
    r"""
    (?:[^\W\d_]\.){2,} | [^\W\d_]\.(?=\s+\S)                  # u.s., a.m.; j. smith
    | (?:mr|mrs|ms|dr|st|jr|sr|vs|prof|mt|ft|etc)\.           # abbreviations
    | n't\b | '(?:s|re|ve|ll|d|m)\b                           # the second half of a contraction
    | '\d0s\b | 'n' | 'em\b | 't\b(?=\ (?:is|was)\b)          # the '90s, rock 'n' roll, hook 'em, 'tis
    | [+-]?\d+(?:[.,:/-]\d+)*(?:-?[^\W\d_][\w-]*)?            # 3,000 10:30 1/2 -5 4x4 two-digit 2nd 10-year-old
    | (?:(?<=\s)|^)[.,:]\d+(?:[.,:]\d+)*                      # .5
    | (?-i:[A-Z]+(?:&[A-Z]+)+)                                # Q&A
    | \w+?(?=n't\b)                                           # do|n't
    | \w+(?:[-/.]\w+|'(?!(?:s|re|ve|ll|d|m)\b|n')\w+)*        # t-shirt and/or o'clock
    | \.{2,} | --+ | [!?]{2,}
    | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)
_TWO_WORDS = re.compile(
    r"\b(can)(not)\b | \b(gon|wan)(na)\b | \b(got)(ta)\b | \b(lem|gim)(me)\b | (?<!\w)('t)(is|was)\b",
    re.VERBOSE | re.IGNORECASE,
)
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"'}
_ENTITY = re.compile("|".join(_ENTITIES))
_CHARACTERS = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "`": "'", "–": " - ", "—": " - ", "…": ".", "£": "#"}
    | {"¼": " 1/4", "½": " 1/2", "¾": " 3/4"}
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PUNCTUATION = re.compile(r"""\.+|-+|[?!,:;'"]""")


@lru_cache(1 << 16)  # each metric asks for the same texts
def tokenize(text: str) -> tuple[str, ...]:
    """The words of a text as coco-caption counts them: lower case, Penn Treebank contractions, no punctuation.

    After Stanford's PTBTokenizer, whose rules for ordinary captions these are ("don't" is "do", "n't"). Like
    coco-caption, brackets stay as words (-lrb-), and so do repeated marks (!!). Addresses, smileys and other things
    that captions do not hold may be cut elsewhere; and a single letter at the end of a caption has a full stop with it
    there or not by what the next line of the file begins with, which is not known here: it has none.
    """
    text = _ENTITY.sub(lambda match: _ENTITIES[match[0]], text).translate(_CHARACTERS)
    text = _TWO_WORDS.sub(lambda match: " ".join(filter(None, match.groups())), text)
    words = [match.group().lower() for match in _TOKEN.finditer(text)]
    return tuple(_BRACKETS.get(word, word) for word in words if not _PUNCTUATION.fullmatch(word))


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], n: int = NGRAMS) -> list[Score]:
    """BLEU-1 to BLEU-n of the corpus, each in 0..1 (Papineni et al. 2002, as coco-caption computes it).

    n-gram matches are clipped and summed over all samples; the brevity penalty takes the reference closest in length.
    """
    check(candidates, references)
    sums = np.zeros((len(candidates), 2 + 2 * n))  # words of candidate and reference; matches and n-grams of each size
    for i, (candidate, truths) in enumerate(zip(candidates, references, strict=True)):
        words, truth_words = tokenize(candidate), [tokenize(truth) for truth in truths]
        closest = min((len(truth) for truth in truth_words), key=lambda size: (abs(size - len(words)), size))
        sums[i, :2] = len(words), closest
        for size in range(1, n + 1):
            counts = _ngrams(words, size)
            most = Counter()
            for truth in truth_words:
                most |= _ngrams(truth, size)
            sums[i, 2 * size : 2 * size + 2] = (counts & most).total(), counts.total()

    def corpus(weights: np.ndarray, size: int) -> float:
        words, reference_words, *counts = (weights @ sums).tolist()
        shares = [(counts[2 * k] + _TINY) / (counts[2 * k + 1] + _SMALL) for k in range(size)]
        ratio = (words + _TINY) / (reference_words + _SMALL)
        brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        return math.prod(shares) ** (1 / size) * brevity

    return [Score(len(candidates), lambda weights, size=size: corpus(weights, size)) for size in range(1, n + 1)]


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """ROUGE-L, the mean over samples, in 0..1 (Lin 2004, as coco-caption computes it).

    Precision and recall are each the best over the references, of whichever, and recall counts more.
    """
    check(candidates, references)
    scores = []
    for candidate, truths in zip(candidates, references, strict=True):
        words = tokenize(candidate) or ("",)  # as coco-caption has it: a text without words is one empty word
        precision = recall = 0.0
        for truth in truths:
            truth_words = tokenize(truth) or ("",)
            common = _longest_common(words, truth_words)
            precision, recall = max(precision, common / len(words)), max(recall, common / len(truth_words))
        scores.append((1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision else 0.0)
    return mean(scores)


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """CIDEr-D, the mean over samples (Vedantam et al. 2015, as coco-caption computes it): 0 to 10.

    Document frequencies come from the references given, so the score depends on the whole set of samples: only scores
    on the same set compare, and a single sample scores 0. Resampled scores keep the frequencies of the whole set.
    """
    return mean(cider_scores(candidates, references))


def cider_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each sample; their mean is `cider`."""
    check(candidates, references)
    scorer = CiderD(references)
    return [scorer(candidate, group) for candidate, group in zip(candidates, references, strict=True)]


@dataclass(frozen=True)
class _Weighed:
    """The TF-IDF weight of each n-gram of a text, their norm for each n, and its length in bigrams, as the original
    has it.
    """

    weights: dict[Ngram, float]
    norms: list[float]
    length: int


class CiderD:
    """CIDEr-D of one text after another: `corpus`, the references of many samples, tells how rare an n-gram is."""

    def __init__(self, corpus: Iterable[Sequence[str]]):
        self._frequency: Counter[Ngram] = Counter()
        samples = 0
        for group in corpus:
            self._frequency.update(set().union(*map(_all_ngrams, group)))
            samples += 1
        self._samples = math.log(max(1, samples))
        self._reference = lru_cache(1 << 16)(self._weighed)  # each is held against many candidates

    def __call__(self, candidate: str, references: Sequence[str]) -> float:
        own = self._weighed(candidate)
        score = 0.0
        for truth in map(self._reference, references):
            penalty = math.exp(-((own.length - truth.length) ** 2) / (2 * SIGMA**2))
            for ngram, weight in own.weights.items():
                n = len(ngram) - 1
                if ngram in truth.weights and own.norms[n] * truth.norms[n]:
                    product = min(weight, truth.weights[ngram]) * truth.weights[ngram]
                    score += penalty * product / (own.norms[n] * truth.norms[n])
        return 10 * score / NGRAMS / len(references)

    def _weighed(self, text: str) -> _Weighed:
        counts = _all_ngrams(text)
        weights = {
            ngram: count * (self._samples - math.log(max(1, self._frequency[ngram]))) for ngram, count in counts.items()
        }
        squares = [0.0] * NGRAMS
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight**2
        length = sum(count for ngram, count in counts.items() if len(ngram) == 2)
        return _Weighed(weights, [math.sqrt(square) for square in squares], length)


def _ngrams(words: Sequence[str], n: int) -> Counter[Ngram]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _all_ngrams(text: str) -> Counter[Ngram]:
    words = tokenize(text)
    counts = Counter()
    for n in range(1, NGRAMS + 1):
        counts.update(_ngrams(words, n))
    return counts


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest sequence of words that both have in this order, not necessarily side by side."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]
