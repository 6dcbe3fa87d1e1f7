import json
from pathlib import Path
from typing import Any

import pytest

from mmgpt.content import Audio, Text
from mmgpt.data.speech import read_speech
from mmgpt.errors import DataError
from mmgpt.tasks import TASKS


def chapter(root: Path, name: str, *lines: str) -> Path:
    """A chapter of LibriSpeech: its lines, and an empty file for each sound."""
    folder = root / name
    folder.mkdir(parents=True)
    stem = "-".join(folder.parts[-2:])
    (folder / f"{stem}.trans.txt").write_text("".join(f"{stem}-{i:04} {line}\n" for i, line in enumerate(lines)))
    for i in range(len(lines)):
        (folder / f"{stem}-{i:04}.flac").touch()
    return folder


def manifest(root: Path, name: str, *rows: Any) -> Path:
    (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / name


def row(name: Any, text: Any = "hello", **fields: Any) -> dict[str, Any]:
    return {"audio_filepath": name, "duration": 1.5, "text": text, **fields}


def test_librispeech_is_read_as_it_is(tmp_path):
    chapter(tmp_path, "train-clean-100/19/198", "NORTHANGER ABBEY", "THIS LITTLE WORK")
    chapter(tmp_path, "dev-clean/84/1", "GO")
    chapter(tmp_path, "dev-other/85/2", "DO YOU")
    samples = read_speech(tmp_path, "train")
    assert [sample.answers for sample in samples] == [("NORTHANGER ABBEY",), ("THIS LITTLE WORK",)]
    sound, request = samples[0].prompt[0].parts
    assert isinstance(sound, Audio)
    assert sound.source == tmp_path / "train-clean-100/19/198/19-198-0000.flac"
    assert (request, samples[0].task) == (Text(TASKS["transcribe"].wording(0)), "transcribe")
    assert samples[1].where == f"{tmp_path}/train-clean-100/19/198/19-198.trans.txt:2"
    assert [sample.answers for sample in read_speech(tmp_path, "dev")] == [("GO",), ("DO YOU",)]


def test_of_one_subset_every_tenth_sound_is_held_out(tmp_path):
    chapter(tmp_path, "19/198", *"ABCDEFGHIJKLMNOPQRST")
    assert [sample.answers[0] for sample in read_speech(tmp_path, "dev")] == ["A", "K"]
    assert len(read_speech(tmp_path, "train")) == 18


def test_manifests_are_split_by_their_names_or_by_their_rows(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.wav").touch()
    manifest(tmp_path, "train_manifest.json", row("a.wav", "A"))
    manifest(tmp_path, "validation_manifest.jsonl", row(str(tmp_path.resolve() / "b.wav"), "B"))
    assert [[s.answers for s in read_speech(tmp_path, split)] for split in ("train", "dev")] == [[("A",)], [("B",)]]
    own = manifest(tmp_path, "mine.jsonl", row("a.wav", "A", split="train"), row("c.wav", "C", split="test"))
    assert [sample.answers for sample in read_speech(own, "test")] == [("C",)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (3, r"manifest.json:2: not an object"),
        (row(None), r"manifest.json:2: the name of the sound is missing"),
        (row("a.wav", 5), r"manifest.json:2: the text is 5; it is a string"),
        (row("a.wav", " "), r"manifest.json:2: the text is empty"),
        (row("a.wav", offset=2.5), r"manifest.json:2: the offset is 2.5; sounds are read whole"),
        (row("/etc/passwd"), r'manifest.json:2: "/etc/passwd" leads out of the folder'),
        (row("../a.wav"), r'manifest.json:2: "../a.wav" leads out of the folder'),
        (row("b.wav"), r'manifest.json:2: "b.wav" is not in the folder .*; add the sound or remove the row'),
    ],
)
def test_a_malformed_row_is_told_with_its_line(tmp_path, bad, message):
    (tmp_path / "a.wav").touch()
    manifest(tmp_path, "manifest.json", row("a.wav"), bad)
    with pytest.raises(DataError, match=message):
        read_speech(tmp_path, "dev")


def test_a_malformed_transcript_a_missing_sound_and_a_folder_without_speech_are_told(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        read_speech(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"no manifest.json, manifest.jsonl or …\.trans\.txt is here"):
        read_speech(tmp_path, "train")
    folder = chapter(tmp_path, "19/198", "A", "B", "C")
    for i in (1, 2):
        (folder / f"19-198-000{i}.flac").unlink()
    with pytest.raises(DataError, match=r'trans.txt:2: "19/198/19-198-0001.flac" is not in .* \(1 more are missing\)'):
        read_speech(tmp_path, "train")
    (folder / "19-198.trans.txt").write_text("19-198-0000 A\n19-198-0001\n")
    with pytest.raises(DataError, match=r"trans.txt:2: no transcript; a line is the sound's name"):
        read_speech(tmp_path, "train")


def test_transcripts_that_are_a_link_elsewhere_are_refused(tmp_path):
    elsewhere = chapter(tmp_path / "elsewhere", "19/198", "SECRET") / "19-198.trans.txt"
    folder = chapter(tmp_path / "data", "20/1", "A")
    (folder / "20-2.trans.txt").symlink_to(elsewhere)
    with pytest.raises(DataError, match=r"20-2.trans.txt is a link out of the folder"):
        read_speech(tmp_path / "data", "dev")
