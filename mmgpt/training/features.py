"""Frozen encoders in training: in evaluation mode and, if the configuration wants it, with a cache of their tokens."""

import dataclasses
import hashlib
import json
from importlib.metadata import PackageNotFoundError, version

import torch

from mmgpt.errors import ConfigError
from mmgpt.feature_cache import EncoderCache, FeatureCache
from mmgpt.model import MultimodalGPT
from mmgpt.run_config import TrainConfig

FORMAT = 1  # to be raised whenever media are decoded, preprocessed or encoded otherwise than before
LIBRARIES = ("torch", "torchaudio", "timm", "transformers", "pillow", "av")  # which decode, preprocess and encode
ELSEWHERE = ("pretrained", "weights", "frozen")  # fields that say where weights come from, but not what they make


def prepare(model: MultimodalGPT, config: TrainConfig, precision: str) -> dict[str, EncoderCache]:
    """Set up the encoders that are not trained, once all is frozen that is to be; caches of theirs by modality.

    An encoder is one of them if none of its parameters is trained, nor any of the encoders it borrows (video). They
    are in evaluation mode from now on, with a cache or without. The model puts what it encodes into the cache.

    Args:
        precision: What the encoders compute in, as the Trainer is told.

    Raises:
        ConfigError: a cache behind random changes of its media, no folder or no size for it; or masks for an encoder
            that is not trained.
    """
    frozen = {
        modality: encoder.eval()
        for modality, encoder in model.encoders.items()
        if not any(parameter.requires_grad for parameter in encoder.parameters())
    }
    if config.augment.spec and "audio" in frozen:
        raise ConfigError(
            "augment.spec: masks spectrograms for an encoder that learns, and the audio encoder is frozen; leave out "
            "one of the two"
        )
    for name, given in (("frames", config.augment.frames), ("hide", config.augment.hide > 0)):
        if given and "video" in frozen:
            raise ConfigError(
                f"augment.{name}: hides frames where an encoder learns, and that of clips is frozen; leave out one of "
                "the two"
            )
    if not config.cache:
        return {}
    if not config.cache_gb > 0:
        raise ConfigError(f"cache_gb: must be above 0, not {config.cache_gb}")
    if config.augment.pictures and "image" in frozen:
        raise ConfigError(
            "cache: what is kept of the frozen image encoder is the same in every epoch, and augment asks for random "
            "changes; leave out one of the two"
        )
    model.features = FeatureCache(config.cache, int(config.cache_gb * 1e9))
    print(f"features kept in {config.cache}: {', '.join(frozen) or 'none, as no encoder is frozen'}", flush=True)
    return {modality: EncoderCache(model.features, fingerprint(model, modality, precision)) for modality in frozen}


def fingerprint(model: MultimodalGPT, modality: str, precision: str) -> bytes:
    """A hash of all that decides an encoder's tokens but the medium: weights, preprocessing, precision, libraries."""
    encoder = model.encoders[modality]
    used = ("image", "audio", "video") if modality == "video" else (modality,)
    configs = {name: dataclasses.asdict(own) for name in used if (own := getattr(model.config, name)) is not None}
    for fields in configs.values():
        for name in ELSEWHERE:
            fields.pop(name, None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    said = [FORMAT, modality, configs, precision, device, torch.get_float32_matmul_precision(), _versions()]
    found = hashlib.blake2b(json.dumps(said, sort_keys=True, default=repr).encode(), digest_size=32)
    for name, tensor in [*encoder.named_parameters(), *encoder.named_buffers()]:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:  # an extra that is not installed
            continue
    return found
