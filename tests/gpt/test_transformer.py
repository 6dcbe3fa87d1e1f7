import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import held
from torch import Tensor
from torch.nn import functional as F

from mmgpt.config import GPTConfig
from mmgpt.errors import ConfigError
from mmgpt.gpt import GPT, Documents, Transformer
from mmgpt.gpt.transformer import angles, frequencies, gelu_tanh, rotate

VOCABULARY = 61


def config(position: str = "rotary", activation: str = "swiglu", kv_heads: int = 2, **fields) -> GPTConfig:
    family = {"norm": "rms" if activation == "swiglu" else "layer", "mlp_bias": activation != "swiglu"}
    return GPTConfig(
        vocab_size=VOCABULARY,
        width=32,
        layers=3,
        heads=4,
        kv_heads=kv_heads,
        context=64,
        position=position,  # pyright: ignore
        activation=activation,  # pyright: ignore
        **{**family, **fields},
    )


CONFIGS = st.builds(
    config,
    position=st.sampled_from(["rotary", "learned", "sinusoidal"]),
    activation=st.sampled_from(["swiglu", "gelu", "gelu_tanh"]),
    kv_heads=st.sampled_from([1, 2, 4]),
    norm=st.sampled_from(["layer", "rms"]),
    qkv_bias=st.booleans(),
    out_bias=st.booleans(),
    mlp_bias=st.booleans(),
    tied_head=st.booleans(),
    head_width=st.sampled_from([None, 6]),
)


def model(config: GPTConfig, dtype: torch.dtype = torch.float64) -> GPT:
    """Weights large enough that every part of the network matters."""
    torch.manual_seed(0)
    gpt = GPT(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return gpt


def texts(lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(VOCABULARY, (length,), generator=generator) for length in lengths]


def loss(gpt: GPT, ids: Tensor, lengths: list[int]) -> Tensor:
    """Summed cross-entropy of each document's next tokens."""
    logits = gpt.head(gpt.transform(gpt.embed(ids), Documents(lengths)))
    pairs = zip(logits.split(lengths), ids.split(lengths), strict=True)
    return torch.stack([F.cross_entropy(out[:-1], doc[1:], reduction="sum") for out, doc in pairs]).sum()


@settings(derandomize=True, deadline=None, max_examples=25)
@given(CONFIGS, st.lists(st.integers(2, 40), min_size=1, max_size=6))
def test_packed_documents_have_the_loss_and_gradients_of_each_alone(config: GPTConfig, lengths: list[int]):
    gpt = model(config)
    documents = texts(lengths)
    together = loss(gpt, torch.cat(documents), lengths)
    packed = torch.autograd.grad(together, list(gpt.parameters()))
    alone = sum(loss(gpt, ids, [len(ids)]) for ids in documents)
    lone = torch.autograd.grad(alone, list(gpt.parameters()))  # pyright: ignore
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    for (name, _), a, b in zip(gpt.named_parameters(), packed, lone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@settings(derandomize=True, deadline=None, max_examples=25)
@given(CONFIGS, st.lists(st.integers(1, 20), min_size=1, max_size=5), st.data())
def test_places_that_are_asked_for_alone_are_those_of_all_and_so_are_their_gradients(config, lengths, data):
    gpt, total = model(config), sum(lengths)
    places = torch.tensor(data.draw(st.lists(st.integers(0, total - 1), max_size=total)), dtype=torch.long)
    x = gpt.embed(torch.cat(texts(lengths)))
    every, asked = gpt.transform(x, Documents(lengths))[places], gpt.transform(x, Documents(lengths), None, places)
    torch.testing.assert_close(asked, every, rtol=1e-12, atol=1e-12)
    parameters = list(gpt.transformer.parameters())
    found = [torch.autograd.grad(one.square().sum(), parameters, retain_graph=True) for one in (asked, every)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_of_places_that_are_not_asked_for_the_last_block_computes_keys_and_values_alone():
    gpt, rows = model(config()), []
    for block in gpt.transformer.blocks:
        for layer in (block.attention.qkv, block.attention.out, block.mlp.up, block.mlp.down):
            layer.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    gpt.transform(gpt.embed(torch.cat(texts([9, 11]))), Documents([9, 11]), None, torch.tensor([8, 19]))
    assert rows == [20] * 8 + [20, 2, 2, 2]


@pytest.mark.parametrize("position", ["rotary", "learned", "sinusoidal"])
def test_ragged_documents_in_float32_differ_from_lone_ones_by_rounding_only(position: str):
    gpt = model(config(position), torch.float32)
    documents = texts([5, 40, 1, 17, 16])
    packed = gpt.transform(gpt.embed(torch.cat(documents)), Documents([5, 40, 1, 17, 16]))
    alone = torch.cat([gpt.transform(gpt.embed(ids), Documents([len(ids)])) for ids in documents])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


@settings(derandomize=True, deadline=None, max_examples=15)
@given(CONFIGS, st.integers(1, 11))
def test_no_token_sees_a_later_one(config: GPTConfig, changed: int):
    gpt = model(config)
    (ids,) = texts([12])
    other = ids.clone()
    other[changed] = (other[changed] + 1) % VOCABULARY
    before, after = gpt(ids[None])[0], gpt(other[None])[0]
    torch.testing.assert_close(before[:changed], after[:changed], rtol=0, atol=1e-12)
    assert (before[changed:] - after[changed:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("position", ["rotary", "learned", "sinusoidal"])
def test_the_order_of_earlier_tokens_matters(position: str):
    gpt = model(config(position))
    (ids,) = texts([12])
    swapped = ids.clone()
    swapped[[2, 7]] = ids[[7, 2]]
    assert (gpt(ids[None])[0, -1] - gpt(swapped[None])[0, -1]).abs().max() > 1e-6


def test_rotary_attention_depends_on_relative_positions_alone():
    q, k = torch.randn(2, 10, 1, 8, dtype=torch.float64)
    cos, sin = (part[:, None] for part in angles(torch.arange(15), frequencies(8, 10_000.0)))
    near = rotate(q, (cos[:10], sin[:10]))[:, 0] @ rotate(k, (cos[:10], sin[:10]))[:, 0].T
    far = rotate(q, (cos[5:], sin[5:]))[:, 0] @ rotate(k, (cos[5:], sin[5:]))[:, 0].T
    torch.testing.assert_close(near, far, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(near, q[:, 0] @ k[:, 0].T, atol=1e-2)


def test_without_the_causal_mask_every_token_sees_its_whole_document_and_no_other():
    torch.manual_seed(0)
    encoder = Transformer(config("sinusoidal", "gelu"), causal=False).double()
    lengths = [7, 6, 30]
    x = torch.randn(sum(lengths), 32, dtype=torch.float64)
    packed = encoder(x, Documents(lengths))
    alone = torch.cat([encoder(part, Documents([len(part)])) for part in x.split(lengths)])
    torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-10)
    changed = x.clone()
    changed[12] = torch.randn(32)  # the last token of the second document
    difference = (encoder(changed, Documents(lengths)) - packed).abs().amax(-1)
    assert difference[7:13].min() > 1e-9
    assert difference[:7].max() == difference[13:].max() == 0


def test_hidden_states_are_numbered_from_the_embeddings_to_the_final_norm():
    gpt = model(config("learned"))
    ids = torch.stack(texts([9])).expand(2, -1)
    states = gpt.hidden_states(ids, [0, 1, 2, 3, -1])
    assert all(state.shape == (2, 9, 32) for state in states)
    assert gpt.transformer.position is not None
    torch.testing.assert_close(states[0], gpt.embedding(ids) + gpt.transformer.position.weight[:9])
    torch.testing.assert_close(states[3], states[4])
    torch.testing.assert_close(gpt.head(states[4]), gpt(ids))
    third = gpt.transformer.blocks[2](states[2].flatten(0, 1), Documents([9, 9]), rotary=None)
    torch.testing.assert_close(gpt.transformer.norm(third), states[3].flatten(0, 1))
    with pytest.raises(ConfigError, match=r"layers: \[4\]"):
        gpt.hidden_states(ids, [4])


def test_a_document_beyond_the_context_is_refused_with_both_numbers():
    gpt = model(config())
    with pytest.raises(ConfigError, match="65 tokens is longer than the context of 64"):
        gpt.transform(torch.zeros(70, 32).double(), Documents([5, 65]))


def test_a_tied_head_shares_the_embedding_and_a_free_one_does_not():
    assert "lm_head.weight" not in GPT(config(tied_head=True)).state_dict()
    free = GPT(config(tied_head=False))
    assert free.state_dict()["lm_head.weight"].shape == (VOCABULARY, 32)


def test_grouped_queries_equal_full_attention_with_repeated_key_and_value_heads():
    grouped, full = model(config(kv_heads=2)), model(config(kv_heads=4))
    state = grouped.state_dict()
    for name in [name for name in state if name.endswith("qkv.weight")]:
        q, k, v = state[name].unflatten(0, (-1, 8)).split([4, 2, 2])
        repeated = [q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)]
        state[name] = torch.cat(repeated).flatten(0, 1)
    full.load_state_dict(state)
    ids = torch.stack(texts([20]))
    torch.testing.assert_close(grouped(ids), full(ids), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 5}, "gpt.heads: 5 heads do not divide width 32"),
        ({"kv_heads": 3}, "gpt.kv_heads: 3 does not divide the 4 heads"),
        ({"width": 12, "heads": 4}, "gpt.head_width: must be even"),
        ({"layers": 0}, "gpt.layers: must be a whole number from 1 on, not 0"),
        ({"norm": "batch"}, "gpt.norm: 'batch' is none of layer, rms"),
        ({"vocab_size": 0}, "gpt.vocab_size"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(fields: dict, message: str):
    settings = {"vocab_size": VOCABULARY, "width": 32, "heads": 4, **fields}
    with pytest.raises(ConfigError, match=message):
        GPT(GPTConfig(**settings))


def test_gelu_is_that_of_torch_and_has_its_gradient():
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -1e4, 1e4, 1e-30, -torch.inf, torch.inf])])
    expected = F.gelu(x.double(), approximate="tanh")
    torch.testing.assert_close(gelu_tanh(x).double(), expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    half = x[:4001].bfloat16()
    assert torch.equal(gelu_tanh(half), F.gelu(half, approximate="tanh"))  # rounded once
    learned, exact = x[:4001].clone().requires_grad_(), x[:4001].double().requires_grad_()
    gelu_tanh(learned).sum().backward()
    F.gelu(exact, approximate="tanh").sum().backward()
    torch.testing.assert_close(learned.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_weights_that_write_to_the_residual_stream_start_smaller():
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=1000, width=128, layers=8, heads=4))
    for name, parameter in gpt.named_parameters():
        if parameter.ndim == 2:
            expected = 0.02 / 4 if "attention.out" in name or "mlp.down" in name else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


@pytest.mark.parametrize("position", ["rotary", "learned"])
def test_blocks_that_run_again_in_the_backward_pass_give_the_same_gradients_and_hold_less(position: str):
    gpt = model(config(position, dropout=0.2), torch.float32).train()
    ids = torch.cat(texts([30, 7, 12]))

    def train(checkpointing: bool) -> tuple[Tensor, int, tuple[Tensor, ...]]:
        gpt.transformer.checkpointing = checkpointing
        torch.manual_seed(1)  # of dropout
        value, size = held(lambda: loss(gpt, ids, [30, 7, 12]))
        return value, size, torch.autograd.grad(value, list(gpt.parameters()))

    (plain, whole, expected), (again, part, found) = train(False), train(True)
    assert torch.equal(again, plain)
    for (name, _), one, other in zip(gpt.named_parameters(), found, expected, strict=True):
        assert torch.equal(one, other), name
    assert part < whole / 3


def test_blocks_run_once_where_nothing_is_trained():
    gpt = model(config(), torch.float32)
    ids = torch.cat(texts([30, 7]))
    _, whole = held(lambda: loss(gpt, ids, [30, 7]))
    gpt.transformer.checkpointing = True
    _, size = held(lambda: loss(gpt, ids, [30, 7]))  # evaluation mode, with gradients
    assert size == whole
    with torch.no_grad():
        assert not loss(gpt.train(), ids, [30, 7]).requires_grad
