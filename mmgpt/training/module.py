"""The Lightning module: loss, optimizer, schedule. Captioning and question answering are presets of it."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from mmgpt.batch import Batch
from mmgpt.config import LossPer
from mmgpt.data.loader import Step
from mmgpt.distributed import gathered, summed
from mmgpt.errors import DataError, TrainingError, shown
from mmgpt.evaluation.metrics.captions import cider
from mmgpt.evaluation.metrics.score import Score
from mmgpt.evaluation.metrics.text import exact_match
from mmgpt.model import Loss, MultimodalGPT
from mmgpt.run_config import LoraConfig, OptimizerConfig
from mmgpt.training.lora import add_lora
from mmgpt.training.meter import LOGGED, Meter, progress
from mmgpt.training.muon import Muon
from mmgpt.training.parallel import is_sharded, plain, shard, zero_of
from mmgpt.training.parts import parameter_groups, train_only
from mmgpt.training.reward import Rewards

# A document of two tokens, for a process that has none where all must run the model.
BLANK = Batch(torch.zeros(2, dtype=torch.long), torch.tensor([False, True]), [2], [""], {})
Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], Score]


class MultimodalModule(L.LightningModule):
    """Trains a MultimodalGPT on the steps of a `Loader` by next-token cross-entropy on the supervised tokens.

    A model that pairs media with texts has the mean of its batches' contrastive losses beside it, or alone; that one
    depends on what shares a batch, but not on the number of processes (`Pairing.loss`).

    The losses of a step are summed and divided by the number of its supervised tokens, those of all its batches and
    all processes: neither packing, nor accumulation, nor the number of processes changes what is learned. Dropout and
    other chance are drawn from the seed and the number of the step, so a resumed run draws them again.

    Args:
        model: The model to train.
        optimizer: The optimizer's settings and its schedule over the epochs, or the steps, of the Trainer.
        train: Patterns of what is trained, as TrainConfig has them.
        lora: Adapters to train beside layers.
        seed: Of all chance in training.
        loss_per: What counts alike: each supervised token of a step, or each document.
        label_smoothing: Share of a target's probability that is spread over the vocabulary; not in validation.
        rewards: Weighs answers that the model draws, which it then learns from instead of those given.
        metric: What generated answers of the validation samples are scored with, predictions against references.

    Raises:
        TrainingError: A gradient is not finite; the message names the step and its samples, and the weights are those
            before it. Or the epochs so far had none but of zero: nothing that they saw goes through what is trained.
    """

    metric: Metric = staticmethod(exact_match)

    def __init__(
        self,
        model: MultimodalGPT,
        optimizer: OptimizerConfig | None = None,
        train: Sequence[str] = ("*",),
        lora: LoraConfig | None = None,
        seed: int = 0,
        loss_per: LossPer = "token",
        label_smoothing: float = 0.0,
        rewards: Rewards | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False  # a step is more than one backward pass
        self.model = model
        self.optimizer = optimizer or OptimizerConfig()
        self.seed = seed
        self.loss_per: LossPer = loss_per
        self.label_smoothing = label_smoothing
        self.rewards = rewards
        self.meter = Meter()
        self.broken: dict[str, None] = {}  # why samples were lost, each reason once, in order
        self.position: dict[str, Any] = {}  # in the data, after the last step
        self.idle = 0  # steps whose gradient was zero
        train_only(model, train)
        if lora is not None:
            add_lora(model, lora)

    def configure_model(self) -> None:
        if self.trainer.world_size > 1:
            self.model.also = zero_of
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not is_sharded(self.model):
            assert self.device_mesh is not None
            shard(self.model, self.device_mesh["data_parallel"])

    def training_step(self, step: Step, index: int) -> None:
        self._note_broken(step)
        self.position = step.state
        if not step.count:
            return
        number, processes = self.trainer.global_step + 1, self.trainer.world_size
        seed_chance(self.device, hash((self.seed, number, self.global_rank)) % 2**63)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.zero_grad()
        if self.rewards is not None:
            self.model.eval()  # what is learned from is to be what the model says
        whole = step.count if self.loss_per == "token" and self.rewards is None else step.documents
        total, rewards = torch.zeros((), device=self.device), list[float]()
        for batch in step.batches:
            if batch is None and processes == 1:
                continue
            if batch is not None and self.rewards is not None:
                drawn = self.rewards.draw(self.model, batch, f"{self.seed} {number}")
                rewards += drawn.rewards
                own = self.model.loss(drawn.batch, drawn.weights)
            else:
                own = self._loss(batch, self.loss_per, self.label_smoothing)
            loss = own.share(whole, len(step.batches))
            if batch is not None and self.rewards is None and number % LOGGED == 0:
                self.meter.learned(batch, own)
            total += loss.detach()
            if loss.requires_grad:  # where adapters alone are trained, a batch of texts teaches nothing
                self.manual_backward(loss * processes)  # gradients are averaged over processes
        if number % LOGGED == 0:
            self.log_dict(gradient_norms(self.model))
        norm = clip_gradients(self.model, self.optimizer.clip or math.inf)
        if not norm.isfinite():  # in all processes, as the gradient is that of all
            names = ", ".join(name for own in gathered(step.names) for name in own)
            (loss,) = summed(float(total))
            raise TrainingError(
                f"step {number}: the gradient is not finite (loss {loss:g}); nothing was changed by it. Its samples: "
                f"{shown(names)}. Lower the learning rate, or look at them"
            )
        self.idle += not norm
        factor = learning_rate(number, progress(self.trainer, step, number), self.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = factor * group["initial_lr"]
        optimizer.step()
        if number % LOGGED == 0 or number == 1:
            mean, reward, count = summed(float(total), sum(rewards), len(rewards))
            learned = {"loss": mean} if self.rewards is None else {"reward": reward / count}
            losses = {f"loss/{name}": loss for name, loss in self.meter.means().items() if name}
            rate = factor * self.optimizer.learning_rate
            self.log_dict({**learned, **losses, "gradient": norm, "learning_rate": rate}, batch_size=step.count)

    def on_train_epoch_end(self) -> None:
        if not self.trainer.global_step:  # nor in any other process
            first = f"; the first: {next(iter(self.broken))}" if self.broken else ""
            raise DataError(f"nothing could be learned from any sample{first}. `mmgpt data check` tells of all")
        if (
            self.rewards is None and self.idle == self.trainer.global_step
        ):  # where answers are rewarded alike it goes on
            names = (name for name, one in self.model.named_parameters() if one.requires_grad)
            parts = ", ".join(sorted({".".join(name.split(".")[:2]) for name in names}))
            raise TrainingError(
                f"nothing was learned in {self.idle} steps: no gradient reached what is trained ({parts}). "
                "`mmgpt inspect` shows what the samples have"
            )

    def _loss(self, batch: Batch | None, per: LossPer = "token", smoothing: float = 0.0) -> Loss:
        """A batch's loss; of none, zero, made together with the other processes."""
        if batch is not None or not is_sharded(self.model):
            return self.model.loss(batch, per, smoothing)
        loss = self.model.loss(BLANK.to(self.device))
        return Loss(0 * loss.sum, 0, loss.each[:0])

    def on_validation_epoch_start(self) -> None:
        self.validated, self.matched, self.mistaken = Meter(), Meter(), Meter()
        self.paired = torch.zeros(2)  # sum of the loss of pairs, batches
        self.greedy: list[float] = []  # rewards

    def validation_step(self, step: Step, index: int) -> None:
        self._note_broken(step)
        for batch in step.batches if step.count else ():
            loss = self._loss(batch)
            self.paired += torch.tensor([float(loss.pair), 1 / self.trainer.world_size])
            if batch is not None:
                self.validated.learned(batch, loss)
            if batch is not None and self.rewards is not None:
                self.greedy += self.rewards.greedy(self.model, batch)
            if self.model.pair is None:  # what a medium is worth: by how much the loss grows with another in its place
                spoilt, changed = exchanged(batch) if batch is not None else (None, set())
                wrong = self._loss(spoilt)
                if batch is not None and spoilt is not None:
                    self.matched.learned(batch, loss, changed)
                    self.mistaken.learned(spoilt, wrong, changed)

    def on_validation_epoch_end(self) -> None:
        losses, right, wrong = (meter.means() for meter in (self.validated, self.matched, self.mistaken))
        pair, batches = summed(*self.paired.tolist())
        if "" in losses:
            self.log("val_loss", losses.pop("") + pair / max(1.0, batches), prog_bar=True)
            self.log_dict({f"val_loss/{name}": loss for name, loss in losses.items()})
        if self.rewards is not None:
            reward, count = summed(sum(self.greedy), len(self.greedy))
            self.log("val_reward", reward / max(1.0, count), prog_bar=True)
        self.log_dict({f"val_gap/{name}": loss - right[name] for name, loss in wrong.items() if name})

    def configure_optimizers(self) -> torch.optim.Optimizer:  # type: ignore[override]
        settings = self.optimizer
        build = Muon if settings.muon is not None else partial(torch.optim.AdamW, fused=True)
        optimizer = build(parameter_groups(self.model, settings), lr=settings.learning_rate, betas=settings.betas)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def _note_broken(self, step: Step) -> None:
        self.broken.update(dict.fromkeys(sample.reason for sample in step.broken))


class CaptioningModule(MultimodalModule):
    """Training for captions: validation samples are scored by CIDEr-D."""

    metric = staticmethod(cider)


class QAModule(MultimodalModule):
    """Training for question answering: validation samples are scored by exact match."""

    metric = staticmethod(exact_match)


def seed_chance(device: torch.device, seed: int) -> None:
    """Seed what is drawn from on a device. `torch.manual_seed` tells every kind of device there might be, and notes who
    called it for each: that takes longer than all else that a run adds to a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def learning_rate(step: int, progress: float, settings: OptimizerConfig) -> float:
    """Share of the peak learning rate in a step: linear warm-up, then a cosine down to `final`.

    Args:
        step: Its number, from 1.
        progress: Share of the run that is done after it, in 0..1.
        settings: The schedule.
    """
    # A warm-up of so many steps is the share of the run that so many of the steps so far have been.
    warmup = settings.warmup * progress / step if settings.warmup >= 1 else settings.warmup
    if progress < warmup:
        return progress / warmup
    done = (progress - warmup) / max(1e-9, 1 - warmup)
    return settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def clip_gradients(model: nn.Module, most: float) -> Tensor:
    """Scale all gradients so that their norm is `most` at most; returns what it was.

    A parameter whose gradient is zero is left without one, and so out of the step: where no process had a sound, its
    encoder goes on by neither momentum nor decay, be there one process, which has no gradient of it, or several, whose
    gradients `zero_of` has filled in.
    """
    trained = {parameter: parameter.grad for parameter in model.parameters() if parameter.grad is not None}
    if not trained:
        return torch.zeros(())
    norms = plain(torch.stack(torch._foreach_norm(list(trained.values()))))
    norm = norms.norm()
    nn.utils.clip_grads_with_norm_(trained, most, norm)
    for parameter, own in zip(trained, norms.tolist(), strict=True):
        if not own:
            parameter.grad = None
    return norm


def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """The norm of the gradient of each encoder, each adapter and the GPT."""
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            first, second, *_ = name.split(".")
            parts[first if first == "gpt" else f"{first}.{second}"].append(parameter.grad)
    return {f"gradient/{name}": plain(nn.utils.get_total_norm(gradients)) for name, gradients in parts.items()}


def exchanged(batch: Batch) -> tuple[Batch | None, set[int]]:
    """The batch with its media exchanged among those of one size, and the documents, by number, that show others alone.

    Where there is no such document, there is no batch either.
    """
    media = {}
    changed = {number for number, shown in enumerate(batch.modalities) if shown != "text"}
    for modality, group in batch.media.items():
        inputs = list(group.inputs)
        alike: dict[Any, list[int]] = defaultdict(list)
        for number, item in enumerate(inputs):
            alike[item.grid, item.features].append(number)
        for numbers in alike.values():
            for number, other in zip(numbers, numbers[1:] + numbers[:1], strict=True):
                inputs[number] = group.inputs[other]
        media[modality] = replace(group, inputs=inputs)
        rows = [own is other for own, other in zip(group.inputs, inputs, strict=True) for _ in range(own.features)]
        same = torch.tensor(rows, device=group.rows.device)[group.rows]
        changed -= set(batch.numbers[group.places[same]].tolist())
    return replace(batch, media=media) if changed else None, changed
