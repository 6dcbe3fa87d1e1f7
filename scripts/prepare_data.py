"""Makes one Parquet file of a public data set, for --data.format parquet.

    python scripts/prepare_data.py easy_vqa FOLDER runs/data/easy_vqa.parquet

What files FOLDER holds is told by the functions below; most are as their authors publish them, others a part of that.

Where the data set names no dev part, it is every tenth name of the training part in sorted order (of pictures, where
several rows have one); rows that have no names go by their number, and messages by their letters.
"""

import argparse
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import av
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from mmgpt.data.splits import members
from mmgpt.files import atomic_write
from mmgpt.media import load_audio
from mmgpt.media.write import write_video
from mmgpt.tasks import TASKS

PHOTO = 128  # pixels of a photo's shorter side
PIXEL = 0x100  # the character of a black pixel
GROUP = 100  # rows that are read at once
FASHION = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
Row = dict[str, Any]


def flickr8k(folder: Path) -> Iterator[Row]:
    """Photos with five captions each (Hodosh et al. 2013), made small: their shorter side has 128 pixels.

    captions.txt (CSV: image,caption), Flickr_8k.trainImages.txt and .devImages.txt, images/NAME.
    """
    captions: dict[str, list[str]] = {}
    with (folder / "captions.txt").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["image"], []).append(row["caption"])
    for split in ("train", "dev"):
        for name in (folder / f"Flickr_8k.{split}Images.txt").read_text("utf-8").split():
            with PIL.Image.open(folder / "images" / name) as photo:
                width, height = (round(side * PHOTO / min(photo.size)) for side in photo.size)
                small, file = photo.convert("RGB").resize((width, height)), io.BytesIO()
            small.save(file, "JPEG", quality=90)
            yield {"image": file.getvalue(), "caption": captions[name], "split": split}


def spoken_digits(folder: Path) -> Iterator[Row]:
    """Digits as they are spoken (Jackson's Free Spoken Digit Dataset): its sounds, and metadata.csv (file,word)."""
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        words = {row["file"]: row["word"] for row in csv.DictReader(file)}
    for name, split in held_out(words).items():
        yield {"audio": (folder / name).read_bytes(), "transcript": words[name], "split": split}


def easy_vqa(folder: Path) -> Iterator[Row]:
    """Questions about drawn shapes (vzhou842/easy-VQA): questions.json of its training part, and train_images.zip of
    its pictures (images/NUMBER.png).
    """
    questions = json.loads((folder / "questions.json").read_text("utf-8"))
    asked = ((f"{number:06}", question, answer) for question, answer, number in questions)
    with ZipFile(folder / "train_images.zip") as pictures:
        yield from by_picture(asked, lambda name: pictures.read(f"images/{int(name)}.png"))


def daquar(folder: Path) -> Iterator[Row]:
    """Questions about rooms (Malinowski and Fritz 2014): train_qa.csv (image_id,question,answer) and train_images.zip
    (IMAGE_ID.jpg).
    """
    with (folder / "train_qa.csv").open(newline="", encoding="utf-8") as file:
        asked = [(row["image_id"], row["question"], row["answer"]) for row in csv.DictReader(file)]
    with ZipFile(folder / "train_images.zip") as pictures:
        yield from by_picture(asked, lambda name: pictures.read(f"{name}.jpg"))


def fashion_mnist(folder: Path) -> Iterator[Row]:
    """Pieces of clothing (Xiao et al. 2017), in IDX: train*-images-idx3-ubyte.gz and train*-labels-idx1-ubyte.gz, all
    60,000 or a part of them.
    """
    pixels, kinds, split = _fashion(folder)
    for i, (picture, kind) in enumerate(zip(pixels, kinds, strict=True)):
        file = io.BytesIO()
        PIL.Image.fromarray(picture).save(file, "PNG")
        yield {"image": file.getvalue(), "label": FASHION[kind], "split": split[f"{i:06}"]}


def fashion_pixels(folder: Path) -> Iterator[Row]:
    """The same pictures as texts, to be continued: a character for each value of a pixel, row by row.

    All of these characters are letters, so that a tokenizer may take any run of them for one token.
    """
    pixels, _, split = _fashion(folder)
    for i, picture in enumerate(pixels):
        yield {"text": "".join(chr(PIXEL + value) for value in picture.flatten().tolist()), "split": split[f"{i:06}"]}


def _fashion(folder: Path) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Pictures (pictures, 28, 28) uint8, their kinds (pictures,), and the split of each number."""
    (images,), (labels,) = folder.glob("train*images-idx3*"), folder.glob("train*labels-idx1*")
    pixels = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
    kinds = np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)
    return pixels, kinds, held_out(f"{i:06}" for i in range(len(kinds)))


def cifar10(folder: Path) -> Iterator[Row]:
    """Things and animals (Krizhevsky 2009): train.parquet as on the Hugging Face Hub (img, label), or a part of it, and
    labels.txt, a name to a line.
    """
    names = (folder / "labels.txt").read_text("utf-8").split()
    rows = pq.read_table(folder / "train.parquet").to_pylist()
    split = held_out(row["img"]["path"] for row in rows)  # by number it would be one class: they take turns
    for row in rows:
        yield {"image": row["img"]["bytes"], "label": names[row["label"]], "split": split[row["img"]["path"]]}


def esc10(folder: Path) -> Iterator[Row]:
    """Sounds around us (Piczak 2015): esc10.csv, the rows of ESC-50's table that are of ESC-10, and audio/FILENAME;
    fold 4 is dev.
    """
    with (folder / "esc10.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            sound = (folder / "audio" / row["filename"]).read_bytes()
            split = "dev" if row["fold"] == "4" else "train"
            yield {"audio": sound, "label": row["category"].replace("_", " "), "split": split}


def sst2(folder: Path) -> Iterator[Row]:
    """Sentences of film reviews (Socher et al. 2013): train.tsv and dev.tsv, a sentence and 0 or 1 to a line."""
    for split in ("train", "dev"):
        for line in (folder / f"{split}.tsv").read_text("utf-8").splitlines():
            text, label = line.split("\t")
            yield {"text": text, "label": ("negative", "positive")[int(label)], "split": split}


def sms_spam(folder: Path) -> Iterator[Row]:
    """Messages, wanted or not (Almeida and Hidalgo 2011): SMSSpamCollection."""
    lines = (folder / "SMSSpamCollection").read_text("utf-8").split("\n")
    rows = [line.split("\t") for line in lines if line]
    split = held_out(_letters(text) for _, text in rows)  # many were sent again, with other numbers in them
    for label, text in rows:
        yield {"text": text, "label": label, "split": split[_letters(text)]}


def _letters(text: str) -> str:
    return "".join(filter(str.isalpha, text.casefold()))


def multi30k(folder: Path) -> Iterator[Row]:
    """Descriptions of photos in English and German (Elliott et al. 2016), to be translated either way: train.en.gz,
    train.de.gz, val.en.gz, val.de.gz.
    """
    for part, split in (("train", "train"), ("val", "dev")):
        texts = [gzip.decompress((folder / f"{part}.{code}.gz").read_bytes()).decode() for code in ("en", "de")]
        for english, german in zip(*(text.splitlines() for text in texts), strict=True):
            for to, source, target in (("German", english, german), ("English", german, english)):
                request = {"instruction": f"Translate into {to}.", "input": source, "output": target}
                yield {**request, "split": split}


def tatoeba(folder: Path) -> Iterator[Row]:
    """Sentences in English and Chinese (Tatoeba), to be translated into Chinese: train.tsv, one of each to a line."""
    rows = [line.split("\t") for line in (folder / "train.tsv").read_text("utf-8").splitlines()]
    split = held_out(english for english, _ in rows)
    for english, chinese in rows:
        request = {"instruction": "Translate into Chinese.", "input": english, "output": chinese}
        yield {**request, "split": split[english]}


def xquad(folder: Path) -> Iterator[Row]:
    """Paragraphs in three languages (Artetxe et al. 2020): questions to be answered from them, and the article's title,
    as which they are to be summarized. xquad.en.train.json and those of de and zh, a part of the articles each.
    """
    for code in ("en", "de", "zh"):
        articles = json.loads((folder / f"xquad.{code}.train.json").read_text("utf-8"))["data"]
        split = held_out(f"{i:06}" for i in range(len(articles)))
        for i, article in enumerate(articles):
            for paragraph in article["paragraphs"]:
                request = {"instruction": TASKS["summarize"].prompts[0], "input": paragraph["context"]}
                yield {**request, "answer": [article["title"].replace("_", " ")], "split": split[f"{i:06}"]}
                for asked in paragraph["qas"]:
                    answers = list(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                    request = {"instruction": asked["question"], "input": paragraph["context"], "answer": answers}
                    yield {**request, "split": split[f"{i:06}"]}


def grid(folder: Path) -> Iterator[Row]:
    """A speaker's mouth and voice (Cooke et al. 2006, speaker 1): 48 x 32 pixels of each frame, and the sound.

    transcripts.tsv (file, transcript) and the clips that it names, with sound, made 160 x 128 pixels large.
    """
    with (folder / "transcripts.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    split = held_out(row["file"] for row in rows)
    for row in rows:
        with av.open(str(folder / row["file"])) as file:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
        with TemporaryDirectory() as place:
            mouth = Path(place) / "mouth.mp4"
            write_video(mouth, frames[:, 80:112, 46:94], 25.0, load_audio(folder / row["file"], max_seconds=60))
            clip = mouth.read_bytes()
        asked = {"question": TASKS["transcribe"].prompts[0], "answer": row["transcript"]}
        yield {"video": clip, **asked, "split": split[row["file"]]}


PREPARE = {
    make.__name__: make
    for make in (
        flickr8k, spoken_digits, easy_vqa, daquar, fashion_mnist, fashion_pixels, cifar10, esc10, sst2, sms_spam,
        multi30k, tatoeba, xquad, grid,
    )
}  # fmt: skip


def by_picture(asked: Iterable[tuple[str, str, str]], read: Callable[[str], bytes]) -> Iterator[Row]:
    """A row for each picture, of (its name, a question, the answer): training then encodes it once for all of them."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for name, question, answer in asked:
        questions, answers = found.setdefault(name, ([], []))
        questions.append(question)
        answers.append(answer)
    split = held_out(found)
    for name, (questions, answers) in found.items():
        yield {"image": read(name), "question": questions, "answer": answers, "split": split[name]}


def held_out(names: Iterable[str]) -> dict[str, str]:
    """The split of each name."""
    every = dict.fromkeys(names)
    return dict.fromkeys(every, "train") | dict.fromkeys(members(every, "dev"), "dev")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PREPARE)
    parser.add_argument("folder", type=Path, help="its files, as the functions of this script tell them")
    parser.add_argument("out", type=Path, help="the .parquet file")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(PREPARE[args.name](args.folder)))
    with atomic_write(args.out) as temporary:
        pq.write_table(table, temporary, row_group_size=GROUP)
    print(f"{args.out}: {table.num_rows:,} rows of {', '.join(table.column_names)}")


if __name__ == "__main__":
    main()
