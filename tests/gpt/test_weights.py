import json
from pathlib import Path

import pytest
import torch
from references import CLOSE, llama, reference
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, LlamaConfig

from mmgpt.errors import CheckpointError
from mmgpt.gpt import GPT, Documents, Media


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    reference().save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, **settings) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


def test_gpt2_with_cross_attention_gives_the_numbers_of_transformers(tmp_path: Path):
    config = GPT2Config(
        n_embd=24, n_head=3, n_layer=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0,
        add_cross_attention=True,
    )  # fmt: skip
    theirs = reference(config)
    theirs.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    assert ours.config.cross == "inside"
    features = torch.randn(9, 24)
    documents = [torch.randint(50, (length,)) for length in (12, 3, 7)]
    with torch.no_grad():
        alone = [
            theirs(ids[None], encoder_hidden_states=features[rows][None] if rows else None).logits[0]
            for ids, rows in zip(documents, ([0, 1, 2, 3, 4, 5], [8, 7], []), strict=True)
        ]
        media = Media(features, torch.tensor([0, 1, 2, 3, 4, 5, 8, 7]), [6, 2, 0], torch.zeros(8, dtype=torch.long))
        hidden = ours.transform(ours.embed(torch.cat(documents)), Documents([12, 3, 7]), media)
    torch.testing.assert_close(ours.head(hidden), torch.cat(alone), rtol=2e-5, atol=2e-5)


def test_a_loaded_model_is_whole_and_can_be_trained(saved: Path):
    ours = GPT.from_pretrained(str(saved))
    assert not ours.training
    assert ours.config.dropout == 0.1
    for name, parameter in ours.named_parameters():
        assert parameter.device.type == "cpu", name
        assert parameter.dtype == torch.float32, name
        assert parameter.is_contiguous(), name
        assert parameter.requires_grad, name


@pytest.mark.parametrize("config", [None, llama()], ids=["gpt2", "llama"])
def test_sharded_half_precision_and_headless_checkpoints_load_too(config: LlamaConfig | None, tmp_path: Path):
    theirs = reference(config)
    ids = torch.arange(20)[None]

    def logits(folder: Path) -> Tensor:
        return GPT.from_pretrained(folder)(ids)

    with torch.no_grad():
        expected = theirs(ids).logits
        theirs.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
        torch.testing.assert_close(logits(tmp_path / "shards"), expected, **CLOSE)

        theirs.to(torch.bfloat16).save_pretrained(tmp_path / "half")
        rounded = theirs.float()(ids).logits
        torch.testing.assert_close(logits(tmp_path / "half"), rounded, **CLOSE)

        headless = AutoModel.from_pretrained(tmp_path / "shards")
        headless.config.tie_word_embeddings = True
        headless.save_pretrained(tmp_path / "headless")
        assert not any("lm_head" in name for name in load_file(tmp_path / "headless" / "model.safetensors"))
        hidden = headless(ids)[0]
        tied = hidden @ headless.get_input_embeddings().weight.T
        torch.testing.assert_close(logits(tmp_path / "headless"), tied, **CLOSE)


def test_a_head_that_config_json_calls_tied_is_believed_where_it_differs(tmp_path: Path):
    theirs = reference(llama())
    theirs.save_pretrained(tmp_path)
    edit(tmp_path, tie_word_embeddings=True)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(GPT.from_pretrained(tmp_path)(ids), theirs(ids).logits, **CLOSE)
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, theirs(ids).logits, **CLOSE
        )
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert GPT.from_pretrained(tmp_path).config.tied_head


def test_parts_of_one_tensor_that_only_fit_together_are_refused(tmp_path: Path):
    reference(llama()).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    query, key = (f"model.layers.1.self_attn.{part}_proj.weight" for part in "qk")
    tensors[query], tensors[key] = torch.ones(23, 24), torch.ones(13, 24)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"q_proj.weight: shape \(23, 24\), but config.json says \(24, 24\)"):
        GPT.from_pretrained(tmp_path)


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


class Evil:
    """What a pickle can do to who reads it."""

    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_of_a_pickle_tensors_alone_are_read(saved: Path, monkeypatch: pytest.MonkeyPatch):
    ids = torch.arange(20)[None]
    expected = GPT.from_pretrained(saved)(ids)
    state, pickle = load_file(saved / "model.safetensors"), saved / "pytorch_model.bin"
    (saved / "model.safetensors").unlink()
    torch.save({**state, "transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32, dtype=torch.bool)}, pickle)
    assert torch.equal(GPT.from_pretrained(saved)(ids), expected)

    monkeypatch.chdir(saved)
    torch.save({**state, "evil": Evil()}, pickle)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: cannot be read: Weights only load failed") as error:
        GPT.from_pretrained(saved)
    assert "\n" not in str(error.value)
    assert not (saved / "touched").exists()
    for content in ({**state, "step": 7}, [*state.values()]):
        torch.save(content, pickle)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: not a table of tensors"):
            GPT.from_pretrained(saved)
    for damaged in (b"", b"no pickle at all", pickle.read_bytes()[:1000]):
        pickle.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: cannot be read: ."):
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
