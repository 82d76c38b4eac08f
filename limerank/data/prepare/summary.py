"""The summary of a dataset: what is counted while it is written, and its form for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.data.canonical import iso
from limerank.data.folder import SPLITS

BACKWARDS = "time going backwards"
UNSORTED = 0.01
"""With a larger share of such rows the files are not sorted; with a smaller one, some rows are
late."""
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def summary_text(manifest: dict[str, Any]) -> str:
    """What is in a dataset, for people."""
    counts, summary = manifest["counts"], manifest["summary"]
    lines = [
        f"dataset {manifest['name']}",
        f"  users {counts['users']:,}   items {counts['items']:,} "
        f"({manifest['encoding']['trained_items']:,} in the training window)   "
        f"events {counts['events']:,}",
    ]
    if manifest["clock"]:
        first, last = (iso(summary["time"][key]) for key in ("first", "last"))
        lines.append(f"  from {first} to {last}")
    names = [label["name"] for label in manifest["encoding"]["labels"]]
    shares = [f"{int(100 * q)} %" for q in QUANTILES]
    lines.append("")
    head = f"  {'split':<12}{'requests':>12}{'impressions':>14}{'per request':>13}"
    lines.append(head + "".join(f"{'mean ' + name:>{max(12, len(name) + 7)}}" for name in names))
    shown = [split for split in SPLITS if split != "held-out" or counts["requests"][split]]
    for split in shown:
        means = summary["labels"][split]
        row = f"  {split:<12}{counts['requests'][split]:>12,}{counts['impressions'][split]:>14,}"
        row += f"{summary['per_request'][split]:>13.2f}"
        for name in names:
            mean = means[name]
            row += f"{'-' if mean is None else f'{mean:.4f}':>{max(12, len(name) + 7)}}"
        lines.append(row)
    lines += ["", "  history length by request" + "".join(f"{share:>9}" for share in shares)]
    for split in shown:
        values = summary["history"][split]
        lines.append(f"  {split:<25}" + "".join(f"{value:>9,}" for value in values))
    lines += ["", f"  rows read {summary['rows']:,}"]
    lines += [f"  {line}" for line in summary.get("coverage", [])]
    examples = summary.get("examples", {})
    for what in ("dropped", "noted"):
        for reason, count in summary[what].items():
            lines.append(f"  {what:<7} {count:>12,}  {reason}")
            if reason in examples:
                lines.append(f"{'':>24}such as {examples[reason]}")
            if reason == BACKWARDS and count > UNSORTED * counts["events"]:
                lines.append(f"{'':>24}the files are not in order of time; their rows were sorted")
    lines += [f"  warning: {warning}" for warning in summary["warnings"]]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Stats:
    """What the summary says of each split."""

    impressions: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SPLITS), np.int64))
    requests: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SPLITS), np.int64))
    labels: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    lengths: list[NDArray[np.int64]] = field(
        default_factory=lambda: [np.zeros(1, np.int64) for _ in SPLITS]
    )
    """How many requests have a history of 0, 1, 2 ... events."""
    known: dict[str, int] = field(default_factory=dict)
    """How many events have a known value of each event feature."""

    def add(self, other: Stats) -> None:
        self.impressions[:] += other.impressions
        self.requests[:] += other.requests
        for name, sums in other.labels.items():
            self.labels[name] += sums
        self.lengths[:] = map(_add_padded, self.lengths, other.lengths)
        for name, count in other.known.items():
            self.known[name] += count


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
