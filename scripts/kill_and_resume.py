"""Kills a run of `mmgpt train` at random moments, resumes it each time, and compares it with one that is left alone.

    python scripts/kill_and_resume.py --config configs/flickr8k.yaml --data.path FOLDER --steps 120 --save_every 10

All arguments but --kills, --kill_seed, --longest and --folder go to `mmgpt train`. Both runs go at once, with one
thread each.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmgpt import checkpoint

MMGPT = Path(sys.executable).with_name("mmgpt")


def start(out: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [str(MMGPT), "train", *arguments, "--out", str(out), "--resume", "true"]
    log = out.with_suffix(".log").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def digests(out: Path) -> dict[str, str]:
    """What the run leaves behind that must not differ: the weights of both checkpoints."""
    paths = {name: checkpoint.resolve(out / name) / "model.safetensors" for name in ("best", "last")}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--kill_seed", type=int, default=0)
    # From before the first step to long after a state was kept: a start takes ten to twenty seconds.
    parser.add_argument(
        "--longest", type=float, default=40, help="seconds from a start to a kill (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/kill_and_resume"))
    args, arguments = parser.parse_known_args()
    if args.folder.exists():
        sys.exit(f"{args.folder}: is there already; remove it, or name another --folder")
    args.folder.mkdir(parents=True)
    alone, killed = args.folder / "alone", args.folder / "killed"
    began = time.monotonic()
    undisturbed = start(alone, arguments)
    moments = random.Random(args.kill_seed)
    running, kills = start(killed, arguments), 0
    while True:
        wait = moments.uniform(8, args.longest) if kills < args.kills else None
        try:
            code = running.wait(wait)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
            kills += 1
            states = sorted(path.name for path in (killed / "state").glob("*")) if (killed / "state").exists() else []
            print(f"{time.monotonic() - began:5.0f} s: kill {kills}; states: {', '.join(states) or 'none'}", flush=True)
            running = start(killed, arguments)
            continue
        break
    if code or undisturbed.wait():
        sys.exit(f"a run failed: see {args.folder}/*.log")
    ours, theirs = digests(killed), digests(alone)
    for name, digest in theirs.items():
        print(f"{name}: {digest[:16]} alone, {ours[name][:16]} killed {kills} times")
    if ours != theirs:
        sys.exit("DIFFERENT")
    print(f"the same, after {kills} kills")


if __name__ == "__main__":
    main()
