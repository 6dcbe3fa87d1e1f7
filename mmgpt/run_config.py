"""The typed configuration of a training run, free of torch: what it learns from, how, and where it leaves what."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mmgpt.config import LossPer, ModelConfig

Precision: TypeAlias = Literal["auto", "32-true", "bf16-mixed"]
Logger: TypeAlias = Literal["tensorboard", "wandb"]
FileFormat: TypeAlias = Literal[
    "captions",
    "coco",
    "vqa",
    "sounds",
    "speech",
    "folders",
    "chat",
    "llava",
    "texts",
    "parquet",
    "webdataset",
    "hf",
]


@dataclass
class SourceConfig:
    """One data set of a mixture.

    Args:
        format: As data.format, but world, mix and hf_stream.
        path: The folder or file.
        weight: Its share of the training samples, beside the other weights; each is kept to a thousandth of them all.
        split: Which part to train on, where the data set names its splits.
        val_split: Which part to validate on.
    """

    format: FileFormat
    path: str
    weight: float = 1.0
    split: str = "train"
    val_split: str = "dev"


@dataclass
class DataConfig:
    """Where samples come from.

    Args:
        format: world (the built-in demo world), captions (folder of pictures + captions file; Flickr8k's layout too),
            coco (captions JSON), vqa (VQA v2's JSON), sounds (folder of sounds + transcripts or labels), speech
            (LibriSpeech, or a manifest in JSON lines), folders (named by the classes of what is in them), chat (JSONL
            of conversations, or of documents of texts and media), llava (conversations as LLaVA and ShareGPT write
            them), texts (plain text, or tables of prompts and answers), parquet (as on the Hugging Face Hub),
            webdataset (tar shards), hf (save_to_disk of the library datasets), mix (several of these) or hf_stream
            (whatever that library streams, of unknown length: set steps).
        path: The folder or file, or of hf_stream a Hub id; not needed for world and mix.
        split: Which part to train on, where the data set names its splits.
        val_split: Which part to validate on; where none is named, one sample in ten, of plain text the last tenth.
        mix: The data sets of a mixture by names of your own (mix only).
        text_length: Most bytes of a document that plain text is cut into (texts only).
        world: small or hard (world only).
        vocab_size: Size of the tokenizer that is trained on the texts, where none is given.
        tokenizer: A directory with tokenizer.json; None takes that of model.gpt.weights, or trains one on the texts.
        samples: Number of training samples made by world, per epoch.
        val_samples: Most validation samples looked at.
        workers: Processes that decode media for each one that trains; how many does not change what is learned. None
            is up to 8 where there are GPUs, as cores allow, and 0 on a CPU, whose cores the model needs. For
            `mmgpt data check` it is up to 8, too.
    """

    format: FileFormat | Literal["world", "mix", "hf_stream"] = "world"
    path: str | None = None
    split: str = "train"
    val_split: str = "dev"
    mix: dict[str, SourceConfig] = field(default_factory=dict)
    text_length: int = 2000
    world: Literal["small", "hard"] = "small"
    vocab_size: int = 4096
    tokenizer: str | None = None
    samples: int = 50_000
    val_samples: int = 500
    workers: int | None = None


@dataclass
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019), or Muon with it, under linear warm-up and cosine decay.

    Args:
        learning_rate: Peak learning rate of AdamW.
        muon: Peak learning rate of Muon (Jordan et al. 2024), which then steps the weight matrices; None leaves them
            to AdamW. Good values are a few times AdamW's.
        scales: Factors on the learning rate of what patterns like those of `train` name (encoders: 2.0); of several the
            last counts.
        warmup: Steps, or the share of all steps if below 1, of linear warm-up.
        final: Learning rate at the end, as a share of the peak.
        weight_decay: On matrices alone; norms, biases and embeddings get none.
        betas: Of AdamW.
        clip: Largest norm of the gradient.
    """

    learning_rate: float = 1e-3
    muon: float | None = None
    scales: dict[str, float] = field(default_factory=dict)
    warmup: float = 0.05
    final: float = 0.05
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0


@dataclass
class LoraConfig:
    """Low-rank adaptation of linear layers (Hu et al. 2021): they are frozen, and a product of two thin matrices beside
    each is trained, which is added to its weight when the model is saved.

    Args:
        rank: Inner width of the product.
        alpha: The product counts alpha / rank times.
        dropout: On what goes into it.
        targets: The layers, by patterns as those of `train`; the default is attention and MLP of the GPT's blocks, but
            not their cross-attention.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["gpt.*[0-9].attention", "gpt.*[0-9].mlp"])


@dataclass
class RewardConfig:
    """Learn from how well the model's own answers score, instead of from the answers given: self-critical sequence
    training (Rennie et al. 2017). Some are drawn to each prompt, and those that score above the mean of the others are
    made likelier, the rest less likely. It goes on from a model that answers already (`init`), at a lower rate.

    Dropout and CTC are off, of a conversation the last answer alone is learned, and the best checkpoint is that of the
    highest reward of greedy answers to the validation samples.

    Args:
        metric: What is to be raised, held against the answers that a batch gives to a prompt: cider (CIDEr-D, with the
            frequencies of the training samples), chrf, exact_match, f1 (of words), or wer (1 minus the word error
            rate).
        samples: Answers drawn to each prompt: so many documents a batch then holds of it, however many are given.
        max_new_tokens: Most tokens of each.
    """

    metric: Literal["cider", "chrf", "exact_match", "f1", "wer"] = "cider"
    samples: int = 5
    max_new_tokens: int = 48


@dataclass
class AugmentConfig:
    """Random changes of media in training, drawn anew for each sample in each epoch.

    Those of pictures are of clips too, the same for all frames of one.

    Args:
        crop: Least share of each side of a picture that is kept; 1 keeps it whole.
        mirror: Mirror pictures, by chance half of them; not where left and right are asked for, or text is to be read.
        randaugment: Operations that each picture goes through (RandAugment, Cubuk et al. 2020): shifts, turns, changes
            of colour and sharpness. 0 for none.
        magnitude: Their strength, 0 to 30.
        spec: Mask bands and stretches of spectrograms (SpecAugment, Park et al. 2019).
        frames: Hide stretches of a clip's frames (time masking, Ma et al. 2022).
        hide: Share of the clips with sound whose frames are hidden (modality dropout, Shi et al. 2022).
    """

    crop: float = 1.0
    mirror: bool = False
    randaugment: int = 0
    magnitude: int = 9
    spec: bool = False
    frames: bool = False
    hide: float = 0.0

    @property
    def pictures(self) -> bool:
        """Whether pictures are changed."""
        return self.crop < 1 or self.mirror or self.randaugment > 0


@dataclass
class TrainConfig:
    """One training run, complete: saved with the checkpoint, it is enough to run it again.

    Args:
        out: Directory of the run: checkpoints, log, samples, report.
        init: A model of ours to begin with: a checkpoint, a run or a Hub id. Its configuration and tokenizer are those
            of the run, so that `model` must be left out, and which of its encoders were frozen is forgotten. Two things
            may be given: encoders that it lacks, with their adapters, which are new; and the weights of its losses:
            where model.pair.weight or model.pair.caption is given, both are set anew, and where model.ctc is, a model
            that had none has it.
        model: The model, if it is a new one.
        data: The data.
        optimizer: The optimizer and its schedule.
        batch_size: Samples to a batch, in each process; None where batch_tokens is set.
        batch_tokens: Where it is set, instead of batch_size: most tokens to a batch, in each process, those of the
            encoders counted too. Batches are packed full, so that all cost about the same.
        accumulate: Batches to a step of the optimizer.
        loss_per: What counts alike in the loss: each supervised token, or each document, however long its answer.
        label_smoothing: Share of each target's probability that is spread evenly over the vocabulary (Szegedy et al.
            2016), often 0.1; the validation loss is without it.
        ema: Validate and save moving averages of the weights (Polyak and Juditsky 1992) that keep this share of
            themselves in each step, often 0.999; None takes the weights as they are.
        epochs: Times through the data.
        steps: Instead of epochs: steps of the optimizer, through the data as often as it takes.
        seed: Of weights, order and made data.
        precision: auto is bf16-mixed on GPUs and CPUs (with AMX) that are quicker in it, else 32-true.
        checkpoint_activations: Hold only the inputs of blocks for the backward pass and compute the rest again there:
            less memory, a fifth more time. Of the GPT, and of timm backbones that can.
        val_every: Validate, and keep the best checkpoint, each so many steps; 0 means after each epoch.
        save_every: Keep the state of the run, to resume from, each so many steps.
        keep: How many states to keep.
        devices: Processes on this machine, each with a GPU of its own where there are any (DDP); torchrun, which starts
            them itself, also on many machines, decides it instead.
        sharded: Divide weights, gradients and optimizer among the processes (FSDP2), for models that do not fit one.
        resume: Go on from the state of this run in `out`, if there is one.
        augment: Random changes of pictures and sounds.
        loggers: Besides metrics.csv: tensorboard, wandb (extras of these names).
        train: What is trained, all else being frozen: names of modules or parameters, where * stands for anything
            (adapters, gpt.transformer, encoders.image, *.gated, ...). Encoders that are `frozen` stay so.
        lora: Train thin matrices beside layers instead of the layers, and what else `train` names.
        reward: Learn from how well the model's own answers score.
        beams: Width of the beam search when the finished run is evaluated; 1 means greedy decoding.
        cache: A folder in which the tokens of frozen encoders are kept, so that from the second epoch on media are
            neither decoded nor encoded; runs may share it. None, or off, keeps nothing.
        cache_gb: Most that the folder may hold, in GB; what was not used for longest goes first.
    """

    out: str = "runs/train"
    init: str | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_size: int | None = 64
    batch_tokens: int | None = None
    accumulate: int = 1
    loss_per: LossPer = "token"
    label_smoothing: float = 0.0
    ema: float | None = None
    epochs: int = 1
    steps: int | None = None
    seed: int = 0
    precision: Precision = "auto"
    checkpoint_activations: bool = False
    val_every: int = 0
    save_every: int = 1000
    keep: int = 2
    devices: int = 1
    sharded: bool = False
    resume: bool = False
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loggers: list[Logger] = field(default_factory=list)
    train: list[str] = field(default_factory=lambda: ["*"])
    lora: LoraConfig | None = None
    reward: RewardConfig | None = None
    beams: int = 1
    cache: Literal[False] | str | None = None  # off is False in YAML
    cache_gb: float = 20.0

    def __post_init__(self) -> None:
        if self.batch_tokens is not None:
            self.batch_size = None
