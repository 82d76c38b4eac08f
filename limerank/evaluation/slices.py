"""Slices of the impressions of a split: by how much the log knows of the user and of the item.

A mean over all impressions hides how a model treats new users and rare items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from limerank.data.canonical import DAY_MS
from limerank.data.dataset import Dataset
from limerank.evaluation.predict import Predictions

EDGES = {
    "history": (0, 1, 10, 50, 200),
    "item impressions": (0, 1, 10, 100),
    "user days": (0, 1, 7, 30),
    "item days": (0, 1, 7, 30),
}
"""Kind of slice -> the lowest value of each slice; see :func:`slice_values`."""
EVENTS_AT_ONCE = 1 << 20
"""Events whose times are read at once: memory does not grow with the log."""


def slice_values(predicted: Predictions, dataset: Dataset) -> dict[str, NDArray[np.int64]]:
    """The values that decide the slice of each impression: kind of slice -> i64 [n].

    ``history`` counts the user's events before the request. ``item impressions`` counts the item's
    impressions in the training window. Where the log has a clock, ``user days`` and ``item days``
    count the full days since the first event of the user and of the item.
    """
    starts, ends = dataset.requests["history_start"], dataset.requests["history_end"]
    items = np.asarray(dataset.events["item"][predicted.rows])
    found = {
        "history": (ends - starts)[predicted.requests],
        "item impressions": dataset.train_count[items],
    }
    if dataset.clock:
        times = dataset.events["time"]
        begun = times[dataset.event_offsets[dataset.requests["user"][predicted.requests]]]
        first = _first_times(dataset)[items]
        found["user days"] = (times[predicted.rows] - begun) // DAY_MS
        found["item days"] = (times[predicted.rows] - first) // DAY_MS
    return found


def _first_times(dataset: Dataset) -> NDArray[np.int64]:
    """Time of the first event of each item, i64 [items]."""
    items, times = dataset.events["item"], dataset.events["time"]
    found = np.full(len(dataset.items), np.iinfo(np.int64).max)
    for start in range(0, len(items), EVENTS_AT_ONCE):
        some = slice(start, start + EVENTS_AT_ONCE)
        np.minimum.at(found, items[some], times[some])
    return found


def slices(
    values_of_kind: Mapping[str, NDArray[np.int64]],
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield (kind, name, mask of its impressions, bool [n]) of each slice.

    Args:
        values_of_kind: of :func:`slice_values`.
    """
    for kind, values in values_of_kind.items():
        edges = EDGES[kind]
        group = np.searchsorted(edges, values, side="right") - 1
        for position, low in enumerate(edges):
            if position + 1 == len(edges):
                name = f"{low}+"
            else:
                high = edges[position + 1] - 1
                name = str(low) if high == low else f"{low}-{high}"
            yield kind, name, group == position


def column(kind: str) -> str:
    """The column of a kind of slice in a file of predictions."""
    return kind.replace(" ", "_")
