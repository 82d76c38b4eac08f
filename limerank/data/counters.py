"""Counters of items: how often each was shown before a time, and with what outcome.

What is popular changes. The statistics of a training window (limerank.training.collaborative) are
of all of it: an item that was shown for the first time on the last day has, in the eyes of a row
of the first day, a future. Counters are of the hours before a request alone. Of each item:

- ``rate``: the logarithm of the odds of the first binary label, smoothed by :data:`SMOOTHING`
  impressions of the log's mean, less that of the mean;
- ``count``: log2 of 1 + its impressions;
- ``rate_day``, ``count_day``: the same of the latest :data:`DAY` hours, the rate smoothed towards
  that of the item and less it;
- ``age``: log2 of 1 + the hours since its first impression; 0 where it was not shown yet.

They are refreshed every so many hours, counted from 1970: a request sees the impressions that were
at least :data:`DELAY` hours before the latest refresh, whose outcomes are known by then. A model
whose counters are refreshed every hour thus sees in training what a server counts, and one whose
counters are refreshed every day what an index has that is built every night.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from limerank.data.ragged import ragged_index

COUNTERS = ("rate", "count", "rate_day", "count_day", "age")
"""Names of the counters, F of them."""
SMOOTHING = 20.0
"""Impressions that are added to those of an item."""
HOUR = 3_600_000
"""Milliseconds of the unit of time."""
DAY = 24
"""Hours that ``rate_day`` and ``count_day`` are of."""
DELAY = 1
"""Hours before a refresh whose impressions are not counted yet, as what follows an impression does
so within the window of the attribution (limerank.data.attribution)."""


@dataclass(frozen=True)
class Counts:
    """Counts of n items.

    Attributes:
        shown, positive: impressions, and those with a positive label, i64 [n].
        shown_day, positive_day: those of the latest :data:`DAY` hours.
        hours: since the first impression, i64 [n]; 0 where there is none.
    """

    shown: NDArray[np.int64]
    positive: NDArray[np.int64]
    shown_day: NDArray[np.int64]
    positive_day: NDArray[np.int64]
    hours: NDArray[np.int64]

    def values(self, mean: float) -> NDArray[np.float32]:
        """The counters, f32 [n, F]; ``mean``: the mean of the label."""
        shown, day = self.shown.astype(np.float64), self.shown_day.astype(np.float64)
        rate = (self.positive + SMOOTHING * mean) / (shown + SMOOTHING)
        rate_day = (self.positive_day + SMOOTHING * rate) / (day + SMOOTHING)
        odds, odds_day = _logit(rate), _logit(rate_day)
        found = [
            odds - _logit(np.array(mean)),
            np.log2(1 + shown),
            odds_day - odds,
            np.log2(1 + day),
            np.log2(1 + self.hours),
        ]
        return np.stack(found, -1).astype(np.float32)


class Block(NamedTuple):
    """Impressions: their items' rows, i64 or i32 [n]; milliseconds since 1970, i64 [n]; and whether
    the label is positive, bool [n]."""

    items: NDArray[np.integer]
    times: NDArray[np.int64]
    positive: NDArray[np.bool_]


class Hourly(NamedTuple):
    """Impressions by item and hour: each pair of a row and an hour (since 1970) once, ascending,
    with its impressions and those with a positive label. All i64 [m]."""

    rows: NDArray[np.int64]
    hours: NDArray[np.int64]
    shown: NDArray[np.int64]
    positive: NDArray[np.int64]

    @classmethod
    def of(cls, block: Block) -> Hourly:
        """Those of some impressions."""
        each = np.ones(len(block.items), np.int64)
        rows, positive = (of.astype(np.int64) for of in (block.items, block.positive))
        return merged([cls(rows, block.times // HOUR, each, positive)])

    def take(self, rows: NDArray[np.integer]) -> Hourly:
        """Those of some rows; a row is its position among them."""
        first, end = (np.searchsorted(self.rows, rows, side) for side in ("left", "right"))
        at = ragged_index(first, end - first)
        positions = np.repeat(np.arange(len(rows)), end - first)
        return Hourly(positions, self.hours[at], self.shown[at], self.positive[at])


def merged(parts: Iterable[Hourly]) -> Hourly:
    """The sums of several, in which pairs may be in any order, and more than once."""
    found = [np.concatenate([np.zeros(0, np.int64), *of]) for of in zip(*parts, strict=True)]
    rows, hours, shown, positive = found or [np.zeros(0, np.int64)] * 4
    if not len(rows):
        return Hourly(rows, hours, shown, positive)
    first = hours.min()
    span = hours.max() - first + 1
    keys, at = np.unique(rows * span + (hours - first), return_inverse=True)
    sums = np.zeros((2, len(keys)), np.int64)
    np.add.at(sums[0], at, shown)
    np.add.at(sums[1], at, positive)
    return Hourly(keys // span, keys % span + first, *sums)


class ItemCounters:
    """Counters of all items of a log at any hour.

    Memory has four numbers of each distinct pair of an item and an hour with an impression.

    Args:
        hourly: all impressions.
        mean: of the label.
        end: an hour since 1970 after that of the last impression; time stands still then.
        after: milliseconds since 1970: impressions up to this time are among them, later ones are
            not; the end of the hour before ``end`` when not given.
    """

    def __init__(self, hourly: Hourly, mean: float, end: int, *, after: int | None = None) -> None:
        self.mean, self.end = mean, end
        self.after = end * HOUR - 1 if after is None else after
        self._of = hourly
        self._first = int(hourly.hours.min(initial=end))
        self._span = end - self._first + 1
        self._keys = hourly.rows * self._span + (hourly.hours - self._first)
        none = np.zeros(1, np.int64)
        self._shown = np.concatenate([none, hourly.shown]).cumsum()
        self._positive = np.concatenate([none, hourly.positive]).cumsum()

    def latest(self, items: NDArray[np.integer]) -> NDArray[np.float32]:
        """Counters of items [n] at the end, f32 [n, F]."""
        return self.counted(items, np.full(len(items), self.end))

    def at(
        self, items: NDArray[np.integer], times: NDArray[np.int64], every: int = 1
    ) -> NDArray[np.float32]:
        """Counters that requests see, f32 [..., F].

        Args:
            items: item rows.
            times: of the requests, milliseconds since 1970, of the same shape.
            every: hours from one refresh to the next.
        """
        return self.counted(items, times // HOUR // every * every - DELAY)

    def counted(self, items: NDArray[np.integer], hours: NDArray[np.int64]) -> NDArray[np.float32]:
        """Counters of items, of what was before hours since 1970, f32 [..., F]."""
        hour = np.clip(hours - self._first, 0, self._span - 1)
        start, day, end = self._range(items, hour)
        seen = end > start
        first = self._keys[np.minimum(start, len(self._keys) - 1)] if len(self._keys) else start
        age = hour - (first - items.astype(np.int64) * self._span)
        counts = Counts(
            self._shown[end] - self._shown[start],
            self._positive[end] - self._positive[start],
            self._shown[end] - self._shown[day],
            self._positive[end] - self._positive[day],
            np.where(seen, age, 0),
        )
        return counts.values(self.mean)

    def recent(self, items: NDArray[np.integer]) -> Hourly:
        """All that counters of items at the end, and later, need; a row is a position among the
        items. Of each item, what is older than a day has the hour of its first impression."""
        hour = np.full(len(items), self._span - 1)
        start, day, end = self._range(items, hour)
        rows = np.flatnonzero(day > start)
        first, last = start[rows], day[rows]
        old = Hourly(
            rows,
            self._of.hours[first],
            self._shown[last] - self._shown[first],
            self._positive[last] - self._positive[first],
        )
        at = ragged_index(day, end - day)
        new = Hourly(np.repeat(np.arange(len(items)), end - day), *(x[at] for x in self._of[1:]))
        return merged([old, new])

    def _range(
        self, items: NDArray[np.integer], hour: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of each item, where its impressions begin, those of the day before an hour, and those of
        the hour itself; the hour is counted from the first."""
        base = items.astype(np.int64) * self._span
        start, end = (np.searchsorted(self._keys, key) for key in (base, base + hour))
        day = np.searchsorted(self._keys, base + np.maximum(hour - DAY, 0))
        return start, day, end


def impressions_of(counters: NDArray[np.float32]) -> float:
    """Impressions of all items together, from their counters [n, F]."""
    return float((np.exp2(counters[:, COUNTERS.index("count")].astype(np.float64)) - 1).sum())


def due(settled: int, every: int) -> int:
    """The hour since 1970 of the latest refresh whose counters can be made: they contain the
    impressions before that hour.

    Args:
        settled: milliseconds since 1970 up to which all impressions, and what followed them, are
            known.
        every: hours from one refresh to the next.
    """
    return (settled // HOUR + DELAY) // every * every - DELAY


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    found: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return found


def counted_label(labels: Any) -> Mapping[str, Any] | None:
    """The label whose rate is counted: the first binary one."""
    return next((label for label in labels if label["kind"] == "binary"), None)
