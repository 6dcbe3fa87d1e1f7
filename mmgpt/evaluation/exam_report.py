"""The page of an evaluation: its scores, where they come from, and the samples, worst first."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mmgpt.content import Video
from mmgpt.data.sample import Sample
from mmgpt.errors import MediaError
from mmgpt.evaluation.asking import Answered
from mmgpt.evaluation.charts import score_bar
from mmgpt.evaluation.pictures import LISTEN_SECONDS
from mmgpt.evaluation.report import FRAMES, ReportSample, Room, TaskScore, natural, write_report
from mmgpt.evaluation.retrieval import Search
from mmgpt.evaluation.runner import Measured, media_of, shown
from mmgpt.tasks import TASKS

CARDS = 1000  # samples in the page, those of all tasks together
SEEN = 12  # media of a task in the page of what was retrieved
LARGE = 60  # samples in the page, at most, for their pictures to be large
SOUNDS = 4000.0  # seconds of sound in the page, those of all samples together: 16 MB
PLAYED, PLAYED_FRAMES = 24, 48  # clips in the page that can be played, and the frames of each
CLASSES = 12  # rows of a confusion matrix; the other classes share one more
KINDS = 30  # kinds of questions whose scores are told, the most frequent ones
REASONS = 20  # why samples could not be asked
_LENGTHS = (1, 2, 4, 8, 16, 32)  # words; where the groups of answers by their length end
_SCORES = (0.25, 0.5, 0.75, 1.0)  # where the groups of samples by their score begin


def write_exam_report(
    path: Path,
    settings: Mapping[str, Any],
    measures: Sequence[Measured],
    scores: Sequence[TaskScore],
    answered: Mapping[int, Answered],
    controls: Mapping[int, Answered],
    failed: Mapping[int, str],
) -> None:
    """Write the page.

    Args:
        path: The file.
        settings: Those of the evaluation, as it writes them.
        measures: The metrics of all tasks, as they were measured.
        scores: The same, beside those of the control.
        answered: The answers by the places of their samples.
        controls: Those with the media shuffled.
        failed: Why the others have none.

    Raises:
        WriteError: The file cannot be written.
    """
    model, data, decoding = (settings[name] for name in ("model", "data", "decoding"))
    most = decoding["max_new_tokens"]
    how = f"beams of {decoding['beams']}" if decoding["beams"] > 1 else f"temperature {decoding['temperature']:g}"
    summary = [
        ("model", model["name"] + (" in int8" if model["int8"] else "")),
        ("data", f"{data['path']} ({data['format']}, {data['split']})"),
        ("samples", f"{data['samples']:,}"),
        ("not answered", f"{len(failed):,}"),
        ("decoding", "the likeliest of all answers" if decoding["choose"] else f"{how}, at most {most} tokens"),
        ("seed", str(decoding["seed"])),
    ]
    tasks = list(dict.fromkeys(one.sample.task for one in answered.values()))
    firsts = [found for task in tasks if (found := _first([one for one in measures if one.task == task])) is not None]
    more = [
        *[_confusion(one) for one in firsts if "accuracy" in TASKS[one.task].metrics],
        *[section for one in firsts for section in _by_kinds(one)],
        *[_split(one, "length of the right answer", [_length(own) for own in one.answered]) for one in firsts],
        _reasons(list(failed.values())),
    ]
    places = {id(one): place for place, one in answered.items()}
    told: list[Scored] = []
    played = set()
    for task in tasks:
        worst = _worst_first([one for one in answered.values() if one.sample.task == task], firsts, task)
        cards = _ends(worst, CARDS // len(tasks))
        told += cards
        clips = [pair for pair in cards if any(isinstance(part, Video) for part in media_of(pair[0].sample))]
        played |= {id(one) for one, _ in _ends(clips, PLAYED // len(tasks))}

    def samples() -> Iterator[ReportSample]:
        for one, score in told:
            frames = PLAYED_FRAMES if id(one) in played else FRAMES
            yield _card(one, score, controls.get(places[id(one)]), frames)

    seconds = min(LISTEN_SECONDS, round(SOUNDS / max(len(told), 1), 1))
    room = Room(seconds=seconds) if len(told) <= LARGE else Room(192, 4, seconds)
    title = f"Evaluation of {Path(model['name']).name}"
    note = "" if len(told) == len(answered) else f"the best and worst {len(told):,} of {len(answered):,}"
    write_report(path, title=title, summary=summary, scores=scores, samples=samples(), more=more, note=note, room=room)


def _first(measures: Sequence[Measured]) -> Measured | None:
    """The metric that a task's samples are sorted by: the first, or VQA's where all have the answers of people."""
    whole = len(measures[0].answered) if measures else 0
    votes = [one for one in measures if one.metric.votes and len(one.answered) == whole]
    return next(iter([*votes, *measures]), None)


def write_retrieval_report(
    path: Path,
    settings: Mapping[str, Any],
    scores: Sequence[TaskScore],
    searches: Sequence[Search],
    samples: Sequence[Sample],
    failed: Mapping[int, str],
) -> None:
    """Write the page of what was retrieved: the scores, and for media, those found last first, what is nearest to them.

    Raises WriteError when the file cannot be written.
    """
    model, data = settings["model"], settings["data"]
    summary = [
        ("model", model["name"] + (" in int8" if model["int8"] else "")),
        ("data", f"{data['path']} ({data['format']}, {data['split']})"),
        ("samples", f"{data['samples']:,}"),
        ("not searched for", f"{len(failed):,}"),
    ]
    cards = []
    for one in searches:
        rows = sorted(zip(one.way.ranks, one.queries, one.nearest, strict=True), key=lambda row: -row[0])
        for rank, query, nearest in rows[:SEEN] if one.task != "find the medium" else ():
            card = shown(Answered(samples[int(query)], str(nearest)))
            cards.append(
                replace(card, task=one.task, question=f"the right one comes as number {rank}", correct=rank == 1)
            )
    title = f"Retrieval by {Path(model['name']).name}"
    more = [_reasons(list(failed.values()))]
    write_report(path, title=title, summary=summary, scores=scores, samples=cards, more=more, note="the worst")


Scored = tuple[Answered, tuple[Measured, float] | None]  # an answer, and what it scores alone


def _worst_first(answered: Sequence[Answered], firsts: Sequence[Measured], task: str) -> list[Scored]:
    found = next((one for one in firsts if one.task == task), None)
    if found is None:
        return [(one, None) for one in answered]
    pairs = zip(found.answered, found.score.alone(), strict=True)
    sign = -1 if found.metric.lower_is_better else 1
    return [(one, (found, value)) for one, value in sorted(pairs, key=lambda pair: sign * pair[1])]


def _ends(ordered: Sequence[Scored], most: int) -> Sequence[Scored]:
    """All, or of too many two parts of the first and one of the last."""
    last = most // 3
    return ordered if len(ordered) <= most else [*ordered[: most - last], *ordered[len(ordered) - last :]]


def _card(one: Answered, score: tuple[Measured, float] | None, control: Answered | None, frames: int) -> ReportSample:
    try:
        card = shown(one, frames=frames)
    except MediaError:  # it has gone since it was asked
        card = shown(one, media=False)
    facets = {**one.sample.kinds, "length of the right answer": _length(one)}
    if "accuracy" in TASKS[one.sample.task].metrics:
        facets["class"] = one.sample.references[0].strip()
    card = replace(card, control=None if control is None else control.told, facets=facets)
    if score is None:
        return card
    of, value = score
    right = value <= 0 if of.metric.lower_is_better else value >= 1
    judged = TASKS[one.sample.task].exact and not (of.metric.votes and 0 < value < 1)  # some people agree
    if not of.metric.share:  # of what is right or wrong there are no more scores
        facets["score"] = _range_of(value)
    return replace(card, score=value, correct=right if judged else None, facets=facets)


def _length(one: Answered) -> str:
    words = len(one.sample.references[0].split())
    place = int(np.searchsorted(_LENGTHS, words))
    low = _LENGTHS[place - 1] + 1 if place else 0
    high = _LENGTHS[place] if place < len(_LENGTHS) else None
    told = f"{low} or more" if high is None else f"{high}" if low == high else f"{low} – {high}"
    return f"{told if place else words} words".replace("1 words", "1 word")


def _range_of(score: float) -> str:
    place = int(np.searchsorted(_SCORES, score, side="right"))
    if not place:
        return f"below {_SCORES[0]:g}"
    return f"{_SCORES[-1]:g} or more" if place == len(_SCORES) else f"{_SCORES[place - 1]:g} – {_SCORES[place]:g}"


def _confusion(one: Measured) -> str:
    """True classes down, answers across; classes beyond the most frequent share one row and column."""
    pairs = [(own.sample.references[0].strip(), own.prediction.strip()) for own in one.answered]
    counts = Counter(truth for truth, _ in pairs)
    every = [*(name for name, _ in counts.most_common()), *sorted({said for _, said in pairs} - counts.keys())]
    kept = every if len(every) <= CLASSES + 1 else every[:CLASSES]
    rest = len(every) - len(kept)
    names = [*kept, f"{rest} others"] if rest else kept
    place = {name: i for i, name in enumerate(kept)}
    table = np.zeros((len(names), len(names)), dtype=int)
    for truth, said in pairs:
        table[place.get(truth, len(kept)), place.get(said, len(kept))] += 1
    table_rows = ""
    for name, row in zip(names, table, strict=True):
        if whole := row.sum():
            cells = "".join(f'<td style="--share:{100 * n / whole:.0f}%">{n or ""}</td>' for n in row.tolist())
            table_rows += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return f"""<section class="confusion"><h2>What is taken for what <small>{escape(one.task)}</small></h2>
<div class="wide" tabindex="0" role="group" aria-label="Confusion matrix of {escape(one.task)}"><table>
<thead><tr><td>true ↓ said →</td>{heads}</tr></thead><tbody>{table_rows}</tbody></table></div></section>"""


def _by_kinds(one: Measured) -> Iterator[str]:
    """The scores of each kind of sample, where the data tell kinds."""
    for name in dict.fromkeys(name for own in one.answered for name in own.sample.kinds):
        yield _split(one, name, [own.sample.kinds.get(name, "not told") for own in one.answered])


def _split(one: Measured, by: str, groups: Sequence[str]) -> str:
    """The score of the answers of each group, the group of each answer given; nothing where all are of one."""
    counts = Counter(groups)
    if len(counts) < 2:
        return ""
    place = np.array(groups)
    named = TaskScore(one.task, 0.0, 0, unit=one.metric.unit, times=one.metric.times)
    names = sorted((name for name, _ in counts.most_common(KINDS)), key=natural)
    values = {name: one.score.weighted((place == name).astype(float)) for name in names}
    full = max(1.0, *values.values())
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f"<td>{score_bar(value, full=full, label=f'{name}: {named.shown(value)}')}</td>"
        f"<td>{named.shown(value)}</td><td>{counts[name]:,}</td></tr>"
        for name, value in values.items()
    )
    note = f", the {KINDS} most frequent of {len(counts)}" if len(counts) > KINDS else ""
    return f"""<section class="split"><h2>By the {escape(by)}
<small>{escape(one.task)}, {escape(one.metric.name)}{note}</small></h2>
<table><thead><tr><td></td><td></td><th scope="col">Score</th><th scope="col">Samples</th></tr></thead>
<tbody>{rows}</tbody></table></section>"""


def _reasons(failed: Sequence[str]) -> str:
    if not failed:
        return ""
    rest = f"<li>and {len(failed) - REASONS:,} more</li>" if len(failed) > REASONS else ""
    listed = "".join(f"<li>{escape(reason)}</li>" for reason in failed[:REASONS])
    return (
        f'<section class="failed"><h2>Not answered <small>{len(failed):,}</small></h2><ul>{listed}{rest}</ul></section>'
    )
