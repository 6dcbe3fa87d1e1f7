import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small import CONFIGS, ids, model, random
from torch import nn
from torch.nn import functional as F

from mmgpt import checkpoint
from mmgpt.content import Message
from mmgpt.errors import ConfigError
from mmgpt.generation import Decoding, Engine
from mmgpt.gpt import GPT
from mmgpt.gpt.packed import PackedLinear, pack

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


@pytest.fixture
def threads() -> Iterator[None]:
    """Two of them: one thread reads plain matrices faster."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 40), st.booleans())
@example(768, 50, 1, True)
def test_products_are_those_of_the_plain_layer(inputs: int, outputs: int, rows: int, bias: bool):
    weight, offset, x = random(outputs, inputs), random(outputs, seed=1) if bias else None, random(rows, inputs, seed=2)
    out = PackedLinear(weight, offset)(x)
    expected = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_inputs_of_any_number_of_dimensions_and_layout_are_taken():
    linear, weight = PackedLinear(random(7, 5)), random(7, 5)
    for x in (random(5), random(2, 3, 5), random(5, 9).T, random(4, 10)[:, ::2]):
        torch.testing.assert_close(linear(x), x @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_packed_model_says_what_the_plain_one_does(config, threads):
    gpt = model(config)
    packed = pack(copy.deepcopy(gpt))
    assert not any(isinstance(module, nn.Linear) for module in packed.modules())
    with torch.inference_mode():
        torch.testing.assert_close(packed(ids(3, 40)), gpt(ids(3, 40)), rtol=1e-4, atol=1e-4)
        hidden = gpt.hidden_states(ids(1, 30), [-1])[0][0]
        torch.testing.assert_close(packed.loss(hidden, ids(30))[0], gpt.loss(hidden, ids(30))[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_single_thread_gets_the_same_weights_turned_in_memory(config):
    assert torch.get_num_threads() == 1
    plain, turned = model(config), pack(model(config))
    assert not turned.transformer.blocks[0].attention.qkv.weight.is_contiguous()
    assert not turned.embedding.weight.is_contiguous()
    for (name, one), (_, other) in zip(plain.named_parameters(), turned.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    torch.testing.assert_close(turned(ids(1, 20)), plain(ids(1, 20)), rtol=1e-5, atol=1e-5)


def test_types_that_onednn_does_not_pack_stay_as_they_are(threads):
    gpt = pack(model(CONFIGS[0]).double())
    assert not any(isinstance(module, PackedLinear) for module in gpt.modules())
    torch.testing.assert_close(gpt(ids(1, 20)), model(CONFIGS[0]).double()(ids(1, 20)))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_packed_model_is_saved_like_the_plain_one(config, threads, tmp_path):
    gpt = model(config)
    packed = pack(copy.deepcopy(gpt))
    assert packed.state_dict().keys() == gpt.state_dict().keys()
    kept = checkpoint.tensors_of(packed)
    assert kept.keys() == checkpoint.tensors_of(gpt).keys()
    for name, tensor in gpt.state_dict().items():
        assert torch.equal(kept[name], tensor), name
    packed.save_pretrained(tmp_path)
    with torch.inference_mode():
        assert torch.equal(GPT.from_pretrained(tmp_path)(ids(1, 20)), gpt(ids(1, 20)))


def test_copies_of_a_packed_model_say_the_same(threads):
    packed = pack(model(CONFIGS[1]))
    with torch.inference_mode():
        for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            assert torch.equal(other(ids(1, 20)), packed(ids(1, 20)))
            assert other.state_dict().keys() == packed.state_dict().keys()


def test_gradients_are_refused():
    linear, x = PackedLinear(random(8, 16)), random(2, 16).requires_grad_()
    with pytest.raises(ConfigError, match="packed for inference"):
        linear(x)
    with torch.no_grad():
        assert torch.equal(linear(x), linear(x.detach()))


def test_other_devices_are_refused():
    with pytest.raises(ConfigError, match="packed for a CPU, but its input is on meta"):
        PackedLinear(random(8, 16))(torch.empty(2, 16, device="meta"))


@pytest.mark.parametrize(
    "decoding",
    [Decoding(max_new_tokens=20), Decoding(max_new_tokens=20, temperature=1.0, seed=3), Decoding(12, beams=3)],
)
def test_batched_equals_single_token_for_token(model, tokenizer, processor, decoding, threads):
    packed = copy.deepcopy(model)
    pack(packed.gpt)
    prompts = [processor.encode_prompt([Message.of("user", "word " * count)]) for count in (1, 9, 4, 2, 15, 4)]
    together = Engine(packed, tokenizer).run(prompts, decoding)
    assert together == [Engine(packed, tokenizer).run([prompt], decoding)[0] for prompt in prompts]
    assert together == Engine(model, tokenizer).run(prompts, decoding)
