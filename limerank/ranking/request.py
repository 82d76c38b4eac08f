"""A request: one user's events and context as a model's input.

Ranking from a dataset and ranking from a server's store both use these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.batch import Features, ItemKeys, Users
from limerank.data.event_log import EventForm, EventLog
from limerank.data.history import latest
from limerank.index import Index
from limerank.ranking.explain import Past

POSITIONS = 1 << 13
"""History positions of an explanation encoded at once."""

Rows = NDArray[np.int64]


class HistoryItems(NamedTuple):
    """What a model reads of U items of a history: their vectors [U, d], and their keys, None for a
    model without anchored links."""

    vectors: Tensor
    keys: ItemKeys | None


def past_of(
    log: EventLog,
    form: EventForm,
    length: int,
    features: Callable[[int], Features],
    items: Callable[[Any, NDArray[Any]], HistoryItems],
    now: int,
    context: Mapping[str, Any],
) -> Past:
    """A request with its user's history, for ranking and for explanations.

    Args:
        log: the user's events.
        form: the event form of the run.
        length: events of the history, at most.
        features: returns the user's own features, repeated for so many requests.
        items: (ids, codes) -> the items ``ids[codes]``; vectors on the model's device.
        now: when the request is made.
        context: context feature -> value.
    """
    base = log.rows[-length:]
    codes = np.unique(log.columns["item"][base])
    vectors, keys = items(log.ids, codes)
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
            keys=keys,
        ).to(vectors.device)

    full = users([base], None)

    def without(positions: NDArray[np.int64]) -> Iterator[Users]:
        histories = [np.delete(base, position) for position in positions] + [base[:0]]
        size = max(1, POSITIONS // max(len(base), 1))
        for at in range(0, len(histories), size):
            yield users(histories[at : at + size], full.context)

    ids = [plain(log.ids[code]) for code in log.columns["item"][base]]
    times = np.asarray(log.columns["time"][base], dtype=np.int64)
    return Past(
        full,
        vectors,
        ids,
        times,
        without,
        lambda: form.outcomes(log.columns, base),
        form.clock,
    )


def item_vectors(index: Index, rows: Rows, device: torch.device) -> Tensor:
    """Vectors of items by index row, f32 [n, d] on the device; zero where the row is -1."""
    vectors_nd = torch.zeros(len(rows), index.vectors.shape[1])
    held = np.flatnonzero(rows >= 0)
    vectors_nd[held] = torch.from_numpy(np.array(index.vectors[rows[held]], dtype=np.float32))
    return vectors_nd.to(device)


def index_keys(index: Index, rows: Rows) -> ItemKeys:
    """Keys of items by index row, i64 [n]; none where the row is -1: an item that the index lacks
    is like no candidate.

    Raises:
        RuntimeError: the index was built without the keys of items, which scorers check.
    """
    if index.anchors is None:
        raise RuntimeError(f"{index.path} has no keys of items")
    keys, shares, offsets = (torch.from_numpy(part) for part in index.anchors.keys(rows))
    return ItemKeys(keys=keys, shares=shares, offsets=offsets)


def seen_rows(index: Index, log: EventLog) -> Rows:
    """Index rows of the items of all events of a log, ascending."""
    rows = index.ids.find(log.ids[np.unique(log.columns["item"][log.seen])])
    return np.unique(rows[rows >= 0])


def plain(value: Any) -> Any:
    """A NumPy scalar as a Python value; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value
