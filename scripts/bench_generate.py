"""How fast mmgpt decodes, beside transformers and beside what the machine's memory allows.

    python scripts/bench_generate.py                        # all parts; --help names them
    python scripts/bench_generate.py --only batch,beam --rounds 9

Random weights at real sizes (GPT-2 124M, and ViT-B/16 with it), the same on both sides: before anything is timed, both
must give the same tokens. Both sides run in turn, so that a busy machine is busy for both; printed is the median of the
paired ratios, and the least and the greatest. Same work on both sides unless the line says "less work".
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
from transformers import GPT2Config, GPT2LMHeadModel

from mmgpt.batch import Example, MediaInput
from mmgpt.config import AdapterConfig, ImageEncoderConfig, ModelConfig, TokenGrid
from mmgpt.generation import Decoding, Engine
from mmgpt.gpt import GPT
from mmgpt.gpt.quantize import quantize_int8
from mmgpt.model import MultimodalGPT
from mmgpt.tokenizer import Tokenizer

VOCABULARY = 50257
CONTEXT = 4608  # room for prompts of 4096


def texts(rows: int, tokens: int, seed: int = 0) -> list[list[int]]:
    return torch.randint(300, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed)).tolist()


class Peer:
    """transformers, greedy or by beams, in its static batches; and the same weights in mmgpt's engine."""

    def __init__(self, folder: Path, vision: bool = False):
        torch.manual_seed(0)
        config = GPT2Config(n_positions=CONTEXT, bos_token_id=0, eos_token_id=0)
        self.theirs = GPT2LMHeadModel(config).eval()
        self.theirs.save_pretrained(folder)
        self.tokenizer = Tokenizer.train(["a b c"], 300)
        self.tokenizer.end = -1  # nothing ends an answer: all have the same length
        gpt = GPT.from_pretrained(folder)
        image = ImageEncoderConfig("vit_base_patch16_224") if vision else None
        adapters = {"image": AdapterConfig("linear")} if vision else {}
        self.model = MultimodalGPT(ModelConfig(gpt=gpt.config, image=image, adapters=adapters)).eval()
        self.model.gpt = gpt.lay_out_for_decoding()

    def engine(self, **settings) -> Engine:
        return Engine(self.model, self.tokenizer, **{"cache_bytes": 8 << 30, "store_bytes": 0, **settings})

    def ours(self, engine: Engine, prompts: list[list[int]], **decoding) -> list[list[int]]:
        examples = [Example(ids, [False] * len(ids), []) for ids in prompts]
        return [answers[0].tokens for answers in engine.run(examples, Decoding(**decoding))]

    def theirs_of(self, prompts: list[list[int]], new: int, **settings) -> list[list[int]]:
        """One static batch, left-padded as transformers wants it."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        return self.generate({"input_ids": ids}, mask, new, **settings)[:, longest:].tolist()

    @torch.inference_mode()
    def generate(self, inputs: dict[str, torch.Tensor], mask: torch.Tensor, new: int, **settings) -> torch.Tensor:
        return self.theirs.generate(
            **inputs,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            **settings,
        )  # pyright: ignore


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Bench:
    def __init__(self, rounds: int):
        self.rounds = rounds

    def compare(self, what: str, ours: Callable[[], object], theirs: Callable[[], object], per: int, same: bool = True):
        """One line of the table; `per` tokens are made by each side."""
        first, second = ours(), theirs()  # also warms both up
        equal = "" if first == second else "  TOKENS DIFFER"
        if same and first != second:
            agree = np.mean([a == b for a, b in zip(np.ravel(first), np.ravel(second), strict=True)])
            equal = f"  TOKENS DIFFER ({agree:.1%} equal)"
        pairs = [(seconds(ours), seconds(theirs)) for _ in range(self.rounds)]
        ratios = sorted(theirs / ours for ours, theirs in pairs)
        mine, other = (statistics.median(side) / per * 1e3 for side in zip(*pairs, strict=True))
        print(
            f"{what:58} {statistics.median(ratios):5.2f} [{ratios[0]:.2f}-{ratios[-1]:.2f}]"
            f"  {mine:8.2f} {other:8.2f} ms/token{equal if same else ''}",
            flush=True,
        )
        return mine


def bandwidth() -> float:
    """Bytes a second that this process reads from memory, with as many threads as it has."""
    block = torch.ones(1 << 28)  # 1 GiB
    return max(block.numel() * 4 / seconds(block.sum) for _ in range(5))


def part_batch(bench: Bench, peer: Peer, new: int) -> None:
    read = bandwidth()
    weights = sum(p.numel() * 4 for n, p in peer.model.gpt.named_parameters() if "position" not in n)
    for rows in (1, 8, 32):
        prompts, engine = texts(rows, 64), peer.engine()
        mine = bench.compare(
            f"batch {rows}, prompt 64, fp32",
            lambda engine=engine, prompts=prompts: peer.ours(engine, prompts, max_new_tokens=new),
            lambda prompts=prompts: peer.theirs_of(prompts, new),
            new,
        )
        if rows == 1:
            share = weights / read * 1e3 / mine
            print(f"{'':58} {share:5.0%} of the roofline ({weights / 1e6:.0f} MB a token at {read / 1e9:.1f} GB/s)")


def part_prompt(bench: Bench, peer: Peer, new: int) -> None:
    """Decoding alone: prompts are taken off by a run that makes one token."""
    for tokens in (512, 2048, 4096):
        prompts = texts(1, tokens)
        engine = peer.engine(store_bytes=4 << 30)
        peer.ours(engine, prompts, max_new_tokens=1)

        def theirs(prompts=prompts) -> float:
            whole, first = (seconds(lambda n=n: peer.theirs_of(prompts, n)) for n in (new + 1, 1))
            return whole - first

        def ours(engine=engine, prompts=prompts) -> float:
            whole, first = (seconds(lambda n=n: peer.ours(engine, prompts, max_new_tokens=n)) for n in (new + 1, 1))
            return whole - first

        pairs = [(ours(), theirs()) for _ in range(bench.rounds)]
        ratios = sorted(b / a for a, b in pairs)
        mine, other = (statistics.median(side) / new * 1e3 for side in zip(*pairs, strict=True))
        print(
            f"{f'batch 1, decoding at context {tokens}, fp32':58} {statistics.median(ratios):5.2f} "
            f"[{ratios[0]:.2f}-{ratios[-1]:.2f}]  {mine:8.2f} {other:8.2f} ms/token",
            flush=True,
        )


def part_beam(bench: Bench, peer: Peer, new: int) -> None:
    prompts, engine = texts(1, 64), peer.engine()
    bench.compare(
        "beam 4, prompt 64, fp32",
        lambda: peer.ours(engine, prompts, max_new_tokens=new, beams=4),
        lambda: peer.theirs_of(prompts, new, num_beams=4, early_stopping="never"),
        new,
    )


def part_ragged(bench: Bench, peer: Peer, new: int) -> None:
    """32 requests of 8 to 256 tokens, answers of a quarter to all of `new`; static batches run to their longest."""
    lengths = np.random.default_rng(0).integers(8, 257, 32)
    news = np.random.default_rng(1).integers(new // 4, new + 1, 32)
    prompts = [texts(1, int(length), i)[0] for i, length in enumerate(lengths)]
    examples = [Example(ids, [False] * len(ids), []) for ids in prompts]

    def ours(engine: Engine) -> list[list[int]]:
        requests = [engine.submit(e, Decoding(max_new_tokens=int(n))) for e, n in zip(examples, news, strict=True)]
        while not all(request.done for request in requests):
            engine.step()
        return [request.answers[0].tokens for request in requests]

    def theirs() -> list[list[int]]:
        out: list[list[int]] = []
        for start in range(0, 32, 8):
            longest = int(news[start : start + 8].max())
            rows = peer.theirs_of(prompts[start : start + 8], longest)
            out += [row[:n] for row, n in zip(rows, news[start : start + 8], strict=True)]
        return out

    for rows in (8, 32):
        engine = peer.engine(rows=rows)
        bench.compare(
            f"32 ragged requests, {rows} rows, fp32", lambda engine=engine: ours(engine), theirs, int(sum(news))
        )


def part_questions(bench: Bench, peer: Peer, new: int) -> None:
    """Ten questions about one picture: the peer encodes and prefills it each time (it keeps nothing between calls)."""
    seen = Peer(Path(tempfile.mkdtemp()), vision=True)
    encoder = seen.model.encoders["image"]
    pixels = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8)
    grid = TokenGrid(14, 14)
    prompts = texts(10, 12)

    def ours() -> list[list[int]]:
        engine = seen.engine(store_bytes=1 << 30)  # empty: the picture is new each time
        picture = MediaInput("image", pixels, grid, grid.count, grid.count)
        slots = [seen.tokenizer.slot] * grid.count
        examples = [
            Example([1, *slots, *ids], [False] * (1 + grid.count + len(ids)), [(1, picture)]) for ids in prompts
        ]
        return [answers[0].tokens for answers in engine.run(examples, Decoding(max_new_tokens=new))]

    @torch.inference_mode()
    def theirs() -> list[list[int]]:
        out = []
        for ids in prompts:
            features = seen.model.encode_media("image", [MediaInput("image", pixels, grid, grid.count, grid.count)])
            embed = seen.theirs.get_input_embeddings()
            embeds = torch.cat([embed(torch.tensor([1])), features, embed(torch.tensor(ids))])[None]
            out += seen.generate({"inputs_embeds": embeds}, torch.ones(embeds.shape[:2]), new).tolist()
        return out

    assert encoder.grid() == grid
    bench.compare("ten questions on one picture, ViT-B/16, fp32 (less work)", ours, theirs, 10 * new)


def part_lookup(bench: Bench, peer: Peer, new: int) -> None:
    """Greedy with prompt lookup, where the text repeats its prompt: an answer of this very model is the prompt."""
    engine = peer.engine()
    [start] = texts(1, 16)
    [answer] = peer.ours(engine, [start], max_new_tokens=192)
    prompt = [start + answer]
    new = 4 * new
    for guesses in (6, 15):
        bench.compare(
            f"prompt lookup of {guesses} against plain greedy, both mmgpt, fp32",
            lambda guesses=guesses: peer.ours(engine, prompt, max_new_tokens=new, lookup=guesses),
            lambda: peer.ours(engine, prompt, max_new_tokens=new),
            new,
        )
        bench.compare(
            f"prompt lookup of {guesses}, both sides, fp32",
            lambda guesses=guesses: peer.ours(engine, prompt, max_new_tokens=new, lookup=guesses),
            lambda guesses=guesses: peer.theirs_of(prompt, new, prompt_lookup_num_tokens=guesses),
            new,
        )


def part_int8(bench: Bench, peer: Peer, new: int) -> None:
    folder = Path(tempfile.mkdtemp())
    small = Peer(folder)
    quantize_int8(small.model.gpt)
    for rows in (1, 8, 32):
        prompts, engine = texts(rows, 64), small.engine()
        bench.compare(
            f"batch {rows}, prompt 64, int8 against fp32",
            lambda engine=engine, prompts=prompts: small.ours(engine, prompts, max_new_tokens=new),
            lambda prompts=prompts: peer.theirs_of(prompts, new),
            new,
            same=False,
        )


def part_memory(bench: Bench, peer: Peer, new: int) -> None:
    """Peak memory of a process of its own for each side."""
    for side in ("ours", "theirs"):
        out = subprocess.run(
            [sys.executable, __file__, "--child", side, "--new-tokens", str(new)], capture_output=True, text=True
        )
        print(f"peak memory, batch 32, prompt 64, {side:8} {out.stdout.strip() or out.stderr[-300:]}", flush=True)


def child(side: str, new: int) -> None:
    peer = Peer(Path(tempfile.mkdtemp()))
    prompts = texts(32, 64)
    if side == "ours":
        del peer.theirs
        peer.ours(peer.engine(), prompts, max_new_tokens=new)
    else:
        del peer.model
        peer.theirs_of(prompts, new)
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


PARTS = {name.removeprefix("part_"): part for name, part in list(globals().items()) if name.startswith("part_")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    if args.child:
        return child(args.child, args.new_tokens)
    print(
        f"{platform.machine()}, {args.threads} threads, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}; ratios above 1: mmgpt is faster; ms/token: mmgpt, peer"
    )
    bench, peer = Bench(args.rounds), Peer(Path(tempfile.mkdtemp()))
    for name in args.only.split(","):
        PARTS[name](bench, peer, args.new_tokens)
    return None


if __name__ == "__main__":
    main()
