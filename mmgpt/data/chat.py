"""JSON lines of conversations in chat format (see mmgpt.chat_format), with their media beside the file.

{"messages": [{"role": "user", "content": [{"type": "image", "path": "dog.jpg"},
                                           {"type": "text", "text": "What is it?"}]},
              {"role": "assistant", "content": "A dog."}], "split": "train"}

A single message of the assistant is a document to continue, of texts and media in any order:

{"messages": [{"role": "assistant", "content": [{"type": "text", "text": "This is Rex:"},
                                                {"type": "image", "path": "dog.jpg"},
                                                {"type": "text", "text": "He is brown."}]}]}
"""

from functools import partial
from pathlib import Path
from typing import Any

from mmgpt.chat_format import parse_messages
from mmgpt.content import Message, Text
from mmgpt.data.gathered import Gathered
from mmgpt.data.sample import Sample
from mmgpt.data.table import parse_json, read_lines
from mmgpt.errors import DataError
from mmgpt.folder import MediaFolder


def read_chat(path: Path, split: str) -> list[Sample]:
    """The conversations of a split, in the order of the file. The last turn, the assistant's, is the answer.

    Earlier turns of the assistant stand in the prompt, and are learned from too. All of them may have media.

    Args:
        path: The JSONL file; media are named relative to its folder.
        split: By the key "split" beside "messages", or else every tenth line is held out; lines that begin with the
            same media file count as one, so that no picture is both trained on and held out.

    Raises:
        DataError: A line is malformed or a file it names is missing.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; format chat reads a JSONL file of conversations")
    folder = MediaFolder(path.parent)
    gathered = Gathered(path)
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        with gathered.faults.row():
            conversation = parse_json(line, path, number)
            own_split = conversation.get("split") if isinstance(conversation, dict) else None
            gathered.add(where, own_split, partial(_sample, conversation, folder, where))
    return gathered.samples(split)


def _sample(conversation: Any, folder: MediaFolder, where: str) -> Sample:
    return conversation_sample(parse_messages(conversation, folder), where)


def conversation_sample(messages: list[Message], where: str) -> Sample:
    """The sample of a conversation that ends with the assistant's answer, or of a document, which is such alone.

    Raises DataError for any other.
    """
    *prompt, last = messages
    if all(message.role != "assistant" for message in messages):
        raise DataError("no message of the assistant, so there is nothing to learn; add its answer")
    if last.role != "assistant":
        raise DataError(f"the conversation ends with the {last.role}; end it with the assistant's answer")
    if prompt and prompt[-1].role != "user":
        raise DataError("the assistant's last message does not follow one of the user's; put the question before it")
    texts = [part.text for part in last.parts if isinstance(part, Text)]
    text = "".join(texts).strip()
    if not text:
        said = "the assistant's answer" if prompt else "the document"
        raise DataError(f"{said} is empty or has no text, so there is nothing to learn; fill it in or remove the line")
    answer = text if len(texts) == len(last.parts) else last.parts
    return Sample(tuple(prompt), (answer,), "ask" if prompt else "continue", where)
