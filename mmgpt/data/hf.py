"""A data set that the Hugging Face `datasets` library saved with save_to_disk, with one split or with several.

folder/dataset_dict.json, train/data-00000-of-00001.arrow, ...     or those of one split in folder/ itself
columns image, caption, ...                                        see mmgpt.data.rows for what columns may be called
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgpt.data.lazy import LazySamples
from mmgpt.data.rows import lazy_samples
from mmgpt.data.table import parse_json, read_text
from mmgpt.errors import ConfigError, DataError, shown
from mmgpt.folder import MediaFolder, MissingFileError


def read_hf(path: Path, split: str) -> LazySamples:
    """The rows of a split; each is read, from memory-mapped files, when its turn comes.

    Args:
        path: The folder of save_to_disk.
        split: By the splits that were saved, or by the column "split"; where none is "dev", one row in ten of training
            (see splits.row_numbers).

    Raises:
        ConfigError: `datasets` is not installed.
        DataError: It is no such folder, or the columns mean nothing; later, a row is malformed.
    """
    rows = DiskRows(path)
    names: list[str | None] = [*rows.splits]
    codes = np.repeat(np.arange(len(names)), rows.lengths)
    if names == [None] and "split" in rows.columns:
        told = rows.column("split")
        if wrong := [value for value in told if value is not None and not isinstance(value, str)]:
            raise DataError(f"{path}: the split of a row is {shown(wrong[0])}; it is a string")
        numbers = {value: number for number, value in enumerate(dict.fromkeys(told))}
        names, codes = list(numbers), np.array([numbers[value] for value in told])
    return lazy_samples(rows, names, codes, split, path)


class DiskRows:
    """The rows of the data sets of a folder, one split after the other (see rows.Rows)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.splits = _splits(folder)
        inside = MediaFolder(folder)
        self._sets = [_load(inside, split) for split in self.splits]
        first = self._sets[0]
        for split, one in zip(self.splits, self._sets, strict=True):
            if one.features != first.features:
                raise DataError(
                    f"{folder}: the columns of {split} are {shown(', '.join(one.column_names))}, and those of "
                    f"{self.splits[0]} {shown(', '.join(first.column_names))}, or their types differ"
                )
        self.lengths = [len(one) for one in self._sets]
        self._starts = np.cumsum([0, *self.lengths])
        # A sequence is a list of features: [feature] in old data sets, List or Sequence in newer ones.
        self.columns = {
            name: isinstance(feature, list) or type(feature).__name__ in ("List", "LargeList", "Sequence")
            for name, feature in first.features.items()
        }
        self.gaps = {name for name in self.columns if any(one.data.column(name).null_count for one in self._sets)}
        self._views: dict[tuple[int, tuple[str, ...]], Any] = {}
        self.classes: dict[str, Sequence[str]] = {
            name: feature.names for name, feature in first.features.items() if type(feature).__name__ == "ClassLabel"
        }

    def where(self, row: int) -> str:
        number = self._set_of(row)
        split = self.splits[number]
        return f"{self.folder / (split or '')}: row {row - self._starts[number]}"

    def values(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        number = self._set_of(row)
        return self._view(number, tuple(columns))[row - int(self._starts[number])].to_pylist()[0]

    def column(self, name: str) -> list[Any]:
        """The values of a whole column."""
        tables = [self._view(number, (name,))[:] for number in range(len(self._sets))]
        return [value for table in tables for value in table.column(0).to_pylist()]

    def _view(self, number: int, columns: tuple[str, ...]) -> Any:
        """Some columns of a set, as Arrow has them: nothing is decoded, media stay {"bytes": ..., "path": ...}."""
        key = (number, columns)
        if key not in self._views:
            self._views[key] = self._sets[number].select_columns(list(columns)).with_format("arrow")
        return self._views[key]

    def _set_of(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1


def _splits(folder: Path) -> list[str | None]:
    """The names of the splits; None where the folder is a data set itself."""
    listing = folder / "dataset_dict.json"
    if not listing.is_file():
        return [None]
    document = parse_json(read_text(listing), listing)
    splits = document.get("splits") if isinstance(document, dict) else None
    if not isinstance(splits, list) or not splits or not all(isinstance(split, str) for split in splits):
        raise DataError(f'{listing}: "splits" is {shown(splits)}; it is a list of names')
    return [*splits]


def _load(inside: MediaFolder, split: str | None) -> Any:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            "data.format: hf needs datasets; install the extra: uv sync --extra datasets, or pip install datasets"
        ) from None
    below = f"{split}/" if split else ""
    try:
        state = inside.find(f"{below}state.json")
    except MissingFileError as error:
        raise DataError(f"{error}; save_to_disk of the library datasets makes such a folder") from None
    document = parse_json(read_text(state), state)
    try:
        names = [file["filename"] for file in document["_data_files"]]
    except (TypeError, KeyError):
        raise DataError(f'{state}: no "_data_files"; save the data set again') from None
    for name in names:
        inside.find(f"{below}{name}")  # so that none leads out of the folder
    try:
        return datasets.Dataset.load_from_disk(str(state.parent))
    except Exception as error:  # Arrow's, json's and the library's own, whatever is wrong with the files
        reason = " ".join(str(error).split())
        raise DataError(
            f"{state.parent}: cannot be read ({type(error).__name__}: {reason[:200]}); save it again"
        ) from None
