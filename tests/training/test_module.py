import pytest
import torch
from tiny import some_image
from torch import nn

from mmgpt.config import OptimizerConfig
from mmgpt.content import Message
from mmgpt.data.dataset import Broken, LoadedBatch, load_batch
from mmgpt.errors import ConfigError, DataError
from mmgpt.evaluation.metrics import cider, exact_match
from mmgpt.model import MultimodalGPT
from mmgpt.training.module import (
    CaptioningModule,
    MultimodalModule,
    QAModule,
    freeze_parameters,
    learning_rate,
    parameter_groups,
)


@pytest.fixture
def fresh(model) -> MultimodalGPT:
    """A model of the test's own, that it may change."""
    return MultimodalGPT(model.config)


def test_the_learning_rate_rises_to_its_peak_then_falls_along_a_cosine_to_its_end():
    settings = OptimizerConfig(warmup=10, final=0.1)
    rates = [learning_rate(step, 110, settings) for step in range(111)]
    assert rates[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[60] == pytest.approx((1 + 0.1) / 2)  # half way down
    assert rates[110] == pytest.approx(0.1)
    assert learning_rate(500, 110, settings) == pytest.approx(0.1)


def test_a_warm_up_below_one_is_a_share_of_all_steps():
    share, steps = OptimizerConfig(warmup=0.25), OptimizerConfig(warmup=25)
    assert [learning_rate(i, 100, share) for i in range(100)] == [learning_rate(i, 100, steps) for i in range(100)]


def test_without_a_warm_up_the_first_step_is_at_the_peak():
    assert learning_rate(0, 100, OptimizerConfig(warmup=0)) == 1.0


def named_groups(model, settings):
    """(learning rate, weight decay, by Muon) -> names."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        (group["lr"], group["weight_decay"], group.get("matrices")): {names[id(p)] for p in group["params"]}
        for group in parameter_groups(model, settings)
    }


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


def test_modules_may_learn_at_a_scaled_rate(fresh):
    groups = named_groups(fresh, OptimizerConfig(learning_rate=0.1, scales={"encoders": 2.0}))
    assert {name.split(".")[0] for name in groups[0.2, 0.05, None]} == {"encoders"}
    assert not any(name.startswith("encoders") for name in groups[0.1, 0.05, None] | groups[0.1, 0.0, None])
    with pytest.raises(ConfigError, match=r"optimizer\.scales: no parameter begins with 'encoder\.'; the model has"):
        parameter_groups(fresh, OptimizerConfig(scales={"encoder.": 2.0}))


def test_learned_queries_are_not_decayed():
    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.queries = nn.Parameter(torch.zeros(4, 8))
            self.project = nn.Linear(8, 8)

    groups = named_groups(Pool(), OptimizerConfig(learning_rate=0.1, weight_decay=0.3))
    assert groups == {(0.1, 0.3, None): {"project.weight"}, (0.1, 0.0, None): {"queries", "project.bias"}}


def test_frozen_parameters_are_in_no_group(fresh):
    freeze_parameters(fresh, ["gpt"])
    groups = parameter_groups(fresh, OptimizerConfig())
    own = {id(p) for group in groups for p in group["params"]}
    assert own == {id(p) for name, p in fresh.named_parameters() if not name.startswith("gpt")}


def test_a_prefix_that_names_nothing_is_told_with_what_there_is(fresh):
    with pytest.raises(ConfigError, match=r"'encoder\.image'; the model has .*encoders\.image"):
        freeze_parameters(fresh, ["encoder.image"])


def test_freezing_everything_is_an_error(fresh):
    with pytest.raises(DataError, match="nothing is left to train"):
        freeze_parameters(fresh, ["gpt", "encoders", "adapters"])


def test_the_presets_differ_in_what_answers_are_scored_with(fresh):
    assert CaptioningModule(fresh).metric is cider
    assert QAModule(fresh).metric is exact_match
    assert MultimodalModule(fresh).metric(["a"], [["a"]]) == 1.0


def loaded(processor, answers: list[str]) -> LoadedBatch:
    prompt = processor.encode_prompt([Message.of("user", some_image(0), "What?")])
    return load_batch([[processor.encode_answer(prompt, answer)] for answer in answers])


def test_the_training_loss_is_the_mean_over_supervised_tokens(fresh, processor):
    module = MultimodalModule(fresh)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]  # there is no Trainer
    both = module.training_step(loaded(processor, ["a", "a red circle"]), 0)
    each = [fresh.loss(loaded(processor, [answer]).batch) for answer in ("a", "a red circle")]
    assert both is not None
    expected = sum(loss.sum.item() for loss in each) / sum(loss.count for loss in each)
    assert both.item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_broken_samples_alone_is_skipped_and_each_reason_kept_once(fresh):
    module = MultimodalModule(fresh)
    batch = load_batch([[Broken("a.jpg: no")], [Broken("b.jpg: no")]])
    for _ in range(2):
        assert module.training_step(batch, 0) is None
        module.validation_step(batch, 0)
    assert module.broken == ["a.jpg: no", "b.jpg: no"]


def test_the_optimizer_has_the_settings_of_the_configuration(fresh):
    settings = OptimizerConfig(learning_rate=0.02, betas=(0.8, 0.9), weight_decay=0.3, warmup=4)
    module = MultimodalModule(fresh, settings)
    module.trainer = type("Trainer", (), {"estimated_stepping_batches": 40})()  # type: ignore[assignment]
    made = module.configure_optimizers()
    optimizer = made["optimizer"]
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.3]
    assert all(group["betas"] == (0.8, 0.9) and group["initial_lr"] == 0.02 for group in optimizer.param_groups)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02 / 5)  # the first of four steps of warm-up
    assert made["lr_scheduler"]["interval"] == "step"
