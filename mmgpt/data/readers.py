"""From the `data` section of a configuration to samples: which reader reads which format."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mmgpt.data.captions import read_captions
from mmgpt.data.chat import read_chat
from mmgpt.data.coco import read_coco
from mmgpt.data.folders import PARTS, read_folders
from mmgpt.data.hf import read_hf
from mmgpt.data.lazy import LazySamples
from mmgpt.data.llava import MEDIA, read_llava
from mmgpt.data.mixture import Mixture, chained
from mmgpt.data.parquet import read_parquet
from mmgpt.data.sample import Sample
from mmgpt.data.sounds import read_sounds
from mmgpt.data.speech import read_speech
from mmgpt.data.table import parse_json, read_lines
from mmgpt.data.texts import read_texts
from mmgpt.data.vqa import read_vqa
from mmgpt.data.webdataset import read_webdataset
from mmgpt.errors import ConfigError, DataError
from mmgpt.run_config import DataConfig, FileFormat

READERS: dict[str, Callable[[Path, str], Sequence[Sample]]] = {
    "captions": read_captions,
    "coco": read_coco,
    "vqa": read_vqa,
    "sounds": read_sounds,
    "speech": read_speech,
    "folders": read_folders,
    "chat": read_chat,
    "llava": read_llava,
    "texts": read_texts,
    "parquet": read_parquet,
    "webdataset": read_webdataset,
    "hf": read_hf,
}

# The files by whose names a format is known, the first that fits: the name of a file, or of one below a folder.
_SIGNS: tuple[tuple[FileFormat, str], ...] = (
    ("hf", r"dataset_(dict|info)\.json"),
    ("vqa", r"(.+_)?questions\.json"),
    ("coco", r"(annotations/)?captions[^/]*\.json"),
    ("captions", r"captions\.(csv|tsv|jsonl|txt)|Flickr8k\.token\.txt"),
    ("sounds", r"(transcripts|labels|metadata)\.(csv|tsv|jsonl)"),
    ("speech", r"([a-z]+_)?manifest\.jsonl?|.*\.trans\.txt"),
    ("parquet", r".*\.parquet"),
    ("webdataset", r".*\.tar"),
    ("chat", r"[^/]+\.jsonl"),
    ("llava", r"[^/]+\.json"),
    ("texts", r".*\.(csv|tsv|jsonl)"),
    ("folders", rf".+/[^/]+({'|'.join(map(re.escape, PARTS))})"),
    ("texts", r".*\.txt"),
)


def format_of(path: str | Path) -> FileFormat:
    """The format of a data set, as far as the names of its files tell it, and of a .jsonl its first line.

    Raises:
        ConfigError: They tell none.
        DataError: There is no such file or folder, or the first line is no JSON.
    """
    path = Path(path)
    if path.is_dir():
        names = [
            os.path.relpath(os.path.join(folder, name), path)  # noqa: PTH118  a Path for each file is slow
            for folder, _, found in os.walk(path)
            for name in found
        ]
    else:
        names = [path.name]
    for format, sign in _SIGNS:
        known = re.compile(sign, re.IGNORECASE)
        if found := [name for name in names if known.fullmatch(name)]:
            return _of_lines(path / min(found) if path.is_dir() else path) if format == "chat" else format
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    raise ConfigError(f"{path}: the names of the files tell no format; say which: {', '.join(READERS)}")


def _of_lines(path: Path) -> FileFormat:
    """The format of JSON lines that may be any of four."""
    (number, line), *_ = read_lines(path)
    row = parse_json(line, path, number)
    if isinstance(row, dict) and "messages" not in row:
        return "llava" if "conversations" in row else "speech" if "audio_filepath" in row else "texts"
    named = isinstance(row, dict) and any(kind in row or f"{kind}s" in row for kind in MEDIA)
    return "llava" if named else "chat"


def read_samples(config: DataConfig, split: str, seed: int = 0) -> Sequence[Sample]:
    """All samples of a split of a data set on disk. The demo world is rendered, not read.

    Args:
        config: Says what is read.
        split: The split. Of a mixture, config.split stands for what each source trains on, drawn by weight (see
            Mixture), and any other for what each validates on, one source after the other.
        seed: Of the order of a mixture.

    Raises:
        ConfigError: The format has no reader, or no path is given.
        DataError: The data are malformed; the message names the file, the line and the reason.
    """
    if config.format == "mix":
        return _mixed(config, split, seed)
    if config.format not in READERS:
        raise ConfigError(f"data.format: {config.format} is not read from files; those are {', '.join(READERS)}")
    if not config.path:
        raise ConfigError(f"data.path: format {config.format} needs the folder or file to read")
    if config.format == "texts":
        return read_texts(Path(config.path), split, config.text_length)
    return READERS[config.format](Path(config.path), split)


def limited(samples: Sequence[Sample], most: int) -> Sequence[Sample]:
    """At most so many of the samples, spread over all, so that a limit does not see the first folder alone."""
    if len(samples) <= most:
        return samples
    places = [number * len(samples) // most for number in range(most)]
    return samples.at(places) if isinstance(samples, LazySamples) else [samples[place] for place in places]


def _mixed(config: DataConfig, split: str, seed: int) -> LazySamples:
    if not config.mix:
        raise ConfigError("data.mix: format mix needs the data sets to mix: NAME: {format: ..., path: ...}")
    train = split == config.split
    sources = {}
    for name, source in config.mix.items():
        own = replace(config, format=source.format, path=source.path)
        sources[name] = read_samples(own, source.split if train else source.val_split)
    if train:
        return Mixture(sources, {name: source.weight for name, source in config.mix.items()}, seed)
    return chained(list(sources.values()))
