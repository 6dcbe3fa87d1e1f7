"""What happens beside the steps: states and checkpoints kept, and answers to a few validation samples shown."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mmgpt import checkpoint
from mmgpt.assistant import Assistant
from mmgpt.data.loader import Loader
from mmgpt.data.sample import Sample
from mmgpt.distributed import gathered, summed
from mmgpt.errors import MediaError, TrainingError
from mmgpt.evaluation.asking import answer_all
from mmgpt.evaluation.contact_sheet import write_contact_sheet
from mmgpt.evaluation.runner import shown as shown_answer
from mmgpt.generation import Decoding
from mmgpt.processor import TooLongError
from mmgpt.tokenizer import Tokenizer
from mmgpt.training.averages import AverageWeights
from mmgpt.training.lora import merged
from mmgpt.training.module import MultimodalModule
from mmgpt.training.parallel import answering, gather, is_sharded
from mmgpt.training.state import (
    check_config,
    load_averages,
    load_optimizer,
    load_weights,
    read_values,
    restore_log,
    save_state,
    states,
)


class KeepCheckpoints(L.Callback):
    """Writes OUT/last after each validation, and OUT/best when the validation loss is the lowest so far; where a run
    learns from rewards, when theirs is the highest.
    """

    def __init__(self, out: Path, tokenizer: Tokenizer, training: dict[str, Any]):
        self.out = out
        self.tokenizer = tokenizer
        self.training = training
        self.best = float("inf")
        self.saved_at = -1  # steps

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, MultimodalModule)
        self.saved_at = trainer.global_step
        model = merged(pl_module.model)
        tensors = gather(checkpoint.tensors_of(model))
        loss = trainer.callback_metrics.get("val_loss")
        told = {**self.training, "steps": trainer.global_step}
        if loss is not None:
            told["val_loss"] = round(float(loss), 4)
        if (reward := trainer.callback_metrics.get("val_reward")) is not None:
            told["val_reward"] = round(float(reward), 4)
            loss = -reward
        if trainer.is_global_zero:
            checkpoint.save(self.out / "last", model, self.tokenizer, told, tensors)
        if loss is None or float(loss) < self.best:
            self.best = float(loss) if loss is not None else self.best
            if trainer.is_global_zero:
                checkpoint.save(self.out / "best", model, self.tokenizer, told, tensors)


class KeepState(L.Callback):
    """Keeps the state of the run every so many steps, and when the process is told to end (SIGTERM); resumes from it.

    A state is written after the validation that follows its step, so a resumed run neither repeats nor misses one; told
    to end in the middle of a validation it is written at once, and the resumed run begins with that validation.

    Args:
        out: Directory of the run.
        every: Steps from one state to the next.
        keep: How many to keep.
        config: What the run is made from; one with another is not resumed.
        checkpoints: Which was the best so far is part of the state.
        loader: Of the training samples.
        averages: Of the weights, where the run has them.
        resume: Go on from the latest state, if there is one.

    Raises:
        TrainingError: The state cannot be read or is of another run; or there is one, and it is not to be resumed.
    """

    def __init__(
        self,
        out: Path,
        every: int,
        keep: int,
        config: dict[str, Any],
        checkpoints: KeepCheckpoints,
        loader: Loader,
        averages: AverageWeights | None,
        resume: bool,
    ):
        before = states(out)
        if before and not resume:
            raise TrainingError(
                f"{out}: holds the state of a run that is not finished; go on with --resume true, or remove its state/"
            )
        self.out = out
        self.every = every
        self.keep = keep
        self.config = config
        self.checkpoints = checkpoints
        self.loader = loader
        self.averages = averages
        self.state = before[-1] if before else None
        self.validating: int | None = None  # the epoch whose validation is still to be done
        self.spent = 0.0  # seconds of training, by those processes that were killed
        self.begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the run has taken, up to each state that it went on from and since the last."""
        return self.spent + time.monotonic() - self.begun

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and self.state is not None:
            assert isinstance(pl_module, MultimodalModule)
            self._resume(self.state, trainer, pl_module)

    def _resume(self, state: Path, trainer: L.Trainer, module: MultimodalModule) -> None:
        values = read_values(state)
        check_config(state, values["config"], self.config)
        if len(values["processes"]) != trainer.world_size:
            raise TrainingError(
                f"{state}: is of {len(values['processes'])} processes, which have the data among them; resume with as "
                f"many, not {trainer.world_size}"
            )
        module.position, broken = values["processes"][trainer.global_rank]
        module.broken = dict.fromkeys(broken)
        self.loader.load_state(module.position)
        self.checkpoints.best = values["best"]
        self.checkpoints.saved_at = values["saved_at"]
        self.validating = values["validating"]
        self.spent = values["seconds"]
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger):
                    restore_log(state, logger)
            print(f"going on from {state}", flush=True)
        # What the Trainer counts by, as its own loops would have it after so many steps.
        fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
        steps = epoch.manual_optimization.optim_step_progress
        for progress, count in (
            (fit.epoch_progress, values["epoch"]),
            (epoch.batch_progress, values["batches"]),
            (steps, values["steps"]),
        ):
            progress.total = _counted(progress.total, count)
        fit.epoch_progress.current = _counted(fit.epoch_progress.current, values["epoch"])
        epoch._batches_that_stepped = values["batches"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.state is not None:
            assert isinstance(pl_module, MultimodalModule)
            load_weights(self.state, pl_module.model)
            load_optimizer(self.state, pl_module.model, trainer.optimizers[0])
            if self.averages is not None:
                load_averages(self.state, pl_module.model, self.averages.averages)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.validating is None:
            return
        # As the Trainer does it between two steps, with what it counts by as it was then.
        fit, epoch, connector = trainer.fit_loop, trainer.fit_loop.epoch_loop, trainer._logger_connector
        kept, first = fit.epoch_progress.current, connector._first_loop_iter
        fit.epoch_progress.current = _counted(kept, self.validating)
        epoch._batches_that_stepped -= 1
        trainer.validating = True
        epoch.val_loop.run()
        trainer.training = True
        epoch._batches_that_stepped += 1
        fit.epoch_progress.current, connector._first_loop_iter = kept, first
        self.validating = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step and trainer.global_step % self.every == 0:
            self._save(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, SIGTERMException) or not trainer.global_step:
            return
        if trainer.validating and trainer.state.fn == TrainerFn.FITTING:  # not in the one after the last step
            self.validating = trainer.current_epoch
        self._save(trainer, pl_module)

    def _save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, MultimodalModule)
        for logger in trainer.loggers:
            logger.save()
        values = {
            "config": self.config,
            "processes": gathered((module.position, list(module.broken))),
            "best": self.checkpoints.best,
            "saved_at": self.checkpoints.saved_at,
            "validating": self.validating,
            # After its last step a run counts an epoch as ended, though a stream may go on.
            "epoch": module.position["epoch"] if trainer.state.fn == TrainerFn.FITTING else trainer.current_epoch,
            "batches": trainer.fit_loop.epoch_loop.batch_progress.total.completed,
            "steps": trainer.global_step,
            "seconds": round(self.seconds, 1),
        }
        averages = None if self.averages is None else self.averages.averages
        save_state(self.out, trainer.global_step, module.model, trainer.optimizers[0], values, self.keep, averages)


def _counted(progress: Any, count: int) -> Any:
    """Progress of Lightning's loops, with all its counters at `count`."""
    return type(progress)(**dict.fromkeys(vars(progress), count))


class EndTogether(L.Callback):
    """Processes of which one is told to end (SIGTERM) all end after the same step, of training or of validation.

    The Trainer's own handler tells the others at once, whatever they are telling each other then.
    """

    def __init__(self) -> None:
        self.told = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            trainer._signal_connector._sigterm_notifier_fn = self._tell

    def _tell(self, *_: Any, **__: Any) -> None:
        self.told = True

    def _agree(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.world_size > 1:
            (told,) = summed(self.told)
            trainer._signal_connector.received_sigterm = told > 0

    on_train_batch_end = on_train_epoch_end = on_validation_batch_end = _agree


class ShowSamples(L.Callback):
    """After each validation, answers a few samples: OUT/samples/step-N.png, and the module's metric as val_score."""

    def __init__(self, out: Path, tokenizer: Tokenizer, samples: Sequence[Sample]):
        self.out = out
        self.tokenizer = tokenizer
        self.samples = samples

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MultimodalModule)
        divided = is_sharded(pl_module.model)
        if trainer.sanity_checking or not (trainer.is_global_zero or divided):
            return
        with answering(pl_module.model):  # by all processes together where it is divided
            assistant = Assistant(pl_module.model, self.tokenizer)
            samples = _usable_by_all(assistant, self.samples) if divided else self.samples
            answered = answer_all(assistant, samples, Decoding()).answered
        if answered and trainer.is_global_zero:
            score = pl_module.metric([a.prediction for a in answered], [a.sample.references for a in answered])
            pl_module.log("val_score", score.value, prog_bar=True, batch_size=len(answered))
            folder = self.out / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            write_contact_sheet(folder / f"step-{trainer.global_step:06d}.png", [shown_answer(a) for a in answered])


def _usable_by_all(assistant: Assistant, samples: Sequence[Sample]) -> list[Sample]:
    """Those that every process can read: of another's, one that has no file of it would not know to answer it too."""

    def usable(sample: Sample) -> bool:
        try:
            assistant.processor.encode_prompt(sample.prompt)
        except (MediaError, TooLongError):
            return False
        return True

    found = gathered([usable(sample) for sample in samples])
    return [sample for sample, *own in zip(samples, *found, strict=True) if all(own)]
