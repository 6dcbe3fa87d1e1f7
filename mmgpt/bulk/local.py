"""Captions of pictures by one model, in this process."""

from collections.abc import Generator, Iterable
from itertools import tee
from typing import TypeAlias

from mmgpt.assistant import Assistant
from mmgpt.content import Image
from mmgpt.data.rows import Cell
from mmgpt.errors import MediaError
from mmgpt.evaluation.asking import Asked, said
from mmgpt.generation import Decoding
from mmgpt.tasks import TASKS

Picture: TypeAlias = tuple[str, Image]  # and the name that it is told by
Record: TypeAlias = dict[str, str]  # "image", its name, and "caption", or "reason" where it has none


def described(
    assistant: Assistant, pictures: Iterable[Picture], decoding: Decoding, threads: int = 2
) -> Generator[Record, None, None]:
    """The record of each picture, in order, as captions come. Pictures are decoded in threads ahead of the model.

    Raises:
        ConfigError: The model answers nothing.
    """
    pictures, again = tee(pictures)
    answers = said(assistant, map(_asked, again), decoding, threads)
    for (name, _), answer in zip(pictures, answers, strict=False):
        yield {"image": name} | ({"caption": answer} if isinstance(answer, str) else {"reason": str(answer)})


def _asked(picture: Picture) -> Asked:
    name, image = picture
    return name, TASKS["caption"].conversation(_read(image))


def _read(image: Image) -> Image:
    """The picture, if it lies in a table with its bytes: tables are not read by several threads."""
    if not isinstance(image.source, Cell):
        return image
    try:
        return Image(image.source.read_bytes())
    except MediaError:
        return image  # which is told when it is decoded
