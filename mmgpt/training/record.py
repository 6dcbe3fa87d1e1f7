"""What a run tells of itself in its checkpoints (training.json), and so in the model card of what is shared."""

from typing import Any

from mmgpt import checkpoint
from mmgpt.card import origin
from mmgpt.encoders.backbone import hub_id
from mmgpt.run_config import TrainConfig


def record(config: TrainConfig, samples: int | None) -> dict[str, Any]:
    """The data, the pretrained models it began from and the settings; `samples` is None of a stream."""
    data = config.data
    told: dict[str, Any] = {"data": data.path or data.format, "format": data.format}
    if data.format == "world":
        told["data"] = f"world {data.world}"
    elif data.format == "mix":
        told["data"] = f"mix of {', '.join(data.mix)}"
    else:
        told["split"] = data.split
    if data.format == "texts":
        # Evaluation cuts as training did: other documents would have learned ones in them.
        told["text_length"] = data.text_length
    return told | {
        "samples": samples,
        "epochs": config.epochs if config.steps is None else None,
        "begun_from": _begun_from(config),
        "batch_size": config.batch_size if config.batch_tokens is None else None,
        "batch_tokens": config.batch_tokens,
        "accumulate": config.accumulate,
        "learning_rate": config.optimizer.learning_rate,
        "muon": config.optimizer.muon,
        "precision": config.precision,
        "seed": config.seed,
    }


def _begun_from(config: TrainConfig) -> list[str]:
    """By `origin`, with what the model of `init` itself began from."""
    found = []
    if config.init is not None:
        found = checkpoint.told_by_run(checkpoint.locate(config.init)).get("begun_from", [])
    model = config.model
    sources = [config.init, model.gpt.weights]
    for encoder in (model.image, model.audio):
        if encoder is not None:
            sources.append(hub_id(encoder.name) if encoder.pretrained else encoder.weights)
    return [*found, *(origin(source) for source in sources if source is not None)]
