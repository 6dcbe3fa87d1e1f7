"""From the `data` section of a configuration to samples: which reader reads which format."""

from pathlib import Path

from mmgpt.config import DataConfig
from mmgpt.data.captions import read_captions
from mmgpt.data.chat import read_chat
from mmgpt.data.coco import read_coco
from mmgpt.data.sample import Sample
from mmgpt.data.sounds import read_sounds
from mmgpt.errors import ConfigError

READERS = {"captions": read_captions, "coco": read_coco, "sounds": read_sounds, "chat": read_chat}


def read_samples(config: DataConfig, split: str) -> list[Sample]:
    """All samples of a split of a data set on disk. The demo world is rendered, not read.

    Raises:
        ConfigError: The format has no reader, or no path is given.
        DataError: The data are malformed; the message names the file, the line and the reason.
    """
    if config.format not in READERS:
        raise ConfigError(f"data.format: {config.format} is not read from files; those are {', '.join(READERS)}")
    if not config.path:
        raise ConfigError(f"data.path: format {config.format} needs the folder or file to read")
    return READERS[config.format](Path(config.path), split)
