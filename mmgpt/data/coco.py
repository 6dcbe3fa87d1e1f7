"""COCO captions as they are (Chen et al. 2015): {"images": [...], "annotations": [...]} and a folder of pictures.

folder/captions_train.json, captions_val.json          or folder/annotations/captions_train2017.json, ...
folder/images/0001.jpg                                 or folder/train2017/0001.jpg, ...
"""

import re
from pathlib import Path
from typing import Any

from mmgpt.content import Image
from mmgpt.data.annotations import Annotations
from mmgpt.data.sample import Sample
from mmgpt.data.splits import split_name
from mmgpt.data.table import parse_json, read_text
from mmgpt.errors import DataError, shown
from mmgpt.folder import MediaFolder

_NAME = re.compile(r"captions(?:_([a-z]+)\d*)?\.json")


def read_coco(path: Path, split: str) -> list[Sample]:
    """The pictures of a split, in the order of their first captions; all captions of a picture are its answers.

    Args:
        path: The folder, or one JSON file, from which every tenth picture by name is held out (see splits.members).
        split: A folder's captions_{split}.json; "dev" is found as captions_val.json too, and if there is no such file,
            it is held out of captions_train.json (or captions.json).

    Raises:
        DataError: The JSON is malformed or a picture is missing.
    """
    if path.is_file():
        return _read(path, "train").samples(split, "caption")
    files = _captions_files(path)
    wanted = split_name(split)
    own = "train" if wanted == "dev" and "dev" not in files else wanted
    if own in files:
        return _read(files[own], own).samples(split, "caption", hold_out="dev" not in files)
    names = ", ".join(file.name for file in files.values())
    raise DataError(f"{path}: no captions_{split}.json; there is {names or 'no captions file'}")


def _captions_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such file or folder")
    files: dict[str, Path] = {}
    for path in sorted([*folder.glob("captions*.json"), *folder.glob("annotations/captions*.json")]):
        if match := _NAME.fullmatch(path.name):
            split = split_name(match[1] or "train")
            if split in files:
                raise DataError(f"{folder}: which file: {files[split].name} or {path.name}? Give the file itself")
            files[split] = path
    return files


def _read(path: Path, split: str) -> Annotations:
    document = parse_json(read_text(path), path)
    annotations = Annotations(path, _pictures_of(path), Image)
    images = {}
    for where, image in objects(document, "images", path):
        with annotations.faults.row():
            if image.get("id") is None or not isinstance(image["id"], int | str):
                raise DataError(f"{where}: no id")
            if images.setdefault(image["id"], image) is not image:
                raise DataError(f"{where}: the id {shown(image['id'])} is that of an earlier picture")
    annotations.faults.raise_all()  # what is said of these would be wrong as well
    for where, annotation in objects(document, "annotations", path):
        with annotations.faults.row():
            image_id = annotation.get("image_id")
            if not isinstance(image_id, int | str) or image_id not in images:
                raise DataError(f'{where}: image_id {shown(image_id)} is not the id of any of "images"')
            annotations.add(where, images[image_id].get("file_name"), annotation.get("caption"), split)
    return annotations


def _pictures_of(path: Path) -> MediaFolder:
    """captions_train2017.json names pictures of the folder, or of its images/, train2017/ or images/train2017/."""
    folder = path.parent.parent if path.parent.name == "annotations" else path.parent
    own = path.stem.removeprefix("captions").removeprefix("_")
    return MediaFolder(folder, ("images", own, f"images/{own}") if own else ("images",))


def objects(document: Any, key: str, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a list of the document, each with its place: JSON knows no lines once it is read."""
    values = document.get(key) if isinstance(document, dict) else None
    if not isinstance(values, list):
        keys = shown(", ".join(document)) if isinstance(document, dict) else "not of an object"
        raise DataError(f'{path}: no list "{key}"; the keys are {keys}')
    if not values:
        raise DataError(f'{path}: the list "{key}" is empty')
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(f"{path}: {key}[{index}] is not an object")
    return [(f"{path}: {key}[{index}]", value) for index, value in enumerate(values)]
