"""Each data set in miniature, as its authors publish it, to the samples that come of it."""

import csv
import gzip
import io
import json
import re
import runpy
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mmgpt.cli.main import main as mmgpt_main
from mmgpt.content import text_of
from mmgpt.data.parquet import read_parquet
from mmgpt.media import Waveform, load_video
from mmgpt.media.write import write_video

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


@pytest.fixture
def prepared(monkeypatch, tmp_path, capsys):
    """Prepares what lies in tmp_path, and gives the samples of a split."""

    def samples(name: str, split: str):
        import prepare_data

        out = tmp_path / "out" / "data.parquet"
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", name, str(tmp_path), str(out)])
        prepare_data.main()
        assert re.search(r"data\.parquet: [\d,]+ rows of ", capsys.readouterr().out)
        return read_parquet(out, split)

    return samples


def encoded(shade: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (shade,) * 3).save(file, kind)
    return file.getvalue()


def zipped(path: Path, names: list[str]) -> None:
    with ZipFile(path, "w") as file:
        for i, name in enumerate(names):
            file.writestr(name, encoded(10 * i))


def shade(sample) -> int:
    return sample.prompt[0].parts[0].load().getpixel((4, 4))[0]


def told(sample) -> tuple[str, tuple[str, ...]]:
    return text_of(sample.prompt[0].parts).strip(), sample.references


def test_all_questions_on_a_held_out_drawing_are_held_out(prepared, tmp_path):
    zipped(tmp_path / "train_images.zip", [f"images/{i}.png" for i in range(12)])
    questions = [[f"what is {word}?", f"{word} {i}", i] for i in range(12) for word in ("this", "that")]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    held_out = prepared("easy_vqa", "dev")
    assert [(shade(one), *told(one)) for drawing in held_out for one in drawing.exchanges] == [
        (10 * i, f"what is {word}?", (f"{word} {i}",)) for i in (0, 10) for word in ("this", "that")
    ]  # of 000000, 000001, ... every tenth, though "10" comes before "2"
    assert [len(drawing.exchanges) for drawing in prepared("easy_vqa", "train")] == [2] * 10


def test_questions_on_rooms(prepared, tmp_path):
    names = [f"image{i}" for i in range(1, 12)]
    zipped(tmp_path / "train_images.zip", [f"{name}.jpg" for name in names])
    with (tmp_path / "train_qa.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image_id", "question", "answer", "question_as_published"])
        table.writerows([[name, "what is left?", f"chair, {name}", ""] for name in names])
    assert [told(one) for one in prepared("daquar", "dev")] == [
        ("what is left?", ("chair, image1",)),
        ("what is left?", ("chair, image9",)),  # the eleventh of image1, image10, image11, image2, ...
    ]


def test_pieces_of_clothing(prepared, tmp_path):
    pixels = np.repeat(np.arange(11, dtype=np.uint8), 784)
    labels = np.arange(11, dtype=np.uint8) % 10
    for name, header, numbers in (("images-idx3", 16, pixels), ("labels-idx1", 8, labels)):
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(bytes(header) + numbers.tobytes()))
    train = prepared("fashion_mnist", "train")
    assert [(shade(one), one.references) for one in train][:3] == [
        (1, ("trouser",)),
        (2, ("pullover",)),
        (3, ("dress",)),
    ]
    assert [(shade(one), one.task, one.references) for one in prepared("fashion_mnist", "dev")] == [
        (0, "classify", ("T-shirt",)),
        (10, "classify", ("T-shirt",)),
    ]


def test_pieces_of_clothing_pixel_by_pixel(prepared, tmp_path):
    pixels = np.tile(np.array([0, 255, 7, 8], dtype=np.uint8), 2 * 196)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes()))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + bytes(2)))
    [held_out], [learned] = prepared("fashion_pixels", "dev"), prepared("fashion_pixels", "train")
    for sample in (held_out, learned):
        assert (sample.task, sample.references) == ("continue", ("\u0100\u01ff\u0107\u0108" * 196,))
    every = "".join(chr(0x100 + value) for value in range(256))
    assert every.isalpha()  # so that a tokenizer parts a picture nowhere
    assert [ord(letter) - 0x100 for letter in every] == list(range(256))


def test_photos_with_their_captions_are_made_small(prepared, tmp_path):
    (tmp_path / "images").mkdir()
    for split, name in (("train", "a.jpg"), ("dev", "b.jpg")):
        PIL.Image.new("RGB", (500, 333), (200, 0, 0)).save(tmp_path / "images" / name)
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text(f"{name}\n")
    lines = ["image,caption", 'a.jpg,"A dog , a cat ."', "a.jpg,A pet .", "b.jpg,A bird ."]
    (tmp_path / "captions.txt").write_text("\n".join(lines) + "\n")
    [sample] = prepared("flickr8k", "train")
    assert (sample.task, sample.references) == ("caption", ("A dog , a cat .", "A pet ."))
    photo = sample.prompt[0].parts[0].load()
    assert photo.size == (192, 128)
    assert np.abs(np.asarray(photo).astype(int) - (200, 0, 0)).max() < 8
    assert [one.references for one in prepared("flickr8k", "dev")] == [("A bird .",)]


def test_spoken_digits(prepared, tmp_path):
    (tmp_path / "recordings").mkdir()
    lines = ["file,label,word,speaker"]
    for digit, word in enumerate(("zero", "one")):
        (tmp_path / "recordings" / f"{digit}_a.wav").write_bytes(bytes([digit]))
        lines.append(f"recordings/{digit}_a.wav,{digit},{word},a")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    for split, digit, word in (("dev", 0, "zero"), ("train", 1, "one")):
        [sample] = prepared("spoken_digits", split)
        assert (sample.task, sample.references) == ("transcribe", (word,))
        assert sample.prompt[0].parts[0].source.read_bytes() == bytes([digit])


def test_things_and_animals(prepared, tmp_path):
    (tmp_path / "labels.txt").write_text("airplane\nfrog\n")
    kinds = ("airplane", "frog")
    rows = [
        {"img": {"bytes": encoded(i), "path": f"train/{kinds[i % 2]}/{i:04}.jpg"}, "label": i % 2} for i in range(20)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    assert [(shade(one), *one.references) for one in prepared("cifar10", "train")][:3] == [
        (2, "airplane"), (3, "frog"), (4, "airplane"),
    ]  # fmt: skip
    assert [one.references for one in prepared("cifar10", "dev")] == [("airplane",), ("frog",)]


def test_sounds_of_the_fourth_fold_are_held_out(prepared, tmp_path):
    (tmp_path / "audio").mkdir()
    lines = ["filename,fold,target,category,esc10"]
    for fold in (1, 4):
        (tmp_path / "audio" / f"{fold}.ogg").write_bytes(bytes([fold]))
        lines.append(f"{fold}.ogg,{fold},0,crying_baby,True")
    (tmp_path / "esc10.csv").write_text("\n".join(lines) + "\n")
    for split, fold in (("train", 1), ("dev", 4)):
        [sample] = prepared("esc10", split)
        assert (sample.task, sample.references) == ("classify", ("crying baby",))
        assert sample.prompt[0].parts[0].source.read_bytes() == bytes([fold])


def test_sentences_keep_their_own_dev_part(prepared, tmp_path):
    (tmp_path / "train.tsv").write_text("a fine film\t1\nno film\t0\n")
    (tmp_path / "dev.tsv").write_text('a " quoted film\t0\n')
    assert [told(one) for one in prepared("sst2", "train")] == [
        ("a fine film", ("positive",)),
        ("no film", ("negative",)),
    ]
    assert [told(one) for one in prepared("sst2", "dev")] == [('a " quoted film', ("negative",))]


def test_messages(prepared, tmp_path):
    """What was sent again, with another number in it or in other case, is on one side with the first."""
    again = "spam\tWIN £20 NOW\nspam\twin £10 now!\n"
    (tmp_path / "SMSSpamCollection").write_text(f'spam\tWIN £10 now\nham\tOk "lar\n{again}', "utf-8")
    assert [told(one) for one in prepared("sms_spam", "dev")] == [('Ok "lar', ("ham",))]
    assert [told(one)[0] for one in prepared("sms_spam", "train")] == ["WIN £10 now", "WIN £20 NOW", "win £10 now!"]


def test_sentences_are_translated_either_way(prepared, tmp_path):
    for part, english, german in (
        ("train", "A dog.\nA cat.\n", "Ein Hund.\nEine Katze.\n"),
        ("val", "Two.\n", "Zwei.\n"),
    ):
        (tmp_path / f"{part}.en.gz").write_bytes(gzip.compress(english.encode()))
        (tmp_path / f"{part}.de.gz").write_bytes(gzip.compress(german.encode()))
    assert [told(one) for one in prepared("multi30k", "dev")] == [
        ("Translate into German.\nTwo.", ("Zwei.",)),
        ("Translate into English.\nZwei.", ("Two.",)),
    ]
    assert [one.references[0] for one in prepared("multi30k", "train")] == [
        "Ein Hund.", "A dog.", "Eine Katze.", "A cat.",
    ]  # fmt: skip


def test_sentences_are_translated_into_chinese(prepared, tmp_path):
    (tmp_path / "train.tsv").write_text("A cat.\t猫。\nA cat.\t一只猫。\nA dog.\t狗。\n", "utf-8")
    assert [told(one) for one in prepared("tatoeba", "dev")] == [
        ("Translate into Chinese.\nA cat.", ("猫。",)),
        ("Translate into Chinese.\nA cat.", ("一只猫。",)),  # one sentence is in one split, whatever its translations
    ]
    assert [told(one) for one in prepared("tatoeba", "train")] == [("Translate into Chinese.\nA dog.", ("狗。",))]


def test_questions_on_paragraphs_in_three_languages_and_their_titles(prepared, tmp_path):
    for code in ("en", "de", "zh"):
        articles = [
            {
                "title": "New_York",
                "paragraphs": [
                    {"context": f"{code} {i}", "qas": [{"question": "What?", "answers": [{"text": code}] * 2}]}
                ],
            }
            for i in range(2)
        ]
        (tmp_path / f"xquad.{code}.train.json").write_text(json.dumps({"data": articles}))
    for split, i in (("dev", 0), ("train", 1)):
        assert [told(one) for one in prepared("xquad", split)] == [
            one
            for code in ("en", "de", "zh")
            for one in ((f"Summarize the text.\n{code} {i}", ("New York",)), (f"What?\n{code} {i}", (code,)))
        ]
        assert [one.task for one in prepared("xquad", split)] == ["summarize", "ask"] * 3


def test_a_speakers_mouth_and_voice(prepared, tmp_path):
    (tmp_path / "videos").mkdir()
    frames = np.zeros((10, 128, 160, 3), np.uint8)
    frames[:, 80:112, 46:94] = (0, 200, 0)  # where the mouth is
    sound = Waveform(np.sin(np.arange(6400) / 5).astype(np.float32), 16000)
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / "videos" / name, frames, 25.0, sound)
    (tmp_path / "transcripts.tsv").write_text("file\ttranscript\nvideos/a.mp4\tbin blue\nvideos/b.mp4\tset red\n")
    [sample] = prepared("grid", "train")
    assert sample.references == ("set red",)
    clip = load_video(sample.prompt[0].parts[0].source, frames=10, max_seconds=9)
    assert clip.frames.shape == (10, 32, 48, 3)
    assert np.abs(clip.frames.astype(int) - (0, 200, 0)).max() < 16
    assert clip.sound is not None
    assert clip.sound.sample_rate == 16000


def in_this_process(program: object, *arguments: object) -> None:
    script = str(arguments[0]) if str(arguments[0]).endswith(".py") else ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script or str(program), *map(str, arguments[bool(script) :])])
        if script:
            runpy.run_path(script, run_name="__main__")
        else:
            mmgpt_main()


def test_each_recipe_reads_its_data_as_its_configuration_does(tmp_path, monkeypatch):
    import reproduce

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "row", lambda name, out: "")
    for name, recipe in reproduce.RECIPES.items():
        commands: list[list[str]] = []

        def run(*command: object, told: list[list[str]] = commands) -> None:
            told.append([*map(str, command)])
            if "prepare_data.py" in told[-1][1]:
                Path(told[-1][-1]).parent.mkdir(parents=True, exist_ok=True)
                Path(told[-1][-1]).touch()

        monkeypatch.setattr(reproduce, "run", run)
        monkeypatch.setattr(sys, "argv", ["reproduce.py", name, "published"])
        reproduce.main()
        trained = [command for command in commands if command[1] == "train"]
        assert [train[train.index("--out") + 1] for train in trained] == [
            f"runs/{each}" for each in (recipe.after, name) if each
        ]
        for train in trained:
            config = yaml.safe_load(Path(train[train.index("--config") + 1]).read_text("utf-8"))
            path = train[train.index("--data.path") + 1]
            if config["data"]["format"] == "parquet":
                assert path.endswith(".parquet"), train
                assert Path(path).exists(), train
            else:
                assert path == "published", train
        assert config["data"]["format"] == recipe.format
        assert config.get("init") == (recipe.after and f"runs/{recipe.after}"), name
        *_, evaluate = commands
        assert recipe.format == evaluate[evaluate.index("--format") + 1], name
        assert path == evaluate[evaluate.index("--data") + 1]


def test_a_row_of_the_results_is_reproduced_by_one_command(tmp_path, monkeypatch, capfd):
    import reproduce

    folder = tmp_path / "sst2"
    folder.mkdir()
    for split, count in (("train", 40), ("dev", 6)):
        rows = [f"{('dull', 'fine')[i % 2]} film number {i}\t{i % 2}" for i in range(count)]
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    small = ("--epochs", "1", "--model.gpt.width", "16", "--data.vocab_size", "280")
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "sst2", str(folder), *small])
    monkeypatch.setattr(reproduce, "run", in_this_process)  # which has imported already what each would import anew
    reproduce.main()
    told = capfd.readouterr().out
    assert re.search(r"\| sst2, dev, 6 \| 0\.\d \| 0\.\d\d M \| accuracy \d+\.\d \[\d+\.\d–\d+\.\d\] \|  \|", told)
    assert re.search(r"\|  \|  \|  \| macro-F1 ", told)
    assert (tmp_path / "runs/sst2/eval/report.html").exists()
    reproduce.main()
    assert "runs/sst2: has been trained to its end" in capfd.readouterr().out


def test_the_generalist_is_set_beside_the_specialists(tmp_path, monkeypatch, capfd):
    import generalist
    import reproduce

    rows = [
        {"text": f"{('dull', 'fine')[i % 2]} film {i}", "label": ("negative", "positive")[i % 2], "split": split}
        for split, count in (("train", 20), ("dev", 6))
        for i in range(count)
    ]
    for name in ("sst2", "sms_spam"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    mix = {
        name: {"format": "parquet", "path": str(tmp_path / f"{name}.parquet"), "weight": 1}
        for name in ("sst2", "sms_spam")
    }
    model = {"gpt": {"width": 16, "layers": 1, "heads": 2, "context": 64}}
    config = {"batch_size": 8, "steps": 2, "data": {"format": "mix", "mix": mix, "vocab_size": 280}, "model": model}
    (tmp_path / "generalist.yaml").write_text(json.dumps(config))  # JSON is YAML
    alone = {"scores": [{"metric": "accuracy", "score": 0.75, "times": 100}]}
    (tmp_path / "runs/sst2/eval").mkdir(parents=True)
    (tmp_path / "runs/sst2/eval/results.json").write_text(json.dumps(alone))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["generalist.py"])
    monkeypatch.setattr(reproduce, "run", in_this_process)
    monkeypatch.setattr(generalist, "run", in_this_process)
    monkeypatch.setattr(generalist, "CONFIGS", tmp_path)
    generalist.main()
    told = capfd.readouterr().out
    assert re.search(r"\| sst2 \| 6 \| accuracy \| \d+\.\d \| 75\.0 \|  \|", told)
    assert re.search(r"\| sms_spam \| 6 \| accuracy \| \d+\.\d \|  \|  \|", told)
