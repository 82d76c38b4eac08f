"""Exact counting by sorting: codes, ties and inversions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.errors import DataError

MAX_ROWS = 2**31  # row numbers and dense codes must fit the 32-bit halves of the sort keys


def order_codes(values: NDArray[Any], bits: int = 32) -> NDArray[np.uint32]:
    """Codes [n] below 2^bits in the order of `values`; equal values, and only they, share one.

    Values that fit are mapped in one pass; the rest, such as float64 with all its digits, take
    their dense rank, which costs a sort.
    """
    if values.size > MAX_ROWS:
        raise DataError(
            f"got {values.size} rows, expected at most {MAX_ROWS}; compute the metric on parts"
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


def tied_pairs(ascending: NDArray[Any]) -> int:
    """Pairs of equal values in a sorted array."""
    edges = np.flatnonzero(ascending[1:] != ascending[:-1]) + 1
    runs = np.diff(edges, prepend=0, append=ascending.size)
    return int((runs * (runs - 1)).sum()) // 2


def inversions(permutation: NDArray[np.uint32]) -> int:
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
        # The zeros are now at positions whose own bit is zero.
        total -= int(low.sum(dtype=np.int64))
    return total


def sorted_with(
    scores: NDArray[Any], weights: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The chosen scores in ascending order, and their weights."""
    scores = scores.compress(chosen)
    order = np.argsort(scores)
    return scores[order], weights.compress(chosen)[order]
