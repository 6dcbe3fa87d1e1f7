"""Patterns of names: what is trained, how fast, and the table that tells it."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_config
from torch import nn

from mmgpt.errors import ConfigError
from mmgpt.model import MultimodalGPT
from mmgpt.run_config import OptimizerConfig
from mmgpt.training.module import MultimodalModule
from mmgpt.training.parts import named, parameter_groups, print_parts, train_only


@pytest.fixture
def fresh(model) -> MultimodalGPT:
    """A model of the test's own, that it may change."""
    return MultimodalGPT(model.config)


@pytest.fixture
def crossing() -> MultimodalGPT:
    """One that looks at media through gates."""
    config = tiny_config(300)
    return MultimodalGPT(replace(config, gpt=replace(config.gpt, cross="gated", cross_layers=(1,))))


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def beginning(model: nn.Module, *starts: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(starts)}


def named_groups(model, settings):
    """(learning rate, weight decay, by Muon) -> names."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        (group["lr"], group["weight_decay"], group.get("matrices")): {names[id(p)] for p in group["params"]}
        for group in parameter_groups(model, settings)
    }


def test_only_what_is_named_is_trained(fresh):
    train_only(fresh, ["adapters", "encoders.image.*"])
    assert trained(fresh) == beginning(fresh, "adapters.", "encoders.image.")


def test_the_gates_of_a_frozen_gpt_can_be_trained_alone(crossing):
    train_only(crossing, ["*.gated"])
    assert trained(crossing) == beginning(crossing, "gpt.transformer.blocks.1.gated.")


def test_a_name_is_not_the_start_of_another(fresh):
    fresh.gpt.transformer.blocks.extend([nn.Linear(2, 2) for _ in range(10)])
    train_only(fresh, ["gpt.transformer.blocks.1"])
    assert trained(fresh) == beginning(fresh, "gpt.transformer.blocks.1.")


def test_a_frozen_encoder_stays_frozen():
    config = tiny_config(300)
    assert config.image is not None
    model = MultimodalGPT(replace(config, image=replace(config.image, frozen=True)))
    train_only(model, ["*"])
    assert trained(model) == {name for name, _ in model.named_parameters()} - beginning(model, "encoders.image.")


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("encoder.image", r"'encoder\.image'; did you mean encoders\.image"),
        ("encoder.image.*", r"'encoder\.image\.\*'; did you mean encoders\.image"),
        ("*.gatd", r"'\*\.gatd'; did you mean \*\.gated"),
        ("nonsense", r"'nonsense'; the model has adapters\.audio, .*gpt\.embedding, gpt\.transformer"),
    ],
)
def test_a_pattern_that_names_nothing_is_told_with_the_nearest(crossing, pattern, told):
    with pytest.raises(ConfigError, match=f"^train: nothing is named {told}"):
        train_only(crossing, [pattern])


def test_training_nothing_is_an_error(fresh):
    train_only(fresh, [])
    with pytest.raises(ConfigError, match="nothing is left to train"):
        parameter_groups(fresh, OptimizerConfig())


def test_weight_decay_is_on_matrices_alone(fresh):
    groups = named_groups(fresh, OptimizerConfig(learning_rate=0.1, weight_decay=0.3))
    decayed, kept = groups[0.1, 0.3, None], groups[0.1, 0.0, None]
    assert len(groups) == 2
    assert decayed | kept == {name for name, _ in fresh.named_parameters()}
    assert not decayed & kept
    assert "gpt.embedding.weight" in kept
    assert "gpt.transformer.blocks.0.attention.qkv.weight" in decayed
    assert {name for name, p in fresh.named_parameters() if p.ndim < 2} <= kept


def test_muon_steps_the_matrices_and_adamw_the_rest(fresh):
    groups = named_groups(fresh, OptimizerConfig(learning_rate=0.1, muon=0.5, weight_decay=0.3))
    assert groups.keys() == {(0.5, 0.3, True), (0.1, 0.0, False)}
    assert "gpt.embedding.weight" in groups[0.1, 0.0, False]
    assert "encoders.audio.net.blocks.0.depthwise.weight" in groups[0.1, 0.0, False]


def test_modules_may_learn_at_a_scaled_rate_and_the_last_pattern_counts(fresh):
    settings = OptimizerConfig(learning_rate=0.1, scales={"encoders": 2.0, "*.image": 3.0})
    rates: dict[float, set[str]] = {}
    for (rate, _, _), names in named_groups(fresh, settings).items():
        rates.setdefault(round(rate, 6), set()).update(names)
    images = beginning(fresh, "encoders.image.", "adapters.image.")
    assert rates[0.3] == images
    assert rates[0.2] == beginning(fresh, "encoders.") - images
    with pytest.raises(ConfigError, match=r"optimizer\.scales: nothing is named 'encoder'; did you mean encoders"):
        parameter_groups(fresh, OptimizerConfig(scales={"encoder": 2.0}))


def test_learned_queries_are_not_decayed():
    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.queries = nn.Parameter(torch.zeros(4, 8))
            self.project = nn.Linear(8, 8)

    groups = named_groups(Pool(), OptimizerConfig(learning_rate=0.1, weight_decay=0.3))
    assert groups == {(0.1, 0.3, None): {"project.weight"}, (0.1, 0.0, None): {"queries", "project.bias"}}


def test_frozen_parameters_are_in_no_group(fresh):
    module = MultimodalModule(fresh, train=["encoders", "adapters"])
    own = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert own == {id(p) for name, p in fresh.named_parameters() if not name.startswith("gpt")}


def test_the_table_tells_of_each_part_how_it_is_stepped(crossing, capsys):
    train_only(crossing, ["*.gated", "adapters"])
    print_parts(crossing, OptimizerConfig(learning_rate=0.25, muon=0.5, weight_decay=0.125, scales={"adapters": 0.5}))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    sizes = {name: parameter.numel() for name, parameter in crossing.named_parameters()}
    gated = named(crossing, "*.gated", "")
    matrices = {name for name in gated if crossing.get_parameter(name).ndim == 2}
    blocks = beginning(crossing, "gpt.transformer.blocks.") - gated

    def total(names: set[str]) -> str:
        return f"{sum(sizes[name] for name in names):,}"

    assert ["gpt.embedding", total({"gpt.embedding.weight"}), "frozen"] in rows
    assert ["gpt.blocks", total(blocks), "frozen"] in rows
    assert ["encoders.audio", total(beginning(crossing, "encoders.audio.")), "frozen"] in rows
    start = next(i for i, row in enumerate(rows) if row[:2] == ["gpt.blocks,", "cross"])
    own = {tuple(row[-4:]) for row in rows[start : start + 2]}
    assert own == {(total(matrices), "0.5", "0.125", "Muon"), (total(gated - matrices), "0.25", "0", "AdamW")}
    adapter = next(i for i, row in enumerate(rows) if row[0] == "adapters.image")
    both = rows[adapter : adapter + 2]
    assert {tuple(row[-3:]) for row in both} == {
        ("0.25", "0.125", "Muon"),
        ("0.125", "0", "AdamW"),
    }
