import base64
import json
from pathlib import Path
from typing import Any

import pytest

from mmgpt.content import Audio, Image, Message, Text
from mmgpt.data.chat import read_chat
from mmgpt.errors import DataError

PICTURE = {"type": "image", "url": "data:image/png;base64," + base64.b64encode(b"x").decode()}


def write(root: Path, *lines: Any) -> Path:
    path = root / "chat.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def about(name: str, question: str = "What?") -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "image", "path": name}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A "}, {"type": "text", "text": "dog."}]},
    ]


def test_the_last_turn_is_the_answer_and_all_before_it_the_prompt(tmp_path):
    conversation = [{"role": "system", "content": "Be brief."}, *turns("Hi.", "Hello.", "Bye?", "Bye.")]
    [sample] = read_chat(write(tmp_path, {"messages": conversation}), "dev")
    assert sample.prompt == (
        Message.of("system", "Be brief."),
        Message.of("user", "Hi."),
        Message.of("assistant", "Hello."),
        Message.of("user", "Bye?"),
    )
    assert (sample.answers, sample.where) == (("Bye.",), f"{tmp_path / 'chat.jsonl'}:1")


def test_media_are_found_beside_the_file_and_text_parts_joined(tmp_path):
    (tmp_path / "dog.jpg").touch()
    [sample] = read_chat(write(tmp_path, about("dog.jpg")), "dev")
    picture, text = sample.prompt[0].parts
    assert isinstance(picture, Image)
    assert (picture.source, text, sample.answers) == (tmp_path / "dog.jpg", Text("What?"), ("A dog.",))


def test_lines_about_one_picture_stay_in_one_split(tmp_path):
    for name in "abcdefghijkl":
        (tmp_path / f"{name}.jpg").touch()
    lines = [about(f"{name}.jpg", question) for question in ("What?", "Why?") for name in "abcdefghijkl"]
    path = write(tmp_path, *lines)
    seen = {
        split: [sample.prompt[0].parts[0].source.name for sample in read_chat(path, split)]  # type: ignore[union-attr]
        for split in ("train", "dev")
    }
    assert seen["dev"] == ["a.jpg", "k.jpg", "a.jpg", "k.jpg"]
    assert len(seen["train"]) == 20
    assert not {"a.jpg", "k.jpg"} & set(seen["train"])


def test_a_split_key_is_obeyed(tmp_path):
    path = write(
        tmp_path,
        {"messages": turns("a", "A"), "split": "train"},
        "",
        {"messages": turns("b", "B"), "split": "val"},
    )
    assert [sample.answers for sample in read_chat(path, "train")] == [("A",)]
    assert [sample.where[-2:] for sample in read_chat(path, "dev")] == [":3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"chat.jsonl:2: not JSON"),
        ("3", r"chat.jsonl:2: a conversation is a list of messages, not a number"),
        ({"dialogue": []}, r'chat.jsonl:2: no "messages"; the keys are "dialogue"'),
        ([], r"chat.jsonl:2: the conversation has no messages"),
        (turns("Hi."), r"chat.jsonl:2: no message of the assistant"),
        (turns("Hi.", "Hello.", "And?"), r"chat.jsonl:2: the conversation ends with the user"),
        (turns("Hi.", " "), r"chat.jsonl:2: the assistant's answer is empty"),
        (turns("Hi.", "A.")[1:] * 2, r"chat.jsonl:2: the assistant's last message does not follow one of the user's"),
        ([{"role": "assistant", "content": [PICTURE]}], r"chat.jsonl:2: the document is empty or has no text"),
        ([*turns("Draw."), {"role": "assistant", "content": [PICTURE]}], r"chat.jsonl:2: the assistant's answer is em"),
        ({"messages": turns("Hi.", "Hello."), "split": 1}, r"chat.jsonl:2: the split is 1; it is a string"),
        ([turns("Hi.")[0], {"role": "bot", "content": "x"}], r'chat.jsonl:2: messages\[1\]: unknown role "bot"'),
        (about("../dog.jpg"), r'chat.jsonl:2: messages\[0\].content\[0\]: "../dog.jpg" leads out of the folder'),
        (about("https://a.org/dog.jpg"), r"chat.jsonl:2: .* is a URL, and nothing is fetched"),
    ],
)
def test_a_malformed_line_is_told_with_its_number(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        read_chat(write(tmp_path, turns("Fine?", "Fine."), line), "dev")


def test_media_in_any_turn_of_the_assistant_stand_where_they_are(tmp_path):
    (tmp_path / "dog.jpg").touch()
    sound = {"type": "input_audio", "input_audio": {"data": "eA==", "format": "wav"}}
    first = [{"type": "text", "text": "Look: "}, {"type": "image", "path": "dog.jpg"}]
    last = [PICTURE, {"type": "text", "text": "It "}, {"type": "text", "text": "barks: "}, sound]
    said = [*turns("Draw."), {"role": "assistant", "content": first}, *turns("And?")]
    [sample] = read_chat(write(tmp_path, [*said, {"role": "assistant", "content": last}]), "dev")
    text, drawn = sample.prompt[1].parts
    assert (text, type(drawn), drawn.source) == (Text("Look: "), Image, tmp_path / "dog.jpg")  # type: ignore[union-attr]
    [(picture, *texts, heard)] = sample.answers
    assert isinstance(picture, Image)
    assert picture.source == b"x"
    assert isinstance(heard, Audio)
    assert heard.source == b"x"
    assert texts == [Text("It "), Text("barks: ")]
    assert (sample.task, sample.references) == ("ask", ("It barks:",))


def test_a_single_message_of_the_assistant_is_a_document_to_continue(tmp_path):
    content = [{"type": "text", "text": "Rex:\n"}, PICTURE, {"type": "text", "text": "\nHe is brown."}]
    path = write(tmp_path, [{"role": "assistant", "content": content}], [{"role": "assistant", "content": " Once. "}])
    mixed, plain = (sample for split in ("dev", "train") for sample in read_chat(path, split))
    [(before, picture, behind)] = mixed.answers
    assert (before, behind) == (Text("Rex:\n"), Text("\nHe is brown."))
    assert isinstance(picture, Image)
    assert picture.source == b"x"
    assert (mixed.prompt, mixed.task) == ((), "continue")
    assert (plain.prompt, plain.answers, plain.task) == ((), ("Once.",), "continue")


def test_documents_that_begin_with_one_picture_stay_in_one_split(tmp_path):
    for name in "abcdefghijkl":
        (tmp_path / f"{name}.jpg").touch()
    lines = [
        [{"role": "assistant", "content": [{"type": "image", "path": f"{name}.jpg"}, {"type": "text", "text": text}]}]
        for text in ("One.", "Two.")
        for name in "abcdefghijkl"
    ]
    path = write(tmp_path, *lines)
    held = [sample.media()[0].source for sample in read_chat(path, "dev")]
    assert held == [tmp_path / f"{name}.jpg" for name in "akak"]
    assert len(read_chat(path, "train")) == 20


def test_all_missing_files_are_counted(tmp_path):
    path = write(tmp_path, about("a.jpg"), about("b.jpg"), about("c.jpg"))
    (tmp_path / "b.jpg").touch()
    with pytest.raises(DataError, match=r'jsonl:1: .*"a.jpg" is not in the folder .*add the file.* \(1 more are miss'):
        read_chat(path, "train")


def test_an_empty_or_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match=r"chat.jsonl: the file is empty"):
        read_chat(write(tmp_path), "train")
    with pytest.raises(DataError, match=r"no such file; format chat reads a JSONL file"):
        read_chat(tmp_path, "train")
