"""What bench_generate.py and bench_train.py share: both sides in turn, a line of the table, peak memory, arguments."""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from mmgpt.training.memory import peak_memory


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass
class Bench:
    """How often both sides run, and an empty folder for checkpoints, which goes when the run ends."""

    rounds: int
    folder: Path

    def line(
        self,
        what: str,
        ours: Callable[[], float],
        theirs: Callable[[], float],
        per: int = 1,
        unit: str = "",
        end: str = "",
    ) -> float:
        """One line of the table: both sides run in turn and tell their seconds. Returns our median, divided by `per`.

        Printed are the median of the paired ratios, the least and the greatest, and what each side takes in ms.
        """
        pairs = [(ours(), theirs()) for _ in range(self.rounds)]
        ratios = sorted(other / mine for mine, other in pairs)
        mine, other = (statistics.median(side) / per for side in zip(*pairs, strict=True))
        print(
            f"{what:68} {statistics.median(ratios):5.2f} [{ratios[0]:.2f}-{ratios[-1]:.2f}]"
            f"  {mine * 1e3:8.2f} {other * 1e3:8.2f} ms{unit}{end}",
            flush=True,
        )
        return mine


def parser(description: str | None, parts: Iterable[str]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", default=",".join(parts), help="parts, with commas (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--threads", type=int, default=os.cpu_count())
    made.add_argument("--child", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    return made


def begin(args: argparse.Namespace) -> None:
    """Obey the arguments and print what the numbers were measured with."""
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not args.child:
        print(
            f"{platform.machine()}, {args.threads} threads, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}, "
            f"transformers {transformers.__version__}; ratios above 1: mmgpt is faster; ms: mmgpt, peer",
            flush=True,
        )


def print_peaks(what: str, folder: Path, *arguments: str) -> None:
    """Peak memory of a process of its own for each side: this script with --child, which builds that side alone."""
    for side in ("ours", "theirs"):
        command = [sys.executable, sys.argv[0], "--child", side, str(folder), *arguments]
        out = subprocess.run(
            [*command, "--threads", str(torch.get_num_threads())],
            capture_output=True,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # it is the memory of the CPU that is meant
        )
        if out.returncode:
            raise SystemExit(f"peak memory, {what}, {side}: {out.stderr.strip()[-300:]}")
        print(f"peak memory, {what}, {side:8} {out.stdout.strip()}", flush=True)


def print_peak(begun: int) -> None:
    """The child's peak memory, and how much of it has come since it was `begun` bytes: before there was a model."""
    peak = peak_memory()
    print(f"{peak >> 20} MB, {(peak - begun) >> 20} of it beyond the imports")
