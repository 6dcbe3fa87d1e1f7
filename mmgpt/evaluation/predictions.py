"""Predictions and references as the field writes them, held against each other by their ids.

| task | predictions | references |
|---|---|---|
| caption | COCO results: [{"image_id": 1, "caption": "A dog."}] | COCO captions: {"annotations": [...]} |
| vqa | VQA results: [{"question_id": 1, "answer": "dog"}] | VQA v2: {"annotations": [...]} |
| asr, translation, classification, qa | .tsv, .csv or .jsonl with `id` and `text` | the same |

A reference of translation and qa may have several rows with one id: each is right. Predictions and references of any
task may be an answers.jsonl, as `mmgpt eval` writes it; its samples that could not be asked are neither.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmgpt.data.coco import objects
from mmgpt.data.table import parse_json, read_text, read_whole_table
from mmgpt.data.vqa import vqa_kinds
from mmgpt.errors import DataError, shown

_JSON = {"caption": ("image_id", "caption"), "vqa": ("question_id", "answer")}
_SEVERAL = ("caption", "translation", "qa")  # tasks whose references may have one id several times


@dataclass(frozen=True)
class Reference:
    """What is right for one id: all right texts, where they are, and VQA's types of question and answer if told."""

    texts: list[str]
    where: str
    kinds: Mapping[str, str] = field(default_factory=dict)


def read_references(path: Path, task: str) -> dict[str, Reference]:
    """The references by their ids, in the order of the file. Raises DataError."""
    if (evaluated := _evaluated(path)) is not None:
        return {name: Reference(row["truths"], where, row.get("kinds", {})) for name, (where, row) in evaluated.items()}
    found: dict[str, Reference] = {}
    key, column = _JSON.get(task, ("id", "text"))
    for where, fields in _rows(path, task, "annotations"):
        name = _id(where, fields, key)
        texts = _answers(where, fields) if task == "vqa" else [_text(where, fields, column)]
        known = found.setdefault(name, Reference([], where, vqa_kinds(fields) if task == "vqa" else {}))
        if known.texts and task not in _SEVERAL:
            raise DataError(f"{where}: the {key} {shown(name)} is that of {known.where} too; keep one of the two")
        known.texts.extend(texts)
    return found


def read_predictions(path: Path, task: str, references: Mapping[str, Reference]) -> list[str]:
    """The prediction for each reference, in the order of the references.

    Raises:
        DataError: The file is malformed, an id is there twice, or predictions and references are of different ids.
    """
    key, column = _JSON.get(task, ("id", "text"))
    found: dict[str, tuple[str, str]] = {}  # where, text
    if (evaluated := _evaluated(path)) is not None:
        found = {name: (where, _text(where, row, "prediction")) for name, (where, row) in evaluated.items()}
    for where, fields in _rows(path, task, "results") if evaluated is None else ():
        name = _id(where, fields, key)
        if name in found:
            raise DataError(f"{where}: the {key} {shown(name)} is that of {found[name][0]} too; keep one of the two")
        found[name] = where, _text(where, fields, column)
    if extra := [name for name in found if name not in references]:
        where = found[extra[0]][0]
        raise DataError(
            f"{where}: there is no reference with the {key} {shown(extra[0])}{_more(extra)}; "
            "remove what is not asked, or give the references of these predictions"
        )
    if missing := [name for name in references if name not in found]:
        raise DataError(
            f"{path}: no prediction with the {key} {shown(missing[0])}{_more(missing)}, "
            f"which {references[missing[0]].where} has; predict them all, an empty text if need be"
        )
    return [found[name][1] for name in references]


def _evaluated(path: Path) -> dict[str, tuple[str, dict[str, Any]]] | None:
    """By their ids the lines of `mmgpt eval` that have a prediction, each with its place; None of another file.

    Where questions stand in one row of the data, and so have its id, they are told apart by their order.
    """
    if path.name != "answers.jsonl":
        return None
    table = read_whole_table(path)
    found, seen = {}, Counter()
    for where, row in table.rows:
        if not isinstance(row.get("truths"), list):
            raise DataError(f"{where}: no truths; an answers.jsonl is what `mmgpt eval` writes")
        seen[name := _id(where, row, "id")] += 1
        if "prediction" in row:
            found[f"{name} #{seen[name]}"] = where, row
    return found


def _rows(path: Path, task: str, key: str) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a file, each with its place. In JSON they are the list `key`, or the list that the file is."""
    if task not in _JSON:
        if path.suffix not in (".tsv", ".csv", ".jsonl"):
            raise DataError(f"{path}: {task} is read from .tsv, .csv or .jsonl with the columns id and text")
        table = read_whole_table(path)
        columns = {name: table.required_column((name,), name) for name in ("id", "text")}
        return [(where, {name: fields.get(own) for name, own in columns.items()}) for where, fields in table.rows]
    if path.suffix != ".json":
        raise DataError(f"{path}: {task} is read from .json, as {'COCO' if task == 'caption' else 'VQA'} writes it")
    document = parse_json(read_text(path), path)
    if key == "results":  # which have no name in the file
        if not isinstance(document, list):
            names = ", ".join(f'"{name}": ...' for name in _JSON[task])
            raise DataError(f"{path}: not a list; results are [{{{names}}}, ...]")
        document = {key: document}
    return objects(document, key, path)


def _id(where: str, fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, int | str) or isinstance(value, bool) or not str(value).strip():
        told = "missing" if value in (None, "") else shown(value)
        raise DataError(f"{where}: the {key} is {told}; it is a number or a text")
    return str(value).strip()


def _text(where: str, fields: Mapping[str, Any], field: str) -> str:
    value = fields.get(field)
    if not isinstance(value, str):
        raise DataError(f"{where}: the {field} is {'missing' if value is None else shown(value)}; it is a text")
    return value


def _answers(where: str, fields: Mapping[str, Any]) -> list[str]:
    given = fields.get("answers")
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise DataError(f'{where}: "answers" is {shown(given)}; it is a list of {{"answer": ...}}')
    return [_text(where, one, "answer") for one in given]


def _more(names: Sequence[str]) -> str:
    return f" ({len(names) - 1:,} more are like it)" if len(names) > 1 else ""
