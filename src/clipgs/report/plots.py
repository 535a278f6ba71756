"""Plots as SVG text: they scale, follow the page's colours, and are the same bytes on every machine.

Colours are classes (`c0` to `c9`, `axis`, `grid`) of the page's style sheet. All text is escaped here. matplotlib is no
alternative: it colours marks by inline styles, which the page's policy forbids and dark mode cannot change, and its
marks have no titles.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import numpy as np
from markupsafe import Markup, escape

from clipgs.triplets.card import by_count

WIDTH, HEIGHT = 480, 260  # the page scales a plot
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 14, 42
COLORS = 10  # classes c0 to c9
_MARKS = 5  # about, on an axis
_NAMED = 12  # of the grey names, in a legend

Ends = tuple[float, float]  # smallest and largest value on an axis


def histogram(values: Sequence[float], label: str) -> Markup:
    """The number of objects in even bins of their values, at most 40."""
    numbers = np.asarray(values, float)
    low, high = _ends(numbers)
    step = _step((high - low) / min(40, max(8, int(np.sqrt(len(numbers)) * 2))))
    edges = np.arange(math.floor(low / step), math.ceil(high / step) + 1) * step
    counts, _ = np.histogram(numbers, edges)
    plot = _Plot((edges[0], edges[-1]), (0, max(1, counts.max())), label, "objects", whole_y=True)
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        if count:
            x, y = plot.x(left), plot.y(count)
            title = f"{_number(left)} to {_number(right)}: {count:,} objects"
            plot.add(
                f'<rect class="c0" x="{x + 0.5:.1f}" y="{y:.1f}" width="{max(1, plot.x(right) - x - 1):.1f}" '
                f'height="{plot.y(0) - y:.1f}"><title>{escape(title)}</title></rect>'
            )
    return plot.svg(f"Histogram of {label}")


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> Markup:
    """One line of points (x, y) per name, without the points that are not finite."""
    kept = {}
    for name, line in lines.items():
        points = np.array(line, float).reshape(-1, 2)
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            kept[name] = points[np.unique(np.linspace(0, len(points) - 1, 400).round().astype(int))]
    if not kept:
        return Markup()
    every = np.concatenate(list(kept.values()))
    plot = _Plot(_ends(every[:, 0]), _ends(every[:, 1]), x_label, y_label)
    for i, (name, points) in enumerate(kept.items()):
        color = f"c{i % COLORS}"
        text = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in points)
        title = f"<title>{escape(name)}: {_number(points[-1, 1])} at the end</title>"
        if len(points) == 1:
            x, y = text.split(",")
            plot.add(f'<circle class="{color}" cx="{x}" cy="{y}" r="3">{title}</circle>')
        else:
            plot.add(f'<polyline class="line {color}" points="{text}">{title}</polyline>')
    return plot.svg(f"{y_label} over {x_label}") + _legend(kept if len(kept) > 1 else (), cycle(range(COLORS)))


def scatter(
    points: np.ndarray,  # [n, 2]
    names: Sequence[str],  # [n]
    titles: Sequence[str],  # [n], shown over a point
    label: str,
) -> Markup:
    """Points in a plane. Each of the nine commonest names has its own colour; the legend says which are grey."""
    counted = [name for name, _ in by_count(names)]
    common, rest = counted[: COLORS - 1], counted[COLORS - 1 :]
    more = f" and {len(rest) - _NAMED:,} more" if len(rest) > _NAMED else ""
    shown = common + [f"{', '.join(rest[:_NAMED])}{more}"] * bool(rest)
    plot = _Plot(_ends(points[:, 0]), _ends(points[:, 1]), "", "", ticks=False)
    marks = sorted(zip(points.tolist(), names, titles, strict=True), key=lambda mark: mark[1] in common)
    for (x, y), name, title in marks:
        color = common.index(name) if name in common else COLORS - 1
        place = f'cx="{plot.x(x):.1f}" cy="{plot.y(y):.1f}"'
        plot.add(f'<circle class="dot c{color}" {place} r="3"><title>{escape(title)}</title></circle>')
    return plot.svg(label) + _legend(shown, [*range(len(common)), COLORS - 1])


def heatmap(
    matrix: np.ndarray,  # [n, n], fractions
    names: Sequence[str],  # [n], of rows and columns
    label: str,
) -> Markup:
    """A matrix in shades, with the names of its rows and columns. The title of a cell is its value."""
    cell, longest = 22, 110
    size = longest + cell * len(names) + 6
    parts = []
    for i, name in enumerate(names):
        y = longest + cell * i
        parts.append(f'<text class="axis" x="{longest - 6}" y="{y + 15}" text-anchor="end">{_short(name)}</text>')
        for j, other in enumerate(names):
            value = float(matrix[i, j])
            title = f"{name} taken for {other}: {value:.0%}"
            shade = f'fill-opacity="{min(1.0, value):.2f}"'
            parts.append(
                f'<rect class="{"c0" if name == other else "c1"} cell" x="{longest + cell * j}" y="{y}" '
                f'width="{cell - 1}" height="{cell - 1}" {shade}><title>{escape(title)}</title></rect>'
            )
    for j, name in enumerate(names):
        x = longest + cell * j + 15
        parts.append(f'<text class="axis" transform="translate({x} {longest - 6}) rotate(-90)">{_short(name)}</text>')
    return Markup(
        f'<svg class="heatmap" viewBox="0 0 {size} {size}" width="{size}" height="{size}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _legend(names: Iterable[str], colors: Iterable[int]) -> Markup:
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 10 10" width="10" height="10" aria-hidden="true">'
        f'<rect class="c{color}" width="10" height="10"/></svg> {escape(name)}</li>'
        for name, color in zip(names, colors, strict=False)
    )
    return Markup(f'<ul class="legend">{items}</ul>' if items else "")


class _Plot:
    """Axes, and the mapping from values to coordinates."""

    def __init__(
        self, x_ends: Ends, y_ends: Ends, x_label: str, y_label: str, *, whole_y: bool = False, ticks: bool = True
    ) -> None:
        self._x, self._y = x_ends, y_ends
        self._parts: list[str] = []
        self.add = self._parts.append
        base, top, left, right = HEIGHT - BOTTOM, TOP, LEFT, WIDTH - RIGHT
        if ticks:
            for mark in _ticks(*y_ends, whole=whole_y):
                y = self.y(mark)
                self.add(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
                self.add(f'<text class="axis" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(mark)}</text>')
            for mark in _ticks(*x_ends):
                place = f'x="{self.x(mark):.1f}" y="{base + 16}"'
                self.add(f'<text class="axis" {place} text-anchor="middle">{_number(mark)}</text>')
        self.add(f'<line class="rim" x1="{left}" x2="{right}" y1="{base}" y2="{base}"/>')
        middle = (left + right) / 2
        self.add(f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
        turned = f'transform="translate(12 {(top + base) / 2}) rotate(-90)"'
        self.add(f'<text class="axis" {turned} text-anchor="middle">{escape(y_label)}</text>')

    def x(self, value: float) -> float:
        low, high = self._x
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def svg(self, label: str) -> Markup:
        return Markup(
            f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
            f"{''.join(self._parts)}</svg>"
        )


def _ends(values: np.ndarray) -> Ends:
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        return low - 0.5, high + 0.5
    return low, high


def _step(size: float) -> float:
    """The smallest of ..., 1, 2, 5, 10, 20, ... that is at least `size`."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= size * (1 - 1e-9))


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    step = _step((high - low) / _MARKS)
    step = max(1.0, step) if whole else step
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.0e}"
    return f"{value:.4g}"


def _short(name: str) -> str:
    """A name cut to fit beside a heatmap, with the whole name as its title."""
    text = name if len(name) <= 15 else name[:14] + "\N{HORIZONTAL ELLIPSIS}"
    return f"{escape(text)}<title>{escape(name)}</title>"
