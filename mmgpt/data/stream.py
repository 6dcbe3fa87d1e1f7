"""Data sets that are streamed through the Hugging Face `datasets` library: read once, in order, from disk or the Hub.

path: a folder or the id of a data set on the Hub, as datasets.load_dataset takes them
columns image, caption, ...                   see mmgpt.data.rows for what columns may be called
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mmgpt.data.rows import MEDIA, TEXTS, class_name, row_sample, told
from mmgpt.data.sample import Sample
from mmgpt.data.splits import is_held_out, split_name
from mmgpt.errors import ConfigError, DataError, shown
from mmgpt.folder import MediaFolder


class HFStream(Iterable[Sample]):
    """The rows of a split, from the first one each time it is iterated over; nobody knows how many there are.

    Args:
        path: A folder, or the id of a data set on the Hub.
        split: By the splits there are; where none is "dev", one row in ten of training (see splits.is_held_out).

    Raises:
        ConfigError: `datasets` is not installed.
        DataError: It cannot be read, or has no such split; while it is read, a row is malformed.
    """

    def __init__(self, path: str, split: str) -> None:
        sets = _open(path)
        names = {split_name(name): name for name in sets}
        wanted = split_name(split)
        self.path = path
        self.train = wanted == "train"
        # Of training rows that are divided, those held out or the others; None where all rows are wanted.
        self._held_out = wanted == "dev" if "dev" not in names and wanted in ("train", "dev") else None
        name = names.get("train" if self._held_out is not None else wanted)
        if name is None:
            raise DataError(f"{path}: there is no split {shown(split)}; there is {', '.join(sets)}")
        self._rows = sets[name]
        features: Mapping[str, Any] = self._rows.features or {}
        self._classes: dict[str, Sequence[str]] = {
            column.lower(): feature.names
            for column, feature in features.items()
            if type(feature).__name__ == "ClassLabel"
        }
        self._folder = MediaFolder(path) if Path(path).is_dir() else None

    def __iter__(self) -> Iterator[Sample]:
        rows = enumerate(self._rows)
        while True:
            try:
                number, row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # the library's own, Arrow's, the network's
                raise _unreadable(self.path, error) from None
            if self._held_out is None or is_held_out(number) == self._held_out:
                where = f"{self.path}: row {number}"
                yield told(partial(self._sample, row, where, number if self.train else None), where)

    def _sample(self, row: Mapping[str, Any], where: str, wording: int | None) -> Sample:
        fields: dict[str, Any] = {}
        for column, value in row.items():
            name = column.lower()
            if name in MEDIA:
                value = [self._inside(one) for one in value] if isinstance(value, list) else self._inside(value)
            elif name not in TEXTS:
                continue
            fields[name] = class_name(value, self._classes.get(name, ()), column)
        return row_sample(fields, where, self._folder, wording)

    def _inside(self, value: Any) -> Any:
        """A medium; one that is a file of the folder by its name there."""
        path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else None
        if path is None or self._folder is None or not Path(path).is_relative_to(self._folder.root.absolute()):
            return value
        return str(Path(path).relative_to(self._folder.root.absolute()))


def head(samples: Iterable[Sample], count: int) -> Sequence[Sample]:
    """Samples of known number as they are; the first ones of a stream."""
    return samples if isinstance(samples, Sequence) else list(islice(samples, count))


def _open(path: str) -> dict[str, Any]:
    """The splits by name; media are left as they are stored."""
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            "data.format: hf_stream needs datasets; install the extra: uv sync --extra datasets (pip install datasets)"
        ) from None
    try:
        found = datasets.load_dataset(path, streaming=True)
        return {str(name): rows.decode(False) for name, rows in found.items()}  # pyright: ignore
    except Exception as error:  # the library's own, fsspec's, the network's
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(f"{path}: cannot be read ({type(error).__name__}: {reason[:200]}); give a folder or a Hub id")
