"""The scripts, run as a user runs them, on a few small files."""

import csv
import runpy
import sys
import wave
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import mmgpt
from mmgpt.encoders import ImageEncoder

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script with arguments in this process, and gives what it printed."""

    monkeypatch.syspath_prepend(SCRIPTS)  # as Python does with the folder of a script

    def script(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return capsys.readouterr().out

    return script


@pytest.fixture
def photos(tmp_path):
    """Three pictures, one of them in a folder below, and one that is none."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.JPG", "below/c.png")):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / name)
    (folder / "broken.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("not meant to be a picture")
    return folder


@pytest.fixture
def sounds(tmp_path):
    for name, samples in (("short.wav", 2000), ("long.wav", 5000)):
        with wave.open(str(tmp_path / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(np.random.default_rng(samples).integers(-9999, 9999, samples).astype("<i2").tobytes())
    return [tmp_path / "short.wav", tmp_path / "long.wav"]


def test_draw_pixels_draws_what_follows_halves_and_nothing(run, assistant, tmp_path):
    """Two pictures of 4 x 4: theirs, their upper halves gone on with, and free ones, side by side."""
    assistant.save(tmp_path / "model")
    texts = ["".join(chr(0x100 + 16 * (i + n)) for i in range(12)) + 4 * chr(0x1FF) for n in range(2)]
    rows = [{"text": text, "split": "dev"} for text in texts]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pixels.parquet")
    drawn = ("draw_pixels.py", tmp_path / "model", tmp_path / "pixels.parquet")
    assert "2 pictures of the dev part" in run(*drawn, tmp_path / "a.png", "--pictures", 2)
    with PIL.Image.open(tmp_path / "a.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))[::3, ::3]  # three for each
    assert pixels.shape == (3 * 8, 2 * 8)
    for n, text in enumerate(texts):
        own = [ord(letter) - 0x100 for letter in text]
        above, half = (pixels[8 * row + 2 : 8 * row + 6, 8 * n + 2 : 8 * n + 6].flatten().tolist() for row in (0, 1))
        assert above == own
        assert half[:8] == own[:8]
    run(*drawn, tmp_path / "b.png", "--pictures", 2)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_caption_images_writes_a_row_for_each_picture_and_tells_the_broken_ones(run, photos, assistant, tmp_path):
    assistant.save(tmp_path / "model")
    told = run("caption_images.py", photos, tmp_path / "captions.csv", "--model", tmp_path / "model")
    with (tmp_path / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["a.png", "b.JPG", "below/c.png"]
    assert [row["caption"] for row in rows] == [assistant.caption(photos / row["image"]) for row in rows]
    assert "3 captions" in told
    assert "broken.jpg: is damaged or not a picture" in told
    assert "notes.txt" not in told


def test_caption_images_says_so_when_there_are_no_pictures(run, tmp_path):
    with pytest.raises(SystemExit, match="no pictures here"):
        run("caption_images.py", tmp_path, tmp_path / "captions.csv")


def test_extract_features_of_pictures_are_the_mean_of_the_encoders_tokens(run, photos, tmp_path):
    files = [photos / "a.png", photos / "broken.jpg", photos / "b.JPG"]
    told = run("extract_features.py", tmp_path / "f.safetensors", *files, "--encoder", "convnext_atto")
    features = load_file(tmp_path / "f.safetensors")
    assert features.keys() == {str(photos / "a.png"), str(photos / "b.JPG")}
    assert "broken.jpg: is damaged" in told

    torch.manual_seed(0)
    encoder = ImageEncoder("convnext_atto").freeze()
    pixels = np.array(mmgpt.Image(photos / "a.png").load().resize((224, 224)))
    tokens, _ = encoder(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    torch.testing.assert_close(features[str(photos / "a.png")], tokens[0].mean(dim=0))


@pytest.mark.parametrize("encoder", ["conv", "resnet10t"])
def test_extract_features_of_sounds_of_any_length(run, sounds, tmp_path, encoder):
    run("extract_features.py", tmp_path / "f.safetensors", *sounds, "--sounds", "--encoder", encoder)
    features = load_file(tmp_path / "f.safetensors")
    assert features.keys() == {str(path) for path in sounds}
    short, long = features.values()
    assert short.shape == long.shape
    assert (short - long).abs().max() > 0


def test_train_from_python_learns_from_a_folder_and_leaves_a_model(run, photos, tmp_path, recwarn):
    rows = ["image,caption", "a.png,noise", "b.JPG,more noise", "broken.jpg,nothing", "below/c.png,a third"]
    (photos / "captions.csv").write_text("\n".join(rows))
    told = run("train_from_python.py", photos, "--epochs", 2, "--out", tmp_path / "out")
    assert "broken.jpg" in told
    assert "truth: a third" in told
    assert not [told for told in recwarn if "val_dataloader" in str(told.message)]
    assert isinstance(mmgpt.load(tmp_path / "out").caption(photos / "a.png"), str)


def test_train_from_python_has_a_world_of_its_own(run, tmp_path):
    told = run("train_from_python.py", "--samples", 8, "--out", tmp_path / "out")
    assert "saved in" in told
    assert mmgpt.load(tmp_path / "out").model.config.image is not None


# Scripts that measure and reproduce are not there to be copied.
LONGER = ("draw_pixels.py", "kill_and_resume.py", "pointing_game.py", "prepare_data.py", "reproduce.py")


@pytest.mark.parametrize(
    "script", sorted({*SCRIPTS.glob("*.py")} - {SCRIPTS / "bench.py"}), ids=lambda path: path.name
)  # bench.py is what two of them share
def test_a_script_is_short_and_shows_its_command(script):
    text = script.read_text()
    assert text.count("\n") < 60 or script.name.startswith("bench_") or script.name in LONGER
    assert f"python scripts/{script.name}" in text.split('"""')[1]
