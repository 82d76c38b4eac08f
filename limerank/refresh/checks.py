"""What the new part of a log must show before anything is trained on it.

A column that breaks (a renamed field, an empty export, another unit) is found here rather than by a
model that is a little worse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.data.canonical import iso
from limerank.data.dataset import Dataset
from limerank.refresh.config import DataChecks

BLOCK = 1 << 20
"""Events that are read at once."""
KINDS = {"feature": "event feature", "label": "label", "impression": "impression feature"}
LEAST_ROWS = 100
"""Fewer new events show nothing about a feature or a label."""


def check_data(dataset: Dataset, before: Dataset, checks: DataChecks) -> list[str]:
    """Reasons for not training on an extended dataset; none where its new part looks like the rest.

    Args:
        dataset: the extended one. Its new part are the events after the newest one of ``before``.
        before: the dataset that it extends.
        checks: the limits.
    """
    newest = before.manifest["summary"]["time"]["last"]
    earlier, latest = _Sums(), _Sums()
    events = 0
    for block in _blocks(len(dataset.events["time"])):
        new = np.asarray(dataset.events["time"][block]) > newest
        events += int(new.sum())
        for name in _columns(dataset):
            values = np.asarray(dataset.events[name][block])
            earlier.add(name, values[~new])
            latest.add(name, values[new])
    found = _of_rows(dataset, events, newest, checks)
    for name in _columns(dataset):
        if min(earlier.rows[name], latest.rows[name]) >= LEAST_ROWS:
            found += _of_column(name, earlier, latest, checks)
    return found


def _of_rows(dataset: Dataset, events: int, newest: int, checks: DataChecks) -> list[str]:
    found = []
    summary = dataset.manifest["summary"]
    added = summary.get("added", {}).get("rows", summary["rows"])
    dropped = sum(summary["dropped"].values())
    if events < checks.least_events:
        older, end = added - dropped - events, iso(newest) if dataset.clock else f"{newest:,}"
        why = "is the export complete?"
        if older > 0:
            why = f"{older:,} of the new rows are older; is their time in the unit of the others?"
        found.append(
            f"the log has {events:,} events that are newer than those of the dataset before, "
            f"which end at {end}; expected at least {checks.least_events:,} "
            f"(data.least_events): {why}"
        )
    if added and dropped > checks.most_dropped * added:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary["dropped"].items())
        found.append(
            f"{dropped:,} of {added:,} new rows were dropped ({reasons}), at most "
            f"{checks.most_dropped:.0%} are expected (data.most_dropped)"
        )
    return found


def _of_column(name: str, earlier: _Sums, latest: _Sums, checks: DataChecks) -> list[str]:
    kind, _, own = name.partition("_")
    what = f"{KINDS[kind]} {own!r}"
    was, now = earlier.known_share(name), latest.known_share(name)
    least = was * (1 - checks.most_lost)
    if now < least:
        return [
            f"{what} has a known value in {now:.0%} of the new events, {was:.0%} before; at least "
            f"{least:.0%} are expected (data.most_lost): was its column renamed, or its export cut "
            "short?"
        ]
    was, now = earlier.mean(name), latest.mean(name)
    shifted = not was / checks.most_shifted <= now <= was * checks.most_shifted
    if kind == "label" and was > 0 and shifted:
        return [
            f"{what} has a mean of {now:.4g} in the new events, {was:.4g} before: a change by more "
            f"than a factor of {checks.most_shifted:g} (data.most_shifted); is its column "
            "complete, and in the same unit?"
        ]
    return []


class _Sums:
    """Rows, known values and sums by column."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self._known: Counter[str] = Counter()
        self._sums: dict[str, float] = {}

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Add values of a column; of a categorical feature these are codes, 0 where unknown."""
        if values.dtype.kind == "f":
            known = ~np.isnan(values)
        else:
            known = (values != 0) | name.startswith("label_")
        self.rows[name] += len(values)
        self._known[name] += int(known.sum())
        self._sums[name] = self._sums.get(name, 0.0) + float(values[known].sum(dtype=np.float64))

    def known_share(self, name: str) -> float:
        return self._known[name] / self.rows[name]

    def mean(self, name: str) -> float:
        return self._sums[name] / max(self._known[name], 1)


def _columns(dataset: Dataset) -> list[str]:
    return [name for name in sorted(dataset.events) if name.partition("_")[0] in KINDS]


def _blocks(n: int) -> Iterator[slice]:
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))
