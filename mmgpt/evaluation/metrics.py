"""Scores of texts against reference texts: BLEU, CIDEr-D, word and character error rate, exact match.

Every score takes one candidate a sample and all right answers of that sample: `candidates[i]` is held against
`references[i]`, a list of one or more texts. All are corpus-level fractions; papers print BLEU, CIDEr and error
rates times 100. Pure Python, no Java: BLEU and CIDEr are coco-caption's numbers.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from mmgpt.errors import DataError

NGRAMS = 4  # the longest n-gram of BLEU and CIDEr
SIGMA = 6.0  # width of CIDEr-D's length penalty, in words

Ngram = tuple[str, ...]

# The parts of a text that the Penn Treebank splits off or keeps whole, in the order in which they are tried.
_TOKEN = re.compile(
    r"""
    (?:[^\W\d_]\.){2,} | [^\W\d_]\.(?=\s+\S)                  # u.s., a.m.; j. smith
    | (?:mr|mrs|ms|dr|st|jr|sr|vs|prof|mt|ft|etc)\.           # abbreviations
    | n't\b | '(?:s|re|ve|ll|d|m)\b                           # the second half of a contraction
    | '\d0s\b | 'n'                                           # the '90s, rock 'n' roll
    | [+-]?\d+(?:[.,:/-]\d+)*(?:-?[^\W\d_][\w-]*)?            # 3,000 10:30 1/2 -5 4x4 two-digit 2nd 10-year-old
    | \w+?(?=n't\b)                                           # do|n't
    | \w+(?:[-/.]\w+|'(?!(?:s|re|ve|ll|d|m)\b|n')\w+)*        # t-shirt and/or o'clock
    | \.{2,} | --+ | [!?]{2,}
    | \S
    """,
    re.VERBOSE,
)
_TWO_WORDS = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(lem|gim)(me)\b")
_QUOTES = str.maketrans("“”‘’`–—…", "\"\"'''--.")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PUNCTUATION = re.compile(r"""\.+|-+|[?!,:;'"]""")


def tokenize(text: str) -> list[str]:
    """The words of a text as coco-caption counts them: lower case, Penn Treebank contractions, no punctuation.

    After Stanford's PTBTokenizer, whose rules for ordinary captions these are ("don't" is "do", "n't"). Like
    coco-caption, brackets stay as words (-lrb-), and so do repeated marks (!!).
    """
    text = text.lower().translate(_QUOTES)
    text = _TWO_WORDS.sub(lambda match: " ".join(filter(None, match.groups())), text)
    words = [match.group() for match in _TOKEN.finditer(text)]
    return [_BRACKETS.get(word, word) for word in words if not _PUNCTUATION.fullmatch(word)]


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], n: int = NGRAMS) -> list[float]:
    """BLEU-1 to BLEU-n of the corpus, each in 0..1 (Papineni et al. 2002, as coco-caption computes it).

    n-gram matches are clipped and summed over all samples; the brevity penalty takes the reference closest in length.
    Without a single match of some length, BLEU of that length is 0 (coco-caption's smoothing leaves up to 0.0002).
    """
    _check(candidates, references)
    matched, total = [0] * n, [0] * n
    candidate_words = reference_words = 0
    for candidate, truths in zip(candidates, references, strict=True):
        words, truth_words = tokenize(candidate), [tokenize(truth) for truth in truths]
        candidate_words += len(words)
        reference_words += min((len(truth) for truth in truth_words), key=lambda size: (abs(size - len(words)), size))
        for size in range(1, n + 1):
            counts = _ngrams(words, size)
            most = Counter()
            for truth in truth_words:
                most |= _ngrams(truth, size)
            matched[size - 1] += (counts & most).total()
            total[size - 1] += counts.total()
    if not candidate_words:
        return [0.0] * n
    brevity = min(1.0, math.exp(1 - reference_words / candidate_words))
    scores, product = [], 1.0
    for size in range(1, n + 1):
        product *= matched[size - 1] / max(total[size - 1], 1)
        scores.append(brevity * product ** (1 / size))
    return scores


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D of the corpus (Vedantam et al. 2015), as coco-caption computes it: 0 to 10, papers print it times 100.

    Document frequencies come from the references given, so the score depends on the whole set of samples: only scores
    on the same set compare, and a single sample scores 0.
    """
    scores = cider_scores(candidates, references)
    return sum(scores) / len(scores)


def cider_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each sample; their mean is `cider`."""
    _check(candidates, references)
    truths = [[_all_ngrams(truth) for truth in group] for group in references]
    frequency = Counter(ngram for group in truths for ngram in set().union(*group))
    samples = math.log(len(candidates))

    def weigh(counts: Counter[Ngram]) -> tuple[dict[Ngram, float], list[float], int]:
        """TF-IDF weight of each n-gram, their norm for each n, the length (in bigrams, as the original has it)."""
        weights = {ngram: count * (samples - math.log(max(1, frequency[ngram]))) for ngram, count in counts.items()}
        squares = [0.0] * NGRAMS
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight**2
        length = sum(count for ngram, count in counts.items() if len(ngram) == 2)
        return weights, [math.sqrt(square) for square in squares], length

    scores = []
    for candidate, group in zip(candidates, truths, strict=True):
        weights, norms, length = weigh(_all_ngrams(candidate))
        score = 0.0
        for truth in group:
            truth_weights, truth_norms, truth_length = weigh(truth)
            penalty = math.exp(-((length - truth_length) ** 2) / (2 * SIGMA**2))
            for ngram, weight in weights.items():
                n = len(ngram) - 1
                if ngram in truth_weights and norms[n] * truth_norms[n]:
                    product = min(weight, truth_weights[ngram]) * truth_weights[ngram]
                    score += penalty * product / (norms[n] * truth_norms[n])
        scores.append(10 * score / NGRAMS / len(group))
    return scores


def word_error_rate(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Word errors (substituted, missing, added) of the whole corpus over its reference words; can exceed 1.

    Words are what white space separates, compared as they stand: bring both sides to one convention of case and
    punctuation first. With several references the one of the lowest rate counts.
    """
    return _error_rate(
        [text.split() for text in candidates], [[text.split() for text in group] for group in references]
    )


def character_error_rate(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """As `word_error_rate`, in characters; a run of white space counts as one."""
    return _error_rate(
        [" ".join(text.split()) for text in candidates],
        [[" ".join(text.split()) for text in group] for group in references],
    )


def exact_match(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of candidates that match one of their references (see `is_match`)."""
    _check(candidates, references)
    return sum(map(is_match, candidates, references)) / len(candidates)


def is_match(candidate: str, references: Sequence[str]) -> bool:
    """Whether the candidate says the same words as one of the references; case, punctuation and space do not count."""

    def words(text: str) -> list[str]:
        return tokenize(text) or text.split()  # an answer may be a punctuation mark

    return any(words(candidate) == words(truth) for truth in references)


def interval(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a proportion, for z = 1.96 at 95 %: (low, high) in 0..1 (Wilson 1927).

    Honest for few samples and at 0 and 1, where the normal approximation has no width.
    """
    if n < 1:
        return 0.0, 1.0
    share = successes / n
    centre = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, (centre - half) / (1 + z**2 / n)), min(1.0, (centre + half) / (1 + z**2 / n))


def edit_distance(first: Sequence, second: Sequence) -> int:
    """Fewest substitutions, deletions and insertions that turn one sequence into the other (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def _error_rate(candidates: Sequence[Sequence], references: Sequence[Sequence[Sequence]]) -> float:
    _check(candidates, references)
    errors = units = 0
    for candidate, truths in zip(candidates, references, strict=True):
        scored = [(edit_distance(candidate, truth), len(truth)) for truth in truths]
        fewest, length = min(scored, key=lambda pair: pair[0] / max(pair[1], 1))
        errors, units = errors + fewest, units + length
    return errors / max(units, 1)


def _ngrams(words: Sequence[str], n: int) -> Counter[Ngram]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _all_ngrams(text: str) -> Counter[Ngram]:
    words = tokenize(text)
    counts = Counter()
    for n in range(1, NGRAMS + 1):
        counts.update(_ngrams(words, n))
    return counts


def _check(candidates: Sequence, references: Sequence) -> None:
    if not candidates:
        raise DataError("nothing to score: no candidates")
    if len(candidates) != len(references):
        raise DataError(f"{len(candidates)} candidates but {len(references)} lists of references: give one list each")
    for i, group in enumerate(references):
        if isinstance(group, str) or not group:
            raise DataError(f"references of sample {i}: expected a list of one or more texts, got {group!r}")
