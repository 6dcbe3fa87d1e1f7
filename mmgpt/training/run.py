"""A training run from its configuration: data, tokenizer, model, Trainer, and what is kept of it."""

import logging
import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import lightning as L
import PIL.Image
import torch
from lightning.pytorch.loggers import CSVLogger

from mmgpt.config import DataConfig, Precision, TrainConfig
from mmgpt.data.dataset import make_loader
from mmgpt.data.readers import read_samples
from mmgpt.data.sample import Sample
from mmgpt.data.world import World
from mmgpt.errors import ConfigError, DataError
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor
from mmgpt.tokenizer import Tokenizer
from mmgpt.training.callbacks import KeepCheckpoints, ShowSamples
from mmgpt.training.module import CaptioningModule, MultimodalModule, QAModule

PRESETS: dict[str, type[MultimodalModule]] = {"captions": CaptioningModule, "coco": CaptioningModule}
SHOWN = 24  # validation samples whose answers are shown during training
WORLD_TEXTS = 2_000  # samples of the world that train its tokenizer; its words are few, and each sample is rendered


@dataclass(frozen=True)
class Run:
    """What a finished run leaves: where it is, how long it took, and the samples it validated on."""

    out: Path
    seconds: float
    val_samples: Sequence[Sample]
    broken: list[str]


def train(config: TrainConfig) -> Run:
    """Train by a configuration. Leaves OUT/best, OUT/last, OUT/metrics.csv and OUT/samples/."""
    _check(config)
    _quiet()
    L.seed_everything(config.seed, verbose=False)
    train_samples, val_samples = load_data(config.data, config.seed)
    tokenizer = make_tokenizer(config.data, train_samples)
    config.model.gpt = replace(config.model.gpt, vocab_size=len(tokenizer))
    model = MultimodalGPT(config.model)
    if config.checkpoint_activations:
        model.checkpoint_activations()
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)

    processor = Processor(model.config, tokenizer)
    learner = Processor(model.config, tokenizer, augment=augment_picture if config.augment else None)
    if config.augment and "audio" in model.encoders:
        model.encoders["audio"].augment = True  # type: ignore[assignment]
    module = PRESETS.get(config.data.format, QAModule)(model, config.optimizer, config.freeze)
    # The world's samples are made in the order they are to be learned in; those of files come as they lie.
    shuffle = config.data.format != "world"
    size, workers = config.batch_size, config.data.workers
    train_loader = make_loader(
        train_samples, learner, batch_size=size, shuffle=shuffle, seed=config.seed, workers=workers
    )
    val_loader = make_loader(val_samples, processor, batch_size=size, shuffle=False, workers=workers)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{parameters / 1e6:.2f} M parameters, {len(tokenizer)} tokens in the vocabulary; "
        f"{len(train_samples):,} samples to train on, {len(val_samples):,} to validate on",
        flush=True,
    )
    data = config.data.path or f"world {config.data.world}"
    keep = KeepCheckpoints(out, tokenizer, {"data": data, "samples": len(train_samples), "epochs": config.epochs})
    trainer = L.Trainer(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=1,
        precision=precision(config.precision),
        max_epochs=config.epochs,
        gradient_clip_val=config.optimizer.clip,
        val_check_interval=config.val_every or None,
        check_val_every_n_epoch=None if config.val_every else 1,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        logger=CSVLogger(save_dir=out, name="", version=""),
        callbacks=[
            keep,
            ShowSamples(out, tokenizer, [val_samples[i] for i in range(min(SHOWN, len(val_samples)))]),
        ],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    started = time.monotonic()
    try:
        trainer.fit(module, train_loader, val_loader)
        if keep.saved_at < trainer.global_step:  # steps after the last multiple of val_every
            trainer.validate(module, val_loader, verbose=False)
    except SystemExit:  # Lightning's answer to Ctrl-C, with the code of work that failed
        raise KeyboardInterrupt from None
    return Run(out, time.monotonic() - started, val_samples, module.broken)


def _check(config: TrainConfig) -> None:
    counts = {
        "batch_size": config.batch_size,
        "epochs": config.epochs,
        "data.samples": config.data.samples,
        "data.val_samples": config.data.val_samples,
    }
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name}: must be a whole number from 1 on, not {count}")


def load_data(config: DataConfig, seed: int) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Training and validation samples. Raises DataError where there are none."""
    if config.format == "world":
        return (
            World("train", config.samples, seed, config.world),
            World("dev", config.val_samples, seed, config.world),
        )
    train, val = read_samples(config, config.split), read_samples(config, config.val_split)
    for name, samples in ((config.split, train), (config.val_split, val)):
        if not samples:
            raise DataError(f"{config.path}: no samples in split {name!r}")
    # Spread over the whole split, so that a limit does not see its first folder alone.
    step = max(1, len(val) // config.val_samples)
    return train, val[::step][: config.val_samples]


def make_tokenizer(config: DataConfig, samples: Sequence[Sample]) -> Tokenizer:
    """The tokenizer named by the configuration, or one trained on the texts of the samples."""
    if config.tokenizer:
        return Tokenizer.load(config.tokenizer)
    count = min(len(samples), WORLD_TEXTS) if config.format == "world" else len(samples)
    texts = (text for i in range(count) for text in samples[i].texts())
    return Tokenizer.train(texts, config.vocab_size)


def precision(wish: Precision) -> Literal["32-true", "bf16-mixed"]:
    """bf16-mixed where the machine computes in bf16, unless told otherwise."""
    if wish != "auto":
        return wish
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    # Without these instructions a CPU emulates bf16, many times slower than float32.
    supported = [getattr(torch.cpu, name, lambda: False)() for name in
                 ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]  # fmt: skip
    return "bf16-mixed" if any(supported) else "32-true"


def augment_picture(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A random crop of 60 to 100 % of each side, mirrored half of the time."""
    width, height = picture.size
    w, h = (round(side * random.uniform(0.6, 1.0)) for side in (width, height))
    x, y = random.randint(0, width - w), random.randint(0, height - h)
    picture = picture.crop((x, y, x + w, y + h))
    return picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else picture


def _quiet() -> None:
    """Lightning's hints on hardware, workers, logs and intervals are not about anything the user did."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for hint in ("num_workers", "Experiment logs directory", "logging interval", "returned `None`", "LeafSpec"):
        warnings.filterwarnings("ignore", module="lightning", message=f".*{hint}")
