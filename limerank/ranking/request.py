"""A request: one user's events and context, as what a model eats.

Ranking from a dataset and from a server's store come through here alike.
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
    """A request with its user's history, and how to take events away from it.

    Args:
        log: the user's events.
        form: of the run.
        length: events of the history, at most.
        features: how many -> the user's own features, so many times.
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


def plain(value: Any) -> Any:
    """A value of NumPy's as Python's."""
    return value.item() if isinstance(value, np.generic) else value
