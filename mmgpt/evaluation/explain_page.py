"""Pictures of where a model looks, and a page of them: one for each word of an answer."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from mmgpt.evaluation.explain import Explanation, Surface, Token, Word
from mmgpt.evaluation.pictures import picture_uri, spectrogram
from mmgpt.evaluation.playable import sound_uri
from mmgpt.evaluation.report import write_page
from mmgpt.files import atomic_write
from mmgpt.media import Waveform

SIDE = 240  # pixels of the larger side of a picture or a frame
LEGENDS = {
    "occlusion": "bright: hiding this place makes the word less likely",
    "rollout": "bright: from here comes most of the attention that the word is made of (attention roll-out)",
}
LEAST = 0.1  # of a map, in nats or as a share: a word whose map is lower everywhere looks at no one place
_VEIL = np.array([18, 20, 24], dtype=float)  # over what does not matter


def pictures(found: Explanation) -> list[list[Image.Image]]:
    """For each word a picture of each surface: dark where the word does not look."""
    plain = [_plain(surface, found.rate) for surface in found.surfaces]
    lit = []
    for word in found.words:
        most = max(LEAST, *(float(level.max()) for level in word.maps))
        lit.append([_lit(picture, level / most) for picture, level in zip(plain, word.maps, strict=True)])
    return lit


def write_explanation(folder: Path, found: Explanation, question: str) -> None:
    """Write FOLDER/explanation.html and, for each word, FOLDER/01-word.png. Raises WriteError."""
    folder.mkdir(parents=True, exist_ok=True)
    cards = []
    for number, (word, seen) in enumerate(zip(found.words, pictures(found), strict=True), 1):
        sheet = _stacked(seen)
        name = "".join(letter for letter in word.text if letter.isalnum()) or "mark"
        with atomic_write(folder / f"{number:02}-{name[:40]}.png") as temporary:
            sheet.save(temporary, "PNG")
        cards.append(_card(word, sheet))
    answer = "".join(word.text for word in found.words).strip()
    body = f"""<header><h1>Where it looks for each word</h1>
<dl><div><dt>asked</dt><dd>{escape(question)}</dd></div><div><dt>answered</dt><dd>{escape(answer)}</dd></div></dl>
<p class="legend-line">{LEGENDS[found.method]}; blind: how likely the word, or a token of it, is when all media are
blank</p></header>
<section class="surfaces">{"".join(_given(surface, found.rate) for surface in found.surfaces)}</section>
<section class="spoken">{"".join(cards)}</section>"""
    style = Path(__file__).with_name("explain.css").read_text(encoding="utf-8")
    write_page(folder / "explanation.html", f"Where it looks: {answer}", body, style)


def _card(word: Word, sheet: Image.Image) -> str:
    text = word.text.strip()
    told = f"{word.probability:.0%} likely, blind {word.blind:.0%}"
    if max(float(level.max()) for level in word.maps) < LEAST:
        told += ": no place of its own"
    picture = f'<img src="{picture_uri(sheet, max(sheet.size))}" alt="Where it looks for {escape(text)}">'
    tokens = "".join(map(_token, word.tokens)) if len(word.tokens) > 1 else ""
    tokens = f'<ul class="tokens" aria-label="Its tokens">{tokens}</ul>' if tokens else ""
    return f"<figure><figcaption><b>{escape(text)}</b><small>{told}</small>{tokens}</figcaption>{picture}</figure>\n"


def _token(token: Token) -> str:
    """A word of one token is that token."""
    told = f"{token.probability:.0%}, blind {token.blind:.0%}"
    return f"<li><code>{escape(token.text.strip() or '␣')}</code> {told}</li>"


def _given(surface: Surface, rate: int) -> str:
    picture = _plain(surface, rate)
    sound = ""
    if surface.kind == "audio":
        waveform = Waveform(getattr(surface.item, surface.part).numpy(), rate)
        sound = f'<audio controls preload="none" src="{sound_uri(waveform)}" aria-label="the sound"></audio>'
    return f'<figure><img src="{picture_uri(picture, max(picture.size))}" alt="what it was given">{sound}</figure>'


def _lit(picture: Image.Image, level: np.ndarray) -> Image.Image:
    """The picture of a surface, the darker the lower the level (of 1) there."""
    if level.ndim == 3:  # of frames, which stand side by side
        level = np.concatenate(list(level), axis=1)  # rows, frames x columns
    level = np.atleast_2d(np.clip(level, 0, 1))
    shade = Image.fromarray((255 * level).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    share = 0.2 + 0.8 * np.asarray(shade, dtype=float)[..., None] / 255
    lit = share * np.asarray(picture, dtype=float) + (1 - share) * _VEIL
    return Image.fromarray(lit.round().astype(np.uint8))


def _plain(surface: Surface, rate: int) -> Image.Image:
    """As its encoder gets it: a picture, frames side by side, or the spectrogram of a sound."""
    data = getattr(surface.item, surface.part)
    if surface.kind == "audio":
        return spectrogram(Waveform(data.numpy(), rate), 2 * SIDE, SIDE // 2).convert("RGB")
    frames = data if data.ndim == 4 else data[None]  # time, channels, height, width
    sheet = np.concatenate(list(frames.permute(0, 2, 3, 1).numpy()), axis=1)  # height, time x width, channels
    height, width = frames.shape[-2:]
    scale = SIDE / max(height, width)
    size = round(width * scale) * len(frames), round(height * scale)
    return Image.fromarray(sheet).resize(size, Image.Resampling.BICUBIC)


def _stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other."""
    if len(sheets) == 1:
        return sheets[0]
    gap = 6
    whole = Image.new("RGB", (max(one.width for one in sheets), sum(one.height + gap for one in sheets) - gap), "white")
    top = 0
    for one in sheets:
        whole.paste(one, (0, top))
        top += one.height + gap
    return whole
