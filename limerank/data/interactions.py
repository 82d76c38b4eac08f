"""The training window of a dataset as interactions of users with items, for counting.

Where the main label is binary, an interaction is an event with a positive outcome. In a log of
positives, every event is one: a view says less than a purchase, but both are choices of the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.data.batch import Interactions
from limerank.data.dataset import Dataset
from limerank.data.ragged import ragged_index

BLOCK = 1 << 19
"""Events that are read at once, about; at least those of one user."""
RANKING_KINDS = ("positive", "binary")
"""Kinds of the label that says which items a list should hold, the first choice first."""


def main_label(labels: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The label that says which items a list should hold: the first positive one, else the first
    binary one; None where there is neither.

    Args:
        labels: of a dataset's encoding.
    """
    for kind in RANKING_KINDS:
        for label in labels:
            if label["kind"] == kind:
                return label
    return None


class TrainingInteractions:
    """The :class:`~limerank.data.batch.TrainingEvents` of a dataset.

    Where the split is by time, these are all events before the validation split, those of users
    without a request among them. Otherwise they are the events of each user up to its last request
    of the training split, and all events of users without any request. Held-out users have none.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        label = main_label(dataset.encoding["labels"])
        self._column = None if label is None else f"label_{label['name']}"
        self._all = label is None or label["kind"] != "binary"

    @property
    def token(self) -> int | None:
        """The event token of a positive outcome; None: every event is an interaction."""
        if self._all or self._column is None:
            return None
        return self.dataset.encoder.token(self._column, 1)

    def blocks(self) -> Iterator[Interactions]:
        """All of them; each block has all events of its users."""
        starts, ends, before = self._windows()
        sizes = np.cumsum(ends - starts)
        at = 0
        while at < len(starts):
            done = sizes[at - 1] if at else 0
            until = max(int(np.searchsorted(sizes, done + BLOCK, side="right")), at + 1)
            lengths = (ends - starts)[at:until]
            rows = ragged_index(starts[at:until], lengths)
            users = np.repeat(np.arange(at, until), lengths)
            at = until
            if before is not None:
                early = self.dataset.events["time"][rows] < before
                rows, users = rows[early], users[early]
            yield self._block(users, rows)

    def _block(self, users: NDArray[np.int64], rows: NDArray[np.int64]) -> Interactions:
        events, trained = self.dataset.events, self.dataset.trained_items
        items = events["item"][rows].astype(np.int64)
        weights = np.ones(len(rows), np.float32)
        if self._column is not None:
            weights = np.nan_to_num(events[self._column][rows].astype(np.float32)).clip(min=0)
        return Interactions(
            users=users,
            items=np.where(items < trained, items + 1, 0),
            weights=weights,
            counted=np.ones(len(rows), bool) if self._all else weights > 0,
        )

    def _windows(self) -> tuple[NDArray[np.int64], NDArray[np.int64], int | None]:
        """Of each user the first event and the end of the events that may count, i64 [U] each; and
        the time before which they count."""
        dataset = self.dataset
        columns, offsets = dataset.requests, dataset.event_offsets
        starts, ends = offsets[:-1].copy(), offsets[1:].copy()
        ends[columns["user"][dataset.requests_of("held-out")]] = 0
        cuts = dataset.manifest["summary"].get("cuts")
        if cuts is None:
            others = np.concatenate([dataset.requests_of(one) for one in ("validation", "test")])
            ends[columns["user"][others]] = 0
            train = dataset.requests_of("train")
            last = np.zeros(len(ends), np.int64)
            np.maximum.at(
                last, columns["user"][train], columns["first"][train] + columns["count"][train]
            )
            ends = np.where(last > 0, last, ends)
        return starts, np.maximum(ends, starts), None if cuts is None else int(cuts[0])


def event_counts(dataset: Dataset) -> NDArray[np.int64]:
    """Interactions with each item in the training window, i64 [trained items]."""
    size = dataset.trained_items + 1
    counts = np.zeros(size, np.int64)
    for block in TrainingInteractions(dataset).blocks():
        counts += np.bincount(block.items[block.counted], minlength=size)
    return counts[1:]
