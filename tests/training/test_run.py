"""A run from its configuration to the end, on real files."""

import csv
import multiprocessing
import os
import random
from dataclasses import replace
from pathlib import Path

import lightning as L
import PIL.Image
import pytest
import torch
from tiny import some_audio, some_video, tiny_config
from walls import colour_of, train_until, wall_config, write_shards, write_walls

import mmgpt
from mmgpt import checkpoint
from mmgpt.cli.train import parse, save_config
from mmgpt.content import Message
from mmgpt.data.sample import Sample
from mmgpt.errors import ConfigError, DataError
from mmgpt.model import MultimodalGPT
from mmgpt.run_config import AugmentConfig, DataConfig, TrainConfig
from mmgpt.tokenizer import Tokenizer
from mmgpt.training.meter import LOGGED
from mmgpt.training.report import finish
from mmgpt.training.run import Data, data_workers, fit, load_data, make_model, make_tokenizer, precision, read, train


def column(out: Path, name: str) -> list[float]:
    """The values of a column of the log."""
    with (out / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    model, _ = checkpoint.load(directory)
    return dict(model.state_dict())


def test_it_learns_the_samples_and_generalises_to_those_held_out(learned):
    losses = column(learned.run.out, "loss")
    assert losses[-1] < 0.1 < 1 < losses[0]
    for name in ("best", "last"):
        model = mmgpt.load(learned.run.out / name, device="cpu")
        said = model.caption([learned.folder / f"{i}.png" for i in range(12)])  # the last three are held out
        assert said == [f"{colour_of(i)} wall" for i in range(12)]


def test_a_run_leaves_its_log_its_checkpoints_and_a_sheet_of_each_validation(learned):
    out = learned.run.out
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["step-000100.png", "step-000200.png"]
    assert PIL.Image.open(out / "samples" / "step-000200.png").width > 600
    assert len(column(out, "val_loss")) == len(column(out, "val_score")) == 2
    training = checkpoint.read_training(checkpoint.resolve(out / "last"))
    assert (training["steps"], training["samples"], training["epochs"]) == (200, 10, 100)
    assert training["data"] == str(learned.folder)


def test_a_broken_picture_costs_one_sample_and_is_named_once(learned):
    assert sorted(line.partition(": ")[0] for line in learned.run.broken) == [
        f"{learned.folder / 'captions.csv'}:14",
        f"{learned.folder / 'captions.csv'}:15",
    ]
    assert "broken-train.png: is damaged or not a picture" in learned.run.broken[0]


@pytest.mark.filterwarnings("ignore:.*is cut off")
def test_the_lost_rest_of_a_shard_is_told_with_what_is_broken(tmp_path):
    folder = write_walls(tmp_path / "data", broken=("dev",))
    write_shards(folder)
    shard = folder / "shards" / "train-0.tar"
    shard.write_bytes(shard.read_bytes()[:-10_000])
    config = wall_config(folder / "shards", tmp_path / "run")
    config.data.format = "webdataset"
    run = train(config)
    lost, broken = run.broken
    assert lost.startswith(f"{shard}: it is cut off")
    assert "broken-dev.png: is damaged" in broken
    finish(config, run)
    assert (run.out / "broken.txt").read_text().splitlines()[0] == lost
    assert train(replace(config, resume=True)).broken == run.broken


def test_a_batch_in_which_all_are_broken_is_stepped_over(tmp_path):
    folder = write_walls(tmp_path / "data", train=2, dev=2, broken=("train", "dev"))
    run = train(wall_config(folder, tmp_path / "run", batch_size=1))
    assert len(run.broken) == 2
    assert checkpoint.read_training(checkpoint.resolve(run.out))["val_loss"] > 0


def test_a_run_that_can_learn_from_no_sample_says_so(tmp_path):
    """As where the model has no encoder for what the data show."""
    folder = write_walls(tmp_path / "data", train=2, dev=2)
    config = wall_config(folder, tmp_path / "run")
    config.model.image = None
    with pytest.raises(
        DataError, match=r"learned from any sample; the first: .*captions.csv:2: this model has no image encoder"
    ):
        train(config)


def test_the_saved_configuration_runs_again_to_the_same_weights(tmp_path):
    folder = write_walls(tmp_path / "data", dev=2)
    config = wall_config(
        folder, tmp_path / "first", epochs=10, augment=AugmentConfig(crop=0.6, mirror=True, randaugment=2), seed=3
    )
    config.model.gpt.dropout = 0.1
    save_config(config)
    train(config)
    again = parse(["--config", str(tmp_path / "first" / "config.yaml"), "--out", str(tmp_path / "second")])
    torch.rand(7)  # whatever was drawn before
    random.random()
    train(again)
    assert column(tmp_path / "second", "loss") == column(tmp_path / "first", "loss")
    assert column(tmp_path / "second", "val_loss") == column(tmp_path / "first", "val_loss")
    first, second = tensors(tmp_path / "first" / "last"), tensors(tmp_path / "second" / "last")
    assert all(torch.equal(first[name], second[name]) for name in first)

    train(replace(again, seed=4, out=str(tmp_path / "third")))
    assert column(tmp_path / "third", "loss") != column(tmp_path / "first", "loss")


def test_activations_are_computed_again_if_so_configured_and_change_no_weight(tmp_path, monkeypatch):
    config = wall_config(write_walls(tmp_path / "data", dev=2), tmp_path / "plain", epochs=2)
    train(config)
    asked = []
    checkpoint_activations = MultimodalGPT.checkpoint_activations
    monkeypatch.setattr(
        MultimodalGPT, "checkpoint_activations", lambda model: asked.append(checkpoint_activations(model))
    )
    train(replace(config, out=str(tmp_path / "again"), checkpoint_activations=True))
    plain, again = tensors(tmp_path / "plain" / "last"), tensors(tmp_path / "again" / "last")
    assert len(asked) == 1
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_steps_after_the_last_validation_are_validated_and_kept(tmp_path):
    folder = write_walls(tmp_path / "data", dev=2)
    for val_every, validations in ((3, 2), (1000, 1)):  # of 4 steps
        out = tmp_path / str(val_every)
        train(wall_config(folder, out, epochs=2, val_every=val_every))
        assert len(column(out, "val_loss")) == validations
        assert checkpoint.read_training(checkpoint.resolve(out / "last"))["steps"] == 4


def test_no_data_worker_outlives_a_run(tmp_path):
    before = set(multiprocessing.active_children())
    config = wall_config(write_walls(tmp_path / "data"), tmp_path / "run", steps=1)  # in the middle of an epoch
    config.data.workers = 1
    train(config)
    assert set(multiprocessing.active_children()) == before


def test_without_an_interval_each_epoch_is_validated(tmp_path):
    folder = write_walls(tmp_path / "data", dev=2)
    run = train(wall_config(folder, tmp_path / "run", epochs=3))
    assert sorted(path.name for path in (run.out / "samples").iterdir()) == [
        f"step-{step:06d}.png" for step in (2, 4, 6)
    ]


def test_what_is_frozen_stays_as_it_was_and_the_rest_learns(tmp_path):
    folder = write_walls(tmp_path / "data", dev=2)
    config = wall_config(folder, tmp_path / "run", train=["gpt.transformer", "adapters"])
    config.optimizer.weight_decay = 0.5
    run = train(config)
    trained = tensors(run.out / "last")
    torch.manual_seed(config.seed)  # as train does before it builds the model
    start = make_model(config, checkpoint.load_tokenizer(run.out / "last")).state_dict()
    same = {name for name in trained if torch.equal(trained[name], start[name])}
    frozen = {name for name in trained if name.startswith(("encoders.image", "gpt.embedding"))}
    assert frozen <= same
    assert {"gpt.transformer.blocks.0.mlp.up.weight", "adapters.image.project.weight"} & same == set()
    assert not any(name.startswith("gpt.transformer.blocks") for name in same)


def test_a_pattern_that_names_nothing_stops_before_training(tmp_path):
    folder = write_walls(tmp_path / "data", dev=2)
    with pytest.raises(ConfigError, match=r"train: nothing is named 'encoders\.audio'; did you mean encoders"):
        train(wall_config(folder, tmp_path / "run", train=["gpt", "encoders.audio"]))
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_share_of_smoothing_that_makes_no_sense_is_told(tmp_path):
    with pytest.raises(ConfigError, match="label_smoothing: must be from 0 on and below 1, not 1"):
        train(wall_config(tmp_path, tmp_path / "run", label_smoothing=1))


@pytest.mark.parametrize(("field", "value"), [("batch_size", 0), ("epochs", 0)])
def test_counts_that_make_no_sense_are_told(tmp_path, field, value):
    with pytest.raises(ConfigError, match=f"{field}: must be a whole number from 1 on, not {value}"):
        train(wall_config(tmp_path, tmp_path / "run", **{field: value}))


def test_spectrograms_are_masked_while_training_if_so_configured(tmp_path, tokenizer):
    samples = [Sample((Message.of("user", some_audio(i)),), ("a sound",), "ask", f"x:{i}") for i in range(4)]
    config = wall_config(tmp_path, tmp_path / "plain", epochs=LOGGED)
    config.model.image, config.model.audio = None, tiny_config(9).audio
    for name, spec in (("plain", False), ("masked", True)):
        changed = replace(config, out=str(tmp_path / name), augment=AugmentConfig(spec=spec))
        changed.optimizer.learning_rate = 1e-30  # so that validation is of the same weights
        fit(changed, Data(samples, samples, tokenizer, shuffle=False))
    assert len(column(tmp_path / "plain", "loss")) == 1
    assert column(tmp_path / "plain", "loss") != column(tmp_path / "masked", "loss")
    assert column(tmp_path / "plain", "val_loss") == column(tmp_path / "masked", "val_loss")


@pytest.mark.parametrize("augment", [AugmentConfig(hide=0.5), AugmentConfig(frames=True)])
def test_frames_of_clips_are_hidden_while_training_if_so_configured(tmp_path, tokenizer, augment):
    samples = [Sample((Message.of("user", some_video(i)),), ("a clip",), "ask", f"x:{i}") for i in range(4)]
    config = wall_config(tmp_path, tmp_path / "plain", epochs=LOGGED)
    for modality in ("image", "audio", "video"):
        setattr(config.model, modality, getattr(tiny_config(9), modality))
    config.model.adapters = tiny_config(9).adapters
    config.model.video.frames = 12
    for name, changes in (("plain", AugmentConfig()), ("hidden", augment)):
        changed = replace(config, out=str(tmp_path / name), augment=changes)
        changed.optimizer.learning_rate = 1e-30  # so that validation is of the same weights
        fit(changed, Data(samples, samples, tokenizer, shuffle=False))
    assert column(tmp_path / "plain", "loss") != column(tmp_path / "hidden", "loss")
    assert column(tmp_path / "plain", "val_loss") == column(tmp_path / "hidden", "val_loss")


@pytest.mark.parametrize(
    ("augment", "told"),
    [
        (AugmentConfig(crop=0), r"augment\.crop: must be above 0 and at most 1, not 0"),
        (AugmentConfig(crop=1.5), r"augment\.crop: must be above 0 and at most 1, not 1\.5"),
        (AugmentConfig(hide=1), r"augment\.hide: must be from 0 on and below 1, not 1"),
        (AugmentConfig(randaugment=-1), r"augment\.randaugment: must be a whole number from 0 on, not -1"),
        (
            AugmentConfig(randaugment=1, magnitude=31),
            r"augment\.magnitude: must be a whole number from 0 to 30, not 31",
        ),
    ],
)
def test_augmentation_that_makes_no_sense_is_told(tmp_path, augment, told):
    with pytest.raises(ConfigError, match=told):
        train(wall_config(tmp_path, tmp_path / "run", augment=augment))


def test_validation_samples_are_spread_over_the_split(tmp_path):
    folder = write_walls(tmp_path / "data", train=2, dev=12)
    config = TrainConfig(data=DataConfig("captions", str(folder), vocab_size=280, val_samples=4))
    all_of_them, some = (read(config, whole=whole).val for whole in (True, False))
    assert len(some) == 4
    assert [one.where for one in some] == [one.where for one in all_of_them[::3]]


def test_a_split_with_nothing_in_it_is_told(tmp_path):
    folder = write_walls(tmp_path / "data")
    with pytest.raises(DataError, match=r'nothing is in the split "tset"'):
        load_data(DataConfig("captions", str(folder), split="tset"), seed=0)


def test_a_tokenizer_that_is_named_is_used_and_otherwise_one_is_trained(tmp_path):
    folder = write_walls(tmp_path / "data")
    samples, _ = load_data(DataConfig("captions", str(folder)), seed=0)
    trained = make_tokenizer(TrainConfig(data=DataConfig("captions", str(folder), vocab_size=300)), samples)
    assert len(trained.encode(" wall")) < len(" wall")
    own = Tokenizer.train(["something else"], 261)
    (tmp_path / "tokenizer.json").write_text(own.to_json())
    assert len(make_tokenizer(TrainConfig(data=DataConfig(tokenizer=str(tmp_path))), samples)) == len(own)


class Kept(L.Callback):
    """The types of what a step leaves, and its optimizer."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_) -> None:
        self.optimizer = trainer.optimizers[0]
        tensors = [tensor for values in self.optimizer.state.values() for tensor in values.values()]
        weights = list(pl_module.parameters())
        self.types = {one.dtype for one in (*tensors, *weights, *(weight.grad for weight in weights))}
        self.loss = float(trainer.callback_metrics["loss"])


def test_bf16_computes_in_it_and_keeps_weights_gradients_and_the_optimizer_in_float32(tmp_path):
    folder, losses = write_walls(tmp_path / "data"), {}
    for kind in ("32-true", "bf16-mixed"):
        kept, config = Kept(), wall_config(folder, tmp_path / kind, steps=1, precision=kind)
        fit(config, read(config), [kept])
        assert kept.types == {torch.float32}
        assert isinstance(kept.optimizer, torch.optim.AdamW)
        assert all(group["fused"] for group in kept.optimizer.param_groups)
        losses[kind] = kept.loss
    assert losses["bf16-mixed"] != losses["32-true"]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=2**-7)  # a rounding of eight bits


def test_tensorboard_is_told_what_metrics_csv_is_told(tmp_path):
    """Once, though the run was killed after it had told more than its state knows of."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"steps": 30, "val_every": 10, "save_every": 15, "loggers": ["tensorboard"]}
    config = wall_config(write_walls(tmp_path / "data"), tmp_path / "run", **settings)
    train_until(config, losses=30)
    train(replace(config, resume=True))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("loss", "val_loss", "gradient/gpt", "tokens_per_second"):
        told = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        assert told
        assert [event.step for event in events.Scalars(name)] == list(told)
        assert [event.value for event in events.Scalars(name)] == pytest.approx(list(told.values()), rel=1e-5)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_told_by_its_name(tmp_path, name, monkeypatch):
    for flag in ("pytorch.loggers.wandb._WANDB", *(f"fabric.loggers.tensorboard._TENSORBOARD{x}" for x in ("", "X"))):
        monkeypatch.setattr(f"lightning.{flag}_AVAILABLE", False)  # looked up when Lightning was imported
    config = wall_config(write_walls(tmp_path / "data"), tmp_path / "run", loggers=[name])
    with pytest.raises(ConfigError, match=rf"^loggers: {name} is not installed; .* uv sync --extra {name}, or"):
        train(config)


def test_a_budget_of_tokens_takes_the_place_of_a_number_of_samples(tmp_path):
    """Also of one that a configuration file gives."""
    (tmp_path / "config.yaml").write_text("batch_size: 16\n")
    config = parse([str(tmp_path / "config.yaml"), "--batch_tokens", "8192"])
    assert (config.batch_size, config.batch_tokens) == (None, 8192)
    assert parse([str(tmp_path / "config.yaml")]).batch_size == 16


@pytest.mark.parametrize("said", [["--batch_size", "8"], ["--batch_size=8"]])
def test_a_number_of_samples_takes_the_place_of_a_files_budget_of_tokens(tmp_path, said):
    (tmp_path / "config.yaml").write_text("batch_tokens: 8192\n")
    config = parse([str(tmp_path / "config.yaml"), *said])
    assert (config.batch_size, config.batch_tokens) == (8, None)
    both = parse([str(tmp_path / "config.yaml"), *said, "--batch_tokens", "512"])
    assert (both.batch_size, both.batch_tokens) == (None, 512)


def test_media_are_decoded_aside_where_there_are_gpus_and_cores_to_spare(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    config = TrainConfig(devices=2)
    assert data_workers(config) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert data_workers(config) == 5  # of six cores for each process, one computes
    assert data_workers(replace(config, devices=1)) == 8
    config.data.workers = 3
    assert data_workers(config) == 3
    config.data.workers, config.devices = None, 1
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert data_workers(config) == 0


def test_bf16_is_chosen_only_where_the_cpu_is_quicker_in_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for amx, expected in ((False, "32-true"), (True, "bf16-mixed")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert precision("auto") == expected
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert precision("auto") == "32-true"
    assert precision("bf16-mixed") == "bf16-mixed"


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file() or torch.cuda.is_available(), reason="asks Linux of its CPU")
def test_bf16_is_not_chosen_on_this_cpu_without_the_instructions():
    flags = Path("/proc/cpuinfo").read_text().split()
    if "amx_bf16" not in flags:
        assert precision("auto") == "32-true"
