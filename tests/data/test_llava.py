import json
from pathlib import Path
from typing import Any

import pytest

from mmgpt.content import Audio, Image, Message, Text, Video
from mmgpt.data.llava import read_llava
from mmgpt.errors import DataError


def write(root: Path, *rows: Any, file: str = "llava.json") -> Path:
    lines = file.endswith(".jsonl")
    (root / file).write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows))
    for name in ("dog.jpg", "cat.jpg", "bark.wav", "run.mp4"):
        (root / name).touch()
    return root / file


def said(*turns: str, **fields: Any) -> dict[str, Any]:
    return {
        "conversations": [{"from": ("human", "gpt")[i % 2], "value": turn} for i, turn in enumerate(turns)],
        **fields,
    }


def parts(message: Message) -> list[str]:
    """The texts, and the names of the media, in order."""
    return [
        part.text if isinstance(part, Text) else f"{type(part).__name__}:{part.source.name}"  # type: ignore[union-attr]
        for part in message.parts
    ]


@pytest.mark.parametrize("file", ["llava.json", "llava.jsonl"])
def test_a_picture_stands_where_its_word_stood_and_the_last_turn_is_the_answer(tmp_path, file):
    path = write(tmp_path, said("<image>\nWhat?", "A dog.", "Big?", "Yes.", id="7", image="dog.jpg"), file=file)
    for given in (path, tmp_path):
        [sample] = read_llava(given, "dev")
        assert [(message.role, parts(message)) for message in sample.prompt] == [
            ("user", ["Image:dog.jpg", "What?"]),
            ("assistant", ["A dog."]),
            ("user", ["Big?"]),
        ]
        assert (sample.answers, sample.task) == (("Yes.",), "ask")
        assert sample.where == f"{path}:1" if file.endswith("l") else f"{path}: [0]"


def test_several_media_of_several_kinds_keep_their_order(tmp_path):
    text = "Is <image> or\n<image> heard in <audio> and seen in <video>?"
    row = said("Hi.", "Hello.", text, "The first.", image=["dog.jpg", "cat.jpg"], audios=["bark.wav"], video="run.mp4")
    [sample] = read_llava(write(tmp_path, row), "dev")
    assert parts(sample.prompt[-1]) == [
        "Is", "Image:dog.jpg", "or", "Image:cat.jpg", "heard in", "Audio:bark.wav", "and seen in", "Video:run.mp4", "?",
    ]  # fmt: skip
    assert [type(part) for part in sample.prompt[-1].parts[1:8:2]] == [Image, Image, Audio, Video]


def test_in_a_row_without_media_the_words_are_text(tmp_path):
    [sample] = read_llava(write(tmp_path, said("What is <video> in HTML?", "A tag.")), "dev")
    assert sample.prompt == (Message.of("user", "What is <video> in HTML?"),)


def test_an_answer_may_speak_of_the_words(tmp_path):
    [sample] = read_llava(write(tmp_path, said("<image> What?", "An <image> tag.", image="dog.jpg")), "dev")
    assert sample.answers == ("An <image> tag.",)


def test_media_of_answers_stand_at_their_words_where_the_questions_leave_some(tmp_path):
    row = said("Like <image>?", "No, <image> is a cat.", "Hear one?", "<audio>\nSo.", image=["dog.jpg", "cat.jpg"])
    row["audio"] = "bark.wav"
    [sample] = read_llava(write(tmp_path, row), "dev")
    assert [parts(message) for message in sample.prompt] == [
        ["Like", "Image:dog.jpg", "?"],
        ["No,", "Image:cat.jpg", "is a cat."],
        ["Hear one?"],
    ]
    [answer] = sample.answers
    assert not isinstance(answer, str)
    assert (parts(Message("assistant", answer)), sample.task) == (["Audio:bark.wav", "So."], "ask")


def test_a_single_turn_of_the_assistant_is_a_document_to_continue(tmp_path):
    content = [{"type": "text", "text": "A dog: "}, {"type": "image"}, {"type": "text", "text": " It is brown."}]
    rows = [
        {"messages": [{"role": "assistant", "content": content}], "images": ["dog.jpg"]},
        {"conversations": [{"from": "gpt", "value": "A cat: <image> It sits."}], "image": "cat.jpg"},
    ]
    path = write(tmp_path, *rows)
    expected = {"train": ["A dog: ", "Image:dog.jpg", " It is brown."], "dev": ["A cat:", "Image:cat.jpg", "It sits."]}
    for split, told in expected.items():
        [sample] = read_llava(path, split)
        [answer] = sample.answers
        assert not isinstance(answer, str)
        assert (sample.prompt, parts(Message("assistant", answer)), sample.task) == ((), told, "continue")


def test_the_dialect_of_llama_factory_is_read(tmp_path):
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A dog."}]
    [sample] = read_llava(write(tmp_path, {"messages": turns, "images": ["dog.jpg"], "system": "Be brief."}), "dev")
    assert [(message.role, parts(message)) for message in sample.prompt] == [
        ("system", ["Be brief."]),
        ("user", ["Image:dog.jpg", "What?"]),
    ]


def test_parts_without_names_take_the_media_in_turn(tmp_path):
    content = [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}, {"type": "text", "text": "?"}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "One."}]}
    [sample] = read_llava(write(tmp_path, {**row, "images": ["dog.jpg", "cat.jpg"]}), "dev")
    assert parts(sample.prompt[0]) == ["Image:dog.jpg", "or", "Image:cat.jpg", "?"]


def test_rows_about_one_picture_stay_in_one_split_and_a_split_key_is_obeyed(tmp_path):
    for i in range(12):
        (tmp_path / f"{i:02}.jpg").touch()
    rows = [said("<image>What?", word, image=f"{i:02}.jpg") for word in ("A", "B") for i in range(12)]
    path = write(tmp_path, *rows)
    held = [sample.prompt[0].parts[0].source.name for sample in read_llava(path, "dev")]  # type: ignore[union-attr]
    assert held == ["00.jpg", "10.jpg"] * 2
    assert len(read_llava(path, "train")) == 20
    path = write(tmp_path, said("a", "A", split="train"), said("b", "B", split="val"))
    assert [read_llava(path, split)[0].answers for split in ("train", "dev")] == [("A",), ("B",)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (3, r"\[1\]: not an object"),
        ({"image": "dog.jpg"}, r'\[1\]: no "conversations" and no "messages"; the keys are "image"'),
        ({"conversations": []}, r'\[1\]: "conversations" is \[\]; it is a list of turns'),
        ({"conversations": ["Hi."]}, r"\[1\]: conversations\[0\] is not an object"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, r'\[1\]: conversations\[0\]: unknown speaker "bot"'),
        ({"conversations": [{"from": ["x"], "value": "x"}]}, r"\[1\]: conversations\[0\]: unknown speaker \['x'\]"),
        ({"conversations": [{"from": "human"}]}, r"\[1\]: conversations\[0\]: the text is None; it is a string"),
        ({"messages": [{"role": "user", "content": [{"type": "odd"}]}]}, r"messages\[0\]\[0\]: unknown part"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"messages\[0\]\[0\]: the text is None"),
        (said("Hi.", "Hello.", system=5), r'\[1\]: "system" is 5; it is a string'),
        (said("What?", "A dog.", image="dog.jpg"), r"\[1\]: 0 × <image> in the turns, and 1 images named"),
        (said("<image><image>", "A.", image="dog.jpg"), r"\[1\]: 2 × <image> in the turns, and 1 images named"),
        (said("What?", "A.", image={"a": 1}), r'\[1\]: "image" is .*; it is the name of a file or a list of names'),
        (said("What?", "A.", image="a", images=["a"]), r'\[1\]: both "image" and "images" are given'),
        (said("<image>What?", "A.", image="../dog.jpg"), r'\[1\]: "../dog.jpg" leads out of the folder'),
        (said("<image>What?", "A.", image="http://a.org/b.jpg"), r"\[1\]: .* is a URL, and nothing is fetched"),
        (said("What?", "<image><image>.", image="dog.jpg"), r"\[1\]: 2 × <image> in the turns, and 1 images named"),
        (said("<image>What?", image="dog.jpg"), r"\[1\]: no message of the assistant"),
        (said("What?", "A.", split=1), r"\[1\]: the split is 1; it is a string"),
    ],
)
def test_a_malformed_row_is_told_with_its_place(tmp_path, row, message):
    with pytest.raises(DataError, match=r"llava.json: " + message if message.startswith(r"\[") else message):
        read_llava(write(tmp_path, said("Fine?", "Fine."), row), "dev")


def test_all_missing_files_are_counted(tmp_path):
    path = write(tmp_path, *(said("<image>What?", "A.", image=f"{name}.jpg") for name in "abc"))
    with pytest.raises(DataError, match=r'llava.json: \[0\]: "a.jpg" is not in the folder .* \(2 more are missing\)'):
        read_llava(path, "train")


def test_a_folder_of_two_files_an_empty_list_and_lines_in_a_json_are_told(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        read_llava(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"no .json or .jsonl file is here"):
        read_llava(tmp_path, "train")
    write(tmp_path, said("a", "b"), file="a.json")
    write(tmp_path, said("a", "b"), file="b.jsonl")
    with pytest.raises(DataError, match=r"a.json, b.jsonl is here; give the file"):
        read_llava(tmp_path, "train")
    (tmp_path / "a.json").write_text('{"a": 1}\n{"a": 1}')
    with pytest.raises(DataError, match=r"a.json:2: not JSON"):
        read_llava(tmp_path / "a.json", "train")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match=r"a.json: not a list of rows, or an empty one"):
        read_llava(tmp_path / "a.json", "train")
