from pathlib import Path
from typing import Any

import pytest

from mmgpt.content import Audio, Image, Message, Text, Video
from mmgpt.data.rows import row_sample
from mmgpt.data.sample import Sample
from mmgpt.errors import DataError
from mmgpt.folder import MediaFolder, MissingFileError
from mmgpt.tasks import TASKS


def told(sample: Sample) -> tuple[list[Any], tuple[str, ...], str]:
    """The kinds of media and the texts of the prompt, the answers, and the task."""
    parts = [part for message in sample.prompt for part in message.parts]
    return [part.text if isinstance(part, Text) else type(part) for part in parts], sample.answers, sample.task


def first(task: str) -> str:
    return TASKS[task].prompts[0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"image": b"i", "question": "What?", "answer": "dog"}, ([Image, "What?"], ("dog",), "ask")),
        ({"img": b"i", "question": "What?", "answers": ["a", "b", "a"]}, ([Image, "What?"], ("a", "b"), "ask")),
        (
            {"image": b"i", "question": "What?", "multiple_choice_answer": "a", "answers": [{"answer": "b"}]},
            ([Image, "What?"], ("a",), "ask"),
        ),
        ({"question": "Q", "answers": {"text": ["a"], "answer_start": [5]}}, (["Q"], ("a",), "ask")),
        ({"question": "Q", "answers": [{"answer": "a", "id": 1}, {"answer": "b"}]}, (["Q"], ("a", "b"), "ask")),
        ({"prompt": " Q ", "completion": " a "}, (["Q"], ("a",), "ask")),
        ({"question": "Q", "label": 3}, (["Q"], ("3",), "ask")),
        ({"source": "A dog.", "target": "Ein Hund."}, (["A dog."], ("Ein Hund.",), "write")),
        ({"instruction": "Sum.", "input": "1 2", "output": "3"}, (["Sum.\n1 2"], ("3",), "write")),
        ({"instruction": "Sing.", "input": "", "output": "La."}, (["Sing."], ("La.",), "write")),
        (
            {"instruction": "Translate into Old English.", "input": "A", "output": "B"},
            (["Translate into Old English.\nA"], ("B",), "translate"),
        ),
        (
            {"instruction": "Summarize the text.", "input": "A b.", "answer": ["A"]},
            (["Summarize the text.\nA b."], ("A",), "summarize"),
        ),
        ({"instruction": "Translate into", "input": "A", "output": "B"}, (["Translate into\nA"], ("B",), "write")),
        ({"image": b"i", "caption": "A dog."}, ([Image, first("caption")], ("A dog.",), "caption")),
        ({"photo": b"i", "captions": ["A.", "B."]}, ([Image, first("caption")], ("A.", "B."), "caption")),
        ({"image": b"i", "text": "A dog.", "label": 1}, ([Image, first("caption")], ("A dog.",), "caption")),
        ({"clip": b"v", "text": "A run."}, ([Video, first("describe")], ("A run.",), "describe")),
        ({"audio": b"a", "caption": "A bark."}, ([Audio, first("describe")], ("A bark.",), "describe")),
        ({"audio": b"a", "sentence": "Hello."}, ([Audio, first("transcribe")], ("Hello.",), "transcribe")),
        ({"sound": b"a", "label": "dog"}, ([Audio, first("classify")], ("dog",), "classify")),
        ({"images": [b"i", b"j"], "question": "Same?", "answer": "no"}, ([Image, Image, "Same?"], ("no",), "ask")),
        ({"text": "Good film.", "label": "good"}, (["Good film."], ("good",), "ask")),
        ({"text": "Once upon a time.", "url": "x"}, ([], ("Once upon a time.",), "continue")),
        ({"image": None, "text": "Once."}, ([], ("Once.",), "continue")),
        ({"question": "Q", "answer": "a", "source": "wiki"}, (["Q"], ("a",), "ask")),
    ],
)
def test_what_is_learnt_is_told_by_the_names_of_the_columns(fields, expected):
    assert told(row_sample(fields, "x:1")) == expected


def test_conversations_come_first_and_media_stand_at_their_words():
    turns = [{"from": "human", "value": "Is <image> a dog?"}, {"from": "gpt", "value": "Yes."}]
    sample = row_sample({"image": b"i", "conversations": turns, "caption": "A dog."}, "x:1")
    assert told(sample) == (["Is", Image, "a dog?"], ("Yes.",), "ask")


def test_lists_of_media_and_texts_are_a_document_in_their_order(tmp_path):
    (tmp_path / "a.png").touch()
    columns = {
        "images": [None, "a.png", {"bytes": b"i", "path": None}, None, None],
        "texts": ["One:\n\n", None, None, " Two.", None],
        "audios": [None, None, None, None, b"s"],
        "metadata": [None, {"src": "x"}, {"src": "y"}, None, None],
    }
    sample = row_sample(columns, "x:1", MediaFolder(tmp_path))
    [(one, first, second, two, sound)] = sample.answers
    assert (one, two) == (Text("One:\n\n"), Text(" Two."))
    assert [(type(part), part.source) for part in (first, second, sound)] == [  # type: ignore[union-attr]
        (Image, tmp_path / "a.png"),
        (Image, b"i"),
        (Audio, b"s"),
    ]
    assert (sample.prompt, sample.task) == ((), "continue")
    alone = row_sample({"images": [None, None], "texts": ["One. ", "Two. "]}, "x:1")
    assert told(alone) == ([], ("One. Two.",), "continue")


def test_media_are_bytes_or_files_of_the_folder(tmp_path):
    (tmp_path / "a.png").touch()
    folder = MediaFolder(tmp_path)

    def source(value: Any) -> Any:
        [picture, _] = row_sample({"image": value, "caption": "A."}, "x:1", folder).prompt[0].parts
        return picture.source  # type: ignore[union-attr]

    assert source({"bytes": b"i", "path": "elsewhere.png"}) == b"i"
    assert source({"bytes": None, "path": "a.png"}) == source("a.png") == Path(tmp_path / "a.png")
    with pytest.raises(MissingFileError, match=r'"b.png" is not in the folder'):
        source("b.png")
    with pytest.raises(DataError, match=r'"/etc/passwd" leads out of the folder'):
        source({"bytes": None, "path": "/etc/passwd"})


def test_turns_of_user_and_assistant_are_a_conversation_about_the_media():
    turns = [{"user": "Q?", "assistant": "a", "source": "x"}, {"user": "R?", "assistant": "b"}]
    sample = row_sample({"images": [b"i", b"j"], "texts": turns}, "x:1")
    first, said, second = sample.prompt
    assert [part.source if isinstance(part, Image) else part.text for part in first.parts] == [b"i", b"j", "Q?"]
    assert (said, second) == (Message.of("assistant", "a"), Message.of("user", "R?"))
    assert (sample.references, sample.task, sample.more) == (("b",), "ask", ())
    with pytest.raises(DataError, match=r"the text of the assistant is None; it is a text"):
        row_sample({"images": [b"i"], "texts": [{"user": "Q?"}]}, "x:1")


def test_a_list_of_questions_shares_the_media():
    row = {"image": b"i", "question": ["Q?", "R?"], "answer": ["a", ["b", "c"]]}
    first, other = row_sample(row, "x:1").exchanges
    assert (told(first), told(other)) == (([Image, "Q?"], ("a",), "ask"), ([Image, "R?"], ("b", "c"), "ask"))
    assert first.prompt[0].parts[0] is other.prompt[0].parts[0]


def test_the_wording_of_a_row_is_that_of_its_number():
    prompts = [row_sample({"image": b"i", "caption": "A."}, "x", wording=i).prompt for i in (None, 3, 3, 5)]
    wordings = [TASKS["caption"].wording(number) for number in (None, 3, 3, 5)]
    assert [prompt[0].parts[1] for prompt in prompts] == [Text(wording) for wording in wordings]
    assert wordings[0] == TASKS["caption"].prompts[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": b"i", "width": 5}, r'nothing to learn from the columns "image, width"; name them image, audio'),
        ({"caption": "A dog."}, r'nothing to learn from the columns "caption"'),
        ({"question": "Q", "answer": " "}, r'the answer is " "; it is a text that is not empty'),
        ({"question": "Q", "answers": []}, r"the answers is an empty list"),
        ({"question": ["Q"], "answer": "a"}, r"the question is a list of 1; let the answer be a list of as many"),
        ({"question": ["Q", "R"], "answers": ["a"]}, r"the question is a list of 2; let the answers be a list of as"),
        ({"question": [], "answer": []}, r"the question is a list of 0; let the answer be a list of as many"),
        ({"question": ["Q", 5.5], "answer": ["a", " "]}, r'the answer is " "; it is a text that is not empty'),
        ({"question": ["Q", None], "answer": ["a", "b"]}, r"the question is None; it is a text"),
        ({"image": b"i", "captions": [{"raw": "A."}]}, r"the captions is None; it is a text"),
        ({"image": 5, "caption": "A."}, r"the image is 5; it is the bytes of a file"),
        ({"image": "a.png", "caption": "A."}, r'the image is "a.png"; it is the bytes of a file'),
        ({"image": {"array": [1]}, "caption": "A."}, r"the image is None; it is the bytes of a file"),
        ({"images": [None, b"i"], "texts": ["A."]}, r"2 images, 1 texts; let the lists be as long as each other"),
        ({"images": [None, b"i"], "texts": ["A.", "B."]}, r"images and texts\[1\] have 2 values; all but one are null"),
        ({"images": [None], "texts": [None]}, r"images and texts\[0\] have 0 values; all but one are null"),
        ({"images": [None, b"i"], "texts": [5, None]}, r"texts\[0\] is 5; it is a text or null"),
        ({"images": [5, None], "texts": [None, "A."]}, r"the images is 5; it is the bytes of a file"),
        ({"images": [b"i", None], "texts": [None, " "]}, r"the document is empty or has no text"),
        ({"messages": [{"role": "user", "content": "Hi."}]}, r"no message of the assistant"),
    ],
)
def test_what_cannot_be_learnt_is_told(fields, message):
    with pytest.raises(DataError, match=message):
        row_sample(fields, "x:1")


def test_a_prompt_of_several_turns_keeps_them():
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    sample = row_sample({"messages": [*turns, {"role": "assistant", "content": "d"}]}, "x:1")
    assert sample.prompt == (Message.of("user", "a"), Message.of("assistant", "b"), Message.of("user", "c"))
