import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.config import GPTConfig
from mmgpt.encoders import TextEncoder
from mmgpt.errors import CheckpointError, ConfigError

FAMILY = ["BertConfig", "RobertaConfig", "ElectraConfig", "DistilBertConfig"]
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
DISTIL = {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}


def ids(length: int) -> torch.Tensor:
    return torch.randint(5, 50, (length,), generator=torch.Generator().manual_seed(length))


@pytest.fixture(scope="module", params=["rotary", "learned", "sinusoidal"])
def own(request) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(GPTConfig(vocab_size=50, width=16, layers=2, heads=2, context=40, position=request.param)).eval()


@pytest.fixture(scope="module", params=FAMILY)
def checkpoint(request, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp(request.param)
    config = getattr(transformers, request.param)(**(DISTIL if "Distil" in request.param else SIZES))
    transformers.AutoModel.from_config(config).save_pretrained(directory)
    return directory


def check_batch(encoder: TextEncoder, lengths: list[int]) -> None:
    with torch.no_grad():
        tokens, counts = encoder([ids(n) for n in lengths])
        assert counts.tolist() == lengths == [encoder.grid(n).count for n in lengths]
        assert tokens.shape == (len(lengths), max(lengths), encoder.width)
        for row, length in zip(tokens, lengths, strict=True):
            assert not row[length:].any()
            alone, _ = encoder([ids(length)])
            torch.testing.assert_close(row[:length], alone[0], atol=1e-5, rtol=1e-4)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_other_texts_in_the_batch_change_no_tokens(own, lengths):
    check_batch(own, lengths)


def test_other_texts_change_no_tokens_of_a_pretrained_encoder(checkpoint):
    check_batch(TextEncoder.from_pretrained(checkpoint), [3, 30, 1, 12])


def test_pretrained_encoder_gives_transformers_hidden_states(checkpoint):
    from transformers import AutoModel

    encoder, model = TextEncoder.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        expected = model(ids(9)[None], output_hidden_states=True)
        (first, _), (last, _) = encoder.forward_features([ids(9)], [0, -1])
    torch.testing.assert_close(last, expected.last_hidden_state)
    torch.testing.assert_close(first, expected.hidden_states[1])


def test_each_token_sees_what_comes_after_it(own):
    text = ids(8)
    changed = torch.cat([text[:-1], (text[-1:] + 1) % 50])
    with torch.no_grad():
        assert not torch.allclose(own([text])[0][0, 0], own([changed])[0][0, 0])


def test_padded_batch_with_lengths_is_the_same(own):
    batch = torch.stack([torch.cat([ids(3), ids(5)]), ids(8)])
    with torch.no_grad():
        padded, counts = own(batch, lengths=torch.tensor([3, 8]))
        expected, _ = own([ids(3), ids(8)])
    assert counts.tolist() == [3, 8]
    assert torch.equal(padded, expected)


def test_intermediate_layers_are_there_and_the_last_is_the_output(own):
    with torch.no_grad():
        (first, _), (last, _) = own.forward_features([ids(6)], [0, -1])
        assert torch.equal(last, own([ids(6)])[0])
    assert first.shape == last.shape
    assert not torch.allclose(first, last)


def test_every_parameter_takes_part(own, checkpoint):
    for encoder in (own, TextEncoder.from_pretrained(checkpoint)):
        encoder.zero_grad()
        encoder([ids(40 if encoder is own else 7)])[0].sum().backward()
        assert [key for key, parameter in encoder.named_parameters() if parameter.grad is None] == []


def test_frozen_encoder_trains_nothing_and_stays_in_evaluation_mode(checkpoint):
    encoder = TextEncoder.from_pretrained(checkpoint).freeze().train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_directory_without_a_model_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="no text encoder"):
        TextEncoder.from_pretrained(tmp_path)


def test_checkpoint_that_lacks_a_tensor_is_refused(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    state = load_file(checkpoint / "model.safetensors")
    lost = next(key for key in state if key.endswith("weight") and "1." in key)
    del state[lost]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=lost):
        TextEncoder.from_pretrained(tmp_path)


def test_vocabulary_must_be_known():
    with pytest.raises(ConfigError, match="vocab_size"):
        TextEncoder(GPTConfig())
