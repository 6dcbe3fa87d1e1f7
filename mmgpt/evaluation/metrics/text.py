"""Scores of answers, transcripts, translations and labels: exact match, SQuAD, error rates, sacrebleu, macro-F1."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jiwer
import numpy as np

from mmgpt.evaluation.metrics.score import Score, check, mean

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU, CHRF

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_HAN = range(0x4E00, 0xA000)  # Chinese characters in Unicode
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """The share of candidates that match one of their references, as SQuAD 2.0's own script has it (see `is_match`)."""
    check(candidates, references)
    return mean([float(is_match(*pair)) for pair in zip(candidates, references, strict=True)])


def is_match(candidate: str, references: Sequence[str]) -> bool:
    """Whether the candidate says the same words as one of the references (Rajpurkar et al. 2018).

    Case, punctuation, articles and space do not count. Where no reference has a word left, the right answer is one
    without words.
    """
    return _squad_words(candidate) in _squad_truths(references)


def word_f1(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """F1 of words as SQuAD 2.0's own script computes it, words as in `is_match`; the best of several references counts.

    The mean over samples.
    """
    check(candidates, references)
    return mean(
        [
            max(_word_f1(_squad_words(candidate), truth) for truth in _squad_truths(group))
            for candidate, group in zip(candidates, references, strict=True)
        ]
    )


def word_error_rate(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Word errors (substituted, missing, added) of the corpus over its reference words, as jiwer counts; can exceed 1.

    Words are what spaces separate, compared as they stand: bring both sides to one convention of case and punctuation
    first. With several references the one of the lowest rate counts.
    """
    return _error_rate(candidates, references, jiwer.process_words)


def character_error_rate(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """As `word_error_rate`, in characters, spaces among them."""
    return _error_rate(candidates, references, jiwer.process_characters)


def translation_bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """BLEU as sacrebleu computes it (Post 2018), with its signature; a fraction, where sacrebleu prints it times 100.

    Texts are cut as sacrebleu does by default (13a), or, where most letters of the references are Chinese characters,
    as it does for Chinese (zh): else a whole sentence would be one word.
    """
    from sacrebleu.metrics import BLEU  # 0.2 s

    return _sacrebleu(BLEU(tokenize="zh" if _is_chinese(references) else "13a"), candidates, references)


def chrf(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """chrF (Popović 2015) as sacrebleu computes it by default, with its signature; a fraction."""
    from sacrebleu.metrics import CHRF

    return _sacrebleu(CHRF(), candidates, references)


def classification(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Score, Score]:
    """Accuracy, and the mean over the classes of their F1 (macro-F1 as scikit-learn computes it).

    The classes are all labels that are predicted or true, compared as they stand but for space around them. A sample
    has one true label, the first of its references.
    """
    check(candidates, references)
    labels: dict[str, int] = {}
    said = np.array([labels.setdefault(label.strip(), len(labels)) for label in candidates])
    true = np.array([labels.setdefault(group[0].strip(), len(labels)) for group in references])
    right = said == true

    def macro_f1(weights: np.ndarray) -> float:
        both = np.bincount(said, weights, len(labels)) + np.bincount(true, weights, len(labels))
        hits = np.bincount(true[right], weights[right], len(labels))
        there = both > 0  # in a resample some classes are missing
        return float((2 * hits[there] / both[there]).mean())

    return mean(right), Score(len(candidates), macro_f1)


def _sacrebleu(metric: "BLEU | CHRF", candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    check(candidates, references)
    most = max(map(len, references))
    streams: list[list[Any]] = [[group[i] if i < len(group) else None for group in references] for i in range(most)]
    sums = np.array(metric._extract_corpus_statistics(candidates, streams), dtype=float)

    def corpus(weights: np.ndarray) -> float:
        return metric._compute_score_from_stats((weights @ sums).tolist()).score / 100

    return Score(len(candidates), corpus, str(metric.get_signature()))


def _is_chinese(references: Sequence[Sequence[str]]) -> bool:
    letters = [letter for group in references for text in group for letter in text if letter.isalpha()]
    return 2 * sum(ord(letter) in _HAN for letter in letters) > len(letters)


def _squad_words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _squad_truths(references: Sequence[str]) -> list[list[str]]:
    return [truth for truth in map(_squad_words, references) if truth] or [[]]


def _word_f1(words: list[str], truth: list[str]) -> float:
    if not words or not truth:
        return float(words == truth)
    common = (Counter(words) & Counter(truth)).total()
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(truth)
    return 2 * precision * recall / (precision + recall)


def _error_rate(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    process: Callable[[str, str], jiwer.WordOutput | jiwer.CharacterOutput],
) -> Score:
    check(candidates, references)
    errors, units = [], []
    for candidate, truths in zip(candidates, references, strict=True):
        scored = []
        for truth in truths:
            found = process(truth, candidate)
            length = found.hits + found.substitutions + found.deletions
            scored.append((found.substitutions + found.deletions + found.insertions, length))
        fewest, length = min(scored, key=lambda pair: pair[0] / max(pair[1], 1))
        errors.append(fewest)
        units.append(length)
    wrong, whole = np.array(errors, dtype=float), np.array(units, dtype=float)
    # Where there is no word to get right, each word that is added is an error, as jiwer has it.
    return Score(len(candidates), lambda weights: float(weights @ wrong) / max(float(weights @ whole), 1.0))
