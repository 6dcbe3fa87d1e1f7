"""From the `data` section of a configuration to samples: which reader reads which format."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mmgpt.data.captions import read_captions
from mmgpt.data.chat import read_chat
from mmgpt.data.coco import read_coco
from mmgpt.data.folders import read_folders
from mmgpt.data.hf import read_hf
from mmgpt.data.lazy import LazySamples
from mmgpt.data.llava import read_llava
from mmgpt.data.mixture import Mixture, chained
from mmgpt.data.parquet import read_parquet
from mmgpt.data.sample import Sample
from mmgpt.data.sounds import read_sounds
from mmgpt.data.speech import read_speech
from mmgpt.data.texts import read_texts
from mmgpt.data.vqa import read_vqa
from mmgpt.data.webdataset import read_webdataset
from mmgpt.errors import ConfigError
from mmgpt.run_config import DataConfig

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
    return samples[:: max(1, len(samples) // most)][:most]


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
