"""Averages of the weights over the steps of real runs."""

from itertools import pairwise
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor
from walls import wall_config, write_walls

from mmgpt import checkpoint
from mmgpt.errors import ConfigError
from mmgpt.run_config import LoraConfig, TrainConfig
from mmgpt.training.run import fit, read, train


class Seen(L.Callback):
    """The trained weights before training, after each step and in each validation."""

    def __init__(self):
        self.steps: list[dict[str, Tensor]] = []
        self.validations: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer, pl_module):
        self.steps.append(weights_of(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(weights_of(pl_module))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        own = weights_of(pl_module)
        assert all(torch.equal(own[name], last) for name, last in self.steps[-1].items())  # as validation found them

    def on_validation_epoch_end(self, trainer, pl_module):
        self.validations.append(weights_of(pl_module))


def weights_of(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.model.named_parameters() if p.requires_grad}


def averaged(steps: list[Tensor], decay: float) -> list[Tensor]:
    """After each step, by the formula of the paper's exponential kind, in double precision."""
    found = [steps[0].double()]
    for number, weights in enumerate(steps[1:], 1):
        keep = min(decay, (1 + number) / (10 + number))
        found.append(keep * found[-1] + (1 - keep) * weights.double())
    return found


def run_seen(config: TrainConfig) -> Seen:
    seen = Seen()
    fit(config, read(config), [seen])
    return seen


def test_validation_and_checkpoints_have_the_averages_and_training_the_weights(tmp_path):
    folder = write_walls(tmp_path / "data", dev=2)
    settings = {"epochs": 8, "val_every": 4, "train": ["gpt.transformer", "adapters"]}
    seen = run_seen(wall_config(folder, tmp_path / "run", ema=0.4, **settings))
    last = checkpoint.load(tmp_path / "run" / "last")[0].state_dict()
    assert len(seen.steps) == 17
    for name in seen.steps[0]:
        expected = averaged([weights[name] for weights in seen.steps], 0.4)
        for number, found in zip((4, 8, 12, 16), seen.validations, strict=True):
            torch.testing.assert_close(found[name].double(), expected[number], rtol=1e-4, atol=1e-6)
        assert torch.equal(last[name], seen.validations[-1][name])
    assert any(not torch.equal(seen.steps[-1][name], seen.validations[-1][name]) for name in seen.steps[0])
    plain = run_seen(wall_config(folder, tmp_path / "plain", **settings))
    assert all(torch.equal(one, plain.steps[-1][name]) for name, one in seen.steps[-1].items())


def test_with_lora_the_adapters_alone_are_averaged(tmp_path):
    pytest.importorskip("peft")
    folder = write_walls(tmp_path / "data", dev=2)
    seen = run_seen(wall_config(folder, tmp_path / "run", ema=0.5, train=[], lora=LoraConfig(rank=2), epochs=2))
    assert seen.steps[0].keys() == seen.validations[-1].keys()
    assert all(".lora_" in name for name in seen.steps[0])
    name = next(name for name in seen.steps[0] if "lora_B" in name)
    expected = averaged([weights[name] for weights in seen.steps], 0.5)[-1]
    torch.testing.assert_close(seen.validations[-1][name].double(), expected, rtol=1e-4, atol=1e-6)


def test_batches_without_a_step_do_not_count(tmp_path):
    """All of whose samples are broken."""
    folder = write_walls(tmp_path / "data", train=3, dev=2, broken=("train",))
    seen = run_seen(wall_config(folder, tmp_path / "run", ema=0.9, batch_size=1, epochs=2))
    name = "adapters.image.project.weight"
    stepped = [seen.steps[0], *(after for before, after in pairwise(seen.steps) if changed(before, after))]
    assert len(seen.steps) - len(stepped) >= 1
    expected = averaged([weights[name] for weights in stepped], 0.9)[-1]
    torch.testing.assert_close(seen.validations[-1][name].double(), expected, rtol=1e-4, atol=1e-6)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return any(not torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("decay", [-0.1, 1])
def test_a_decay_that_makes_no_sense_is_told(tmp_path, decay):
    with pytest.raises(ConfigError, match=f"ema: must be from 0 on and below 1, such as 0.999, not {decay}"):
        train(wall_config(Path(tmp_path), tmp_path / "run", ema=decay))
