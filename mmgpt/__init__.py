"""mmgpt: one small GPT that sees, hears, watches and reads.

The public names are imported when they are first used, so that `import mmgpt` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmgpt.assistant import Assistant, load
    from mmgpt.config import GPTConfig, ModelConfig
    from mmgpt.content import Audio, Image, Message, Text, Video
    from mmgpt.errors import CheckpointError, ConfigError, DataError, MediaError, MmgptError
    from mmgpt.gpt import GPT
    from mmgpt.model import MultimodalGPT
    from mmgpt.processor import Processor
    from mmgpt.run_config import TrainConfig
    from mmgpt.tokenizer import Tokenizer

_HOMES = {
    "mmgpt.assistant": ("Assistant", "load"),
    "mmgpt.config": ("GPTConfig", "ModelConfig"),
    "mmgpt.content": ("Audio", "Image", "Message", "Text", "Video"),
    "mmgpt.errors": ("CheckpointError", "ConfigError", "DataError", "MediaError", "MmgptError"),
    "mmgpt.gpt": ("GPT",),
    "mmgpt.model": ("MultimodalGPT",),
    "mmgpt.processor": ("Processor",),
    "mmgpt.run_config": ("TrainConfig",),
    "mmgpt.tokenizer": ("Tokenizer",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022, in the order of the rooms
    "load",
    "Assistant",
    "Text",
    "Image",
    "Audio",
    "Video",
    "Message",
    "GPT",
    "MultimodalGPT",
    "Processor",
    "Tokenizer",
    "GPTConfig",
    "ModelConfig",
    "TrainConfig",
    "MmgptError",
    "MediaError",
    "DataError",
    "ConfigError",
    "CheckpointError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mmgpt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
