"""WUPS: how near answers are to the right ones in WordNet (Malinowski and Fritz 2014), as DAQUAR is scored.

WordNet's own files are read (Debian's package wordnet-base has them in /usr/share/wordnet). Words, senses and the
similarity of two senses (Wu and Palmer 1994) are those of nltk.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import prod
from pathlib import Path

from mmgpt.errors import DataError
from mmgpt.evaluation.metrics.score import Score, check, mean

FILES = ("index.noun", "data.noun", "noun.exc")
WUPS_LIMITS = (0.9, 0.0)  # thresholds that are told: nearly the same thing, and anything near
FAR = 0.1  # how much a similarity below the threshold counts
# Endings of plurals, and what they stand for (WordNet's morphy(7WN)).
_ENDINGS = (
    ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
    ("ies", "y"),
)  # fmt: skip


class WordNet:
    """The nouns of WordNet: their senses, and what each is a kind of.

    Args:
        folder: With index.noun, data.noun and noun.exc.

    Raises:
        DataError: They are not there, or not what they should be.
    """

    def __init__(self, folder: str | Path):
        self._senses: dict[str, list[str]] = {}  # of a word, the most frequent one first
        self._above: dict[str, list[str]] = {}  # what a sense is a kind, or an instance, of
        self._names: dict[str, str] = {}  # the first word of a sense, in small letters
        self._exceptions: dict[str, list[str]] = defaultdict(list)
        try:
            for fields in _rows(Path(folder) / "index.noun"):
                self._senses[fields[0]] = fields[-int(fields[2]) :]
            for fields in _rows(Path(folder) / "data.noun"):
                pointers = fields[5 + 2 * int(fields[3], 16) :]  # behind the words, by fours: mark, target, ...
                marked = zip(pointers[::4], pointers[1::4], strict=False)
                self._names[fields[0]] = fields[4].lower()
                self._above[fields[0]] = [target for mark, target in marked if mark in ("@", "@i")]
            for fields in _rows(Path(folder) / "noun.exc"):
                self._exceptions[fields[0]] += fields[1:]
        except (OSError, UnicodeDecodeError, ValueError, IndexError) as error:
            raise DataError(
                f"{folder}: holds not WordNet's {', '.join(FILES)} ({error}); on Debian: apt install wordnet-base, "
                "and name /usr/share/wordnet"
            ) from None
        self.similarity = cache(self._similarity)
        self._ways = cache(self._find_ways)

    def senses(self, word: str) -> list[str]:
        """The senses of a noun, which may be in the plural."""
        forms = self._forms(word.lower().replace(" ", "_"))
        return list(dict.fromkeys(sense for form in forms for sense in self._senses[form]))

    def _forms(self, word: str) -> list[str]:
        def known(words: Iterable[str]) -> list[str]:
            return [one for one in dict.fromkeys(words) if one in self._senses]

        if word in self._exceptions:
            return known([word, *self._exceptions[word]])
        forms = _singulars([word])
        found = known([word, *forms])
        while not found and forms:
            forms = _singulars(forms)
            found = known(forms)
        return found

    def _similarity(self, first: str, second: str) -> float:
        """Of two senses, 0 to 1: twice the depth of what both are, over the ways from the top to each through it."""
        above = self._ways(first), self._ways(second)
        common = above[0].keys() & above[1].keys()
        if not common:
            return 0.0
        if first in common:
            shared = first
        else:
            lowest = max(self._depth(sense, min) for sense in common)
            shared = min((sense for sense in common if self._depth(sense, min) == lowest), key=self._name)
        depth = self._depth(shared, max) + 1
        return 2 * depth / (self._steps(first, shared) + self._steps(second, shared) + 2 * depth)

    def _steps(self, first: str, second: str) -> int:
        """From one sense up and down to another, by the shortest way."""
        ways = self._ways(second)
        return min(steps + ways[sense] for sense, steps in self._ways(first).items() if sense in ways)

    def _find_ways(self, sense: str) -> dict[str, int]:
        """All that a sense is, with the fewest steps there."""
        found, now, steps = {sense: 0}, [sense], 0
        while now:
            steps += 1
            now = [above for one in now for above in self._above[one] if above not in found]
            found.update(dict.fromkeys(now, steps))
        return found

    def _depth(self, sense: str, choose: Callable[[Iterable[int]], int]) -> int:
        """Steps to the top, by the shortest way (choose: min) or the longest (max)."""
        above = self._above[sense]
        return 1 + choose(self._depth(one, choose) for one in above) if above else 0

    def _name(self, sense: str) -> str:
        word = self._names[sense]
        return f"{word}.n.{self._senses[word].index(sense) + 1:02}"


def wups(
    candidates: Sequence[str], references: Sequence[Sequence[str]], wordnet: WordNet, threshold: float = 0.9
) -> Score:
    """The mean of how well answers cover the right ones and are covered by them; 1 where all are the same.

    An answer is a list, "chair, table". Similarities below the threshold count a tenth. Of several references the best
    one counts.
    """
    check(candidates, references)
    near = cache(lambda first, second: _near(first, second, wordnet, threshold))

    def one(candidate: str, truth: str) -> float:
        said, true = _items(candidate), _items(truth)
        if not said or not true:
            return float(said == true)
        covered = prod(max(near(a, t) for t in true) for a in said)
        return min(covered, prod(max(near(a, t) for a in said) for t in true))

    return mean([max(one(said, truth) for truth in group) for said, group in zip(candidates, references, strict=True)])


def _near(first: str, second: str, wordnet: WordNet, threshold: float) -> float:
    if first == second:
        return 1.0
    most = max((wordnet.similarity(a, b) for a in wordnet.senses(first) for b in wordnet.senses(second)), default=0.0)
    return most if most >= threshold else FAR * most


def _items(answer: str) -> list[str]:
    return list(dict.fromkeys(item for part in answer.lower().split(",") if (item := part.strip())))


def _singulars(words: Iterable[str]) -> list[str]:
    return [f"{word.removesuffix(old)}{new}" for word in words for old, new in _ENDINGS if word.endswith(old)]


def _rows(path: Path) -> Iterable[list[str]]:
    """The fields of each line of a file, without the licence before them and the glosses behind."""
    with path.open(encoding="utf-8") as file:
        yield from (line.partition("|")[0].split() for line in file if not line.startswith("  "))
