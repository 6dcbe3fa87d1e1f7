import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from mmgpt.errors import CheckpointError
from mmgpt.gpt import GPT, Documents

CONFIGS = st.builds(
    lambda head_width, n_head, **fields: GPT2Config(
        n_embd=head_width * n_head, n_head=n_head, bos_token_id=0, eos_token_id=0, **fields
    ),
    head_width=st.sampled_from([4, 7, 16]),
    n_head=st.integers(1, 5),
    n_layer=st.integers(1, 4),
    n_inner=st.sampled_from([None, 20]),
    vocab_size=st.integers(3, 120),
    n_positions=st.integers(12, 40),
    activation_function=st.sampled_from(["gelu_new", "gelu", "gelu_pytorch_tanh"]),
    layer_norm_epsilon=st.sampled_from([1e-6, 1e-5, 1e-2]),
    initializer_range=st.sampled_from([0.02, 0.2]),
    tie_word_embeddings=st.booleans(),
)


def reference(config: GPT2Config | None = None) -> GPT2LMHeadModel:
    """A model of transformers in which no parameter is zero or one."""
    torch.manual_seed(0)
    config = config or GPT2Config(
        n_embd=24, n_head=3, n_layer=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    reference().save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, **settings) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


@settings(derandomize=True, deadline=None, max_examples=15)
@given(CONFIGS)
def test_gpt2_checkpoints_of_any_configuration_give_the_numbers_of_transformers(
    tmp_path_factory: pytest.TempPathFactory, config: GPT2Config
):
    folder = tmp_path_factory.mktemp("gpt2")
    theirs = reference(config)
    theirs.save_pretrained(folder)
    ours = GPT.from_pretrained(folder)
    lengths = [12, 3, 7, 1]
    documents = [torch.randint(config.vocab_size, (length,)) for length in lengths]
    close = {"rtol": 2e-5, "atol": 2e-5}
    with torch.no_grad():
        alone = [theirs(ids[None], output_hidden_states=True) for ids in documents]
        for ids, expected in zip(documents, alone, strict=True):
            torch.testing.assert_close(ours(ids[None]), expected.logits, **close)
            states = ours.hidden_states(ids[None], range(config.n_layer + 1))
            for state, hidden in zip(states, expected.hidden_states, strict=True):
                torch.testing.assert_close(state, hidden, **close)

        logits = torch.cat([expected.logits[0] for expected in alone])
        ragged = ours.head(ours.transform(ours.embed(torch.cat(documents)), Documents(lengths)))
        torch.testing.assert_close(ragged, logits, **close)

        cache = ours.cache(rows=1, capacity=12)
        for chunk in documents[0].split(5):
            cached = ours.head(ours.transform(ours.embed(chunk), Documents([len(chunk)]), cache))
        torch.testing.assert_close(cached, alone[0].logits[0, 10:], **close)


def test_a_loaded_model_is_whole_and_can_be_trained(saved: Path):
    ours = GPT.from_pretrained(str(saved))
    assert not ours.training
    assert ours.config.dropout == 0.1
    for name, parameter in ours.named_parameters():
        assert parameter.device.type == "cpu", name
        assert parameter.dtype == torch.float32, name
        assert parameter.is_contiguous(), name
        assert parameter.requires_grad, name


def test_sharded_half_precision_and_headless_checkpoints_load_too(tmp_path: Path):
    theirs = reference()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = theirs(ids).logits
        theirs.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
        torch.testing.assert_close(GPT.from_pretrained(tmp_path / "shards")(ids), expected, rtol=2e-5, atol=2e-5)

        GPT2Model.from_pretrained(tmp_path / "shards").save_pretrained(tmp_path / "headless")
        assert "wte.weight" in load_file(tmp_path / "headless" / "model.safetensors")
        torch.testing.assert_close(GPT.from_pretrained(tmp_path / "headless")(ids), expected, rtol=2e-5, atol=2e-5)

        theirs.to(torch.bfloat16).save_pretrained(tmp_path / "half")
        rounded = theirs.float()(ids).logits
        torch.testing.assert_close(GPT.from_pretrained(tmp_path / "half")(ids), rounded, rtol=2e-5, atol=2e-5)


def test_missing_extra_and_misshapen_tensors_are_named(saved: Path):
    path = saved / "model.safetensors"
    tensors = load_file(path)
    name = "transformer.h.1.mlp.c_fc.weight"

    def broken(**changes) -> str:
        save_file({k: v for k, v in {**tensors, **changes}.items() if v is not None}, path)
        with pytest.raises(CheckpointError) as error:
            GPT.from_pretrained(saved)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "missing tensors: h.1.mlp.c_fc.weight" in broken(**{name: None})
    assert "unexpected tensors: h.1.extra" in broken(**{"transformer.h.1.extra": torch.zeros(1)})
    message = broken(**{name: torch.zeros(24, 95)})
    assert "h.1.mlp.c_fc.weight: shape (24, 95), but config.json says (24, 96)" in message
    assert f"{name}: torch.int8" in broken(**{name: torch.zeros(24, 96, dtype=torch.int8)})
    assert f"{name}: torch.float32 of shape (24,)" in broken(**{name: torch.zeros(24)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; supported: gpt2"),
        ({"activation_function": "relu"}, "activation_function 'relu' is none of gelu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True is not supported"),
        ({"n_head": 5}, "5 heads do not divide width 24"),
        ({"n_embd": "wide"}, "gpt.width: must be a whole number from 1 on, not 'wide'"),
        ({"n_layer": 10**12}, "missing tensors: h.2.ln_1.weight"),
        ({"n_embd": 24 * 10**6}, "wte.weight: shape"),
        ({"n_inner": 10**30}, "verflow"),
    ],
)
def test_configurations_that_cannot_be_used_are_refused_in_one_line(saved: Path, settings: dict, message: str):
    edit(saved, **settings)
    with pytest.raises(CheckpointError, match=message) as error:
        GPT.from_pretrained(saved)
    assert str(saved) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_setting_is_named(saved: Path):
    config = json.loads((saved / "config.json").read_text())
    del config["n_head"]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config.json: n_head is missing"):
        GPT.from_pretrained(saved)


def test_files_that_are_missing_or_broken_are_named(saved: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such directory"):
        GPT.from_pretrained("./nowhere/at/all")
    (saved / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not a header")
    with pytest.raises(CheckpointError, match="eader"):
        GPT.from_pretrained(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors$"):
        GPT.from_pretrained(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        GPT.from_pretrained(saved)
    (saved / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        GPT.from_pretrained(saved)


def test_a_pickle_is_not_read(saved: Path):
    (saved / "model.safetensors").unlink()
    torch.save({}, saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle, which is not read"):
        GPT.from_pretrained(saved)


def test_an_index_names_no_file_outside_its_directory(saved: Path):
    inner = saved / "inner"
    inner.mkdir()
    (inner / "config.json").write_bytes((saved / "config.json").read_bytes())
    index = {"weight_map": {"transformer.wte.weight": "../model.safetensors"}}
    (inner / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'\.\./model\.safetensors' is no file of this directory"):
        GPT.from_pretrained(inner)


def test_a_hub_id_that_cannot_be_fetched_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="nobody/nothing: not fetched from the Hub") as error:
        GPT.from_pretrained("nobody/nothing")
    assert "\n" not in str(error.value)
