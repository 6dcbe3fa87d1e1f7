"""Conversations to examples: the chat template, supervised spans, and media to tensors with their slots counted.

The template, without spaces or line breaks between its pieces:

    <|user|> part part ... <|assistant|> text <|end|> <|user|> ...

Assistant text and its <|end|> are supervised; nothing else is. The mask is made while the pieces are laid down and
never recovered from token ids. A media part, of whichever role, is `slot_count` slots, or none where the GPT has
cross-attention; it then stands before the token that follows it, and which is itself predicted without seeing it.

A foreign model without the template (tokenizer.plain) does one task alone, and is not told which:

    part ... <start> text <end>
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mmgpt.batch import Example, MediaInput
from mmgpt.config import ModelConfig, TokenGrid, audio_grid, image_grid, slot_count, video_grid
from mmgpt.content import MODALITIES, Content, Medium, Message, Part, Text, text_of
from mmgpt.encoders.preprocessing import frames_to_pixels, to_pixels
from mmgpt.errors import ConfigError, DataError, MediaError, shown
from mmgpt.feature_cache import EncoderCache
from mmgpt.media import Clip, Waveform
from mmgpt.media.image import MAX_PIXELS
from mmgpt.tasks import TASKS
from mmgpt.tokenizer import Tokenizer


class TooLongError(DataError):
    """A conversation has more tokens than the context; it is dropped whole, since media are never cut."""


class Processor:
    """Turns conversations into examples for one model: its tokenizer and its resolved configuration decide how.

    Args:
        config: The model's resolved configuration (model.config).
        tokenizer: The model's tokenizer.
        augment: Called on each decoded picture and frame while training, before it is resized. Its chance is drawn from
            `random`, and is the same for all frames of a clip.
        caches: Where the tokens of frozen encoders are kept, by modality; media found there are not decoded.
        max_pixels: Larger pictures and frames are refused before they are decoded.

    Raises:
        ConfigError: augment and a cache of pictures, which would then be the same for ever.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        augment: Callable[[PIL.Image.Image], PIL.Image.Image] | None = None,
        caches: Mapping[str, EncoderCache] | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        if augment is not None and caches and "image" in caches:  # as it is wherever "video" is
            raise ConfigError("cache: pictures changed at random have no features to keep; leave out one of the two")
        self.config = config
        self.tokenizer = tokenizer
        self.augment = augment
        self.caches = caches or {}
        self.max_pixels = max_pixels

    def encode(self, conversation: Sequence[Message], *, where: str = "") -> Example:
        """The example of a whole conversation; all its assistant messages are supervised.

        Raises MediaError for media that cannot be decoded or that the model has no encoder for, TooLongError for more
        tokens than the context.
        """
        return self._check(self._lay_down(conversation, where))

    def encode_prompt(
        self, prompt: Sequence[Message], *, where: str = "", shared: dict[Medium, MediaInput] | None = None
    ) -> Example:
        """The example of a conversation up to where the assistant is to begin.

        Media that are in `shared` are not decoded again, and those that are decoded are put there. Raises as `encode`.
        """
        example = self._lay_down(prompt, where, shared)
        opening = self.tokenizer.opening("assistant")
        supervised = [*example.supervised, *[False] * len(opening)]
        return self._check(replace(example, ids=[*example.ids, *opening], supervised=supervised))

    def encode_beginning(self, text: str) -> Example:
        """The example of a text to go on with, as texts are learned that have no request before them. Raises as
        `encode` does.
        """
        begun, ids = self.encode_prompt([]), self.tokenizer.encode(text)
        supervised = [*begun.supervised, *[False] * len(ids)]
        return self._check(replace(begun, ids=[*begun.ids, *ids], supervised=supervised))

    def encode_answer(self, prompt: Example, answer: Content) -> Example:
        """The example of an encoded prompt and its answer, whose texts are supervised, and not its media.

        Answers to one prompt share the prompt's media. Raises as `encode` does.
        """
        example = replace(prompt, ids=[*prompt.ids], supervised=[*prompt.supervised], media=[*prompt.media])
        self._add(example, (Text(answer),) if isinstance(answer, str) else answer, learn=True)
        return self._check(example, f" with the answer {shown(text_of(answer))}")

    def _lay_down(
        self, conversation: Sequence[Message], where: str, shared: dict[Medium, MediaInput] | None = None
    ) -> Example:
        if self.tokenizer.plain is not None:
            conversation = _untold(conversation, self.tokenizer.plain.task, where)
        example = Example([], [], [], where)
        for message in conversation:
            _put(example, self.tokenizer.opening(message.role), False)
            self._add(example, message.parts, message.role == "assistant", shared)
        return example

    def _add(
        self, example: Example, parts: Iterable[Part], learn: bool, shared: dict[Medium, MediaInput] | None = None
    ) -> None:
        """Lay parts down behind what an example has; if they are to be learned, their text, and that they end."""
        shared = {} if shared is None else shared
        for part in parts:
            if isinstance(part, Text):
                _put(example, self.tokenizer.encode(part.text), learn)
            else:
                item = shared[part] = shared.get(part) or self.media_input(part)
                example.media.append((len(example), item))
                _put(example, [self.tokenizer.slot] * item.slots, False)
        if learn:
            _put(example, [self.tokenizer.end], True)

    def _check(self, example: Example, also: str = "") -> Example:
        if len(example) > self.config.gpt.context:
            slots = sum(item.slots for _, item in example.media)
            raise TooLongError(
                f"{example.where or 'conversation'}: {len(example)} tokens ({slots} of media){also}, more than the "
                f"context of {self.config.gpt.context}; shorten it or train with a larger gpt.context"
            )
        return example

    def media_input(self, part: Part) -> MediaInput:
        """A media part decoded, preprocessed as the encoder wants it, and its slots counted; or found in a cache."""
        modality = MODALITIES.get(type(part), "")
        if (cache := self.caches.get(modality)) is None:
            return self._decoded(part)
        key = cache.key(part)
        if (found := cache.get(key)) is None:
            return replace(self._decoded(part), key=key)
        return replace(self._input(modality, *found), encoded=True, key=key)

    def _decoded(self, part: Part) -> MediaInput:
        settings = self.decoding(part)
        assert not isinstance(part, Text)
        return self.preprocessed(part.load(**settings))

    def decoding(self, part: Part) -> dict[str, Any]:
        """The arguments with which a medium's `load` decodes it for this model.

        Raises MediaError for media that the model has no encoder for.
        """
        modality = MODALITIES.get(type(part))
        if modality is None:
            raise TypeError(f"{type(part).__name__} is not a media part")
        config = getattr(self.config, modality)
        if config is None:
            has = [name for name in ("image", "audio", "video") if getattr(self.config, name) is not None]
            raise MediaError(f"this model has no {modality} encoder (it has: {', '.join(has) or 'text alone'})")
        if modality == "image":
            return {"max_pixels": self.max_pixels}
        if modality == "audio":
            return {"max_seconds": config.max_seconds}
        hears = config.sound and self.config.audio is not None
        most = {"max_seconds": config.max_seconds, "max_pixels": self.max_pixels}
        return {"frames": config.frames, "sound": hears, **most}

    def preprocessed(self, decoded: PIL.Image.Image | Waveform | Clip) -> MediaInput:
        """What `load` made of a medium, preprocessed as the encoder wants it, and its slots counted."""
        match decoded:
            case Waveform():
                return self._audio(decoded)
            case Clip():
                return self._video(decoded)
        return self._image(decoded)

    def _input(self, modality: str, data: Tensor, grid: TokenGrid, sound: Tensor | None = None) -> MediaInput:
        features = slot_count(self.config.adapter(modality), grid)
        slots = features if self.config.gpt.cross is None else 0
        return MediaInput(modality, data, grid, features, slots, sound)

    def _image(self, picture: PIL.Image.Image) -> MediaInput:
        assert self.config.image is not None
        if self.augment is not None:
            picture = self.augment(picture)
        grid = image_grid(self.config.image)
        return self._input("image", to_pixels(picture, self.config.image), grid)

    def _audio(self, waveform: Waveform) -> MediaInput:
        assert self.config.audio is not None
        sound = self._samples(waveform)
        grid = audio_grid(self.config.audio, len(sound))
        return self._input("audio", sound, grid)

    def _video(self, clip: Clip) -> MediaInput:
        config = self.config.video
        assert config is not None
        assert self.config.image is not None
        sound = None if clip.sound is None else self._samples(clip.sound)
        frames = frames_to_pixels(self._augmented(clip.frames), self.config.image)
        grid = video_grid(config, self.config.audio, 0 if sound is None else len(sound))
        return self._input("video", frames, grid, sound)

    def _augmented(self, frames: np.ndarray) -> np.ndarray:
        """The frames of a clip (time, height, width, 3), all changed in the same way."""
        if self.augment is None:
            return frames
        chance, changed = random.getstate(), []
        for frame in frames:
            random.setstate(chance)
            changed.append(self.augment(PIL.Image.fromarray(frame)))
        return np.stack(changed)

    def _samples(self, sound: Waveform) -> Tensor:
        """(samples,) float32 at the encoder's rate."""
        assert self.config.audio is not None
        import torchaudio.functional  # takes half a second, which those who only look at pictures need not wait for

        rate = self.config.audio.sample_rate
        # The filter grows with the terms of the ratio: 44,099 to 16,000 Hz would take gigabytes. A near ratio of small
        # terms shifts the pitch by less than a hundredth of a semitone, and may give more samples than the sound lasts.
        ratio = Fraction(sound.sample_rate, rate).limit_denominator(1000)
        if not ratio:
            raise MediaError(f"a sound of {sound.sample_rate} samples a second is too coarse to be heard")
        samples = torchaudio.functional.resample(torch.from_numpy(sound.samples), ratio.numerator, ratio.denominator)
        return samples[: -(-len(sound.samples) * rate // sound.sample_rate)]


def _put(example: Example, tokens: list[int], learn: bool) -> None:
    example.ids.extend(tokens)
    example.supervised.extend([learn] * len(tokens))


def _untold(conversation: Sequence[Message], task: str, where: str) -> list[Message]:
    """The conversation without the words that ask for the one task a model knows. Raises DataError for other words."""
    knows = f"{where or 'conversation'}: this model knows one task alone, {task}"
    kept = []
    for message in conversation:
        parts = []
        for part in message.parts:
            if message.role == "assistant" or not isinstance(part, Text):
                parts.append(part)
            elif part.text.strip() not in ("", *TASKS[task].prompts):
                raise DataError(f"{knows}; it cannot be told {shown(part.text)}")
        kept.append(Message(message.role, tuple(parts)))
    if [message.role for message in kept] not in (["user"], ["user", "assistant"]):
        raise DataError(f"{knows}, once in a conversation: a user's message, and an assistant's to learn from")
    return kept
