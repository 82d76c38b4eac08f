"""The picture of one ranking: events, links and items, joined by the model's weights."""

from __future__ import annotations

from html import escape

import numpy as np

from limerank.ranking.results import Ranking

PICTURE_EVENTS = 14
"""Events of the history that are drawn, at most."""
PICTURE_LINKS = 12
"""Links that are drawn, at most."""
FAINT = 0.08
"""Weights below this share of the largest one are not drawn."""


def flow_picture(ranking: Ranking) -> str:
    """An SVG element with events, links and items as dots and the largest weights as lines.

    Empty if no item of the ranking has an explanation by links.
    """
    shown = [item for item in ranking.items if item.explanation is not None]
    if not shown or shown[0].explanation is None or shown[0].explanation.links is None:
        return ""
    first = shown[0].explanation
    assert first.reads is not None
    weights = np.stack(
        [item.explanation.links.mean(0) for item in shown if item.explanation]  # type: ignore[union-attr]
    )
    if first.reads.shape[1] == 0:
        return ""
    links = np.argsort(-weights.mean(0))[:PICTURE_LINKS]
    reads = first.reads[links]
    mass = weights[:, links].mean(0) @ reads
    events = np.sort(np.argsort(-mass)[:PICTURE_EVENTS])
    row = 26
    height = row * max(len(events), len(links), len(shown)) + 34
    columns = (150, 340, 530)

    def y(position: int, count: int) -> float:
        return 40 + (height - 50) * (position + 0.5) / count

    parts = [
        f'<svg viewBox="0 0 680 {height}" role="img" class="flow">',
        "<title>Events, links and items, joined by the model's weights</title>",
    ]
    for x, text in zip(columns, ("events, old to new", "links", "ranked items"), strict=True):
        parts.append(f'<text x="{x}" y="16" text-anchor="middle" class="head">{text}</text>')
    most = float(reads[:, events].max()) or 1.0
    for a, event in enumerate(events):
        for b in range(len(links)):
            share, end = float(reads[b, event]) / most, y(b, len(links))
            if share > FAINT:
                parts.append(_line(columns[0], y(a, len(events)), columns[1], end, share))
    most = float(weights[:, links].max()) or 1.0
    for b, link in enumerate(links):
        for c in range(len(shown)):
            share, end = float(weights[c, link]) / most, y(c, len(shown))
            if share > FAINT:
                parts.append(_line(columns[1], y(b, len(links)), columns[2], end, share))
    for a, event in enumerate(events):
        label, at = escape(str(first.events[event].item)), y(a, len(events))
        parts.append(
            f'<circle cx="{columns[0]}" cy="{at:.1f}" r="4" class="event"/>'
            f'<text x="{columns[0] - 9}" y="{at + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for b in range(len(links)):
        parts.append(f'<circle cx="{columns[1]}" cy="{y(b, len(links)):.1f}" r="6" class="link"/>')
    for c, item in enumerate(shown):
        label, at = escape(str(item.id)), y(c, len(shown))
        parts.append(
            f'<circle cx="{columns[2]}" cy="{at:.1f}" r="5" class="item"/>'
            f'<text x="{columns[2] + 10}" y="{at + 4:.1f}">{label}</text>'
        )
    return "".join([*parts, "</svg>"])


def _line(x0: float, y0: float, x1: float, y1: float, share: float) -> str:
    middle = (x0 + x1) / 2
    return (
        f'<path d="M{x0} {y0:.1f} C{middle} {y0:.1f} {middle} {y1:.1f} {x1} {y1:.1f}" '
        f'stroke-width="{0.5 + 3 * share:.2f}" stroke-opacity="{0.12 + 0.6 * share:.2f}"/>'
    )
