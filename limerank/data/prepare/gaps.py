"""Gaps between a user's consecutive impressions: what they tell about impressions without a request
id.

Impressions of one page follow each other at once, those of a session within minutes, and those of
different sessions after hours: where a log has such groups, its gaps leave a *valley* between them,
a stretch of lengths that hardly any gap has. The counts are integers, so that they do not depend on
how a log is divided into blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limerank.data.protocol import Requests

BINS = 2 * 60 + 2
"""Half octaves of milliseconds, after a bin for gaps of 0 ms."""
PAGE_MS = 1_000
"""Nobody reacts to an item within so short a time: an impression that soon was shown with it."""
SESSION_MS = (60_000, 8 * 3_600_000)
"""Range of the longest gap within a session, if the log shows one."""
USUAL_SESSION_S = 1800.0
WIDTH = 4
"""A valley has this many bins: two octaves."""
DEPTH = 0.1
"""A valley has at most this part of the gaps on either side of it."""
LEAST_SHARE = 0.02
"""Fewer gaps than this share on one side are no group."""
MOST_TOGETHER = 128
"""Impressions of a request that the log's gaps make, at most."""
BUDGET = 300_000
"""Requests that are cheap to train on: a log with more has several impressions in a request."""
SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Grouping:
    """Which consecutive impressions without a request id share one.

    Attributes:
        gap: milliseconds after which a request ends; None: the log has no clock.
        size: impressions after which a request ends.
        together: milliseconds between impressions that were shown at once, which ``size`` does not
            divide (but after ``MOST_TOGETHER``); None: it divides all.
        session: whether a request is a session, and its history ends before the session.
    """

    gap: float | None
    size: int
    together: int | None = None
    session: bool = False

    def to_dict(self) -> dict[str, object]:
        """In seconds, as the summary of a dataset has it."""
        return {
            "gap": None if self.gap is None else self.gap / 1000,
            "size": self.size,
            "together": None if self.together is None else self.together / 1000,
        }


class Gaps:
    """Counts of the gaps between consecutive impressions without a request id, by their length."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.impressions = 0

    def add(
        self,
        time: NDArray[np.int64],
        free: NDArray[np.bool_],
        new_user: NDArray[np.bool_],
    ) -> None:
        """Add sorted events.

        Args:
            time: of the events, in order.
            free: which of them are impressions without a request id.
            new_user: which of them are the first of their user.
        """
        self.impressions += int(np.count_nonzero(free))
        gaps = np.diff(time)[free[1:] & free[:-1] & ~new_user[1:]]
        self.counts += np.bincount(_bin(gaps), minlength=BINS)

    def include(self, other: Gaps) -> None:
        """Add the counts of other events."""
        self.counts += other.counts
        self.impressions += other.impressions

    def grouping(self, requests: Requests, clock: bool, session: bool = False) -> Grouping:
        """The grouping that a description asks for; what it leaves open, the gaps decide.

        Args:
            requests: of the description.
            clock: whether the log has times.
            session: whether a request is a session.
        """
        if session:
            gap_ms = USUAL_SESSION_S * 1000 if requests.gap is None else requests.gap * 1000
            if clock and requests.gap is None:
                gap_ms = self._valley(*SESSION_MS) or gap_ms
            return Grouping(gap_ms if clock else None, 1, round(gap_ms) if clock else 0, True)
        if requests.size is not None:
            gap = USUAL_SESSION_S if requests.gap is None else requests.gap
            return Grouping(gap * 1000 if clock else None, requests.size)
        together = self._valley(0, PAGE_MS) or 0 if clock else 0
        longest: float | None = None
        if clock and requests.gap is not None:
            longest = requests.gap * 1000
        elif clock:
            longest = self._valley(*SESSION_MS) or USUAL_SESSION_S * 1000
        pages = self.impressions - int(self.counts[: _bin(np.array([together]))[0] + 1].sum())
        size = next((one for one in SIZES if pages <= one * BUDGET), SIZES[-1])
        return Grouping(longest, size, together)

    def _valley(self, low: int, high: int) -> int | None:
        """The least gap from ``low`` to ``high`` ms with a valley above it; None: there is none.

        Of several valleys the emptiest counts, of equal ones the first.
        """
        total = int(self.counts.sum())
        below = np.cumsum(self.counts)
        found: tuple[int, int] | None = None
        for k in range(int(_bin(np.array([low]))[0]), int(_bin(np.array([high]))[0]) + 1):
            inside = int(below[min(k + WIDTH, BINS - 1)] - below[k])
            sides = min(int(below[k]), total - int(below[k]) - inside)
            deep = inside <= DEPTH * sides and sides >= LEAST_SHARE * total and sides > 0
            if deep and _end(k) <= high and (found is None or inside < found[0]):
                found = inside, k
        return None if found is None else _end(found[1])


def _bin(gaps: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bin of each gap: 0 for 0 ms, 1 for [1, 1.4) ms, and so on in half octaves."""
    logs = np.floor(2 * np.log2(np.maximum(gaps, 1))).astype(np.int64) + 1
    bins: NDArray[np.int64] = np.where(gaps > 0, np.minimum(logs, BINS - 1), 0)
    return bins


def _end(k: int) -> int:
    """The longest gap of a bin, in milliseconds."""
    return int(np.ceil(2 ** (k / 2))) - 1
