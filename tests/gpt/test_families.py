import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import CLOSE, cached, check_all_numbers, check_saved, random_ids, reference
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from mmgpt.config import GPTConfig, RotaryScaling
from mmgpt.errors import CheckpointError
from mmgpt.gpt import GPT
from mmgpt.gpt.families import FAMILIES
from mmgpt.gpt.transformer import frequencies

GPT2_CONFIGS = st.builds(
    lambda head_width, n_head, **fields: GPT2Config(n_embd=head_width * n_head, n_head=n_head, **fields),
    head_width=st.sampled_from([4, 7, 16]),
    n_head=st.integers(1, 5),
    n_layer=st.integers(1, 4),
    n_inner=st.sampled_from([None, 20]),
    vocab_size=st.integers(3, 120),
    n_positions=st.integers(40, 50),
    activation_function=st.sampled_from(["gelu_new", "gelu", "gelu_pytorch_tanh"]),
    layer_norm_epsilon=st.sampled_from([1e-6, 1e-5, 1e-2]),
    initializer_range=st.sampled_from([0.02, 0.2]),
    tie_word_embeddings=st.booleans(),
    bos_token_id=st.just(0),
    eos_token_id=st.just(0),
)

# Contexts "trained on at first" so short that some frequencies are stretched, some are not and some are blended.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 3.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}
ROPES = st.sampled_from(
    [
        {"rope_type": "default", "rope_theta": 10_000.0},
        {"rope_type": "linear", "rope_theta": 300.0, "factor": 2.5},
        {**LLAMA3, "rope_theta": 300.0},
        {**LLAMA3, "rope_theta": 10_000.0, "low_freq_factor": 0.5, "high_freq_factor": 9.0},
    ]
)


def configs(kind: type[PretrainedConfig], **fields: st.SearchStrategy) -> st.SearchStrategy[PretrainedConfig]:
    """Configurations of Llama's relatives; `heads` is groups x keys, and heads need not fill the width."""

    def build(groups: int, kv_heads: int, width: int, **fields) -> PretrainedConfig:
        heads = groups * kv_heads
        return kind(
            hidden_size=width * heads,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=96,
            initializer_range=0.2,
            **fields,
        )

    return st.builds(
        build,
        groups=st.integers(1, 3),
        kv_heads=st.integers(1, 3),
        width=st.sampled_from([4, 8]),
        head_dim=st.sampled_from([4, 6, 12]),
        num_hidden_layers=st.integers(1, 4),
        intermediate_size=st.sampled_from([20, 33]),
        vocab_size=st.integers(3, 120),
        rms_norm_eps=st.sampled_from([1e-6, 1e-2]),
        rope_parameters=ROPES.map(dict),  # a copy: transformers adds to it
        tie_word_embeddings=st.booleans(),
        **fields,
    )


QWEN_WINDOWS: dict[str, st.SearchStrategy] = {
    "use_sliding_window": st.booleans(),
    "sliding_window": st.integers(1, 20),
    "max_window_layers": st.integers(0, 3),
}
CONFIGS = {
    "gpt2": GPT2_CONFIGS,
    "llama": configs(LlamaConfig, attention_bias=st.booleans(), mlp_bias=st.booleans()),
    "mistral": configs(MistralConfig, sliding_window=st.none() | st.integers(1, 20)),
    "qwen2": configs(Qwen2Config, **QWEN_WINDOWS),
    "qwen3": configs(Qwen3Config, attention_bias=st.booleans(), **QWEN_WINDOWS),
}


@pytest.mark.parametrize("family", FAMILIES)
@settings(derandomize=True, deadline=None, max_examples=8)
@given(data=st.data())
def test_checkpoints_of_any_configuration_give_the_numbers_of_transformers_and_go_back_to_it(
    family: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    folder = tmp_path_factory.mktemp(family)
    theirs = reference(data.draw(CONFIGS[family]))
    theirs.save_pretrained(folder / "theirs")
    ours = GPT.from_pretrained(folder / "theirs")
    check_all_numbers(ours, theirs)
    back = check_saved(ours, folder / "ours")
    if type(back) is type(theirs):  # a Mistral without a window goes back as a Llama, and the like
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(back.state_dict()[name], tensor), name


SMALL_QWEN = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
SMALL_QWEN |= {"num_hidden_layers": 3, "intermediate_size": 20, "vocab_size": 50, "initializer_range": 0.2}


def test_windows_in_any_layers_are_read(tmp_path: Path):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    theirs = reference(Qwen3Config(**SMALL_QWEN, use_sliding_window=True, sliding_window=5, layer_types=kinds))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GPT.from_pretrained(tmp_path / "theirs")
    assert (ours.config.window, ours.config.window_layers) == (5, (0, 2))
    check_all_numbers(ours, theirs)
    assert check_saved(ours, tmp_path / "ours").config.layer_types == kinds


def test_windows_of_older_files_begin_at_max_window_layers(tmp_path: Path):
    theirs = reference(Qwen2Config(**SMALL_QWEN, use_sliding_window=True, sliding_window=5, max_window_layers=1))
    theirs.save_pretrained(tmp_path)
    for _ in range(2):
        raw = json.loads((tmp_path / "config.json").read_text())
        del raw["layer_types"]
        (tmp_path / "config.json").write_text(json.dumps(raw))
        ours = GPT.from_pretrained(tmp_path)
        assert (ours.config.window, ours.config.window_layers) == (5, (1, 2))
        check_all_numbers(ours, theirs)
        ours.save_pretrained(tmp_path)  # for older readers too


LONG = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 2}
LONG |= {"intermediate_size": 12, "vocab_size": 20, "max_position_embeddings": 4096, "initializer_range": 0.3}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**LONG, rope_parameters={**LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": 512}),
        LlamaConfig(**LONG, rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0}),
        MistralConfig(**LONG, sliding_window=100),
        Qwen3Config(**LONG, use_sliding_window=True, sliding_window=100, max_window_layers=1),
    ],
    ids=["llama3", "linear", "mistral", "qwen3"],
)
def test_late_positions_of_long_texts_are_rounded_as_theirs(config: PretrainedConfig, tmp_path: Path):
    theirs = reference(config)
    theirs.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    ids = random_ids(20, 3000)
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
        torch.testing.assert_close(ours(ids[None])[0], expected, **CLOSE)
        torch.testing.assert_close(cached(ours, ids, [2900, 1, 99]), expected, **CLOSE)


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize(
    ("rope", "scaling"),
    [
        ({"rope_type": "default"}, None),
        ({"rope_type": "linear", "factor": 3.0}, RotaryScaling("linear", 3.0)),
        ({**LLAMA3, "original_max_position_embeddings": 8192}, RotaryScaling("llama3", 3.0)),
        (LLAMA3, RotaryScaling("llama3", 3.0, original_context=48)),
    ],
)
def test_rotary_frequencies_are_those_of_transformers_to_the_last_bit(
    rope: dict[str, Any], scaling: RotaryScaling | None, head_dim: int
):
    config = LlamaConfig(**{**LONG, "head_dim": head_dim}, rope_parameters={**rope, "rope_theta": 500_000.0})
    theirs = AutoModelForCausalLM.from_config(config).model.rotary_emb.inv_freq
    assert torch.equal(frequencies(head_dim, 500_000.0, scaling), theirs)


# config.json of public checkpoints, as they were uploaded, with their numbers of parameters.
PUBLIC: dict[str, tuple[str, int, GPTConfig]] = {
    "Llama-3.2-1B": (
        """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
        "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256}""",
        1_235_814_400,
        GPTConfig(
            128256, 2048, 16, 32, 8, 64, 8192, 131072,
            rotary_base=500_000.0, rotary_scaling=RotaryScaling("llama3", 32.0, 1.0, 4.0, 8192),
        ),
    ),
    "SmolLM2-135M": (
        """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576,
        "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": true,
        "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 9,
        "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": true, "vocab_size": 49152}""",
        134_515_008,
        GPTConfig(49152, 576, 30, 9, 3, 64, 1536, 8192, rotary_base=100_000.0),
    ),
    "TinyLlama-1.1B": (
        """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5632,
        "max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 22,
        "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.35.0", "use_cache": true, "vocab_size": 32000}""",
        1_100_048_384,
        GPTConfig(32000, 2048, 22, 32, 4, 64, 5632, 2048, tied_head=False),
    ),
    "Mistral-7B-v0.1": (
        """{"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000}""",
        7_241_732_096,
        GPTConfig(32000, 4096, 32, 32, 8, 128, 14336, 32768, window=4096, tied_head=False),
    ),
    "Qwen2.5-0.5B": (
        """{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false, "use_sliding_window": false,
        "vocab_size": 151936}""",
        494_032_768,
        GPTConfig(151936, 896, 24, 14, 2, 64, 4864, 32768, rotary_base=1e6, norm_eps=1e-6, qkv_bias=True),
    ),
    "Qwen3-0.6B": (
        """{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}""",
        596_049_920,
        GPTConfig(151936, 1024, 28, 16, 8, 128, 3072, 40960, rotary_base=1e6, norm_eps=1e-6, qk_norm=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_public_configurations_are_read_as_what_they_are(name: str):
    text, parameters, expected = PUBLIC[name]
    raw = json.loads(text)
    config = FAMILIES[raw["model_type"]].read(raw).resolved()
    windows = {} if config.window else {"window_layers": config.window_layers}
    assert config == replace(expected, **windows)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in GPT(config).parameters()) == parameters


@pytest.mark.parametrize("name", PUBLIC)
def test_files_as_the_public_ones_but_small_give_the_numbers_of_transformers(name: str, tmp_path: Path):
    raw = json.loads(PUBLIC[name][0])
    raw |= {"vocab_size": 90, "hidden_size": 4 * raw["num_attention_heads"], "num_hidden_layers": 3}
    raw |= {"intermediate_size": 40, "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2}
    if "head_dim" in raw:
        raw["head_dim"] //= 8
    if raw.get("rope_scaling"):
        raw["rope_scaling"]["original_max_position_embeddings"] = 48
    if raw["model_type"] == "mistral":
        raw["sliding_window"] = 7
    (tmp_path / "config.json").write_text(json.dumps(raw))
    made = reference(AutoConfig.from_pretrained(tmp_path)).to(torch.bfloat16)  # as the public files hold it
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    check_all_numbers(GPT.from_pretrained(tmp_path), theirs)


def small_llama(**changes: Any) -> dict[str, Any]:
    raw = {"model_type": "llama", "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24}
    raw |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    raw |= {"tie_word_embeddings": True}
    return {name: value for name, value in {**raw, **changes}.items() if value is not ...}


@pytest.mark.parametrize(
    ("changes", "base", "scaling"),
    [
        ({}, 10_000.0, None),
        ({"rope_theta": 500}, 500.0, None),
        ({"rope_theta": 500, "rope_scaling": {"type": "linear", "factor": 4}}, 500.0, RotaryScaling("linear", 4.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}, 700.0, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}, "rope_theta": 9}, 700.0, None),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 7, "factor": 2}}, 7.0, RotaryScaling("linear", 2.0)),
        ({"rope_parameters": LLAMA3, "rope_theta": 9}, 9.0, RotaryScaling("llama3", 3.0, 1.0, 4.0, 48)),
    ],
)
def test_rotary_settings_of_both_styles_are_read(changes: dict, base: float, scaling: RotaryScaling | None):
    raw = small_llama(**changes)
    config = FAMILIES["llama"].read(raw)
    assert (config.rotary_base, config.rotary_scaling) == (base, scaling)
    theirs = LlamaConfig(**json.loads(json.dumps(raw))).rope_parameters  # what transformers makes of the same file
    assert theirs["rope_theta"] == base
    assert theirs["rope_type"] == ("default" if scaling is None else scaling.kind)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; supported: gpt2, llama, mistral, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is none of silu"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 'rope type "dynamic" is not supported; supported: def'),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, 'rope type "yarn" is not supported'),
        ({"rope_scaling": {"rope_type": "longrope"}}, 'rope type "longrope" is not supported'),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high above low"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor and low must be above 0"),
        ({"rope_scaling": "linear"}, 'rope_parameters = "linear" are not supported'),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "rope_parameters = .* are not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5 is not supported"),
        ({"rope_interleaved": True}, "rope_interleaved = True is not supported"),
        ({"quantization_config": {"bits": 4, "modules": ["a"] * 99}}, "quantization_config = .* is not supported"),
        ({"num_key_value_heads": 3}, "3 does not divide the 2 heads"),
        ({"head_dim": 7}, "must be even"),
        ({"rms_norm_eps": 10**400}, "too large"),
        ({"intermediate_size": ...}, "intermediate_size is missing"),
        ({"num_hidden_layers": 10**12}, "missing tensors: layers.2.input_layernorm.weight"),
        ({"num_key_value_heads": 1}, r"self_attn.k_proj.weight: shape \(16, 16\), but config.json says \(8, 16\)"),
        ({"tie_word_embeddings": False}, "missing tensors: lm_head.weight"),
        ({"attention_bias": True}, "missing tensors: layers.0.self_attn.q_proj.bias"),
        ({"model_type": "mistral", "num_key_value_heads": 2, "layer_types": ["full_attention"] * 2}, "layer_types = "),
        (
            {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 0},
            "gpt.window: must be",
        ),
    ],
)
def test_llama_checkpoints_that_cannot_be_used_are_refused_in_one_line(tmp_path: Path, changes: dict, message: str):
    reference(LlamaConfig(**small_llama())).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(small_llama(**changes)))
    with pytest.raises(CheckpointError, match=message) as error:
        GPT.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(tmp_path)) + 250


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types: chunked_attention is not supported"),
        ({"layer_types": ["sliding_attention"] * 2}, "sliding_attention is not supported with sliding_window = None"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types: 3 kinds for 2 layers"),
        ({"use_sliding_window": True, "max_window_layers": -1}, "there is no layer -1"),
        ({"use_sliding_window": True, "max_window_layers": 0, "num_hidden_layers": 10**12}, "missing tensors"),
    ],
)
def test_windows_that_cannot_be_used_are_refused_in_one_line(tmp_path: Path, changes: dict, message: str):
    raw = small_llama(model_type="qwen2", num_key_value_heads=2)
    reference(Qwen2Config(**raw)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**raw, **changes}))
    with pytest.raises(CheckpointError, match=message) as error:
        GPT.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_frequencies_that_old_files_hold_are_passed_over(tmp_path: Path):
    path, ids = tmp_path / "model.safetensors", torch.arange(12)[None]
    reference(LlamaConfig(**small_llama())).save_pretrained(tmp_path)
    expected = GPT.from_pretrained(tmp_path)(ids)
    save_file({**load_file(path), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, path)
    assert torch.equal(GPT.from_pretrained(tmp_path)(ids), expected)
