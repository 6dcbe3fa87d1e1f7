"""All metrics of a task on a system's predictions, with intervals, and two systems against each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np

from mmgpt.evaluation.metrics.captions import bleu, cider, rouge_l
from mmgpt.evaluation.metrics.java import java_scores
from mmgpt.evaluation.metrics.score import RESAMPLES, Interval, Score, bootstrap, p_value, percentiles
from mmgpt.evaluation.metrics.text import (
    character_error_rate,
    chrf,
    classification,
    exact_match,
    translation_bleu,
    word_error_rate,
    word_f1,
)
from mmgpt.evaluation.metrics.vqa import vqa_accuracy
from mmgpt.evaluation.metrics.wups import WUPS_LIMITS, WordNet, wups
from mmgpt.evaluation.predictions import Reference

SEED = 0  # of the resamples
LOWER_IS_BETTER = ("WER", "CER")
_TOKENS = {  # how texts are cut and brought to one form
    "caption": "ptb",
    "vqa": "vqa",
    "asr": "space",
    "translation": "sacrebleu",
    "classification": "none",
    "qa": "squad",
}


@dataclass(frozen=True)
class Scores:
    """What a system scores, and how often each score came out of resampling.

    Args:
        scores: By name.
        resampled: Each score on the resamples.
        signature: What must be the same for numbers to compare, by what it is of.
        left_out: Metrics that could not be computed, and why.
    """

    scores: dict[str, float]
    resampled: dict[str, np.ndarray]
    signature: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def intervals(self) -> dict[str, Interval]:
        return {name: percentiles(values) for name, values in self.resampled.items()}


def score(
    task: str, candidates: Sequence[str], references: Sequence[Reference], wordnet: WordNet | None = None
) -> Scores:
    """The metrics of a task.

    Args:
        task: One of caption, vqa, asr, translation, classification, qa.
        candidates: A prediction for each sample.
        references: What is right for each sample.
        wordnet: With it, answers of qa are also scored by WUPS.
    """
    texts = [reference.texts for reference in references]
    counts = {len(group) for group in texts}
    signature = {
        "mmgpt": f"task:{task}|refs:{counts.pop() if len(counts) == 1 else 'var'}|tok:{_TOKENS[task]}"
        f"|interval:bootstrap-95|resamples:{RESAMPLES}|seed:{SEED}|version:{version('mmgpt')}"
    }
    left_out: dict[str, str] = {}
    scores: dict[str, Score]
    if task == "caption":
        scores = {f"BLEU-{n}": one for n, one in enumerate(bleu(candidates, texts), 1)}
        scores |= {"ROUGE-L": rouge_l(candidates, texts), "CIDEr": cider(candidates, texts)}
        more, left_out = java_scores(candidates, texts)
        scores |= more
    elif task == "vqa":
        scores = _with_kinds("accuracy", vqa_accuracy(candidates, texts), references)
    elif task == "asr":
        scores = {"WER": word_error_rate(candidates, texts), "CER": character_error_rate(candidates, texts)}
    elif task == "translation":
        scores = {"BLEU": translation_bleu(candidates, texts), "chrF": chrf(candidates, texts)}
    elif task == "classification":
        scores = dict(zip(("accuracy", "macro-F1"), classification(candidates, texts), strict=True))
    else:
        scores = {"exact match": exact_match(candidates, texts), "F1": word_f1(candidates, texts)}
        if wordnet is not None:
            scores |= {f"WUPS@{limit}": wups(candidates, texts, wordnet, limit) for limit in WUPS_LIMITS}
    signature |= {name: one.signature for name, one in scores.items() if one.signature}
    values = {name: one.value for name, one in scores.items()}
    return Scores(values, bootstrap(scores, SEED), signature, left_out)


def compared(first: Scores, second: Scores) -> dict[str, tuple[float, float]]:
    """For each score that both have: the first minus the second, and its p in the paired bootstrap test."""
    found = {}
    for name, value in first.scores.items():
        if name in second.scores:
            difference = value - second.scores[name]
            found[name] = difference, p_value(first.resampled[name], second.resampled[name], difference)
    return found


def _with_kinds(name: str, of_all: Score, references: Sequence[Reference]) -> dict[str, Score]:
    """A mean over samples, and that over the samples of each kind, if there are kinds."""

    def of_kind(by: str, kind: str) -> Score:
        mask = np.array([one.kinds.get(by) == kind for one in references], dtype=float)
        return Score(of_all.n, lambda weights: of_all.weighted(weights * mask))

    kinds = sorted({pair for one in references for pair in one.kinds.items()})
    return {name: of_all} | {f"{name} ({kind})": of_kind(by, kind) for by, kind in kinds}
