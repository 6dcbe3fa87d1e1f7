"""Examples and the ragged Batch they are collated into: flat tokens, documents by length, media with their slots."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmgpt.config import TokenGrid
from mmgpt.errors import DataError


@dataclass(frozen=True, eq=False)
class MediaInput:
    """One preprocessed picture, sound or clip, ready for its encoder.

    `data` is an image (channels, height, width) uint8, a sound (samples,) float32, or a clip's frames
    (time, channels, height, width) uint8, whose sound track, if any, is `sound` (samples,) float32.
    `grid` is the shape of the tokens its encoder returns, `slots` how many of the sequence they fill.
    """

    modality: str
    data: Tensor
    grid: TokenGrid
    slots: int
    sound: Tensor | None = None

    def to(self, device: torch.device | str) -> "MediaInput":
        sound = None if self.sound is None else self.sound.to(device)
        return replace(self, data=self.data.to(device), sound=sound)


@dataclass(frozen=True, eq=False)
class Example:
    """One document: token ids, which of them are supervised, and its media with the first slot of each."""

    ids: list[int]
    supervised: list[bool]
    media: list[tuple[int, MediaInput]]
    where: str = ""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class MediaBatch:
    """The media of one modality in a batch, each once, however many documents show it.

    `inputs` go through encoder and adapter to flat rows of features; row `rows[i]` fills place `slots[i]` of the
    batch's tokens.
    """

    inputs: list[MediaInput]
    rows: Tensor
    slots: Tensor


@dataclass(frozen=True)
class Batch:
    """Documents laid end to end without padding.

    `ids` (tokens,) int64; `supervised` (tokens,) bool, True where the token is a target of the loss;
    `lengths` of the documents, which sum to tokens; `media` by modality.
    """

    ids: Tensor
    supervised: Tensor
    lengths: list[int]
    media: dict[str, MediaBatch]

    def to(self, device: torch.device | str) -> "Batch":
        media = {
            modality: MediaBatch(
                [item.to(device) for item in group.inputs], group.rows.to(device), group.slots.to(device)
            )
            for modality, group in self.media.items()
        }
        return Batch(self.ids.to(device), self.supervised.to(device), self.lengths, media)

    @property
    def targets(self) -> Tensor:
        """Places (targets,) whose token is supervised; each is predicted from the place before it."""
        return self.supervised.nonzero().squeeze(1)


def collate(examples: Sequence[Example]) -> Batch:
    """Lay examples end to end. A medium that several of them share (the same object) is encoded once."""
    media: dict[str, dict[int, tuple[MediaInput, list[int]]]] = {}  # modality -> identity -> (input, first slots)
    start = 0
    for example in examples:
        for first, item in example.media:
            _, places = media.setdefault(item.modality, {}).setdefault(id(item), (item, []))
            places.append(start + first)
        start += len(example)
    return Batch(
        ids=torch.tensor([token for example in examples for token in example.ids], dtype=torch.long),
        supervised=torch.tensor([flag for example in examples for flag in example.supervised], dtype=torch.bool),
        lengths=[len(example) for example in examples],
        media={modality: _media_batch(list(group.values())) for modality, group in sorted(media.items())},
    )


def _media_batch(group: list[tuple[MediaInput, list[int]]]) -> MediaBatch:
    rows, slots = [], []
    row = 0
    for item, places in group:
        span = torch.arange(item.slots)
        rows += [row + span] * len(places)
        slots += [place + span for place in places]
        row += item.slots
    return MediaBatch([item for item, _ in group], torch.cat(rows), torch.cat(slots))


def check_supervised(examples: Sequence[Example]) -> None:
    """Refuse a document that nothing could be learned from, by name."""
    for example in examples:
        if not any(example.supervised):
            raise DataError(
                f"{example.where or 'conversation'}: no supervised token; it needs an assistant message with text"
            )
