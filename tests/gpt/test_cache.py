import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmgpt.config import GPTConfig
from mmgpt.errors import ConfigError
from mmgpt.gpt import GPT, Documents

VOCABULARY = 61
CONTEXT = 48

CONFIGS = st.builds(
    GPTConfig,
    vocab_size=st.just(VOCABULARY),
    width=st.just(32),
    layers=st.just(2),
    heads=st.just(4),
    context=st.just(CONTEXT),
    kv_heads=st.sampled_from([1, 2, None]),
    head_width=st.sampled_from([None, 6]),
    position=st.sampled_from(["rotary", "learned", "sinusoidal"]),
    norm=st.sampled_from(["layer", "rms"]),
    activation=st.sampled_from(["swiglu", "gelu", "gelu_tanh"]),
    bias=st.booleans(),
    attention_bias=st.booleans(),
)
# New tokens of each of three rows, call after call; a row may get none.
CHUNKS = st.lists(st.tuples(*[st.integers(0, 8)] * 3), min_size=1, max_size=6)


def model(config: GPTConfig, dtype: torch.dtype = torch.float64) -> GPT:
    torch.manual_seed(0)
    gpt = GPT(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return gpt


def small(**fields) -> GPT:
    return model(GPTConfig(vocab_size=VOCABULARY, width=32, layers=2, heads=4, kv_heads=2, context=CONTEXT, **fields))


def random_ids(rows: int, tokens: int) -> Tensor:
    return torch.randint(VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def feed(gpt: GPT, cache, chunks: list[Tensor]) -> list[Tensor]:
    """The logits of each row's new tokens."""
    lengths = [len(chunk) for chunk in chunks]
    return list(gpt.head(gpt.transform(gpt.embed(torch.cat(chunks)), Documents(lengths), cache)).split(lengths))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(CONFIGS, CHUNKS)
def test_any_chunks_through_the_cache_give_the_logits_of_a_full_forward_pass(config: GPTConfig, chunks):
    gpt = model(config)
    ids = random_ids(3, CONTEXT)
    full = gpt(ids)
    cache = gpt.cache(rows=3, capacity=CONTEXT)
    for sizes in chunks:
        if not any(sizes):
            continue
        starts = cache.lengths
        spans = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        out = feed(gpt, cache, [row[span] for row, span in zip(ids, spans, strict=True)])
        assert cache.lengths == [span.stop for span in spans]
        for row, span in enumerate(spans):
            torch.testing.assert_close(out[row], full[row, span], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("position", ["rotary", "learned", "sinusoidal"])
def test_decoding_token_by_token_after_a_ragged_prompt_in_float32(position: str):
    gpt = small(position=position).float()
    ids = random_ids(3, 30)
    full = gpt(ids)
    cache = gpt.cache(rows=3, capacity=30)
    feed(gpt, cache, [ids[0, :3], ids[1, :20], ids[2, :11]])
    for _ in range(10):
        at = cache.lengths
        out = feed(gpt, cache, [row[i : i + 1] for row, i in zip(ids, at, strict=True)])
        expected = torch.stack([full[row, i] for row, i in enumerate(at)])
        torch.testing.assert_close(torch.cat(out), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [[2, 0], [1, 1, 0], [0, 1, 2], [2, 2, 2, 1]])
def test_selected_rows_go_on_as_if_they_had_always_been_there(rows: list[int]):
    gpt = small()
    ids = random_ids(3, 30)
    full = gpt(ids)
    lengths = [4, 9, 15]
    cache = gpt.cache(rows=3, capacity=30)
    feed(gpt, cache, [row[:length] for row, length in zip(ids, lengths, strict=True)])
    cache.select(rows)
    assert cache.lengths == [lengths[row] for row in rows]
    for step in range(3):
        out = feed(gpt, cache, [ids[row, lengths[row] + step][None] for row in rows])
        expected = torch.stack([full[row, lengths[row] + step] for row in rows])
        torch.testing.assert_close(torch.cat(out), expected, rtol=1e-9, atol=1e-9)


def test_beams_of_one_row_go_different_ways():
    gpt = small()
    ids = random_ids(2, 12)
    ids[1, :8] = ids[0, :8]
    full = gpt(ids)
    cache = gpt.cache(rows=1, capacity=12)
    feed(gpt, cache, [ids[0, :8]])
    cache.select([0, 0])
    for step in range(8, 12):
        out = feed(gpt, cache, [ids[0, step][None], ids[1, step][None]])
        torch.testing.assert_close(torch.cat(out), full[:, step], rtol=1e-9, atol=1e-9)


def test_a_token_beyond_the_capacity_is_refused_and_nothing_is_counted():
    gpt = small()
    cache = gpt.cache(rows=2, capacity=10)
    ids = random_ids(2, 20)
    feed(gpt, cache, [ids[0, :10], ids[1, :4]])
    with pytest.raises(ConfigError, match="11 tokens does not fit the cache's capacity of 10"):
        feed(gpt, cache, [ids[0, 10:11], ids[1, 4:5]])
    assert cache.lengths == [10, 4]


def test_old_and_new_tokens_together_may_not_exceed_the_context():
    gpt = small()
    cache = gpt.cache(rows=1, capacity=100)
    ids = random_ids(1, CONTEXT + 1)
    feed(gpt, cache, [ids[0, :CONTEXT]])
    with pytest.raises(ConfigError, match="49 tokens is longer than the context of 48"):
        feed(gpt, cache, [ids[0, CONTEXT:]])


def test_as_many_documents_as_rows_are_needed():
    gpt = small()
    with pytest.raises(ConfigError, match="1 documents do not fit a cache of 2 rows"):
        feed(gpt, gpt.cache(rows=2, capacity=10), [random_ids(1, 3)[0]])
