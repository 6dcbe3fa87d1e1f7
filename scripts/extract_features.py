"""Pictures or sounds to one .safetensors of pooled vectors, by an encoder alone; each file's name is the key.

    python scripts/extract_features.py features.safetensors photos/*.jpg --encoder vit_small_patch16_224 --pretrained
    python scripts/extract_features.py features.safetensors sounds/*.wav --sounds --encoder resnet18 --pretrained

Without --pretrained the weights are random, the same each time. Files that cannot be decoded are listed at the end.
"""

import argparse
from pathlib import Path

import torch
import torchaudio.functional
from safetensors.torch import save_file

import mmgpt
from mmgpt.encoders import AudioEncoder, ImageEncoder


def picture_to_tensor(path: Path, encoder: ImageEncoder) -> torch.Tensor:
    """(1, 3, height, width) uint8 at the encoder's size, resized and cropped as it knows pictures."""
    return encoder.pixels(mmgpt.Image(path).load())[None]


def sound_to_tensor(path: Path, encoder: AudioEncoder) -> torch.Tensor:
    """(1, samples) float32 at the encoder's rate."""
    sound = mmgpt.Audio(path).load(encoder.config.max_seconds)
    samples = torch.from_numpy(sound.samples)[None]
    return torchaudio.functional.resample(samples, sound.sample_rate, encoder.config.sample_rate)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pooled features of pictures or sounds.")
    parser.add_argument("out", help="the .safetensors to write")
    parser.add_argument("files", type=Path, nargs="+", help="pictures, or sounds with --sounds")
    parser.add_argument("--sounds", action="store_true", help="the files are sounds")
    parser.add_argument("--encoder", default="resnet18", help="name of a timm model (default: %(default)s)")
    parser.add_argument("--pretrained", action="store_true", help="fetch its weights")
    args = parser.parse_args()
    torch.manual_seed(0)
    kind, to_tensor = (AudioEncoder, sound_to_tensor) if args.sounds else (ImageEncoder, picture_to_tensor)
    encoder = kind(args.encoder, pretrained=args.pretrained).freeze()
    features, broken = {}, []
    for path in args.files:
        try:
            tokens, _ = encoder(to_tensor(path, encoder))  # batch of one, tokens, width
            features[str(path)] = tokens[0].mean(dim=0)
        except mmgpt.MediaError as error:
            broken.append(error)
    save_file(features, args.out)
    print(f"{len(features)} vectors of width {encoder.width} in {args.out}; {len(broken)} files could not be used")
    print(*broken, sep="\n")


if __name__ == "__main__":
    main()
