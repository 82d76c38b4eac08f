"""Metrics of binary labels: of scores (AUC and its kin) and of probabilities."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limerank.errors import DataError
from limerank.metrics.checks import (
    labels_of,
    probabilities_of,
    require_at_least_1,
    require_length,
    vector_of,
    weights_of,
)
from limerank.metrics.counting import order_codes, sorted_with


class Reliability(NamedTuple):
    """What `reliability` returns: one entry per bin, in ascending order of the prediction."""

    prediction: NDArray[np.float64]  # [bins] mean predicted probability
    label: NDArray[np.float64]  # [bins] mean label, that is, the observed rate
    rows: NDArray[np.int64]  # [bins] how many


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve: the chance that a positive outscores a negative.

        AUC = sum_{p,q} w_p w_q ([s_p > s_q] + [s_p = s_q] / 2) / (sum_p w_p * sum_q w_q)

    over positives p and negatives q. Ties count half. NaN where a class is absent or weighs 0.

    Args:
        labels: [n] 0 or 1.
        scores: [n] numbers of any scale; only their order matters, infinities are allowed.
        weights: [n] finite, not negative; 1 each where not given.
    """
    scores = vector_of("scores", scores)
    positive = labels_of(labels, "scores", scores)
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

    weights = weights_of("weights", weights, "scores", scores)
    positives, positive_weights = sorted_with(scores, weights, positive)
    negatives, negative_weights = sorted_with(scores, weights, ~positive)
    below = np.append(0.0, np.cumsum(negative_weights))  # weight below each position, then of all
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
    scores = vector_of("scores", scores)
    positive = labels_of(labels, "scores", scores)
    users = vector_of("users", users, kinds="biuUST")
    require_length("users", users, "scores", scores)

    # One sort of (31 bits of user, 32 bits of score, 1 bit of label) puts every user's rows
    # together in score order.
    key = order_codes(users, bits=31).astype(np.uint64)
    key <<= 32
    key |= order_codes(scores)
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
    scores = vector_of("scores", scores)
    positive = labels_of(labels, "scores", scores)
    watch = weights_of("watch", watch, "scores", scores)
    return auc(positive, scores, np.where(positive, watch, 1.0))


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative log likelihood, in nats.

        LL = -1/n sum_i (y_i log p_i + (1 - y_i) log(1 - p_i))

    As in scikit-learn, p is clipped to [eps, 1 - eps], with eps that of its dtype (2^-52 for
    float64, 2^-23 for float32 and float16): a sigmoid that saturated on the wrong side costs 36 or
    16 nats, not infinity.

    Args:
        labels: [n] 0 or 1.
        probabilities: [n] in 0..1.
    """
    probabilities = probabilities_of(probabilities)
    positive = labels_of(labels, "probabilities", probabilities)
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
    probabilities = probabilities_of(probabilities)
    positive = labels_of(labels, "probabilities", probabilities)
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
    predicted_values = vector_of("predictions", predictions)
    outcomes = vector_of("labels", labels)
    require_length("labels", outcomes, "predictions", predicted_values)
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
    require_at_least_1("bins", bins)
    probabilities = probabilities_of(probabilities)
    positive = labels_of(labels, "probabilities", probabilities)
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
