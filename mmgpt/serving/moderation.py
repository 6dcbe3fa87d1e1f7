"""A look at texts before the model sees them and before its clients do; here, at whether they hold what is on a list.

A moderator is any function that tells whether a text must not pass: a list, a classifier, a call to a service. It is
asked about what clients send and, as it grows by whole words, about what the model answers.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from mmgpt.errors import ConfigError

Moderator: TypeAlias = Callable[[str], bool]
# Characters that stand for letters; signs may, and may as well be what they are.
DIGITS, SIGNS = dict(zip("013457", "oieast", strict=True)), dict(zip("@$!|", "asil", strict=True))


class BlockList:
    """Whether a text holds one of some phrases, as whole words: however they are cased, accented, spelled with
    look-alike characters or torn apart into single letters.

    Args:
        phrases: What must not pass.
    """

    def __init__(self, phrases: Iterable[str]):
        self._phrases = {plain for phrase in phrases for plain in normalised(phrase) if plain.strip()}

    @classmethod
    def read(cls, path: str | Path) -> "BlockList":
        """One phrase to a line; lines that begin with # say nothing. Raises ConfigError."""
        try:
            lines = Path(path).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read as a list of phrases: {error}") from None
        found = cls(line for line in lines if not line.startswith("#"))
        if not found._phrases:
            raise ConfigError(f"{path}: no phrase is in this file; write one to a line")
        return found

    def __call__(self, text: str) -> bool:
        return any(phrase in plain for plain in normalised(text) for phrase in self._phrases)


def whole_words(text: str) -> int:
    """How many characters of a text under way are words that nothing which follows makes other words.

    The last word may grow, and so may single letters in a row, which are one; a character may be there in part.
    """
    end = len(text.rstrip("\ufffd"))
    while end:
        start = end
        while start and not _separates(text[start - 1]):
            start -= 1
        if end < len(text) and _separates(text[end]) and re.search(r"[^\W_]{2}", text[start:end]):
            return end
        end = start and start - 1
    return 0


def _separates(character: str) -> bool:
    """Whether it ends a word, whatever it is taken for."""
    plain = unicodedata.normalize("NFKC", character)
    if plain == "\ufffd" or unicodedata.category(character) in ("Mn", "Cf"):
        return False
    return re.fullmatch(r"[\W_]+", plain) is not None and SIGNS.keys().isdisjoint(plain)


def normalised(text: str) -> list[str]:
    """The words of a text in small letters without accents, with single spaces between and around them.

    Compatible forms become one (NFKC), invisible characters go, look-alikes become letters, and single letters in a row
    become a word. Twice: with signs as spaces, and as the letters that they look like.
    """
    spelled = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    letters = "".join(c for c in spelled if unicodedata.category(c) not in ("Mn", "Cf"))  # accents; invisible ones
    found = []
    for table in (DIGITS, DIGITS | SIGNS):
        words = re.sub(r"[\W_]+", " ", letters.translate(str.maketrans(table)))
        joined = re.sub(r"(?<!\S)\w(?: \w)+(?!\S)", lambda match: match[0].replace(" ", ""), words)
        found.append(f" {joined.strip()} ")
    return found
