"""Small deterministic SVG plots for a page with a light and a dark theme.

Each function returns one ``<svg>`` element of about 380 x 260 units, legible on a phone.
Colours are CSS variables of the page (``--ink``, ``--muted``, ``--grid``, ``--card``, ``--c0`` to
``--c7``) and texts are real text, so one plot serves both themes. The series' colours are those
of Okabe and Ito, which readers with any kind of colour vision can distinguish.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

WIDTH, HEIGHT = 380.0, 250.0
SERIES = 8
"""Number of colours of the page; further series repeat them."""

INK, MUTED, GRID, CARD = "#1a1b1c", "#6a6b6c", "#dadbdc", "#fafbfc"
COLOURS = tuple(f"#0a0b{position:02x}" for position in range(SERIES))
"""Placeholders that matplotlib draws with; each is replaced by a variable of the page."""

_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    CARD: "var(--card)",
    **{colour: f"var(--c{position})" for position, colour in enumerate(COLOURS)},
}


@dataclass(frozen=True)
class Series:
    """One line or set of dots: ``x`` and ``y`` have equal length; NaN: no value."""

    name: str
    colour: int
    x: Sequence[float] | NDArray[Any]
    y: Sequence[float] | NDArray[Any]


def dots(
    title: str,
    rows: Sequence[tuple[str, int, float]],
    xlabel: str,
    *,
    best: float | None = None,
    best_name: str = "best possible",
) -> str:
    """One metric of several models: a dot per model, and a line at the best possible value.

    Args:
        title: what is compared.
        rows: (name, colour, value) from top to bottom.
        xlabel: the metric, its unit, and which direction is better.
        best: the best possible value, if known.
        best_name: label of that line.
    """
    with _style():
        figure, axes = _figure(HEIGHT * 0.3 + 38 * len(rows))
        names = [name for name, _, _ in rows]
        longest = max(map(len, names))
        bottom = 0.45 * len(rows) ** -0.5
        figure.subplots_adjust(left=0.06 + 0.019 * longest, right=0.95, top=0.80, bottom=bottom)
        values = [value for _, _, value in rows] + ([] if best is None else [best])
        low, high = min(values), max(values)
        spread = max(high - low, 0.02 * max(abs(high), 1e-9))
        axes.set_xlim(low - 0.25 * spread, high + 0.25 * spread)
        axes.set_ylim(len(rows) - 0.4, -0.65)
        for position, (_, colour, value) in enumerate(rows):
            axes.axhline(position, color=GRID, linewidth=1, zorder=0)
            axes.plot(value, position, "o", color=_colour(colour), markersize=9)
            axes.annotate(
                _number(value),
                (value, position),
                (0, 9),
                textcoords="offset points",
                ha="center",
                color=INK,
            )
        if best is not None:
            axes.axvline(best, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2, zorder=0)
            axes.annotate(
                f"{best_name} {_number(best)}",
                (best, 1.0),
                (0, 4),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="right" if best > (low + high) / 2 else "left",
                color=MUTED,
            )
        axes.set_yticks(range(len(rows)), names)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.spines[["left"]].set_visible(False)
        axes.set_xlabel(xlabel)
        return _svg(figure, title)


def slices(
    title: str,
    names: Sequence[str],
    counts: Sequence[int],
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    *,
    best: Series | None = None,
) -> str:
    """One metric on slices of impressions: a line per model; ``x``: positions in ``names``."""
    with _style():
        figure, axes = _figure()
        figure.subplots_adjust(left=0.135, right=0.74, top=0.95, bottom=0.24)
        ends = []
        lines: list[tuple[Series, str, Any]] = [(one, _colour(one.colour), "-") for one in series]
        if best is not None:
            lines.append((best, MUTED, (0, (4, 3))))
        for one, colour, style in lines:
            axes.plot(one.x, one.y, color=colour, linestyle=style, linewidth=1.8)
            if colour != MUTED:
                axes.plot(one.x, one.y, "o", color=colour, markersize=5)
            ends.append((one, colour))
        _name_ends(axes, ends)
        labels = [f"{name}\n{_short(count)}" for name, count in zip(names, counts, strict=True)]
        axes.set_xticks(range(len(names)), labels)
        axes.set_xlim(-0.3, len(names) - 0.7)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return _svg(figure, title)


def curves(
    title: str,
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    *,
    marks: bool = False,
    level: tuple[str, float] | None = None,
    least: float | None = None,
) -> str:
    """Lines over a running quantity, each named at its end.

    Args:
        title: what is shown.
        series: the lines; a single point is drawn as a dot.
        xlabel: with the unit.
        ylabel: with the unit.
        marks: whether to draw the points.
        level: label and height of a horizontal line.
        least: lower end of the y axis.
    """
    with _style():
        figure, axes = _figure()
        figure.subplots_adjust(left=0.135, right=0.74, top=0.95, bottom=0.19)
        for one in series:
            colour = _colour(one.colour)
            axes.plot(one.x, one.y, color=colour, linewidth=1.8)
            if marks or len(one.x) == 1:
                axes.plot(one.x, one.y, "o", color=colour, markersize=4.5)
        ends = [(one, _colour(one.colour)) for one in series]
        if level is not None:
            name, value = level
            axes.axhline(value, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
            ends.append((Series(name, 0, [1.0], [value]), MUTED))
        if least is not None:
            axes.set_ylim(bottom=least)
        axes.set_xlim(left=0)
        _name_ends(axes, ends)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return _svg(figure, title)


def agreement(
    title: str, series: Sequence[Series], xlabel: str, ylabel: str, *, above: str, below: str
) -> str:
    """Predictions against outcomes: a dot per bin; on the diagonal they agree.

    Args:
        title: what is shown.
        series: x the mean prediction of each bin, y the mean outcome.
        xlabel: with the unit.
        ylabel: with the unit.
        above: what a dot above the diagonal means for a prediction.
        below: what a dot below it means.
    """
    with _style():
        figure, axes = _figure(HEIGHT * 1.1)
        figure.subplots_adjust(left=0.135, right=0.74, top=0.95, bottom=0.17)
        values = np.concatenate([np.concatenate([one.x, one.y]) for one in series])
        low, high = float(values.min()), float(values.max())
        margin = 0.06 * max(high - low, 1e-9)
        low, high = max(0.0, low - margin), high + margin
        axes.plot([low, high], [low, high], color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
        for one in series:
            colour = _colour(one.colour)
            axes.plot(one.x, one.y, color=colour, linewidth=1, alpha=0.6)
            axes.plot(one.x, one.y, "o", color=colour, markersize=4, alpha=0.9)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        for text, position, align in (
            (above, (0.04, 0.93), "left"),
            (below, (0.96, 0.06), "right"),
        ):
            axes.text(*position, text, transform=axes.transAxes, ha=align, color=MUTED)
        _name_ends(axes, [(one, _colour(one.colour)) for one in series])
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
        return _svg(figure, title)


def _style() -> AbstractContextManager[None]:
    return matplotlib.rc_context(
        {
            "svg.hashsalt": "limerank",
            "svg.fonttype": "none",
            "font.family": "DejaVu Sans",
            "font.size": 10.5,
            "axes.labelsize": 10.5,
            "axes.edgecolor": GRID,
            "axes.labelcolor": MUTED,
            "axes.facecolor": "none",
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.unicode_minus": True,
            "figure.facecolor": "none",
            "grid.color": GRID,
            "grid.linewidth": 0.8,
            "savefig.facecolor": "none",
            "text.color": INK,
            "xtick.color": GRID,
            "ytick.color": GRID,
            "xtick.labelcolor": MUTED,
            "ytick.labelcolor": MUTED,
        }
    )


def _figure(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    axes = figure.add_subplot()
    return figure, axes


def _colour(position: int) -> str:
    return COLOURS[position % SERIES]


def _name_ends(axes: Axes, ends: Sequence[tuple[Series, str]]) -> None:
    """Write names to the right of the axes, beside the last point of each line, without overlap."""
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height * 72 / axes.figure.dpi
    wanted = []
    for one, colour in ends:
        known = [value for value in one.y if not np.isnan(value)]
        if known:
            wanted.append(((known[-1] - low) / (high - low) * height, one.name, colour))
    wanted.sort(key=lambda end: end[0])
    for y, (_, name, colour) in zip(
        _apart([position for position, _, _ in wanted], 13.0, height), wanted, strict=True
    ):
        axes.annotate(
            name,
            (1.0, y / height),
            (7, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold" if colour != MUTED else "normal",
            annotation_clip=False,
        )


def _apart(positions: Sequence[float], gap: float, most: float) -> list[float]:
    """Ascending positions, moved as little as possible to be ``gap`` apart and at most ``most``."""
    moved: list[list[float]] = []  # groups that touch: [sum of the wanted centres, how many]
    for position in positions:
        moved.append([position, 1])
        while len(moved) > 1 and _bottom(moved[-1], gap) < _top(moved[-2], gap) + gap:
            total, many = moved.pop()
            moved[-1] = [moved[-1][0] + total, moved[-1][1] + many]
    found = []
    for group in moved:
        found += [_bottom(group, gap) + gap * step for step in range(int(group[1]))]
    if found and found[-1] > most:
        found = [
            min(y, most - gap * (len(found) - 1 - position)) for position, y in enumerate(found)
        ]
    return found


def _bottom(group: Sequence[float], gap: float) -> float:
    total, many = group
    return total / many - gap * (many - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return _bottom(group, gap) + gap * (group[1] - 1)


def _short(value: float) -> str:
    """12,345 -> 12k: for ticks."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _svg(figure: Figure, title: str) -> str:
    """The figure as an element for a page: without prologue, dates and ids."""
    stream = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(stream, format="svg", metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-z]+[a-z0-9.]*_\d+"', "", text)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None
    opening = (
        f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(title)}" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink"><title>{escape(title)}</title>'
    )
    text = opening + text[text.index(">") + 1 :]
    text = text.replace("font-family: 'DejaVu Sans'", "font-family: inherit")
    text = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1inherit", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return re.sub(r"\n\s*", "\n", text).strip()
