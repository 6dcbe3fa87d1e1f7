"""What happens beside the steps: checkpoints kept, and answers to a few validation samples shown as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from mmgpt import checkpoint
from mmgpt.assistant import Assistant
from mmgpt.data.sample import Sample
from mmgpt.evaluation.contact_sheet import write_contact_sheet
from mmgpt.evaluation.runner import answer_all, shown
from mmgpt.generation import Decoding
from mmgpt.tokenizer import Tokenizer
from mmgpt.training.module import MultimodalModule


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
            write_contact_sheet(folder / f"step-{trainer.global_step:06d}.png", [shown(a) for a in answered])
