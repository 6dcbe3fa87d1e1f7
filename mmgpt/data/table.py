"""Rows with named columns from text files: CSV, TSV and JSON lines. Every error names the file and the line."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmgpt.data.faults import Faults
from mmgpt.errors import DataError, shown

csv.field_size_limit(1 << 30)  # characters; csv's own limit is less than a long document


class Row(NamedTuple):
    where: str  # "path/captions.csv:17", the line where the row begins
    fields: dict[str, Any]


class Table(NamedTuple):
    path: Path
    columns: list[str]
    rows: list[Row]

    def column(self, names: Sequence[str], what: str) -> str | None:
        """The one column with one of these names; None if there is none, DataError if there are several."""
        found = [column for column in self.columns if column.lower() in names]
        if len(found) > 1:
            raise DataError(
                f"{self.path}: which column is the {what}: {' or '.join(found)}? Keep one; "
                f"the columns are {shown(', '.join(self.columns))}"
            )
        return found[0] if found else None

    def required_column(self, names: Sequence[str], what: str) -> str:
        column = self.column(names, what)
        if column is None:
            raise DataError(
                f"{self.path}: no column for the {what} (named {' or '.join(names)}); "
                f"the columns are {shown(', '.join(self.columns))}"
            )
        return column


def find_table(path: Path, names: tuple[str, ...]) -> Path:
    """The file itself, or the one file of a folder with one of these names."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    found = [path / name for name in names if (path / name).is_file()]
    if not found:
        raise DataError(f"{path}: none of {', '.join(names)} is in this folder; add one, or give the file itself")
    if len(found) > 1:
        raise DataError(f"{path}: which file: {' or '.join(file.name for file in found)}? Give the file itself")
    return found[0]


def read_text(path: Path) -> str:
    """A whole text file, UTF-8 with or without a byte order mark."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8") from None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, each with its number. Only line feeds end a line: JSON may hold U+2028."""
    found = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    if not found:
        raise DataError(f"{path}: the file is empty")
    return found


def parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    """The value of a JSON text that begins at a line of a file."""
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # escapes of half a character pass json.loads, and no encoder later
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{path}:{line}: not JSON: {error.msg} (column {error.colno})") from None
    except UnicodeEncodeError:
        raise DataError(
            f"{path}:{first_line}: an escape \\ud… is half of a surrogate pair; write both halves"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{first_line}: not usable JSON: {error}") from None
    return value


def read_table(path: Path, faults: Faults) -> Table:
    """A .tsv, a .jsonl (an object to a line), or else CSV. CSV and TSV name their columns in the first row.

    Rows that are malformed are left out and told by `faults`. Raises DataError where there is no table.
    """
    if path.suffix.lower() == ".jsonl":
        table = _read_jsonl(path, faults)
    else:
        table = _read_csv(path, "\t" if path.suffix.lower() == ".tsv" else ",", faults)
    if not table.rows:
        faults.raise_all()
        raise DataError(f"{path}: the file has a header and no rows")
    return table


def read_whole_table(path: Path) -> Table:
    """As `read_table`; raises RowsError where rows are malformed."""
    table = read_table(path, faults := Faults())
    faults.raise_all()
    return table


def _read_jsonl(path: Path, faults: Faults) -> Table:
    rows = []
    for number, line in read_lines(path):
        with faults.row():
            fields = parse_json(line, path, number)
            if not isinstance(fields, dict):
                raise DataError(f"{path}:{number}: not an object; a line is {{…}} with named values")
            rows.append(Row(f"{path}:{number}", fields))
    return Table(path, list(dict.fromkeys(name for row in rows for name in row.fields)), rows)


def _read_csv(path: Path, delimiter: str, faults: Faults) -> Table:
    # White space before a field, quoted or not, is not part of it: people write "a.jpg, A dog".
    text = io.StringIO(read_text(path), newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=delimiter == ",")
    columns: list[str] = []
    named = ""
    rows = []
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            faults.malformed.append(
                f"{path}:{line}: {error}; a quoted field ends with its quote, and quotes inside it are doubled"
            )
            break
        if fields is None:
            break
        if not any(fields):
            continue
        where = f"{path}:{line}"
        if not columns:
            columns = [field.strip() for field in fields]
            named = shown(", ".join(columns))
            twice = [column for column in columns if columns.count(column) > 1]
            if twice:
                raise DataError(f"{where}: the column {shown(twice[0])} is named twice; the columns are {named}")
        elif len(fields) != len(columns):
            faults.malformed.append(
                f"{where}: {len(fields)} fields, where the header has {len(columns)}, {named}; "
                "quote a field that holds commas, tabs or line ends"
            )
        else:
            rows.append(Row(where, dict(zip(columns, fields, strict=True))))
    if not columns:
        faults.raise_all()
        raise DataError(f"{path}: the file is empty")
    return Table(path, columns, rows)
