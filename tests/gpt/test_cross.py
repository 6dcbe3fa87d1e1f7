import math

import pytest
import torch
from drawn import CONTEXT, VOCABULARY, WIDTH, configs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmgpt.config import GPTConfig
from mmgpt.errors import ConfigError
from mmgpt.gpt import GPT, Cache, Documents, Media

FEATURES = 9  # of all media of a batch together
CLOSE = {"rtol": 1e-9, "atol": 1e-9}

CONFIGS = configs(cross=st.sampled_from(["inside", "gated"]), cross_layers=st.sampled_from([None, (0,), (1,)]))
# What a document sees: (feature, since) each, a feature possibly twice.
SEEN = st.lists(st.tuples(st.integers(0, FEATURES - 1), st.integers(0, 20)), max_size=5)
DOCUMENTS = st.lists(st.tuples(st.integers(1, 20), SEEN), min_size=1, max_size=5)

Seen = list[tuple[int, int]]


def model(config: GPTConfig) -> GPT:
    """Weights large enough that every part of the network matters; open gates."""
    torch.manual_seed(0)
    gpt = GPT(config).double().eval()
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1.0 if name.endswith("gate") else 0.1)
    return gpt


def small(cross="inside", **fields) -> GPT:
    return model(
        GPTConfig(
            vocab_size=VOCABULARY, width=WIDTH, layers=2, heads=4, kv_heads=2, context=CONTEXT, cross=cross, **fields
        )
    )


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_ids(tokens: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(seed))


def media(features: Tensor, documents: list[Seen]) -> Media:
    flat = [pair for seen in documents for pair in seen]
    index, since = torch.tensor(flat, dtype=torch.long).view(-1, 2).unbind(1)
    return Media(features, index, [len(seen) for seen in documents], since)


def full(gpt: GPT, documents: list[Tensor], features: Tensor, seen: list[Seen]) -> Tensor:
    """Logits (tokens, vocabulary) of all documents in one pass without a cache."""
    x = gpt.embed(torch.cat(documents))
    return gpt.head(gpt.transform(x, Documents([len(ids) for ids in documents]), media(features, seen)))


@settings(derandomize=True, deadline=None, max_examples=25)
@given(CONFIGS, DOCUMENTS, st.data())
def test_places_that_are_asked_for_alone_are_those_of_all(config: GPTConfig, documents, data):
    gpt, features = model(config), numbers(FEATURES, WIDTH)
    lengths, seen = [length for length, _ in documents], [pairs for _, pairs in documents]
    x, looked = gpt.embed(some_ids(sum(lengths))), media(features, seen)
    places = torch.tensor(data.draw(st.lists(st.integers(0, sum(lengths) - 1), max_size=9)), dtype=torch.long)
    every = gpt.transform(x, Documents(lengths), looked)
    torch.testing.assert_close(gpt.transform(x, Documents(lengths), looked, places), every[places], **CLOSE)


def plain_cross(cross, x: Tensor, features: Tensor, seen: Seen) -> Tensor:
    """Cross-attention of one document's tokens by its definition: token by token, head by head."""
    q = cross.q(x)
    k, v = cross.kv(features).chunk(2, dim=-1)
    group, size = cross.heads // cross.kv_heads, cross.head_width
    rows = []
    for place in range(len(x)):
        visible = [feature for feature, since in seen if since <= place]
        if not visible:
            rows.append(torch.zeros_like(x[0]))
            continue
        heads = []
        for head in range(cross.heads):
            own, shared = slice(head * size, (head + 1) * size), head // group
            theirs = slice(shared * size, (shared + 1) * size)
            weights = (k[visible, theirs] @ q[place, own] / math.sqrt(size)).softmax(0)
            heads.append(weights @ v[visible, theirs])
        rows.append(cross.out(torch.cat(heads)))
    return torch.stack(rows)


def plain(gpt: GPT, ids: Tensor, features: Tensor, seen: Seen) -> Tensor:
    """Logits of one document by the definition of both modes, through the blocks' own self-attention and MLPs."""
    documents = Documents([len(ids)])
    inputs = {}
    text = gpt.transformer
    # What precedes the blocks is the plain GPT's, and so is rotary attention: both are tested elsewhere.
    handle = text.blocks[0].register_forward_pre_hook(lambda _, given: inputs.update(x=given[0], rotary=given[2]))
    gpt.transform(gpt.embed(ids), documents)
    handle.remove()
    x, rotary = inputs["x"], inputs["rotary"]
    looks = torch.tensor([[any(since <= place for _, since in seen)] for place in range(len(ids))])
    for block in text.blocks:
        if gated := block.gated:
            x = x + gated.gate.tanh() * plain_cross(gated.attention, gated.norm(x), features, seen)
            x = torch.where(looks, x + gated.mlp_gate.tanh() * gated.mlp(gated.mlp_norm(x)), x)
        x = x + block.attention(block.attention_norm(x), documents, rotary)
        if block.cross:
            x = x + plain_cross(block.cross, block.cross_norm(x), features, seen)
        x = x + block.mlp(block.mlp_norm(x))
    return gpt.head(text.norm(x))


@settings(derandomize=True, deadline=None, max_examples=15)
@given(CONFIGS, DOCUMENTS)
def test_ragged_documents_have_the_values_and_gradients_of_the_definition_for_each_alone(config: GPTConfig, drawn):
    gpt = model(config)
    documents = [some_ids(length, seed) for seed, (length, _) in enumerate(drawn)]
    seen = [pairs for _, pairs in drawn]
    features = numbers(FEATURES, WIDTH).requires_grad_()
    weights = numbers(sum(map(len, documents)), VOCABULARY, seed=2)
    leaves = [features, *gpt.parameters()]

    def gradients(logits: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((logits * weights).sum(), leaves, allow_unused=True, materialize_grads=True))

    together = full(gpt, documents, features, seen)
    alone = torch.cat([plain(gpt, *each) for each in zip(documents, [features] * len(seen), seen, strict=True)])
    torch.testing.assert_close(together, alone, **CLOSE)
    for packed, expected in zip(gradients(together), gradients(alone), strict=True):
        torch.testing.assert_close(packed, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("cross", ["inside", "gated"])
def test_a_token_sees_only_media_from_before_it_on(cross):
    gpt = small(cross)
    ids, features = some_ids(12), numbers(FEATURES, WIDTH)
    seen = [(3, 0), (1, 7), (5, 4)]
    before = full(gpt, [ids], features, [seen])
    for feature, since in seen:
        changed = features.clone()
        changed[feature] += 1
        difference = (full(gpt, [ids], changed, [seen]) - before).abs().amax(-1)
        assert torch.equal(difference[:since], torch.zeros(since, dtype=torch.float64))
        assert difference[since:].min() > 1e-6


@pytest.mark.parametrize("cross", ["inside", "gated"])
def test_tokens_that_see_nothing_are_those_of_the_gpt_without_cross_attention_bit_for_bit(cross):
    gpt, blind = small(cross, out_bias=True, mlp_bias=True), small(None, out_bias=True, mlp_bias=True)
    blind.load_state_dict(gpt.state_dict(), strict=False)
    documents = [some_ids(length, length) for length in (9, 9, 14, 3)]
    seen: list[Seen] = [[(0, 0), (1, 0)], [], [(2, 6)], []]
    expected = blind.head(blind.transform(blind.embed(torch.cat(documents)), Documents([9, 9, 14, 3])))
    same = (full(gpt, documents, numbers(FEATURES, WIDTH), seen) == expected).all(-1)
    assert same.tolist() == [False] * 9 + [True] * 9 + [True] * 6 + [False] * 8 + [True] * 3
    nobody = full(gpt, documents, numbers(FEATURES, WIDTH), [[], [], [], []])
    assert torch.equal(nobody, expected)


def test_closed_gates_leave_the_gpt_as_it_was_bit_for_bit():
    gpt, blind = GPT(small("gated").config).double(), small(None)
    assert not gpt.load_state_dict(blind.state_dict(), strict=False).unexpected_keys
    documents = [some_ids(7), some_ids(5)]
    seen: list[Seen] = [[(0, 0), (1, 2)], [(2, 0)]]
    expected = blind.head(blind.transform(blind.embed(torch.cat(documents)), Documents([7, 5])))
    logits = full(gpt, documents, numbers(FEATURES, WIDTH), seen)
    assert torch.equal(logits, expected)
    logits.square().sum().backward()
    for name, parameter in gpt.named_parameters():
        if name.endswith("gate"):  # closed, but they learn to open
            assert parameter.grad is not None
            assert parameter.grad.abs().item() > 0


def test_layers_without_cross_attention_have_no_weights_of_it():
    for cross, part in (("inside", "cross"), ("gated", "gated")):
        gpt = small(cross, cross_layers=(1,))
        assert not any(f"blocks.0.{part}" in name for name in gpt.state_dict())
        assert any(f"blocks.1.{part}" in name for name in gpt.state_dict())
    assert not any("cross" in name or "gated" in name for name in small(None, cross_layers=(1,)).state_dict())
    with pytest.raises(ConfigError, match=r"gpt.cross_layers: there is no layer 2"):
        small("gated", cross_layers=(0, 2))
    with pytest.raises(ConfigError, match=r"gpt.cross: 'beside' is none of inside, gated"):
        small("beside")


# A document for each row of the cache, what it sees, and new tokens of each row, call after call.
ROWS = 3
CACHED = st.tuples(
    st.lists(SEEN, min_size=ROWS, max_size=ROWS),
    st.lists(st.tuples(*[st.integers(0, 6)] * ROWS), min_size=1, max_size=6),
    st.booleans(),
)


@torch.no_grad()
def feed(gpt: GPT, cache: Cache, new: dict[int, Tensor], features: Tensor, seen: dict[int, Seen]) -> dict[int, Tensor]:
    """The logits of new tokens of some rows, whose media in `seen` are new too."""
    rows = sorted(new)
    lengths = [len(new[row]) for row in rows]
    pairs = [seen.get(row, []) for row in rows]
    layout = cache.extend(lengths, rows)
    x = gpt.embed(torch.cat([new[row] for row in rows]))
    hidden = gpt.transform(x, layout, media(features, pairs) if any(pairs) else None)
    return dict(zip(rows, gpt.head(hidden).split(lengths), strict=True))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(CONFIGS, CACHED)
def test_any_chunks_through_the_cache_give_the_logits_of_a_full_forward_pass(config: GPTConfig, drawn):
    seen, chunks, at_once = drawn
    gpt, features = model(config), numbers(FEATURES, WIDTH)
    documents = [some_ids(CONTEXT, row) for row in range(ROWS)]
    expected = full(gpt, documents, features, seen).split(CONTEXT)
    cache = gpt.cache(ROWS, CONTEXT, media=5)
    for sizes in chunks:
        starts = list(cache.lengths)
        new = {row: documents[row][start : start + sizes[row]] for row, start in enumerate(starts)}
        if not any(sizes):
            continue
        # Media come with a row's first tokens, or with the chunk whose tokens are the first to see them.
        fresh = {
            row: [
                (feature, since)
                for feature, since in seen[row]
                if (start == 0 if at_once else start <= since < start + sizes[row])
            ]
            for row, start in enumerate(starts)
            if sizes[row]
        }
        new = {row: ids for row, ids in new.items() if len(ids)}
        for row, logits in feed(gpt, cache, new, features, fresh).items():
            torch.testing.assert_close(logits, expected[row][starts[row] : starts[row] + sizes[row]], **CLOSE)


class Story:
    """A document with its media, which rows of a cache tell."""

    def __init__(self, seed: int, seen: Seen):
        self.ids, self.seen = some_ids(CONTEXT, seed), seen


FEATURE_ROWS = numbers(FEATURES, WIDTH)
PAIR, LATE, BLIND = Story(1, [(0, 0), (4, 3)]), Story(2, [(2, 2), (3, 2), (1, 9)]), Story(3, [])


def told(gpt: GPT, stories: list[Story], lengths: list[int]) -> Cache:
    cache = gpt.cache(len(stories), CONTEXT, media=3)
    new = {row: story.ids[:length] for row, (story, length) in enumerate(zip(stories, lengths, strict=True))}
    feed(gpt, cache, new, FEATURE_ROWS, {row: story.seen for row, story in enumerate(stories)})
    return cache


def goes_on(gpt: GPT, cache: Cache, stories: dict[int, Story], steps: int = 3) -> None:
    """Each row of the cache goes on with its story exactly as a full forward pass does."""
    for _ in range(steps):
        at = {row: cache.lengths[row] for row in stories}
        new = {row: story.ids[at[row] : at[row] + 1] for row, story in stories.items()}
        for row, logits in feed(gpt, cache, new, FEATURE_ROWS, {}).items():
            ids = stories[row].ids[: at[row] + 1]
            torch.testing.assert_close(logits[0], full(gpt, [ids], FEATURE_ROWS, [stories[row].seen])[-1], **CLOSE)


@pytest.fixture(params=["inside", "gated"])
def gpt(request) -> GPT:
    return small(request.param)


def test_rows_with_and_without_media_decode_together_and_apart(gpt):
    cache = told(gpt, [PAIR, BLIND, LATE, PAIR], [5, 8, 12, 1])
    goes_on(gpt, cache, {0: PAIR, 1: BLIND, 2: LATE, 3: PAIR})
    goes_on(gpt, cache, {1: BLIND, 3: PAIR})
    goes_on(gpt, cache, {1: BLIND})


def test_a_copied_row_sees_what_the_row_it_was_copied_from_sees(gpt):
    cache = told(gpt, [PAIR, BLIND, LATE], [6, 6, 12])
    cache.copy(2, 1)
    goes_on(gpt, cache, {0: PAIR, 1: LATE, 2: LATE})
    cache = told(gpt, [PAIR, BLIND, LATE], [6, 6, 12])
    cache.copy(1, 0)
    cache.copy(0, 2)
    goes_on(gpt, cache, {0: BLIND, 1: BLIND, 2: BLIND})


def test_rows_of_one_prompt_are_exchanged_under_their_common_media(gpt):
    one, other = Story(4, LATE.seen), Story(5, LATE.seen)
    other.ids[:10] = one.ids[:10]
    cache = told(gpt, [one, other, BLIND, one], [13, 13, 4, 13])
    cache.permute({0: 1, 1: 0, 3: 1}, start=10)
    goes_on(gpt, cache, {0: other, 1: one, 2: BLIND, 3: other})


def test_a_cleared_row_has_forgotten_its_media(gpt):
    cache = told(gpt, [PAIR, LATE], [9, 12])
    cache.clear(0)
    cache.clear(1)
    assert cache.media_lengths == [0, 0]
    feed(gpt, cache, {0: BLIND.ids[:4], 1: PAIR.ids[:2]}, FEATURE_ROWS, {1: PAIR.seen})
    goes_on(gpt, cache, {0: BLIND, 1: PAIR})


def test_a_shortened_row_has_forgotten_the_media_that_came_later(gpt):
    retold = Story(2, [(3, 8), *LATE.seen[:2], (0, 5)])
    retold.ids[5:] = PAIR.ids[5:]
    cache = told(gpt, [Story(2, [(1, 9), *LATE.seen[:2]]), LATE], [12, 12])
    cache.truncate(0, 5)
    cache.truncate(1, 10)
    assert cache.media_lengths == [2, 3]
    with pytest.raises(ConfigError, match="4 media tokens do not fit the cache's 3"):
        feed(gpt, cache, {0: retold.ids[5:9]}, FEATURE_ROWS, {0: [(3, 8), (0, 5)]})
    assert cache.media_lengths == [2, 3]
    cache = cache.grown(2, CONTEXT, media=4)
    feed(gpt, cache, {0: retold.ids[5:9]}, FEATURE_ROWS, {0: [(3, 8), (0, 5)]})
    goes_on(gpt, cache, {0: retold, 1: LATE})


def test_a_cache_of_another_size_holds_the_same_media(gpt):
    cache = told(gpt, [PAIR, BLIND, LATE], [6, 6, 12]).grown(rows=5, capacity=40, media=6)
    goes_on(gpt, cache, {0: PAIR, 1: BLIND, 2: LATE})
    feed(gpt, cache, {4: LATE.ids[:10]}, FEATURE_ROWS, {4: LATE.seen})
    goes_on(gpt, cache, {4: LATE})
    for row in (2, 3, 4):
        cache.clear(row)
    goes_on(gpt, cache.grown(rows=2, capacity=20, media=2), {0: PAIR, 1: BLIND})


def test_what_was_read_of_a_row_and_its_media_can_be_written_into_another(gpt):
    cache = told(gpt, [LATE, PAIR], [12, 5])
    tokens, seen, since = cache.read(0, 0, 12), cache.read_media(0), cache.since[0, :3].clone()
    cache.clear(0)
    cache.clear(1)
    cache.write(1, tokens)
    cache.write_media(1, seen, since)
    goes_on(gpt, cache, {1: LATE})


def test_media_beyond_the_capacity_are_refused_and_nothing_is_counted(gpt):
    cache = gpt.cache(2, CONTEXT, media=2)
    with pytest.raises(ConfigError, match="3 media tokens do not fit the cache's 2"):
        feed(gpt, cache, {0: PAIR.ids[:4], 1: LATE.ids[:4]}, FEATURE_ROWS, {0: PAIR.seen, 1: LATE.seen})
    assert cache.lengths == cache.media_lengths == [0, 0]
