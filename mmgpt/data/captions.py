"""A folder of pictures and a captions file: captions.csv, .tsv, .jsonl or .txt; Flickr8k's layout as it is.

folder/captions.csv          image,caption[,split] in the first row, then a row for each caption
folder/captions.jsonl        {"image": "dog.jpg", "caption": "A dog."}
folder/captions.txt          CSV as above, or name<TAB>caption, or name#0<TAB>caption (Flickr8k.token.txt)
folder/images/dog.jpg        or folder/dog.jpg
folder/Flickr_8k.trainImages.txt, .devImages.txt, .testImages.txt      optional: the names in each split
"""

import re
from pathlib import Path

from mmgpt.content import Image
from mmgpt.data.annotations import Annotations
from mmgpt.data.faults import Faults
from mmgpt.data.sample import Sample
from mmgpt.data.table import Row, Table, find_table, read_lines, read_table
from mmgpt.errors import DataError, shown
from mmgpt.folder import MediaFolder

_IMAGE = ("image", "file", "file_name", "filename", "path")
_CAPTION = ("caption", "text")
_FILES = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.txt", "Flickr8k.token.txt")
_PLACES = ("images", "Images")


def read_captions(path: Path, split: str) -> list[Sample]:
    """The pictures of a split, in the order of their first captions; all captions of a picture are its answers.

    Args:
        path: The folder, or the captions file inside it.
        split: Flickr8k's lists, where they are there, say which pictures are in it (pictures in no list are left out);
            else the column "split"; else every tenth picture by name is held out (see splits.members).

    Raises:
        DataError: A row is malformed or its picture is missing.
    """
    path = find_table(path, _FILES)
    annotations = Annotations(path, MediaFolder(path.parent, _PLACES), Image)
    table = (_read_token_lines if _has_tabs(path) else read_table)(path, annotations.faults)
    image = table.required_column(_IMAGE, "picture")
    caption = table.required_column(_CAPTION, "caption")
    split_column = table.column(("split",), "split")
    listed = _flickr8k_splits(path.parent)
    for where, fields in table.rows:
        name = fields.get(image)
        own = fields.get(split_column) if split_column else None
        if listed and isinstance(name, str):
            own = listed.get(name.strip())
            if own is None:
                continue
        annotations.add(where, name, fields.get(caption), own)
    return annotations.samples(split, "caption")


def _has_tabs(path: Path) -> bool:
    """A .txt of name<TAB>caption, without a header, by its first line."""
    return path.suffix == ".txt" and "\t" in read_lines(path)[0][1]


def _read_token_lines(path: Path, faults: Faults) -> Table:
    rows = []
    for number, line in read_lines(path):
        name, tab, caption = line.partition("\t")
        with faults.row():
            if not tab:
                raise DataError(f"{path}:{number}: no tab; a line is the picture's name, a tab and the caption")
            rows.append(Row(f"{path}:{number}", {"image": re.sub(r"#\d+$", "", name), "caption": caption}))
    return Table(path, ["image", "caption"], rows)


def _flickr8k_splits(folder: Path) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split in ("train", "dev", "test"):
        path = folder / f"Flickr_8k.{split}Images.txt"
        for number, line in read_lines(path) if path.is_file() else []:
            if splits.setdefault(line.strip(), split) != split:
                raise DataError(f"{path}:{number}: {shown(line.strip())} is in the list of {splits[line.strip()]} too")
    return splits
