"""Ragged arrays: rows of different lengths, stored as all values and the length of each row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def ragged_index(starts: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """``concatenate([arange(s, s + n) for s, n in zip(starts, lengths)])``, i64.

    Args:
        starts, lengths: integers [R], of the rows to read.
    """
    lengths = lengths.astype(np.int64, copy=False)
    total = int(lengths.sum())
    first = np.cumsum(lengths) - lengths
    return np.arange(total, dtype=np.int64) + np.repeat(starts - first, lengths)


def take_ragged(values: NDArray[Any], lengths: NDArray[Any], order: NDArray[Any]) -> NDArray[Any]:
    """The values of the rows ``order`` of a ragged array.

    Args:
        values: of all rows, row after row.
        lengths: of each row.
        order: the rows to read.
    """
    starts = np.cumsum(lengths) - lengths
    taken: NDArray[Any] = values[ragged_index(starts[order], lengths[order])]
    return taken
