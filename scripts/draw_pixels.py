"""Draws pictures with a GPT that has learned them pixel by pixel (configs/fashion_pixels.yaml), beside the data's own.

    python scripts/draw_pixels.py runs/fashion_pixels runs/data/fashion_pixels.parquet samples.png

Above are pictures of the dev part; in the middle what the model makes of their upper halves, below what it makes of
nothing, all of them drawn from what it thinks likely, not chosen.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from prepare_data import PIXEL

import mmgpt
from mmgpt.assistant import Assistant
from mmgpt.data.parquet import read_parquet
from mmgpt.generation import Decoding
from mmgpt.media.write import write_image

SCALE = 3  # of the pixels in the picture
GAP = 2  # pixels between two pictures


def continued(assistant: Assistant, texts: Sequence[str], size: int, seed: int) -> list[str]:
    """Each text and what the model lets follow it, `size` characters at most."""
    answers = []
    for i, text in enumerate(texts):
        decoding = Decoding(assistant.model.config.gpt.context, temperature=1.0, seed=seed + i)
        answers.append(assistant.engine.submit(assistant.processor.encode_beginning(text), decoding))
    while not all(answer.done for answer in answers):
        assistant.engine.step()
    return [(text + answer.answers[0].text)[:size] for text, answer in zip(texts, answers, strict=True)]


def picture(text: str, side: int) -> np.ndarray:
    """(side, side) uint8; what is missing at the end is black."""
    values = np.zeros(side * side, np.uint8)
    values[: len(text)] = [min(max(ord(letter) - PIXEL, 0), 255) for letter in text]
    return values.reshape(side, side)


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rows of pictures (side, side) with gaps between them, as one of (height, width, 3) uint8."""
    apart = [np.hstack([np.pad(one, GAP, constant_values=96) for one in row]) for row in rows]
    return np.repeat(np.kron(np.vstack(apart), np.ones((SCALE, SCALE), np.uint8))[..., None], 3, axis=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path, help="what prepare_data.py made")
    parser.add_argument("out", type=Path, help="the .png file")
    parser.add_argument("--pictures", type=int, default=16, help="in a row")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    assistant = mmgpt.load(args.model)
    texts = [sample.references[0] for sample in read_parquet(args.data, "dev")[: args.pictures]]
    size = len(texts[0])
    halves = continued(assistant, [text[: size // 2] for text in texts], size, args.seed)
    dreams = continued(assistant, [""] * len(texts), size, args.seed)
    side = math.isqrt(size)
    write_image(args.out, sheet([[picture(text, side) for text in row] for row in (texts, halves, dreams)]))
    print(f"{args.out}: {len(texts)} pictures of the dev part, their upper halves continued, and as many drawn freely")


if __name__ == "__main__":
    main()
