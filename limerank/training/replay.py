"""What a warm start trains on: the requests that are new, and some of the older ones again.

Training on new requests alone forgets what they do not contain, and training on all of them again
costs what a training from the start costs. So a warm start also has a sample of the older requests,
drawn evenly, of at most ``replay`` times the impressions of the new ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limerank.data.dataset import Dataset

REPLAY = 1.0
"""Impressions of older requests for each of a new one, where the configuration leaves it open."""


@dataclass(frozen=True)
class Selection:
    """Requests of a training split, rows in user order, i64.

    Attributes:
        new: those that the earlier run was not trained on.
        replayed: the drawn ones of the others.
    """

    new: NDArray[np.int64]
    replayed: NDArray[np.int64]

    @property
    def requests(self) -> NDArray[np.int64]:
        """All of them, in user order."""
        return np.sort(np.concatenate([self.new, self.replayed]))


def selection(
    dataset: Dataset,
    requests: NDArray[np.int64],
    until: int | None,
    replay: float,
    seed: int,
) -> Selection:
    """Choose among the requests of a training split.

    Args:
        requests: rows that an objective learns from, i64.
        until: time of the newest impression that the earlier run was trained on; None: not known,
            or the log has no clock; all requests then count as new.
        replay: impressions of older requests for each of a new one, at most.
        seed: of the draw.
    """
    none = np.zeros(0, np.int64)
    if until is None or not dataset.clock:
        return Selection(requests, none)
    is_new = dataset.events["time"][dataset.requests["first"][requests]] > until
    counts = dataset.requests["count"][requests].astype(np.int64)
    budget = replay * int(counts[is_new].sum())
    older = np.flatnonzero(~is_new)
    order = np.random.default_rng([seed, 0]).permutation(older)
    drawn = order[np.cumsum(counts[order]) <= budget]
    return Selection(requests[is_new], np.sort(requests[drawn]))
