"""How sure a difference between two models is: users drawn anew, the same draw for both.

Impressions of one user are not independent, so users are resampled with replacement, all their
impressions with them (the paired cluster bootstrap).

Shapes: n impressions, U users, R resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limerank.errors import DataError


class Interval(NamedTuple):
    """A difference, and the bounds between which ``level`` of its resamples lie."""

    difference: float
    low: float
    high: float


def draws(users: ArrayLike, resamples: int, seed: int = 0) -> NDArray[np.int32]:
    """How often each impression is counted in each resample, i32 [R, n].

    Args:
        users: [n] whose impression each one is.
    """
    distinct, places = np.unique(np.asarray(users), return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = np.stack(
        [
            np.bincount(rng.integers(0, len(distinct), len(distinct)), minlength=len(distinct))
            for _ in range(resamples)
        ]
    )
    found: NDArray[np.int32] = counts.astype(np.int32)[:, places]
    return found


def resampled_auc(
    labels: ArrayLike, scores: ArrayLike, counts: NDArray[np.int32]
) -> NDArray[np.float64]:
    """AUC of each resample, [R]; NaN where it lacks a class.

    Args:
        labels: [n] 0 or 1.
        scores: [n].
        counts: of :func:`draws`.
    """
    order = np.argsort(np.asarray(scores), kind="stable")
    ordered = np.asarray(scores)[order]
    positive = np.asarray(labels)[order] > 0
    # Rows of one score are one tie: a positive beats half the negatives of its own.
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    found = np.empty(len(counts))
    for place, drawn in enumerate(counts):
        weights = drawn[order].astype(np.float64)
        positives = np.add.reduceat(np.where(positive, weights, 0.0), first)
        negatives = np.add.reduceat(np.where(positive, 0.0, weights), first)
        pairs = positives.sum() * negatives.sum()
        below = np.cumsum(negatives) - negatives / 2
        found[place] = positives @ below / pairs if pairs else np.nan
    return found


def paired_auc(
    labels: ArrayLike,
    users: ArrayLike,
    ours: list[NDArray[np.float32]],
    theirs: list[NDArray[np.float32]],
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """AUC of one model minus AUC of another, the mean over runs, with a percentile interval.

    Args:
        labels: [n] 0 or 1.
        users: [n].
        ours, theirs: the scores [n] of each run (seed) of the two models, as many runs of either.
        resamples: how many draws of users.
        level: how much of them the interval holds.
        seed: of the draws.

    Raises:
        DataError: there are no runs, or not as many of either.
    """
    if not ours or len(ours) != len(theirs):
        raise DataError(f"got {len(ours)} and {len(theirs)} runs, expected as many of either")
    counts = draws(users, resamples, seed)
    counts = np.concatenate([np.ones_like(counts[:1]), counts])
    gaps = np.mean(
        [
            resampled_auc(labels, one, counts) - resampled_auc(labels, other, counts)
            for one, other in zip(ours, theirs, strict=True)
        ],
        axis=0,
    )
    drawn = gaps[1:][~np.isnan(gaps[1:])]
    if not len(drawn):
        return Interval(float(gaps[0]), float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(gaps[0]), float(low), float(high))
