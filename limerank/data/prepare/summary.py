"""What is counted while a dataset is written, for its summary (:mod:`limerank.data.summary`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from limerank.data.folder import SPLITS
from limerank.data.summary import QUANTILES


@dataclass
class Stats:
    """Sums over the events and requests of each split."""

    impressions: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SPLITS), np.int64))
    requests: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SPLITS), np.int64))
    labels: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    positives: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Of each label, impressions whose label is above 0."""
    lengths: list[NDArray[np.int64]] = field(
        default_factory=lambda: [np.zeros(1, np.int64) for _ in SPLITS]
    )
    """How many requests have a history of 0, 1, 2 ... events."""
    known: dict[str, int] = field(default_factory=dict)
    """How many events (impressions, for impression features) have a known value of each event
    feature."""
    differing: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Of each context feature, how many requests have several impressions, and in how many of these
    the values differ."""
    stale: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SPLITS), np.int64))
    """Summed over impressions: how many earlier events of its own request each has, which its
    history does not contain."""
    users: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SPLITS), np.int64))
    """Users with requests."""
    late_training: int = 0
    """Training requests that come after a validation or test request of their user."""

    def add(self, other: Stats) -> None:
        self.impressions[:] += other.impressions
        self.requests[:] += other.requests
        for name, sums in other.labels.items():
            self.labels[name] += sums
        for name, counts in other.positives.items():
            self.positives[name] += counts
        self.lengths[:] = map(_add_padded, self.lengths, other.lengths)
        for name, count in other.known.items():
            self.known[name] += count
        for name, counts in other.differing.items():
            self.differing[name] = self.differing.get(name, 0) + counts
        self.stale[:] += other.stale
        self.users[:] += other.users
        self.late_training += other.late_training


def _add_padded(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(a) < len(b):
        a, b = b.copy(), a
    a[: len(b)] += b
    return a


def quantiles_of_counts(counts: NDArray[np.int64]) -> list[int]:
    """The values at ``QUANTILES``, where ``counts[v]`` of them are ``v``."""
    total = int(counts.sum())
    if total == 0:
        return [0 for _ in QUANTILES]
    ranks = [min(int(q * total), total - 1) for q in QUANTILES]
    return [int(v) for v in np.searchsorted(np.cumsum(counts), ranks, side="right")]
