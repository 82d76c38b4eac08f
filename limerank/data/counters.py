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

They are refreshed every so many hours, counted from 1970: a request sees the impressions before the
latest refresh. A model that is trained with counters of the day before thus sees what an index has
that is built every night.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

COUNTERS = ("rate", "count", "rate_day", "count_day", "age")
"""Names of the counters, F of them."""
SMOOTHING = 20.0
"""Impressions that are added to those of an item."""
HOUR = 3_600_000
"""Milliseconds of the unit of time."""
DAY = 24
"""Hours that ``rate_day`` and ``count_day`` are of."""


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


class ItemCounters:
    """Counters of all items of a log at any hour.

    Memory holds four numbers of each distinct pair of an item and an hour with an impression, and a
    block at a time.

    Args:
        blocks: all impressions of the log, in any order.
        mean: of the label.
        span: milliseconds since 1970 of the first impression and of the last, or earlier and later.
    """

    def __init__(self, blocks: Iterable[Block], mean: float, span: tuple[int, int]) -> None:
        self.mean = mean
        self._first = span[0] // HOUR
        self._hours = span[1] // HOUR - self._first + 2
        keys: list[NDArray[np.int64]] = []
        counts: list[NDArray[np.int64]] = []
        for block in blocks:
            hours = block.times // HOUR - self._first
            of_block = block.items.astype(np.int64) * self._hours + hours
            distinct, at, shown = np.unique(of_block, return_inverse=True, return_counts=True)
            positive = np.bincount(at, weights=block.positive, minlength=len(distinct))
            keys.append(distinct)
            counts.append(np.stack([shown, positive.astype(np.int64)]))
        none = np.zeros(0, np.int64)
        self._keys, at = np.unique(np.concatenate([none, *keys]), return_inverse=True)
        totals = np.zeros((2, len(self._keys) + 1), np.int64)
        for total, own in zip(totals, np.concatenate([totals[:, :0], *counts], 1), strict=True):
            np.add.at(total[1:], at, own)
        self._shown, self._positive = totals.cumsum(1)

    def latest(self, items: NDArray[np.integer]) -> NDArray[np.float32]:
        """Counters of items [n] after the hour of the last impression, f32 [n, F]."""
        end = (self._first + self._hours - 1) * HOUR
        return self.at(items, np.full(len(items), end))

    def at(
        self, items: NDArray[np.integer], times: NDArray[np.int64], every: int = 1
    ) -> NDArray[np.float32]:
        """Counters of items at times, f32 [..., F].

        Args:
            items: item rows.
            times: milliseconds since 1970, of the same shape.
            every: hours from one refresh to the next.
        """
        hour = times // HOUR // every * every
        hour = np.clip(hour - self._first, 0, self._hours - 1)
        base = items.astype(np.int64) * self._hours
        start, end = (np.searchsorted(self._keys, key) for key in (base, base + hour))
        day = np.searchsorted(self._keys, base + np.maximum(hour - DAY, 0))
        seen = end > start
        first = self._keys[np.minimum(start, len(self._keys) - 1)] - base if len(self._keys) else 0
        counts = Counts(
            self._shown[end] - self._shown[start],
            self._positive[end] - self._positive[start],
            self._shown[end] - self._shown[day],
            self._positive[end] - self._positive[day],
            np.where(seen, hour - first, 0),
        )
        return counts.values(self.mean)


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    found: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return found


def counted_label(labels: Any) -> Mapping[str, Any] | None:
    """The label whose rate is counted: the first binary one."""
    return next((label for label in labels if label["kind"] == "binary"), None)
