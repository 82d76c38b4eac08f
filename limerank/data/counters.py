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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


class ItemCounters:
    """Counters of all items of a log at any hour.

    Args:
        items: item row of each impression, i64 [n].
        times: milliseconds since 1970 of each, i64 [n].
        positive: whether its label is positive, bool [n].
        mean: of the label.
    """

    def __init__(
        self,
        items: NDArray[np.integer],
        times: NDArray[np.int64],
        positive: NDArray[np.bool_],
        mean: float,
    ) -> None:
        self.mean = mean
        hours = times // HOUR
        self._first = int(hours.min(initial=0)) if len(hours) else 0
        self._hours = (int(hours.max()) - self._first + 2) if len(hours) else 1
        keys = items.astype(np.int64) * self._hours + (hours - self._first)
        self._keys, at, counts = np.unique(keys, return_inverse=True, return_counts=True)
        of_hour = np.bincount(at, weights=positive, minlength=len(counts)).astype(np.int64)
        self._shown = np.concatenate([[0], np.cumsum(counts)])
        self._positive = np.concatenate([[0], np.cumsum(of_hour)])

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
