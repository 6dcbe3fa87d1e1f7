"""Where a model looks for each word it says: heat maps over pictures, sounds and the frames of clips.

    found = explain(assistant, TASKS["caption"].conversation(Image("a.png")))
    found.words[1].text, found.words[1].maps[0]     # " red", (12, 12): where hiding the picture makes it less likely

Two methods. Occlusion (Zeiler and Fergus 2014) hides one place after another and measures what the word loses: it sees
all that the model does, at the price of a pass for each place. Attention roll-out (Abnar and Zuidema 2020) multiplies
the attention of the GPT's layers: one pass, but it knows no more than how information could have flowed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mmgpt.assistant import Assistant
from mmgpt.batch import Example, MediaInput, collate
from mmgpt.config import slot_grid
from mmgpt.content import Message
from mmgpt.errors import ConfigError, MediaError
from mmgpt.generation import Decoding
from mmgpt.gpt.documents import Documents

Method: TypeAlias = Literal["occlusion", "rollout"]
CELLS = {"image": (12, 12), "audio": (24,), "video": (6, 6)}  # of a picture, of a sound's time, of each frame
# Cells on each side of one that are hidden with it, once with few and once with many: a small thing is lost among many,
# and of a large one enough is left when few are hidden.
REACHES = {"image": (1, 3), "audio": (1, 3), "video": (0, 1)}
GREY = 128  # of pictures of nothing: their own mean colour would tell of them
TOGETHER = 32  # passes in a batch


@dataclass(frozen=True)
class Surface:
    """What a heat map lies on: a picture, a sound, the frames of a clip, or the sound of a clip.

    `part` is the field of the medium that holds it, and `cells` the shape of the map: (rows, columns) of a picture,
    (times,) of a sound, (frames, rows, columns) of a clip.
    """

    item: MediaInput
    part: Literal["data", "sound"]
    cells: tuple[int, ...]

    @property
    def kind(self) -> str:
        return "audio" if self.part == "sound" else self.item.modality


@dataclass(frozen=True)
class Token:
    """A token of an answer as `Tokenizer.spelled` has it, how likely it is, and how likely without media."""

    text: str
    probability: float
    blind: float


@dataclass(frozen=True)
class Word:
    """A word of an answer.

    `probability` and `blind` are those of all its tokens. `maps` has one for each surface: in nats, how much less
    likely the word is without that place (occlusion); or the share of the attention that falls there (roll-out).
    """

    text: str
    probability: float
    blind: float
    tokens: list[Token]
    maps: list[np.ndarray]


@dataclass(frozen=True)
class Explanation:
    """The words of an answer, and the surfaces that their maps lie on.

    `rate` is that of sounds as their encoder hears them, samples a second; 0 where there is none.
    """

    surfaces: list[Surface]
    words: list[Word]
    rate: int
    method: Method


def explain(
    assistant: Assistant,
    prompt: Sequence[Message],
    answer: str | None = None,
    method: Method = "occlusion",
    decoding: Decoding | None = None,
) -> Explanation:
    """How each word of an answer comes of the media in the prompt.

    Args:
        assistant: The model.
        prompt: The conversation, with one medium or more.
        answer: What is to be explained; None for the model's own answer.
        method: See above.
        decoding: Of the model's own answer.

    Raises:
        MediaError: There is no medium in the prompt, or one cannot be decoded.
        ConfigError: Roll-out of a model whose media have no slots, or whose slots have no place.
    """
    return explain_example(assistant, assistant.processor.encode_prompt(prompt), answer, method, decoding)


@torch.inference_mode()
def explain_example(
    assistant: Assistant,
    before: Example,
    answer: str | None = None,
    method: Method = "occlusion",
    decoding: Decoding | None = None,
    go_on: Callable[[], None] = lambda: None,
) -> Explanation:
    """As `explain`, for a prompt that is encoded already; what `go_on`, called between passes, raises ends it."""
    if not before.media:
        raise MediaError("there is no picture, sound or clip in the prompt; nothing could be looked at")
    if answer is None:
        [answer] = assistant.reply_examples([before], decoding or Decoding())
    example = assistant.processor.encode_answer(before, answer)
    surfaces = [surface for _, item in example.media for surface in _surfaces(item)]
    rate = 0 if (audio := assistant.model.config.audio) is None else audio.sample_rate
    ids = example.ids[len(before) : -1]
    if not ids:
        return Explanation(surfaces, [], rate, method)
    spans = _words(assistant, ids)
    seen = _log_probabilities(assistant, [example], len(before))[0]  # tokens
    if method == "occlusion":
        found, merged = _occluded(assistant, example, len(before), surfaces, seen, go_on), torch.sum
    else:
        found, merged = _rolled_out(assistant, example, len(before), surfaces), torch.mean
    blind = _log_probabilities(assistant, [_without(example, surfaces)], len(before))[0]
    pieces = zip(ids, seen.exp().tolist(), blind.exp().tolist(), strict=True)
    tokens = [Token(assistant.tokenizer.spelled([id]), *shares) for id, *shares in pieces]
    words = []
    for text, span in spans:
        shares = (float(logs[span].sum().exp()) for logs in (seen, blind))
        maps = [merged(each[span], dim=0).cpu().numpy() for each in found]
        words.append(Word(text, *shares, tokens=tokens[span], maps=maps))
    return Explanation(surfaces, words, rate, method)


def _words(assistant: Assistant, ids: list[int]) -> list[tuple[str, slice]]:
    """The words of an answer, and which of its tokens are each one's: a word begins with a space, or is the first."""
    starts = [i for i, id in enumerate(ids) if not i or assistant.tokenizer.spelled([id])[:1].isspace()]
    spans = [slice(start, end) for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]
    return [(assistant.tokenizer.decode(ids[span]), span) for span in spans]


def _surfaces(item: MediaInput) -> Iterator[Surface]:
    frames = (len(item.data),) if item.modality == "video" else ()
    yield Surface(item, "data", (*frames, *CELLS[item.modality]))
    if item.sound is not None:
        yield Surface(item, "sound", CELLS["audio"])


def _log_probabilities(assistant: Assistant, examples: Sequence[Example], start: int) -> Tensor:
    """Of the tokens of an answer, which begins at `start`, in examples that differ in their media: (examples, tokens).

    That the answer ends is left out.
    """
    tokens = len(examples[0]) - start  # all of which are supervised, as those of earlier answers in the prompt are
    return torch.stack([found[-tokens:-1] for found in assistant.log_probabilities(examples)])


# --- occlusion


def _occluded(
    assistant: Assistant,
    example: Example,
    start: int,
    surfaces: Sequence[Surface],
    whole: Tensor,
    go_on: Callable[[], None],
) -> list[Tensor]:
    """For each surface (tokens, *cells): the mean of what is lost when a place with this cell in it is hidden.

    `whole` (tokens,) are the log-probabilities with nothing hidden.
    """
    maps = []
    for surface in surfaces:
        lost, counts = whole.new_zeros(len(whole), *surface.cells), whole.new_zeros(surface.cells)
        places = (_around(cell, reach) for reach in REACHES[surface.kind] for cell in np.ndindex(surface.cells))
        while group := list(islice(places, TOGETHER)):
            go_on()
            hidden = [_with(example, surface, _hide(surface, place)) for place in group]
            for place, logs in zip(group, _log_probabilities(assistant, hidden, start), strict=True):
                lost[(slice(None), *place)] += (whole - logs).view(-1, *(1,) * len(place))
                counts[place] += 1
        maps.append(lost / counts)
    return maps


def _around(cell: tuple[int, ...], reach: int) -> tuple[slice, ...]:
    """The cells that are hidden together; in a clip, of several frames too."""
    return tuple(slice(max(0, at - reach), at + 1 + reach) for at in cell)


def _hide(surface: Surface, place: tuple[slice, ...]) -> Tensor:
    """The data of the surface with these cells of it blank: of a picture's mean colour, or silent."""
    data = getattr(surface.item, surface.part)
    if surface.kind == "audio":
        [times] = (_stretch(part, count, len(data)) for part, count in zip(place, surface.cells, strict=True))
        hidden = data.clone()
        hidden[times] = 0
        return hidden
    frames = data if data.ndim == 4 else data[None]  # time, channels, height, width
    time = place[0] if data.ndim == 4 else slice(None)
    rows, columns = (
        _stretch(part, count, size)
        for part, count, size in zip(place[-2:], surface.cells[-2:], data.shape[-2:], strict=True)
    )
    hidden = frames.clone()
    hidden[time, :, rows, columns] = _colour(frames)
    return hidden.view(data.shape)


def _colour(frames: Tensor) -> Tensor:
    """The mean of all pixels (channels, 1, 1)."""
    return frames.float().mean(dim=(0, 2, 3)).round().to(frames.dtype)[:, None, None]


def _stretch(cells: slice, count: int, size: int) -> slice:
    """The pixels or samples of some of `count` cells that lie evenly over `size` of them."""
    return slice(cells.start * size // count, -(-min(cells.stop, count) * size // count))


def _with(example: Example, surface: Surface, data: Tensor) -> Example:
    """The example with other data of one surface."""
    changed = replace(surface.item, **{surface.part: data})
    return replace(example, media=[(at, changed if item is surface.item else item) for at, item in example.media])


def _without(example: Example, surfaces: Sequence[Surface]) -> Example:
    """The example with nothing to be seen and heard."""
    blank: dict[int, MediaInput] = {}
    for surface in surfaces:
        item = blank.get(id(surface.item), surface.item)
        nothing = torch.full_like(getattr(item, surface.part), 0 if surface.kind == "audio" else GREY)
        blank[id(surface.item)] = replace(item, **{surface.part: nothing})
    return replace(example, media=[(at, blank[id(item)]) for at, item in example.media])


# --- attention roll-out


class _Watched(Documents):
    """A document whose attention is kept, (tokens, tokens) for each layer: the mean of its heads."""

    def __init__(self, length: int, device: torch.device):
        super().__init__([length], device)
        self.kept: list[Tensor] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None = None) -> Tensor:
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # tokens, heads, head_width
        scores = torch.einsum("qhd,khd->hqk", q.float(), keys.float()) / q.shape[-1] ** 0.5
        back = self.positions[:, None] - self.positions
        unseen = (back < 0) | (back >= (window or len(back)))
        self.kept.append(scores.masked_fill(unseen, float("-inf")).softmax(-1).mean(0))
        return super().attend(q, k, v, causal, window)


def _rolled_out(assistant: Assistant, example: Example, start: int, surfaces: Sequence[Surface]) -> list[Tensor]:
    """For each surface (tokens, *places of its slots): the share of what each token is made of that comes from there.

    Each layer's attention counts half, and what goes past it in the residual stream the other half.
    """
    model = assistant.model
    config = model.config
    if config.gpt.cross is not None:
        raise ConfigError("roll-out: media of this model have no slots in the sequence; use occlusion")
    batch = collate([example]).to(model.device)
    watched = _Watched(len(example), model.device)
    model.gpt.transform(model.embed(batch), watched)
    flow = torch.eye(len(example), device=model.device)
    for layer in watched.kept:
        flow = 0.5 * (layer @ flow) + 0.5 * flow
    flow = flow[start - 1 : len(example) - 2]  # the answer's tokens are predicted from the places before them
    maps = []
    for surface in surfaces:
        item, adapter = surface.item, config.adapter(surface.item.modality)
        grid = slot_grid(adapter, item.grid)
        frames = len(item.data) if item.modality == "video" else 1
        if adapter.kind == "resampler" or grid.rows % frames:
            raise ConfigError(f"roll-out: the slots of {item.modality} have no place; use occlusion")
        first = next(at for at, other in example.media if other is item)
        share = flow[:, first : first + item.slots]  # tokens, slots
        if surface.part == "sound":
            maps.append(share[:, item.slots - grid.suffix :])
            continue
        share = share[:, grid.prefix : item.slots - grid.suffix]
        shapes = {
            "image": (grid.rows, grid.columns),
            "audio": (grid.rows,),
            "video": (frames, grid.rows // frames, grid.columns),
        }
        maps.append(share.unflatten(1, shapes[item.modality]))
    return maps
