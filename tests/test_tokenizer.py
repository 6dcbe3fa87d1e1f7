"""Texts of tokens that come one after the other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as BPETokenizer
from tokenizers import decoders, models

from mmgpt.tokenizer import GrowingText, Tokenizer

ODD = "aé ß€ 𝄞 👩‍👩‍👧 क्षि �  .\n"


def of_bytes() -> Tokenizer:
    return Tokenizer.train([ODD] * 4, 290)


def of_pieces() -> Tokenizer:
    """As Llama's: spaces are ▁, the first of them goes, and bytes stand for characters that have no piece."""
    pieces = ["<unk>", "▁", "a", "▁a", "▁▁", "é", *(f"<0x{byte:02X}>" for byte in range(256))]
    bpe = BPETokenizer(models.BPE(dict(zip(pieces, range(len(pieces)), strict=True)), [], byte_fallback=True))
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(bpe)


def of_words() -> Tokenizer:
    """As BERT's: a space before each word, and none before what follows within it."""
    words = {word: number for number, word in enumerate(["[UNK]", "a", "##b", ".", "'", "s"])}
    bpe = BPETokenizer(models.WordPiece(words, unk_token="[UNK]"))
    bpe.decoder = decoders.WordPiece()
    return Tokenizer(bpe)


TOKENIZERS = {"bytes": of_bytes(), "pieces": of_pieces(), "words": of_words()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_the_text_of_tokens_as_they_come_is_that_of_all_of_them(kind, data):
    tokenizer = TOKENIZERS[kind]
    written = tokenizer.encode(data.draw(st.text(ODD, max_size=12)))
    ids = [*written, *data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=25))]
    text, seen = GrowingText(tokenizer), 0
    while seen < len(ids):
        seen += data.draw(st.integers(1, 3))
        assert text.of(ids[:seen]) == tokenizer.decode(ids[:seen])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_has_come_to_rest_is_not_decoded_again(kind, monkeypatch):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("a " * 100)
    text, decoded = GrowingText(tokenizer), []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda some: (decoded.append(len(some)), decode(some))[1])
    for end in range(1, len(ids) + 1):
        text.of(ids[:end])
    assert max(decoded) <= 3
