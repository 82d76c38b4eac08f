"""Content features of users or items, row by row, in memory-mapped arrays.

A *token* is a row of one shared embedding table of the item (or user) content: feature f owns the
rows ``[start_f, start_f + size_f)`` and its first row means "unknown or missing".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limerank.data.batch import Features
from limerank.data.folder import open_array
from limerank.data.ragged import ragged_index


@dataclass(frozen=True)
class FeatureTable:
    """Content features of all items or users, mostly memory-mapped.

    Attributes:
        tokens: i32 [T], row by row.
        weights: of each token, f32 [T].
        offsets: where each row's tokens begin and, last, end, i64 [rows + 1].
        numeric: normalised numbers, f32 [rows, F]; 0: missing.
    """

    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]
    offsets: NDArray[np.int64]
    numeric: NDArray[np.float32]

    @classmethod
    def open(cls, folder: Path) -> FeatureTable:
        return cls(
            open_array(folder / "tokens.npy"),
            open_array(folder / "token_weights.npy"),
            open_array(folder / "token_offsets.npy"),
            open_array(folder / "numeric.npy"),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: NDArray[Any]) -> Features:
        """The features of these rows, in this order."""
        first = self.offsets[rows]
        counts = self.offsets[np.asarray(rows) + 1] - first
        offsets = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        at = ragged_index(first, counts)
        return Features(
            tokens=torch.from_numpy(self.tokens[at].astype(np.int64)),
            weights=torch.from_numpy(np.ascontiguousarray(self.weights[at])),
            offsets=torch.from_numpy(offsets),
            numeric=torch.from_numpy(np.ascontiguousarray(self.numeric[rows])),
        )

    @classmethod
    def unknown(cls, encoding: Mapping[str, Any]) -> FeatureTable:
        """One row of which nothing is known.

        Args:
            encoding: the part for items or users of a dataset's encoding.
        """
        starts = [f["start"] for f in encoding["features"] if f["kind"] == "categorical"]
        return cls(
            np.array(starts, dtype=np.int32),
            np.ones(len(starts), dtype=np.float32),
            np.array([0, len(starts)], dtype=np.int64),
            np.zeros((1, encoding["numeric"]), dtype=np.float32),
        )
