import json
from pathlib import Path
from typing import Any

import pytest

from mmgpt.data.coco import read_coco
from mmgpt.data.sample import Sample
from mmgpt.errors import DataError


def document(*names: str) -> dict[str, Any]:
    """Two captions of each picture, all first captions before all second ones."""
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [{"id": 100 + index, "file_name": name, "width": 640} for index, name in enumerate(names)],
        "annotations": [
            {"id": turn * 50 + index, "image_id": 100 + index, "caption": f"{name} {turn}\n"}
            for turn in range(2)
            for index, name in enumerate(names)
        ],
    }


def write(root: Path, file: str, content: Any, pictures: str = "images") -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(content if isinstance(content, str) else json.dumps(content))
    (root / pictures).mkdir(parents=True, exist_ok=True)
    for image in content.get("images", []) if isinstance(content, dict) else []:
        (root / pictures / str(image["file_name"])).touch()


def paths(samples: list[Sample]) -> list[Path]:
    return [sample.prompt[0].parts[0].source for sample in samples]  # type: ignore[union-attr]


def test_captions_of_a_picture_are_the_answers_of_one_sample(tmp_path):
    write(tmp_path, "captions_train.json", document("a.jpg", "b.jpg", "c.jpg"))
    samples = read_coco(tmp_path / "captions_train.json", "train")
    assert [sample.answers for sample in samples] == [("b.jpg 0", "b.jpg 1"), ("c.jpg 0", "c.jpg 1")]
    assert [sample.task for sample in samples] == ["caption", "caption"]
    assert samples[0].where.endswith("captions_train.json: annotations[1]")
    assert paths(read_coco(tmp_path / "captions_train.json", "dev")) == [tmp_path / "images" / "a.jpg"]


def test_each_split_has_its_own_file(tmp_path):
    write(tmp_path, "captions_train.json", document("a.jpg", "b.jpg"))
    write(tmp_path, "captions_val.json", document("c.jpg"))
    write(tmp_path, "captions_test.json", document("d.jpg"))
    found = {split: [path.name for path in paths(read_coco(tmp_path, split))] for split in ("train", "dev", "test")}
    assert found == {"train": ["a.jpg", "b.jpg"], "dev": ["c.jpg"], "test": ["d.jpg"]}


def test_coco_as_downloaded_is_read(tmp_path):
    write(tmp_path, "annotations/captions_train2017.json", document("a.jpg"), "train2017")
    write(tmp_path, "annotations/captions_val2017.json", document("a.jpg"), "val2017")
    write(tmp_path, "annotations/instances_val2017.json", "{}")
    assert paths(read_coco(tmp_path, "train")) == [tmp_path / "train2017" / "a.jpg"]
    assert paths(read_coco(tmp_path, "dev")) == [tmp_path / "val2017" / "a.jpg"]
    assert paths(read_coco(tmp_path / "annotations" / "captions_val2017.json", "dev")) == [tmp_path / "val2017/a.jpg"]


def test_without_a_dev_file_every_tenth_picture_is_held_out_of_training(tmp_path):
    names = [f"{index:02}.jpg" for index in range(20)]
    write(tmp_path, "captions_train.json", document(*names))
    dev = [path.name for path in paths(read_coco(tmp_path, "dev"))]
    assert dev == ["00.jpg", "10.jpg"]
    assert [path.name for path in paths(read_coco(tmp_path, "train"))] == [name for name in names if name not in dev]


def test_two_files_of_one_split_and_no_file_of_a_split_are_told(tmp_path):
    write(tmp_path, "captions_train2014.json", document("a.jpg"))
    with pytest.raises(DataError, match=r"no captions_test.json; there is captions_train2014.json"):
        read_coco(tmp_path, "test")
    write(tmp_path, "captions_train2017.json", document("a.jpg"))
    with pytest.raises(DataError, match=r"which file: captions_train2014.json or captions_train2017.json\?"):
        read_coco(tmp_path, "train")
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        read_coco(tmp_path / "nowhere", "train")


def changed(key: str, index: int, **fields: Any) -> dict[str, Any]:
    content = document("a.jpg", "b.jpg")
    content[key][index].update(fields)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [\n{"id": 1,}]}', r"captions_val.json:2: not JSON: .*\(column 10\)"),
        ("", r"captions_val.json:1: not JSON"),
        ("[]", r'no list "images"; the keys are not of an object'),
        ('{"images": [{"id": 1}]}', r'no list "annotations"; the keys are "images"'),
        ({"images": {}, "annotations": []}, r'no list "images"; the keys are "images, annotations"'),
        ({"images": [], "annotations": []}, r'the list "images" is empty'),
        ('{"images": [3], "annotations": []}', r"images\[0\] is not an object"),
        (changed("images", 1, id=None), r"images\[1\]: no id"),
        (changed("images", 1, id=[1]), r"images\[1\]: no id"),
        (changed("images", 1, id=100), r"images\[1\]: the id 100 is that of an earlier picture"),
        (changed("images", 0, file_name=7), r"annotations\[0\]: the name of the picture is 7; it is a string"),
        (changed("annotations", 1, image_id=5), r'annotations\[1\]: image_id 5 is not the id of any of "images"'),
        (changed("annotations", 1, image_id={}), r"annotations\[1\]: image_id {} is not"),
        (changed("annotations", 1, caption=" "), r"annotations\[1\]: the text is empty"),
        (changed("annotations", 1, caption=None), r"annotations\[1\]: the text is missing"),
    ],
)
def test_malformed_json_is_told_with_its_place(tmp_path, content, message):
    write(tmp_path, "captions_val.json", content)
    with pytest.raises(DataError, match=message):
        read_coco(tmp_path, "dev")


def test_a_missing_picture_is_told(tmp_path):
    write(tmp_path, "captions_val.json", document("a.jpg", "b.jpg"))
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r'annotations\[1\]: "b.jpg" is not in the folder .*images; add the picture'):
        read_coco(tmp_path, "dev")
