"""Conversations as LLaVA and ShareGPT write them, in one JSON list or as JSON lines, with their media beside the file.

[{"id": "1", "image": "dog.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                   {"from": "gpt", "value": "A dog."}]}, ...]

"image", "video" and "audio" (or "images", "videos", "audios") are a name or a list of names; the words <image>, <video>
and <audio> of the turns stand where they belong, in the same order. In a row that names no media of a kind its word is
text, as in LLaVA: people talk about HTML. So it is in answers, where the human's turns have a place for each medium.
LLaMA-Factory's dialect is read too:

{"messages": [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A dog."}],
 "images": ["dog.jpg"], "system": "Be brief."}
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmgpt.content import Audio, Image, Message, Part, Role, Text, Video
from mmgpt.data.chat import conversation_sample
from mmgpt.data.faults import Faults
from mmgpt.data.gathered import Gathered
from mmgpt.data.sample import Sample
from mmgpt.data.table import parse_json, read_lines, read_text
from mmgpt.errors import DataError, shown
from mmgpt.folder import MediaFolder

MEDIA = {"image": Image, "video": Video, "audio": Audio}
_PLACEHOLDER = re.compile(r"<(image|video|audio)>")
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_PLACES = ("images", "videos", "audios")


def read_llava(path: Path, split: str) -> list[Sample]:
    """The conversations of a split, in the order of the file. The last turn, the assistant's, is the answer.

    Earlier turns of the assistant stand in the prompt, and are learned from too.

    Args:
        path: The .json or .jsonl file, or the folder in which it is the only one; media are named relative to the
            folder, or to images/, videos/ or audios/ in it.
        split: By the key "split", or else every tenth row is held out; rows that begin with the same media file count
            as one, so that no picture is both trained on and held out.

    Raises:
        DataError: A row is malformed or a file it names is missing.
    """
    path = _find(path)
    folder = MediaFolder(path.parent, _PLACES)
    gathered = Gathered(path)
    for where, row in _rows(path, gathered.faults):
        with gathered.faults.row():
            if not isinstance(row, dict):
                raise DataError(f'{where}: not an object; a row is {{"image": ..., "conversations": [...]}}')
            gathered.add(where, row.get("split"), partial(_sample, row, folder, where))
    return gathered.samples(split)


def sharegpt_messages(row: Mapping[str, Any], media: Mapping[str, Sequence[Part]]) -> list[Message]:
    """The messages of a row's "conversations" or "messages", with the media of each kind put in at their places.

    A turn's text is a string with the words <image>, <video>, <audio>, or a list of parts of type text, image, video
    and audio. In the assistant's they are places where the user's turns have fewer than there are media. Raises
    DataError where media and places are not equally many, and for anything malformed.
    """
    key = next((key for key in ("conversations", "messages") if row.get(key) is not None), None)
    if key is None:
        raise DataError(f'no "conversations" and no "messages"; the keys are {shown(", ".join(row))}')
    turns = row[key]
    if not isinstance(turns, list) or not turns:
        raise DataError(f'"{key}" is {shown(turns)}; it is a list of turns')
    waiting = {kind: list(parts) for kind, parts in media.items() if parts}
    counts = dict.fromkeys(waiting, 0)
    messages = []
    if (system := row.get("system")) is not None:
        if not isinstance(system, str):
            raise DataError(f'"system" is {shown(system)}; it is a string')
        messages.append(Message.of("system", system))
    said = [(f"{key}[{index}]", *_turn(turn, f"{key}[{index}]")) for index, turn in enumerate(turns)]
    asked = [piece for where, role, text in said if role == "user" for piece, _ in _pieces(text, where, waiting)]
    left = [kind for kind, parts in waiting.items() if asked.count(kind) < len(parts)]
    for where, role, content in said:
        pieces = _pieces(content, where, waiting if role == "user" else left if role == "assistant" else ())
        parts: list[Part] = []
        for kind, text in pieces:
            if kind == "text":
                parts.append(Text(text))
            else:
                counts[kind] = counts.get(kind, 0) + 1
                parts += waiting.get(kind, [])[counts[kind] - 1 : counts[kind]]
        messages.append(Message(role, tuple(parts)))
    for kind, count in counts.items():
        if count != len(waiting.get(kind, [])):
            raise DataError(
                f"{count} × <{kind}> in the turns, and {len(waiting.get(kind, []))} {kind}s named; let them be as many"
            )
    return messages


def _turn(turn: Any, where: str) -> tuple[Role, Any]:
    if not isinstance(turn, dict):
        raise DataError(f'{where} is not an object; a turn is {{"from": "human", "value": "..."}}')
    said = turn.get("from", turn.get("role"))
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise DataError(f"{where}: unknown speaker {shown(said)}; known are {', '.join(_ROLES)}")
    return role, turn.get("value", turn.get("content"))


def _pieces(content: Any, where: str, kinds: Iterable[str]) -> list[tuple[str, str]]:
    """(kind, text) of the pieces of a turn; white space beside media is not part of the text."""
    if isinstance(content, str):
        pieces, end = [], 0
        for match in _PLACEHOLDER.finditer(content):
            if match[1] in kinds:
                pieces += [("text", content[end : match.start()]), (match[1], "")]
                end = match.end()
        pieces.append(("text", content[end:]))
        return [(kind, text.strip()) for kind, text in pieces if kind != "text" or text.strip()]
    if not isinstance(content, list):
        raise DataError(f"{where}: the text is {shown(content)}; it is a string")
    pieces = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", *MEDIA):
            raise DataError(f"{where}[{i}]: unknown part {shown(part)}; types are text, {', '.join(MEDIA)}")
        if kind == "text" and not isinstance(part.get("text"), str):
            raise DataError(f"{where}[{i}]: the text is {shown(part.get('text'))}; it is a string")
        pieces.append((kind, part["text"] if kind == "text" else ""))
    return pieces


def _sample(row: dict[str, Any], folder: MediaFolder, where: str) -> Sample:
    media = {kind: [part(folder.find(name)) for name in _names(row, kind)] for kind, part in MEDIA.items()}
    return conversation_sample(sharegpt_messages(row, media), where)


def _names(row: dict[str, Any], kind: str) -> list[str]:
    found = [row[key] for key in (kind, f"{kind}s") if row.get(key) is not None]
    if len(found) > 1:
        raise DataError(f'both "{kind}" and "{kind}s" are given; keep one')
    names = found[0] if found else []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f'"{kind}" is {shown(names)}; it is the name of a file or a list of names')
    return names


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    found = sorted([*path.glob("*.json"), *path.glob("*.jsonl")])
    if len(found) != 1:
        names = ", ".join(file.name for file in found)
        raise DataError(f"{path}: {names or 'no .json or .jsonl file'} is here; give the file of conversations itself")
    return found[0]


def _rows(path: Path, faults: Faults) -> Iterator[tuple[str, Any]]:
    """The rows and their places: of a list their numbers, since JSON knows no lines once it is read."""
    if path.suffix == ".jsonl":
        for number, line in read_lines(path):
            with faults.row():
                yield f"{path}:{number}", parse_json(line, path, number)
        return
    document = parse_json(read_text(path), path)
    if not isinstance(document, list) or not document:
        raise DataError(f"{path}: not a list of rows, or an empty one; JSON lines are named .jsonl")
    yield from ((f"{path}: [{index}]", row) for index, row in enumerate(document))
