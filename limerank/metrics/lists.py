"""Metrics of ranked lists."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limerank.errors import DataError
from limerank.metrics.checks import refuse_nan, require_at_least_1, vector_of


def hit_rate(ranks: ArrayLike, k: int, offsets: ArrayLike | None = None) -> float:
    """Share of lists with a relevant item among the first k (HR@k).

    For one relevant item per list this is also recall@k.

    Args:
        ranks: [R] 1-based ranks of the relevant items: at least 1, inf for an item that the list
            lacks. Average-tie ranks (`rank_of`) are compared as they are: 1.5 misses k = 1.
        k: at least 1.
        offsets: [L + 1] list i holds ranks[offsets[i]:offsets[i + 1]], in any order; one rank per
            list where not given. Lists without relevant items are left out of the mean.
    """
    require_at_least_1("k", k)
    ranks, starts, _ = _lists(ranks, offsets)
    return float(np.mean(np.minimum.reduceat(ranks, starts) <= k))


def ndcg(ranks: ArrayLike, k: int, offsets: ArrayLike | None = None) -> float:
    """Normalised discounted cumulative gain at k with binary relevance, mean of lists.

        NDCG@k = sum_{rank <= k} 1 / log2(1 + rank) / sum_{i=1..min(k, relevant)} 1 / log2(1 + i)

    Args:
        ranks: [R] as in `hit_rate`; with offsets, the finite ranks of one list must differ.
        k: at least 1.
        offsets: [L + 1] as in `hit_rate`.

    Raises:
        DataError: also where a list holds a rank twice, which would let the gain exceed the ideal.
    """
    require_at_least_1("k", k)
    ranks, starts, relevant = _lists(ranks, offsets)
    if offsets is not None:
        _distinct(ranks, relevant)
    gain = np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)
    positions = np.arange(1, min(k, int(relevant.max())) + 1)
    ideal = np.cumsum(1.0 / np.log2(1.0 + positions))  # [positions] of a list with so many relevant
    return float(np.mean(np.add.reduceat(gain, starts) / ideal[np.minimum(relevant, k) - 1]))


def mrr(ranks: ArrayLike, offsets: ArrayLike | None = None) -> float:
    """Mean reciprocal rank: the mean over lists of 1 / rank of the first relevant item.

    Args:
        ranks: [R] as in `hit_rate`; inf counts 0.
        offsets: [L + 1] as in `hit_rate`.
    """
    ranks, starts, _ = _lists(ranks, offsets)
    return float(np.mean(1.0 / np.minimum.reduceat(ranks, starts)))


def rank_of(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """1-based rank of one column in each row, highest score first, ties averaged.

        rank_b = 1 + |{v: s_bv > s_bt}| + |{v != t: s_bv = s_bt}| / 2

    so that a model which scores all columns alike gets the middle rank, not the first.

    Args:
        scores: [B, V] numbers; -inf for columns that are masked.
        targets: [B] integers in 0..V-1.

    Returns:
        [B] float64, ready for `hit_rate`, `ndcg` and `mrr`.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.size == 0 or scores.dtype.kind not in "biuf":
        raise DataError(
            f"scores: got shape {scores.shape} of {scores.dtype}, expected [rows, columns] of"
            " numbers, neither empty; stack the rows to score into one matrix"
        )
    refuse_nan("scores", scores)
    targets = vector_of("targets", targets, kinds="iu")
    rows, columns = scores.shape
    if targets.size != rows:
        raise DataError(
            f"targets: got {targets.size}, expected one per row of scores ({rows}); pass the column"
            " of each row's relevant item"
        )
    if targets.min() < 0 or targets.max() >= columns:
        raise DataError(
            f"targets: got columns {targets.min()}..{targets.max()}, expected 0..{columns - 1};"
            " map the items to the columns of scores"
        )
    target = np.take_along_axis(scores, targets[:, None].astype(np.intp), axis=1)  # [B, 1]
    above = np.count_nonzero(scores > target, axis=1)
    tied = np.count_nonzero(scores == target, axis=1)  # the target itself included
    return np.asarray(above + (tied + 1) / 2.0, np.float64)


def _lists(
    ranks: ArrayLike, offsets: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """Ranks [R], and start and size of each list that is not empty."""
    array = vector_of("ranks", ranks).astype(np.float64, copy=False)
    if array.min() < 1:
        raise DataError(
            f"ranks: got {array.min()}, expected 1-based ranks; add 1 to 0-based ones, and give inf"
            " for an item that is not in its list"
        )
    if offsets is None:
        return array, np.arange(array.size), np.ones(array.size, np.intp)
    bounds = vector_of("offsets", offsets, kinds="iu").astype(np.intp)
    sizes = np.diff(bounds)
    if bounds[0] != 0 or bounds[-1] != array.size or (sizes < 0).any():
        raise DataError(
            f"offsets: got {bounds.size} values from {bounds[0]} to {bounds[-1]}, expected them to"
            f" ascend from 0 to the number of ranks ({array.size}); pass the sizes of the lists as"
            " np.append(0, np.cumsum(sizes))"
        )
    # reduceat takes the lists that start one after another; an empty one would repeat a rank.
    filled = sizes > 0
    return array, bounds[:-1][filled], sizes[filled]


def _distinct(ranks: NDArray[np.float64], relevant: NDArray[np.intp]) -> None:
    """Raise where a list holds a finite rank twice."""
    lists = np.repeat(np.arange(relevant.size), relevant)
    order = np.lexsort((ranks, lists))
    ranks, lists = ranks[order], lists[order]
    twice = (ranks[1:] == ranks[:-1]) & (lists[1:] == lists[:-1]) & np.isfinite(ranks[1:])
    if twice.any():
        raise DataError(
            f"ranks: got {ranks[int(np.argmax(twice))]:g} twice in one list, expected distinct"
            " ranks; break ties between relevant items, for example by their order in the list"
        )
