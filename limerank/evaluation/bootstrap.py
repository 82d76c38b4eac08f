"""Confidence intervals of a difference in AUC: the paired cluster bootstrap.

Impressions of one user are not independent. So each resample draws users with replacement, with
all their impressions, and both models are measured on the same draw.

Shapes: n impressions, U users, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limerank.errors import DataError


class Interval(NamedTuple):
    """A difference and its bounds, between which ``level`` of its resamples lie. The bounds are NaN
    where all impressions are of one user."""

    difference: float
    low: float
    high: float


def draws(users: ArrayLike, resamples: int, seed: int = 0) -> NDArray[np.int32]:
    """How often each impression counts in each resample, i32 [R, n], all resamples in memory.
    :func:`paired_auc` draws them :func:`one_by_one` instead."""
    return np.stack(list(one_by_one(users, resamples, seed)))


def one_by_one(users: ArrayLike, resamples: int, seed: int = 0) -> Iterator[NDArray[np.int32]]:
    """Yield how often each impression counts in a resample, i32 [n], R times.

    Args:
        users: [n] the user of each impression.
        resamples: R.
        seed: of the draws.
    """
    distinct, user_of = np.unique(np.asarray(users), return_inverse=True)
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = rng.integers(0, len(distinct), len(distinct))
        yield np.bincount(drawn, minlength=len(distinct)).astype(np.int32)[user_of]


class Resampled:
    """The AUC of one set of scores in any resample; scores are sorted once.

    Args:
        labels: [n] 0 or 1.
        scores: [n].
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike) -> None:
        self._order = np.argsort(np.asarray(scores), kind="stable")
        ordered = np.asarray(scores)[self._order]
        self._positive = np.asarray(labels)[self._order] > 0
        # Rows of equal score are one tie: a positive beats half of the negatives in its tie.
        self._first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))

    def auc(self, drawn: NDArray[np.int32]) -> float:
        """The AUC in a resample, a row of :func:`draws`; NaN where it lacks a class."""
        weights = drawn[self._order].astype(np.float64)
        positives = np.add.reduceat(np.where(self._positive, weights, 0.0), self._first)
        negatives = np.add.reduceat(np.where(self._positive, 0.0, weights), self._first)
        pairs = positives.sum() * negatives.sum()
        below = np.cumsum(negatives) - negatives / 2
        return float(positives @ below / pairs) if pairs else float("nan")


def resampled_auc(
    labels: ArrayLike, scores: ArrayLike, counts: Iterable[NDArray[np.int32]]
) -> NDArray[np.float64]:
    """AUC of each resample, [R]; NaN where it lacks a class.

    Args:
        labels: [n] 0 or 1.
        scores: [n].
        counts: of :func:`draws` or :func:`one_by_one`.
    """
    resampled = Resampled(labels, scores)
    return np.array([resampled.auc(drawn) for drawn in counts])


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
        ours, theirs: the scores [n] of each run (seed), equally many runs of both models.
        resamples: number of draws of users.
        level: share of the resamples that the interval holds.
        seed: of the draws.

    Raises:
        DataError: there are no runs, or the models have different numbers of runs.
    """
    if not ours or len(ours) != len(theirs):
        raise DataError(f"got {len(ours)} and {len(theirs)} runs, expected equally many of both")
    pairs = [
        (Resampled(labels, one), Resampled(labels, other))
        for one, other in zip(ours, theirs, strict=True)
    ]
    each_once = np.ones(len(np.asarray(users)), dtype=np.int32)
    gaps = np.array(
        [
            np.mean([one.auc(drawn) - other.auc(drawn) for one, other in pairs])
            for drawn in chain([each_once], one_by_one(users, resamples, seed))
        ]
    )
    drawn = gaps[1:][~np.isnan(gaps[1:])]
    if not len(drawn) or len(np.unique(np.asarray(users))) < 2:
        return Interval(float(gaps[0]), float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(gaps[0]), float(low), float(high))
