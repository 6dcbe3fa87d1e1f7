from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.content import Image, Text
from mmgpt.data.texts import _pieces, read_texts
from mmgpt.errors import ConfigError, DataError


def documents(path: Path, length: int = 2000) -> list[str]:
    """All documents of one file, in its order."""
    samples = [*read_texts(path, "train", length), *read_texts(path, "dev", length)]
    assert all(sample.prompt == () and sample.task == "continue" for sample in samples)
    samples.sort(key=lambda sample: int(sample.where.rpartition(" ")[2]))
    return [sample.answers[0] for sample in samples]


def test_plain_text_is_cut_at_paragraphs_else_lines_else_words(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("One two.\nThree.\n\nFour.\n\nFive six seven.\nEight nine ten eleven.\nTwelve.\n" * 2)
    texts = documents(path, 24)
    assert texts[:4] == [
        "One two.\nThree.\n\nFour.",
        "Five six seven.",
        "Eight nine ten eleven.",
        "Twelve.\nOne two.\nThree.",
    ]
    path.write_text("A b.\n\nC d.\nE f.\n\nG.\n")
    assert documents(path, 11) == ["A b.", "C d.\nE f.", "G."]
    path.write_text("abcdefgh ijkl mnopqrstuvwxyz\n")
    assert documents(path, 10) == ["abcdefgh ", "ijkl ", "mnopqrstuv", "wxyz"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("ab  \n\n\r\té€😀"), min_size=1, max_size=80), st.integers(4, 30))
def test_documents_fit_and_together_are_the_text(tmp_path_factory, text, length):
    text = f"x{text}"
    path = tmp_path_factory.mktemp("texts") / "a.txt"
    path.write_bytes(text.encode() + b"\n\nx\n\n" * 20)  # enough for two splits
    found = documents(path, length)
    assert "".join("".join(found).split()) == "".join(text.split()) + "x" * 20
    assert all(0 < len(one.encode()) <= length for one in found)


def test_of_one_file_the_last_tenth_is_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{i:04}\n\n" for i in range(100)))
    held = [sample.answers[0] for sample in read_texts(tmp_path / "a.txt", "dev", 6)]
    assert held == [f"{i:04}" for i in range(90, 100)]
    assert len(read_texts(tmp_path / "a.txt", "train", 6)) == 90


def test_a_folder_of_texts_is_split_by_their_names(tmp_path):
    (tmp_path / "more").mkdir()
    for name, text in (("train.txt", "a"), ("val.txt", "b"), ("more/c.txt", "\ufeffc")):
        (tmp_path / name).write_text(text)
    assert sorted(sample.answers[0] for sample in read_texts(tmp_path, "train")) == ["a", "c"]
    [held] = read_texts(tmp_path, "dev")
    assert (held.answers, held.where) == (("b",), f"{tmp_path}/val.txt: byte 0")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pairs.csv", 'Source,Target,extra\n"A dog, small.",Ein Hund.,x\n'),
        ("pairs.tsv", "source\ttarget\nA dog, small.\tEin Hund.\n"),
        ("pairs.jsonl", '{"source": "A dog, small.", "target": "Ein Hund."}\n'),
    ],
)
def test_tables_make_prompts_and_answers(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    for path in (tmp_path, tmp_path / file):
        [sample] = read_texts(path, "dev")
        assert sample.prompt[0].parts == (Text("A dog, small."),)
        assert (sample.answers, sample.task) == (("Ein Hund.",), "write")
        assert sample.where == f"{tmp_path / file}:{1 if file.endswith('l') else 2}"


def test_lines_of_text_and_of_texts_and_pictures_may_stand_in_one_file(tmp_path):
    (tmp_path / "a.jpg").touch()
    lines = '{"text": "Once."}\n{"images": [null, "a.jpg", null], "texts": ["A dog: ", null, " It barks."]}\n'
    (tmp_path / "train.jsonl").write_text(lines)
    (tmp_path / "dev.jsonl").write_text('{"text": "Twice."}\n')
    plain, document = read_texts(tmp_path, "train")
    [(before, picture, behind)] = document.answers
    assert isinstance(picture, Image)
    assert (before, picture.source, behind) == (Text("A dog: "), tmp_path / "a.jpg", Text(" It barks."))
    assert [(one.prompt, one.task) for one in (plain, document)] == [((), "continue")] * 2


def test_tables_are_split_by_name_or_column_and_may_name_media(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "train.csv").write_text("image,question,answer\na.jpg,What?,dog\n")
    (tmp_path / "dev.csv").write_text("text,label\nGood.,1\n")
    [sample] = read_texts(tmp_path, "train")
    picture, text = sample.prompt[0].parts
    assert isinstance(picture, Image)
    assert (picture.source, text, sample.answers) == (tmp_path / "a.jpg", Text("What?"), ("dog",))
    assert [sample.answers for sample in read_texts(tmp_path, "dev")] == [("1",)]
    (tmp_path / "dev.csv").write_text("text,label,split\nGood.,1,test\nBad.,0,val\n")
    assert [sample.answers for sample in read_texts(tmp_path / "dev.csv", "dev")] == [("0",)]


def test_a_row_without_a_split_is_of_that_of_its_file(tmp_path):
    (tmp_path / "dev.jsonl").write_text('{"text": "a", "label": "b", "split": null}\n' * 3)
    (tmp_path / "train.jsonl").write_text('{"text": "c", "label": "d"}\n' * 5)
    assert [len(read_texts(tmp_path, split)) for split in ("train", "dev")] == [5, 3]


def test_a_text_of_one_long_line_is_cut_in_time_that_grows_with_its_length():
    """What is copied for a piece is the piece, not all that follows."""

    class Line(bytes):
        copied = 0

        def __getitem__(self, key):
            found = super().__getitem__(key)
            if isinstance(key, slice):
                Line.copied += len(found)
            return found

    line = Line(b"word " * 2000)
    assert b"".join(_pieces(line, 64)) == line
    assert Line.copied == len(line)


def test_what_cannot_be_read_is_told(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        read_texts(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"no \.txt and none of \.csv, \.tsv, \.jsonl is in this folder"):
        read_texts(tmp_path, "train")
    (tmp_path / "a.txt").write_bytes(b"fine\nbad \xff\n")
    with pytest.raises(DataError, match=r"a\.txt:2: not UTF-8 \(byte 0xff\)"):
        read_texts(tmp_path, "train")
    with pytest.raises(ConfigError, match=r"data\.text_length: must be 4 bytes or more"):
        read_texts(tmp_path, "train", 3)
    (tmp_path / "a.txt").write_text(" \n\n")
    with pytest.raises(DataError, match=r'nothing is in the split "train"'):
        read_texts(tmp_path, "train")
    (tmp_path / "a.csv").write_text("question,answer\nQ,a\nQ,\n")
    with pytest.raises(DataError, match=r'a\.csv:3: nothing to learn from the columns "question"'):
        read_texts(tmp_path, "train")
    (tmp_path / "a.csv").write_text("image,caption\na.jpg,A.\nb.jpg,B.\n")
    with pytest.raises(DataError, match=r'a\.csv:2: "a.jpg" is not in the folder .*\(1 more are missing\)'):
        read_texts(tmp_path, "train")
