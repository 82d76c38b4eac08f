"""What a warm start trains on: the requests that are new, and some of the older ones again.

Training on new requests alone forgets what they do not contain, and training on all of them again
costs what a training from the start costs. So a warm start also has a sample of the older requests,
drawn evenly: ``replay`` times the impressions of the new ones. Where the configuration leaves it
open, that is :data:`REPLAY`, and more where the day of a small log has too few impressions for
:data:`LEAST_BATCHES` batches: a few steps teach nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limerank.data.dataset import Dataset

REPLAY = 1.0
"""Impressions of older requests for each of a new one."""
LEAST_BATCHES = 16
"""Batches of a warm start, about, at least."""


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
    replay: float | None,
    seed: int,
    batch_size: int = 0,
) -> Selection:
    """Choose among the requests of a training split.

    Args:
        requests: rows that an objective learns from, i64.
        until: time of the newest impression that the earlier run was trained on; None: not known,
            or the log has no clock; all requests then count as new.
        replay: impressions of older requests for each of a new one, at most; None: as above.
        seed: of the draw.
        batch_size: impressions of a batch.
    """
    none = np.zeros(0, np.int64)
    if until is None or not dataset.clock:
        return Selection(requests, none)
    is_new = dataset.events["time"][dataset.requests["first"][requests]] > until
    counts = dataset.requests["count"][requests].astype(np.int64)
    new = int(counts[is_new].sum())
    budget = (REPLAY if replay is None else replay) * new
    if replay is None:
        budget = max(budget, LEAST_BATCHES * batch_size - new)
    older = np.flatnonzero(~is_new)
    order = np.random.default_rng([seed, 0]).permutation(older)
    drawn = order[np.cumsum(counts[order]) <= budget]
    return Selection(requests[is_new], np.sort(requests[drawn]))
