"""The charts of the report as inline SVG: a learning curve and the bar of a score. Text goes in, no scripts come out.

Lines are drawn in a stretched inner view, labels in the outer one, so text keeps its size at every page width.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = list[tuple[float, float]]


def learning_curve(curve: Sequence[Mapping[str, float]], name: str = "loss") -> str:
    """The figure of a training run from rows with `step` and `loss` or `val_loss`; empty if nothing is to be drawn.

    Or of what else is named so: of a `reward` the best is the highest.
    """
    training, validation = _binned(_series(curve, name), 240), _series(curve, f"val_{name}")
    points = training + validation
    if not points:
        return ""
    last = max(step for step, _ in points)
    steps, values = _ticks(last), _ticks(max(value for _, value in points))
    right, top = max(last, 1), values[-1] or 1.0

    def place(point: tuple[float, float]) -> str:
        return f"{1000 * point[0] / right:.1f},{1000 * (1 - point[1] / top):.1f}"

    grid = "".join(
        f'<line x1="0" x2="100%" y1="{100 * (1 - value / top):.2f}%" y2="{100 * (1 - value / top):.2f}%"/>'
        f'<text x="0" dx="-10" y="{100 * (1 - value / top):.2f}%" dy="4" text-anchor="end">{value:g}</text>'
        for value in values
    )
    grid += "".join(
        f'<text x="{100 * step / right:.2f}%" y="100%" dy="22" text-anchor="middle">{_thousands(step)}</text>'
        for step in steps
        if step <= right and step % 1 == 0  # steps are whole
    )
    lines, dots, legend = "", "", ""
    for split, kind, line in (("training", "train", training), ("validation", "val", validation)):
        if not line:
            continue
        lines += f'<polyline class="{kind}" points="{" ".join(map(place, line))}"/>'
        step, value = line[-1]  # its end is marked, or a line of one point would not be seen
        dots += f'<circle class="{kind}" cx="{100 * step / right:.2f}%" cy="{100 * (1 - value / top):.2f}%" r="4"/>'
        word, choose = ("lowest", min) if name == "loss" else ("highest", max)
        best = f", {word} {choose(value for _, value in line):.3g}" if kind == "val" else ""
        legend += f'<li class="{kind}">{split}, last {line[-1][1]:.3g}{best}</li>'
    label = f"{name.capitalize()} over {_thousands(last)} steps"
    return (
        f'<figure class="curve"><ul class="legend">{legend}</ul><div class="plot">'
        f'<svg role="img" aria-label="{escape(label)}"><g class="grid">{grid}</g>'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">{lines}</svg>'
        f"{dots}</svg></div>"
        f"<figcaption>{name.capitalize()} (vertical) by training step</figcaption></figure>"
    )


def score_bar(
    score: float,
    *,
    full: float,
    label: str,
    interval: tuple[float, float] | None = None,
    control: float | None = None,
    goal: float | None = None,
    chance: float | None = None,
    before: float | None = None,
) -> str:
    """A bar from 0 to `full`: the score with its interval, the control under it, lines across for the others."""

    def at(value: float) -> str:
        return f"{100 * min(max(value / full, 0), 1):.2f}%"

    marks = '<rect class="track" width="100%" height="12" y="3" rx="2"/>'
    marks += f'<rect class="score" width="{at(score)}" height="12" y="3" rx="2"/>'
    if control is not None:
        marks += f'<rect class="control" width="{at(control)}" height="5" y="19" rx="1"/>'
    if interval is not None:
        low, high = map(at, interval)
        marks += f'<g class="interval"><line x1="{low}" x2="{high}" y1="9" y2="9"/>'
        marks += "".join(f'<line x1="{x}" x2="{x}" y1="6" y2="12"/>' for x in (low, high)) + "</g>"
    for kind, value in (("goal", goal), ("chance", chance), ("before", before)):
        if value is not None:
            marks += f'<line class="{kind}" x1="{at(value)}" x2="{at(value)}" y1="0" y2="27"/>'
    return f'<svg class="bar" height="27" role="img" aria-label="{escape(label)}">{marks}</svg>'


def _series(curve: Sequence[Mapping[str, float]], name: str) -> Points:
    """(step, value) of the rows that have a finite value, by step."""
    rows = ((row["step"], row.get(name)) for row in curve)
    return sorted((float(step), float(value)) for step, value in rows if value is not None and math.isfinite(value))


def _binned(points: Points, most: int) -> Points:
    """At most `most` points: the means of runs of neighbours."""
    size = -(-len(points) // most) or 1
    bins = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in bins]


def _ticks(highest: float) -> list[float]:
    """Round values from 0 to at least `highest`, four to six of them."""
    if highest <= 0:
        return [0.0, 1.0]
    power = 10 ** math.floor(math.log10(highest / 4))
    unit = next(unit * power for unit in (1, 2, 2.5, 5, 10) if highest / (unit * power) <= 5)
    return [round(i * unit, 12) for i in range(math.ceil(highest / unit - 1e-9) + 1)]


def _thousands(number: float) -> str:
    return f"{number:,.0f}"
