"""Slices of the impressions of a split: by how much the log knows of the user and of the item.

A mean over all impressions hides how a model treats new users, rare items, and items that the user
has seen before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from limerank.data.canonical import DAY_MS
from limerank.data.dataset import Dataset
from limerank.data.ragged import ragged_index
from limerank.evaluation.predict import Predictions

EDGES = {
    "candidate": (0, 1),
    "history": (0, 1, 10, 50, 200),
    "item impressions": (0, 1, 10, 100),
    "user days": (0, 1, 7, 30),
    "item days": (0, 1, 7, 30),
}
"""Kind of slice -> the lowest value of each slice; see :func:`slice_values`."""
NAMES = {"candidate": ("new", "repeat")}
"""Kind -> names of its slices, where they are not the range of the values."""
COLUMNS = {"candidate": "repeat"}
"""Kind -> its column in a file of predictions, where that is not the kind itself."""
EVENTS_AT_ONCE = 1 << 20
"""Events that are read at once, about: memory does not grow with the log."""


def slice_values(predicted: Predictions, dataset: Dataset) -> dict[str, NDArray[np.int64]]:
    """The values that decide the slice of each impression: kind of slice -> i64 [n].

    ``candidate`` is 1 for a *repeat*, whose item stands in the history (see :func:`repeats`), and 0
    for a *new* item. ``history`` counts the user's events before the request. ``item impressions``
    counts the item's impressions in the training window. Where the log has a clock, ``user days``
    and ``item days`` count the full days since the first event of the user and of the item.
    """
    starts, ends = dataset.requests["history_start"], dataset.requests["history_end"]
    items = np.asarray(dataset.events["item"][predicted.rows])
    found = {
        "candidate": repeats(dataset, predicted.requests, items).astype(np.int64),
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


def repeats(
    dataset: Dataset, requests: NDArray[np.int64], items: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Whether the user's full history before a request holds the item, bool [n].

    Args:
        dataset: whose requests and items these are.
        requests: a request row for each impression, i64 [n].
        items: item rows, i32 [n].
    """
    found = np.zeros(len(requests), dtype=bool)
    if not len(requests):
        return found
    users = dataset.requests["user"][requests]
    ends = dataset.requests["history_end"][requests]
    order = np.argsort(users, kind="stable")
    first = np.flatnonzero(np.diff(users[order], prepend=-1))  # of each user's impressions
    start = dataset.requests["history_start"][requests[order[first]]]
    length = np.maximum.reduceat(ends[order], first) - start
    bounds = np.append(first, len(order))
    parts = np.cumsum(length) // EVENTS_AT_ONCE
    for group in np.split(np.arange(len(first)), np.flatnonzero(np.diff(parts)) + 1):
        positions = ragged_index(start[group], length[group])
        rows = positions if dataset.retained is None else dataset.retained[positions]
        owner = np.repeat(np.arange(len(group)), length[group])
        # np.unique finds the first of equal keys: each user's first event of each item.
        keys, at = np.unique(
            owner * len(dataset.items) + dataset.events["item"][rows], return_index=True
        )
        ours = order[bounds[group[0]] : bounds[group[-1] + 1]]
        user = np.repeat(np.arange(len(group)), np.diff(bounds[group[0] : group[-1] + 2]))
        wanted = user * len(dataset.items) + items[ours]
        known = np.isin(wanted, keys)
        earliest = positions[at[np.searchsorted(keys, wanted[known])]]
        found[ours[known]] = earliest < ends[ours[known]]
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
            if kind in NAMES:
                name = NAMES[kind][position]
            elif position + 1 == len(edges):
                name = f"{low}+"
            else:
                high = edges[position + 1] - 1
                name = str(low) if high == low else f"{low}-{high}"
            yield kind, name, group == position


def column(kind: str) -> str:
    """The column of a kind of slice in a file of predictions."""
    return COLUMNS.get(kind, kind.replace(" ", "_"))
