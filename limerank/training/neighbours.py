"""Which items the same users of the training window chose: the neighbours that models are given.

With ``n_i`` the users who interacted with item i and ``C_ij`` those who interacted with both,

    similarity(i, j) = C_ij / (sqrt(n_i n_j) + k)          where C_ij is at least 2

and an item's neighbours are the most similar other items. Shares are similarities divided by twice
their mean over all lists, so that they do not depend on how sparse the log is.

A pair of items that a user chose is no news about that user. So, as with collaborative vectors
(limerank.training.collaborative), the training rows of a fold of users get lists of the users of
all other folds, and those of all users go with the run.

Counts take bounded memory (limerank.models.cooccurrence), the lists 8 bytes for each neighbour and
fold.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from limerank.data.dataset import Dataset
from limerank.data.interactions import TrainingInteractions
from limerank.models.cooccurrence import Interacted, best, counted_together
from limerank.models.neighbours import NeighbourLists
from limerank.progress import Bar
from limerank.training.collaborative import FOLDS, folds_of

WINDOW = 100
"""Latest different items of a user that are counted."""
FEW = 10.0
"""k: added to the norm of a similarity, so that rare items which two users share by chance are not
the most similar ones."""
LEAST = 2
"""Users that neighbours have in common, at least."""


def neighbour_lists(dataset: Dataset, most: int, quiet: bool = True) -> list[NeighbourLists]:
    """What the training rows of each fold are given and, last, the lists of all users.

    Args:
        dataset: whose training window is counted.
        most: neighbours of an item, at most.
        quiet: show no progress.
    """
    rows = dataset.trained_items + 1
    interacted = Interacted.of(TrainingInteractions(dataset), rows, WINDOW)
    folds = folds_of(interacted.rows)
    of_fold = np.zeros((rows, FOLDS))
    np.add.at(of_fold, (interacted.items, folds[interacted.users]), 1)
    ids = np.zeros((FOLDS + 1, rows, most), np.int32)
    shares = np.zeros((FOLDS + 1, rows, most), np.float32)
    total = of_fold.sum(1)
    with Bar("neighbours of items", total=rows, unit="items", quiet=quiet) as bar:
        for low, high, owner, other, users in counted_together(interacted, rows, folds, FOLDS):
            apart = owner + low != other
            owner, other, users = owner[apart], other[apart], users[apart]
            everyone = users.sum(1)
            for fold in range(FOLDS + 1):
                together, n = everyone, total
                if fold < FOLDS:
                    together, n = everyone - users[:, fold], total - of_fold[:, fold]
                held = together >= LEAST
                i, j = owner[held], other[held]
                norm = np.sqrt(n[i + low] * n[j]) + FEW
                similarity = (together[held] / norm).astype(np.float32)
                _store(
                    ids[fold, low:high], shares[fold, low:high], i, j.astype(np.int32), similarity
                )
            bar.advance(high - low)
    of_all = shares[-1][shares[-1] > 0]
    if len(of_all):
        shares /= 2 * of_all.mean(dtype=np.float64)
    return [
        NeighbourLists(torch.from_numpy(of_ids), torch.from_numpy(of_shares))
        for of_ids, of_shares in zip(ids, shares, strict=True)
    ]


def _store(
    ids: NDArray[np.int32],
    shares: NDArray[np.float32],
    owner: NDArray[np.int64],
    other: NDArray[np.int32],
    similarity: NDArray[np.float32],
) -> None:
    """Write the best of each owner, the most similar one first."""
    found = best(owner, other, similarity, *ids.shape)
    at = np.repeat(np.arange(len(ids)), found.counts)
    order = np.lexsort((-found.similarities, at))
    position = np.arange(len(at)) - np.repeat(np.cumsum(found.counts) - found.counts, found.counts)
    ids[at, position] = found.items[order]
    shares[at, position] = found.similarities[order]
