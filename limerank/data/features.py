"""Content features of users or items, row by row: arrays that may lie in files.

A *token* is a row of one shared embedding table of the item (or user) content: feature f owns the
rows ``[start_f, start_f + size_f)`` and its first row stands for "unknown or missing".
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
from limerank.errors import FormatError


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
        at = ranges(first, counts)
        return Features(
            torch.from_numpy(self.tokens[at].astype(np.int64)),
            torch.from_numpy(np.ascontiguousarray(self.weights[at])),
            torch.from_numpy(offsets),
            torch.from_numpy(np.ascontiguousarray(self.numeric[rows])),
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


def ranges(first: NDArray[Any], counts: NDArray[Any]) -> NDArray[np.int64]:
    """``first[0] .. first[0] + counts[0] - 1``, then those of the next, and so on."""
    counts = counts.astype(np.int64)
    starts = np.repeat(first - (np.cumsum(counts) - counts), counts)
    found: NDArray[np.int64] = starts + np.arange(len(starts))
    return found


def open_array(path: Path) -> NDArray[Any]:
    """An array of a dataset folder, memory-mapped; FormatError where it is missing or damaged."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FormatError(f"{path.parent.parent} is damaged: {path} is missing") from None
    except (ValueError, EOFError, OSError) as error:
        raise FormatError(f"{path.parent.parent} is damaged: {path}: {error}") from None
    return array
