"""How fast `mmgpt caption --out` captions files, beside the model alone on pictures that are decoded already.

    python scripts/bench_caption.py                          # photos are made: 500 x 375 pixels, JPEG
    python scripts/bench_caption.py --photos FOLDER --only files,ray

Both sides run in turn, with the same model (random, 30 M parameters), the same pictures and, so that the model has the
same work, answers of as many tokens. The ratio is the share of the model's own throughput: 1 where all of decoding is
hidden behind the model. Ray's workers are timed from the first record that comes to the last.
"""

import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import PIL.Image
from bench import Bench, begin, parser, seconds
from bench_serve import random_model

import mmgpt
from mmgpt import checkpoint
from mmgpt.bulk.local import Picture, described
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
    """Seconds of the model, which has all pictures before it as pixels."""
    assistant = mmgpt.load(model)
    prompts = [assistant.processor.encode_prompt(TASKS["caption"].conversation(picture)) for _, picture in pictures]
    return seconds(lambda: assistant.engine.run(prompts, DECODING))


def from_files(model: str, pictures: list[Picture]) -> float:
    """Seconds of this process, from files."""
    assistant = mmgpt.load(model)
    began = time.perf_counter()
    assert all("caption" in record for record in described(assistant, pictures, DECODING))
    return time.perf_counter() - began


def on_ray(model: str, pictures: list[Picture]) -> float:
    """Seconds of a worker on each core for as many pictures, once the first of them has told what it made."""
    worker = Worker(model, checkpoint.fingerprint(model), False, DECODING, 2)
    records = described_on_ray(worker, iter(pictures), len(pictures), None)
    next(records)
    began = time.perf_counter()
    count = sum(1 for _ in records)
    return (time.perf_counter() - began) / count * len(pictures)


PARTS = {"files": from_files, "ray": on_ray}


def main() -> None:
    arguments = parser(__doc__, PARTS)
    arguments.set_defaults(only="files", rounds=5)
    arguments.add_argument("--photos", help="a folder of photos (default: made ones)")
    arguments.add_argument("--count", type=int, default=128, help="of photos (default: %(default)s)")
    args = arguments.parse_args()
    begin(args)
    with tempfile.TemporaryDirectory() as folder:
        model = str(random_model(Path(folder)))
        source = args.photos or photos(Path(folder), args.count)
        pictures = list(islice(find_pictures([source])[0], args.count))
        bench = Bench(args.rounds, Path(folder))
        for name in args.only.split(","):
            ours, theirs = (partial(side, model, pictures) for side in (PARTS[name], alone))
            bench.line(f"captions of pictures, {name}, beside the model alone", ours, theirs, len(pictures), " each")


if __name__ == "__main__":
    main()
