import pytest
import torch
from drawn import CONTEXT, VOCABULARY, configs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmgpt.config import GPTConfig
from mmgpt.errors import ConfigError
from mmgpt.gpt import GPT

CONFIGS = configs(qk_norm=st.booleans(), window_layers=st.sampled_from([None, (1,)]))
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
    return list(gpt.head(gpt.transform(gpt.embed(torch.cat(chunks)), cache.extend(lengths))).split(lengths))


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
        starts = list(cache.lengths)
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
        at = list(cache.lengths)
        out = feed(gpt, cache, [row[i : i + 1] for row, i in zip(ids, at, strict=True)])
        expected = torch.stack([full[row, i] for row, i in enumerate(at)])
        torch.testing.assert_close(torch.cat(out), expected, rtol=1e-5, atol=1e-5)


def prefilled(gpt: GPT, ids: Tensor, lengths: list[int], rows: int | None = None):
    cache = gpt.cache(rows=rows or len(lengths), capacity=CONTEXT)
    feed(gpt, cache, [row[:length] for row, length in zip(ids, lengths, strict=True)])
    return cache


def goes_on(gpt: GPT, cache, rows: dict[int, Tensor], steps: int = 3) -> None:
    """Each row of the cache continues its document exactly as a full forward pass of it does."""
    for _ in range(steps):
        at = {row: cache.lengths[row] for row in rows}
        layout = cache.extend([1] * len(rows), sorted(rows))
        new = torch.stack([rows[row][at[row]] for row in sorted(rows)])
        out = gpt.head(gpt.transform(gpt.embed(new), layout))
        for place, row in enumerate(sorted(rows)):
            torch.testing.assert_close(out[place], gpt(rows[row][None])[0, at[row]], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_places_that_are_asked_for_alone_leave_the_cache_as_all_of_them_do():
    gpt, ids = small(), random_ids(2, 30)
    caches, out = [gpt.cache(rows=2, capacity=CONTEXT) for _ in range(2)], []
    for cache, places in zip(caches, (None, torch.tensor([11, 3])), strict=True):
        x = gpt.embed(torch.cat([ids[0, :4], ids[1, :8]]))
        hidden = gpt.transform(x, cache.extend([4, 8]), None, places)
        out.append(hidden if places is not None else hidden[[11, 3]])
        goes_on(gpt, cache, {0: ids[0], 1: ids[1]})
    torch.testing.assert_close(out[0], out[1], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_some_rows_go_on_while_others_wait():
    gpt = small()
    ids = random_ids(4, 30)
    cache = prefilled(gpt, ids, [4, 9, 15, 2])
    goes_on(gpt, cache, {1: ids[1], 2: ids[2]})
    goes_on(gpt, cache, {0: ids[0], 2: ids[2], 3: ids[3]})
    assert cache.lengths == [7, 12, 21, 5]


@torch.no_grad()
def test_a_copied_row_goes_on_as_the_row_it_was_copied_from():
    gpt = small()
    ids = random_ids(3, 30)
    cache = prefilled(gpt, ids, [4, 9, 15])
    cache.copy(2, 0)
    goes_on(gpt, cache, {0: ids[2], 1: ids[1], 2: ids[2]})


@torch.no_grad()
def test_rows_exchanged_at_once_keep_the_prompt_they_share():
    gpt = small()
    ids = random_ids(3, 30)
    ids[:, :8] = ids[0, :8]
    cache = prefilled(gpt, ids, [12, 12, 12])
    cache.permute({0: 1, 1: 0, 2: 0}, start=8)
    goes_on(gpt, cache, {0: ids[1], 1: ids[0], 2: ids[0]})


@torch.no_grad()
def test_forgotten_tokens_are_written_anew():
    gpt = small()
    ids = random_ids(2, 30)
    cache = prefilled(gpt, ids, [20, 10])
    cache.truncate(0, 6)
    cache.clear(1)
    assert cache.lengths == [6, 0]
    goes_on(gpt, cache, {0: ids[0], 1: ids[0]})


@torch.no_grad()
def test_what_was_read_can_be_written_into_another_row():
    gpt = small()
    ids = random_ids(2, 30)
    cache = prefilled(gpt, ids, [20, 10])
    first, second = cache.read(0, 0, 8), cache.read(0, 8, 16)
    cache.clear(1)
    cache.write(1, first)
    cache.write(1, second)
    goes_on(gpt, cache, {0: ids[0], 1: ids[0]})


@torch.no_grad()
def test_a_cache_of_another_size_holds_the_same():
    gpt = small()
    ids = random_ids(3, 40)
    cache = prefilled(gpt, ids, [9, 4, 7]).grown(rows=5, capacity=CONTEXT, media=0)
    assert cache.lengths == [9, 4, 7, 0, 0]
    goes_on(gpt, cache, {0: ids[0], 2: ids[2], 4: ids[1]})
    cache.clear(2), cache.clear(4)
    goes_on(gpt, cache.grown(rows=2, capacity=20, media=0), {0: ids[0], 1: ids[1]})


def test_rows_of_very_different_length_are_not_read_together_on_a_cpu():
    gpt = small()
    cache = gpt.cache(rows=3, capacity=CONTEXT)
    cache.lengths = [40, 39, 1]
    bytes_of_a_token = 2 * 2 * 8 * 8  # keys and values of two heads of eight doubles
    most = 20 * bytes_of_a_token

    def runs() -> list[slice]:
        return [run.rows for run in cache.extend([1, 1, 1]).buckets]

    assert runs() == [slice(0, 3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmgpt.gpt.cache.MOST_PADDING_BYTES", most)
        assert runs() == [slice(0, 2), slice(2, 3)]


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
    with pytest.raises(ConfigError, match="1 documents do not fit 2 rows of the cache"):
        feed(gpt, gpt.cache(rows=2, capacity=10), [random_ids(1, 3)[0]])
