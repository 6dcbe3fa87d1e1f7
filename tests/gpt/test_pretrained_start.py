"""A GPT that begins with pretrained weights: other vocabularies, and attention to media beside its own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from references import CLOSE, llama, random_ids, reference
from transformers import LlamaConfig

from mmgpt.config import GPTConfig
from mmgpt.errors import ConfigError
from mmgpt.gpt import GPT


@pytest.mark.parametrize("config", [None, llama(tie_word_embeddings=False)], ids=["gpt2", "llama"])
def test_it_says_what_the_pretrained_one_says_whatever_is_added(config: LlamaConfig | None, tmp_path: Path):
    theirs = reference(config)
    theirs.save_pretrained(tmp_path)
    ids = random_ids(50, 20)[None]
    with torch.no_grad():
        expected = theirs(ids).logits
        for vocabulary in (50, 57):
            for cross in (None, "inside", "gated"):
                ours = GPT.build(GPTConfig(vocabulary, cross=cross, weights=str(tmp_path))).eval()
                assert ours.config == replace(
                    GPT.from_pretrained(tmp_path).config, vocab_size=vocabulary, cross=cross, dropout=0.0
                )
                logits = ours(ids)
                assert logits.shape == (1, 20, vocabulary)
                torch.testing.assert_close(logits[..., :50], expected, **CLOSE)
        fewer = GPT.build(GPTConfig(41, weights=str(tmp_path))).eval()
        assert len(fewer.embedding.weight) == 41
        few = random_ids(41, 20)[None]
        torch.testing.assert_close(fewer(few), theirs(few).logits[..., :41], **CLOSE)


def test_new_tokens_start_near_the_mean_and_differ(tmp_path: Path):
    theirs = reference(llama(tie_word_embeddings=False))
    theirs.save_pretrained(tmp_path)
    ours = GPT.build(GPTConfig(60, weights=str(tmp_path)))
    assert ours.lm_head is not None
    for matrix, given in (
        (ours.embedding.weight, theirs.get_input_embeddings().weight),
        (ours.lm_head.weight, theirs.get_output_embeddings().weight),
    ):
        away = matrix[50:] - given.mean(0)
        assert 0.01 < float(away.detach().std()) < 0.03
        assert len(matrix[50:].unique(dim=0)) == 10


def test_without_a_size_the_vocabulary_and_the_dropout_are_told(tmp_path: Path):
    reference().save_pretrained(tmp_path)
    assert GPT.build(GPTConfig(weights=str(tmp_path), dropout=0.25)).config.dropout == 0.25
    assert GPT.build(GPTConfig(weights=str(tmp_path))).config.vocab_size == 50


@pytest.mark.parametrize(("name", "value"), [("width", 48), ("layers", 3), ("norm", "layer"), ("context", 64)])
def test_a_setting_that_is_not_that_of_the_weights_is_an_error(name, value, tmp_path: Path):
    reference(llama(tie_word_embeddings=False)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"gpt\.{name}: {value!r}, but {tmp_path} has .*; leave it out"):
        GPT.build(GPTConfig(weights=str(tmp_path), **{name: value}))
    GPT.build(GPTConfig(weights=str(tmp_path), width=24, layers=2))  # which it has
