"""JSON lines of conversations in chat format (see mmgpt.chat_format), with their media beside the file.

{"messages": [{"role": "user", "content": [{"type": "image", "path": "dog.jpg"},
                                           {"type": "text", "text": "What is it?"}]},
              {"role": "assistant", "content": "A dog."}], "split": "train"}
"""

from pathlib import Path

from mmgpt.chat_format import parse_messages
from mmgpt.content import Message, Text
from mmgpt.data.annotations import raise_missing
from mmgpt.data.sample import Sample
from mmgpt.data.splits import members
from mmgpt.data.table import parse_json, read_lines
from mmgpt.errors import DataError, shown
from mmgpt.folder import MediaFolder, MissingFileError


def read_chat(path: Path, split: str) -> list[Sample]:
    """The conversations of a split, in the order of the file. The last turn, the assistant's, is the answer.

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
    samples: list[tuple[str, Sample]] = []
    splits: dict[str, str | None] = {}
    missing: list[str] = []
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        conversation = parse_json(line, path, number)
        own_split = conversation.get("split") if isinstance(conversation, dict) else None
        if own_split is not None and not isinstance(own_split, str):
            raise DataError(f"{where}: the split is {shown(own_split)}; it is a string")
        try:
            sample = _sample(parse_messages(conversation, folder), where)
        except MissingFileError as error:
            missing.append(f"{where}: {error}; add the file or remove the line")
            continue
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        name = f"{number:09d}" if own_split else _first_file(sample) or f"{number:09d}"
        splits[name] = own_split
        samples.append((name, sample))
    raise_missing(missing)
    try:
        chosen = set(members(splits, split))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return [sample for name, sample in samples if name in chosen]


def _sample(messages: list[Message], where: str) -> Sample:
    *prompt, last = messages
    if all(message.role != "assistant" for message in messages):
        raise DataError("no message of the assistant, so there is nothing to learn; add its answer")
    if last.role != "assistant":
        raise DataError(f"the conversation ends with the {last.role}; end it with the assistant's answer")
    if not prompt or prompt[-1].role != "user":
        raise DataError("the assistant's last message does not follow one of the user's; put the question before it")
    texts = [part.text for part in last.parts if isinstance(part, Text)]
    if len(texts) < len(last.parts):
        raise DataError("the assistant's answer has media in it; it may have text alone")
    answer = "".join(texts).strip()
    if not answer:
        raise DataError("the assistant's answer is empty; fill it in or remove the line")
    return Sample(tuple(prompt), (answer,), "ask", where)


def _first_file(sample: Sample) -> str:
    """The path of the first picture, sound or video that is a file, or nothing."""
    media = (part for message in sample.prompt for part in message.parts if not isinstance(part, Text))
    return next((str(part.source) for part in media if isinstance(part.source, Path)), "")
