"""Times that cannot be right: in the future, far after all others, or before 1990.

A single event of a phone whose clock is years ahead must not become the time of all rankings:
:attr:`Clock.now` is the newest time that is not an outlier.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from limerank.data.canonical import DAY_MS, iso
from limerank.data.prepare.checks import OLDEST

AHEAD_MS = DAY_MS
"""A time may be so far in the future: local times are read as UTC."""
STRAY_SHARE = 0.01
MOST_STRAYS = 1024
"""Outliers far after all others are at most this share of the events, and at most so many."""
FEWEST_EVENTS = 10
"""In a log of fewer events no time is far from the others."""
SAMPLE = 1 << 16
"""About so many times estimate the span of the log without outliers."""


class Clock:
    """The times of a log, added in any order; then the outliers among them.

    A time is an outlier where it is more than a day in the future; or where it and all later ones
    are at most 1 % of the events (and at most 1,024), and the gap before them is longer than a day
    and than half the span of the events before it.

    Args:
        total: about how many events there are.
        present: the present time in milliseconds since 1970; the machine's clock when not given.
    """

    def __init__(self, total: int, present: int | None = None) -> None:
        self._limit = (round(time.time() * 1000) if present is None else present) + AHEAD_MS
        self._stride = max(total // SAMPLE, 1)
        self._newest = np.zeros(0, np.int64)
        self._sample: list[NDArray[np.int64]] = []
        self._last = np.iinfo(np.int64).min
        self.total = self.future = self.old = 0

    def add(self, times: NDArray[np.int64]) -> None:
        """Add times of events (milliseconds since 1970)."""
        self.total += len(times)
        self._sample.append(times[:: self._stride].copy())
        self.old += int((times < OLDEST).sum())
        self._last = max(self._last, int(times.max(initial=self._last)))
        if self._last > self._limit:
            later = times > self._limit
            self.future += int(later.sum())
            times = times[~later]
        newest = np.concatenate([self._newest, times])
        keep = MOST_STRAYS + 1
        self._newest = np.partition(newest, -keep)[-keep:] if len(newest) > keep else newest

    def finish(self) -> None:
        """Find the outliers: from now on :attr:`now` and :meth:`warnings` are known."""
        self._sample = [np.sort(np.concatenate(self._sample))] if self._sample else []
        self.now, self.far = int(self._last), 0
        self._newest = np.sort(self._newest)
        if 2 * self.future >= self.total or len(self._newest) == 0:
            return  # most events are in the future: a simulated log, or a wrong unit
        cut = len(self._newest) if self.total < FEWEST_EVENTS else self._first_far()
        self.far = len(self._newest) - cut
        self.now = int(self._newest[cut - 1])

    def _first_far(self) -> int:
        """The position among the newest times from which they are far after all others."""
        times = self._newest
        most = min(max(int(STRAY_SHARE * self.total), 1), len(times) - 1)
        start = int(self._sample[0][int(STRAY_SHARE * len(self._sample[0]))])
        for cut in range(len(times) - most, len(times)):
            before = int(times[cut - 1])
            gap = int(times[cut]) - before
            if gap > DAY_MS and 2 * gap > before - start:
                return cut
        return len(times)

    def warnings(self) -> list[str]:
        """Warnings about the outliers: how many, and an example."""
        lines = []
        if self.future:
            lines.append(
                f"{self.future:,} of {self.total:,} events are later than the present, such as "
                f"{iso(int(self._last))}: check their clocks, or the source's time_unit"
            )
        if self.far:
            lines.append(
                f"{self.far:,} of {self.total:,} events are far after all others, such as "
                f"{iso(int(self._newest[-1]))} after {iso(self.now)}: check their clocks"
            )
        if (self.future or self.far) and self.now != self._last:
            lines[-1] += f"; rankings without a time are made as of {iso(self.now)}"
        median = int(self._sample[0][len(self._sample[0]) // 2]) if self._sample else 0
        if self.old and median >= OLDEST:
            oldest = int(self._sample[0][0])
            example = f", such as {iso(oldest)}" if oldest < OLDEST else ""
            lines.append(
                f"{self.old:,} of {self.total:,} events are from before 1990{example}: if these "
                "times mean missing ones, list them in null_values"
            )
        return lines
