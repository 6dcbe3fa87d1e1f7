"""The typed configuration of a model, free of torch, and the pure functions that count media tokens from it.

A model's configuration is *resolved* once its encoders are built: what was None is then filled in with what
the backbone says of itself (its input size, normalisation, grid, width). Resolved configurations are saved
with the checkpoint, so preprocessing at inference is that of training, and data workers count media tokens
without a module.
"""

import difflib
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from mmgpt.errors import ConfigError, MediaError

LossPer: TypeAlias = Literal["token", "document"]
CropMode: TypeAlias = Literal["squash", "center"]
Interpolation: TypeAlias = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


@dataclass
class RotaryScaling:
    """Rotary frequencies stretched, so that a model trained on short texts reads longer ones.

    Args:
        kind: linear (all frequencies by factor; Chen et al. 2023) or llama3 (slow ones alone; Llama 3.1).
        factor: How many times longer.
        low: llama3: wavelengths above original_context / low are stretched in full.
        high: llama3: wavelengths below original_context / high are left as they are; between the two it is blended.
        original_context: llama3: the context trained on at first.
    """

    kind: Literal["linear", "llama3"] = "linear"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_context: int = 8192


@dataclass
class GPTConfig:
    """A decoder-only transformer; GPT-2, Llama, Mistral and Qwen are settings of it.

    Args:
        vocab_size: Number of token ids; 0 means "as many as the tokenizer has".
        width: Size of the residual stream.
        layers: Number of blocks.
        heads: Number of attention heads.
        kv_heads: Number of key and value heads (grouped-query attention); None means as many as heads.
        head_width: Size of one head; None means width / heads.
        mlp_width: Hidden size of the MLP; None means 4 x width (8/3 x width, rounded up to 32, for swiglu).
        context: Most tokens a document may have.
        position: rotary (Su et al. 2021), learned (GPT-2) or sinusoidal (Vaswani et al. 2017).
        rotary_base: Base of the rotary frequencies.
        rotary_scaling: Stretches them.
        window: Tokens that each token looks back on, itself among them (Mistral); None means all of its document.
        window_layers: Layers that have the window; None means all.
        norm: layer (LayerNorm) or rms (RMSNorm).
        norm_eps: Epsilon of the norms.
        activation: gelu, gelu_tanh (GPT-2's) or swiglu (Shazeer 2020).
        qk_norm: RMSNorm over each head's queries and keys (Qwen3).
        qkv_bias: Biases in the query, key and value projections.
        out_bias: Bias in the output projection of attention.
        mlp_bias: Biases in the MLP.
        cross: Attention to media beside the sequence's own, which then holds no slots: "inside" each block between
            attention and MLP (Vaswani et al. 2017; transformers' VisionEncoderDecoder), or "gated": a block of its own
            before each, whose gates are zero at the start (Alayrac et al. 2022, Flamingo). None: media fill slots.
        cross_layers: Layers that attend to media; None means all.
        tied_head: The output head shares the token embedding's weight.
        dropout: Dropout on embeddings, attention output and MLP output.
        weights: A pretrained GPT to begin with: a directory or Hub id of transformers (GPT-2, Llama, Mistral, Qwen2,
            Qwen3), which decides everything but vocab_size, cross, cross_layers and dropout.
    """

    vocab_size: int = 0
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None
    head_width: int | None = None
    mlp_width: int | None = None
    context: int = 1024
    position: Literal["rotary", "learned", "sinusoidal"] = "rotary"
    rotary_base: float = 10_000.0
    rotary_scaling: RotaryScaling | None = None
    window: int | None = None
    window_layers: tuple[int, ...] | None = None
    norm: Literal["layer", "rms"] = "rms"
    norm_eps: float = 1e-5
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "swiglu"
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    cross: Literal["inside", "gated"] | None = None
    cross_layers: tuple[int, ...] | None = None
    tied_head: bool = True
    dropout: float = 0.0
    weights: str | None = None

    def resolved(self) -> "GPTConfig":
        """A copy with kv_heads, head_width and mlp_width filled in. Raises ConfigError for settings that do not fit."""
        for name, kind in get_type_hints(GPTConfig).items():
            known = [
                value
                for literal in (kind, *get_args(kind))
                if get_origin(literal) is Literal
                for value in get_args(literal)
            ]
            if known and getattr(self, name) not in known and not (name == "cross" and self.cross is None):
                raise ConfigError(f"gpt.{name}: {getattr(self, name)!r} is none of {', '.join(known)}")
        for name in ("width", "layers", "heads", "kv_heads", "head_width", "mlp_width", "context", "window"):
            size, optional = getattr(self, name), name in ("kv_heads", "head_width", "mlp_width", "window")
            if not (isinstance(size, int) and size >= 1) and not (size is None and optional):
                raise ConfigError(f"gpt.{name}: must be a whole number from 1 on, not {size!r}")
        if self.head_width is None and self.width % self.heads:
            raise ConfigError(f"gpt.heads: {self.heads} heads do not divide width {self.width}; set gpt.head_width")
        head_width = self.head_width or self.width // self.heads
        kv_heads = self.kv_heads or self.heads
        if self.heads % kv_heads:
            raise ConfigError(f"gpt.kv_heads: {kv_heads} does not divide the {self.heads} heads")
        if self.position == "rotary" and head_width % 2:
            raise ConfigError(f"gpt.head_width: must be even for rotary positions, not {head_width}")
        if (scaling := self.rotary_scaling) is not None and not (scaling.factor > 0 and 0 < scaling.low < scaling.high):
            raise ConfigError(f"gpt.rotary_scaling: factor and low must be above 0, and high above low, not {scaling}")
        for name in ("window_layers", "cross_layers"):
            if outside := [layer for layer in getattr(self, name) or () if not 0 <= layer < self.layers]:
                raise ConfigError(f"gpt.{name}: there is no layer {outside[0]}; they are 0..{self.layers - 1}")
        mlp_width = self.mlp_width or (
            -(-self.width * 8 // 3 // 32) * 32 if self.activation == "swiglu" else 4 * self.width
        )
        return replace(self, kv_heads=kv_heads, head_width=head_width, mlp_width=mlp_width)


@dataclass
class ImageEncoderConfig:
    """A timm backbone that turns a picture into tokens.

    A picture is resized to size / crop_pct and cropped in the middle to size. What is None of size, mean,
    std, interpolation, crop_pct and crop_mode is the backbone's own; one without pretrained weights squashes the whole
    picture.

    Args:
        name: A timm model name: a ViT (patch tokens), or a convolutional backbone (its last feature map).
        pretrained: Fetch the pretrained weights when a new model is built.
        weights: Weights to read instead: a local file in timm's format (.safetensors), or a directory or Hub id of
            transformers (SigLIP, CLIP, DINOv2, ViT), which then decides name and args too.
        layer: Which block or stage gives the tokens; -1 is the last, and those after it are dropped.
        prefix: Keep class and register tokens in front of the patch tokens.
        size: Input height and width in pixels; None means the backbone's own.
        args: More arguments of timm.create_model (depths, dims, drop_path_rate, ...); norm_layer may be {"eps": ...}.
            (timm's drop_rate is of the classifier, which is left out.)
        frozen: Train none of it.
        mean, std: Normalisation per channel of pixels in 0..1.
        crop_mode: How a picture of another shape is resized: squash gives it the new shape, center keeps its own and
            covers the new one.
        crop_pct: Size after the crop by size before it.
        interpolation: How pixels are resampled.
        grid: Rows and columns of the token grid (resolved).
        prefix_tokens: Number of tokens in front of the grid (resolved).
        width: Size of a token (resolved).
    """

    name: str = "vit_small_patch16_224"
    pretrained: bool = False
    weights: str | None = None
    layer: int = -1
    prefix: bool = False
    size: tuple[int, int] | None = None
    args: dict[str, Any] = field(default_factory=dict)
    frozen: bool = False
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_mode: CropMode | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None
    grid: tuple[int, int] | None = None
    prefix_tokens: int | None = None
    width: int | None = None


@dataclass
class AudioEncoderConfig:
    """Log-mel spectrogram and a net that turn a sound into tokens. Whisper has its own spectrogram (resolved).

    Args:
        name: "conv", our compact causal CNN for token streams, "whisper", or a timm convolutional backbone.
        pretrained: Fetch the pretrained weights when a new model is built (timm backbones).
        weights: A local file of timm weights (.safetensors) instead of the hub's; for "whisper" a directory or Hub id.
        sample_rate: In Hz; sounds are resampled to it.
        window: Length of an analysis window in samples.
        hop: Samples from one spectrogram frame to the next.
        mels: Number of mel bands.
        channels: Width of a token of "conv".
        layers: Residual blocks of "conv".
        dropout: On what each of these adds, in training.
        reduction: Spectrogram frames to a token: 2, 4 or 8 for "conv" (resolved for the others).
        args: More arguments of timm.create_model; of "whisper" its sizes by transformers' names, such as d_model or
            encoder_layers (resolved with weights, else those of whisper-tiny).
        frozen: Train none of it.
        max_seconds: Longer sounds are refused; at most the 30 seconds of whisper's window (resolved).
        width: Size of a token (resolved).
    """

    name: str = "conv"
    pretrained: bool = False
    weights: str | None = None
    sample_rate: int = 16_000
    window: int = 400
    hop: int = 160
    mels: int = 80
    channels: int = 256
    layers: int = 4
    dropout: float = 0.0
    reduction: int = 4
    args: dict[str, Any] = field(default_factory=dict)
    frozen: bool = False
    max_seconds: float = 30.0
    width: int | None = None

    @property
    def positions(self) -> int | None:
        """Tokens of whisper's window, to which it pads every sound; None for encoders without such a limit."""
        return self.args.get("max_source_positions") if self.name == "whisper" else None


@dataclass
class VideoEncoderConfig:
    """Frames through the image encoder, and the sound track, where there is one, through the audio encoder.

    Args:
        frames: Number of frames, evenly spaced over the clip.
        grid: Rows and columns each frame's token grid is average-pooled to: the token budget of a frame.
        sound: Encode the sound track too, if the model has an audio encoder.
        layers: Convolutions over time between the frames' tokens, each of which reaches two frames back and ahead.
        max_seconds: Longer clips are refused.
        width: Size of a token (resolved).
    """

    frames: int = 8
    grid: tuple[int, int] = (2, 2)
    sound: bool = True
    layers: int = 0
    max_seconds: float = 60.0
    width: int | None = None


@dataclass
class AdapterConfig:
    """From an encoder's tokens to the GPT's width.

    Args:
        kind: identity (the widths are equal), linear, mlp (LLaVA-1.5), pixel_shuffle (factor x factor neighbours become
            one token, then an MLP; InternVL, SmolVLM) or resampler (a fixed number of learned queries; Flamingo's
            perceiver).
        factor: Neighbours per side of pixel_shuffle; along time alone for sounds.
        queries: Tokens a resampler returns.
        layers: Blocks of a resampler.
        heads: Attention heads of a resampler.
        positions: With gpt.cross, tell tokens their place among those of their medium (sinusoids): cross-attention
            knows no order. False where the encoder has told them already.
    """

    kind: Literal["identity", "linear", "mlp", "pixel_shuffle", "resampler"] = "mlp"
    factor: int = 2
    queries: int = 16
    layers: int = 2
    heads: int = 4
    positions: bool = True


@dataclass
class PairConfig:
    """Media paired with texts: vectors of both in one space, near to each other where they belong together.

    Args:
        loss: clip (softmax, learned temperature; Radford et al. 2021) or siglip (sigmoid, learned temperature and
            bias; Zhai et al. 2023).
        width: Of the common space.
        text: The text encoder; its vocabulary is the GPT's.
        pooling: How tokens become one vector: attention (one learned query; CoCa's pooler) or mean.
        heads: Attention heads of the pooling.
        weight: Of the contrastive loss.
        caption: Weight of the loss of the GPT's answers beside it (Yu et al. 2022, CoCa); 0: the GPT is not trained.
    """

    loss: Literal["clip", "siglip"] = "clip"
    width: int = 256
    text: GPTConfig = field(default_factory=GPTConfig)
    pooling: Literal["attention", "mean"] = "attention"
    heads: int = 4
    weight: float = 1.0
    caption: float = 1.0


@dataclass
class ModelConfig:
    """A multimodal GPT: which encoders it has, how each is fused, and the decoder.

    Args:
        gpt: The decoder.
        image: The image encoder; None for a model that does not see.
        audio: The audio encoder; None for a model that does not hear.
        video: The video encoder, which needs the image encoder.
        adapters: The adapter of each modality, by its name; a modality not named here gets an mlp.
        pair: Pair media with texts; None for a model that does not.
        ctc: Weight of the CTC loss of sound and video encoders beside the GPT's (`mmgpt.ctc`); 0: they have none.
    """

    gpt: GPTConfig = field(default_factory=GPTConfig)
    image: ImageEncoderConfig | None = None
    audio: AudioEncoderConfig | None = None
    video: VideoEncoderConfig | None = None
    adapters: dict[str, AdapterConfig] = field(default_factory=dict)
    pair: PairConfig | None = None
    ctc: float = 0.0

    def adapter(self, modality: str) -> AdapterConfig:
        return self.adapters.get(modality, AdapterConfig())

    @property
    def encoders(self) -> dict[str, ImageEncoderConfig | AudioEncoderConfig | VideoEncoderConfig]:
        """Of the modalities it has."""
        found = {"image": self.image, "audio": self.audio, "video": self.video}
        return {name: encoder for name, encoder in found.items() if encoder is not None}

    def with_encoders(self, more: "ModelConfig") -> "ModelConfig":
        """A copy with the encoders of `more`, and their adapters. Raises ConfigError for what it has already."""
        for name in (*more.encoders, *more.adapters):
            if name in self.encoders:
                raise ConfigError(f"model.{name}: the model has its own; leave it out, with its adapter")
        return replace(self, adapters=self.adapters | more.adapters, **more.encoders)

    @property
    def answers(self) -> bool:
        """Whether the GPT is trained, and can be asked: not so where media and texts are paired alone."""
        return self.pair is None or self.pair.caption > 0


# What an encoder returns for one input: `prefix` tokens, then a grid, then `suffix` tokens. Adapters that look at
# neighbours (pixel_shuffle) need the grid; the rest need only the sum.
@dataclass(frozen=True)
class TokenGrid:
    """The shape of one input's tokens: `prefix` single ones, `rows` x `columns` in a grid, `suffix` single ones."""

    rows: int
    columns: int = 1
    prefix: int = 0
    suffix: int = 0

    @property
    def count(self) -> int:
        return self.prefix + self.rows * self.columns + self.suffix


def image_grid(config: ImageEncoderConfig) -> TokenGrid:
    """The tokens of any picture, which is resized to the encoder's input size. Needs a resolved configuration."""
    if config.grid is None or config.prefix_tokens is None:
        raise ConfigError(f"image encoder {config.name}: not resolved; build the encoder first and use its .config")
    return TokenGrid(*config.grid, prefix=config.prefix_tokens)


def audio_grid(config: AudioEncoderConfig, samples: int) -> TokenGrid:
    """The tokens of a sound of so many samples at the encoder's rate: one per hop x reduction samples, rounded up.

    Raises MediaError for a sound longer than whisper's window.
    """
    step = config.hop * config.reduction
    rows = -(-samples // step)
    if config.positions is not None and rows > config.positions:
        seconds = samples / config.sample_rate
        window = config.positions * step / config.sample_rate
        raise MediaError(f"a sound of {seconds:g} seconds is longer than whisper's {window:g}; cut it into pieces")
    return TokenGrid(rows=rows)


def video_grid(config: VideoEncoderConfig, audio: AudioEncoderConfig | None, sound_samples: int) -> TokenGrid:
    """The tokens of a clip: frames x the pooled grid, then those of its sound track (0 samples: none)."""
    rows, columns = config.grid
    sound = audio_grid(audio, sound_samples).count if audio is not None and config.sound else 0
    return TokenGrid(rows=config.frames * rows, columns=columns, suffix=sound)


def slot_count(config: AdapterConfig, tokens: TokenGrid) -> int:
    """How many features the adapter makes of an encoder's tokens: slots of the sequence that they fill."""
    return slot_grid(config, tokens).count


def slot_grid(config: AdapterConfig, tokens: TokenGrid) -> TokenGrid:
    """The shape of the features that the adapter makes of an encoder's tokens; those of a resampler have no places.

    pixel_shuffle rounds each side of the grid up (the rim is filled with zeros) and passes prefix and suffix tokens on
    one by one; a grid of one column is shuffled along its rows alone.
    """
    if config.kind == "resampler":
        return TokenGrid(config.queries)
    if config.kind == "pixel_shuffle":
        across = 1 if tokens.columns == 1 else config.factor
        rows, columns = -(-tokens.rows // config.factor), -(-tokens.columns // across)
        return TokenGrid(rows, columns, tokens.prefix, tokens.suffix)
    return tokens


def from_dict(kind: type, values: dict[str, Any], where: str = "config") -> Any:
    """A configuration dataclass from plain JSON values. Raises ConfigError for an unknown key, with the nearest one,
    and for one that is missing."""
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(hints)}"
            raise ConfigError(f"{where}.{key}: unknown; {hint}")
    for field_ in fields(kind):
        if field_.name not in values and field_.default is MISSING and field_.default_factory is MISSING:
            raise ConfigError(f"{where}.{field_.name}: missing; it has no default")
    return kind(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """JSON knows no tuples and no dataclasses: make them where the type says so."""
    if value is None:
        return None
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if isinstance(hint, type) and is_dataclass(hint) and not isinstance(value, dict):
        raise ConfigError(f"{where}: has fields of its own ({', '.join(get_type_hints(hint))}), and is not {value!r}")
    for option in options:
        if isinstance(option, type) and is_dataclass(option) and isinstance(value, dict):
            return from_dict(option, value, where)
        if get_origin(option) is tuple and isinstance(value, list):
            return tuple(value)
        if get_origin(option) is dict and is_dataclass(get_args(option)[1]) and isinstance(value, dict):
            return {key: from_dict(get_args(option)[1], entry, f"{where}.{key}") for key, entry in value.items()}
    return value
