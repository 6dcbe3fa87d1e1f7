"""Conversations as the OpenAI and Hugging Face ecosystems write them, turned into Messages.

| part | medium |
|---|---|
| `{"type": "text", "text": "…"}` | text |
| `{"type": "image_url", "image_url": {"url": "data:…" or a file}}` | image |
| `{"type": "video_url", "video_url": {"url": "data:…" or a file}}` | video |
| `{"type": "input_audio", "input_audio": {"data": base64, "format": "wav"}}` | audio |
| `{"type": "image", "image" or "path" or "url": "data:…" or a file}`, `audio` and `video` alike | that medium |
"""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmgpt.content import ROLES, Audio, Image, Message, Part, Text, Video
from mmgpt.errors import DataError, shown
from mmgpt.folder import MediaFolder

_MEDIA = {"image": Image, "audio": Audio, "video": Video}
_URLS = {"image_url": Image, "video_url": Video}
_TYPES = ("text", *_URLS, "input_audio", *_MEDIA)


def parse_messages(conversation: Any, folder: MediaFolder | None) -> list[Message]:
    """The messages of a conversation in chat format: `{"messages": [...]}` or the list alone.

    Args:
        conversation: What json.loads returned.
        folder: Where named files lie; None where only media inside the conversation may be read (a server).

    Raises:
        MissingFileError: A named file is not in the folder.
        DataError: Anything else is wrong; the message says in which message and part.
    """
    if isinstance(conversation, Mapping):
        if "messages" not in conversation:
            raise DataError(f'no "messages"; the keys are {_listed(conversation)}')
        conversation = conversation["messages"]
    if not isinstance(conversation, list):
        raise DataError(f"a conversation is a list of messages, not {_kind(conversation)}")
    if not conversation:
        raise DataError("the conversation has no messages")
    return [_message(message, f"messages[{index}]", folder) for index, message in enumerate(conversation)]


def _message(message: Any, where: str, folder: MediaFolder | None) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {_kind(message)}; a message is an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise DataError(f"{where}: unknown role {shown(role)}; roles are {', '.join(ROLES)}")
    if isinstance(content, str):
        return Message.of(role, content)
    if not isinstance(content, list):
        raise DataError(f"{where}: content is {_kind(content)}; it is a string or a list of parts")
    if not content:
        raise DataError(f"{where}: content is empty")
    return Message(role, tuple(_part(part, f"{where}.content[{i}]", folder) for i, part in enumerate(content)))


def _part(part: Any, where: str, folder: MediaFolder | None) -> Part:
    if not isinstance(part, Mapping):
        raise DataError(f'{where} is {_kind(part)}; a part is an object with "type"')
    kind = part.get("type")
    if kind == "text":
        return Text(_string(part, "text", where))
    if isinstance(kind, str) and kind in _URLS:
        return _URLS[kind](_source(_string(part.get(kind), "url", f"{where}.{kind}"), where, folder))
    if kind == "input_audio":
        return Audio(_decoded(_string(part.get("input_audio"), "data", f"{where}.input_audio"), where))
    if not isinstance(kind, str) or kind not in _MEDIA:
        raise DataError(f"{where}: unknown part type {shown(kind)}; types are {', '.join(_TYPES)}")
    keys = [key for key in (kind, "path", "url") if key in part]
    if len(keys) != 1:
        raise DataError(
            f'{where}: a part of type {kind} has one of "{kind}", "path", "url"; its keys are {_listed(part)}'
        )
    return _MEDIA[kind](_source(_string(part, keys[0], where), where, folder))


def _source(source: str, where: str, folder: MediaFolder | None) -> bytes | Path:
    """The bytes of a data: URL, or the path of a file of the folder."""
    if source.startswith("data:"):
        head, comma, data = source.partition(",")
        if not comma or not head.endswith(";base64"):
            raise DataError(f"{where}: the data: URL is not data:<type>;base64,<data>")
        return _decoded(data, where)
    if folder is None:
        raise DataError(f"{where}: {shown(source)} is not a data: URL; send the medium itself")
    try:
        return folder.find(source)
    except DataError as error:
        raise type(error)(f"{where}: {error}") from None


def _decoded(data: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: the data is not base64: {error}") from None


def _string(mapping: Any, key: str, where: str) -> str:
    if not isinstance(mapping, Mapping):
        raise DataError(f'{where} is {_kind(mapping)}; it is an object with "{key}"')
    if not isinstance(mapping.get(key), str):
        raise DataError(f'{where}: "{key}" is {_kind(mapping.get(key))}; it is a string')
    return mapping[key]


def _kind(value: Any) -> str:
    names = {type(None): "missing", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")


def _listed(mapping: Mapping[str, Any]) -> str:
    return shown(", ".join(map(str, mapping)))
