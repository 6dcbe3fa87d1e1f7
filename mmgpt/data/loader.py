"""The loader of training and validation: samples in their order to steps, which any place can be resumed from.

    order ── workers ──► documents ── packing ──► batches ── accumulation ──► Step
    of samples  decode     wait here              of a budget                what the optimizer learns from at once

All that decides what a step holds is the seed, the place in the order and the documents that wait there, so a step is
the same whatever the number of workers, and a run goes on from `Step.state` as if it had never stopped.
"""

import os
import random
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mmgpt.batch import Batch, Example, check_supervised, collate
from mmgpt.data.dataset import Broken, ExampleDataset
from mmgpt.data.order import Key, Order, StreamOrder
from mmgpt.data.packing import WINDOW, cost, pack, too_large
from mmgpt.data.sample import Sample
from mmgpt.distributed import rank, summed, world_size
from mmgpt.errors import ConfigError, DataError, MmgptError
from mmgpt.processor import Processor

FETCHED = 8  # samples a worker is asked for at once
MOST_FILES = 1 << 16  # open at once


@dataclass(frozen=True)
class Step:
    """What one step of the optimizer learns from.

    Args:
        batches: One after the other, their gradients added; None in a process that has nothing for one of them.
        count: Supervised tokens of all batches in all processes.
        documents: Documents of all batches in all processes.
        names: Where the samples of this process' batches come from.
        broken: What was lost of the samples since the last step.
        epochs: Times through the data when this step is done.
        state: Where to go on after this step (`Loader.load_state`).
    """

    batches: list[Batch | None]
    count: int
    documents: int
    names: list[str]
    broken: list[Broken]
    epochs: float
    state: dict[str, Any]

    def to(self, device: torch.device | str) -> "Step":
        return replace(self, batches=[batch and batch.to(device) for batch in self.batches])


@dataclass(frozen=True)
class Waiting:
    """Documents that share their media, all or a piece of those of one sample, until their batch comes."""

    place: int
    piece: int
    examples: list[Example]
    cost: int


class Loader(Iterable[Step]):
    """Each iteration is an epoch of steps, the next one each time; after `load_state` it is the rest of one.

    A stream is read in this process, and its media are decoded by the workers.

    With several processes each has samples of its own, and all make the same number of steps.

    Args:
        samples: What to learn from; a stream, of unknown length, if they are no sequence.
        processor: Makes examples of them.
        batch_size: Samples to a batch of each process.
        batch_tokens: Instead of batch_size: most tokens to a batch, counting those of its encoders, packed full.
        accumulate: Batches to a step of the optimizer.
        shuffle: Take the samples in another order in each epoch; those of a mixture are drawn in its own, and those of
            a stream change places with near ones alone.
        seed: Of the orders, and of random transforms.
        workers: Processes that decode and tokenize; 0 does it in this one.

    Raises:
        ConfigError: Not exactly one of batch_size and batch_tokens is given.
        DataError: A worker died, or the data are malformed.
    """

    def __init__(
        self,
        samples: Iterable[Sample],
        processor: Processor,
        *,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        accumulate: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        workers: int = 0,
    ):
        if (batch_size is None) == (batch_tokens is None):
            raise ConfigError("batch_size, batch_tokens: give one of them, samples or tokens to a batch")
        sized = isinstance(samples, Sequence)
        self.order = Order(samples, shuffle, seed) if sized else StreamOrder(samples, shuffle, seed)
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.accumulate = accumulate
        self.load_state(_start(0))
        self._chunks = _Chunks()
        if workers:
            _open_more_files()
        self._loader = DataLoader(
            Encoded(ExampleDataset(samples if sized else (), processor), seed),
            batch_sampler=self._chunks,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_heed_the_parent_alone,
            collate_fn=list,
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on after the step that this state was part of."""
        self.state = state

    def close(self) -> None:
        """End the workers.

        Left to the garbage collector they are not told to end, as it closes the queues first, and each is waited for
        in vain for five seconds.
        """
        if isinstance(workers := self._loader._iterator, _MultiProcessingDataLoaderIter):
            workers._shutdown_workers()
        self._loader._iterator = None

    def __iter__(self) -> Iterator[Step]:
        epoch, position = self.state["epoch"], self.state["next"]
        left_over = {(place, piece) for place, piece in self.state["waiting"]}
        again = {place for place, _ in left_over}
        own = self.order.own(rank(), world_size())
        fetched = _Fetched(self._fetch(self.order.keys(epoch, again, position, rank(), world_size())))
        waiting = [
            unit
            for place in sorted(again)
            for unit in self._units(place, *_parted(next(fetched)))
            if (place, unit.piece) in left_over
        ]
        held = sum(unit.cost for unit in waiting)
        left = 1
        while left > 0:
            batches: list[Batch | None] = []
            names: list[str] = []
            broken: list[Broken] = []
            for _ in range(self.accumulate):
                while not self._enough(len(waiting), held) and (fetched.more() if own is None else position < own):
                    examples, lost = _parted(next(fetched))
                    units = self._units(position, examples, lost)
                    waiting += units
                    held += sum(unit.cost for unit in units)
                    broken += lost
                    position += 1
                chosen = set(self._choose(waiting))
                examples = [example for i, unit in enumerate(waiting) if i in chosen for example in unit.examples]
                waiting = [unit for i, unit in enumerate(waiting) if i not in chosen]
                held = sum(unit.cost for unit in waiting)
                batches.append(collate(examples) if examples else None)
                names += dict.fromkeys(example.where for example in examples)
            count = sum(int(batch.supervised.sum()) for batch in batches if batch is not None)
            documents = sum(len(batch.lengths) for batch in batches if batch is not None)
            left = len({unit.place for unit in waiting}) + (fetched.more() if own is None else own - position)
            count, documents, left = map(int, summed(count, documents, left))
            done = epoch + (1 - left / max(1, self.order.length) if self.order.length is not None else float(not left))
            state = {"epoch": epoch, "next": position, "waiting": [[unit.place, unit.piece] for unit in waiting]}
            if not left:
                state = _start(epoch + 1)
            yield Step(batches, count, documents, names, broken, done, state)
        self.load_state(_start(epoch + 1))

    def _enough(self, waiting: int, held: int) -> bool:
        """Whether the next batch can be chosen well, from so many that wait with so many tokens."""
        if self.batch_size is not None:
            return waiting >= self.batch_size
        assert self.batch_tokens is not None
        return held >= WINDOW * self.batch_tokens

    def _choose(self, waiting: list[Waiting]) -> list[int]:
        if self.batch_tokens is None or not waiting:
            return list(range(len(waiting)))[: self.batch_size]
        return pack([unit.cost for unit in waiting], self.batch_tokens)

    def _units(self, place: int, examples: list[Example], lost: list[Broken]) -> list[Waiting]:
        """The documents of a sample, in pieces that fit the budget; one document that never fits is lost."""
        if self.batch_tokens is None:
            return [Waiting(place, 0, examples, 0)] if examples else []
        pieces: list[list[Example]] = []
        for example in examples:
            if reason := too_large(example, self.batch_tokens):
                lost.append(Broken(reason))
            elif pieces and cost([*pieces[-1], example]) <= self.batch_tokens:
                pieces[-1].append(example)
            else:
                pieces.append([example])
        return [Waiting(place, number, piece, cost(piece)) for number, piece in enumerate(pieces)]

    def _fetch(self, keys: Iterator[Key]) -> Iterator[list[Example | Broken]]:
        """The documents of samples, in this order."""
        self._chunks.keys = keys
        with told_as_data_error():
            for chunk in self._loader:
                for parts in chunk:
                    if isinstance(parts, MmgptError):
                        raise parts
                    yield parts


@contextmanager
def told_as_data_error() -> Iterator[None]:
    """Turns the death of a data worker into a DataError."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if "Too many open files" in str(error) or "ancdata" in str(error):
            raise DataError(
                "more media wait for their batch than files may be open at once (ulimit -n); raise that limit, lower "
                "batch_size, batch_tokens or accumulate, or set data.workers to 0"
            ) from None
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a data worker died: {error}; if memory ran out, lower data.workers or the size of a batch"
        ) from None


class _Fetched(Iterator[list[Example | Broken]]):
    """An iterator that can tell whether there is more."""

    def __init__(self, parts: Iterator[list[Example | Broken]]):
        self._parts = parts
        self._ahead: list[list[Example | Broken]] = []

    def __next__(self) -> list[Example | Broken]:
        return self._ahead.pop() if self._ahead else next(self._parts)

    def more(self) -> bool:
        self._ahead = self._ahead or list(islice(self._parts, 1))
        return bool(self._ahead)


class _Chunks(Iterable[list[Key]]):
    """The batch sampler of the workers: what the loader asks for now."""

    keys: Iterator[Key] = iter(())

    def __iter__(self) -> Iterator[list[Key]]:
        while chunk := list(islice(self.keys, FETCHED)):
            yield chunk


class Encoded(Dataset[list[Example | Broken] | MmgptError]):
    """Samples by their keys: random transforms are the same whenever, and wherever, one is asked for.

    Errors that stop the run are handed over, since a worker would wrap them in its own traceback.
    """

    def __init__(self, examples: ExampleDataset, seed: int):
        self.examples = examples
        self.seed = seed

    def __getitem__(self, key: Key) -> list[Example | Broken] | MmgptError:
        if self.examples.processor.augment is not None:
            random.seed(f"{self.seed} {key.epoch} {key.number}")
        try:
            return self.examples[key.number] if key.sample is None else self.examples.encode(key.sample)
        except MmgptError as error:
            return error


def _open_more_files() -> None:
    """Let this process have as many files open as the system allows: each tensor that a worker sends is one."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _heed_the_parent_alone(worker: int) -> None:
    """Where all processes of a job are told to end at once (SIGTERM), those that train need their workers until the
    step is done and kept, and then end them.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS cannot tell who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _start(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "next": 0, "waiting": []}


def _parted(parts: list[Example | Broken]) -> tuple[list[Example], list[Broken]]:
    examples = [part for part in parts if isinstance(part, Example)]
    check_supervised(examples)
    return examples, [part for part in parts if isinstance(part, Broken)]
