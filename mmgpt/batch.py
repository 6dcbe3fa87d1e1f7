"""Examples and the ragged Batch they are collated into: flat tokens, documents by length, media with their places."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from mmgpt.config import TokenGrid
from mmgpt.errors import DataError


@dataclass(frozen=True, eq=False)
class MediaInput:
    """One preprocessed picture, sound or clip, ready for its encoder.

    `data` is an image (channels, height, width) uint8, a sound (samples,) float32, or a clip's frames
    (time, channels, height, width) uint8, whose sound track, if any, is `sound` (samples,) float32. One that is
    `encoded` has gone through its encoder already, and `data` is the tokens (tokens, width) that came out.
    `grid` is the shape of the tokens its encoder returns, `features` how many its adapter makes of them, and `slots`
    how many places of the sequence these fill: as many, or none where the GPT looks at them by cross-attention.
    `key` is what the encoder's tokens are kept under in a feature cache; None: they are not.
    """

    modality: str
    data: Tensor
    grid: TokenGrid
    features: int
    slots: int
    sound: Tensor | None = None
    encoded: bool = False
    key: bytes | None = None

    @cached_property
    def digest(self) -> bytes:
        """Of its content: the same for the same picture, sound or clip, wherever it came from.

        One that is encoded has that of its tokens.
        """
        content = hashlib.blake2b(self.modality.encode(), digest_size=16)
        for part in (self.data, self.sound):
            if part is not None:
                content.update(repr((part.dtype, part.shape)).encode())
                content.update(part.cpu().contiguous().numpy().data)
        return content.digest()

    def to(self, device: torch.device | str) -> "MediaInput":
        sound = None if self.sound is None else self.sound.to(device)
        return replace(self, data=self.data.to(device), sound=sound)


@dataclass(frozen=True, eq=False)
class Example:
    """One document: token ids, which of them are supervised, and its media, each with the place where it stands.

    That is its first slot, or, of a medium without slots, the first token that sees it.
    """

    ids: list[int]
    supervised: list[bool]
    media: list[tuple[int, MediaInput]]
    where: str = ""
    task: str = ""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class MediaBatch:
    """The media of one modality in a batch, each once, however many documents show it.

    `inputs` go through encoder and adapter to flat rows of features; row `rows[i]` fills place `places[i]` of the
    batch's tokens or, of a medium without slots, is seen from there on by the tokens of the same document.
    """

    inputs: list[MediaInput]
    rows: Tensor
    places: Tensor


@dataclass(frozen=True)
class Batch:
    """Documents laid end to end without padding.

    `ids` (tokens,) int64; `supervised` (tokens,) bool, True where the token is a target of the loss;
    `lengths` of the documents, which sum to tokens; `tasks` of the documents; `media` by modality.
    """

    ids: Tensor
    supervised: Tensor
    lengths: list[int]
    tasks: list[str]
    media: dict[str, MediaBatch]

    def to(self, device: torch.device | str) -> "Batch":
        media = {
            modality: MediaBatch(
                [item.to(device) for item in group.inputs], group.rows.to(device), group.places.to(device)
            )
            for modality, group in self.media.items()
        }
        return replace(self, ids=self.ids.to(device), supervised=self.supervised.to(device), media=media)

    @property
    def targets(self) -> Tensor:
        """Places (targets,) whose token is supervised; each is predicted from the place before it."""
        return self.supervised.nonzero().squeeze(1)

    @property
    def cost(self) -> int:
        """Tokens that the GPT and the encoders see of it."""
        return len(self.ids) + sum(item.grid.count for group in self.media.values() for item in group.inputs)

    @cached_property
    def numbers(self) -> Tensor:
        """The document (tokens,) that each token is of."""
        lengths = torch.tensor(self.lengths, device=self.ids.device)
        return torch.arange(len(lengths), device=self.ids.device).repeat_interleave(lengths)

    @cached_property
    def answers(self) -> tuple[Tensor, ...]:
        """The supervised token ids of each document."""
        counts = self.numbers[self.targets].bincount(minlength=len(self.lengths))
        return self.ids[self.targets].split(counts.tolist())

    @property
    def examples(self) -> list[Example]:
        """The documents as they were before they were laid end to end; but that nothing tells `where` they are from."""
        media: list[list[tuple[int, MediaInput]]] = [[] for _ in self.lengths]
        starts = [0, *accumulate(self.lengths)]
        numbers = self.numbers.tolist()
        for group in self.media.values():
            firsts = dict(zip([0, *accumulate(item.features for item in group.inputs)], group.inputs, strict=False))
            rows, places, at = group.rows.tolist(), group.places.tolist(), 0
            while at < len(rows):  # the rows of a medium stand together, wherever it is shown
                item, place = firsts[rows[at]], places[at]
                media[numbers[place]].append((place - starts[numbers[place]], item))
                at += item.features
        spans = list(zip(starts, self.lengths, self.tasks, media, strict=False))
        ids, supervised = self.ids.tolist(), self.supervised.tolist()
        return [
            Example(
                ids[start : start + length],
                supervised[start : start + length],
                sorted(own, key=lambda pair: pair[0]),
                task=task,
            )
            for start, length, task, own in spans
        ]

    @cached_property
    def shown(self) -> list[list[tuple[str, int]]]:
        """The media that each document shows, once each: the modality, and which of its inputs."""
        shown: list[list[tuple[str, int]]] = [[] for _ in self.lengths]
        for modality, group in sorted(self.media.items()):
            sizes = torch.tensor([item.features for item in group.inputs])
            inputs = torch.arange(len(sizes)).repeat_interleave(sizes)[group.rows.cpu()]
            # Pairs as one number each: to look for equal rows takes fifty times as long.
            for pair in (self.numbers[group.places].cpu() * len(sizes) + inputs).unique().tolist():
                document, index = divmod(pair, len(sizes))
                shown[document].append((modality, index))
        return shown

    @cached_property
    def modalities(self) -> list[str]:
        """What each document shows: "image", "audio + image", ...; "text" where it shows nothing."""
        return [" + ".join(sorted({modality for modality, _ in own})) or "text" for own in self.shown]


def collate(examples: Sequence[Example]) -> Batch:
    """Lay examples end to end. A medium that several of them share (the same object) is encoded once."""
    media: dict[str, dict[int, tuple[MediaInput, list[int]]]] = {}  # modality -> identity -> (input, first places)
    start = 0
    for example in examples:
        for first, item in example.media:
            if first < len(example):  # else no token sees it
                _, places = media.setdefault(item.modality, {}).setdefault(id(item), (item, []))
                places.append(start + first)
        start += len(example)
    return Batch(
        ids=torch.tensor([token for example in examples for token in example.ids], dtype=torch.long),
        supervised=torch.tensor([flag for example in examples for flag in example.supervised], dtype=torch.bool),
        lengths=[len(example) for example in examples],
        tasks=[example.task for example in examples],
        media={modality: _media_batch(list(group.values())) for modality, group in sorted(media.items())},
    )


def _media_batch(group: list[tuple[MediaInput, list[int]]]) -> MediaBatch:
    rows, places = [], []
    row = 0
    for item, firsts in group:
        span = torch.arange(item.features)
        rows += [row + span] * len(firsts)
        places += [first + (span if item.slots else torch.zeros_like(span)) for first in firsts]
        row += item.features
    return MediaBatch([item for item, _ in group], torch.cat(rows), torch.cat(places))


def check_supervised(examples: Sequence[Example]) -> None:
    """Refuse a document that nothing could be learned from, by name."""
    for example in examples:
        if not any(example.supervised):
            raise DataError(
                f"{example.where or 'conversation'}: no supervised token; it needs an assistant message with text"
            )
