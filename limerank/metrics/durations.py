"""Metrics of durations, such as watch time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from limerank.metrics.checks import require_length, vector_of
from limerank.metrics.counting import inversions, order_codes, tied_pairs


def xauc(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Share of concordant pairs among the pairs of rows whose truth differs.

        XAUC = sum_{t_i > t_j} ([p_i > p_j] + [p_i = p_j] / 2) / |{(i, j): t_i > t_j}|

    0.5 is chance, 1 the perfect order; for a 0/1 truth it is the AUC. All pairs are counted, in
    O(n log n). NaN where all truths are equal.

    Args:
        truth: [n] numbers, such as watch time in seconds.
        predicted: [n] numbers of any scale.
    """
    truth = vector_of("truth", truth)
    predicted = vector_of("predicted", predicted)
    require_length("predicted", predicted, "truth", truth)
    n = truth.size

    # In the order of (predicted, truth) a pair is discordant just where the truth falls strictly.
    key = order_codes(predicted).astype(np.uint64)
    key <<= 32
    key |= order_codes(truth)
    key.sort()
    tied_both = tied_pairs(key)
    falling = key & np.uint64(0xFFFFFFFF)
    key >>= 32
    tied_predicted = tied_pairs(key)

    # Rows sorted by (truth, position): the inverse of a permutation has as many inversions as it.
    falling <<= 32
    falling |= np.arange(n, dtype=np.uint64)
    del key
    falling.sort()
    positions = falling.astype(np.uint32)  # the low half: the position
    falling >>= 32
    comparable = n * (n - 1) // 2 - tied_pairs(falling)
    del falling
    if comparable == 0:
        return float("nan")
    discordant = inversions(positions)
    half = tied_predicted - tied_both
    return (2 * (comparable - discordant) - half) / (2 * comparable)


def mae(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Mean absolute error, 1/n sum_i |t_i - p_i|, in the unit of the truth.

    Args:
        truth: [n] numbers.
        predicted: [n] numbers.
    """
    truth = vector_of("truth", truth)
    predicted = vector_of("predicted", predicted)
    require_length("predicted", predicted, "truth", truth)
    error = np.subtract(truth, predicted, dtype=np.float64)
    return float(np.abs(error, out=error).mean())
