"""Events -> one user's history: the one function that training, evaluation and serving share.

Shape letters: B requests, N history positions (padded), A tokens per event, C context tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.data.canonical import DAY_MS, HOUR_MS

RATIO_EDGES = np.array(
    [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.05, 1.5, 2]
)
POSITIVE_EDGES = np.array([np.finfo(np.float32).tiny])
"""Weights of positives from weights of 0."""
FORMER_GAP_EDGES_MS = (
    *(minutes * 60e3 for minutes in (1, 5, 15, 30, 60, 180, 480)),
    *(days * 86400e3 for days in (1, 2, 4, 7, 14, 30, 90, 365)),
)
"""Edges of the time since the newest event in datasets of formats 1 to 3."""
GAP_EDGES_MS = (1e3, 2e3, 5e3, 10e3, 20e3, 40e3, 60e3, 120e3, *FORMER_GAP_EDGES_MS[1:])
"""Edges of the time since the newest event. Within a session seconds matter: who returns to the
list after two seconds goes back to another item than who returns after a minute."""

Columns = Mapping[str, NDArray[Any]]
"""Columns of events that are sorted by user, then time: ``item`` i32, ``time`` i64, and the
``label_*``, ``ratio_*`` and ``feature_*`` columns of the dataset format."""


@dataclass(frozen=True)
class History:
    """The latest events of B users, oldest first, padded at the end.

    Attributes:
        items: item rows, i32 [B, N]; 0 where padded.
        tokens: event tokens, i64 [B, N, A]: labels, features and time of each event.
        age: days (events, where the log has no clock) from each event to the user's newest one,
            f32 [B, N]; 0 where padded.
        lengths: events of each user, i64 [B].
        newest: time of each user's newest event, i64 [B]; undefined where the length is 0.
    """

    items: NDArray[np.int32]
    tokens: NDArray[np.int64]
    age: NDArray[np.float32]
    lengths: NDArray[np.int64]
    newest: NDArray[np.int64]


class EventEncoder:
    """Events and request contexts as tokens, of one small embedding table each.

    Args:
        encoding: the ``encoding`` part of a dataset's manifest.
        clock: whether times are milliseconds since 1970 (else they only order the events).
    """

    def __init__(self, encoding: Mapping[str, Any], clock: bool) -> None:
        self.clock = clock
        self._columns: list[tuple[str, NDArray[np.float64] | None, int]] = []
        """(column, edges for a search or None for codes as they are, number of codes)."""
        for label in encoding["labels"]:
            if label["kind"] == "binary":
                self._columns.append((f"label_{label['name']}", None, 2))
            elif label["kind"] == "positive":
                self._columns.append((f"label_{label['name']}", POSITIVE_EDGES, 3))
            else:
                edges = np.asarray(label["edges"], dtype=np.float64)
                self._columns.append((f"label_{label['name']}", edges, len(edges) + 2))
                if label["ratio"]:
                    size = len(RATIO_EDGES) + 2
                    self._columns.append((f"ratio_{label['name']}", RATIO_EDGES, size))
        self.gap_edges = np.array(encoding.get("gap_edges_ms", FORMER_GAP_EDGES_MS))
        context = []
        for feature in encoding["event_features"]:
            column = f"feature_{feature['name']}"
            self._columns.append((column, None, feature["size"]))
            if feature["when"] == "context":
                context.append((column, feature["size"]))
        self._context = context
        sizes = [size for _, _, size in self._columns] + ([24, 7] if clock else [])
        self._sizes = sizes
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.tokens = int(self._starts[-1])
        """Rows of the event table."""
        context_sizes = [size for _, size in context]
        context_sizes += [24, 7, len(self.gap_edges) + 2] if clock else []
        self._context_sizes = context_sizes
        self._context_starts = np.concatenate([[0], np.cumsum(context_sizes)]).astype(np.int64)
        self.context_tokens = int(self._context_starts[-1])
        """Rows of the context table."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The event columns that :meth:`encode` reads, besides ``item`` and ``time``."""
        return tuple(column for column, _, _ in self._columns)

    @property
    def context_columns(self) -> tuple[str, ...]:
        """The event columns that :meth:`context` reads of a request's first impression."""
        return tuple(column for column, _ in self._context)

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """The parts of the event table: column, or "hour" and "weekday" -> first row, and rows."""
        names = [*self.columns, "hour", "weekday"]
        return _parts(names, self._starts, self._sizes)

    @property
    def context_parts(self) -> dict[str, tuple[int, int]]:
        """The same of the context table, which has a part "gap" besides."""
        names = [*self.context_columns, "hour", "weekday", "gap"]
        return _parts(names, self._context_starts, self._context_sizes)

    def token(self, column: str, code: int) -> int:
        """The event token of a code of a column; of one that is cut at edges, code 0 is unknown."""
        position = self.columns.index(column)
        return int(self._starts[position]) + code

    def encode(self, columns: Columns, time: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens i64 [..., A] of events whose columns and times have the shape [...]."""
        parts: list[NDArray[Any]] = []
        for column, edges, _ in self._columns:
            values = columns[column]
            if edges is None:
                parts.append(values)
            else:
                known = ~np.isnan(values)
                codes = 1 + np.searchsorted(edges, np.where(known, values, 0), side="right")
                parts.append(np.where(known, codes, 0))
        if self.clock:
            parts += _hour_and_weekday(time)
        tokens = np.empty((*time.shape, len(parts)), dtype=np.int64)
        for position, part in enumerate(parts):
            np.add(part, self._starts[position], out=tokens[..., position], casting="unsafe")
        return tokens

    def context(
        self,
        columns: Columns,
        time: NDArray[np.int64],
        newest: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Tokens i64 [B, C] of what is known when a request is made at ``time`` i64 [B], after a
        history of ``lengths`` events of which the newest was at ``newest``."""
        parts: list[NDArray[Any]] = [columns[column] for column, _ in self._context]
        if self.clock:
            parts += _hour_and_weekday(time)
            gap = 1 + np.searchsorted(self.gap_edges, time - newest, side="right")
            parts.append(np.where(lengths > 0, gap, 0))
        tokens = np.empty((len(time), len(parts)), dtype=np.int64)
        for position, part in enumerate(parts):
            np.add(part, self._context_starts[position], out=tokens[:, position], casting="unsafe")
        return tokens

    def context_until(self, time: int, newest: int, length: int) -> float:
        """The first time after ``time`` at which a request with the same history and features has
        another :meth:`context`."""
        if not self.clock:
            return np.inf
        hour = (time // HOUR_MS + 1) * HOUR_MS
        edge = int(np.searchsorted(self.gap_edges, time - newest, side="right"))
        if not length or edge == len(self.gap_edges):
            return hour
        return min(hour, newest + float(self.gap_edges[edge]))


def _parts(
    names: list[str], starts: NDArray[np.int64], sizes: list[int]
) -> dict[str, tuple[int, int]]:
    found = zip(names, starts, sizes, strict=False)  # a log without a clock has no times
    return {name: (int(start), size) for name, start, size in found}


def _hour_and_weekday(time: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [(time // HOUR_MS) % 24, (time // DAY_MS + 3) % 7]


def latest(
    columns: Columns,
    encoder: EventEncoder,
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    length: int,
    rows: NDArray[np.int64] | None = None,
) -> History:
    """The latest ``length`` events before ``end`` of each user.

    Args:
        columns: the events, sorted by user, then time.
        start: first position of each user, i64 [B].
        end: the position after the last event that the history may have, i64 [B].
        length: at most so many events per history.
        rows: rows of the retained events in ``columns``, where positions count only these (None:
            positions are rows of ``columns``).
    """
    lengths = np.minimum(end - start, length)
    width = int(lengths.max(initial=0))
    at = (end - lengths)[:, None] + np.arange(width)
    real = np.arange(width) < lengths[:, None]
    at = np.where(real, at, 0)
    if rows is not None and len(rows):
        at = rows[at]
    if width == 0:
        at = at.reshape(len(lengths), 0)
    time = np.asarray(columns["time"][at], dtype=np.int64)
    items = np.where(real, columns["item"][at], 0).astype(np.int32)
    tokens = encoder.encode({name: columns[name][at] for name in encoder.columns}, time)
    if width:
        newest = time[np.arange(len(lengths)), np.maximum(lengths - 1, 0)]
    else:
        newest = np.zeros(len(lengths), dtype=np.int64)
    if encoder.clock:
        age = (newest[:, None] - time) / DAY_MS
    else:
        age = (lengths[:, None] - 1 - np.arange(width)).astype(np.float64)
    age = np.where(real, age, 0).astype(np.float32)
    return History(items, tokens, age, lengths, newest)
