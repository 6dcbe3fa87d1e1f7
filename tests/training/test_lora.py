"""Thin matrices that are trained beside frozen layers, and saved in their weights."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import some_audio, some_image, some_video, tiny_config
from walls import train_until, wall_config, write_walls

from mmgpt import checkpoint
from mmgpt.batch import Batch, collate
from mmgpt.config import GPTConfig, ImageEncoderConfig, ModelConfig
from mmgpt.content import Message
from mmgpt.errors import ConfigError
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor
from mmgpt.run_config import LoraConfig, TrainConfig
from mmgpt.training.lora import add_lora, merged
from mmgpt.training.parts import train_only
from mmgpt.training.run import make_model, train
from mmgpt.training.state import states

SMALL = LoraConfig(rank=3, alpha=7)


@pytest.fixture
def fresh(model) -> MultimodalGPT:
    """A model of the test's own, that it may change."""
    copy = MultimodalGPT(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


@pytest.fixture
def batch(processor) -> Batch:
    shown = [some_image(1), some_audio(2), some_video(3)]
    prompts = [(Message.of("user", one, "What?"), Message.of("assistant", "A red circle.")) for one in shown]
    return collate([processor.encode(prompt) for prompt in prompts])


def moved(model: MultimodalGPT, config: LoraConfig = SMALL, train: tuple[str, ...] = ()) -> MultimodalGPT:
    """With adapters that are no longer as they start, where they change nothing."""
    train_only(model, train)
    add_lora(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def with_gradients(model: MultimodalGPT, batch: Batch) -> set[str]:
    model.loss(batch).sum.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def test_adapters_change_nothing_at_the_start(fresh, batch):
    with torch.no_grad():
        before = fresh(batch)
        add_lora(fresh, SMALL)
        # Not to the bit: where a product's operands lie in memory may change the order of its sums.
        torch.testing.assert_close(fresh(batch), before, rtol=1e-5, atol=1e-5)


def test_only_adapters_and_what_is_trained_beside_them_get_gradients(fresh, batch):
    learning = with_gradients(moved(fresh, train=("adapters.image",)), batch)
    layers = [f"blocks.{i}.{name}" for i in (0, 1) for name in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")]
    thin = {f"gpt.transformer.{layer}.lora_{side}.default.weight" for layer in layers for side in "AB"}
    assert learning == thin | {name for name, _ in fresh.named_parameters() if name.startswith("adapters.image.")}
    assert fresh.get_parameter("gpt.transformer.blocks.0.mlp.up.lora_A.default.weight").shape == (3, 32)


def test_layers_with_adapters_are_frozen_though_all_is_trained(fresh, batch):
    learning = with_gradients(moved(fresh, train=("*",)), batch)
    assert not any("base_layer" in name for name in learning)
    assert {"gpt.embedding.weight", "gpt.transformer.blocks.0.mlp_norm.weight"} <= learning


def test_layers_of_encoders_and_the_head_can_be_adapted(tokenizer):
    gpt = GPTConfig(len(tokenizer), width=32, layers=1, heads=2, tied_head=False)
    model = MultimodalGPT(ModelConfig(gpt, ImageEncoderConfig("test_vit", size=(32, 32), args={"depth": 1})))
    moved(model, LoraConfig(rank=2, targets=["encoders.image", "gpt.lm_head"]))
    conversation = (Message.of("user", some_image(1)), Message.of("assistant", "A red circle."))
    batch = collate([Processor(model.config, tokenizer).encode(conversation)])
    learning = with_gradients(model, batch)
    assert all(".lora_" in name for name in learning)
    assert {"encoders.image", "gpt.lm_head"} == {".".join(name.split(".")[:2]) for name in learning}
    with torch.no_grad():
        torch.testing.assert_close(merged(model)(batch), model(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cross", ["inside", "gated"])
def test_cross_attention_is_adapted_only_if_it_is_named(cross):
    config = tiny_config(300)
    own = MultimodalGPT(replace(config, gpt=replace(config.gpt, cross=cross)))
    add_lora(own, SMALL)
    adapted = {name.partition(".lora_A")[0] for name, _ in own.named_parameters() if ".lora_A" in name}
    assert adapted == {
        f"gpt.transformer.blocks.{i}.{layer}"
        for i in (0, 1)
        for layer in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    }


def test_merged_it_says_what_it_said_with_plain_layers_and_itself_stays_as_it_was(fresh, batch):
    names = [name for name, _ in fresh.named_parameters()]
    moved(fresh)
    with torch.no_grad():
        fresh.eval()
        before = fresh(batch)
        plain = merged(fresh)
        assert [name for name, _ in plain.named_parameters()] == names
        torch.testing.assert_close(plain(batch), before, rtol=1e-5, atol=1e-5)
        assert torch.equal(fresh(batch), before)
    assert merged(plain) is plain
    assert plain.gpt.embedding.weight is fresh.gpt.embedding.weight  # no second copy of what has no adapter


def test_the_change_is_alpha_by_rank_times_the_product(fresh):
    before = fresh.gpt.transformer.blocks[0].mlp.up.weight.detach().clone()  # type: ignore[union-attr]
    moved(fresh)
    down, up = (fresh.get_parameter(f"gpt.transformer.blocks.0.mlp.up.lora_{side}.default.weight") for side in "AB")
    now = merged(fresh).gpt.transformer.blocks[0].mlp.up.weight  # type: ignore[union-attr]
    torch.testing.assert_close(now, before + 7 / 3 * up @ down)


def test_activations_computed_again_give_the_same_gradients_with_dropout(fresh, batch):
    moved(fresh, replace(SMALL, dropout=0.5)).train()
    gradients = []
    for again in (False, True):
        if again:
            fresh.checkpoint_activations()
        fresh.zero_grad()
        torch.manual_seed(0)
        fresh.loss(batch).sum.backward()
        gradients.append([p.grad.clone() for p in fresh.parameters() if p.grad is not None])
    assert len(gradients[0]) == 16
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (LoraConfig(rank=0), "lora.rank: must be a whole number from 1 on, not 0"),
        (LoraConfig(targets=["gtp"]), "lora.targets: nothing is named 'gtp'; did you mean gpt?"),
        (LoraConfig(targets=["gpt.embedding"]), "lora.targets: 'gpt.embedding' names no linear layer"),
    ],
)
def test_settings_that_do_not_fit_are_told(fresh, config, told):
    with pytest.raises(ConfigError, match=told):
        add_lora(fresh, config)


def test_without_peft_the_extra_is_named(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="lora: needs peft; install it with `uv sync --extra lora`"):
        add_lora(fresh, SMALL)


def lora_walls(folder: Path, out: Path, **changes) -> TrainConfig:
    return wall_config(folder, out, train=["adapters"], lora=LoraConfig(rank=4, dropout=0.2), epochs=3, **changes)


def test_a_run_leaves_ordinary_checkpoints_and_states_with_the_adapters(tmp_path, monkeypatch):
    config = lora_walls(write_walls(tmp_path / "data", dev=2), tmp_path / "run", save_every=2)
    kept = []
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: kept.append(path))  # of a finished run the state goes
    train(config)
    torch.manual_seed(config.seed)  # as train does before it builds the model
    start = make_model(config, checkpoint.load_tokenizer(tmp_path / "run" / "last")).state_dict()
    state = load_file(states(tmp_path / "run")[-1] / "model.0.safetensors")
    assert any("lora_A" in name for name in state)
    monkeypatch.setitem(sys.modules, "peft", None)
    for name in ("best", "last"):
        model, _ = checkpoint.load(tmp_path / "run" / name)
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
        assert changed == {
            *(name for name in start if name.startswith("adapters.")),
            *(f"gpt.transformer.blocks.0.{name}.weight" for name in ("attention.qkv", "attention.out")),
            *(f"gpt.transformer.blocks.0.{name}.weight" for name in ("mlp.up", "mlp.down")),
        }


def test_a_run_with_adapters_that_stopped_and_goes_on_is_the_one_that_never_stopped(tmp_path):
    folder = write_walls(tmp_path / "data", dev=2)
    train(lora_walls(folder, tmp_path / "whole"))
    stopped = lora_walls(folder, tmp_path / "stopped", save_every=2)
    train_until(stopped, losses=6)
    assert states(tmp_path / "stopped")
    train(replace(stopped, resume=True))
    for name in ("best", "last"):
        weights = [
            (checkpoint.resolve(tmp_path / run / name) / "model.safetensors").read_bytes()
            for run in ("whole", "stopped")
        ]
        assert weights[0] == weights[1]
    told = [
        json.loads((checkpoint.resolve(tmp_path / run / "last") / "training.json").read_text())
        for run in ("whole", "stopped")
    ]
    assert told[0] == told[1]
