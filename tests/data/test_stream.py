import datasets
import numpy as np
import pytest
from PIL import Image as Pillow
from test_parquet import captions, shade, write

from mmgpt.content import Text
from mmgpt.data.stream import HFStream, head
from mmgpt.errors import DataError


def test_rows_of_a_split_come_in_order_each_time(tmp_path):
    write(tmp_path / "data/train-00000-of-00002.parquet", captions(7))
    write(tmp_path / "data/train-00001-of-00002.parquet", captions(6, 7))
    write(tmp_path / "data/validation-00000-of-00001.parquet", captions(2, 50))
    stream = HFStream(str(tmp_path), "train")
    for _ in range(2):
        samples = list(stream)
        assert [(one.answers[0], shade(one), one.task) for one in samples] == [
            (f"number {i}", i, "caption") for i in range(13)
        ]
    assert samples[8].where == f"{tmp_path}: row 8"
    assert [shade(one) for one in HFStream(str(tmp_path), "dev")] == [50, 51]
    assert len(head(stream, 4)) == 4


def test_one_row_in_ten_is_held_out_where_no_split_is_for_it(tmp_path):
    write(tmp_path / "train.parquet", captions(25))
    held_out = [shade(one) for one in HFStream(str(tmp_path), "val")]
    assert held_out == [0, 11, 22]
    assert [shade(one) for one in HFStream(str(tmp_path), "train")] == [i for i in range(25) if i not in held_out]


def test_a_row_whose_class_is_not_known_is_an_error(tmp_path):
    """-1 stands for "no class"; as an index of Python it would be the last one."""
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["bad", "good"]))
    rows = datasets.Dataset.from_dict({"text": ["A film.", "Another."], "label": [1, -1]}, features=features)
    for split in ("train", "validation"):
        rows.to_parquet(tmp_path / f"{split}.parquet")
    samples = iter(HFStream(str(tmp_path), "train"))
    assert next(samples).references == ("good",)
    with pytest.raises(DataError, match=r"row 1: the label is -1; its classes are numbered 0 to 1"):
        next(samples)


def test_pictures_in_folders_named_by_their_classes(tmp_path):
    for name, value in (("cat", 1), ("dog", 2)):
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            Pillow.fromarray(np.full((4, 4, 3), value, np.uint8)).save(tmp_path / split / name / "a.png")
    samples = list(HFStream(str(tmp_path), "test"))
    assert [(one.task, one.answers, shade(one)) for one in samples] == [
        ("classify", ("cat",), 1),
        ("classify", ("dog",), 2),
    ]


def test_lists_of_pictures_and_texts_are_documents(tmp_path):
    rows = [{"images": [one["image"], None], "texts": [None, one["caption"]]} for one in captions(5)]
    write(tmp_path / "train.parquet", rows)
    for i, sample in zip((1, 2, 3, 4), HFStream(str(tmp_path), "train"), strict=True):
        [(picture, text)] = sample.answers
        assert (picture.load().getpixel((0, 0))[0], text) == (i, Text(f"number {i}"))  # type: ignore[union-attr]
        assert (sample.prompt, sample.task) == ((), "continue")


def test_a_split_that_is_not_there_is_told(tmp_path):
    write(tmp_path / "train.parquet", captions(3))
    with pytest.raises(DataError, match=rf'{tmp_path}: there is no split "test"; there is train'):
        HFStream(str(tmp_path), "test")


def test_rows_of_which_nothing_can_be_made_are_told(tmp_path):
    write(tmp_path / "train.parquet", [{"x": 1}] * 3)
    with pytest.raises(DataError, match=rf"{tmp_path}: row 1: nothing to learn from the columns"):
        list(HFStream(str(tmp_path), "train"))


def test_a_file_that_is_damaged_is_told_in_one_line(tmp_path):
    (tmp_path / "train.parquet").write_text("no table")
    with pytest.raises(DataError, match=rf"{tmp_path}: cannot be read") as caught:
        list(HFStream(str(tmp_path), "train"))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        HFStream(str(tmp_path / "none"), "train")
