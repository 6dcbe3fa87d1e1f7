"""Trains a small captioning model from Python, without the command line: own data, own settings.

python scripts/train_from_python.py                       # on the pictures of the demo world
python scripts/train_from_python.py photos --epochs 20    # on photos/captions.csv: image,caption
"""

import argparse
import csv
from pathlib import Path

import lightning

from mmgpt import Assistant, GPTConfig, Image, Message, ModelConfig, MultimodalGPT, Processor, Tokenizer
from mmgpt.config import ImageEncoderConfig
from mmgpt.data.loader import Loader
from mmgpt.data.sample import Sample
from mmgpt.data.world import World
from mmgpt.run_config import OptimizerConfig
from mmgpt.training.module import CaptioningModule


def read_photos(folder: Path) -> list[Sample]:
    """A sample to a row. Any sequence of samples will do; pictures are decoded when their turn comes."""
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = [(folder / row["image"], row["caption"]) for row in csv.DictReader(file)]
    prompt = "Describe the picture."
    return [Sample((Message.of("user", Image(path), prompt),), (text,), "caption", str(path)) for path, text in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a captioning model from Python.")
    parser.add_argument("folder", type=Path, nargs="?", help="pictures and captions.csv (default: the demo world)")
    parser.add_argument("--samples", type=int, default=4000, help="of the demo world (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--out", default="runs/from_python")
    args = parser.parse_args()
    lightning.seed_everything(0, verbose=False)
    if args.folder:
        photos = read_photos(args.folder)
        count = -(-len(photos) // 10)  # the last tenth is not trained on, but shows how well the model does
        samples, held_out = photos[:-count], photos[-count:]
    else:
        samples, held_out = World("train", args.samples, task="caption"), World("dev", 64, task="caption")
    tokenizer = Tokenizer.train((text for sample in samples for text in sample.texts()), vocab_size=512)
    image = ImageEncoderConfig("convnext_atto", size=(128, 128), args={"depths": [1] * 4, "dims": [24, 48, 96, 128]})
    model = MultimodalGPT(ModelConfig(GPTConfig(len(tokenizer), width=128), image))
    module = CaptioningModule(model, OptimizerConfig(learning_rate=2e-3))
    trainer = lightning.Trainer(max_epochs=args.epochs, devices=1, logger=False, enable_checkpointing=False)
    processor = Processor(model.config, tokenizer)
    loaders = [Loader(some, processor, batch_size=32, shuffle=some is samples) for some in (samples, held_out)]
    trainer.fit(module, *loaders)
    print(*module.broken, sep="\n")  # pictures that could not be decoded
    assistant = Assistant(model, tokenizer)
    assistant.save(args.out)
    print(f"truth: {held_out[0].references[0]}\nmodel: {assistant.reply([held_out[0].prompt])[0]}\nsaved in {args.out}")


if __name__ == "__main__":
    main()
