"""Public captioning checkpoints, a ViT that a GPT-2 looks at (transformers' VisionEncoderDecoder), as our model."""

from pathlib import Path
from typing import Any

from mmgpt.config import AdapterConfig, ImageEncoderConfig, ModelConfig
from mmgpt.errors import CheckpointError, ConfigError
from mmgpt.gpt import GPT
from mmgpt.model import MultimodalGPT
from mmgpt.pretrained import open_tensors, read_json
from mmgpt.tokenizer import Plain, Tokenizer

PROJECTION = "enc_to_dec_proj."  # from the encoder's width to the decoder's, where they differ


def load(folder: Path) -> tuple[MultimodalGPT, Tokenizer]:
    """The model, in evaluation mode, and its tokenizer, from a directory as transformers saves it.

    It captions pictures and knows nothing else (nlpconnect/vit-gpt2-image-captioning is the best known). What its
    generation_config.json says of beams and lengths is not taken over. Raises CheckpointError.
    """
    gpt = GPT.from_pretrained(folder)
    if gpt.config.cross is None:
        raise CheckpointError(f"{folder}/config.json: a decoder without add_cross_attention cannot see")
    tokenizer = load_tokenizer(folder)
    try:
        with open_tensors(folder) as tensors:
            projection = {name.removeprefix(PROJECTION): read() for name, read in tensors.items() if PROJECTION in name}
        # The ViT has told its tokens their places.
        adapter = AdapterConfig("linear" if projection else "identity", positions=False)
        image = ImageEncoderConfig(weights=str(folder), prefix=True)
        model = MultimodalGPT(ModelConfig(gpt.config, image, adapters={"image": adapter}))
        model.gpt = gpt
        model.adapters["image"].get_submodule("project").load_state_dict(projection)
    except (ConfigError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: {PROJECTION}: {' '.join(str(error).split())}") from None
    return model.eval(), tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """Its tokenizer, which knows with which token prompts begin and answers end. Raises CheckpointError."""
    settings = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    decoder = settings.get("decoder") or {}
    said = [read_json(generation) if generation.is_file() else {}, settings, decoder]
    vocab_size = decoder.get("vocab_size", 50_257)  # what transformers takes for it
    start = _first(said, "decoder_start_token_id", "bos_token_id")
    end = _first(said, "eos_token_id")
    for name, token in (("decoder_start_token_id", start), ("eos_token_id", end)):
        if not isinstance(token, int) or not 0 <= token < vocab_size:
            raise CheckpointError(f"{folder}/config.json: {name} {token!r} is none of the {vocab_size} tokens")
    tokenizer = Tokenizer.load(folder, Plain("caption", start, end))
    if len(tokenizer) > vocab_size:
        raise CheckpointError(f"{folder}: {len(tokenizer)} tokens of the tokenizer, {vocab_size} of the model")
    return tokenizer


def _first(said: list[dict[str, Any]], *names: str) -> Any:
    """The first of these settings that is told anywhere; some write a single number as a list."""
    found = [one[name] for name in names for one in said if one.get(name) is not None]
    first = found[0] if found else None
    return first[0] if isinstance(first, list) and len(first) == 1 else first
