"""METEOR and SPICE, which exist in Java alone: by pycocoevalcap (`uv sync --extra metrics`) and the java command."""

import contextlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmgpt.evaluation.metrics.captions import tokenize
from mmgpt.evaluation.metrics.score import Score, check, mean


def java_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, Score], dict[str, str]]:
    """METEOR (Denkowski and Lavie 2014) and SPICE (Anderson et al. 2016) as coco-caption computes them, in 0..1.

    SPICE fetches its parser, some 400 MB, the first time.

    Returns:
        The scores by name, and for each that could not be computed the reason.
    """
    check(candidates, references)
    if reason := java_missing():
        return {}, dict.fromkeys(("METEOR", "SPICE"), reason)
    scores: dict[str, Score] = {}
    left_out: dict[str, str] = {}
    measures: dict[str, Callable[..., Score]] = {"METEOR": meteor, "SPICE": _spice}
    for name, measure in measures.items():
        try:
            with contextlib.redirect_stdout(sys.stderr):  # downloads tell of themselves
                scores[name] = measure(candidates, references)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            left_out[name] = f"its Java program, or what that has to fetch, failed: {error}"
    return scores, left_out


def java_missing() -> str:
    """Why METEOR and SPICE cannot be computed here; empty where they can."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "pycocoevalcap is not installed (uv sync --extra metrics)"
    return "" if shutil.which("java") else "there is no java command; install a Java runtime"


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """METEOR alone, of `java_scores`, where nothing is missing. Raises OSError, ValueError: its program failed."""
    from pycocoevalcap.meteor.meteor import Meteor  # pyright: ignore[reportMissingImports]

    check(candidates, references)
    program: Any = Meteor()  # it ends when this is forgotten
    pairs = zip(candidates, references, strict=True)
    sums = np.array([program._stat(_joined(said), [*map(_joined, truths)]).split() for said, truths in pairs], float)
    # METEOR adds these up over samples, but of a caption that is matched word by word in one piece it counts no piece.
    words, reference_words, pieces, matched, reference_matched = sums[:, [0, 1, 20, 21, 22]].T
    sums[(pieces == 1) & (words == matched) & (reference_words == reference_matched), 20] = 0

    def corpus(weights: np.ndarray) -> float:
        pipe = program.meteor_p
        pipe.stdin.write(f"EVAL ||| {' '.join(map(str, (weights @ sums).tolist()))}\n".encode())
        pipe.stdin.flush()
        pipe.stdout.readline()  # of the one segment that the sums are to it
        return float(pipe.stdout.readline())

    return Score(len(candidates), corpus)


def _spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    from pycocoevalcap.spice.spice import Spice  # pyright: ignore[reportMissingImports]

    said = {i: [_joined(text)] for i, text in enumerate(candidates)}
    truths = {i: [_joined(text) for text in group] for i, group in enumerate(references)}
    _, samples = Spice().compute_score(truths, said)
    return mean([sample["All"]["f"] for sample in samples])


def _joined(text: str) -> str:
    return " ".join(tokenize(text))
