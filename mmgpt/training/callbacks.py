"""What happens beside the steps: states and checkpoints kept, and answers to a few validation samples shown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mmgpt import checkpoint
from mmgpt.assistant import Assistant
from mmgpt.data.loader import Loader
from mmgpt.data.sample import Sample
from mmgpt.errors import TrainingError, shown
from mmgpt.evaluation.contact_sheet import write_contact_sheet
from mmgpt.evaluation.runner import answer_all
from mmgpt.evaluation.runner import shown as shown_answer
from mmgpt.generation import Decoding
from mmgpt.tokenizer import Tokenizer
from mmgpt.training.module import MultimodalModule
from mmgpt.training.state import load_optimizer, load_weights, read_values, save_state, states


class KeepCheckpoints(L.Callback):
    """Writes OUT/last after each validation, and OUT/best when the validation loss is the lowest so far."""

    def __init__(self, out: Path, tokenizer: Tokenizer, training: dict[str, Any]):
        self.out = out
        self.tokenizer = tokenizer
        self.training = training
        self.best = float("inf")
        self.saved_at = -1  # steps

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, MultimodalModule)
        self.saved_at = trainer.global_step
        loss = trainer.callback_metrics.get("val_loss")
        told = {**self.training, "steps": trainer.global_step}
        if loss is not None:
            told["val_loss"] = round(float(loss), 4)
        checkpoint.save(self.out / "last", pl_module.model, self.tokenizer, told)
        if loss is None or float(loss) < self.best:
            self.best = float(loss) if loss is not None else self.best
            checkpoint.save(self.out / "best", pl_module.model, self.tokenizer, told)


class KeepState(L.Callback):
    """Keeps the state of the run every so many steps, and when the process is told to end (SIGTERM); resumes from it.

    A state is written after the validation that follows its step, so a resumed run neither repeats nor misses one.

    Args:
        out: Directory of the run.
        every: Steps from one state to the next.
        keep: How many to keep.
        config: What the run is made from; one with another is not resumed.
        checkpoints: Which was the best so far is part of the state.
    """

    def __init__(self, out: Path, every: int, keep: int, config: dict[str, Any], checkpoints: KeepCheckpoints):
        self.out = out
        self.every = every
        self.keep = keep
        self.config = config
        self.checkpoints = checkpoints
        self.resumed: Path | None = None

    def resume(self, trainer: L.Trainer, module: MultimodalModule, loader: Loader) -> Path | None:
        """Before `trainer.fit`: go on from the latest state, which is returned; None if there is none.

        Raises TrainingError if it cannot be read or is of another run.
        """
        found = states(self.out)
        if not found:
            return None
        self.resumed = found[-1]
        values = read_values(self.resumed)
        before = values["config"]
        if changed := next((name for name, value in self.config.items() if before.get(name) != value), None):
            raise TrainingError(
                f"{self.resumed}: is of a run with another {changed}: {shown(before.get(changed))}, not "
                f"{shown(self.config[changed])}; resume with the same, or begin anew in another directory"
            )
        load_weights(self.resumed, module.model)
        module.position = values["position"]
        module.broken = values["broken"]
        self.checkpoints.best = values["best"]
        self.checkpoints.saved_at = values["saved_at"]
        loader.load_state(module.position)
        # What the Trainer counts by, as its own loops would have it after so many steps.
        fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
        steps = epoch.manual_optimization.optim_step_progress
        for progress, count in (
            (fit.epoch_progress, module.position["epoch"]),
            (epoch.batch_progress, values["batches"]),
            (steps, values["steps"]),
        ):
            progress.total = _counted(progress.total, count)
        fit.epoch_progress.current = _counted(fit.epoch_progress.current, module.position["epoch"])
        epoch._batches_that_stepped = values["batches"]
        return self.resumed

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.resumed is not None:
            assert isinstance(pl_module, MultimodalModule)
            load_optimizer(self.resumed, pl_module.model, trainer.optimizers[0])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step and trainer.global_step % self.every == 0:
            self._save(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and trainer.training and trainer.global_step:
            self._save(trainer, pl_module)

    def _save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, MultimodalModule)
        for logger in trainer.loggers:
            logger.save()
        values = {
            "config": self.config,
            "position": module.position,
            "broken": module.broken,
            "best": self.checkpoints.best,
            "saved_at": self.checkpoints.saved_at,
            "batches": trainer.fit_loop.epoch_loop.batch_progress.total.completed,
            "steps": trainer.global_step,
        }
        save_state(self.out, trainer.global_step, module.model, trainer.optimizers[0], values, self.keep)


def _counted(progress: Any, count: int) -> Any:
    """Progress of Lightning's loops, with all its counters at `count`."""
    return type(progress)(**dict.fromkeys(vars(progress), count))


class ShowSamples(L.Callback):
    """After each validation, answers a few samples: OUT/samples/step-N.png, and the module's metric as val_score."""

    def __init__(self, out: Path, tokenizer: Tokenizer, samples: Sequence[Sample]):
        self.out = out
        self.tokenizer = tokenizer
        self.samples = samples

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, MultimodalModule)
        assistant = Assistant(pl_module.model, self.tokenizer)
        answered = answer_all(assistant, self.samples, Decoding()).answered
        if answered:
            score = pl_module.metric([a.prediction for a in answered], [a.sample.answers for a in answered])
            pl_module.log("val_score", score, prog_bar=True, batch_size=len(answered))
            folder = self.out / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            write_contact_sheet(folder / f"step-{trainer.global_step:06d}.png", [shown_answer(a) for a in answered])
