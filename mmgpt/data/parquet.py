"""Parquet as the Hugging Face Hub stores data sets: one file, or a folder of shards.

folder/data/train-00000-of-00002.parquet     the split is what the file or its folder is called, or the column "split"
columns image {"bytes": ..., "path": ...}, caption, ...     see mmgpt.data.rows for what columns may be called

Media lie in the rows; nothing in them is ever unpickled. Rows are read a row group at a time, and the groups read last
are kept, up to 256 MB in each process. Of larger data every sample in random order may cost the reading of a row group,
so write groups of few rows, a hundred say.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmgpt.data.lazy import LazySamples
from mmgpt.data.rows import lazy_samples
from mmgpt.data.splits import split_in_name
from mmgpt.errors import ConfigError, DataError, shown
from mmgpt.folder import MediaFolder

_KEPT = 256 << 20  # bytes of row groups


def read_parquet(path: Path, split: str) -> LazySamples:
    """The rows of a split, in the order of the files' names; each is read when its turn comes.

    Args:
        path: The file, or the folder of files.
        split: By the column "split", or by the names of files and folders; where none is "dev", one row in ten of
            training (see splits.row_numbers).

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: A file is not Parquet, or its columns mean nothing; later, a row is malformed.
    """
    if path.is_file():
        files, names = [path], [None]
    elif path.is_dir():
        found = MediaFolder(path).files({".parquet"})
        files, names = [path / name for name in found], [split_in_name(name) for name in found]
    else:
        raise DataError(f"{path}: no such file or folder")
    if not files:
        raise DataError(f"{path}: no .parquet file is in this folder")
    rows = ParquetRows(files)
    if "split" in rows.columns:
        names, codes = rows.column("split")
    else:
        codes = np.repeat(np.arange(len(files)), rows.lengths)
    return lazy_samples(rows, names, codes, split, path)


class ParquetRows:
    """The rows of Parquet files of the same columns, one file after the other (see rows.Rows).

    No file is kept open, so that workers may have copies of it.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.lengths: list[int] = []
        groups: list[tuple[int, int, int]] = []  # file, its row group, rows
        self.columns: dict[str, bool] = {}
        self.classes: dict[str, Sequence[str]] = {}
        self.gaps: set[str] = set()
        for number, path in enumerate(files):
            with _opened(path) as file:
                columns = {field.name: _is_list(field.type) for field in file.schema_arrow}
                if number and columns != self.columns:
                    raise DataError(
                        f"{path}: the columns are {shown(', '.join(columns))}, where {files[0].name} has "
                        f"{shown(', '.join(self.columns))}, or other types; the files of a folder have the same"
                    )
                self.columns = columns
                self.classes = self.classes or _classes(file.schema_arrow.metadata or {})
                self.gaps |= _gaps(file.metadata, columns)
                sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            groups += [(number, i, size) for i, size in enumerate(sizes)]
            self.lengths.append(sum(sizes))
        self._groups = np.array(groups, dtype=np.int64).reshape(-1, 3)
        self._ends = np.cumsum(self._groups[:, 2])  # (groups,) the row after each group's last
        self._file_starts = np.cumsum([0, *self.lengths])
        self._cache: OrderedDict[tuple[int, tuple[str, ...]], Any] = OrderedDict()
        self._held = 0  # bytes

    def where(self, row: int) -> str:
        file = int(np.searchsorted(self._file_starts, row, side="right")) - 1
        return f"{self.files[file]}: row {row - self._file_starts[file]}"

    def values(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        group = int(np.searchsorted(self._ends, row, side="right"))
        table = self._table(group, tuple(columns))
        place = row - int(self._ends[group] - self._groups[group, 2])
        return table.slice(place, 1).to_pylist()[0]

    def column(self, name: str) -> tuple[list[str | None], np.ndarray]:
        """The values of a column of few different ones, and which of them each row has."""
        values: dict[str | None, int] = {}
        codes = []
        for number, path in enumerate(self.files):
            for group in range(int(np.sum(self._groups[:, 0] == number))):
                with _opened(path) as file:
                    told = file.read_row_group(group, columns=[name], use_threads=False).column(0).to_pylist()
                for row, value in enumerate(told):
                    if value is not None and not isinstance(value, str):
                        raise DataError(
                            f"{path}: row {row} of row group {group}: the {name} is {shown(value)}; it is a string"
                        )
                codes.append(np.array([values.setdefault(value, len(values)) for value in told], dtype=np.int32))
        return list(values), np.concatenate([*codes, np.empty(0, np.int32)])

    def _table(self, group: int, columns: tuple[str, ...]) -> Any:
        key = (group, columns)
        if key not in self._cache:
            number, own, _ = self._groups[group].tolist()
            with _opened(self.files[number]) as file:
                self._cache[key] = file.read_row_group(own, columns=list(columns), use_threads=False)
            self._held += self._cache[key].nbytes
            while self._held > _KEPT and len(self._cache) > 2:
                self._held -= self._cache.popitem(last=False)[1].nbytes
        self._cache.move_to_end(key)
        return self._cache[key]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open file; whatever Arrow says against it becomes a DataError."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ConfigError(
            "data.format: parquet needs pyarrow; install the extra: uv sync --extra parquet, or pip install pyarrow"
        ) from None
    try:
        with ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as Parquet ({reason[:200]}); fetch it again") from None


def _gaps(metadata: Any, columns: Iterable[str]) -> set[str]:
    """The columns that may be null in some row, or of a medium its bytes."""
    leaves = {leaf: name for name in columns for leaf in (name, f"{name}.bytes")}
    found = set()
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            told = column.statistics
            if told is None or not told.has_null_count or told.null_count:
                found.add(leaves.get(column.path_in_schema))
    return found - {None}


def _is_list(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)


def _classes(metadata: dict[bytes, bytes]) -> dict[str, Sequence[str]]:
    """The names of the classes of numbered columns, as the `datasets` library notes them in the schema."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        named = {name: told["names"] for name, told in features.items() if told.get("_type") == "ClassLabel"}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    return {name: names for name, names in named.items() if isinstance(names, list)}
