"""What is kept and shown beside the steps, with Lightning's own Trainer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import PIL.Image
import pytest
import torch
from walls import wall_config, write_walls

from mmgpt import checkpoint
from mmgpt.content import Image, Message
from mmgpt.data.loader import Loader
from mmgpt.data.readers import read_samples
from mmgpt.data.sample import Sample
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor
from mmgpt.training.callbacks import KeepCheckpoints, ShowSamples
from mmgpt.training.module import CaptioningModule


@dataclass(frozen=True)
class Setting:
    """All that a run needs, save for its callbacks."""

    module: CaptioningModule
    samples: list[Sample]
    loader: Loader
    processor: Processor
    trainer: Callable[..., L.Trainer]


@pytest.fixture
def setting(tmp_path, tokenizer) -> Setting:
    config = wall_config(write_walls(tmp_path / "data", dev=4), tmp_path / "run")
    torch.manual_seed(0)
    gpt = replace(config.model.gpt, vocab_size=len(tokenizer), dropout=0.1)
    module = CaptioningModule(MultimodalGPT(replace(config.model, gpt=gpt)), config.optimizer)
    samples = read_samples(config.data, "dev")
    processor = Processor(module.model.config, tokenizer)
    loader = Loader(samples, processor, batch_size=2)

    def trainer(*callbacks: L.Callback, **settings) -> L.Trainer:
        return L.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=list(callbacks), **settings,
        )  # fmt: skip

    return Setting(module, samples, loader, processor, trainer)


def told(directory: Path) -> dict:
    return checkpoint.read_training(checkpoint.resolve(directory))


def test_best_is_the_lowest_validation_loss_and_last_the_latest(setting, tokenizer, tmp_path):
    out = tmp_path / "run"
    trainer = setting.trainer(KeepCheckpoints(out, tokenizer, {"data": "walls"}))
    head = setting.module.model.gpt.embedding.weight
    original = head.detach().clone()
    losses = []
    for scale in (50.0, 1.0, 500.0):  # wilder guesses cost more
        with torch.no_grad():
            head.copy_(original * scale)
        trainer.validate(setting.module, setting.loader, verbose=False)
        losses.append(round(float(trainer.callback_metrics["val_loss"]), 4))
    assert losses[1] < losses[0] < losses[2]
    assert told(out / "best") == {"data": "walls", "steps": 0, "val_loss": losses[1]}
    assert told(out / "last")["val_loss"] == losses[2]
    best, _ = checkpoint.load(out / "best")
    assert torch.equal(best.gpt.embedding.weight, original)
    last, _ = checkpoint.load(out / "last")
    assert torch.equal(last.gpt.embedding.weight, head)


def test_the_validation_loss_is_the_mean_over_all_supervised_tokens(setting):
    """Whatever the batches: each weighs by its tokens."""
    trainer = setting.trainer()
    trainer.validate(setting.module, setting.loader, verbose=False)
    one_by_one = Loader(setting.samples, setting.processor, batch_size=1)
    setting.module.eval()
    with torch.no_grad():
        losses = [setting.module.model.loss(batch) for step in one_by_one for batch in step.batches]
    expected = sum(loss.sum.item() for loss in losses) / sum(loss.count for loss in losses)
    assert len({loss.count for loss in losses}) > 1
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(expected, rel=1e-5)


def test_the_sanity_check_before_training_leaves_nothing(setting, tokenizer, tmp_path):
    out = tmp_path / "run"
    callbacks = KeepCheckpoints(out, tokenizer, {}), ShowSamples(out, tokenizer, setting.samples)
    trainer = setting.trainer(
        *callbacks, num_sanity_val_steps=1, limit_val_batches=1, max_steps=1, val_check_interval=2
    )
    trainer.fit(setting.module, setting.loader, setting.loader)
    assert not out.exists()


def test_answers_are_shown_and_scored_and_training_goes_on_in_training_mode(setting, tokenizer, tmp_path):
    class Modes(L.Callback):
        seen: list = []  # noqa: RUF012

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen.append([name for name, module in pl_module.named_modules() if module.training])

    modes = Modes()
    trainer = setting.trainer(
        ShowSamples(tmp_path / "run", tokenizer, setting.samples), modes,
        max_steps=4, val_check_interval=1, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(setting.module, setting.loader, setting.loader)
    sheets = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert sheets == [f"step-{step:06d}.png" for step in (1, 2, 3, 4)]
    with PIL.Image.open(tmp_path / "run" / "samples" / sheets[-1]) as sheet:
        assert sheet.width > 4 * 300
    assert 0 <= float(trainer.callback_metrics["val_score"]) <= 10
    assert len(modes.seen) == 4
    assert "model.gpt.transformer.dropout" in modes.seen[0]
    assert all(seen == modes.seen[0] for seen in modes.seen)


def test_broken_samples_are_not_shown_and_cost_nothing(setting, tokenizer, tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    broken = Sample((Message.of("user", Image(tmp_path / "no.png")),), ("a wall",), "caption", "here")
    for samples, shown in (([broken], False), ([broken, setting.samples[0]], True)):
        out = tmp_path / str(shown)
        trainer = setting.trainer(ShowSamples(out, tokenizer, samples))
        trainer.validate(setting.module, setting.loader, verbose=False)
        assert ("val_score" in trainer.callback_metrics) == shown
        assert out.exists() == shown
