"""mmgpt train: from a file and the command line to a configuration, and what it says of bad ones."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from walls import wall_config, write_walls

from mmgpt import checkpoint
from mmgpt.cli.train import parse, save_config
from mmgpt.config import AdapterConfig, ImageEncoderConfig
from mmgpt.encoders import build_encoders
from mmgpt.run_config import AugmentConfig, LoraConfig, SourceConfig, TrainConfig


def test_the_command_line_goes_before_the_file_and_the_file_before_the_defaults(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "batch_size: 3\nepochs: 5\nmodel:\n  gpt: {width: 48}\n"
        "  image: {name: convnext_atto, size: [96, 64]}\n  adapters: {image: {kind: resampler}}\n"
    )
    config = parse(["--config", str(path), "--epochs", "7", "--model.image.frozen=true", "--train", "[gpt]"])
    assert (config.batch_size, config.epochs, config.seed) == (3, 7, 0)
    assert config.model.gpt.width == 48
    assert config.model.image == ImageEncoderConfig("convnext_atto", size=(96, 64), frozen=True)
    assert config.model.audio is None
    assert config.model.adapters == {"image": AdapterConfig("resampler")}
    assert config.train == ["gpt"]


def test_the_file_may_come_first_without_its_option(tmp_path):
    (tmp_path / "a.yaml").write_text("batch_size: 3\nepochs: 5\n")
    config = parse([str(tmp_path / "a.yaml"), "--epochs", "7"])
    assert config == parse(["--config", str(tmp_path / "a.yaml"), "--epochs", "7"])
    assert (config.batch_size, config.epochs) == (3, 7)


def test_no_cache_is_said_by_off(tmp_path):
    (tmp_path / "a.yaml").write_text("cache: off\n")
    (tmp_path / "b.yaml").write_text(f"cache: {tmp_path}\n")
    assert parse([str(tmp_path / "b.yaml")]).cache == str(tmp_path)
    for arguments in (["a.yaml"], ["b.yaml", "--cache", "off"], ["b.yaml", "--cache=off"]):
        assert parse([str(tmp_path / arguments[0]), *arguments[1:]]).cache is False


def test_without_options_the_defaults_are_taken():
    assert parse([]) == TrainConfig()


def test_adapters_and_patterns_are_set_on_the_command_line():
    config = parse(["--lora.rank", "4", "--train", "[adapters, '*.gated']", "--optimizer.scales", "{'*.gated': 2}"])
    assert config.lora == LoraConfig(rank=4)
    assert config.train == ["adapters", "*.gated"]
    assert config.optimizer.scales == {"*.gated": 2}


def test_each_random_change_is_asked_for_by_name():
    assert parse(["--augment.mirror", "true"]).augment == AugmentConfig(mirror=True)
    config = parse(["--augment", "{crop: 0.6, spec: true}", "--augment.randaugment=2"])
    assert config.augment == AugmentConfig(crop=0.6, randaugment=2, spec=True)


def test_a_mixture_is_named_in_the_file(tmp_path):
    path = tmp_path / "mix.yaml"
    path.write_text(
        "data: {format: mix, mix: {a: {format: chat, path: a.jsonl}, b: {format: hf, path: b, weight: 0.5}}}"
    )
    mix = parse(["--config", str(path)]).data.mix
    assert mix == {"a": SourceConfig("chat", "a.jsonl"), "b": SourceConfig("hf", "b", weight=0.5)}


def test_a_saved_configuration_reads_back_as_it_was(tmp_path):
    config = TrainConfig(out=str(tmp_path / "run"), train=["gpt"])
    config.model.image = ImageEncoderConfig("convnext_atto", size=(96, 64), args={"dims": [8, 8, 8, 8]})
    config.model.adapters = {"image": AdapterConfig("pixel_shuffle", factor=3)}
    save_config(config)
    assert parse(["--config", str(tmp_path / "run" / "config.yaml")]) == config


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_configurations_of_the_project_are_valid(path):
    """And their encoders can be built, but for those that are fetched."""
    config = parse(["--config", str(path)])
    assert config.out == f"runs/{path.stem}"
    if config.model.image is None or config.model.image.weights is None:
        build_encoders(config.model)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: {gpt: {widht: 3}}", "model.gpt.widht: unknown; did you mean width?"),
        (
            "augment: true",
            "augment: has fields of its own (crop, mirror, randaugment, magnitude, spec, frames, hide)",
        ),
        ("augment: {miror: true}", "augment.miror: unknown; did you mean mirror?"),
        ("data: {mix: {a: {format: chat}}}", "data.mix.a.path: missing; it has no default"),
        ("bach_size: 3", "bach_size: unknown; did you mean batch_size?"),
        ("model: {adapters: {image: {knd: mlp}}}", "model.adapters.image.knd: unknown; did you mean kind?"),
        ("batch_size: many", "batch_size"),
        ("data: {format: captoins}", "captoins"),
        ("a: [", "not YAML"),
        ("- a", "holds no fields"),
        ("", "holds no fields"),
    ],
)
def test_a_bad_file_is_told_by_name_and_key(mmgpt_command, tmp_path, text, told):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    line = mmgpt_command("train", "--config", path, "--out", tmp_path / "out").error(2)
    assert told in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [[], ["--config"]])
def test_a_file_that_is_not_there_is_told(mmgpt_command, tmp_path, option):
    assert f"{tmp_path / 'no.yaml'}: No such file" in mmgpt_command("train", *option, tmp_path / "no.yaml").error(2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model.gpt.widht", "3"], "--model.gpt.widht 3; did you mean --model.gpt.width?"),
        (["--epochs", "3", "a.yaml"], "unrecognized arguments: a.yaml (see mmgpt train --help)"),
        (["--batch_sise=3"], "did you mean --batch_size?"),
        (["--batch_size", "x"], 'Parser key "batch_size"'),
        (["--data.format", "captions"], "data.path: format captions needs the folder"),
        (["--model.gpt.heads", "3"], "gpt.heads: 3 heads do not divide width 256"),
        (["--batch_size", "0"], "batch_size: must be a whole number from 1 on, not 0"),
        (["--data.val_samples", "0"], "data.val_samples: must be"),
        (["--model.adapters", "{imge: {kind: mlp}}"], "model.adapters.imge: unknown; known are: image, audio, video"),
        (["--train", "[gtp]"], "train: nothing is named 'gtp'; did you mean gpt?"),
        (["--optimizer.scales", "{gpt: 0}"], "optimizer.scales: gpt: must be above 0, not 0"),
    ],
)
def test_a_bad_field_is_bad_usage(mmgpt_command, tmp_path, arguments, told):
    small = ["--data.samples", "4", "--data.vocab_size", "300", "--out", tmp_path / "out"]
    assert told in mmgpt_command("train", *small, *arguments).error(2)


def caption_folder(folder, text, media):
    folder.mkdir()
    shutil.copy(media / "good.jpg", folder / "good.jpg")
    (folder / "captions.csv").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "captions.csv: the file is empty"),
        ("image,caption\n", "captions.csv: the file has a header and no rows"),
        ("image,caption\ngood.jpg,A dog.\nnone.jpg,A cat.\n", 'captions.csv:3: "none.jpg" is not in the folder'),
        ("image,caption\ngood.jpg,\n", "captions.csv:2: the text is empty"),
    ],
)
def test_bad_captions_are_told_by_file_and_line(mmgpt_command, tmp_path, media, text, told):
    folder = caption_folder(tmp_path / "data", text, media)
    options = ("--data.format", "captions", "--data.path", folder, "--out", tmp_path / "out")
    assert told in mmgpt_command("train", *options).error(1)


def test_a_folder_that_is_not_there_is_told(mmgpt_command, tmp_path):
    options = ("--data.format", "captions", "--data.path", tmp_path / "no", "--out", tmp_path / "out")
    assert f"{tmp_path / 'no'}: no such file or folder" in mmgpt_command("train", *options).error(1)


def test_train_leaves_a_model_a_report_and_the_configuration(mmgpt_command, tmp_path, media):
    folder = tmp_path / "data"
    caption_folder(folder, "image,caption\ngood.jpg,noise\nb.jpg,noise too\n", media)
    shutil.copy(media / "good.jpg", folder / "b.jpg")
    config = {
        "out": str(tmp_path / "run"),
        "batch_size": 2,
        "data": {"format": "captions", "path": str(folder), "vocab_size": 270},
        "model": {
            "gpt": {"width": 16, "layers": 1, "heads": 1, "context": 64},
            "image": {"name": "convnext_atto", "size": [32, 32], "args": {"depths": [1] * 4, "dims": [8] * 4}},
        },
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
    told = mmgpt_command("train", "--config", tmp_path / "a.yaml", "--epochs", 2)
    assert told.code == 0, told.err
    assert f"mmgpt info {tmp_path / 'run'}" in told.out
    assert parse(["--config", str(tmp_path / "run" / "config.yaml")]).epochs == 2
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000
    assert mmgpt_command("caption", folder / "b.jpg", "--model", tmp_path / "run").code == 0
    assert "CIDEr" in mmgpt_command("info", tmp_path / "run").out


def heed_ctrl_c() -> None:
    """Shells let what they start in the background ignore it, and the tests may have been."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_a_run_with_one_line_and_leaves_the_last_checkpoint_valid(tmp_path):
    run = tmp_path / "run"
    save_config(wall_config(write_walls(tmp_path / "data"), run, epochs=100_000))
    command = [Path(sys.executable).with_name("mmgpt"), "train", "--config", run / "config.yaml"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    ) as process:
        try:
            patience = time.monotonic() + 180  # imports take long on a busy machine
            while not (run / "last" / checkpoint.POINTER).exists():
                assert process.poll() is None
                assert time.monotonic() < patience
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=180)
        finally:
            process.kill()
    assert (process.returncode, told) == (130, "mmgpt: error: interrupted\n")
    checkpoint.load(run / "last")
