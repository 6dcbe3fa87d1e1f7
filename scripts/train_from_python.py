"""Trains a small captioning model from Python, without the command line: own data, own settings.

python scripts/train_from_python.py                       # on the pictures of the demo world
python scripts/train_from_python.py photos --epochs 20    # on photos/captions.csv: image,caption
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import lightning

from mmgpt import Assistant, GPTConfig, Image, Message, ModelConfig, MultimodalGPT, Processor, Tokenizer
from mmgpt.config import ImageEncoderConfig, OptimizerConfig
from mmgpt.data.dataset import make_loader
from mmgpt.data.sample import Sample
from mmgpt.data.world import World
from mmgpt.training.module import CaptioningModule


class Photos(Sequence[Sample]):
    """Any sequence of samples will do, a list too. Pictures are decoded when their turn comes."""

    def __init__(self, folder: Path):
        with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
            self.rows = [(folder / row["image"], row["caption"]) for row in csv.DictReader(file)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        path, caption = self.rows[index]
        return Sample((Message.of("user", Image(path), "Describe the picture."),), (caption,), "caption", str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a captioning model from Python.")
    parser.add_argument("folder", type=Path, nargs="?", help="pictures and captions.csv (default: the demo world)")
    parser.add_argument("--samples", type=int, default=4000, help="of the demo world (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--out", default="runs/from_python")
    args = parser.parse_args()
    lightning.seed_everything(0, verbose=False)
    samples = Photos(args.folder) if args.folder else World("train", args.samples, task="caption")
    tokenizer = Tokenizer.train((text for sample in samples for text in sample.texts()), vocab_size=512)
    image = ImageEncoderConfig("convnext_atto", size=(128, 128), args={"depths": [1] * 4, "dims": [24, 48, 96, 128]})
    model = MultimodalGPT(ModelConfig(GPTConfig(len(tokenizer), width=128), image))
    module = CaptioningModule(model, OptimizerConfig(learning_rate=2e-3))
    trainer = lightning.Trainer(max_epochs=args.epochs, devices=1, logger=False, enable_checkpointing=False)
    trainer.fit(module, make_loader(samples, Processor(model.config, tokenizer), batch_size=32, shuffle=True))
    print(*module.broken, sep="\n")  # pictures that could not be decoded
    assistant = Assistant(model, tokenizer)
    assistant.save(args.out)
    print(f"truth: {samples[0].answers[0]}\nmodel: {assistant.reply([samples[0].prompt])[0]}\nsaved in {args.out}")


if __name__ == "__main__":
    main()
