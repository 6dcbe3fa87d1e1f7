"""How fast `mmgpt caption --out` captions files, beside the model alone on pictures that are decoded already.

    python scripts/bench_caption.py                          # photos are made: 500 x 375 pixels, JPEG
    python scripts/bench_caption.py --photos FOLDER --ray

Both sides run in turn, with the same model (random, 30 M parameters), the same pictures and, so that the model has the
same work, answers of as many tokens. The share is that of the model's own throughput: 100 % where all of decoding is
hidden behind the model. Ray's workers are timed from the first record that comes to the last.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from bench_serve import random_model

import mmgpt
from mmgpt import checkpoint
from mmgpt.bulk.local import Picture, Record, described
from mmgpt.bulk.ray import Worker, described_on_ray
from mmgpt.data.pictures import find_pictures
from mmgpt.generation import Decoding
from mmgpt.tasks import TASKS

DECODING = Decoding(max_new_tokens=24)


def photos(folder: Path, count: int) -> str:
    """So many photos, as large as Flickr's."""
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (94, 125, 3), dtype=np.uint8)
        photo = PIL.Image.fromarray(pixels).resize((500, 375), PIL.Image.Resampling.BICUBIC)
        photo.save(folder / f"{number:04}.jpg", quality=90)
    return str(folder)


def alone(model: str, pictures: list[Picture]) -> float:
    """Pictures a second of the model, which has all of them before it as pixels."""
    assistant = mmgpt.load(model)
    prompts = [assistant.processor.encode_prompt(TASKS["caption"].conversation(picture)) for _, picture in pictures]
    began = time.perf_counter()
    assistant.engine.run(prompts, DECODING)
    return len(pictures) / (time.perf_counter() - began)


def from_files(model: str, pictures: list[Picture]) -> float:
    """Pictures a second of this process, from files."""
    assistant = mmgpt.load(model)
    began = time.perf_counter()
    assert all("caption" in record for record in described(assistant, pictures, DECODING))
    return len(pictures) / (time.perf_counter() - began)


def on_ray(model: str, pictures: list[Picture]) -> float:
    """Pictures a second of a worker on each core, once the first of them has told what it made."""
    worker = Worker(model, checkpoint.fingerprint(model), False, DECODING, 2)
    records: Iterator[Record] = described_on_ray(worker, iter(pictures), len(pictures), None)
    next(records)
    began = time.perf_counter()
    return sum(1 for _ in records) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="a folder of photos (default: made ones)")
    parser.add_argument("--count", type=int, default=128, help="of photos (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ray", action="store_true", help="captions of a Ray cluster on this machine too")
    args = parser.parse_args()
    sides = {"from files": from_files} | ({"on Ray": on_ray} if args.ray else {})
    with tempfile.TemporaryDirectory() as folder:
        model = str(random_model(Path(folder)))
        source = args.photos or photos(Path(folder), args.count)
        pictures = list(islice(find_pictures([source])[0], args.count))
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}", flush=True)
        pairs = {
            name: [(side(model, pictures), alone(model, pictures)) for _ in range(args.rounds)]
            for name, side in sides.items()
        }
        for name, found in pairs.items():
            shares = sorted(speed / own for speed, own in found)
            speed, own = (statistics.median(one) for one in zip(*found, strict=True))
            print(
                f"{name:12} {speed:6.2f} pictures/s, the model alone {own:6.2f}: "
                f"{statistics.median(shares):.0%} [{shares[0]:.0%}-{shares[-1]:.0%}]",
                flush=True,
            )


if __name__ == "__main__":
    main()
