"""Text <-> token ids: a byte-level BPE, trained on the data or read from a pretrained model's directory."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPETokenizer

from mmgpt.errors import CheckpointError, DataError

# The chat template's own tokens. They are added to any tokenizer and can never come out of a user's text.
ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
END = "<|end|>"
SLOT = "<|slot|>"  # stands where a media token is spliced in; its embedding is never read
FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
)  # of a pretrained model: the first, or the others
SPECIAL_TOKENS = (*ROLE_TOKENS.values(), END, SLOT)


@dataclass(frozen=True)
class Plain:
    """Prompts of a foreign model that was trained without our chat template, to do one `task` alone.

    They are media and the token id `start`; what the model says follows, up to the token id `end`.
    """

    task: str
    start: int
    end: int


class Tokenizer:
    """Text to token ids and back; `len()` is the size of the vocabulary, `end`, `slot` and `opening()` its special ids.

    Args:
        bpe: The tokenizer of the library; the chat template's tokens are added to it.
        plain: How prompts look without the chat template; no tokens are then added. Raises CheckpointError for tokens
            that there are not.
    """

    def __init__(self, bpe: BPETokenizer, plain: Plain | None = None):
        self.plain = plain
        special = SPECIAL_TOKENS if plain is None else tuple(_token(bpe, id) for id in (plain.start, plain.end))
        bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        bpe.encode_special_tokens = True  # "<|end|>" in a user's text is spelled out, not obeyed
        bpe.no_padding()
        bpe.no_truncation()
        self._bpe = bpe
        if plain is None:
            ids = {token: bpe.token_to_id(token) or 0 for token in special}
            self._openings = {role: [ids[token]] for role, token in ROLE_TOKENS.items()}
            self.end, self.slot = ids[END], ids[SLOT]
        else:
            self._openings = {"assistant": [plain.start]}
            self.end = self.slot = plain.end  # any token can be the slot's, whose embedding is never read

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Byte-level BPE (Sennrich et al. 2016; GPT-2's byte alphabet): any text can be encoded, none is unknown."""
        bpe = _byte_level(models.BPE())
        smallest = 256 + len(SPECIAL_TOKENS)
        if vocab_size < smallest:
            raise DataError(f"vocabulary of {vocab_size}: at least {smallest} are needed for the bytes; ask for more")
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe)

    @classmethod
    def load(cls, directory: str | Path, plain: Plain | None = None) -> "Tokenizer":
        """Read tokenizer.json, ours or that of a pretrained model, or else the vocab.json and merges.txt of a GPT-2."""
        path, vocabulary, merges = (Path(directory) / name for name in FILES)
        try:
            if not path.is_file() and vocabulary.is_file() and merges.is_file():
                path = vocabulary
                return cls(_byte_level(models.BPE.from_file(str(vocabulary), str(merges))), plain)
            return cls(BPETokenizer.from_str(path.read_text(encoding="utf-8")), plain)
        except FileNotFoundError:
            raise CheckpointError(
                f"{path}: no tokenizer here; name a directory with tokenizer.json, or make one with "
                "`mmgpt tokenizer train`"
            ) from None
        except Exception as error:  # the library raises bare Exception on malformed files
            raise CheckpointError(f"{path}: not a tokenizer: {error}") from None

    def to_json(self) -> str:
        return self._bpe.to_str(pretty=False)

    def digest(self) -> str:
        """A hash of all that it is."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __len__(self) -> int:
        return self._bpe.get_vocab_size(with_added_tokens=True)

    @cached_property
    def longest(self) -> int:
        """Most characters that one token stands for."""
        return max(map(len, self._bpe.get_vocab(with_added_tokens=True)))

    def encode(self, text: str) -> list[int]:
        return self._bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special tokens are left out."""
        return self._bpe.decode(list(ids), skip_special_tokens=True)

    def spelled(self, ids: Sequence[int]) -> str:
        """The ids for a person to read, special tokens by their names; a piece of a character by that of its token."""
        text = self._bpe.decode(list(ids), skip_special_tokens=False)
        name = self._bpe.id_to_token(ids[0]) if len(ids) == 1 and "\ufffd" in text else None
        return name or text

    def opening(self, role: str) -> list[int]:
        """The tokens that open a message of this role."""
        return self._openings.get(role, [])


class GrowingText:
    """The text of token ids that become more, always what `decode` makes of them all; little of it is decoded twice.

    New ids are decoded together with the last piece that has come to rest, since to some decoders the first token is a
    special case. Text has come to rest where it does not end in the replacement mark: there no character is cut.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._forget()

    def _forget(self) -> None:
        self._rest = ""  # the text of the first `_end` ids
        self._piece, self._start, self._end = "", 0, 0  # the last piece of it, of ids alone from `_start` on

    def of(self, ids: Sequence[int]) -> str:
        """The text of the ids, which begin with those of the last call."""
        new = self._tokenizer.decode(ids[self._start :])
        if not new.startswith(self._piece):  # bytes that were characters are none with what follows (byte fallback)
            self._forget()
            new = self._tokenizer.decode(ids)
        text = self._rest + new[len(self._piece) :]
        if len(text) > len(self._rest) and not text.endswith("\ufffd"):
            if piece := self._tokenizer.decode(ids[self._end :]):  # none is left of a first space, and tells nothing
                self._piece, self._start = piece, self._end
            else:
                self._piece = new
            self._rest, self._end = text, len(ids)
        return text


def _token(bpe: BPETokenizer, id: int) -> str:
    if (token := bpe.id_to_token(id)) is None:
        raise CheckpointError(f"there is no token of id {id}")
    return token


def _byte_level(model: models.BPE) -> BPETokenizer:
    bpe = BPETokenizer(model)
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return bpe
