"""Text <-> token ids: a byte-level BPE, trained on the data or read from a pretrained model's directory."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPETokenizer

from mmgpt.errors import CheckpointError, DataError

# The chat template's own tokens. They are added to any tokenizer and can never come out of a user's text.
ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
END = "<|end|>"
SLOT = "<|slot|>"  # stands where a media token is spliced in; its embedding is never read
SPECIAL_TOKENS = (*ROLE_TOKENS.values(), END, SLOT)


class Tokenizer:
    """Text to token ids and back; `len()` is the size of the vocabulary, `end`, `slot` and `role()` its special ids."""

    def __init__(self, bpe: BPETokenizer):
        bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
        bpe.encode_special_tokens = True  # "<|end|>" in a user's text is spelled out, not obeyed
        bpe.no_padding()
        bpe.no_truncation()
        self._bpe = bpe
        self._special: dict[str, int] = {token: bpe.token_to_id(token) or 0 for token in SPECIAL_TOKENS}
        self.end = self._special[END]
        self.slot = self._special[SLOT]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Byte-level BPE (Sennrich et al. 2016; GPT-2's byte alphabet): any text can be encoded, none is unknown."""
        bpe = BPETokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
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
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Read tokenizer.json: ours, or that of a pretrained model (to which the special tokens are added)."""
        path = Path(directory) / "tokenizer.json"
        try:
            return cls(BPETokenizer.from_str(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise CheckpointError(
                f"{path}: no tokenizer here; name a directory with tokenizer.json, or make one with "
                "`mmgpt tokenizer train`"
            ) from None
        except Exception as error:  # the library raises bare Exception on malformed files
            raise CheckpointError(f"{path}: not a tokenizer: {error}") from None

    def to_json(self) -> str:
        return self._bpe.to_str(pretty=False)

    def __len__(self) -> int:
        return self._bpe.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        return self._bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special tokens are left out."""
        return self._bpe.decode(list(ids), skip_special_tokens=True)

    def role(self, role: str) -> int:
        """The token that opens a message of this role."""
        return self._special[ROLE_TOKENS[role]]
