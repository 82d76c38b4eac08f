"""Which items the same users of the training window chose: the neighbours that models are given.

With ``n_i`` the users who interacted with item i, ``C_ij`` those who interacted with both, ``A_ij``
the sum of 1 / g over those of them with whom i came g items after j (20 at most), and ``s_ij`` the
similarity of the collaborative vectors of the two (limerank.training.nearest),

    similarity(i, j) = (C_ij + b A_ij + k r s_ij) / (sqrt(n_i n_j) + k)

and an item's neighbours are the most similar ones of those of which ``C_ij`` is at least 2, most of
all, and of those whose vectors are nearest.

What directly followed an item goes with it more than what the same users chose some time, and the
order of the two counts: a film's sequel follows the film. In logs whose order says nothing, ``A``
is but noise. So the log decides on ``b`` (:func:`weight_of_order`) where the next item is to be
found among all; where items were shown, it is 0. The ``k`` added users say what the vectors say.
Where users have few events, few pairs of items have two users in common, and the vectors say most
of what there is to know. Shares are similarities divided by twice their mean over all lists, so
that they do not depend on how sparse the log is.

A pair of items that a user chose is no news about that user. So, as with collaborative vectors
(limerank.training.collaborative), the training rows of a fold of users get lists of the users of
all other folds, and those of all users go with the run.

Counts take bounded memory (limerank.models.cooccurrence), the lists 8 bytes for each neighbour and
fold.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.dataset import Dataset
from limerank.data.interactions import TrainingInteractions
from limerank.models.cooccurrence import Interacted, Together, best, counted_together
from limerank.models.neighbours import NeighbourLists
from limerank.progress import Bar
from limerank.training.collaborative import FOLDS, folds_of
from limerank.training.nearest import ITEMS, nearest

WINDOW = 100
"""Latest different items of a user that are counted."""
FEW = 10.0
"""k: users that are added to those of a pair, so that rare items which two users share by chance
are not the most similar ones."""
BY_VECTORS = 0.4
"""r: similarity of two items whose vectors are the same, by the users that are added."""
BY_ORDER = (0.0, 1.0, 3.0, 10.0)
"""What ``b`` may be: users that one counts as with whom an item directly followed the other."""
NEAR, TRIED, PARTS, ENOUGH = 10, 2, 4, 0.95
"""To decide on it: neighbours of an item, folds of users, parts of the pairs, and the share of the
best from which on 0 is as good."""
LEAST = 2
"""Users that neighbours have in common, at least."""


def neighbour_lists(
    dataset: Dataset,
    most: int,
    vectors: Tensor | None = None,
    in_order: bool = False,
    quiet: bool = True,
) -> list[NeighbourLists]:
    """What the training rows of each fold are given and, last, the lists of all users.

    Args:
        dataset: whose training window is counted.
        most: neighbours of an item, at most.
        vectors: collaborative vectors by folds and of all users, by row of the id table, f32
            [folds + 1, items + 1, d]; None: lists hold only items with users in common.
        in_order: let the log decide on ``b``; it is 0 otherwise.
        quiet: show no progress.
    """
    rows = dataset.trained_items + 1
    interacted = Interacted.of(TrainingInteractions(dataset), rows, WINDOW)
    folds = folds_of(interacted.rows)
    users_of = users_of_items(interacted, folds)
    ids = np.zeros((FOLDS + 1, rows, most), np.int32)
    shares = np.zeros((FOLDS + 1, rows, most), np.float32)
    with Bar("neighbours of items", total=rows, unit="items", quiet=quiet) as bar:
        by_order = weight_of_order(interacted, folds, users_of) if in_order else 0.0
        for part in counted_together(interacted, rows, folds, FOLDS):
            low, high = part.low, part.high
            for fold in range(FOLDS + 1):
                held, similarity = _similarities(part, fold, users_of[fold], by_order)
                owner, other = part.owner[held], part.other[held].astype(np.int32)
                _store(ids[fold, low:high], shares[fold, low:high], owner, other, similarity)
            bar.advance(high - low)
    if vectors is not None:
        _with_vectors(ids, shares, users_of, vectors, quiet)
    of_all = shares[-1][shares[-1] > 0]
    if len(of_all):
        shares /= 2 * of_all.mean(dtype=np.float64)
    return [
        NeighbourLists(torch.from_numpy(of_ids), torch.from_numpy(of_shares))
        for of_ids, of_shares in zip(ids, shares, strict=True)
    ]


def users_of_items(interacted: Interacted, folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Users of each item in all folds but each one and, last, in all: f64 [folds + 1, I]."""
    users = np.zeros((FOLDS + 1, len(interacted.again)))
    np.add.at(users, (folds[interacted.users], interacted.items), -1)
    return users - users.sum(0)


def weight_of_order(
    interacted: Interacted, folds: NDArray[np.int64], users_of: NDArray[np.float64]
) -> float:
    """``b``: the number by which the :data:`NEAR` neighbours of each item, counted from the users
    of other folds, contain most of what the items of a fold's users followed; 0 where that contains
    about as much. A sample of the items decides in large logs.

    Args:
        interacted: users and items.
        folds: of each user.
        users_of: of :func:`users_of_items`.
    """
    contained = np.zeros(len(BY_ORDER))
    parts = counted_together(interacted, users_of.shape[1], folds, FOLDS)
    for part in islice(parts, PARTS):
        for fold in range(TRIED):
            for at, by_order in enumerate(BY_ORDER):
                held, similarity = _similarities(part, fold, users_of[fold], by_order)
                owner = part.owner[held]
                order = np.lexsort((-similarity, owner))
                counts = np.bincount(owner, minlength=part.high - part.low)
                first = np.repeat(np.cumsum(counts) - counts, counts)
                near = order[np.arange(len(order)) - first < NEAR]
                contained[at] += part.followed[held, fold][near].sum()
    best = int(contained.argmax())
    return BY_ORDER[0 if contained[0] >= ENOUGH * contained[best] else best]


def _similarities(
    part: Together, fold: int, users_of: NDArray[np.float64], by_order: float
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which pairs have :data:`LEAST` users besides those of the fold (``FOLDS``: of all), bool [P];
    and the similarity of each of these, without vectors."""
    together, followed = part.users.sum(1), part.followed.sum(1)
    if fold < FOLDS:
        together, followed = together - part.users[:, fold], followed - part.followed[:, fold]
    held = (together >= LEAST) & (part.owner + part.low != part.other)
    norm = np.sqrt(users_of[part.owner[held] + part.low] * users_of[part.other[held]]) + FEW
    sums = together[held] + by_order * followed[held].clip(min=0)
    return held, (sums / norm).astype(np.float32)


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


def _with_vectors(
    ids: NDArray[np.int32],
    shares: NDArray[np.float32],
    users: NDArray[np.float64],
    vectors: Tensor,
    quiet: bool,
) -> None:
    """Add to the lists what vectors say of the items in them, and the items with the nearest ones.

    Args:
        users: of each item, in each fold, f64 [folds, items].
    """
    most = ids.shape[-1]
    known = [torch.from_numpy(of_fold) for of_fold in ids]  # each row is read before it is written
    users_fi = torch.from_numpy(users)
    compared = min(int(vectors[-1].any(-1).sum()), ITEMS)
    with Bar("nearest items", total=compared, unit="items", quiet=quiet) as bar:
        for found in nearest(vectors, known, most):
            fold, own = found.fold, found.rows
            listed = known[fold][own].long()
            counted = torch.from_numpy(shares[fold, own.numpy()])
            products = torch.einsum("nkd,nd->nk", vectors[fold, listed], vectors[fold, own])
            alike = torch.cat([products.clamp(min=0) / vectors.shape[-1], found.similarities], 1)
            others = torch.cat([listed, found.others], 1)
            both = (users_fi[fold, own, None] * users_fi[fold, others]).sqrt() + FEW
            similarity = BY_VECTORS * FEW * alike / both.float()
            similarity[:, :most] = (similarity[:, :most] + counted) * (counted > 0)
            largest, at = similarity.topk(most, 1)
            shares[fold, own.numpy()] = largest.numpy()
            ids[fold, own.numpy()] = (others.gather(1, at) * (largest > 0)).numpy()
            bar.advance(len(own) * (fold == len(ids) - 1))
