"""A request: one user's events and context as a model's input.

Ranking from a dataset and ranking from a server's store both use these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.batch import Features, Users
from limerank.data.event_log import EventForm, EventLog
from limerank.data.history import latest
from limerank.index import Index
from limerank.ranking.explain import Past

POSITIONS = 1 << 13
"""History positions of an explanation encoded at once."""

Rows = NDArray[np.int64]


def past_of(
    log: EventLog,
    form: EventForm,
    length: int,
    features: Callable[[int], Features],
    vectors: Callable[[Any, NDArray[Any]], Tensor],
    now: int,
    context: Mapping[str, Any],
) -> Past:
    """A request with its user's history, for ranking and for explanations.

    Args:
        log: the user's events.
        form: the event form of the run.
        length: events of the history, at most.
        features: returns the user's own features, repeated for so many requests.
        vectors: (ids, codes) -> the vectors of the items ``ids[codes]``, on the model's device.
        now: when the request is made.
        context: context feature -> value.
    """
    base = log.rows[-length:]
    codes = np.unique(log.columns["item"][base])
    of_items = vectors(log.ids, codes)
    of_request = form.context(context)

    def users(rows: list[Rows], tokens: Tensor | None) -> Users:
        ends = np.cumsum([len(part) for part in rows])
        starts = ends - [len(part) for part in rows]
        flat = np.concatenate(rows)
        history = latest(log.columns, form.encoder, starts, ends, length, flat)
        real = np.arange(history.items.shape[1]) < history.lengths[:, None]
        positions = np.where(real, np.searchsorted(codes, history.items), 0)
        if tokens is None:
            at = np.array([now], dtype=np.int64)
            tokens = torch.from_numpy(
                form.encoder.context(of_request, at, history.newest, history.lengths)
            )
        return Users.from_history(
            history,
            items=positions,
            features=features(len(rows)),
            context=tokens.expand(len(rows), -1),
        ).to(of_items.device)

    full = users([base], None)

    def without(positions: NDArray[np.int64]) -> Iterator[Users]:
        histories = [np.delete(base, position) for position in positions] + [base[:0]]
        size = max(1, POSITIONS // max(len(base), 1))
        for at in range(0, len(histories), size):
            yield users(histories[at : at + size], full.context)

    items = [plain(log.ids[code]) for code in log.columns["item"][base]]
    times = np.asarray(log.columns["time"][base], dtype=np.int64)
    return Past(full, of_items, items, times, without)


def item_vectors(index: Index, ids: Any, device: torch.device) -> tuple[Tensor, NDArray[np.bool_]]:
    """Vectors of items by external id, f32 [n, d] on the device, and which of the items the index
    lacks, bool [n]; their vectors are zero."""
    rows = index.ids.find(ids)
    lacking = rows < 0
    vectors_nd = torch.zeros(len(rows), index.vectors.shape[1])
    held = np.flatnonzero(~lacking)
    vectors_nd[held] = torch.from_numpy(np.array(index.vectors[rows[held]], dtype=np.float32))
    return vectors_nd.to(device), lacking


def seen_rows(index: Index, log: EventLog) -> Rows:
    """Index rows of the items of all events of a log, ascending."""
    rows = index.ids.find(log.ids[np.unique(log.columns["item"][log.seen])])
    return np.unique(rows[rows >= 0])


def plain(value: Any) -> Any:
    """A NumPy scalar as a Python value; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value
