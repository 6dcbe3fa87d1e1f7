"""What is kept and shown beside the steps, in real runs of Lightning's Trainer."""

import lightning as L
import pytest
import torch
from walls import wall_config, write_walls

from mmgpt import checkpoint
from mmgpt.config import ModelConfig
from mmgpt.data.dataset import make_loader
from mmgpt.data.readers import read_samples
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor
from mmgpt.training.callbacks import KeepCheckpoints, ShowSamples
from mmgpt.training.module import CaptioningModule


class Modes(L.Callback):
    """Notes whether the model trains at each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append({name: module.training for name, module in pl_module.model.named_modules()})


@pytest.fixture
def trainer_of(tmp_path, tokenizer):
    """Builds a module, a loader of walls and a Trainer with these callbacks."""

    def build(*callbacks, **settings):
        config = wall_config(write_walls(tmp_path / "data", train=4, dev=4), tmp_path / "run")
        model = config.model
        torch.manual_seed(0)
        module = CaptioningModule(
            MultimodalGPT(ModelConfig(gpt=model.gpt, image=model.image).__class__(
                gpt=model.gpt.__class__(**{**vars(model.gpt), "vocab_size": len(tokenizer)}), image=model.image
            )),
            config.optimizer,
        )
        processor = Processor(module.model.config, tokenizer)
        samples = read_samples(config.data, "dev")
        loader = make_loader(samples, processor, batch_size=2, shuffle=False)
        trainer = L.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=1, callbacks=list(callbacks), **settings,
        )  # fmt: skip
        return module, loader, samples, trainer

    return build
