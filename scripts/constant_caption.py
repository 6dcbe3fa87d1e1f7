"""What one and the same caption for every picture would score: the floor that a captioning model has to leave.

    python scripts/constant_caption.py FOLDER

The caption is chosen on training pictures alone, from their own captions, and then scored on the dev split.
"""

import random
import sys
from collections import Counter

from rich.progress import track

from mmgpt.data.readers import read_samples
from mmgpt.evaluation.metrics.captions import bleu, cider, tokenize
from mmgpt.run_config import DataConfig

CANDIDATES, PICTURES = 150, 400


def main(folder: str) -> None:
    config = DataConfig(format="captions", path=folder)
    train, dev = read_samples(config, "train"), read_samples(config, "dev")
    counts = Counter(word for sample in train for text in sample.references for word in set(tokenize(text)))

    def usual(caption: str) -> float:
        words = tokenize(caption)
        return sum(counts[word] for word in words) / max(len(words), 8)

    # The captions of the most usual words are the likeliest to fit many pictures.
    captions = sorted({text for sample in train for text in sample.references}, key=usual, reverse=True)[:CANDIDATES]
    some = random.Random(0).sample(train, PICTURES)
    truths = [sample.references for sample in some]
    scores = {caption: cider([caption] * PICTURES, truths).value for caption in track(captions, transient=True)}
    best = max(captions, key=scores.__getitem__)
    answers = [sample.references for sample in dev]
    print(f"{best!r} on {len(dev)} dev pictures: CIDEr-D {100 * cider([best] * len(dev), answers).value:.1f}, ", end="")
    print(f"BLEU-4 {100 * bleu([best] * len(dev), answers)[3].value:.1f}")


if __name__ == "__main__":
    main(sys.argv[1])
