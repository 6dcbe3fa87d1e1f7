"""Rows with named columns to samples, by one rule for texts, Parquet, WebDataset and Hugging Face data sets.

Media are in columns named image(s), img, picture, photo; audio, sound, speech; video, clip. What is learnt about them
is told by the first of these lines of which all columns are there; of several names on a line the first counts:

| columns | sample |
|---|---|
| media and texts, lists of one length | a document to continue, where at each place one of them is not null |
| messages, conversations | a conversation, as format llava reads them |
| media, and texts of {user, assistant} | a conversation about the media (The Cauldron, FineVision) |
| question, prompt, query, instruction (and input, below it), source, input | the prompt, |
| with multiple_choice_answer, answer(s), response, completion | and its right answers, |
| or a list of questions with as many answers | questions about the same media, |
| or target, output | or a text to write; or translation, summary where the tasks' own words ask for one, |
| or label, category, class | or a class |
| media and caption(s) | captions |
| media and transcript, transcription, sentence, text | speech to transcribe; of pictures and clips, captions |
| media and label, category, class | a classification |
| text and label, category, class | a prompt and its class |
| text | a text to continue, without any prompt |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from mmgpt.content import Audio, Image, Message, Part, Text, Video
from mmgpt.data.chat import conversation_sample
from mmgpt.data.lazy import LazySamples
from mmgpt.data.llava import sharegpt_messages
from mmgpt.data.sample import Sample
from mmgpt.data.splits import row_numbers, split_name
from mmgpt.errors import DataError, MediaError, shown
from mmgpt.folder import MediaFolder
from mmgpt.stored import Stored
from mmgpt.tasks import TASKS, task_of

T = TypeVar("T")

_PARTS = {"image": Image, "audio": Audio, "video": Video}
MEDIA = {
    **dict.fromkeys(("image", "images", "img", "picture", "photo"), "image"),
    **dict.fromkeys(("audio", "audios", "sound", "speech"), "audio"),
    **dict.fromkeys(("video", "videos", "clip"), "video"),
}
_MESSAGES = ("messages", "conversations")
_QUESTION = ("question", "prompt", "query", "instruction", "source", "input")
_ANSWER = ("multiple_choice_answer", "answer", "answers", "response", "completion")
_TARGET = ("target", "output")
_CAPTION = ("caption", "captions")
_SPOKEN = ("transcript", "transcription", "sentence", "text")
_DOCUMENT = "texts"
LABEL = ("label", "category", "class")
TEXTS = frozenset((*_MESSAGES, "system", _DOCUMENT, *_QUESTION, *_ANSWER, *_TARGET, *_CAPTION, *_SPOKEN, *LABEL))


def row_sample(
    fields: Mapping[str, Any], where: str, folder: MediaFolder | None = None, wording: int | None = None
) -> Sample:
    """The sample of a row.

    Args:
        fields: The values by the names of their columns, in small letters. Media are bytes, {"bytes": ..., "path":
            ...}, Stored, the name of a file, or a list of those.
        where: Where the row is.
        folder: Where named files lie.
        wording: Which wording of the task's request (Task.wording).

    Raises:
        MissingFileError: A named file is not in the folder.
        DataError: Columns are missing or values malformed; without `where`, which the caller puts before it.
    """
    known = (*MEDIA, _DOCUMENT)
    lists = {name: value for name, value in fields.items() if name in known and isinstance(value, list)}
    turns = lists.get(_DOCUMENT, [])
    talk = bool(turns) and all(isinstance(turn, dict) for turn in turns)
    if len(lists) > 1 and _DOCUMENT in lists and not talk:
        return conversation_sample([Message("assistant", _interleaved(lists, folder))], where)
    media: dict[str, list[Part]] = {kind: [] for kind in _PARTS}
    for name, value in fields.items():
        if name in MEDIA and value is not None:
            kind = MEDIA[name]
            values = value if isinstance(value, list) else [value]
            media[kind] += [_PARTS[kind](_source(one, name, folder)) for one in values]
    parts = [part for found in media.values() for part in found]

    def first(names: Sequence[str]) -> str | None:
        return next((name for name in names if fields.get(name) is not None), None)

    def asked(task: str, answer: str) -> Sample:
        prompt = TASKS[task].conversation(*parts, prompt=TASKS[task].wording(wording))
        return Sample(tuple(prompt), texts_of(fields[answer], answer), task, where)

    if talk:
        return conversation_sample(_talk(turns, parts), where)
    if first(_MESSAGES):
        return conversation_sample(sharegpt_messages(fields, media), where)
    question, target, label = first(_QUESTION), first(_TARGET), first(LABEL)
    answer = first(_ANSWER) or target or label
    if question and answer and isinstance(fields[question], list):
        return _asked_together(parts, (question, fields[question]), (answer, fields[answer]), where)
    if question and answer:
        text = _string(fields[question], question)
        task = task_of(text) or ("write" if answer == target else "ask")
        if question == "instruction" and fields.get("input"):
            text = f"{text}\n{_string(fields['input'], 'input')}"
        return Sample((Message.of("user", *parts, text),), texts_of(fields[answer], answer), task, where)
    caption, spoken = first(_CAPTION), first(_SPOKEN)
    if parts and caption:
        return asked("caption" if media["image"] else "describe", caption)
    if parts and spoken:
        return asked("transcribe" if media["audio"] else "caption" if media["image"] else "describe", spoken)
    if parts and label:
        return asked("classify", label)
    if not parts and spoken == "text" and label:
        prompt = Message.of("user", _string(fields["text"], "text"))
        return Sample((prompt,), texts_of(fields[label], label), "ask", where)
    if not parts and spoken == "text":
        return Sample((), (_string(fields["text"], "text"),), "continue", where)
    given = ", ".join(name for name, value in fields.items() if value is not None)
    raise DataError(
        f"nothing to learn from the columns {shown(given)}; name them image, audio or video and caption, text or "
        "label, question and answer, source and target, or messages"
    )


def _talk(turns: Sequence[Mapping[str, Any]], parts: Sequence[Part]) -> list[Message]:
    """Turns of both sides (Laurençon et al. 2024, The Cauldron); the media come first."""
    messages = []
    for turn in turns:
        asked, said = (_string(turn.get(side), f"text of the {side}") for side in ("user", "assistant"))
        messages += [Message.of("user", *(() if messages else parts), asked), Message.of("assistant", said)]
    return messages


def _asked_together(
    parts: Sequence[Part], questions: tuple[str, list[Any]], answers: tuple[str, Any], where: str
) -> Sample:
    """Questions about the same media, each with its own right answers; of both columns the name and the value."""
    (question, texts), (answer, rights) = questions, answers
    if not isinstance(rights, list) or len(rights) != len(texts) or not texts:
        raise DataError(f"the {question} is a list of {len(texts)}; let the {answer} be a list of as many")
    first, *others = (
        Sample((Message.of("user", *parts, _string(text, question)),), texts_of(right, answer), "ask", where)
        for text, right in zip(texts, rights, strict=True)
    )
    return replace(first, more=tuple(others))


def _interleaved(columns: Mapping[str, list[Any]], folder: MediaFolder | None) -> tuple[Part, ...]:
    """Texts and media in their order (Laurençon et al. 2023, OBELICS): at each place one of the columns has a value."""
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{len(values)} {name}" for name, values in columns.items())
        raise DataError(f"{lengths}; let the lists be as long as each other, with null where another has a value")
    parts: list[Part] = []
    for place, values in enumerate(zip(*columns.values(), strict=True)):
        found = [(name, value) for name, value in zip(columns, values, strict=True) if value is not None]
        if len(found) != 1:
            raise DataError(f"{' and '.join(columns)}[{place}] have {len(found)} values; all but one are null there")
        [(name, value)] = found
        if name in MEDIA:
            parts.append(_PARTS[MEDIA[name]](_source(value, name, folder)))
        elif isinstance(value, str):
            parts.append(Text(value))
        else:
            raise DataError(f"texts[{place}] is {shown(value)}; it is a text or null")
    return tuple(parts)


def _source(value: Any, name: str, folder: MediaFolder | None) -> Any:
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes | Stored):
        return value
    if isinstance(value, str) and folder is not None:
        return folder.find(value)
    raise DataError(f"the {name} is {shown(value)}; it is the bytes of a file, or the name of one in the folder")


def texts_of(value: Any, name: str) -> tuple[str, ...]:
    """The texts of a column, each once: a string or number, a list of them, or lists as SQuAD and VQA have them."""
    if isinstance(value, dict):
        value = value.get("text")  # SQuAD: {"text": [...], "answer_start": [...]}
    values = value if isinstance(value, list) else [value]
    texts = [one.get("answer", one.get("text")) if isinstance(one, dict) else one for one in values]
    if not texts:
        raise DataError(f"the {name} is an empty list; fill it in or remove the row")
    return tuple(dict.fromkeys(_string(text, name) for text in texts))


def _string(value: Any, name: str) -> str:
    if isinstance(value, int | float):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"the {name} is {shown(value)}; it is a text that is not empty")
    return value.strip()


class Rows(Protocol):
    """A table that is read row by row, from wherever it is stored."""

    columns: dict[str, bool]
    """The columns, and whether their values are lists."""
    classes: dict[str, Sequence[str]]
    """The names of the classes of columns that hold their numbers."""
    gaps: set[str]
    """The columns that may hold nothing in some row."""

    def where(self, row: int) -> str:
        """How a row is called in messages."""
        ...

    def values(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        """The values of some columns. Raises DataError where they cannot be read."""
        ...


@dataclass(frozen=True, eq=False)
class Cell:
    """The medium in one column of one row, which is read when it is needed."""

    rows: Rows
    row: int
    column: str

    def __str__(self) -> str:
        return f"{self.rows.where(self.row)}: {self.column}"

    def read_bytes(self) -> bytes:
        try:
            value = self.rows.values(self.row, [self.column])[self.column]
        except DataError as error:
            raise MediaError(str(error)) from None
        path = value.get("path") if isinstance(value, dict) else None
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            held = f"names the file {shown(path)} and does not hold it" if path else "holds no bytes"
            raise MediaError(f"{self}: {held}; store the media in the table")
        return value


def lazy_samples(rows: Rows, splits: Sequence[str | None], codes: np.ndarray, split: str, source: Path) -> LazySamples:
    """The samples of the rows of a split; `splits` and `codes` are those of splits.row_numbers.

    A row is read when its sample is asked for, and single media later still, when they are decoded. The first sample is
    tried at once, so that columns without meaning are told before training. Raises DataError.
    """
    # Where in a conversation media stand depends on whether a row has any, so there they are read with it.
    talk = any(name.lower() in _MESSAGES for name in rows.columns)
    media = [name for name, is_list in rows.columns.items() if name.lower() in MEDIA and not (is_list or talk)]
    read = [name for name in rows.columns if name not in media and name.lower() in (*TEXTS, *MEDIA)]
    if not (media or read):
        raise DataError(f"{source}: no column is known by its name; there are {shown(', '.join(rows.columns))}")
    try:
        numbers = row_numbers(splits, codes, split)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    samples = LazySamples(numbers, partial(_stored_sample, rows, media, read, split_name(split) == "train"))
    _ = samples[0]  # so that columns of which nothing can be made are told before training
    return samples


def _stored_sample(rows: Rows, media: list[str], read: list[str], train: bool, row: int) -> Sample:
    where = rows.where(row)
    fields: dict[str, Any] = {name.lower(): Cell(rows, row, name) for name in media if not _is_gap(rows, row, name)}
    for name, value in rows.values(row, read).items() if read else ():
        fields[name.lower()] = told(partial(class_name, value, rows.classes.get(name, ()), name), where)
    return told(partial(row_sample, fields, where, None, row if train else None), where)


def _is_gap(rows: Rows, row: int, column: str) -> bool:
    """Whether a row has no medium in a column. Only where some may have none it is looked at."""
    if column not in rows.gaps:
        return False
    value = rows.values(row, [column])[column]
    return value is None or (isinstance(value, dict) and not any(value.values()))


def class_name(value: Any, names: Sequence[str], column: str) -> Any:
    """The name of a class where its number is given; any other value as it is. Raises DataError: no such number."""
    if not names or not isinstance(value, int):
        return value
    if not 0 <= value < len(names):  # -1 is usual where the class is not known
        raise DataError(f"the {column} is {value}; its classes are numbered 0 to {len(names) - 1}")
    return names[value]


def told(make: Callable[[], T], where: str) -> T:
    """What is made, or a DataError that says where."""
    try:
        return make()
    except DataError as error:
        raise type(error)(f"{where}: {error}") from None
