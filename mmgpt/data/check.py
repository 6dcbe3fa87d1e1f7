"""Is every row readable, and what is in them? Each sample is read as training reads it; counts alone are kept.

Most formats are rows of a file, which are read before any sample: what is wrong with these is told first (`unread`).
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
from torch.utils.data import DataLoader, Dataset

from mmgpt.batch import Example
from mmgpt.config import ModelConfig
from mmgpt.content import MODALITIES, Audio, Image, Part, Video
from mmgpt.data.dataset import Broken, ExampleDataset
from mmgpt.data.faults import Faults
from mmgpt.data.lazy import lost_of
from mmgpt.data.loader import FETCHED, told_as_data_error
from mmgpt.data.mixture import Mixture, chained
from mmgpt.data.packing import too_large
from mmgpt.data.readers import read_samples
from mmgpt.data.sample import Sample
from mmgpt.errors import DataError, MediaError, MmgptError
from mmgpt.processor import Processor
from mmgpt.run_config import DataConfig

SHOWN = 10  # pairs of samples that have the same in them, of each kind
ANY_RATE = 1e6  # frames a second of frames that are chosen already


@dataclass(frozen=True)
class Spread:
    """Least, median, 95th percentile and most of many numbers."""

    least: float
    median: float
    percentile_95: float
    most: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Spread | None":
        """None of no numbers."""
        if not len(numbers):
            return None
        values = np.percentile(np.asarray(numbers), [0, 50, 95, 100], method="nearest")
        return cls(*(round(value, 3) for value in values.tolist()))


@dataclass(frozen=True)
class Media:
    """The media of one modality: how many, and how wide and high in pixels, or how long in seconds."""

    count: int
    width: Spread | None = None
    height: Spread | None = None
    seconds: Spread | None = None


@dataclass(frozen=True)
class Repeats:
    """Media, or texts of samples without media, that were there before: how many, and the first pairs of samples."""

    count: int
    pairs: list[tuple[str, str]]


@dataclass(frozen=True)
class SplitCheck:
    """What is in a split.

    Args:
        samples: Number of samples.
        documents: What is learned from: each readable sample once for each of its answers.
        broken: Why samples cannot be read, a line each, or all the rest of a file.
        too_long: Samples and answers that are readable, but of more tokens than the context or a batch may have.
        tokens: Of a document.
        supervised: Share of the tokens that are learned.
        media: By modality.
        same_media: Media that another sample of the split, before it, has too.
        same_text: Samples without media whose texts are those of another before it.
    """

    samples: int
    documents: int
    broken: list[str]
    too_long: list[str]
    tokens: Spread | None
    supervised: float
    media: dict[str, Media]
    same_media: Repeats
    same_text: Repeats


@dataclass(frozen=True)
class DataCheck:
    """What is in both splits, and what of the validation split is in the training split too (leakage)."""

    train: SplitCheck
    val: SplitCheck
    leaked_media: Repeats
    leaked_text: Repeats

    @property
    def sound(self) -> bool:
        """Whether nothing is lost of any sample."""
        return not any(split.broken or split.too_long for split in (self.train, self.val))


@dataclass
class _Row:
    """What is kept of one sample."""

    broken: list[str] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # of each document
    supervised: int = 0
    media: list[tuple[str, tuple[float, ...], bytes]] = field(default_factory=list)  # modality, extent, digest
    text: bytes | None = None  # digest, of a sample without media


class _Digests:
    """Digests of 16 bytes, each with the number of the sample it comes from."""

    def __init__(self) -> None:
        self.digests = bytearray()
        self.rows = array("q")

    def add(self, digest: bytes, row: int) -> None:
        self.digests += digest
        self.rows.append(row)

    def numbers(self) -> np.ndarray:
        """(digests, 2) uint64."""
        return np.frombuffer(bytes(self.digests), dtype=np.uint64).reshape(-1, 2)


class _Split:
    """A split while it is read: integers and digests of its samples."""

    def __init__(self, samples: Sequence[Sample]):
        # A mixture draws some samples again and others not at all; each is to be read once.
        self.samples = chained(samples.sources) if isinstance(samples, Mixture) else samples
        self.broken = lost_of(samples)
        self.too_long: list[str] = []
        self.tokens = array("i")
        self.supervised = 0
        self.extents: dict[str, tuple[array, ...]] = {}
        self.media = _Digests()
        self.texts = _Digests()

    def add(self, number: int, row: _Row) -> None:
        self.broken += row.broken
        self.too_long += row.too_long
        self.tokens.extend(row.tokens)
        self.supervised += row.supervised
        for modality, extent, digest in row.media:
            kept = self.extents.setdefault(modality, tuple(array("f") for _ in extent))
            for numbers, value in zip(kept, extent, strict=True):
                numbers.append(value)
            self.media.add(digest, number)
        if row.text is not None:
            self.texts.add(row.text, number)

    def result(self) -> SplitCheck:
        media = {}
        for modality, extents in self.extents.items():
            names = ("width", "height") if modality == "image" else ("seconds",)
            spreads = {name: Spread.of(numbers) for name, numbers in zip(names, extents, strict=True)}
            media[modality] = Media(len(extents[0]), **spreads)
        return SplitCheck(
            samples=len(self.samples),
            documents=len(self.tokens),
            broken=self.broken,
            too_long=self.too_long,
            tokens=Spread.of(self.tokens),
            supervised=self.supervised / max(1, sum(self.tokens)),
            media=media,
            same_media=self.repeats(self.media),
            same_text=self.repeats(self.texts),
        )

    def repeats(self, digests: _Digests) -> Repeats:
        """Those that a sample before has too; a medium twice in one sample is meant so."""
        rows = np.asarray(digests.rows)
        _, first, group = np.unique(digests.numbers(), axis=0, return_index=True, return_inverse=True)
        before = rows[first][group.reshape(-1)] if len(rows) else rows
        places = np.flatnonzero(before != rows)
        pairs = [(self.where(int(rows[i])), self.where(int(before[i]))) for i in places[:SHOWN]]
        return Repeats(len(places), pairs)

    def where(self, row: int) -> str:
        return self.samples[row].where


class _Rows(Dataset[_Row]):
    """The rows of samples, as workers make them."""

    def __init__(self, samples: Sequence[Sample], processor: Processor, batch_tokens: int | None):
        self.examples = ExampleDataset(samples, processor)
        self.batch_tokens = batch_tokens

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> _Row:
        row = _Row()
        try:
            sample = self.examples.samples[index]
        except MmgptError as error:  # which names the row itself
            row.broken.append(str(error))
            return row
        try:
            parts, row.media = self._parts(sample)
        except DataError as error:
            row.broken.append(str(error))
            return row
        for part in parts:
            if isinstance(part, Broken):
                (row.too_long if part.too_long else row.broken).append(part.reason)
            elif self.batch_tokens is not None and (reason := too_large(part, self.batch_tokens)):
                row.too_long.append(reason)
            else:
                row.tokens.append(len(part))
                row.supervised += sum(part.supervised)
        if not row.media and not row.broken:
            row.text = _digest(sample.texts())
        return row

    def _parts(self, sample: Sample) -> tuple[list[Example | Broken], list[tuple[str, tuple[float, ...], bytes]]]:
        """The documents of a sample, and the media of those that are usable, each once."""

        looked_at: dict[Part, tuple[Part, tuple[float, ...] | None]] = {}  # media that are shared are so afterwards

        def opened(parts: Sequence[Part], extents: list[tuple[str, tuple[float, ...]]]) -> tuple[Part, ...]:
            made = []
            for part in parts:
                if part not in looked_at:
                    looked_at[part] = _opened(part, self.examples.processor)
                medium, extent = looked_at[part]
                made.append(medium)
                if extent is not None:
                    extents.append((MODALITIES[type(part)], extent))
            return tuple(made)

        exchanges, extents = [], []  # and of each document of each exchange
        for one in sample.exchanges:
            shared: list[tuple[str, tuple[float, ...]]] = []
            prompt = tuple(replace(message, parts=opened(message.parts, shared)) for message in one.prompt)
            extents.append([[*shared] for _ in one.answers])
            answers = tuple(
                answer if isinstance(answer, str) else opened(answer, own)
                for answer, own in zip(one.answers, extents[-1], strict=True)
            )
            exchanges.append(replace(one, prompt=prompt, answers=answers))
        found, media = [], {}
        encoded = self.examples.encode_each(replace(exchanges[0], more=tuple(exchanges[1:])))
        for parts, some in zip(encoded, extents, strict=False):  # what cannot be decoded ends them
            found += parts
            for part, own in zip(parts, some, strict=False):  # one that is too long as a whole has no documents
                if isinstance(part, Example):
                    told = zip(own, part.media, strict=True)
                    media |= {id(item): (*extent, item.digest) for extent, (_, item) in told}
        return found, list(media.values())


def _opened(part: Part, processor: Processor) -> tuple[Part, tuple[float, ...] | None]:
    """A medium decoded as the processor would, and its width and height in pixels, or its duration in seconds.

    What cannot be decoded, and what the model has no encoder for, is left to the processor to refuse.
    """
    with suppress(MediaError):
        return _decoded(part, processor.config)
    return part, None


def _decoded(part: Part, config: ModelConfig) -> tuple[Part, tuple[float, ...] | None]:
    match part:
        case Image() if config.image is not None:
            picture = part.load()
            return Image(picture), (float(picture.width), float(picture.height))
        case Audio() if config.audio is not None:
            sound = part.load(config.audio.max_seconds)
            return Audio(sound.samples, sound.sample_rate), (sound.seconds,)
        case Video() if config.video is not None:
            hears = config.video.sound and config.audio is not None
            clip = part.load(config.video.frames, config.video.max_seconds, hears)
            track = Audio(clip.sound.samples, clip.sound.sample_rate) if clip.sound is not None else None
            return Video(clip.frames, ANY_RATE, track), (clip.duration,)
    return part, None


def _digest(texts: Sequence[str]) -> bytes:
    return hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True)
class Unread:
    """Why rows of the data make no samples, a line each: malformed ones, and those whose files are missing."""

    malformed: list[str]
    missing: list[str]


def unread(config: DataConfig, error: DataError) -> Unread:
    """What is wrong with the rows of data sets on disk: of both splits, and of all that are mixed, each fault once.

    Args:
        config: Says what is read.
        error: By which reading them ended; it is what is told where nothing is wrong with any row.
    """
    sources = [(config, config.split, config.val_split)]
    if config.format == "mix":
        sources = [
            (replace(config, format=one.format, path=one.path), one.split, one.val_split) for one in config.mix.values()
        ]
    faults = Faults()
    for own, *splits in sources:
        for split in splits:
            with faults.row():
                samples = read_samples(own, split)
                faults.malformed += lost_of(samples)
                for i in range(len(samples)):
                    with faults.row():
                        _ = samples[i]  # of some formats it is read now
    malformed, missing = (list(dict.fromkeys(some)) for some in (faults.malformed, faults.missing))
    return Unread(malformed if malformed or missing else [str(error)], missing)


def check(
    train: Sequence[Sample],
    val: Sequence[Sample],
    processor: Processor,
    *,
    batch_tokens: int | None = None,
    workers: int = 0,
    progress: Callable[[str, int, Iterator[_Row]], Iterable[_Row]] | None = None,
) -> DataCheck:
    """Read every sample of both splits.

    Args:
        train: The training split; of a mixture, all samples of its sources.
        val: The validation split, all of it.
        processor: Makes examples of them.
        batch_tokens: Most tokens to a batch, those of the encoders counted too, which no document may exceed.
        workers: Processes that read; 0 does it in this one.
        progress: Called with the name of a split, its size and its rows, which it passes on.

    Raises:
        DataError: A worker died.
    """
    splits = []
    for name, samples in (("training", train), ("validation", val)):
        split = _Split(samples)
        loader = DataLoader(
            _Rows(split.samples, processor, batch_tokens),
            batch_size=FETCHED,
            num_workers=workers,
            collate_fn=list,
        )
        with told_as_data_error():
            rows = (row for chunk in loader for row in chunk)
            for number, row in enumerate(progress(name, len(split.samples), rows) if progress else rows):
                split.add(number, row)
        splits.append(split)
    learned, held_out = splits
    return DataCheck(
        learned.result(),
        held_out.result(),
        leaked_media=_leaked(held_out, held_out.media, learned, learned.media),
        leaked_text=_leaked(held_out, held_out.texts, learned, learned.texts),
    )


def _leaked(held_out: _Split, of_held_out: _Digests, learned: _Split, of_learned: _Digests) -> Repeats:
    """What of the validation split the training split has too."""
    numbers = np.concatenate([of_learned.numbers(), of_held_out.numbers()])
    count = len(of_learned.rows)
    _, first, group = np.unique(numbers, axis=0, return_index=True, return_inverse=True)
    before = first[group.reshape(-1)][count:] if len(numbers) else np.zeros(0, dtype=np.int64)
    places = np.flatnonzero(before < count)
    pairs = [(held_out.where(of_held_out.rows[i]), learned.where(of_learned.rows[before[i]])) for i in places[:SHOWN]]
    return Repeats(len(places), pairs)
