import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image as Pillow

from mmgpt.content import Image
from mmgpt.data.hf import read_hf
from mmgpt.errors import ConfigError, DataError

datasets.disable_progress_bars()


def dataset(*numbers: int, **columns: Any) -> datasets.Dataset:
    pictures = [Pillow.fromarray(np.full((4, 4, 3), i, np.uint8)) for i in numbers]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])}
    values = {"image": pictures, "label": [i % 2 for i in numbers], **columns}
    own = {name: datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict(values, features=datasets.Features({**features, **own}))


def told(samples) -> list[tuple[int, str]]:
    return [(sample.prompt[0].parts[0].load().getpixel((0, 0))[0], sample.answers[0]) for sample in samples]


def test_the_splits_that_were_saved_are_read_in_any_order(tmp_path):
    splits = {"train": dataset(1, 2, 3), "validation": dataset(4, 5)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "d")
    samples = read_hf(tmp_path / "d", "train")
    assert told([samples[2], samples[0]]) == [(3, "odd"), (1, "odd")]
    assert (samples[1].task, samples[1].where) == ("classify", f"{tmp_path}/d/train: row 1")
    assert isinstance(samples[0].prompt[0].parts[0], Image)
    assert told(read_hf(tmp_path / "d", "dev")) == [(4, "even"), (5, "odd")]
    with pytest.raises(DataError, match=r'nothing is in the split "test"; there is train \(3\), dev \(2\)'):
        read_hf(tmp_path / "d", "test")


def test_one_set_is_split_by_its_column_or_one_row_in_ten_is_held_out(tmp_path):
    dataset(*range(20)).save_to_disk(tmp_path / "a")
    assert [shade for shade, _ in told(read_hf(tmp_path / "a", "dev"))] == [0, 11]
    dataset(1, 2, 3, split=["train", "val", None]).save_to_disk(tmp_path / "b")
    assert [[shade for shade, _ in told(read_hf(tmp_path / "b", s))] for s in ("train", "dev")] == [[1, 3], [2]]


def test_chosen_rows_are_the_rows(tmp_path):
    dataset(1, 2, 3, 4).select([3, 1]).save_to_disk(tmp_path / "a")
    assert told([*read_hf(tmp_path / "a", "dev"), *read_hf(tmp_path / "a", "train")]) == [(4, "even"), (2, "even")]


def test_lists_of_pictures_and_conversations_are_read(tmp_path):
    turns = [{"role": "user", "content": "<image><image>Same?"}, {"role": "assistant", "content": "No."}]
    pictures = [Pillow.new("RGB", (2, 2), (shade, 0, 0)) for shade in (5, 6)]
    one = datasets.Dataset.from_dict(
        {"images": [pictures], "messages": [turns]},
        features=datasets.Features(
            {
                "images": datasets.List(datasets.Image()),
                "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
            }
        ),
    )
    one.save_to_disk(tmp_path / "a")
    [sample] = read_hf(tmp_path / "a", "dev")
    assert [part.load().getpixel((0, 0))[0] for part in sample.prompt[0].parts[:2]] == [5, 6]  # type: ignore[union-attr]
    assert sample.answers == ("No.",)


def altered(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path):
    dataset(1).save_to_disk(tmp_path / "other")
    dataset(1, 2).save_to_disk(tmp_path / "a")
    altered(tmp_path / "a/state.json", _data_files=[{"filename": "../other/data-00000-of-00001.arrow"}])
    with pytest.raises(DataError, match=r'"../other/data-00000-of-00001.arrow" leads out of the folder'):
        read_hf(tmp_path / "a", "train")
    datasets.DatasetDict({"train": dataset(1)}).save_to_disk(tmp_path / "b")
    altered(tmp_path / "b/dataset_dict.json", splits=["../other"])
    with pytest.raises(DataError, match=r'"../other/state.json" leads out of the folder'):
        read_hf(tmp_path / "b", "train")


def test_what_cannot_be_read_is_told(tmp_path):
    with pytest.raises(DataError, match=r'"state.json" is not in the folder .*; save_to_disk of the library datasets'):
        read_hf(tmp_path, "train")
    datasets.DatasetDict({"train": dataset(1), "test": dataset(1, text=["a"])}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match=r'd: the columns of test are "image, label, text", and those of train "im'):
        read_hf(tmp_path / "d", "train")
    altered(tmp_path / "d/dataset_dict.json", splits="train")
    with pytest.raises(DataError, match=r'dataset_dict\.json: "splits" is "train"; it is a list of names'):
        read_hf(tmp_path / "d", "train")
    dataset(1, 2).save_to_disk(tmp_path / "a")
    (tmp_path / "a/data-00000-of-00001.arrow").write_bytes(b"no arrow")
    with pytest.raises(DataError, match=r"a: cannot be read \(.*; save it again"):
        read_hf(tmp_path / "a", "train")
    (tmp_path / "a/state.json").write_text("{}")
    with pytest.raises(DataError, match=r'state\.json: no "_data_files"; save the data set again'):
        read_hf(tmp_path / "a", "train")
    dataset(1, 2, caption=["A.", None]).select_columns(["caption"]).save_to_disk(tmp_path / "c")
    with pytest.raises(DataError, match=r'c: row 1: nothing to learn from the columns ""'):
        read_hf(tmp_path / "c", "train")


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"hf needs datasets; install the extra: uv sync --extra datasets"):
        read_hf(tmp_path, "train")
