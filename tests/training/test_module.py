from dataclasses import replace

import lightning as L
import pytest
import torch
from tiny import some_image
from torch.nn import functional as F

from mmgpt.config import LossPer
from mmgpt.content import Image, Message
from mmgpt.data.loader import Loader
from mmgpt.data.sample import Sample
from mmgpt.errors import TrainingError
from mmgpt.evaluation.metrics.captions import cider
from mmgpt.evaluation.metrics.text import exact_match
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor
from mmgpt.run_config import OptimizerConfig
from mmgpt.training.module import (
    CaptioningModule,
    MultimodalModule,
    QAModule,
    learning_rate,
)


@pytest.fixture
def fresh(model) -> MultimodalGPT:
    """A model of the test's own, that it may change."""
    return MultimodalGPT(model.config)


def rates(settings: OptimizerConfig, steps: int) -> list[float]:
    return [learning_rate(step, step / steps, settings) for step in range(1, steps + 1)]


def test_the_learning_rate_rises_to_its_peak_then_falls_along_a_cosine_to_its_end():
    all_of_them = rates(OptimizerConfig(warmup=10, final=0.1), 110)
    assert all_of_them[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert max(all_of_them) == all_of_them[9] == 1.0
    assert all_of_them[9:] == sorted(all_of_them[9:], reverse=True)
    assert all_of_them[59] == pytest.approx((1 + 0.1) / 2)  # half way down
    assert all_of_them[-1] == pytest.approx(0.1)


def test_a_warm_up_below_one_is_a_share_of_the_run():
    assert rates(OptimizerConfig(warmup=0.25), 100) == pytest.approx(rates(OptimizerConfig(warmup=25), 100))


def test_without_a_warm_up_it_begins_next_to_the_peak():
    assert rates(OptimizerConfig(warmup=0), 1000)[0] > 0.999


def test_the_presets_differ_in_what_answers_are_scored_with(fresh):
    assert CaptioningModule(fresh).metric is cider
    assert QAModule(fresh).metric is exact_match
    assert MultimodalModule(fresh).metric(["a"], [["a"]]).value == 1.0


def sample(number: int, *answers: str) -> Sample:
    return Sample((Message.of("user", some_image(number), "What?"),), answers, "ask", f"x:{number}")


SAMPLES = [sample(i, *("a red circle " * (1 + i % 3), "blue")[: 1 + i % 2]) for i in range(8)]


def trained(
    model: MultimodalGPT,
    processor: Processor,
    epochs=2,
    samples=SAMPLES,
    loss_per: LossPer = "token",
    train=("*",),
    **loading,
) -> MultimodalModule:
    """A fresh module after some epochs of plain gradient descent, so that weights tell gradients."""
    settings = OptimizerConfig(clip=0, warmup=0)
    module = MultimodalModule(MultimodalGPT(model.config), settings, train, seed=3, loss_per=loss_per)
    module.model.load_state_dict(model.state_dict())
    module.configure_optimizers = lambda: torch.optim.SGD(  # type: ignore[method-assign]
        [{"params": list(module.model.parameters()), "initial_lr": 0.1}], lr=0.1
    )
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=epochs,
    )  # fmt: skip
    trainer.fit(module, Loader(samples, processor, shuffle=True, **loading))
    return module


def distance(one: MultimodalModule, other: MultimodalModule) -> float:
    theirs = dict(other.model.named_parameters())
    return max(float((p - theirs[name]).abs().max().detach()) for name, p in one.model.named_parameters())


@pytest.mark.parametrize("per", ["token", "document"])
def test_accumulated_batches_teach_what_one_large_batch_teaches(fresh, processor, per):
    def weights(**loading) -> MultimodalModule:
        return trained(fresh, processor, loss_per=per, **loading)

    large = weights(batch_size=8)
    assert distance(weights(batch_size=2, accumulate=4), large) < 1e-6
    assert distance(weights(batch_size=3, accumulate=3), large) < 1e-6  # the last has two alone
    assert distance(weights(batch_tokens=100, accumulate=20), large) < 1e-6
    assert distance(weights(batch_size=4), large) > 1e-4  # two steps instead of one


def test_the_loss_is_the_mean_over_the_supervised_tokens_of_the_step(fresh, processor):
    module = trained(fresh, processor, epochs=1, batch_size=3, accumulate=3)
    losses = [fresh.loss(batch) for step in Loader(SAMPLES, processor, batch_size=1) for batch in step.batches]
    expected = sum(loss.sum.item() for loss in losses) / sum(loss.count for loss in losses)
    assert float(module.trainer.callback_metrics["loss"]) == pytest.approx(expected, rel=1e-5)


def test_the_loss_by_document_is_the_mean_over_the_documents_of_the_step(fresh, processor):
    module = trained(fresh, processor, epochs=1, loss_per="document", batch_size=3, accumulate=3)
    samples = [replace(one, answers=(answer,)) for one in SAMPLES for answer in one.answers]
    alone = [fresh.loss(batch) for step in Loader(samples, processor, batch_size=1) for batch in step.batches]
    expected = sum(loss.mean.item() for loss in alone) / len(alone)
    assert len(alone) == 12
    assert float(module.trainer.callback_metrics["loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("per", ["token", "document"])
def test_targets_are_smoothed_in_training_and_not_in_validation(fresh, processor, per):
    module = MultimodalModule(fresh, OptimizerConfig(learning_rate=1e-30), loss_per=per, label_smoothing=0.3)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=1, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = Loader(SAMPLES, processor, batch_size=8)
    trainer.fit(module, loader, loader)
    [batch] = next(iter(loader)).batches
    logits, answers = fresh(batch)[batch.targets - 1], batch.ids[batch.targets]
    smoothed = F.cross_entropy(logits, answers, reduction="none", label_smoothing=0.3)
    if per == "document":
        numbers = batch.numbers[batch.targets]
        smoothed = torch.stack([smoothed[numbers == number].mean() for number in range(len(batch.lengths))])
    assert float(trainer.callback_metrics["loss"]) == pytest.approx(smoothed.mean().item(), rel=1e-5)
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(
        F.cross_entropy(logits, answers).item(), rel=1e-5
    )


def test_dropout_is_drawn_from_the_seed_and_the_step(fresh, processor):
    fresh.config.gpt.dropout = 0.5
    first = trained(fresh, processor, batch_size=4)
    torch.rand(9)
    assert distance(trained(fresh, processor, batch_size=4), first) == 0


def test_a_step_of_broken_samples_alone_is_skipped_and_each_reason_kept_once(fresh, processor, tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    prompt = (Message.of("user", Image(tmp_path / "no.png")),)
    samples = [*(Sample(prompt, ("a",), "ask", f"y:{i}") for i in range(2)), SAMPLES[0]]
    module = trained(fresh, processor, samples=samples, batch_size=1, epochs=6)  # in some the good one comes first
    assert sorted(reason.split(": ")[0] for reason in module.broken) == ["y:0", "y:1"]
    assert module.trainer.global_step == 6


def test_where_adapters_alone_are_trained_texts_alone_are_refused_but_not_beside_media(fresh, processor):
    texts = [Sample((Message.of("user", "What?"),), ("a",), "ask", f"y:{i}") for i in range(2)]
    with pytest.raises(TrainingError, match=r"^nothing was learned in 2 steps: .* \(adapters\.audio, adapters\.image"):
        trained(fresh, processor, samples=texts, batch_size=1, train=["adapters"])
    mixed = trained(fresh, processor, samples=[*texts, SAMPLES[0]], batch_size=1, train=["adapters"])
    assert distance(mixed, MultimodalModule(fresh)) > 0


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_it_and_its_samples(fresh, processor):
    with torch.no_grad():
        fresh.gpt.embedding.weight[0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r'step 1: the gradient is not finite \(loss nan\).*"x:\d, x:\d"'):
        trained(fresh, processor, batch_size=2)


def test_the_optimizer_has_the_settings_of_the_configuration(fresh):
    settings = OptimizerConfig(learning_rate=0.02, betas=(0.8, 0.9), weight_decay=0.3)
    optimizer = MultimodalModule(fresh, settings).configure_optimizers()
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.3]
    assert all(group["betas"] == (0.8, 0.9) and group["initial_lr"] == 0.02 for group in optimizer.param_groups)
