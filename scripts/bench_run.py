"""What a run of mmgpt adds to its steps, and what a second process brings.

    python scripts/bench_run.py
    python scripts/bench_run.py --only processes --rounds 5

Both sides run in turn, so that a busy machine is busy for both; printed is the median of the pairs, and the least and
the greatest.
"""

import csv
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from itertools import chain, islice, repeat
from pathlib import Path

import lightning as L
import numpy as np
import torch
from bench import Bench, begin, parser
from torch import nn

from mmgpt.config import GPTConfig, ModelConfig
from mmgpt.content import Message
from mmgpt.data.loader import Loader
from mmgpt.data.sample import Sample
from mmgpt.processor import Processor
from mmgpt.run_config import TrainConfig
from mmgpt.tokenizer import Tokenizer
from mmgpt.training.run import Data, fit, make_model

STEPS = 200  # of one measurement


def part_overhead(bench: Bench) -> None:
    """What a whole run adds to its steps (the Trainer, the log, progress, checks), beside a bare loop of them."""
    samples = [
        Sample((Message.of("user", f"What is {i}?"),), (f"It is {i}.",), "ask", f"sample {i}") for i in range(256)
    ]
    tokenizer = Tokenizer.train((text for sample in samples for text in sample.texts()), 400)
    config = TrainConfig(
        out=str(bench.folder / "overhead"),
        model=ModelConfig(GPTConfig(width=128, layers=2, heads=2, context=64)),
        batch_size=8,
        steps=STEPS,
        val_every=10 * STEPS,
        precision="32-true",
    )

    class Clock(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.began = time.perf_counter()

        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.seconds = time.perf_counter() - self.began

    def whole() -> float:
        clock = Clock()
        with redirect_stdout(io.StringIO()):
            fit(config, Data(samples, samples[:8], tokenizer, shuffle=True), [clock])
        return clock.seconds

    def bare() -> float:
        torch.manual_seed(config.seed)
        model = make_model(config, tokenizer).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        loader = Loader(samples, Processor(model.config, tokenizer), batch_size=8, shuffle=True)
        epochs = chain.from_iterable(repeat(loader))
        began = time.perf_counter()
        for step in islice(epochs, STEPS):
            optimizer.zero_grad()
            for batch in filter(None, step.batches):
                (model.loss(batch).sum / step.count).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return time.perf_counter() - began

    whole(), bare()  # warm both up
    pairs = [(whole(), bare()) for _ in range(bench.rounds)]
    mine, other = (statistics.median(side) / STEPS * 1e3 for side in zip(*pairs, strict=True))
    added = sorted((run - loop) / STEPS * 1e3 for run, loop in pairs)
    print(
        f"{'a step of a run, beside a bare loop of the same steps':68} {statistics.median(added):5.2f} "
        f"[{added[0]:.2f}-{added[-1]:.2f}] ms added  {mine:8.2f} {other:8.2f} ms",
        flush=True,
    )


def part_processes(bench: Bench) -> None:
    """Tokens a second of two processes with one core each, and of one with one core, by `mmgpt train`."""
    words = np.random.default_rng(0).choice(["one", "two", "three", "four", "five", "six", "seven"], (400, 200))
    texts = [{"text": " ".join(row), "split": "dev" if i < 4 else "train"} for i, row in enumerate(words)]
    data, settings = bench.folder / "texts.jsonl", bench.folder / "processes.yaml"
    data.write_text("".join(json.dumps(text) + "\n" for text in texts))
    settings.write_text(
        json.dumps(
            {
                "data": {"format": "texts", "path": str(data), "vocab_size": 300},
                "model": {"gpt": {"width": 256, "layers": 4, "heads": 4, "context": 512}},
                "batch_tokens": 1024,
                "batch_size": None,
                "steps": 30,
                "val_every": 1000,
                "precision": "32-true",
            }
        )
    )

    def speed(processes: int) -> float:
        out = bench.folder / f"processes {processes}"
        shutil.rmtree(out, ignore_errors=True)
        command = [str(Path(sys.executable).with_name("mmgpt")), "train", "--config", str(settings)]
        run = subprocess.run(
            [*command, "--out", str(out), "--devices", str(processes)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if run.returncode:
            raise SystemExit(f"{processes} processes: {run.stderr.strip()[-300:]}")
        with (out / "metrics.csv").open(newline="") as file:
            told = [float(row["tokens_per_second"]) for row in csv.DictReader(file) if row.get("tokens_per_second")]
        return statistics.median(told[1:])  # the first has the start in it

    pairs = [(speed(2), speed(1)) for _ in range(max(1, bench.rounds // 2))]
    ratios = sorted(two / one for two, one in pairs)
    two, one = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"{'two processes of one core each, beside one of one core':68} {statistics.median(ratios):5.2f} "
        f"[{ratios[0]:.2f}-{ratios[-1]:.2f}]  {two:8.0f} {one:8.0f} tokens/s",
        flush=True,
    )


PARTS = {"overhead": part_overhead, "processes": part_processes}


def main() -> None:
    args = parser(__doc__, PARTS).parse_args()
    begin(args)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only.split(","):
            PARTS[name](Bench(args.rounds, Path(folder)))


if __name__ == "__main__":
    main()
