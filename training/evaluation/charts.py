"""The charts of the results page, as inline SVG: curves of a training run, and the drift over the frame index t."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

from markupsafe import Markup

from styleinv.training.evaluation.page_tables import shown

Points = Sequence[tuple[float, float]]  # (x, y)

WIDTH, HEIGHT = 320, 176  # of a chart, in its own units; the plot lies between the edges:
LEFT, RIGHT, TOP, BOTTOM = 62, 290, 12, 132
LOGARITHMIC_FROM = 100.0  # largest over smallest value of a positive curve
COLUMNS = 160  # a curve of more points than twice this keeps the extremes of each column
SMOOTHED_SHARE = 0.05  # of a curve's points, in the window of the smoothed line


def curve_chart(name: str, points: Points) -> tuple[str, str, Markup]:
    """(name, caption, SVG) of a curve: its smoothed line over the faint raw one. Points not finite are counted."""
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    lost = len(points) - len(finite)
    remark = f"{lost} of {len(points)} points not finite" if lost else ""
    if not finite:
        return name, remark or "no points", Markup("")
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    low, high = min(ys), max(ys)
    logarithmic = low > 0 and high > LOGARITHMIC_FROM * low
    across, up = between(xs), between([math.log(y) for y in ys] if logarithmic else ys)
    line = smoothed(up, round(SMOOTHED_SHARE * len(up)))
    last = shown(ys[-1])
    caption = ", ".join(text for text in (f"last {last}", "log scale" if logarithmic else "", remark) if text)
    parts = [path_of("raw", thinned(list(zip(across, up, strict=True))))]
    parts += (
        [path_of("line", thinned(list(zip(across, line, strict=True))))] if len(finite) > 1 else [dot(across[0], up[0])]
    )
    ticks = {0.0: shown(low, 3), 1.0: shown(high, 3)} if high > low else {0.5: shown(low, 3)}
    x_ticks = {0.0: shown(min(xs)), 1.0: shown(max(xs))} if max(xs) > min(xs) else {0.5: shown(xs[0])}
    spoken = f"{name} over images seen: last {last}, smallest {shown(low)}, largest {shown(high)}"
    return name, caption, svg(parts, x_ticks, ticks, "images seen", spoken)


def drift_chart(points: Points) -> Markup:
    """Distance to the real frames, from 0 up, over log(1 + t) of the frame index t; dashed: the distance at t = 0."""
    if len(points) < 2:
        return Markup("")
    across = between([math.log1p(t) for t, _ in points])
    top = max(found for _, found in points) or 1.0
    up = [found / top for _, found in points]
    ticks: dict[float, str] = {}
    for x, (t, _) in zip(across, points, strict=True):
        if not ticks or x - max(ticks) > 0.12:  # room for the label
            ticks[x] = shown(t)
    parts = [path_of("level", [(0.0, up[0]), (1.0, up[0])]), path_of("line", list(zip(across, up, strict=True)))]
    parts += [dot(x, y) for x, y in zip(across, up, strict=True)]
    spoken = "Distance over the frame index t: " + ", ".join(f"{shown(y)} at t = {shown(t)}" for t, y in points)
    return svg(parts, ticks, {0.0: "0", 1.0: shown(top, 3)}, "frame index t (log scale)", spoken)


def between(values: Sequence[float]) -> list[float]:
    """The values on a scale of 0 (the smallest) to 1 (the largest); 0.5 where they are all the same."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean over `window` values on each side, fewer at the ends."""
    sums = [0.0, *accumulate(values)]
    spans = [(max(0, i - window), min(len(values), i + window + 1)) for i in range(len(values))]
    return [(sums[last] - sums[first]) / (last - first) for first, last in spans]


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most four points a column: the first, the lowest, the highest and the last, so that no peak is lost."""
    if len(points) <= 2 * COLUMNS:
        return points
    size = math.ceil(len(points) / COLUMNS)
    kept = []
    for start in range(0, len(points), size):
        column = range(start, min(start + size, len(points)))
        extremes = {f(column, key=lambda i: points[i][1]) for f in (min, max)}
        kept += [points[i] for i in sorted({column[0], column[-1]} | extremes)]
    return kept


def place(x: float, y: float) -> tuple[str, str]:
    """Where a point of the unit square lies in a chart."""
    return f"{LEFT + x * (RIGHT - LEFT):.1f}", f"{BOTTOM - y * (BOTTOM - TOP):.1f}"


def path_of(kind: str, points: Points) -> Markup:
    return Markup('<path class="{}" d="M{}"/>').format(kind, " ".join(",".join(place(x, y)) for x, y in points))


def dot(x: float, y: float) -> Markup:
    return Markup('<circle class="dot" cx="{}" cy="{}" r="3.5"/>').format(*place(x, y))


def svg(
    parts: Sequence[Markup], x_ticks: Mapping[float, str], y_ticks: Mapping[float, str], x_label: str, spoken: str
) -> Markup:
    """A chart; ticks are places from 0 to 1 and their labels, `spoken` is what a screen reader says."""
    drawn = [Markup('<path class="axis" d="M{0},{1} {0},{2} {3},{2}"/>').format(LEFT, TOP, BOTTOM, RIGHT)]
    for y, label in y_ticks.items():
        drawn.append(
            Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 6, float(place(0, y)[1]) + 4, label)
        )
    below = [*x_ticks.items(), (0.5, x_label)]
    heights = [BOTTOM + 16] * len(x_ticks) + [BOTTOM + 34]
    for (x, label), y in zip(below, heights, strict=True):
        drawn.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(place(x, 0)[0], y, label))
    start = Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return start.format(WIDTH, HEIGHT, spoken) + Markup("").join([*drawn, *parts]) + Markup("</svg>")
