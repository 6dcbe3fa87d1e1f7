"""Samples to batches: decoding and preprocessing in the loader's workers, broken samples told apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from mmgpt.batch import Batch, Example, check_supervised, collate
from mmgpt.data.sample import Sample
from mmgpt.errors import MediaError
from mmgpt.processor import Processor, TooLongError


@dataclass(frozen=True)
class Broken:
    """A sample, or one of its answers, that could not be used, and why, in one line."""

    reason: str


@dataclass(frozen=True)
class LoadedBatch:
    """What a step gets: the batch (None if nothing of it was usable) and what was lost of its samples."""

    batch: Batch | None
    broken: list[Broken]

    def to(self, device: torch.device | str) -> "LoadedBatch":
        return LoadedBatch(None if self.batch is None else self.batch.to(device), self.broken)


class ExampleDataset(Dataset[list[Example | Broken]]):
    """Each sample as its examples: one per right answer, sharing the media, which are decoded once.

    Media that cannot be decoded and prompts longer than the context cost their own sample, answers that are too long
    themselves alone; none of them the run.
    """

    def __init__(self, samples: Sequence[Sample], processor: Processor):
        self.samples = samples
        self.processor = processor

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> list[Example | Broken]:
        sample = self.samples[index]
        try:
            prompt = self.processor.encode_prompt(sample.prompt, where=sample.where)
        except MediaError as error:
            return [Broken(f"{sample.where}: {error}")]
        except TooLongError as error:
            return [Broken(str(error))]
        return [self._with_answer(prompt, answer) for answer in sample.answers]

    def _with_answer(self, prompt: Example, answer: str) -> Example | Broken:
        try:
            return self.processor.encode_answer(prompt, answer)
        except TooLongError as error:
            return Broken(str(error))


def load_batch(items: Sequence[list[Example | Broken]]) -> LoadedBatch:
    """The collate function of the loaders."""
    parts = [part for item in items for part in item]
    examples = [part for part in parts if isinstance(part, Example)]
    broken = [part for part in parts if isinstance(part, Broken)]
    check_supervised(examples)
    return LoadedBatch(collate(examples) if examples else None, broken)


def make_loader(
    samples: Sequence[Sample], processor: Processor, *, batch_size: int, shuffle: bool, seed: int = 0, workers: int = 0
) -> DataLoader[LoadedBatch]:
    """A DataLoader over samples; the order is a permutation by seed."""
    return DataLoader(
        ExampleDataset(samples, processor),  # type: ignore[arg-type]
        batch_size=batch_size,
        shuffle=shuffle,
        generator=torch.Generator().manual_seed(seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=load_batch,
    )
