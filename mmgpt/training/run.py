"""A training run from its configuration: data, tokenizer, model, Trainer, and what is kept of it."""

import dataclasses
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import is_torchelastic_launched

from mmgpt import checkpoint
from mmgpt.config import ModelConfig, PairConfig
from mmgpt.data.lazy import lost_of
from mmgpt.data.loader import Loader, told_as_data_error
from mmgpt.data.mixture import Mixture
from mmgpt.data.readers import limited, read_samples
from mmgpt.data.sample import Sample
from mmgpt.data.stream import HFStream, head
from mmgpt.data.world import World
from mmgpt.distributed import gathered
from mmgpt.errors import ConfigError, DataError
from mmgpt.model import MultimodalGPT
from mmgpt.pairing import check_weights
from mmgpt.pretrained import fetch
from mmgpt.processor import Processor
from mmgpt.run_config import DataConfig, Precision, RewardConfig, TrainConfig
from mmgpt.tokenizer import FILES, Tokenizer
from mmgpt.training.augment import picture_augment
from mmgpt.training.averages import AverageWeights
from mmgpt.training.callbacks import EndTogether, KeepCheckpoints, KeepState, ShowSamples
from mmgpt.training.features import prepare
from mmgpt.training.meter import LOGGED, Watch
from mmgpt.training.module import CaptioningModule, MultimodalModule, QAModule
from mmgpt.training.parallel import end_with_first, processes
from mmgpt.training.parts import print_parts
from mmgpt.training.record import record
from mmgpt.training.reward import Rewards
from mmgpt.training.state import check_config, forget_finished, read_finished, save_finished, states

PRESETS: dict[str, type[MultimodalModule]] = {"captions": CaptioningModule, "coco": CaptioningModule}
MOST_WORKERS = 8  # of a process, unless more are asked for
SHOWN = 24  # validation samples whose answers are shown during training
# Samples of these that train a tokenizer, the first ones: the world's words are few, and each sample is rendered; a
# stream may have no end.
TOKENIZED = {"world": 2_000, "hf_stream": 20_000}


@dataclass(frozen=True)
class Data:
    """What a run learns from: both splits and the tokenizer, and whether each epoch has an order of its own.

    The training samples are a sequence, or a stream of unknown length.
    """

    train: Iterable[Sample]
    val: Sequence[Sample]
    tokenizer: Tokenizer
    shuffle: bool


@dataclass(frozen=True)
class Run:
    """What a finished run leaves: where it is, how long it took, and the samples it validated on.

    Of several processes one is `first`: what is done once is done there.
    """

    out: Path
    seconds: float
    val_samples: Sequence[Sample]
    broken: list[str]
    first: bool = True


def train(config: TrainConfig) -> Run:
    """Train by a configuration. Leaves OUT/best, OUT/last, OUT/metrics.csv and OUT/samples/."""
    return fit(config, read(config))


def read(config: TrainConfig, whole: bool = False) -> Data:
    """The data of a run. Raises ConfigError, and DataError where there are none.

    Args:
        config: The run's.
        whole: All of the validation split, though the run looks at data.val_samples of it.
    """
    _check(config)
    train, val = load_data(config.data, config.seed)
    val = val if whole else limited(val, config.data.val_samples)
    # The world's samples are made in the order they are to be learned in; those of files come as they lie.
    return Data(train, val, make_tokenizer(config, train), shuffle=config.data.format != "world")


def fit(config: TrainConfig, data: Data, callbacks: Sequence[L.Callback] = ()) -> Run:
    """Train on these data, as `train` does; the callbacks are called after its own.

    A run that came to its end before is not trained again when it is resumed.
    """
    out, count = Path(config.out), len(data.train) if isinstance(data.train, Sequence) else None
    decisive = {**_decisive(config), "number of samples": count, "tokenizer": data.tokenizer.digest()}
    if config.resume and (done := read_finished(out)):
        check_config(out, done["config"], decisive)
        print(f"{out}: has been trained to its end", flush=True)
        return Run(out, done["seconds"], data.val, done["broken"], getattr(rank_zero_only, "rank", 0) == 0)
    forget_finished(out)
    _quiet()
    L.seed_everything(config.seed, verbose=False)
    train_samples, val_samples, tokenizer = data.train, data.val, data.tokenizer
    model = make_model(config, tokenizer)
    if config.checkpoint_activations:
        model.checkpoint_activations()
    out.mkdir(parents=True, exist_ok=True)

    if config.augment.spec and "audio" in model.encoders:
        model.encoders["audio"].augment = True  # type: ignore[assignment]
    if "video" in model.encoders:
        model.encoders["video"].augment = config.augment.frames  # type: ignore[assignment]
        model.encoders["video"].hide = config.augment.hide  # type: ignore[assignment]
    preset = PRESETS.get(config.data.format, QAModule)
    module = preset(
        model,
        config.optimizer,
        config.train,
        config.lora,
        config.seed,
        config.loss_per,
        config.label_smoothing,
        _rewards(config, data, model),
    )
    caches = prepare(model, config, precision(config.precision))
    processor = Processor(model.config, tokenizer, caches=caches)
    learner = Processor(model.config, tokenizer, picture_augment(config.augment), caches)
    sizes: dict[str, Any] = {
        "batch_size": config.batch_size, "batch_tokens": config.batch_tokens, "workers": data_workers(config)
    }  # fmt: skip
    loader = Loader(
        train_samples, learner, accumulate=config.accumulate, shuffle=data.shuffle, seed=config.seed, **sizes
    )
    val_loader = Loader(val_samples, processor, **sizes)
    _announce(model, data, count, config)
    checkpoints = KeepCheckpoints(out, tokenizer, record(config, count))
    shown = SHOWN if model.config.answers else 0
    averages = None if config.ema is None else AverageWeights(config.ema)
    state = KeepState(
        out, config.save_every, config.keep, decisive, checkpoints, loader, averages, resume=config.resume
    )
    trainer = _trainer(
        config,
        [
            checkpoints,
            ShowSamples(out, tokenizer, [val_samples[i] for i in range(min(shown, len(val_samples)))]),
            *([] if averages is None else [averages]),
            Watch(config.batch_tokens),  # before what saves states, which is no waiting for data
            state,
            EndTogether(),
            *callbacks,
        ],
    )
    try:
        with told_as_data_error():  # here too: torch tells of a worker's death wherever this process is
            trainer.fit(module, loader, val_loader)
            if checkpoints.saved_at < trainer.global_step:  # steps after the last multiple of val_every
                trainer.validate(module, val_loader, verbose=False)
    except SIGTERMException:  # its code is 0, as if the work were done
        if trainer.local_rank and not is_torchelastic_launched():
            raise  # the first process, which started this one, would be killed for any other code
        sys.exit(128 + signal.SIGTERM)
    except SystemExit:  # Lightning's answer to Ctrl-C, with the code of work that failed
        raise KeyboardInterrupt from None
    finally:
        loader.close()
        val_loader.close()
    lost = lost_of(train_samples, val_samples)
    broken = list(dict.fromkeys([*lost, *(reason for reasons in gathered(list(module.broken)) for reason in reasons)]))
    if trainer.is_global_zero:
        save_finished(out, {"config": decisive, "seconds": round(state.seconds, 1), "broken": broken})
    return Run(out, state.seconds, val_samples, broken, trainer.is_global_zero)


def _rewards(config: TrainConfig, data: Data, model: MultimodalGPT) -> Rewards | None:
    """What a run by reward learns from. Raises ConfigError for a model that pairs."""
    if config.reward is None:
        return None
    if model.pair is not None:
        raise ConfigError("model.pair: not together with reward; leave out one of the two")
    if config.reward.metric != "cider":
        return Rewards(config.reward, data.tokenizer)
    references = (one.references for sample in data.train for one in sample.exchanges)
    return Rewards(config.reward, data.tokenizer, references)


def data_workers(config: TrainConfig) -> int:
    """How many processes decode media for this one."""
    if config.data.workers is not None:
        return config.data.workers
    return spare_cores(processes(config)["devices"]) if torch.cuda.is_available() else 0


def spare_cores(processes: int = 1) -> int:
    """How many cores each of so many processes on this machine leaves to data workers, MOST_WORKERS at most."""
    return max(0, min(MOST_WORKERS, (os.cpu_count() or 1) // processes - 1))


def _announce(model: MultimodalGPT, data: Data, count: int | None, config: TrainConfig) -> None:
    """Tell what will be trained on what: `count` samples, or a stream."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{parameters / 1e6:.2f} M parameters, {len(data.tokenizer)} tokens in the vocabulary; "
        f"{'a stream of' if count is None else f'{count:,}'} samples to train on, {len(data.val):,} to validate on",
        flush=True,
    )
    print_parts(model, config.optimizer)
    if isinstance(data.train, Mixture):
        for share in data.train.shares():
            print(
                f"  {share.source}: {share.samples:,} samples, {share.weight:.1%} of the draws, "
                f"{share.epochs:.2f} times through it in an epoch of the mixture",
                flush=True,
            )


def _trainer(config: TrainConfig, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's, with its own progress, checkpoints and checks off, for which the callbacks are there."""
    end_with_first()
    return L.Trainer(
        **processes(config),
        precision=precision(config.precision),
        max_epochs=config.epochs if config.steps is None else -1,
        max_steps=config.steps or -1,
        val_check_interval=config.val_every or None,
        check_val_every_n_epoch=None if config.val_every else 1,
        num_sanity_val_steps=0,
        log_every_n_steps=LOGGED,
        logger=[CSVLogger(save_dir=config.out, name="", version=""), *_loggers(config)],
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def _loggers(config: TrainConfig) -> list[Logger]:
    """Those asked for besides the CSV file. Raises ConfigError for one that is not installed."""
    # What a process that was killed told after its last state is told again, and then hidden.
    again = int(before[-1].name) if (before := states(Path(config.out))) else None
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(config.out, name="", version="tensorboard", purge_step=again),
        "wandb": lambda: WandbLogger(save_dir=config.out, name=Path(config.out).name),
    }
    made = []
    for name in config.loggers:
        try:
            made.append(makers[name]())
        except ModuleNotFoundError:
            raise ConfigError(
                f"loggers: {name} is not installed; install the extra: uv sync --extra {name}, or pip install {name}"
            ) from None
    return made


def _decisive(config: TrainConfig) -> dict[str, Any]:
    """What decides how a run goes, by name and as JSON has it; a resumed run must have the same."""
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    for name in (
        "out",
        "resume",
        "save_every",
        "keep",
        "beams",
        "loggers",
        "cache",
        "cache_gb",
        "checkpoint_activations",
    ):
        del values[name]
    del values["data"]["workers"]
    return values


def _check(config: TrainConfig) -> None:
    counts = {
        "batch_size": config.batch_size,
        "batch_tokens": config.batch_tokens,
        "accumulate": config.accumulate,
        "save_every": config.save_every,
        "keep": config.keep,
        "epochs": config.epochs,
        "steps": config.steps,
        "data.samples": config.data.samples,
        "data.val_samples": config.data.val_samples,
    }
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ConfigError(f"{name}: must be a whole number from 1 on, not {count}")
    if (config.data.workers or 0) < 0:
        raise ConfigError(f"data.workers: must be a whole number from 0 on, not {config.data.workers}")
    if not 0 <= config.label_smoothing < 1:
        raise ConfigError(f"label_smoothing: must be from 0 on and below 1, not {config.label_smoothing}")
    if config.ema is not None and not 0 <= config.ema < 1:
        raise ConfigError(f"ema: must be from 0 on and below 1, such as 0.999, not {config.ema}")
    if config.reward is not None:
        _check_reward(config, config.reward)
    augment = config.augment
    if not 0 < augment.crop <= 1:
        raise ConfigError(f"augment.crop: must be above 0 and at most 1, not {augment.crop}")
    if augment.randaugment < 0:
        raise ConfigError(f"augment.randaugment: must be a whole number from 0 on, not {augment.randaugment}")
    if not 0 <= augment.magnitude <= 30:
        raise ConfigError(f"augment.magnitude: must be a whole number from 0 to 30, not {augment.magnitude}")
    if not 0 <= augment.hide < 1:
        raise ConfigError(f"augment.hide: must be from 0 on and below 1, not {augment.hide}")
    if config.data.format == "hf_stream" and config.steps is None:
        raise ConfigError("steps: how many samples a stream has is unknown; say after how many steps to end")


def _check_reward(config: TrainConfig, reward: RewardConfig) -> None:
    if reward.samples < 2:
        raise ConfigError(f"reward.samples: must be from 2 on, one to hold against another, not {reward.samples}")
    if reward.max_new_tokens < 1:
        raise ConfigError(f"reward.max_new_tokens: must be from 1 on, not {reward.max_new_tokens}")
    if reward.metric == "cider" and config.data.format == "hf_stream":
        raise ConfigError("reward.metric: cider needs all references at once, and a stream has no end; take another")
    others = {
        "sharded": config.sharded,
        "loss_per": config.loss_per != "token",
        "label_smoothing": config.label_smoothing > 0,
        "checkpoint_activations": config.checkpoint_activations,
        "augment.spec": config.augment.spec,
        "augment.frames": config.augment.frames,
        "augment.hide": config.augment.hide > 0,
        "model.ctc": config.model.ctc > 0,
    }
    for name, given in others.items():
        if given:
            raise ConfigError(f"{name}: not together with reward; leave out one of the two")


def load_data(config: DataConfig, seed: int) -> tuple[Iterable[Sample], Sequence[Sample]]:
    """Training and validation samples, of a stream and of the world as many of these as config says.

    The former may be a stream. Raises DataError where there are none.
    """
    if config.format == "hf_stream":
        if config.path is None:
            raise ConfigError("data.path: format hf_stream needs the folder or the Hub id of a data set")
        val = head(HFStream(config.path, config.val_split), config.val_samples)
        if not val:
            raise DataError(f"{config.path}: no samples in split {config.val_split!r}")
        return HFStream(config.path, config.split), val
    if config.format == "world":
        return (
            World("train", config.samples, seed, config.world),
            World("dev", config.val_samples, seed, config.world),
        )
    train, val = (read_samples(config, split, seed) for split in (config.split, config.val_split))
    for name, samples in ((config.split, train), (config.val_split, val)):
        if not samples:
            raise DataError(f"{config.path}: no samples in split {name!r}")
    return train, val


def model_config(config: TrainConfig) -> ModelConfig:
    """Of the model to train: the configuration's own, or that of `init`."""
    if config.init is None:
        return config.model
    return _weighed(checkpoint.read_config(config.init).with_encoders(config.model), config)


def make_model(config: TrainConfig, tokenizer: Tokenizer) -> MultimodalGPT:
    """The model to train, in training mode: a new one, or the one that `init` names."""
    if config.init is None:
        return MultimodalGPT(replace(config.model, gpt=replace(config.model.gpt, vocab_size=len(tokenizer))))
    model, _ = checkpoint.load(config.init)
    for encoder in (model.config.image, model.config.audio):
        if encoder is not None:
            encoder.frozen = False
    model.requires_grad_(True).train()
    model.add_encoders(config.model)
    _weighed(model.config, config)
    if model.config.ctc and model.ctc is None:
        model.add_ctc(model.config.ctc)
    return model


def _weighed(model: ModelConfig, config: TrainConfig) -> ModelConfig:
    """The configuration of `init` itself, with the weights of its losses set anew where the run gives any."""
    if model.pair is not None and config.model.pair is not None:
        model.pair.weight, model.pair.caption = config.model.pair.weight, config.model.pair.caption
    if config.model.ctc:
        model.ctc = config.model.ctc
    return model


def make_tokenizer(config: TrainConfig, samples: Iterable[Sample]) -> Tokenizer:
    """That of `init`, or what the configuration names, or that of the GPT's weights; else one trained on the texts.

    Raises ConfigError for settings of a new model beside `init`.
    """
    data, weights = config.data, config.model.gpt.weights
    if config.init is not None:
        _check_beside_init(config, config.init)
        return checkpoint.load_tokenizer(config.init)
    if data.tokenizer:
        return Tokenizer.load(data.tokenizer)
    if weights:
        return Tokenizer.load(fetch(weights, *FILES))
    some = islice(samples, TOKENIZED[data.format]) if data.format in TOKENIZED else samples
    texts = (text for sample in some for text in sample.texts())
    return Tokenizer.train(texts, data.vocab_size)


def _check_beside_init(config: TrainConfig, init: str) -> None:
    pair = config.model.pair
    new = ModelConfig(pair=pair and PairConfig(weight=pair.weight, caption=pair.caption), ctc=config.model.ctc)
    new = replace(new, adapters=config.model.adapters, **config.model.encoders)
    for field, given in (("model", config.model != new), ("data.tokenizer", config.data.tokenizer is not None)):
        if given:
            raise ConfigError(f"{field}: init ({init}) has its own; leave out one of the two")
    if checkpoint.locate(init).parent.resolve() in [(Path(config.out) / name).resolve() for name in ("best", "last")]:
        raise ConfigError(f"out: {config.out} is where init lies, which the run would replace; name another folder")
    begun = checkpoint.read_config(init)
    begun.with_encoders(config.model)
    if pair is not None:
        check_weights(pair)
        if begun.pair is None:
            raise ConfigError(f"model.pair: init ({init}) does not pair media with texts; leave it out")


def precision(wish: Precision) -> Literal["32-true", "bf16-mixed"]:
    """bf16-mixed where it is quicker than float32, unless told otherwise."""
    if wish != "auto":
        return wish
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    # A CPU without AMX emulates bf16, many times slower than float32, or with AVX-512's own instructions multiplies
    # hardly faster, and loses more by casting: seen on a Xeon, a step in bf16 took 1.4 to 1.9 times as long.
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bf16-mixed" if amx else "32-true"


def _quiet() -> None:
    """Lightning's hints on hardware, workers, logs and intervals are not about anything the user did."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    hints = (
        "num_workers",
        "Experiment logs",
        "logging interval",
        "returned `None`",
        "LeafSpec",
        "Found .* in eval mode",
        "sync_dist",  # what is logged has been gathered already
    )
    for hint in hints:
        warnings.filterwarnings("ignore", module="lightning", message=f".*{hint}")
