"""Trains by plain gradient descent in the processes that torchrun starts, or in one, and saves the weights; a script.

torchrun --nproc-per-node 2 ranks.py OUT
"""

import dataclasses
import json
import os
import sys
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from unittest.mock import patch

import lightning as L
import PIL.Image
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import save_file
from tiny import seeing, some_audio, some_image, some_video, tiny_config
from torch import Tensor
from walls import wall_config

from mmgpt.config import AudioEncoderConfig, GPTConfig, PairConfig
from mmgpt.content import Image, Message
from mmgpt.data.loader import Loader, Step
from mmgpt.data.sample import Sample
from mmgpt.distributed import meet
from mmgpt.errors import TrainingError
from mmgpt.gpt.transformer import GPT
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor
from mmgpt.run_config import OptimizerConfig, RewardConfig, TrainConfig
from mmgpt.tokenizer import Tokenizer
from mmgpt.training import callbacks, parallel
from mmgpt.training.averages import AverageWeights
from mmgpt.training.callbacks import ShowSamples
from mmgpt.training.module import BLANK, MultimodalModule
from mmgpt.training.parallel import gather, is_sharded, own_part, plain
from mmgpt.training.reward import Rewards
from mmgpt.training.run import train as train_by_config
from mmgpt.training.state import load_averages, load_weights, save_state

# What the samples show, in turn: of two processes the first has the even ones, the second the odd ones.
CASES = {
    "text and sound": [lambda i: None, some_audio],
    "pictures and clips": [some_image, some_video],
    "sound and pictures": [some_audio, some_image],
    "nothing for the second": [some_image],
    "encoders alike": [*[lambda i: None, some_audio] * 2, *[some_image, some_audio] * 2],  # two of each to a batch
    "clip": [some_audio, some_image],
    "siglip": [some_audio, some_image],
    "by reward": [some_audio, some_image],
}
PAIRED = ("clip", "siglip")

# Where a run reads walls that lie in a folder.
SOURCES = {"webdataset": "shards", "hf_stream": "stream"}
STEPS, KEPT, LAST = 12, 2, 3  # of a run, of its state, of one that dies


def samples(case: str) -> list[Sample]:
    makers = CASES[case]
    count = 1 if len(makers) == 1 else 9  # which do not divide evenly either
    shown = [makers[i % len(makers)](i) for i in range(count)]
    said = [i % 4 if case in PAIRED else i for i in range(count)]  # the same of two that different processes have
    return [
        Sample(
            (Message.of("user", *([medium] if medium else []), "What?"),), (f"{n} is " + "so " * n,), "ask", f"x:{i}"
        )
        for i, (n, medium) in enumerate(zip(said, shown, strict=True))
    ]


def train(case: str, out: Path, crossing: bool = False, sharded: bool = False, **loading) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    tokenizer = Tokenizer.train(["What? is so so so 0 1 2 3 4 5 6 7 8 9"], 280)
    config = tiny_config(len(tokenizer))
    config.gpt.cross = "inside" if crossing else None
    if case == "encoders alike":  # all weights but the first convolution's have the shapes of the other's
        config.audio = AudioEncoderConfig(config.image.name, sample_rate=8000, mels=32, args=config.image.args)
    if case == "text and sound":
        config.ctc = 0.5
    if case in PAIRED:
        text = GPTConfig(width=16, layers=1, heads=2, context=160)
        config.pair = PairConfig(case, 16, text, heads=2, caption=0.0 if case == "siglip" else 1.0)
    torch.manual_seed(0)
    module = descending(MultimodalGPT(config))
    if case == "by reward":
        module.rewards = Rewards(RewardConfig("chrf", samples=3, max_new_tokens=9), tokenizer)
    averages = AverageWeights(0.5)
    trainer = trainer_of(processes, sharded, averages)
    processor = Processor(module.model.config, tokenizer)
    train, val = (Loader(samples(case), processor, shuffle=False, **loading) for _ in range(2))
    trainer.fit(module, train, val)
    name = f"{case}{' beside the sequence' if crossing else ''}{' accumulated' if 'accumulate' in loading else ''}"
    name += " divided" if sharded else ""
    through_a_state(out / name, module.model, trainer, averages)
    learned = gather({name: parameter.detach().clone() for name, parameter in module.model.named_parameters()})
    averages.exchange(module)
    with most_alive(out) if sharded else nullcontext():
        learned |= gather({f"average {name}": parameter for name, parameter in module.model.named_parameters()})
    if trainer.is_global_zero:
        learned["val_loss"] = trainer.callback_metrics["val_loss"].reshape(1)
        save_file(learned, out / f"{name}.safetensors")


def descending(model: MultimodalGPT) -> MultimodalModule:
    """Learns by gradient descent, which does not make much of small differences; what it has no gradient of would move
    by momentum and decay.
    """
    module = MultimodalModule(model, OptimizerConfig(clip=1.0, warmup=0))
    module.configure_optimizers = lambda: torch.optim.SGD(  # type: ignore[method-assign]
        [{"params": list(module.model.parameters()), "initial_lr": 0.1}], lr=0.1, momentum=0.5, weight_decay=0.1
    )
    return module


@contextmanager
def most_alive(out: Path) -> Iterator[None]:
    """How many whole tensors each process has had at once."""
    made, most = [], 0

    def watched(tensor: Tensor) -> Tensor:
        nonlocal most
        whole = plain(tensor)
        made.append(weakref.ref(whole))
        most = max(most, sum(one() is not None for one in made))
        return whole

    with patch.object(parallel, "plain", watched):
        yield
    (out / f"alive.{os.environ.get('RANK', 0)}").write_text(str(most))


def show(out: Path, sharded: bool) -> None:
    """Trains with samples shown after each epoch, and notes what was shown.

    The second process lacks a picture of one, and would end each answer at once.
    """
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    tokenizer = Tokenizer.train(["What? is so so so 0 1 2 3 4 5 6 7 8 9"], 280)
    module = descending(seeing(tiny_config(len(tokenizer)), 3.0).train())
    known = samples("sound and pictures")
    if not rank:
        PIL.Image.new("RGB", (40, 40)).save(out / "0.png")
    lacking = Sample((Message.of("user", Image(out / f"{rank}.png"), "What?"),), ("0 is",), "ask", "x:9")
    train, val = (
        Loader(known, Processor(module.model.config, tokenizer), shuffle=False, batch_size=4 // processes)
        for _ in range(2)
    )
    end, head, noted = torch.tensor([tokenizer.end]), module.model.gpt.head, []
    with (
        patch.object(callbacks, "write_contact_sheet", lambda path, answered: noted.append(answered)),
        patch.object(GPT, "head", lambda _, hidden: head(hidden).index_fill_(-1, end, 1e9)) if rank else nullcontext(),
    ):
        trainer = trainer_of(processes, sharded, ShowSamples(out, tokenizer, [*known[:3], lacking, known[3]]))
        trainer.fit(module, train, val)
    learned = gather(dict(module.model.named_parameters()))
    if not rank:
        told = [{one.where: one.prediction for one in answered} for answered in noted]
        (out / "shown.json").write_text(json.dumps(told))
        save_file(learned, out / "shown.safetensors")


def break_down(out: Path) -> None:
    """What each process says when the loss of the second one's sounds is not finite."""
    processes = int(os.environ["WORLD_SIZE"])
    tokenizer = Tokenizer.train(["What? is so so so 0 1 2 3 4 5 6 7 8 9"], 280)
    module = MultimodalModule(MultimodalGPT(tiny_config(len(tokenizer))))
    with torch.no_grad():
        next(module.model.adapters["audio"].parameters()).fill_(torch.nan)
    loader = Loader(samples("text and sound")[:4], Processor(module.model.config, tokenizer), batch_size=2)
    try:
        trainer_of(processes).fit(module, loader)
    except TrainingError as error:
        (out / f"error.{os.environ['RANK']}").write_text(str(error))


def packed(source: str, out: Path) -> None:
    """What this process learns in each step of runs packed by tokens: a whole one, one that dies, and its rest."""
    config = wall_config(
        out / "walls", out / f"{source} whole", batch_size=None, batch_tokens=50, accumulate=2, steps=STEPS
    )
    config.data.format, config.data.path, config.devices = source, str(out / "walls" / SOURCES[source]), 2
    broken = dataclasses.replace(config, out=str(out / f"{source} resumed"), save_every=KEPT)
    told = {
        "whole": steps_of(config),
        "died": steps_of(broken, LAST),
        "rest": steps_of(dataclasses.replace(broken, resume=True)),
    }
    (out / f"{source}.{os.environ['RANK']}.json").write_text(json.dumps(told))


def steps_of(config: TrainConfig, last: int = STEPS) -> list[dict]:
    """A run that dies after the last of these steps, if there would be more."""
    steps: list[dict] = []
    learn = MultimodalModule.training_step

    def watched(module: MultimodalModule, step: Step, index: int) -> None:
        if len(steps) == last:
            raise ZeroDivisionError
        steps.append({"samples": step.names, "after": step.state})
        learn(module, step, index)

    with patch.object(MultimodalModule, "training_step", watched), suppress(ZeroDivisionError):
        train_by_config(config)
    return steps


@torch.no_grad()
def through_a_state(out: Path, model: MultimodalGPT, trainer: L.Trainer, averages: AverageWeights) -> None:
    """Weights and averages are those of a state that is saved after a validation, as most are."""
    if is_sharded(model):
        model.loss(BLANK)  # as in validation: there is no backward pass
    save_state(out, 1, model, trainer.optimizers[0], {}, 1, averages.averages)
    meet()
    for tensor in (*model.parameters(), *averages.averages.values()):
        own_part(tensor).zero_()
    load_weights(out / "state" / "000000001", model)
    load_averages(out / "state" / "000000001", model, averages.averages)


def strategy(sharded: bool, processes: int):
    if processes == 1:
        return "auto"
    return ModelParallelStrategy(data_parallel_size=processes, tensor_parallel_size=1) if sharded else "ddp"


def trainer_of(processes: int, sharded: bool = False, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", devices=processes, strategy=strategy(sharded, processes), max_epochs=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )  # fmt: skip


def main(out: Path) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for case in CASES:
        train(case, out, batch_size=4 // processes)
        if case not in (*PAIRED, "by reward"):
            train(case, out, sharded=True, batch_size=4 // processes)
    train("text and sound", out, crossing=True, batch_size=4 // processes)
    train("sound and pictures", out, batch_size=2 // processes, accumulate=2)
    show(out, sharded=processes == 2)
    if processes == 2:
        for source in SOURCES:
            packed(source, out)
        break_down(out)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
