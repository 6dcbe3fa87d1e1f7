"""What mmgpt.load returns: model, processor and decoding behind the questions a user has."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import PIL.Image
import torch

from mmgpt import checkpoint
from mmgpt.batch import Example, collate
from mmgpt.content import Audio, Image, Message, Part, Text, Video
from mmgpt.errors import ConfigError
from mmgpt.generation import Answer, Decoding, Engine
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor
from mmgpt.tasks import TASKS
from mmgpt.tokenizer import Tokenizer

# What stands for a medium wherever one is asked for: the part itself, or what the part is made from.
Source: TypeAlias = str | Path | bytes | np.ndarray | PIL.Image.Image | Image | Audio | Video
T = TypeVar("T", Image, Audio, Video)


class Assistant:
    """A trained model, ready to use. Answers do not depend on what else is in a list of requests.

    Args:
        model: The model; it is put into evaluation mode.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: MultimodalGPT, tokenizer: Tokenizer):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.processor = Processor(model.config, tokenizer)
        self.engine = Engine(self.model, tokenizer)

    @overload
    def caption(self, image: list[Source], **decoding: Any) -> list[str]: ...
    @overload
    def caption(self, image: Source, **decoding: Any) -> str: ...
    def caption(self, image: Source | list[Source], **decoding: Any) -> str | list[str]:
        """A caption of a picture (path, bytes, PIL image, array or Image); a list in gives a list out, batched."""
        return self._task("caption", Image, image, decoding)

    @overload
    def transcribe(self, audio: list[Source], **decoding: Any) -> list[str]: ...
    @overload
    def transcribe(self, audio: Source, **decoding: Any) -> str: ...
    def transcribe(self, audio: Source | list[Source], **decoding: Any) -> str | list[str]:
        """What is said in a sound; a list in gives a list out, batched."""
        return self._task("transcribe", Audio, audio, decoding)

    def ask(
        self,
        question: str,
        *,
        image: Source | Sequence[Source] = (),
        audio: Source | Sequence[Source] = (),
        video: Source | Sequence[Source] = (),
        **decoding: Any,
    ) -> str:
        """The answer to a question about pictures, sounds and videos: one, or a list, of each."""
        parts: list[Part] = [*_parts(Image, image), *_parts(Audio, audio), *_parts(Video, video)]
        return self.reply([TASKS["ask"].conversation(*parts, prompt=question)], **decoding)[0]

    def generate(self, prompt: str | Part | Sequence[str | Part], **decoding: Any) -> str:
        """What the model says to a prompt of text and media in any order."""
        return self.reply([_prompt(prompt)], **decoding)[0]

    def answers(self, prompt: str | Part | Sequence[str | Part], **decoding: Any) -> list[Answer]:
        """All `n` answers to a prompt, with their tokens, how they ended and, if asked for, log-probabilities."""
        return self.engine.run([self.processor.encode_prompt(_prompt(prompt))], Decoding(**decoding))[0]

    def stream(self, prompt: str | Part | Sequence[str | Part], **decoding: Any) -> Iterator[str]:
        """As `generate`, piece by piece as it is decoded."""
        settings = Decoding(**decoding)
        told = ""
        for answer in self.engine.stream(self.processor.encode_prompt(_prompt(prompt)), settings):
            text = answer.text
            if answer.finish == "cancelled":  # not yet at its end: hold back what may still change
                text = text[: len(text) - _unsettled(text, settings.stop)]
            if len(text) > len(told):
                yield text[len(told) :]
                told = text

    def reply(self, conversations: Sequence[Sequence[Message]], **decoding: Any) -> list[str]:
        """The assistant's next message in each conversation. Raises MediaError, TooLongError, ConfigError."""
        return self.reply_examples([self.processor.encode_prompt(c) for c in conversations], Decoding(**decoding))

    def reply_examples(self, prompts: Sequence[Example], decoding: Decoding) -> list[str]:
        """As `reply`, for prompts that are encoded already."""
        return [answers[0].text.strip() for answers in self.engine.run(prompts, decoding)]

    @torch.inference_mode()
    def embed(self, source: str | Part) -> torch.Tensor:
        """A vector (width,) of a text or medium: the mean of the GPT's last hidden states over its tokens."""
        part = Text(source) if isinstance(source, str) else source
        example = self.processor.encode_prompt([Message("user", (part,))])
        return self.model.hidden(collate([example]).to(self.model.device)).mean(dim=0)

    def save(self, directory: str | Path) -> None:
        """Write the checkpoint: one directory that `mmgpt.load` reads."""
        checkpoint.save(directory, self.model, self.tokenizer)

    def _task(self, task: str, kind: type[T], source: Source | list[Source], decoding: dict[str, Any]) -> Any:
        parts = _parts(kind, source)
        answers = self.reply([TASKS[task].conversation(part) for part in parts], **decoding)
        return answers if isinstance(source, list) else answers[0]


def load(directory: str | Path, device: str | torch.device | None = None, int8: bool = False) -> Assistant:
    """A trained model from its directory, on the GPU if there is one.

    Args:
        directory: A checkpoint, or a run that holds one.
        device: Where to put it.
        int8: Compute the GPT's linear layers in int8, on the CPU: about three times as fast, and nearly as exact.

    Raises:
        CheckpointError: There is no checkpoint, or not a whole one.
        ConfigError: int8 is asked for where it does not run.
    """
    if int8 and torch.device(device or "cpu").type != "cpu":
        raise ConfigError(f"int8 runs on the CPU only, not on {device}; leave one of the two out")
    model, tokenizer = checkpoint.load(directory)
    if int8:
        from mmgpt.gpt.quantize import quantize_int8

        quantize_int8(model.gpt)
    else:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model.gpt.lay_out_for_decoding()
    return Assistant(model, tokenizer)


def _parts(kind: type[T], source: Any) -> list[T]:
    sources = source if isinstance(source, list | tuple) else [source]
    return [item if isinstance(item, kind) else kind(item) for item in sources]


def _prompt(prompt: str | Part | Sequence[str | Part]) -> list[Message]:
    parts = [prompt] if isinstance(prompt, str | Text | Image | Audio | Video) else list(prompt)
    return [Message.of("user", *parts)]


def _unsettled(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of the text may still change or be cut off.

    A character may take several tokens; until the last of them it decodes to the replacement mark. What may be the
    beginning of a stop text is one only once the rest has come.
    """
    beginnings = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return max([len(text) - len(text.rstrip("�")), *beginnings])
