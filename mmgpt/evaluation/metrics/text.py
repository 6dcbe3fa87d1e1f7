"""Scores of answers, transcripts, translations and labels: exact match, SQuAD, error rates, sacrebleu, macro-F1."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jiwer
import numpy as np

from mmgpt.evaluation.metrics.captions import tokenize
from mmgpt.evaluation.metrics.score import Score, check, mean

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """The share of candidates that match one of their references (see `is_match`)."""
    check(candidates, references)
    return mean([float(is_match(*pair)) for pair in zip(candidates, references, strict=True)])


def is_match(candidate: str, references: Sequence[str]) -> bool:
    """Whether the candidate says the same words as one of the references; case, punctuation and space do not count."""

    def words(text: str) -> list[str]:
        return tokenize(text) or text.split()  # an answer may be a punctuation mark

    return any(words(candidate) == words(truth) for truth in references)


def squad(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Score, Score]:
    """Exact match and F1 of words as SQuAD 2.0's own script computes them (Rajpurkar et al. 2018).

    Case, punctuation, articles and space do not count; of several references the best one does. Where no reference has
    a word left, the right answer is one without words.
    """
    check(candidates, references)
    exact, f1 = [], []
    for candidate, group in zip(candidates, references, strict=True):
        words = _squad_words(candidate)
        truths = [truth for truth in map(_squad_words, group) if truth] or [[]]
        exact.append(float(words in truths))
        f1.append(max(_word_f1(words, truth) for truth in truths))
    return mean(exact), mean(f1)


def word_error_rate(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Word errors (substituted, missing, added) of the corpus over its reference words, as jiwer counts; can exceed 1.

    Words are what spaces separate, compared as they stand: bring both sides to one convention of case and punctuation
    first. With several references the one of the lowest rate counts.
    """
    return _error_rate(candidates, references, jiwer.process_words)


def character_error_rate(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """As `word_error_rate`, in characters, spaces among them."""
    return _error_rate(candidates, references, jiwer.process_characters)


def sacrebleu(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *names: str
) -> dict[str, tuple[Score, str]]:
    """BLEU and chrF as sacrebleu computes them by default, each with its signature (Post 2018, Popović 2015).

    Of the two those that are named, or both.

    They are fractions as all scores are: sacrebleu prints them times 100.
    """
    from sacrebleu.metrics import BLEU, CHRF  # 0.2 s

    check(candidates, references)
    most = max(map(len, references))
    streams: list[list[Any]] = [[group[i] if i < len(group) else None for group in references] for i in range(most)]
    found = {}
    metrics = {"BLEU": BLEU, "chrF": CHRF}
    for name in names or metrics:
        metric = metrics[name]()
        sums = np.array(metric._extract_corpus_statistics(candidates, streams), dtype=float)

        def corpus(weights: np.ndarray, metric: BLEU | CHRF = metric, sums: np.ndarray = sums) -> float:
            return metric._compute_score_from_stats((weights @ sums).tolist()).score / 100

        found[name] = Score(len(candidates), corpus), str(metric.get_signature())
    return found


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


def _squad_words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


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
