"""How fast mmgpt trains, beside plain transformers loops of equal shapes and weights, and beside a padded loop.

    python scripts/bench_train.py                        # all parts; --help names them
    python scripts/bench_train.py --only prefix,memory --rounds 9

Random float32 weights, the same on both sides: before anything is timed, both must have the same loss. Both sides run
in turn, so that a busy machine is busy for both; printed is the median of the paired ratios, and the least and the
greatest. A step is forward, backward and fused AdamW on both sides. Same work on both sides unless the line says "less
work". Under each line are our rates, the share of the speed of a large matrix product at which our step's products run,
and the ratio of the peer's operations in products to ours: what would be won if both ran at one speed.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from bench import Bench, begin, parser, print_peak, print_peaks, seconds
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from mmgpt.batch import Batch, Example, MediaInput, collate
from mmgpt.config import AdapterConfig, GPTConfig, ImageEncoderConfig, ModelConfig, slot_count
from mmgpt.feature_cache import FeatureCache
from mmgpt.gpt import GPT, Documents
from mmgpt.model import MultimodalGPT
from mmgpt.training.memory import peak_memory

SHAPES = {  # ViT, GPT, side of the picture, rows
    "ViT-S + GPT-2": (
        {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
        {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257},
        224,
        8,
    ),
    "small": (
        {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768},
        {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 4096},
        128,
        64,
    ),
}


def caption_lengths(count: int, seed: int = 0) -> list[int]:
    """Tokens of captions, as ragged as those of Flickr8k: 12 on average, 5 to 40."""
    return np.random.default_rng(seed).gamma(6.0, 2.0, count).clip(5, 40).astype(int).tolist()


class Prefix(nn.Module):
    """transformers' ViT and GPT-2 with a linear layer between, in the way of LLaVA: pictures, then text, padded."""

    def __init__(self, vit: ViTModel, gpt: GPT2LMHeadModel):
        super().__init__()
        self.vit, self.gpt = vit, gpt
        self.project = nn.Linear(vit.config.hidden_size, gpt.config.n_embd)

    def save_pretrained(self, folder: Path) -> None:
        self.vit.save_pretrained(folder / "vit")
        self.gpt.save_pretrained(folder / "gpt")
        save_file(self.project.state_dict(), folder / "project.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        vit = ViTModel.from_pretrained(folder / "vit", add_pooling_layer=False)
        made = cls(vit, GPT2LMHeadModel.from_pretrained(folder / "gpt"))
        made.project.load_state_dict(load_file(folder / "project.safetensors"))
        return made

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        pictures = self.project(self.vit(pixels).last_hidden_state[:, 1:])
        embeds = torch.cat([pictures, self.gpt.transformer.wte(ids)], dim=1)
        seen = torch.cat([mask.new_ones(pictures.shape[:2]), mask], dim=1)
        labels = torch.cat([ids.new_full(pictures.shape[:2], -100), ids.masked_fill(mask == 0, -100)], dim=1)
        return self.gpt(inputs_embeds=embeds, attention_mask=seen, labels=labels).loss


PREPROCESSING = (
    '{{"image_processor_type": "ViTImageProcessor", "size": {{"height": {0}, "width": {0}}}, "resample": 2, '
    '"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}}'
)


class Both:
    """One set of weights on both sides, a batch of captions of pictures, and an optimizer each.

    Each side is built when it is needed.

    Args:
        shape: A name in SHAPES.
        folder: Where the weights are, or are put if there is none.
        cross: The GPT looks at pictures by cross-attention; else they stand before the text.
        frozen: The picture encoder is not trained.
        cached: What the encoder makes of the pictures is kept in a feature cache on disk (on our side).
        vocab_size: Another vocabulary.
    """

    def __init__(
        self,
        shape: str,
        folder: Path,
        cross: bool = False,
        frozen: bool = False,
        cached: bool = False,
        vocab_size: int | None = None,
    ):
        vit, gpt, self.side, self.rows = SHAPES[shape]
        self.folder, self.cross, self.frozen, self.cached = folder, cross, frozen, cached
        if not folder.exists():
            self._save(vit, {**gpt, "vocab_size": vocab_size or gpt["vocab_size"]})
        self.optimizers: dict[nn.Module, torch.optim.AdamW] = {}
        torch.manual_seed(0)
        self.pictures = torch.randint(0, 256, (self.rows, 3, self.side, self.side), dtype=torch.uint8)
        lengths = caption_lengths(self.rows)
        self.texts = [torch.randint(1, gpt["vocab_size"], (count,)).tolist() for count in lengths]
        self.ids = torch.tensor([text + [0] * (max(lengths) - len(text)) for text in self.texts])
        self.mask = torch.tensor([[1] * len(text) + [0] * (max(lengths) - len(text)) for text in self.texts])
        self.pixels = (self.pictures.float() / 255 - 0.5) / 0.5

    def _save(self, vit_sizes: dict[str, int], gpt_sizes: dict[str, int]) -> None:
        """Random weights, as transformers saves them."""
        torch.manual_seed(0)
        vit = ViTModel(ViTConfig(**vit_sizes, image_size=self.side, patch_size=16), add_pooling_layer=False)
        config = GPT2Config(**gpt_sizes)
        config.update(dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "bos_token_id", "eos_token_id"), 0))
        config.update({"is_decoder": self.cross, "add_cross_attention": self.cross})
        decoder = GPT2LMHeadModel(config)
        if self.cross:
            settings = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit.config, config)
            settings.update({"decoder_start_token_id": 0, "pad_token_id": 0})
            VisionEncoderDecoderModel(settings, encoder=vit, decoder=decoder).save_pretrained(self.folder)
        else:
            Prefix(vit, decoder).save_pretrained(self.folder)
        (self.tower / "preprocessor_config.json").write_text(PREPROCESSING.format(self.side))

    @property
    def tower(self) -> Path:
        return self.folder if self.cross else self.folder / "vit"

    @cached_property
    def theirs(self) -> nn.Module:
        return self._trained((VisionEncoderDecoderModel if self.cross else Prefix).from_pretrained(self.folder))

    @cached_property
    def ours(self) -> MultimodalGPT:
        gpt = GPT.from_pretrained(self.folder if self.cross else self.folder / "gpt")
        projection = self._projection()
        adapter = AdapterConfig("linear" if projection else "identity", positions=False)
        image = ImageEncoderConfig(weights=str(self.tower), prefix=self.cross)
        model = MultimodalGPT(ModelConfig(gpt.config, image, adapters={"image": adapter}))
        model.gpt = gpt
        model.features = FeatureCache(self.folder / "features", 1 << 30) if self.cached else None
        model.adapters["image"].get_submodule("project").load_state_dict(projection)
        return self._trained(model)

    def _projection(self) -> dict[str, Tensor]:
        """Weight and bias of the layer between encoder and GPT; with cross-attention of equal widths there is none."""
        if not self.cross:
            return load_file(self.folder / "project.safetensors")
        tensors, start = load_file(self.folder / "model.safetensors"), "enc_to_dec_proj."
        return {name.removeprefix(start): tensors[name] for name in tensors if name.startswith(start)}

    def _trained(self, model: Any) -> Any:
        """In training mode, without gradients for what is frozen."""
        for name, parameter in model.train().named_parameters():
            if self.frozen and name.startswith(("vit.", "encoder.", "encoders.")):
                parameter.requires_grad_(False)
        return model

    @cached_property
    def batch(self) -> Batch:
        """Each document is slots and a caption; what their loss predicts is supervised, and nothing else."""
        model = self.ours
        grid = model.encoders["image"].grid()
        features = slot_count(model.config.adapter("image"), grid)
        slots = 0 if self.cross else features
        examples = []
        for picture, text in zip(self.pictures, self.texts, strict=True):
            item = MediaInput("image", picture, grid, features, slots)
            item = replace(item, key=item.digest if self.cached else None)
            # With cross-attention their decoder reads a start token first, and predicts the whole text after it.
            ids = [0, *text] if self.cross else [0] * slots + text
            supervised = [False] * (1 if self.cross else slots) + [True] * len(text)
            examples.append(Example(ids, supervised, [(0, item)]))
        return collate(examples)

    def with_fewer(self) -> Self:
        """Ours shall make 49 tokens of a picture's 14 x 14, by pixel shuffle, without the class token."""
        image, cache = replace(self.ours.config.image, prefix=False), self.ours.features
        adapters = {"image": AdapterConfig("pixel_shuffle")}
        self.ours = self._trained(MultimodalGPT(ModelConfig(self.ours.config.gpt, image, adapters=adapters)))
        self.ours.features = cache
        return self

    def loss(self) -> Tensor:
        return self.ours.loss(self.batch).mean

    def their_loss(self) -> Tensor:
        if isinstance(self.theirs, Prefix):
            return self.theirs(self.pixels, self.ids, self.mask)
        labels = self.ids.masked_fill(self.mask == 0, -100)
        return self.theirs(pixel_values=self.pixels, labels=labels).loss

    def step(self) -> None:
        self.descend(self.ours, self.loss)

    def their_step(self) -> None:
        self.descend(self.theirs, self.their_loss)

    def descend(self, model: nn.Module, loss: Callable[[], Tensor]) -> None:
        """A step of a model on a loss."""
        if model not in self.optimizers:
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            self.optimizers[model] = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        descend(self.optimizers[model], loss)

    @property
    def supervised(self) -> int:
        return int(self.batch.supervised.sum())


def descend(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def compare(
    bench: Bench, what: str, ours: Callable[[], None], theirs: Callable[[], None], samples: int, supervised: int
) -> None:
    """One line of the table, of steps of each side, and one of rates."""
    mine, other = operations(ours), operations(theirs)  # which warms both up
    step = bench.line(what, lambda: seconds(ours), lambda: seconds(theirs))
    print(
        f"{'':20} {samples / step:.1f} samples/s, {supervised / step:.0f} supervised tokens/s, "
        f"{mine / step / gemm_peak():.0%} of the peak, {other / mine:.2f} times our operations",
        flush=True,
    )


def steps(bench: Bench, what: str, both: Both) -> None:
    """As compare; the losses of both sides must be equal."""
    with torch.no_grad():
        mine, other = float(both.loss()), float(both.their_loss())
    if abs(mine - other) > 1e-4 * other:
        raise SystemExit(f"{what}: the losses differ, {mine} and {other}")
    compare(bench, what, both.step, both.their_step, both.rows, both.supervised)


def operations(work: Callable[[], None]) -> int:
    """Floating-point operations in matrix products and convolutions of a step; those of attention are left out."""
    unknown = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}  # of shapes
    with FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        work()
    return counter.get_total_flops()


def gemm_peak() -> float:
    """Floating-point operations a second of a large matrix product, with as many threads as there are."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / min(seconds(lambda: a @ b) for _ in range(9))


def part_prefix(bench: Bench) -> None:
    for shape in SHAPES:
        both = Both(shape, bench.folder / f"prefix {shape}")
        steps(bench, f"{shape}, {both.rows} pictures before their captions", both)


def part_cross(bench: Bench) -> None:
    for shape in SHAPES:
        both = Both(shape, bench.folder / f"cross {shape}", cross=True)
        steps(bench, f"{shape}, {both.rows} pictures by cross-attention (VisionEncoderDecoder)", both)


def part_few(bench: Bench) -> None:
    """A quarter of the tokens, by pixel shuffle, against VisionEncoderDecoder with all of them."""
    shape = "ViT-S + GPT-2"
    theirs = Both(shape, bench.folder / f"cross {shape}", cross=True)
    for cross in (False, True):
        ours = Both(shape, bench.folder / f"{'cross' if cross else 'prefix'} {shape}", cross=cross).with_fewer()
        how = "by cross-attention" if cross else "before the text"
        what = f"{shape}, 49 tokens a picture {how} against 197 by cross-attention (less work)"
        compare(bench, what, ours.step, theirs.their_step, ours.rows, ours.supervised)


def part_align(bench: Bench) -> None:
    """The encoder is frozen; from the second epoch on, which is timed, its tokens come from the cache's files."""
    shape = "ViT-S + GPT-2"
    for frozen_gpt in (True, False):
        both = Both(shape, bench.folder / f"prefix {shape}", frozen=True, cached=True)
        if frozen_gpt:
            both.ours.gpt.requires_grad_(False)
            both.theirs.gpt.requires_grad_(False)
        what = "adapter" if frozen_gpt else "adapter and GPT"
        steps(bench, f"{shape}, {what} trained, features from the cache (less work)", both)
        if not frozen_gpt:
            alone = partial(both.ours.loss, replace(both.batch, media={}))
            compare(
                bench,
                "the same against its GPT alone on as many tokens, both mmgpt",
                both.step,
                lambda both=both, alone=alone: both.descend(both.ours, lambda: alone().mean),
                both.rows,
                both.supervised,
            )
        fewer = Both(shape, bench.folder / f"prefix {shape}", frozen=True, cached=True).with_fewer()
        fewer.ours.gpt.requires_grad_(not frozen_gpt)
        compare(
            bench,
            f"{shape}, {what} trained, 49 tokens a picture from the cache against 196 (less work)",
            fewer.step,
            both.their_step,
            both.rows,
            both.supervised,
        )


def part_packed(bench: Bench) -> None:
    """A GPT alone on texts: laid end to end, and padded to the longest of the batch."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=8192, width=384, layers=6, heads=6, context=1024)).train()
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-4, fused=True)
    raggedness = {
        "equal lengths (40)": [40] * 64,
        "lengths of captions (5 to 40)": caption_lengths(64),
        "lengths of conversations (8 to 512)": np.random.default_rng(0)
        .lognormal(4.0, 0.9, 32)
        .clip(8, 512)
        .astype(int)
        .tolist(),
    }
    for what, lengths in raggedness.items():
        texts = [torch.randint(0, 8192, (length,)) for length in lengths]
        flat, targets = torch.cat(texts), torch.cat([F.pad(text[1:], (0, 1), value=-1) for text in texts])
        padded = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        labels = nn.utils.rnn.pad_sequence([F.pad(text[1:], (0, 1), value=-1) for text in texts], True, -1)

        def packed(flat=flat, targets=targets, lengths=lengths) -> Tensor:
            hidden = gpt.transform(gpt.embed(flat), Documents(lengths))
            return gpt.loss(hidden[targets >= 0], targets[targets >= 0])[0]

        def pads(padded=padded, labels=labels) -> Tensor:
            hidden = gpt.transform(gpt.embed(padded.flatten()), Documents([padded.shape[1]] * len(padded)))
            return F.cross_entropy(gpt.head(hidden), labels.flatten(), ignore_index=-1, reduction="sum")

        def step(loss: Callable[[], Tensor], tokens: int = sum(lengths)) -> None:
            descend(optimizer, lambda: loss() / tokens)

        with torch.no_grad():
            assert abs(packed() - pads()) < 1e-4 * pads()
        compare(
            bench,
            f"packed against padded, {what}",
            lambda p=packed: step(p),
            lambda p=pads: step(p),
            len(lengths),
            sum(lengths),
        )


def part_compile(bench: Bench) -> None:
    """What torch.compile would win at best: a GPT alone, on texts of one length, so that nothing is compiled twice."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=8192, width=384, layers=6, heads=6, context=1024)).train()
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-4, fused=True)
    ids, lengths = torch.randint(0, 8192, (4096,)), [256] * 16

    def loss() -> Tensor:
        return gpt.loss(gpt.transform(gpt.embed(ids), Documents(lengths))[:-1], ids[1:])[0] / len(ids)

    with_it, without = (partial(descend, optimizer, one) for one in (torch.compile(loss), loss))
    print(f"torch.compile: {seconds(with_it):.0f} s for the first step", flush=True)
    compare(bench, "torch.compile against without, both mmgpt", with_it, without, 16, 4095)


def part_growth(bench: Bench) -> None:
    """Cost of our step as the vocabulary and the documents grow."""
    torch.manual_seed(0)
    for vocabulary, length in ((8192, 256), (32768, 256), (131072, 256), (8192, 1024), (8192, 4096)):
        gpt = GPT(GPTConfig(vocab_size=vocabulary, width=384, layers=6, heads=6, context=4096)).train()
        ids = torch.randint(0, vocabulary, (4096,))
        lengths = [length] * (4096 // length)

        def step(gpt=gpt, ids=ids, lengths=lengths) -> None:
            hidden = gpt.transform(gpt.embed(ids), Documents(lengths))
            gpt.loss(hidden[:-1:8], ids[1::8])[0].backward()
            gpt.zero_grad()

        step()
        times = sorted(seconds(step) for _ in range(max(3, bench.rounds // 2)))
        what = f"4,096 tokens, an eighth supervised, vocabulary {vocabulary:,}, documents of {length:,}"
        print(f"{what:85} {times[len(times) // 2] * 1e3:8.1f} ms", flush=True)


def part_memory(bench: Bench) -> None:
    shape = "ViT-S + GPT-2"
    for vocabulary in (50257, 250_000):
        folder = bench.folder / f"vocabulary {vocabulary}"
        Both(shape, folder, vocab_size=vocabulary)
        what = f"{shape}, pictures before captions, vocabulary {vocabulary:,}"
        print_peaks(what, folder)
        print_peaks(f"{what}, activations computed again", folder, "--checkpointing")


def child(side: str, folder: Path, checkpointing: bool) -> None:
    begun, both = peak_memory(), Both("ViT-S + GPT-2", folder)
    if checkpointing and side == "ours":
        both.ours.checkpoint_activations()
    elif checkpointing:
        both.theirs.vit.gradient_checkpointing_enable()
        both.theirs.gpt.gradient_checkpointing_enable()
    for _ in range(2):
        both.step() if side == "ours" else both.their_step()
    print_peak(begun)


PARTS = {name.removeprefix("part_"): part for name, part in list(globals().items()) if name.startswith("part_")}


def main() -> None:
    arguments = parser(__doc__, PARTS)
    arguments.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)  # of the child's sides
    args = arguments.parse_args()
    begin(args)
    if args.child:
        side, folder = args.child
        return child(side, Path(folder), args.checkpointing)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only.split(","):
            PARTS[name](Bench(args.rounds, Path(folder)))
    return None


if __name__ == "__main__":
    main()
