"""How fast mmgpt trains, beside plain transformers loops of equal shapes and weights, and beside a padded loop.

    python scripts/bench_train.py                        # all parts; --help names them
    python scripts/bench_train.py --only prefix,memory --rounds 9

Random weights, the same on both sides: before anything is timed, both must have the same loss. Both sides run in turn,
so that a busy machine is busy for both; printed is the median of the paired ratios, and the least and the greatest. A
step is forward, backward and fused AdamW on both sides. Same work on both sides unless the line says "less work".
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from mmgpt.batch import Batch, Example, MediaInput, collate
from mmgpt.config import AdapterConfig, GPTConfig, ImageEncoderConfig, ModelConfig
from mmgpt.gpt import GPT, Documents
from mmgpt.model import MultimodalGPT

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

    Args:
        shape: A name in SHAPES.
        cross: The GPT looks at pictures by cross-attention; else they stand before the text.
        frozen: The picture encoder is not trained.
        cached: What the encoder makes of the pictures is given (on our side).
        vocab_size: Another vocabulary.
    """

    def __init__(
        self, shape: str, cross: bool = False, frozen: bool = False, cached: bool = False, vocab_size: int | None = None
    ):
        vit_sizes, gpt_sizes, side, rows = SHAPES[shape]
        self.cross, self.rows = cross, rows
        torch.manual_seed(0)
        vit = ViTModel(ViTConfig(**vit_sizes, image_size=side, patch_size=16), add_pooling_layer=False)
        config = GPT2Config(**{**gpt_sizes, **({"vocab_size": vocab_size} if vocab_size else {})})
        config.update(dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "bos_token_id", "eos_token_id"), 0))
        config.update({"is_decoder": cross, "add_cross_attention": cross})
        decoder = GPT2LMHeadModel(config)
        if cross:
            settings = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit.config, config)
            settings.update({"decoder_start_token_id": 0, "pad_token_id": 0})
            self.theirs: nn.Module = VisionEncoderDecoderModel(settings, encoder=vit, decoder=decoder)
        else:
            self.theirs = Prefix(vit, decoder)
        with tempfile.TemporaryDirectory() as folder:
            self.ours = self._same(Path(folder), side)
        for model in (self.theirs, self.ours):
            model.train()
            for name, parameter in model.named_parameters():
                if frozen and name.startswith(("vit.", "encoder.", "encoders.")):
                    parameter.requires_grad_(False)
        self.optimizers = {
            model: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
            for model in (self.ours, self.theirs)
        }
        pixels = torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8)
        texts = [torch.randint(1, config.vocab_size, (count,)).tolist() for count in caption_lengths(rows)]
        self.batch = self._batch(pixels, texts, cached)
        longest = max(map(len, texts))
        self.ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        self.mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        self.pixels = (pixels.float() / 255 - 0.5) / 0.5

    def _same(self, folder: Path, side: int) -> MultimodalGPT:
        """Our model with their weights."""
        theirs = self.theirs
        if isinstance(theirs, Prefix):
            theirs.vit.save_pretrained(folder / "vit")
            theirs.gpt.save_pretrained(folder / "gpt")
            tower, decoder, projection = folder / "vit", folder / "gpt", theirs.project
        else:
            theirs.save_pretrained(folder)
            tower = decoder = folder
            projection = getattr(theirs, "enc_to_dec_proj", None)
        (tower / "preprocessor_config.json").write_text(PREPROCESSING.format(side))
        gpt = GPT.from_pretrained(decoder)
        adapter = AdapterConfig("linear" if projection is not None else "identity", positions=False)
        image = ImageEncoderConfig(weights=str(tower), prefix=self.cross)
        model = MultimodalGPT(ModelConfig(gpt.config, image, adapters={"image": adapter}))
        model.gpt = gpt
        if projection is not None:
            model.adapters["image"].get_submodule("project").load_state_dict(projection.state_dict())
        return model

    def _batch(self, pixels: Tensor, texts: list[list[int]], cached: bool) -> Batch:
        """Each document is slots and a caption; what their loss predicts is supervised, and nothing else."""
        encoder = self.ours.encoders["image"]
        grid = encoder.grid()
        slots = 0 if self.cross else grid.count
        examples = []
        for picture, text in zip(pixels, texts, strict=True):
            data = encoder(picture[None])[0][0].detach() if cached else picture
            item = MediaInput("image", data, grid, grid.count, slots, encoded=cached)
            # With cross-attention their decoder reads a start token first, and predicts the whole text after it.
            ids = [0, *text] if self.cross else [0] * slots + text
            supervised = [False] * (1 if self.cross else slots) + [True] * len(text)
            examples.append(Example(ids, supervised, [(0, item)]))
        return collate(examples)

    def loss(self) -> Tensor:
        return self.ours.loss(self.batch).mean

    def their_loss(self) -> Tensor:
        if isinstance(self.theirs, Prefix):
            return self.theirs(self.pixels, self.ids, self.mask)
        labels = self.ids.masked_fill(self.mask == 0, -100)
        return self.theirs(pixel_values=self.pixels, labels=labels).loss

    def step(self) -> None:
        self._step(self.ours, self.loss)

    def their_step(self) -> None:
        self._step(self.theirs, self.their_loss)

    def _step(self, model: nn.Module, loss: Callable[[], Tensor]) -> None:
        optimizer = self.optimizers[model]
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    @property
    def supervised(self) -> int:
        return int(self.batch.supervised.sum())


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Bench:
    def __init__(self, rounds: int):
        self.rounds = rounds

    def compare(self, what: str, ours: Callable[[], object], theirs: Callable[[], object], tokens: int = 0) -> float:
        """One line of the table. Returns our median time."""
        ours(), theirs()  # warm both up
        pairs = [(seconds(ours), seconds(theirs)) for _ in range(self.rounds)]
        ratios = sorted(other / mine for mine, other in pairs)
        mine, other = (statistics.median(side) for side in zip(*pairs, strict=True))
        rates = f"  {tokens / mine:7.0f} {tokens / other:7.0f} supervised tokens/s" if tokens else ""
        print(
            f"{what:66} {statistics.median(ratios):5.2f} [{ratios[0]:.2f}-{ratios[-1]:.2f}]"
            f"  {mine * 1e3:8.1f} {other * 1e3:8.1f} ms{rates}",
            flush=True,
        )
        return mine

    def steps(self, what: str, both: Both) -> float:
        """Steps of both sides, whose losses must be equal."""
        with torch.no_grad():
            mine, other = float(both.loss()), float(both.their_loss())
        if abs(mine - other) > 1e-4 * other:
            raise SystemExit(f"{what}: the losses differ, {mine} and {other}")
        return self.compare(what, both.step, both.their_step, both.supervised)


def gemm_peak() -> float:
    """Floating-point operations a second of a large matrix product, with as many threads as there are."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / min(seconds(lambda: a @ b) for _ in range(9))


def utilisation(both: Both, step: float) -> float:
    """Share of the peak that the matrix products of a step need: 6 operations a weight and token it is applied to."""
    ours = both.ours
    encoder = sum(p.numel() for p in ours.encoders.parameters() if p.ndim == 2)
    blocks = sum(p.numel() for p in ours.gpt.transformer.parameters() if p.ndim == 2)
    head = ours.gpt.embedding.weight.numel()
    pictures = both.rows * (ours.encoders["image"].grid().count + 1)
    return 6 * (encoder * pictures + blocks * len(both.batch.ids) + head * both.supervised) / step / gemm_peak()


def part_prefix(bench: Bench) -> None:
    for shape in SHAPES:
        both = Both(shape)
        step = bench.steps(f"{shape}, {both.rows} pictures before their captions", both)
        print(f"{'':66} {utilisation(both, step):5.0%} of the peak of matrix products")


def part_cross(bench: Bench) -> None:
    for shape in SHAPES:
        both = Both(shape, cross=True)
        bench.steps(f"{shape}, {both.rows} pictures by cross-attention (VisionEncoderDecoder)", both)


def part_few(bench: Bench) -> None:
    """A quarter of the tokens, by pixel shuffle, against VisionEncoderDecoder with all of them."""
    theirs = Both("ViT-S + GPT-2", cross=True)
    ours = Both("ViT-S + GPT-2")
    config = ours.ours.config
    small = MultimodalGPT(ModelConfig(config.gpt, config.image, adapters={"image": AdapterConfig("pixel_shuffle")}))
    grid = ours.ours.encoders["image"].grid()
    slots = grid.count // 4
    examples = []
    for item, text in zip(ours.batch.media["image"].inputs, ours.ids, strict=True):
        medium = MediaInput("image", item.data, grid, slots, slots)
        words = text[text > 0].tolist()
        examples.append(Example([0] * slots + words, [False] * slots + [True] * len(words), [(0, medium)]))
    ours.ours, ours.batch = small.train(), collate(examples)
    ours.optimizers[small] = torch.optim.AdamW(small.parameters(), lr=1e-4, fused=True)
    bench.compare(
        "ViT-S + GPT-2, 49 tokens a picture against 197 by cross-attention (less work)", ours.step, theirs.their_step
    )


def part_align(bench: Bench) -> None:
    """The adapter alone is trained; from the second epoch on our encoder's tokens come from the cache."""
    for frozen_gpt in (True, False):
        both = Both("ViT-S + GPT-2", frozen=True, cached=True)
        for model, start in ((both.ours, "gpt."), (both.theirs, "gpt.")):
            for name, parameter in model.named_parameters():
                if frozen_gpt and name.startswith(start):
                    parameter.requires_grad_(False)
        what = "adapter" if frozen_gpt else "adapter and GPT"
        bench.steps(f"ViT-S + GPT-2, {what} trained, features from the cache (less work)", both)


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
            optimizer.zero_grad()
            (loss() / tokens).backward()
            optimizer.step()

        with torch.no_grad():
            assert abs(packed() - pads()) < 1e-4 * pads()
        bench.compare(f"packed against padded, {what}", lambda p=packed: step(p), lambda p=pads: step(p), sum(lengths))


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
    """Peak memory of a process of its own for each side."""
    for what, arguments in (("", []), (", vocabulary 250,000", ["--vocabulary", "250000"])):
        for side in ("ours", "theirs"):
            command = [sys.executable, __file__, "--child", side, "--threads", str(torch.get_num_threads()), *arguments]
            out = subprocess.run(command, capture_output=True, text=True)
            found = out.stdout.strip() or out.stderr[-300:]
            print(f"peak memory, ViT-S + GPT-2, pictures before captions{what}, {side:8} {found}", flush=True)


def child(side: str, vocabulary: int | None) -> None:
    both = Both("ViT-S + GPT-2", vocab_size=vocabulary)
    step, other = (both.step, both.theirs) if side == "ours" else (both.their_step, both.ours)
    both.optimizers.pop(other)
    del other
    if side == "ours":
        del both.theirs
    else:
        del both.ours
    for _ in range(2):
        step()
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


PARTS = {name.removeprefix("part_"): part for name, part in list(globals().items()) if name.startswith("part_")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--vocabulary", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.child:
        return child(args.child, args.vocabulary)
    print(
        f"{platform.machine()}, {args.threads} threads, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}; float32; ratios above 1: mmgpt is faster; then mmgpt, peer"
    )
    bench = Bench(args.rounds)
    for name in args.only.split(","):
        PARTS[name](bench)
    return None


if __name__ == "__main__":
    main()
