"""A sheet of samples as one PNG: each picture with question, prediction and truth under it."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmgpt.evaluation.pictures import shrunk, spectrogram, strip
from mmgpt.evaluation.report import ReportSample
from mmgpt.files import atomic_write

WIDTH, HEIGHT = 300, 200  # of a picture's place
GAP, LINE, LINES = 24, 22, 3  # space between cells, height of a line of text, most lines of one text
PAPER, INK, QUIET, RIGHT, WRONG = "#ffffff", "#1e2124", "#62666d", "#1c7048", "#ab3f16"


def write_contact_sheet(
    path: str | Path, samples: Sequence[ReportSample], *, title: str = "", columns: int = 4
) -> None:
    """Write a PNG of the samples, `columns` to a row. Raises WriteError if the file cannot be written."""
    columns = max(1, min(columns, len(samples)))
    font = ImageFont.load_default(16)
    cells = [_cell(sample, font) for sample in samples]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    top = GAP + (2 * LINE if title else 0)
    height = top + sum(max(cell.height for cell in row) + GAP for row in rows)
    sheet = Image.new("RGB", (GAP + columns * (WIDTH + GAP), height), PAPER)
    if title:
        ImageDraw.Draw(sheet).text((GAP, GAP), title, INK, ImageFont.load_default(20))
    for row in rows:
        for i, cell in enumerate(row):
            sheet.paste(cell, (GAP + i * (WIDTH + GAP), top))
        top += max(cell.height for cell in row) + GAP
    with atomic_write(path) as temporary:
        sheet.save(temporary, "PNG")


def _cell(sample: ReportSample, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    colour = {True: RIGHT, False: WRONG, None: INK}[sample.correct]
    texts = [
        (sample.question, QUIET),
        (f"{sample.verdict}: {sample.prediction}" if sample.verdict else sample.prediction, colour),
        (f"truth: {sample.truth}", INK),
    ]
    lines = [(line, ink) for text, ink in texts for line in _wrapped(text, font)]
    picture = _picture(sample)
    above = HEIGHT if picture is not None else 0
    cell = Image.new("RGB", (WIDTH, above + 8 + LINE * len(lines)), PAPER)
    if picture is not None:
        cell.paste(picture, ((WIDTH - picture.width) // 2, (HEIGHT - picture.height) // 2))
    draw = ImageDraw.Draw(cell)
    for i, (line, ink) in enumerate(lines):
        draw.text((0, above + 8 + i * LINE), line, ink, font)
    return cell


def _picture(sample: ReportSample) -> Image.Image | None:
    if sample.image is not None:
        scale = min(WIDTH / sample.image.width, HEIGHT / sample.image.height)
        if scale >= 2:  # a tiny picture is shown pixel by pixel
            size = (sample.image.width * int(scale), sample.image.height * int(scale))
            return sample.image.convert("RGB").resize(size, Image.Resampling.NEAREST)
        return shrunk(sample.image, WIDTH, HEIGHT)
    if sample.clip is not None and len(sample.clip.frames):
        return strip(sample.clip.frames, WIDTH, HEIGHT)
    return None if sample.audio is None else spectrogram(sample.audio, WIDTH, HEIGHT // 2)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The text in lines that fit a cell, dots included; what goes beyond LINES ends in dots."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= WIDTH - 20 or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], lines[LINES - 1] + " …"]
    return lines
