import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small import CONFIGS, VOCABULARY, config, ids, model, random
from torch import nn
from torch.nn import functional as F

from mmgpt.content import Message
from mmgpt.errors import ConfigError
from mmgpt.generation import Decoding, Engine
from mmgpt.gpt import Documents
from mmgpt.gpt.quantize import Int8Linear, quantize_int8

pytestmark = pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="needs an x86 CPU")


def layer(inputs: int, outputs: int, bias: bool = True) -> Int8Linear:
    return Int8Linear(random(outputs, inputs, seed=1), random(outputs, seed=2) if bias else None)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.booleans(),
    st.lists(st.sampled_from([0.0, 1e-30, 1.0, 1e6, 1e30, torch.inf, torch.nan]), max_size=20),
    st.data(),
)
def test_a_row_is_the_same_to_the_bit_alone_and_among_any_neighbours(inputs, outputs, bias, sizes, data):
    linear, row = layer(inputs, outputs, bias), random(1, inputs, seed=3)
    neighbours = random(len(sizes), inputs, seed=4) * torch.tensor(sizes)[:, None]
    place = data.draw(st.integers(0, len(sizes)))
    batch = torch.cat([neighbours[:place], row, neighbours[place:]])
    assert torch.equal(linear(batch)[place], linear(row)[0])


def test_a_row_is_the_same_to_the_bit_however_the_threads_share_the_batch():
    linear, rows = layer(67, 1001), random(150, 67)
    alone = torch.cat([linear(row[None]) for row in rows])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(linear(rows), alone)
            assert torch.equal(linear(rows.view(3, 50, 67)), alone.view(3, 50, -1))
    finally:
        torch.set_num_threads(threads)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 9), st.integers(0, 10**6))
@example(3072, 5, 3, 0)
def test_the_error_is_within_half_a_step_of_each_factor(inputs, outputs, rows, seed):
    weight, bias = random(outputs, inputs, seed=seed), random(outputs, seed=seed + 1)
    x = random(rows, inputs, seed=seed + 2) * torch.logspace(-3, 3, rows)[:, None]
    out = Int8Linear(weight, bias)(x)
    x, weight, bias = x.double(), weight.double(), bias.double()
    dx = x.abs().amax(1, keepdim=True) / 127 / 2
    dw = weight.abs().amax(1, keepdim=True) / 64 / 2
    # |(x + dx)(w + dw) - xw|, summed over the inputs
    bound = x.abs().sum(1, keepdim=True) * dw.T + dx * weight.abs().sum(1) + inputs * dx * dw.T
    exact = F.linear(x, weight, bias)
    rounding = 1e-5 * (exact.abs() + bound + bias.abs())  # in float32
    assert ((out - exact).abs() <= bound + rounding).all()


@pytest.mark.parametrize("inputs", [1, 2, 31, 512, 3072])
def test_the_largest_sums_do_not_saturate(inputs):
    signs = torch.ones(3, inputs)
    signs[1], signs[2, 1::2] = -1, -1
    x, weight = 3.7 * signs, 0.9 * signs
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(Int8Linear(weight)(x).double(), expected, rtol=1e-6, atol=1e-5)


def test_integers_within_the_levels_are_multiplied_exactly():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (50, 200), generator=generator)
    weight = torch.randint(-64, 65, (60, 200), generator=generator)
    x[:, 0], weight[:, 0] = 127, -64  # so that the scales are 127 levels and 64 levels
    assert torch.equal(Int8Linear(weight.float())(x.float()).round().long(), x @ weight.T)


def test_a_row_of_zeros_gives_the_bias_and_a_weight_of_zeros_zero():
    linear = layer(16, 8)
    assert linear.bias is not None
    assert torch.equal(linear(torch.zeros(2, 16)), linear.bias.expand(2, 8))
    assert torch.equal(Int8Linear(torch.zeros(8, 16))(random(2, 16)), torch.zeros(2, 8))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_stays_so(bad):
    x = random(1, 16)
    x[0, 3] = bad
    assert not layer(16, 8)(x).isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_output_is_of_the_inputs_type_and_shape(dtype):
    linear, x = layer(16, 8), random(2, 3, 16).to(dtype)
    out = linear(x)
    assert out.shape == (2, 3, 8)
    assert out.dtype == dtype
    assert torch.equal(out, linear(x.float()).to(dtype))
    assert linear(x[:0]).shape == (0, 3, 8)


def test_the_input_is_left_as_it_was():
    x = random(4, 16)
    layer(16, 8)(x)
    assert torch.equal(x, random(4, 16))


def test_gradients_are_refused():
    linear, x = layer(16, 8), random(2, 16).requires_grad_()
    with pytest.raises(ConfigError, match="int8: has no gradients"):
        linear(x)
    with torch.no_grad():
        assert torch.equal(linear(x), linear(x.detach()))
    gpt = quantize_int8(model(CONFIGS[0]))
    with pytest.raises(ConfigError, match="int8: has no gradients"):
        gpt(ids(1, 4))


def test_other_devices_are_refused():
    with pytest.raises(ConfigError, match="x86 CPUs only, not on this meta"):
        Int8Linear(torch.empty(8, 16, device="meta"))
    with pytest.raises(ConfigError, match="x86 CPUs only, not on this meta"):
        layer(16, 8)(torch.empty(2, 16, device="meta"))


def test_other_cpus_are_refused():
    engine = torch.backends.quantized.engine
    gpt = model(CONFIGS[0])
    try:
        torch.backends.quantized.engine = "qnnpack"
        with pytest.raises(ConfigError, match="x86 CPUs only"):
            quantize_int8(gpt)
    finally:
        torch.backends.quantized.engine = engine
    assert gpt.lm_head is None
    assert not any(isinstance(module, Int8Linear) for module in gpt.modules())


def test_an_int8_model_is_not_saved():
    with pytest.raises(ConfigError, match="save the float model"):
        quantize_int8(model(CONFIGS[0])).state_dict()


@pytest.mark.parametrize("config", CONFIGS)
def test_every_linear_layer_is_replaced_and_the_embedding_stays_float(config):
    gpt = model(config).train()
    embedding = gpt.embedding.weight.detach().clone()
    quantized = quantize_int8(gpt)
    assert quantized is gpt
    assert not any(module.training for module in gpt.modules())
    assert not any(isinstance(module, nn.Linear) for module in gpt.modules())
    assert isinstance(gpt.lm_head, Int8Linear)
    matrices = {name for name, parameter in gpt.named_parameters() if parameter.ndim > 1}
    assert matrices - {"transformer.position.weight"} == {"embedding.weight"}
    assert torch.equal(gpt.embed(torch.arange(VOCABULARY)), embedding)


@pytest.mark.parametrize("config", CONFIGS)
def test_logits_are_close_and_the_likeliest_token_mostly_the_same(config):
    gpt = model(config)
    with torch.inference_mode():
        expected = gpt(ids(8, 60))
        logits = quantize_int8(copy.deepcopy(gpt))(ids(8, 60))
    # Rounding to a step errs by step / sqrt(12). Where the largest of a row is three times their usual size, that is
    # 1.4 % of it in 64 levels and 0.7 % in 127: 1.5 % for a product. 13 products lie behind each logit, and their
    # errors are independent.
    assert (logits - expected).norm() / expected.norm() < 13**0.5 * 0.015
    assert (logits.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9


@pytest.mark.parametrize("config", CONFIGS)
def test_packed_documents_have_the_logits_of_each_alone(config):
    gpt = quantize_int8(model(config))
    documents = [ids(length) for length in (1, 40, 7, 23, 39, 2)]
    with torch.inference_mode():
        together = gpt.head(gpt.transform(gpt.embed(torch.cat(documents)), Documents([len(d) for d in documents])))
        alone = torch.cat([gpt(document[None])[0] for document in documents])
    assert torch.equal(together.argmax(-1), alone.argmax(-1))


@pytest.mark.parametrize(
    "decoding",
    [Decoding(max_new_tokens=20), Decoding(max_new_tokens=20, temperature=1.0, seed=3), Decoding(12, beams=3)],
)
def test_batched_equals_single_token_for_token(model, tokenizer, processor, decoding):
    quantized = copy.deepcopy(model)
    quantize_int8(quantized.gpt)
    prompts = [processor.encode_prompt([Message.of("user", "word " * count)]) for count in (1, 9, 4, 2, 15, 4)]
    together = Engine(quantized, tokenizer).run(prompts, decoding)
    assert together == [Engine(quantized, tokenizer).run([prompt], decoding)[0] for prompt in prompts]


def test_the_loss_is_that_of_the_int8_logits():
    gpt = quantize_int8(model(config()))
    with torch.inference_mode():
        hidden = gpt.hidden_states(ids(1, 30), [-1])[0][0]
        expected = F.cross_entropy(gpt.head(hidden), ids(30), reduction="sum")
        torch.testing.assert_close(gpt.loss(hidden, ids(30))[0], expected)
