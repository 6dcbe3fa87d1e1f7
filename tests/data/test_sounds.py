from pathlib import Path

import pytest

from mmgpt.content import Audio, Text
from mmgpt.data.sounds import read_sounds
from mmgpt.errors import DataError


def folder_of(root: Path, file: str, text: str, *sounds: str) -> Path:
    (root / file).write_text(text)
    for name in sounds:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("transcripts.csv", 'file,transcript\na.wav,"Hello, you."\n'),
        ("transcripts.tsv", "path\tsentence\na.wav\tHello, you.\n"),
        ("transcripts.jsonl", '{"audio": "a.wav", "text": "Hello, you."}\n'),
        ("metadata.csv", 'file_name,text\na.wav,"Hello, you."\n'),
        ("metadata.jsonl", '{"file_name": "a.wav", "transcription": "Hello, you."}\n'),
    ],
)
@pytest.mark.parametrize("place", ["", "sounds/", "audio/", "recordings/"])
def test_transcripts_make_sounds_to_transcribe(tmp_path, file, text, place):
    [sample] = read_sounds(folder_of(tmp_path, file, text, place + "a.wav"), "dev")
    sound, request = sample.prompt[0].parts
    line = 1 if file.endswith(".jsonl") else 2
    assert isinstance(sound, Audio)
    assert sound.source == tmp_path / place / "a.wav"
    assert request == Text("Transcribe the speech.")
    assert (sample.answers, sample.task, sample.where) == (("Hello, you.",), "transcribe", f"{tmp_path / file}:{line}")


def test_labels_make_sounds_to_classify(tmp_path):
    folder_of(tmp_path, "labels.csv", "filename,fold,target,category\nx.ogg,1,0,dog\n", "audio/x.ogg")
    [sample] = read_sounds(tmp_path, "dev")
    assert (sample.prompt[0].parts[1], sample.answers, sample.task) == (
        Text("What is this?"),
        ("dog",),
        "classify",
    )


def test_of_a_word_and_a_label_the_word_is_learnt(tmp_path):
    header = "file,label,word,speaker,index,gender,accent,seconds\n"
    row = "recordings/0_george_10.wav,0,zero,george,10,male,GRC/Greek,0.7448\n"
    folder_of(tmp_path, "metadata.csv", header + row, "recordings/0_george_10.wav")
    [sample] = read_sounds(tmp_path, "dev")
    assert (sample.answers, sample.task) == (("zero",), "transcribe")


def test_a_split_column_is_obeyed(tmp_path):
    text = "file,split,text\na.wav,validation,A\nb.wav,train,B\n"
    folder_of(tmp_path, "transcripts.csv", text, "a.wav", "b.wav")
    assert [read_sounds(tmp_path, split)[0].answers for split in ("train", "dev")] == [("B",), ("A",)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,text,word\na.wav,A,B\n",
            r'which column is the transcript: text or word\? Keep one; the columns are "file, text, word"',
        ),
        ("file,label,category\na.wav,1,dog\n", r"which column is the label: label or category\?"),
        ("file,speaker\na.wav,me\n", r'no column of transcripts .* or labels .*; the columns are "file, speaker"'),
        ("wave,text\na.wav,A\n", r'no column for the sound .*; the columns are "wave, text"'),
        ("file,text\na.wav,\n", r"csv:2: the text is empty"),
        ("file,text\na.wav,A\nb.wav,B\n", r'csv:3: "b.wav" is not in the folder .*; add the sound or remove the row'),
    ],
)
def test_a_malformed_table_is_told(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_sounds(folder_of(tmp_path, "transcripts.csv", text, "a.wav"), "dev")
