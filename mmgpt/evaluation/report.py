"""The report of a run as one HTML file: scores, loss curve, and samples with their media beside what was said.

Nothing is fetched and nothing runs: media are data URIs, charts inline SVG, the filters plain CSS, and a content
security policy forbids the rest. All text is escaped.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

from PIL import Image

from mmgpt.evaluation.charts import learning_curve, score_bar
from mmgpt.evaluation.pictures import LISTEN_SECONDS, TINY, picture_uri, sound_picture, spread
from mmgpt.evaluation.playable import sound_uri, video_uri
from mmgpt.files import atomic_write
from mmgpt.media import Clip, Waveform

FRAMES = 8  # of a video, at most
CHOICES = 40  # values of a filter; the rarer ones share one more
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


def number(value: float, times: int, digits: int = 1, sign: str = "") -> str:
    """A score as people read it, with so many digits behind the point; two more where it is no fraction."""
    return f"{times * value:{sign}.{digits if times == 100 else digits + 2}f}"


@dataclass(frozen=True)
class TaskScore:
    """One row of the table of scores. Most scores are fractions that are shown times 100.

    Args:
        task: Name of the task; may come again with another metric.
        score: What the model reached.
        n: Number of samples.
        metric: What is measured, in words.
        unit: "%" for shares, "" for points (CIDEr, BLEU).
        times: What a score is multiplied by where people read it: 100, or 1 for perplexity and bits.
        interval: Low and high end of the 95 % interval.
        control: The score with the media shuffled among the samples.
        groups: Score and number of samples of each sub-group (seen, new combinations).
        goal: What the run is meant to reach.
        chance: What guessing reaches.
        before: What the model reached before it was trained on.
        lower_is_better: True for error rates.
        signature: What must be the same for scores to compare, where the metric's original tells it.
    """

    task: str
    score: float
    n: int
    metric: str = "exactly right"
    unit: str = "%"
    times: int = 100
    interval: tuple[float, float] | None = None
    control: float | None = None
    groups: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    goal: float | None = None
    chance: float | None = None
    before: float | None = None
    lower_is_better: bool = False
    signature: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached, or None without one."""
        if self.goal is None:
            return None
        return self.score <= self.goal if self.lower_is_better else self.score >= self.goal

    def shown(self, value: float) -> str:
        """A value of this row as text, with the unit."""
        return f"{self.number(value)}\N{NO-BREAK SPACE}{self.unit}".rstrip()

    def number(self, value: float, digits: int = 1) -> str:
        """A value of this row as text, without the unit."""
        return number(value, self.times, digits)


@dataclass(frozen=True)
class ReportSample:
    """A sample, what the model said, and what is true. `correct` is None where a text is only more or less right.

    `where` is where it comes from, `control` what the model said when the media were shuffled, where that is told, and
    `facets` what samples are filtered by: {"class": "dog"}. A clip can be played if it has more than FRAMES frames.
    """

    task: str
    question: str
    prediction: str
    truth: str
    correct: bool | None = None
    image: Image.Image | None = None
    audio: Waveform | None = None
    clip: Clip | None = None
    score: float | None = None
    where: str = ""
    control: str | None = None
    facets: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """right, wrong, or the score where there is no right or wrong."""
        if self.correct is not None:
            return "right" if self.correct else "wrong"
        return "" if self.score is None else f"score {self.score:.2f}"


@dataclass(frozen=True)
class Room:
    """How much room the media of a sample have in a page.

    Args:
        side: Pixels of the larger side of a picture or a clip.
        frames: Frames of a clip that are shown side by side.
        seconds: Of a sound.
    """

    side: int = 480
    frames: int = FRAMES
    seconds: float = LISTEN_SECONDS


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: Sequence[tuple[str, str]] = (),
    curve: Sequence[Mapping[str, float]] = (),
    scores: Sequence[TaskScore] = (),
    samples: Iterable[ReportSample] = (),
    more: Sequence[str] = (),
    note: str = "",
    room: Room = Room(),
) -> None:
    """Write the report to `path` as one self-contained HTML file.

    Args:
        path: The file; it is replaced at once or not at all.
        title: Heading of the page.
        summary: Facts about the run as (label, value).
        curve: Rows with `step` and `loss`, `val_loss`, `reward` or `val_reward`; other keys, and values that are not
            finite, are left out.
        scores: The table of scores.
        samples: The samples, shown by task in the order of their first coming. They are taken one by one, and their
            media not kept.
        more: More sections, of HTML, to stand before the samples.
        note: Which samples these are.
        room: That of the media of each.

    Raises:
        WriteError: the file cannot be written.
    """
    cards = [
        _Card(_media(sample, f"sample {number}", room), replace(sample, image=None, audio=None, clip=None))
        for number, sample in enumerate(samples, 1)
    ]
    facts = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in summary)
    sections = [f"<header><h1>{escape(title)}</h1><dl>{facts}</dl></header>"]
    if scores:
        sections.append(f'<section id="scores"><h2>Scores</h2>{_table(scores)}</section>')
    if figures := learning_curve(curve) + learning_curve(curve, "reward"):
        sections.append(f'<section id="training"><h2>Training</h2>{figures}</section>')
    sections += more
    style = ""
    if cards:
        tasks = list(dict.fromkeys(card.sample.task for card in cards))
        filters = _filters([card.sample for card in cards])
        groups = [
            _group(i, task, [card for card in cards if card.sample.task == task], filters)
            for i, task in enumerate(tasks)
        ]
        heading = f"<h2>Samples <small>{escape(note)}</small></h2>" if note else "<h2>Samples</h2>"
        controls = _controls([card.sample for card in cards], tasks, filters)
        sections.append(f'<section id="samples">{heading}{controls}{"".join(groups)}</section>')
        hidden = [f"body:has(#only-{i}:checked) .task:not(#task-{i})" for i in range(len(tasks))]
        for i, values in enumerate(filters.values()):
            for j in range(len(values)):
                chosen = f"body:has(#by-{i} option[value='{j}']:checked)"
                hidden += [f"{chosen} article:not(.by-{i}-{j})", f"{chosen} .task:not(:has(.by-{i}-{j}))"]
        style = f"{', '.join(hidden)} {{ display: none; }}\n"
    write_page(path, title, "\n".join(sections), style)


def write_page(path: str | Path, title: str, body: str, style: str = "") -> None:
    """Write a self-contained HTML page in the style of the reports, and more style. Raises WriteError."""
    common = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{common}{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")


def _table(scores: Sequence[TaskScore]) -> str:
    marks = {
        "control": "same questions, media shuffled",
        "goal": "goal",
        "chance": "chance",
        "before": "before this training",
    }
    interval = any(score.interval is not None for score in scores)
    key = f'<li class="score">score{", with 95&nbsp;% interval" if interval else ""}</li>' + "".join(
        f'<li class="{name}">{text}</li>'
        for name, text in marks.items()
        if any(getattr(score, name) is not None for score in scores)
    )
    rows = "".join(map(_row, scores))
    return f"""<table class="scores" role="table"><thead role="rowgroup"><tr role="row">
<th role="columnheader" scope="col">Task</th><th role="columnheader" scope="col">Score</th>
<th role="columnheader" scope="col"><ul class="key">{key}</ul></th>
<th role="columnheader" scope="col">Shuffled</th><th role="columnheader" scope="col">Samples</th>
</tr></thead><tbody role="rowgroup">{rows}</tbody></table>"""


def _row(score: TaskScore) -> str:
    beside = (score.control, score.goal, score.chance, score.before, *(score.interval or ()))
    values = [score.score, *(value for value in beside if value is not None)]
    told = [f"{score.task}: {score.shown(score.score)}"]
    details = []
    if score.interval is not None:
        told.append(f"interval {score.shown(score.interval[0])} to {score.shown(score.interval[1])}")
        details.append(" – ".join(map(score.number, score.interval)))
    if score.control is not None:
        told.append(f"with shuffled media {score.shown(score.control)}")
    if score.goal is not None:
        told.append(f"goal {score.shown(score.goal)}")
        limit = "at most" if score.lower_is_better else "goal"
        details.append(f"{limit} {score.times * score.goal:g}: {'✓ reached' if score.reached else '✗ missed'}")
    if score.chance is not None:
        told.append(f"chance {score.shown(score.chance)}")
    if score.before is not None:
        told.append(f"before this training {score.shown(score.before)}")
        details.append(f"before: {score.number(score.before)}")
    bar = score_bar(
        score.score,
        full=max(1.0, *values),
        label=", ".join(told),
        interval=score.interval,
        control=score.control,
        goal=score.goal,
        chance=score.chance,
        before=score.before,
    )
    groups = "".join(
        f"<li>{escape(name)} <b>{score.shown(value)}</b> <span>of {n:,}</span></li>"
        for name, (value, n) in score.groups.items()
    )
    groups = f'<ul class="groups">{groups}</ul>' if groups else ""
    detail = "".join(f"<small>{text}</small>" for text in details)
    control = "–" if score.control is None else score.shown(score.control)
    name = f"{escape(score.task)}<small>{escape(score.metric)}</small>"
    if score.signature:
        name += f'<small class="signature">{escape(score.signature)}</small>'
    return f"""<tr role="row"><th role="rowheader" scope="row">{name}</th>
<td role="cell" class="value"><b>{score.shown(score.score)}</b>{detail}</td>
<td role="cell" class="chart">{bar}{groups}</td>
<td role="cell" class="number" data-label="media shuffled">{control}</td>
<td role="cell" class="number" data-label="samples">{score.n:,}</td></tr>
"""


@dataclass(frozen=True)
class _Card:
    """A sample without its media, and their HTML."""

    media: str
    sample: ReportSample


def _filters(samples: Sequence[ReportSample]) -> dict[str, dict[str, int]]:
    """What samples can be filtered by: the values of each facet with their numbers of samples, where they differ."""
    filters = {}
    for facet in dict.fromkeys(name for sample in samples for name in sample.facets):
        counts = Counter(sample.facets[facet] for sample in samples if facet in sample.facets)
        kept = dict(counts.most_common(CHOICES))
        if len(kept) > 1:
            rest = {"others": counts.total() - sum(kept.values())} if len(counts) > CHOICES else {}
            filters[facet] = dict(sorted(kept.items(), key=lambda pair: natural(pair[0]))) | rest
    return filters


def natural(text: str) -> list[tuple[float, str]]:
    """The key by which texts are sorted as people do: 3 before 20."""
    pieces = re.findall(r"(\d+(?:\.\d+)?)|([^\d]+)", text)
    return [(float(number), "") if number else (float("inf"), word) for number, word in pieces]


def _controls(samples: Sequence[ReportSample], tasks: Sequence[str], filters: Mapping[str, Mapping[str, int]]) -> str:
    counts = {
        "all": len(samples),
        "right": sum(sample.correct is True for sample in samples),
        "wrong": sum(sample.correct is False for sample in samples),
    }
    fields = ""
    if counts["right"] or counts["wrong"]:
        fields += _radios("Show", "show", [(name, name, str(count)) for name, count in counts.items()])
    if len(tasks) > 1:
        named = [(str(i), task, str(sum(sample.task == task for sample in samples))) for i, task in enumerate(tasks)]
        fields += _radios("Task", "only", [("all", "all", ""), *named])
    for i, (facet, values) in enumerate(filters.items()):
        named = enumerate(values.items())
        options = "".join(f'<option value="{j}">{escape(value)} ({n:,})</option>' for j, (value, n) in named)
        fields += f"""<label class="by">{escape(facet.capitalize())} <select id="by-{i}" autocomplete="off">
<option value="all">all</option>{options}</select></label>"""
    return f'<div class="controls">{fields}</div>'


def _radios(legend: str, group: str, choices: Sequence[tuple[str, str, str]]) -> str:
    """Of (key, name, count) the first is chosen at the beginning."""
    inputs = "".join(
        f'<label><input type="radio" name="{group}" id="{group}-{key}"{"" if i else " checked"}>'
        f"<span>{escape(name)} <small>{count}</small></span></label>"
        for i, (key, name, count) in enumerate(choices)
    )
    return f"<fieldset><legend>{legend}</legend>{inputs}</fieldset>"


def _group(index: int, task: str, cards: Sequence[_Card], filters: Mapping[str, Mapping[str, int]]) -> str:
    judged = [card.sample.correct for card in cards if card.sample.correct is not None]
    count = f"{sum(judged)} of {len(judged)} shown here right" if judged else f"{len(cards)} shown"
    articles = "".join(_article(card, filters) for card in cards)
    return f"""<section class="task" id="task-{index}"><h3>{escape(task)} <small>{count}</small></h3>
<div class="cards">{articles}</div></section>
"""


def _media(sample: ReportSample, name: str, room: Room) -> str:
    media = ""
    if sample.image is not None:
        media += _picture(sample.image, f"Picture of {name}", room)
    if sample.clip is not None:
        media += _frames(sample.clip, name, room)
        if len(sample.clip.frames) > FRAMES:
            media += _video(sample.clip, name, room)
        elif sample.clip.sound is not None:
            media += _sound(sample.clip.sound, f"Sound track of {name}", room)
    if sample.audio is not None:
        media += _sound(sample.audio, f"Sound of {name}", room)
    return media


def _article(card: _Card, filters: Mapping[str, Mapping[str, int]]) -> str:
    sample = card.sample
    kind = "open" if sample.correct is None else sample.verdict
    mark = {"right": "✓ ", "wrong": "✗ "}.get(kind, "")
    verdict = f'<p class="verdict">{mark}{sample.verdict}</p>' if sample.verdict else ""
    control = (
        f'<dt>Media shuffled</dt><dd dir="auto">{escape(sample.control)}</dd>' if sample.control is not None else ""
    )
    where = f'<p class="where">{escape(sample.where)}</p>' if sample.where else ""
    classes = [kind]
    for i, (facet, values) in enumerate(filters.items()):
        if facet in sample.facets:
            place = list(values).index(sample.facets[facet] if sample.facets[facet] in values else "others")
            classes.append(f"by-{i}-{place}")
    return f"""<article class="{" ".join(classes)}">{card.media}<div class="words">{verdict}
<p class="question" dir="auto">{escape(sample.question)}</p>
<dl><dt>Prediction</dt><dd class="prediction" dir="auto">{escape(sample.prediction) or "<i>nothing</i>"}</dd>
<dt>Truth</dt><dd dir="auto">{escape(sample.truth)}</dd>{control}</dl>{where}</div></article>
"""


def _picture(image: Image.Image, alt: str, room: Room) -> str:
    tiny = ' class="tiny"' if max(image.size) <= TINY else ""
    width, height = image.size
    uri = picture_uri(image, room.side)
    return f'<img{tiny} src="{uri}" alt="{escape(alt)}" width="{width}" height="{height}" loading="lazy">'


def _frames(clip: Clip, name: str, room: Room) -> str:
    places = list({time: i for i, time in enumerate(clip.times)}.values())  # a short clip repeats its frames
    frames = "".join(
        f'<li><img src="{picture_uri(Image.fromarray(clip.frames[places[i]]), room.side // 2)}" alt="" loading="lazy">'
        f"<small>{clip.times[places[i]]:.2f} s</small></li>"
        for i in spread(len(places), room.frames)
    )
    return f'<ol class="frames" role="img" aria-label="Frames of {escape(name)}, in order">{frames}</ol>'


def _video(clip: Clip, name: str, room: Room) -> str:
    poster = picture_uri(Image.fromarray(clip.frames[0]), room.side)
    return f"""<video controls playsinline preload="none" poster="{poster}" src="{video_uri(clip, room.side)}"
aria-label="Clip of {escape(name)}"></video>"""


def _sound(sound: Waveform, alt: str, room: Room) -> str:
    seconds = f"{sound.seconds:.1f} s"
    if sound.seconds > room.seconds:
        seconds = f"first {room.seconds:g} s of {seconds}"
        sound = Waveform(sound.samples[: round(room.seconds * sound.sample_rate)], sound.sample_rate)
    picture = picture_uri(sound_picture(sound, room.side, 7 * room.side // 20), room.side)
    return f"""<figure class="sound"><img src="{picture}" alt="Waveform and spectrogram: {escape(alt)}" loading="lazy">
<figcaption>{seconds}, 0 – {sound.sample_rate / 2000:g} kHz</figcaption>
<audio controls preload="none" src="{sound_uri(sound)}" aria-label="{escape(alt)}"></audio></figure>"""
