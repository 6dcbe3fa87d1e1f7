"""Conversations to examples: the chat template, supervised spans, and media to tensors with their slots counted.

The template, without spaces or line breaks between its pieces:

    <|user|> part part ... <|assistant|> text <|end|> <|user|> ...

Assistant text and its <|end|> are supervised; nothing else is. The mask is made while the pieces are laid down and
never recovered from token ids. A media part is `slot_count` slots.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import PIL.Image
import torch
import torchaudio.functional
from torch import Tensor

from mmgpt.batch import Example, MediaInput
from mmgpt.config import AdapterConfig, ModelConfig, audio_grid, image_grid, slot_count, video_grid
from mmgpt.content import Audio, Image, Message, Part, Text, Video
from mmgpt.errors import DataError, MediaError
from mmgpt.media import Waveform
from mmgpt.tokenizer import Tokenizer


class TooLongError(DataError):
    """A conversation has more tokens than the context; it is dropped whole, since media are never cut."""


class Processor:
    """Turns conversations into examples for one model: its tokenizer and its resolved configuration decide how.

    Args:
        config: The model's resolved configuration (model.config).
        tokenizer: The model's tokenizer.
        augment: Called on each decoded picture while training, before it is resized.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        augment: Callable[[PIL.Image.Image], PIL.Image.Image] | None = None,
    ):
        self.config = config
        self.tokenizer = tokenizer
        self.augment = augment

    def encode(self, conversation: Sequence[Message], *, where: str = "") -> Example:
        """The example of a whole conversation; all its assistant messages are supervised.

        Raises MediaError for media that cannot be decoded or that the model has no encoder for, TooLongError for more
        tokens than the context.
        """
        return self._check(self._lay_down(conversation, where))

    def encode_prompt(self, prompt: Sequence[Message], *, where: str = "") -> Example:
        """The example of a conversation up to where the assistant is to begin. Raises as `encode` does."""
        return self._check(self._with_answer(self._lay_down(prompt, where), []))

    def encode_answers(self, prompt: Sequence[Message], answers: Sequence[str], *, where: str = "") -> list[Example]:
        """An example for each answer to the same prompt; they share its media, which are decoded and encoded once."""
        start = self._lay_down(prompt, where)
        return [
            self._check(self._with_answer(start, [*self.tokenizer.encode(answer), self.tokenizer.end]))
            for answer in answers
        ]

    def _lay_down(self, conversation: Sequence[Message], where: str) -> Example:
        ids: list[int] = []
        supervised: list[bool] = []
        media: list[tuple[int, MediaInput]] = []

        def put(tokens: list[int], learn: bool) -> None:
            ids.extend(tokens)
            supervised.extend([learn] * len(tokens))

        for message in conversation:
            learn = message.role == "assistant"
            put([self.tokenizer.role(message.role)], False)
            for part in message.parts:
                if isinstance(part, Text):
                    put(self.tokenizer.encode(part.text), learn)
                else:
                    item = self.media_input(part)
                    media.append((len(ids), item))
                    put([self.tokenizer.slot] * item.slots, False)
            if learn:
                put([self.tokenizer.end], True)
        return Example(ids, supervised, media, where)

    def _with_answer(self, start: Example, answer: list[int]) -> Example:
        ids = [*start.ids, self.tokenizer.role("assistant"), *answer]
        return replace(start, ids=ids, supervised=[*start.supervised, False, *[True] * len(answer)])

    def _check(self, example: Example) -> Example:
        if len(example) > self.config.gpt.context:
            slots = sum(item.slots for _, item in example.media)
            raise TooLongError(
                f"{example.where or 'conversation'}: {len(example)} tokens ({slots} of media), more than the context "
                f"of {self.config.gpt.context}; shorten it or train with a larger gpt.context"
            )
        return example

    def media_input(self, part: Part) -> MediaInput:
        """A media part decoded, preprocessed as the encoder wants it, and its slots counted."""
        match part:
            case Image():
                return self._image(part)
            case Audio():
                return self._audio(part)
            case Video():
                return self._video(part)
        raise TypeError(f"{type(part).__name__} is not a media part")

    def _adapter(self, modality: str) -> AdapterConfig:
        if getattr(self.config, modality) is None:
            has = [name for name in ("image", "audio", "video") if getattr(self.config, name) is not None]
            raise MediaError(f"this model has no {modality} encoder (it has: {', '.join(has) or 'text alone'})")
        return self.config.adapter(modality)

    def _image(self, part: Image) -> MediaInput:
        adapter = self._adapter("image")
        assert self.config.image is not None
        picture = part.load()
        if self.augment is not None:
            picture = self.augment(picture)
        grid = image_grid(self.config.image)
        return MediaInput("image", self._pixels(picture), grid, slot_count(adapter, grid))

    def _audio(self, part: Audio) -> MediaInput:
        adapter = self._adapter("audio")
        assert self.config.audio is not None
        sound = self._samples(part.load(max_seconds=self.config.audio.max_seconds))
        grid = audio_grid(self.config.audio, len(sound))
        return MediaInput("audio", sound, grid, slot_count(adapter, grid))

    def _video(self, part: Video) -> MediaInput:
        adapter = self._adapter("video")
        config = self.config.video
        assert config is not None
        hears = config.sound and self.config.audio is not None
        clip = part.load(frames=config.frames, max_seconds=config.max_seconds, sound=hears)
        sound = self._samples(clip.sound) if hears and clip.sound is not None else None
        frames = torch.stack([self._pixels(PIL.Image.fromarray(frame)) for frame in clip.frames])
        grid = video_grid(config, self.config.audio, 0 if sound is None else len(sound))
        return MediaInput("video", frames, grid, slot_count(adapter, grid), sound)

    def _pixels(self, picture: PIL.Image.Image) -> Tensor:
        """(channels, height, width) uint8 at the encoder's input size; the whole picture, not a crop of it."""
        assert self.config.image is not None
        assert self.config.image.size is not None
        height, width = self.config.image.size
        if picture.size != (width, height):
            picture = picture.resize((width, height), PIL.Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

    def _samples(self, sound: Waveform) -> Tensor:
        """(samples,) float32 at the encoder's rate."""
        assert self.config.audio is not None
        # The filter grows with the terms of the ratio: 44,099 to 16,000 Hz would take gigabytes. A near ratio of small
        # terms shifts the pitch by less than a millionth.
        ratio = Fraction(sound.sample_rate, self.config.audio.sample_rate).limit_denominator(1000)
        if not ratio:
            raise MediaError(f"a sound of {sound.sample_rate} samples a second is too coarse to be heard")
        samples = torch.from_numpy(sound.samples)
        return torchaudio.functional.resample(samples, ratio.numerator, ratio.denominator)
