"""Describes every picture of a folder and writes a CSV of file names and captions.

    python scripts/caption_images.py photos captions.csv --model runs/demo

Pictures that cannot be decoded are listed at the end, each with the reason; the others are described all the same.
"""

import argparse
import csv
import sys
from pathlib import Path

import mmgpt

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
BATCH = 16  # pictures decoded and described together


def main() -> None:
    parser = argparse.ArgumentParser(description="A CSV of captions of all pictures in a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--model", default="runs/demo", help="a trained model (default: %(default)s)")
    args = parser.parse_args()

    paths = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        sys.exit(f"{args.folder}: no pictures here; their names end in {', '.join(sorted(SUFFIXES))}")
    model = mmgpt.load(args.model)
    broken = []
    with args.csv.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for start in range(0, len(paths), BATCH):
            pictures = {}
            for path in paths[start : start + BATCH]:
                try:
                    pictures[path] = mmgpt.Image(path).load()
                except mmgpt.MediaError as error:
                    broken.append(error)
            captions = model.caption(list(pictures.values()))
            for path, caption in zip(pictures, captions, strict=True):
                table.writerow([path.relative_to(args.folder), caption])
            print(f"\r{min(start + BATCH, len(paths))} of {len(paths)}", end="", file=sys.stderr, flush=True)

    print(f"\n{len(paths) - len(broken)} captions in {args.csv}; {len(broken)} pictures could not be decoded")
    for error in broken:
        print(f"  {error}")


if __name__ == "__main__":
    main()
