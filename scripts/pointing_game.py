"""The pointing game (Zhang et al. 2018): does the brightest place of a word's heat map lie on what the word means?

    python scripts/pointing_game.py runs/demo

On held-out pictures of the demo world with two shapes of different colours, the captions that are true are explained.
The word for a colour points at the shape of that colour, so does the word for its shape; a hit is where the centre of
the brightest cell is on it. Beside each method stands pointing at the middle of the picture; intervals are Wilson's, of
95 %.
"""

import argparse

import numpy as np

import mmgpt
from mmgpt.content import Image, Message, Text
from mmgpt.data.world import score_answer, world_sample
from mmgpt.data.world.language import read_caption
from mmgpt.data.world.scenes import COLOURS, SHAPES
from mmgpt.evaluation.explain import explain
from mmgpt.evaluation.metrics.score import wilson

APART = 60  # of 255: pixels as near as this to a colour are of it


def where(pixels: np.ndarray, colour: str) -> np.ndarray:
    """Which pixels (height, width) of a picture are of a colour."""
    distances = np.stack([np.abs(pixels - np.array(rgb)).max(axis=2) for rgb in COLOURS.values()])
    nearest = distances.argmin(axis=0) == list(COLOURS).index(colour)
    return nearest & (distances.min(axis=0) < APART)


def hits(words: list[tuple[str, np.ndarray]], pixels: np.ndarray) -> list[tuple[bool, bool]]:
    """Of each word that means a thing: whether its map, and whether the middle, lies on it."""
    found, colour = [], ""
    for text, level in words:
        word = text.strip().rstrip(",")
        if word in COLOURS:
            colour = word
        elif word not in SHAPES:
            continue
        thing = where(pixels.astype(int), colour)
        brightest = np.unravel_index(level.argmax(), level.shape)
        sizes = zip(brightest, thing.shape, level.shape, strict=True)
        cell = [int((at + 0.5) * size / count) for at, size, count in sizes]
        found.append((bool(thing[tuple(cell)]), bool(thing[tuple(size // 2 for size in thing.shape)])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--pictures", type=int, default=150)
    parser.add_argument("--split", default="dev", choices=("dev", "test"))
    parser.add_argument("--seed", type=int, default=0, help="of the world (default: 0)")
    args = parser.parse_args()
    model = mmgpt.load(args.model)
    scores: dict[str, list[tuple[bool, bool]]] = {"occlusion": [], "rollout": []}
    number = used = 0
    while used < args.pictures:
        sample = world_sample(number, args.split, args.seed, task="caption")
        number += 1
        kinds = read_caption(sample.references[0]) or {}
        if len({kind.colour for kind in kinds}) < 2:
            continue
        image = next(part for part in sample.prompt[-1].parts if isinstance(part, Image))
        request = next(part for part in sample.prompt[-1].parts if isinstance(part, Text))
        prompt = [Message("user", (image, request))]
        answer = model.reply([prompt])[0]
        if not score_answer(sample, answer):
            continue
        used += 1
        pixels = np.asarray(image.load())
        for method, found in scores.items():
            words = explain(model, prompt, answer, method).words  # type: ignore[arg-type]
            found += hits([(word.text, word.maps[0]) for word in words], pixels)
    print(f"{used} pictures, {len(scores['occlusion'])} words")
    rows = {name: [hit for hit, _ in found] for name, found in scores.items()}
    rows["the middle"] = [middle for _, middle in scores["occlusion"]]
    for name, found in rows.items():
        low, high = wilson(sum(found), len(found))
        print(f"{name:12} {np.mean(found):6.1%} [{low:.1%}-{high:.1%}]")


if __name__ == "__main__":
    main()
