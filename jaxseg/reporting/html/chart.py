"""Line charts as SVG text for a page: one line per run, colors from the page's style.

In: points per run. Out: an <svg> of 400 × 240 units without outer references. Imports no JAX and no plotting library.
"""

import math
from html import escape

import numpy as np

from jaxseg.reporting.html.document import RUN_COLORS

MOST_POINTS = 400  # of a line: about one per unit of the chart's width
WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 34  # margins: room for tick labels
LOG_FROM = 30  # a loss that falls by more than this factor is drawn on a logarithmic axis

Points = list[tuple[float, float]]


def line_chart(lines: dict[str, Points], *, label: str, log: bool = False) -> str:
    """One line per run, in the order of `lines` (runs without points keep their color); label: what a reader is told."""
    drawn = {name: thin(points) for name, points in lines.items()}
    xs, ys = (np.array([point[i] for points in drawn.values() for point in points], float) for i in range(2))
    x_ticks, y_ticks = ticks(0, xs.max()), log_ticks(ys.min(), ys.max()) if log else ticks(min(0, ys.min()), ys.max())
    x_of = scale(0, max(xs.max(), x_ticks[-1]), LEFT, WIDTH - RIGHT)
    y_of = scale(*span(ys, y_ticks, log=log), HEIGHT - BOTTOM, TOP, log=log)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for value in y_ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {y_of(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{y_of(value) + 3.5:.1f}">{number(value)}</text>')
    for value in x_ticks:
        parts.append(f'<path class="grid" d="M{x_of(value):.1f} {HEIGHT - BOTTOM}v4"/>')
        parts.append(f'<text class="x" x="{x_of(value):.1f}" y="{HEIGHT - BOTTOM + 16}">{number(value)}</text>')
    parts.append(f'<text class="x" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 3}">step</text>')
    for index, (name, points) in enumerate(drawn.items()):
        parts.append(polyline([(x_of(x), y_of(y)) for x, y in points], index, name) if points else "")
    return "\n".join([*filter(None, parts), "</svg>"])


def polyline(places: Points, index: int, name: str) -> str:
    """A run's line, with a dot at its end; a single point is the dot alone."""
    dashed = ' stroke-dasharray="5 3"' if index >= RUN_COLORS else ""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    end = f'<circle cx="{places[-1][0]:.1f}" cy="{places[-1][1]:.1f}" r="2.5"/>'
    title = f"<title>{escape(name)}</title>"
    return f'<g class="line run-{index % RUN_COLORS}">{title}<path d="{path}"{dashed}/>{end}</g>'


def thin(points: Points) -> Points:
    """At most MOST_POINTS, each the mean of as many successive points: thinned and smoothed at once."""
    size = stride(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(float(np.mean([x for x, _ in group])), float(np.mean([y for _, y in group]))) for group in groups]


def stride(points: Points) -> int:
    """How many points become one."""
    return max(1, math.ceil(len(points) / MOST_POINTS))


def wants_log(lines: dict[str, Points]) -> bool:
    """Whether the values drawn are positive and span more than LOG_FROM."""
    values = [y for points in lines.values() for _, y in thin(points)]
    return min(values) > 0 and max(values) > LOG_FROM * min(values)


def span(values: np.ndarray, at: list[float], *, log: bool) -> tuple[float, float]:
    """Ends of an axis: the outermost ticks or values; a line of one constant value gets room around it."""
    low, high = min(values.min(), at[0]), max(values.max(), at[-1])
    return (low, high) if high > low else (low / 2, low * 2) if log else (low - 0.5, low + 0.5)


def scale(low: float, high: float, start: float, stop: float, *, log: bool = False):
    """The function from a value to its place."""
    low, high = (math.log(low), math.log(high)) if log else (low, high)
    return lambda value: start + ((math.log(value) if log else value) - low) / ((high - low) or 1) * (stop - start)


def ticks(low: float, high: float) -> list[float]:
    """Three to seven multiples of 1, 2 or 5 times a power of ten, from below `low` to the last one up to `high`."""
    width = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(width))
    step = next(step * factor for factor in (0.2, 0.5, 1, 2) if width / (step * factor) <= 6)
    first, last = math.floor(low / step + 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high], with 2 and 5 times them where they are fewer than four."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0**power for power in powers if low <= 10.0**power <= high]
    halves = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return tens if len(tens) >= 4 else [value for value in halves if low <= value <= high]


def number(value: float) -> str:
    """12,000 as 12k, 0.05, 1e-6: short enough for a tick."""
    if abs(value) >= 1000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    return f"{value:g}"
