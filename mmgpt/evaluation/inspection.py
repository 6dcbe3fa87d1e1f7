"""What the model gets of samples: tokens, which of them it learns, and media as their encoders see them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from PIL import Image
from rich.text import Text
from torch import Tensor

from mmgpt.batch import Example, MediaInput
from mmgpt.data.dataset import Broken, ExampleDataset
from mmgpt.data.loader import Encoded
from mmgpt.data.order import Key
from mmgpt.data.sample import Sample
from mmgpt.encoders.audio import AudioEncoder
from mmgpt.encoders.base import Encoder
from mmgpt.errors import MmgptError
from mmgpt.evaluation.pictures import LISTEN_SECONDS, TINY, heat, picture_uri, spread
from mmgpt.evaluation.playable import sound_uri
from mmgpt.evaluation.report import write_page
from mmgpt.media import Waveform
from mmgpt.processor import Processor
from mmgpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Inspected:
    """A sample, and its documents or why there are none."""

    sample: Sample
    documents: list[Example]
    broken: list[str]


@dataclass(frozen=True)
class Piece:
    """A stretch of a document: tokens that are all learned or all not, or one medium."""

    ids: list[int]
    supervised: bool
    medium: MediaInput | None = None


def inspected(samples: Sequence[Sample], count: int, processor: Processor, seed: int) -> list[Inspected]:
    """Samples spread over a split, changed at random as they are in the first epoch of a run of this seed."""
    encoded = Encoded(ExampleDataset(samples, processor), seed)
    found = []
    for index in spread(len(samples), count):
        parts = encoded[Key(0, index)]
        parts = [Broken(str(parts))] if isinstance(parts, MmgptError) else parts
        documents = [part for part in parts if isinstance(part, Example)]
        found.append(Inspected(samples[index], documents, [p.reason for p in parts if isinstance(p, Broken)]))
    return found


def pieces(example: Example, start: int = 0) -> Iterator[Piece]:
    """A document from a place on, in order; the slots of a medium are one piece."""
    media: dict[int, list[MediaInput]] = {}
    for first, item in example.media:
        media.setdefault(first, []).append(item)
    run: list[int] = []
    place = start
    while place <= len(example):
        here = media.get(place, []) if place >= start else []
        if run and (here or place == len(example) or example.supervised[place] != example.supervised[place - 1]):
            yield Piece(run, example.supervised[place - 1])
            run = []
        for item in here:
            yield Piece([], False, item)
        # Of media at one place all but the last have no slots.
        if slots := sum(item.slots for item in here):
            place += slots
            continue
        if place < len(example):
            run.append(example.ids[place])
        place += 1


def answer_start(example: Example, tokenizer: Tokenizer) -> int:
    """The place behind the last opening of an assistant's message."""
    opening = tokenizer.opening("assistant")[-1]
    return len(example) - example.ids[::-1].index(opening)


def label(item: MediaInput) -> str:
    """A medium in a few words."""
    if item.slots:
        return f"{item.modality}: {item.slots} slots"
    return f"{item.modality}: {item.features} features to look at"


def as_text(example: Example, tokenizer: Tokenizer, start: int = 0) -> Text:
    """A document for the terminal: what is learned is bold and green, media are in brackets."""
    text = Text()
    for piece in pieces(example, start):
        if piece.medium is not None:
            text.append(f"[{label(piece.medium)}]", "magenta")
        else:
            text.append(tokenizer.spelled(piece.ids), "bold green" if piece.supervised else "")
    return text


def write_inspection(
    path: str | Path, found: Sequence[Inspected], tokenizer: Tokenizer, encoders: Mapping[str, Encoder], title: str
) -> None:
    """Write a self-contained HTML page of the samples. Raises WriteError.

    Args:
        path: The file.
        found: The samples.
        tokenizer: Spells their tokens.
        encoders: By modality; that of sounds makes the spectrograms.
        title: Heading of the page.
    """
    ears = encoders.get("audio")
    cards = "".join(_card(number, one, tokenizer, ears) for number, one in enumerate(found, 1))
    body = f"""<header><h1>{escape(title)}</h1>
<p class="legend-line"><span class="tokens"><i class="learned">learned</i> <i>given</i> <b>medium</b></span>
each box is one token; media are shown as their encoder gets them</p></header>
<section class="inspected">{cards}</section>"""
    style = Path(__file__).with_name("inspection.css").read_text(encoding="utf-8")
    write_page(path, title, body, style)


def _card(number: int, one: Inspected, tokenizer: Tokenizer, ears: Encoder | None) -> str:
    reasons = "".join(f'<p class="lost">not learned from: {escape(reason)}</p>' for reason in one.broken)
    head = f"<h2>{number}. {escape(one.sample.task)} <small>{escape(one.sample.where)}</small></h2>"
    if not one.documents:
        return f"<article>{head}{reasons}</article>"
    first, *more = one.documents
    learned = sum(first.supervised)
    facts = f"<p><small>{len(first)} tokens, {learned} of them learned</small></p>"
    shown = {id(item): item for document in one.documents for _, item in document.media}.values()
    media = "".join(_medium(item, f"{item.modality} {i} of sample {number}", ears) for i, item in enumerate(shown, 1))
    answers = "".join(
        f"<li>{_tokens(document, tokenizer, answer_start(document, tokenizer))}</li>" for document in more
    )
    also = f"<h3>Other right answers to it</h3><ul>{answers}</ul>" if more else ""
    media = f'<div class="media">{media}</div>' if media else ""
    return f"<article>{head}{facts}{reasons}{media}{_tokens(first, tokenizer)}{also}</article>\n"


def _tokens(example: Example, tokenizer: Tokenizer, start: int = 0) -> str:
    spans = []
    for piece in pieces(example, start):
        if piece.medium is not None:
            spans.append(f"<b>{escape(label(piece.medium))}</b>")
        kind = ' class="learned"' if piece.supervised else ""
        spans += (f"<i{kind}>{escape(tokenizer.spelled([id]))}</i>" for id in piece.ids)
    return f'<p class="tokens" dir="auto">{"<wbr>".join(spans)}</p>'


def _medium(item: MediaInput, name: str, ears: Encoder | None) -> str:
    grid = f"{item.grid.rows} × {item.grid.columns} tokens of the encoder"
    if item.modality == "audio":
        return _sound(item.data, name, f"{label(item)}; {grid}", ears)
    height, width = item.data.shape[-2:]
    caption = f"{label(item)}; {grid}; {width} × {height} pixels"
    if item.modality == "image":
        return _figure(_picture(item.data, name), caption)
    frames = "".join(f"<li>{_picture(frame, '')}</li>" for frame in item.data)
    shown = f'<ol class="frames" role="img" aria-label="Frames of {escape(name)}, in order">{frames}</ol>'
    track = "" if item.sound is None else _sound(item.sound, f"sound of {name}", "its sound track", ears)
    return _figure(shown, f"{caption}, {len(item.data)} frames") + track


def _sound(samples: Tensor, name: str, caption: str, ears: Encoder | None) -> str:
    assert isinstance(ears, AudioEncoder)
    rate = ears.config.sample_rate
    sound = Waveform(samples.numpy(), rate)
    with torch.no_grad():
        bands = ears.log_mel(samples[None])[0, 0]  # mels, frames
    level = (bands - bands.min()) / (bands.max() - bands.min()).clamp(min=1e-6)
    picture = heat(level.flip(0).numpy(), 480, 2 * len(bands))
    heard = f"{sound.seconds:.2f} s" + (
        f", of which the first {LISTEN_SECONDS:g} to hear" if sound.seconds > LISTEN_SECONDS else ""
    )
    shown = (
        f'<img src="{picture_uri(picture)}" alt="Spectrogram: {escape(name)}">'
        f'<audio controls preload="none" src="{sound_uri(sound)}" aria-label="{escape(name)}"></audio>'
    )
    return _figure(shown, f"{caption}; {heard} at {rate} Hz, {bands.shape[0]} bands × {bands.shape[1]} frames")


def _picture(pixels: Tensor, name: str) -> str:
    """Pixels (3, height, width) uint8."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    tiny = ' class="tiny"' if max(picture.size) <= TINY else ""
    return f'<img{tiny} src="{picture_uri(picture)}" alt="{escape(name)}">'


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"
