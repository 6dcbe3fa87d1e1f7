import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.chat_format import parse_messages
from mmgpt.content import Audio, Image, Message, Text, Video
from mmgpt.errors import DataError
from mmgpt.folder import MediaFolder, MissingFileError

DATA = base64.b64encode(b"some bytes").decode()
URL = f"data:application/octet-stream;base64,{DATA}"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "file").touch()
    return MediaFolder(tmp_path)


def parse_part(part: Any, folder: MediaFolder | None) -> Any:
    [message] = parse_messages([{"role": "user", "content": [part]}], folder)
    [parsed] = message.parts
    return parsed


def test_a_conversation_is_an_object_with_messages_or_the_list():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
    ]
    expected = [Message("system", (Text("Be brief."),)), Message("user", (Text("a"),))]
    assert parse_messages(messages, None) == parse_messages({"messages": messages, "id": 3}, None) == expected


@pytest.mark.parametrize(
    ("part", "medium"),
    [
        ({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}, Image),
        ({"type": "video_url", "video_url": {"url": URL}}, Video),
        ({"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}}, Audio),
        ({"type": "input_audio", "input_audio": {"data": DATA[:5] + "\n" + DATA[5:], "format": "wav"}}, Audio),
        ({"type": "image", "image": URL}, Image),
        ({"type": "image", "url": URL}, Image),
        ({"type": "audio", "audio": URL}, Audio),
        ({"type": "video", "url": URL}, Video),
    ],
)
def test_media_inside_the_conversation_are_bytes(part, medium):
    parsed = parse_part(part, None)
    assert isinstance(parsed, medium)
    assert parsed.source == b"some bytes"


@pytest.mark.parametrize(
    ("part", "medium"),
    [
        ({"type": "image_url", "image_url": {"url": "file"}}, Image),
        *[
            ({"type": kind, key: "file"}, medium)
            for kind, medium in (("image", Image), ("audio", Audio), ("video", Video))
            for key in (kind, "path", "url")
        ],
    ],
)
def test_named_media_are_files_of_the_folder_and_refused_without_one(folder, part, medium):
    parsed = parse_part(part, folder)
    assert isinstance(parsed, medium)
    assert parsed.source == folder.root / "file"
    with pytest.raises(DataError, match=r'messages\[0\].content\[0\]: "file" is not a data: URL'):
        parse_part(part, None)


def test_a_missing_file_is_told_apart(folder):
    with pytest.raises(MissingFileError, match=r'messages\[0\].content\[0\]: "gone" is not in the folder'):
        parse_part({"type": "image", "path": "gone"}, folder)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("text", r'is a string; a part is an object with "type"'),
        (
            {"text": "a"},
            r"unknown part type None; types are text, image_url, video_url, input_audio, image, audio, video",
        ),
        ({"type": "hologram"}, r'unknown part type "hologram"'),
        ({"type": ["image"]}, r"unknown part type \['image'\]"),
        ({"type": "text"}, r'"text" is missing; it is a string'),
        ({"type": "text", "text": ["a"]}, r'"text" is a list'),
        ({"type": "image"}, r'a part of type image has one of "image", "path", "url"; its keys are "type"'),
        ({"type": "image", "path": "file", "url": URL}, r'has one of .* its keys are "type, path, url"'),
        ({"type": "image", "path": {"url": URL}}, r'"path" is an object; it is a string'),
        ({"type": "image_url", "image_url": URL}, r'image_url is a string; it is an object with "url"'),
        ({"type": "image_url"}, r'image_url is missing; it is an object with "url"'),
        ({"type": "input_audio", "input_audio": {"format": "wav"}}, r'input_audio: "data" is missing'),
        ({"type": "input_audio", "input_audio": {"data": "no base64!"}}, r"the data is not base64"),
        ({"type": "image", "url": "data:image/png,abc"}, r"the data: URL is not data:<type>;base64,<data>"),
        ({"type": "image", "url": "data:image/png;base64"}, r"the data: URL is not data:<type>;base64,<data>"),
        ({"type": "image", "url": "http://a.org/a.png"}, r"is a URL, and nothing is fetched"),
        ({"type": "image", "url": "file:///etc/passwd"}, r"is a URL, and nothing is fetched"),
        ({"type": "image", "path": "/etc/passwd"}, r"leads out of the folder"),
    ],
)
def test_a_malformed_part_is_told_with_its_place(folder, part, message):
    with pytest.raises(DataError, match=r"messages\[0\].content\[0\].*" + message):
        parse_part(part, folder)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (["Hi."], r"messages\[0\] is a string; a message is an object"),
        ([{"content": "Hi."}], r"messages\[0\]: unknown role None; roles are system, user, assistant"),
        ([{"role": "user"}], r"messages\[0\]: content is missing"),
        ([{"role": "user", "content": 3}], r"messages\[0\]: content is a number"),
        ([{"role": "user", "content": []}], r"messages\[0\]: content is empty"),
    ],
)
def test_a_malformed_message_is_told_with_its_place(messages, message):
    with pytest.raises(DataError, match=message):
        parse_messages(messages, None)


WORDS = st.sampled_from(
    ["messages", "role", "user", "content", "type", "text", "image", "path", "url", "image_url", URL]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": VALUES | st.lists(VALUES)}))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(VALUES | MESSAGES)
def test_any_json_is_messages_or_one_line_of_error(value):
    try:
        outcome = parse_messages(json.loads(json.dumps(value)), None)
    except DataError as error:
        outcome = str(error)
    if isinstance(outcome, str):
        assert "\n" not in outcome
    else:
        assert all(message.parts for message in outcome)
