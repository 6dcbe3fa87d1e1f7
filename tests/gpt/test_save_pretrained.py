import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import CLOSE, check_all_numbers, check_saved, random_ids
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mmgpt.config import GPTConfig, RotaryScaling
from mmgpt.errors import ConfigError, WriteError
from mmgpt.gpt import GPT, weights
from mmgpt.gpt.families import FAMILIES

# Settings of ours, and the family that they are saved as.
BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
LEARNED = {"position": "learned", "norm": "layer", **BIASES, "dropout": 0.1}
OURS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "gpt2": st.sampled_from([{**LEARNED, "activation": "gelu"}, {**LEARNED, "activation": "gelu_tanh"}]),
    "llama": st.sampled_from([{}, {"qkv_bias": True, "out_bias": True}, {"mlp_bias": True}, BIASES, {"kv_heads": 2}]),
    "mistral": st.sampled_from(
        [{"window": 6}, {"window": 6, "window_layers": (2, 1, 0)}, {"width": 26, "head_width": 6, "kv_heads": 1}]
    ),
    "qwen2": st.sampled_from(
        [
            {"qkv_bias": True},
            {"qkv_bias": True, "head_width": 6, "kv_heads": 2},
            {"qkv_bias": True, "window": 6},
            {"qkv_bias": True, "window": 6, "window_layers": (1,)},
            {"qkv_bias": True, "window": 6, "window_layers": ()},
        ]
    ),
    "qwen3": st.sampled_from(
        [
            {"qk_norm": True},
            {"qk_norm": True, "qkv_bias": True, "out_bias": True, "kv_heads": 1},
            {"qk_norm": True, "head_width": 10, "window": 6, "window_layers": (0, 2)},
        ]
    ),
}
COMMON = st.fixed_dictionaries(
    {
        "rotary_scaling": st.sampled_from(
            [None, RotaryScaling("linear", 2.5, low=0.1), RotaryScaling("llama3", 3.0, 0.5, 5.0, original_context=48)]
        ),
        "rotary_base": st.sampled_from([10_000.0, 300.0]),
        "tied_head": st.booleans(),
        "mlp_width": st.sampled_from([None, 20]),
        "norm_eps": st.sampled_from([1e-5, 1e-2]),
    }
)


def random_gpt(fields: dict[str, Any], **common: Any) -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=50, width=24, layers=3, heads=4, context=64)
    gpt = GPT(replace(config, **common, **fields)).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return gpt


@pytest.mark.parametrize("family", FAMILIES)
@settings(derandomize=True, deadline=None, max_examples=6)
@given(data=st.data())
def test_what_we_save_is_loaded_by_transformers_with_our_numbers(
    family: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    ours = random_gpt(data.draw(OURS[family]), **data.draw(COMMON))
    theirs = check_saved(ours, tmp_path_factory.mktemp(family))
    assert theirs.config.model_type == family
    assert theirs.config.architectures == [type(theirs).__name__]
    assert theirs.config.eos_token_id is None
    check_all_numbers(ours, theirs)


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"position": "sinusoidal"}, 'gpt.position = "sinusoidal"; the nearest is llama'),
        ({"cross": "gated"}, 'gpt.cross = "gated"; the nearest is llama'),
        ({"norm": "layer"}, 'gpt.norm = "layer"; the nearest is llama'),
        ({"activation": "gelu"}, 'gpt.activation = "gelu"; the nearest is llama'),
        ({"out_bias": True}, "gpt.qkv_bias = False; the nearest is llama"),
        ({"window": 5, "window_layers": (1,)}, "gpt.window_layers = (1,); the nearest is mistral"),
        ({"qk_norm": True, "window": 5, "mlp_bias": True}, "gpt.mlp_bias = True; the nearest is qwen3"),
        ({**BIASES, "width": 26, "head_width": 6}, "gpt.heads = 4; the nearest is llama"),
        ({**LEARNED, "activation": "gelu", "kv_heads": 2}, "gpt.kv_heads = 2; the nearest is gpt2"),
        ({**LEARNED, "activation": "gelu", "head_width": 8}, "gpt.head_width = 8; the nearest is gpt2"),
        ({**LEARNED, "activation": "gelu", "position": "rotary"}, 'gpt.position = "rotary"; the nearest is gpt2'),
    ],
)
def test_a_configuration_of_no_family_is_not_saved_and_its_settings_are_named(
    fields: dict[str, Any], settings: str, tmp_path: Path
):
    with pytest.raises(ConfigError) as error:
        random_gpt(fields).save_pretrained(tmp_path / "new")
    assert str(error.value) == f"no family of transformers has {settings}"
    assert not (tmp_path / "new").exists()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("fields", [{**LEARNED, "activation": "gelu"}, {"kv_heads": 2}], ids=["gpt2", "llama"])
def test_large_models_are_saved_in_shards_with_an_index(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 10_000)
    ours = random_gpt(fields)
    check_saved(ours, tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    held = {path.name: load_file(path) for path in shards}
    sizes = {name: [4 * tensor.numel() for tensor in tensors.values()] for name, tensors in held.items()}
    assert all(sum(size) <= 10_000 or len(size) == 1 for size in sizes.values())
    assert sum(map(sum, sizes.values())) == 4 * sum(parameter.numel() for parameter in ours.parameters())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {tensor: name for name, tensors in held.items() for tensor in tensors}
    assert index["metadata"]["total_size"] == sum(map(sum, sizes.values()))


def test_a_checkpoint_takes_the_place_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, second = random_gpt({}), random_gpt({"qk_norm": True})
    whole = ["config.json", "model.safetensors", "tokenizer.json"]
    (tmp_path / "tokenizer.json").write_text("{}")
    check_saved(first, tmp_path)
    assert files(tmp_path) == whole
    with monkeypatch.context() as patch:
        patch.setattr(weights, "MAX_SHARD_BYTES", 20_000)
        check_saved(second, tmp_path)
    assert "model.safetensors" not in files(tmp_path)
    check_saved(first, tmp_path)
    assert files(tmp_path) == whole
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = random_gpt({})
    first.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 20_000)

    def second_is_too_much(tensors: dict, path: Path, **kwargs: Any) -> None:
        if "00002" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path, **kwargs)

    monkeypatch.setattr(weights, "save_file", second_is_too_much)
    with pytest.raises(WriteError, match="No space left on device; free some") as error:
        random_gpt({"qk_norm": True}).save_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"cannot write .*file"):
        random_gpt({}).save_pretrained(tmp_path / "file")


def test_half_precision_is_kept(tmp_path: Path):
    ours = random_gpt({"kv_heads": 2}).to(torch.bfloat16)
    ours.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.dtype == torch.bfloat16
    ids = random_ids(50, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs.float()(ids).logits, ours.float()(ids), **CLOSE)


def test_there_is_one_format(tmp_path: Path):
    random_gpt({}).save_pretrained(tmp_path, format="hf")
    with pytest.raises(ConfigError, match="format: 'gguf' is unknown; \"hf\" is the only one"):
        random_gpt({}).save_pretrained(tmp_path, format="gguf")  # pyright: ignore
