"""Ranking metrics, exact: arrays in, one number out.

Nothing here samples or buckets; `ece` and `reliability` alone use bins, because they are defined
by them. Any array that numpy can read is accepted; sums are taken in int64 or float64.

Shapes: n rows (impressions), L lists, R relevant items over all lists, B score rows, V columns.

Every function raises `DataError` for empty input, lengths that differ, NaN, labels other than 0
and 1, and probabilities outside 0..1. A metric that its data leave undefined (the AUC of one
class, the calibration of no positives) is NaN, never a made-up number; each docstring says when.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limerank.errors import DataError

__all__ = [
    "Reliability",
    "auc",
    "calibration",
    "ece",
    "gauc",
    "hit_rate",
    "log_loss",
    "mae",
    "mrr",
    "ndcg",
    "normalized_entropy",
    "rank_of",
    "reliability",
    "wtauc",
    "xauc",
]

_MAX_ROWS = 2**31  # row numbers and dense codes must fit the 32-bit halves of the sort keys


class Reliability(NamedTuple):
    """What `reliability` returns: one entry per bin, in ascending order of the prediction."""

    prediction: NDArray[np.float64]  # [bins] mean predicted probability
    label: NDArray[np.float64]  # [bins] mean label, that is, the observed rate
    rows: NDArray[np.int64]  # [bins] how many


# Binary labels


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve: the chance that a positive outscores a negative.

        AUC = sum_{p,q} w_p w_q ([s_p > s_q] + [s_p = s_q] / 2) / (sum_p w_p * sum_q w_q)

    over positives p and negatives q. Ties count half. NaN where a class is absent or weighs 0.

    Args:
        labels: [n] 0 or 1.
        scores: [n] numbers of any scale; only their order matters, infinities are allowed.
        weights: [n] finite, not negative; 1 each where not given.
    """
    scores = _vector("scores", scores)
    positive = _labels(labels, "scores", scores)
    if weights is None:
        positives = np.sort(scores.compress(positive))
        negatives = np.sort(scores.compress(~positive))
        pairs = positives.size * negatives.size
        if pairs == 0:
            return float("nan")
        # Below and tied each count once in "left" + "right", so this is twice the area: an integer.
        doubled = int(negatives.searchsorted(positives, "left").sum())
        doubled += int(negatives.searchsorted(positives, "right").sum())
        return doubled / (2 * pairs)

    weights = _weights("weights", weights, "scores", scores)
    positives, positive_weights = _sorted_with(scores, weights, positive)
    negatives, negative_weights = _sorted_with(scores, weights, ~positive)
    below = np.append(0.0, np.cumsum(negative_weights))  # weight below each place, then of all
    total = float(positive_weights.sum())
    if total == 0 or below[-1] == 0:
        return float("nan")
    below /= 2 * below[-1]
    area = positive_weights @ below[negatives.searchsorted(positives, "left")]
    area += positive_weights @ below[negatives.searchsorted(positives, "right")]
    return float(area) / total


def gauc(labels: ArrayLike, scores: ArrayLike, users: ArrayLike) -> float:
    """AUC within each user, averaged with the user's impressions as weights.

        GAUC = sum_u n_u AUC_u / sum_u n_u

    over the users that have both classes; the others are left out. NaN where no user has both.

    Args:
        labels: [n] 0 or 1.
        scores: [n] as in `auc`.
        users: [n] integers or strings, in any order.
    """
    scores = _vector("scores", scores)
    positive = _labels(labels, "scores", scores)
    users = _vector("users", users, kinds="biuUST")
    _same_length("users", users, "scores", scores)

    # One sort of (31 bits of user, 32 bits of score, 1 bit of label) puts every user's rows
    # together in score order.
    key = _codes(users, bits=31).astype(np.uint64)
    key <<= 32
    key |= _codes(scores)
    key <<= 1
    key |= positive
    key.sort()
    positives_so_far = np.cumsum(key & 1, dtype=np.int64)
    key >>= 1  # (user, score): rows of one key are ties

    last = np.append(np.flatnonzero(key[1:] != key[:-1]), key.size - 1)  # [ties] last row of each
    user = key[last] >> np.uint64(32)
    first_tie = np.append(0, np.flatnonzero(user[1:] != user[:-1]) + 1)  # [users]
    positives_so_far = positives_so_far[last]
    negatives_so_far = last + 1 - positives_so_far
    positives = np.diff(positives_so_far, prepend=0)  # [ties]
    negatives = np.diff(negatives_so_far, prepend=0)
    negatives_before = negatives_so_far - negatives

    # Twice each user's concordant pairs, from the negatives before it over all users; those of
    # earlier users are taken off afterwards. Integers throughout, hence exact.
    doubled = np.add.reduceat(positives * (2 * negatives_before + negatives), first_tie)
    user_positives = np.add.reduceat(positives, first_tie)
    user_negatives = np.add.reduceat(negatives, first_tie)
    doubled -= 2 * negatives_before[first_tie] * user_positives

    pairs = user_positives * user_negatives
    both = pairs > 0
    if not both.any():
        return float("nan")
    user_auc = doubled[both] / (2 * pairs[both])
    return float(np.average(user_auc, weights=(user_positives + user_negatives)[both]))


def wtauc(labels: ArrayLike, scores: ArrayLike, watch: ArrayLike) -> float:
    """AUC whose positives weigh their watch time and whose negatives weigh 1.

    `auc` with w_p = watch_p and w_q = 1: how well the ranking puts watched time, rather than
    watched items, first. NaN where a class is absent or no positive was watched.

    Args:
        labels: [n] 0 or 1.
        scores: [n] as in `auc`.
        watch: [n] watch time in any one unit, finite, not negative; not used for negatives.
    """
    scores = _vector("scores", scores)
    positive = _labels(labels, "scores", scores)
    watch = _weights("watch", watch, "scores", scores)
    return auc(positive, scores, np.where(positive, watch, 1.0))


# Probabilities


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative log likelihood, in nats.

        LL = -1/n sum_i (y_i log p_i + (1 - y_i) log(1 - p_i))

    As in scikit-learn, p is kept within [eps, 1 - eps], with eps that of its dtype (2^-52 for
    float64, 2^-23 for float32 and float16): a sigmoid that saturated on the wrong side costs 36 or
    16 nats, not infinity.

    Args:
        labels: [n] 0 or 1.
        probabilities: [n] in 0..1.
    """
    probabilities = _probabilities(probabilities)
    positive = _labels(labels, "probabilities", probabilities)
    eps = float(np.finfo(probabilities.dtype).eps)
    likelihood = probabilities.astype(np.float64)
    np.subtract(1.0, likelihood, out=likelihood, where=~positive)
    np.clip(likelihood, eps, 1.0 - eps, out=likelihood)
    np.log(likelihood, out=likelihood)
    return -float(likelihood.mean())


def normalized_entropy(
    labels: ArrayLike, probabilities: ArrayLike, base_rate: float | None = None
) -> float:
    """Log loss over that of always predicting the base rate; below 1 is better than no model.

        NE = LL(y, p) / -(r log b + (1 - r) log(1 - b)),  r the mean label, b the base rate

    He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", 2014. NaN where the
    base rate is that of the labels and these are of one class.

    Args:
        labels: [n] 0 or 1.
        probabilities: [n] in 0..1.
        base_rate: the b above, strictly between 0 and 1; give the training set's to judge a model
            under drift. The mean label where not given.

    Raises:
        DataError: also for a base rate outside (0, 1).
    """
    if base_rate is not None and not 0.0 < base_rate < 1.0:
        raise DataError(
            f"base_rate: got {base_rate!r}, expected a number strictly between 0 and 1; give the"
            " share of positives in the training set, or None for that of the labels"
        )
    probabilities = _probabilities(probabilities)
    positive = _labels(labels, "probabilities", probabilities)
    rate = int(np.count_nonzero(positive)) / positive.size
    base = rate if base_rate is None else base_rate
    if base in (0.0, 1.0):
        return float("nan")
    entropy = -(rate * np.log(base) + (1.0 - rate) * np.log1p(-base))
    return log_loss(positive, probabilities) / float(entropy)


def calibration(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Sum of predictions over sum of labels: above 1 where the model promises too much.

    NaN where the labels sum to 0.

    Args:
        labels: [n] 0 or 1, or durations.
        predictions: [n] probabilities, or expected durations.
    """
    predicted_values = _vector("predictions", predictions)
    outcomes = _vector("labels", labels)
    _same_length("labels", outcomes, "predictions", predicted_values)
    total = float(outcomes.sum(dtype=np.float64))
    if total == 0:
        return float("nan")
    return float(predicted_values.sum(dtype=np.float64)) / total


def ece(labels: ArrayLike, probabilities: ArrayLike, bins: int = 20) -> float:
    """Expected calibration error over the equal-mass bins of `reliability`.

        ECE = sum_b rows_b / n * |mean prediction_b - mean label_b|

    Args:
        labels: [n] 0 or 1.
        probabilities: [n] in 0..1.
        bins: how many, at least 1.
    """
    prediction, label, rows = reliability(labels, probabilities, bins)
    return float(np.average(np.abs(prediction - label), weights=rows))


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = 20) -> Reliability:
    """Mean prediction and mean label per equal-mass bin: the points of a calibration plot.

    The rows in ascending order of the prediction are cut at n b / bins, b = 1 .. bins - 1. Equal
    predictions stay in one bin, each cut moving up to the end of its ties, so that the order of the
    rows cannot matter; bins left empty by this are dropped, and the result may hold fewer.

    Args:
        labels: [n] 0 or 1.
        probabilities: [n] in 0..1.
        bins: how many, at least 1.
    """
    _at_least_1("bins", bins)
    probabilities = _probabilities(probabilities)
    positive = _labels(labels, "probabilities", probabilities)
    positives = np.sort(probabilities.compress(positive))
    ascending = np.sort(probabilities)
    n = ascending.size
    parts = min(bins, n)
    cuts = np.arange(1, parts + 1) * n // parts
    ends = np.unique(ascending.searchsorted(ascending[cuts - 1], "right"))
    starts = np.append(0, ends[:-1])
    rows = (ends - starts).astype(np.int64)
    label = np.diff(positives.searchsorted(ascending[ends - 1], "right"), prepend=0) / rows
    prediction = np.add.reduceat(ascending, starts, dtype=np.float64) / rows
    return Reliability(prediction, label, rows)


# Watch time


def xauc(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Share of concordant pairs among the pairs of rows whose truth differs.

        XAUC = sum_{t_i > t_j} ([p_i > p_j] + [p_i = p_j] / 2) / |{(i, j): t_i > t_j}|

    0.5 is chance, 1 the perfect order; for a 0/1 truth it is the AUC. All pairs are counted, in
    O(n log n). NaN where all truths are equal.

    Args:
        truth: [n] numbers, such as watch time in seconds.
        predicted: [n] numbers of any scale.
    """
    truth = _vector("truth", truth)
    predicted = _vector("predicted", predicted)
    _same_length("predicted", predicted, "truth", truth)
    n = truth.size

    # In the order of (predicted, truth) a pair is discordant just where the truth falls strictly.
    key = _codes(predicted).astype(np.uint64)
    key <<= 32
    key |= _codes(truth)
    key.sort()
    tied_both = _tied_pairs(key)
    falling = key & np.uint64(0xFFFFFFFF)
    key >>= 32
    tied_predicted = _tied_pairs(key)

    # Rows sorted by (truth, place): the inverse of a permutation has as many inversions as it.
    falling <<= 32
    falling |= np.arange(n, dtype=np.uint64)
    del key
    falling.sort()
    positions = falling.astype(np.uint32)  # keeps the low half, the place
    falling >>= 32
    comparable = n * (n - 1) // 2 - _tied_pairs(falling)
    del falling
    if comparable == 0:
        return float("nan")
    discordant = _inversions(positions)
    half = tied_predicted - tied_both
    return (2 * (comparable - discordant) - half) / (2 * comparable)


def mae(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Mean absolute error, 1/n sum_i |t_i - p_i|, in the unit of the truth.

    Args:
        truth: [n] numbers.
        predicted: [n] numbers.
    """
    truth = _vector("truth", truth)
    predicted = _vector("predicted", predicted)
    _same_length("predicted", predicted, "truth", truth)
    error = np.subtract(truth, predicted, dtype=np.float64)
    return float(np.abs(error, out=error).mean())


# Lists


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
    _at_least_1("k", k)
    ranks, starts, _ = _lists(ranks, offsets)
    return float(np.mean(np.minimum.reduceat(ranks, starts) <= k))


def ndcg(ranks: ArrayLike, k: int, offsets: ArrayLike | None = None) -> float:
    """Normalised discounted cumulative gain of the first k places, binary relevance, mean of lists.

        NDCG@k = sum_{rank <= k} 1 / log2(1 + rank) / sum_{i=1..min(k, relevant)} 1 / log2(1 + i)

    Args:
        ranks: [R] as in `hit_rate`; with offsets, the finite ranks of one list must differ.
        k: at least 1.
        offsets: [L + 1] as in `hit_rate`.

    Raises:
        DataError: also where a list holds a rank twice, which would let the gain exceed the ideal.
    """
    _at_least_1("k", k)
    ranks, starts, relevant = _lists(ranks, offsets)
    if offsets is not None:
        _distinct(ranks, relevant)
    gain = np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)
    positions = np.arange(1, min(k, int(relevant.max())) + 1)
    ideal = np.cumsum(1.0 / np.log2(1.0 + positions))  # [places] of a list with so many relevant
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
    _no_nan("scores", scores)
    targets = _vector("targets", targets, kinds="iu")
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


# Counting


def _codes(values: NDArray[Any], bits: int = 32) -> NDArray[np.uint32]:
    """Codes [n] below 2^bits in the order of `values`; equal values, and only they, share one.

    Values that fit are mapped in one pass; the rest, such as float64 with all its digits, take
    their dense rank, which costs a sort.
    """
    if values.size > _MAX_ROWS:
        raise DataError(
            f"got {values.size} rows, expected at most {_MAX_ROWS}; compute the metric on parts"
        )
    kind = values.dtype.kind
    if kind in "biu":
        low, high = int(values.min()), int(values.max())
        if high - low < 2**bits:
            # Wraps modulo 2^64, which is exact for a difference known to fit.
            return (values.astype(np.uint64) - np.uint64(low % 2**64)).astype(np.uint32)
    elif kind == "f" and bits == 32:
        with np.errstate(over="ignore"):
            single = values.astype(np.float32)
        if np.array_equal(single, values):
            single += 0.0  # -0.0 becomes 0.0, which it equals
            code: NDArray[np.uint32] = single.view(np.uint32)
            # IEEE order: set the sign bit of positives, flip all bits of negatives.
            flip = (single.view(np.int32) >> 31).view(np.uint32) | np.uint32(2**31)
            code ^= flip
            return code
    return np.unique(values, return_inverse=True)[1].astype(np.uint32)


def _tied_pairs(ascending: NDArray[Any]) -> int:
    """Pairs of equal values in a sorted array."""
    edges = np.flatnonzero(ascending[1:] != ascending[:-1]) + 1
    runs = np.diff(edges, prepend=0, append=ascending.size)
    return int((runs * (runs - 1)).sum()) // 2


def _inversions(permutation: NDArray[np.uint32]) -> int:
    """Pairs i < j with permutation[i] > permutation[j], of a permutation of 0..n-1.

    Sorts by the highest bit first, each pass a stable partition of blocks whose values share all
    higher bits. A pass puts right the inversions between the halves of each block, and their number
    is how far the zeros move left in sum.
    """
    n = permutation.size
    total = 0
    for bit in reversed(range((n - 1).bit_length())):
        half = 1 << bit
        zero = (permutation & np.uint32(half)) == 0
        total += int(np.flatnonzero(zero).sum())
        low, high = permutation.compress(zero), permutation.compress(~zero)
        # The block with prefix q holds all its values, so it lies at [q * 2 * half, ...); only the
        # last one may be short.
        full = n // (2 * half)
        cut = full * half
        permutation = np.empty_like(permutation)
        blocks = permutation[: 2 * cut].reshape(full, 2, half)
        blocks[:, 0] = low[:cut].reshape(full, half)
        blocks[:, 1] = high[:cut].reshape(full, half)
        split = cut + low.size
        permutation[2 * cut : split] = low[cut:]
        permutation[split:] = high[cut:]
        # The zeros now stand where the place itself has a zero bit.
        total -= int(low.sum(dtype=np.int64))
    return total


def _sorted_with(
    scores: NDArray[Any], weights: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The chosen scores in ascending order, and their weights."""
    scores = scores.compress(chosen)
    order = np.argsort(scores)
    return scores[order], weights.compress(chosen)[order]


# Checks


def _vector(name: str, values: ArrayLike, kinds: str = "biuf") -> NDArray[Any]:
    """`values` as an array [n] with n >= 1, of one of the dtype kinds, without NaN."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(
            f"{name}: got shape {array.shape}, expected one dimension; flatten it, for example with"
            " reshape(-1)"
        )
    if array.size == 0:
        raise DataError(f"{name}: got no values, expected at least one; check the filter before it")
    if array.dtype.kind not in kinds:
        expected = (
            "numbers" if "f" in kinds else "integers or strings" if "U" in kinds else "integers"
        )
        raise DataError(
            f"{name}: got dtype {array.dtype}, expected {expected}; convert with astype"
        )
    if array.dtype == np.float16:
        array = array.astype(np.float32)  # lossless, and the sorts below know it
    _no_nan(name, array)
    return array


def _no_nan(name: str, array: NDArray[Any]) -> None:
    # The minimum is NaN where any value is, and takes no temporary array.
    if array.dtype.kind == "f" and np.isnan(array.min()):
        at = np.argwhere(np.isnan(array))
        raise DataError(
            f"{name}: got NaN in {len(at)} of {array.size} values, first at {at[0].tolist()},"
            " expected none; repair or drop these rows"
        )


def _same_length(name: str, array: NDArray[Any], other: str, reference: NDArray[Any]) -> None:
    if array.size != reference.size:
        raise DataError(
            f"{name}: got {array.size} values, expected as many as {other} ({reference.size}); pass"
            " one of each per row"
        )


def _labels(labels: ArrayLike, other: str, reference: NDArray[Any]) -> NDArray[np.bool_]:
    array = _vector("labels", labels)
    _same_length("labels", array, other, reference)
    if array.dtype == np.bool_:
        return array
    positive: NDArray[np.bool_] = array == 1
    good = positive | (array == 0)
    if not good.all():
        at = int(np.argmin(good))
        raise DataError(
            f"labels: got {array[at]} at row {at}, expected 0 or 1; threshold the label first"
        )
    return positive


def _probabilities(probabilities: ArrayLike) -> NDArray[Any]:
    array = _vector("probabilities", probabilities)
    low, high = array.min(), array.max()
    if low < 0 or high > 1:
        raise DataError(
            f"probabilities: got values from {low} to {high}, expected 0..1; pass logits through a"
            " sigmoid first"
        )
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _weights(
    name: str, weights: ArrayLike, other: str, reference: NDArray[Any]
) -> NDArray[np.float64]:
    array = _vector(name, weights)
    _same_length(name, array, other, reference)
    low, high = array.min(), array.max()
    if low < 0 or np.isinf(high):
        raise DataError(
            f"{name}: got values from {low} to {high}, expected finite ones of at least 0; clip or"
            " drop these rows"
        )
    return array.astype(np.float64, copy=False)


def _at_least_1(name: str, value: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise DataError(f"{name}: got {value!r}, expected an integer of at least 1; for example 10")


def _lists(
    ranks: ArrayLike, offsets: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """Ranks [R], and start and size of each list that is not empty."""
    array = _vector("ranks", ranks).astype(np.float64, copy=False)
    if array.min() < 1:
        raise DataError(
            f"ranks: got {array.min()}, expected 1-based ranks; add 1 to 0-based ones, and give inf"
            " for an item that is not in its list"
        )
    if offsets is None:
        return array, np.arange(array.size), np.ones(array.size, np.intp)
    bounds = _vector("offsets", offsets, kinds="iu").astype(np.intp)
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
