"""Metrics of ranked lists."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limerank.errors import DataError
from limerank.metrics.checks import refuse_nan, require_at_least_1, vector_of, weights_of


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


def recall(ranks: ArrayLike, k: int, offsets: ArrayLike | None = None) -> float:
    """Share of the relevant items that stand among the first k (recall@k), mean of lists.

    Args:
        ranks: [R] as in `hit_rate`.
        k: at least 1.
        offsets: [L + 1] as in `hit_rate`.
    """
    require_at_least_1("k", k)
    ranks, starts, relevant = _lists(ranks, offsets)
    return float(np.mean(np.add.reduceat((ranks <= k).astype(np.float64), starts) / relevant))


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


def coverage(items: ArrayLike, catalogue: int) -> float:
    """Share of the catalogue that stands in at least one list.

    Args:
        items: integers, the items of all lists; those below 0 fill lists that are short.
        catalogue: number of items that lists may hold, at least 1.
    """
    require_at_least_1("catalogue", catalogue)
    distinct = np.unique(vector_of("items", np.asarray(items).ravel(), kinds="iu"))
    return float(np.count_nonzero(distinct >= 0) / catalogue)


def self_information(items: ArrayLike, counts: ArrayLike) -> float:
    """Mean self-information of the items of all lists, in bits: how rare they are (novelty).

        -log2((count + 1) / (sum of counts + number of items))

    (Zhou et al. 2010, with a count of 1 added to every item.) NaN where there are no items.

    Args:
        items: integers, rows of ``counts``; those below 0 fill lists that are short.
        counts: [V] of each item, such as its positives in the training window; at least 0.
    """
    counts = weights_of("counts", counts, "counts", vector_of("counts", counts))
    rows = vector_of("items", np.asarray(items).ravel(), kinds="iu")
    rows = rows[rows >= 0]
    if rows.size and rows.max() >= counts.size:
        raise DataError(
            f"items: got row {rows.max()}, expected 0..{counts.size - 1}; pass a count of each item"
        )
    if not rows.size:
        return float("nan")
    return float(-np.log2((counts[rows] + 1) / (counts.sum() + counts.size)).mean())


def concentration(items: ArrayLike, k: int) -> float:
    """Share of the positions of all lists that the k most frequent items fill.

    1 where all lists hold the same k items; NaN where there are no items.

    Args:
        items: integers, the first k items of all lists; those below 0 fill lists that are short.
        k: at least 1.
    """
    require_at_least_1("k", k)
    rows = vector_of("items", np.asarray(items).ravel(), kinds="iu")
    counts = np.sort(np.unique(rows[rows >= 0], return_counts=True)[1])
    return float(counts[-k:].sum() / counts.sum()) if counts.size else float("nan")


class Chance(NamedTuple):
    """What lists in random order have on average, mean of lists."""

    hit_rate: float
    recall: float
    ndcg: float
    mrr: float


def chance(relevant: ArrayLike, catalogue: ArrayLike, k: int) -> Chance:
    """The expected metrics of lists in random order.

    With N items of which n are relevant: HR@k = 1 - C(N - n, k) / C(N, k), recall@k = k / N, the
    gain of each rank is n / N, and MRR = n / (N - n + 1) (H_N - H_(n - 1)) with harmonic numbers H.

    Args:
        relevant: [L] relevant items of each list, at least 1.
        catalogue: [L] items of each list, at least as many.
        k: at least 1.
    """
    require_at_least_1("k", k)
    n = vector_of("relevant", relevant, kinds="iu").astype(np.int64)
    total = vector_of("catalogue", catalogue, kinds="iu").astype(np.int64)
    if n.shape != total.shape or n.min() < 1 or (total < n).any():
        raise DataError(
            f"relevant: got {n.size} numbers from {n.min()} for {total.size} catalogues from "
            f"{total.min()}, expected one number of each list, from 1 to its items; leave out "
            "lists without relevant items"
        )
    ranks = np.arange(1, int(total.max()) + 1)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / ranks)])
    gains = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(1.0 + ranks))])
    first = np.minimum(k, total)
    # C(N - n, k) / C(N, k): the product over the first k of the chance that the next one is none.
    missed = np.ones(n.size)
    for rank in range(int(first.max())):
        left = np.maximum(total - rank, 1)
        missed *= np.where(rank < first, np.maximum(total - n - rank, 0) / left, 1.0)
    return Chance(
        float(np.mean(1 - missed)),
        float(np.mean(first / total)),
        float(np.mean(n / total * gains[first] / gains[np.minimum(n, k)])),
        float(np.mean(n / (total - n + 1) * (harmonic[total] - harmonic[n - 1]))),
    )


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
