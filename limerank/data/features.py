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

from limerank.data.batch import Features, ItemKeys
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


def anchors_of(encoding: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The anchored features of items: name -> first row and number of rows in the content table.

    Args:
        encoding: of a dataset's manifest.
    """
    features = {
        feature["name"]: (feature["start"], feature["size"])
        for feature in encoding["items"]["features"]
        if feature["kind"] == "categorical"
    }
    return {name: features[name] for name in encoding.get("anchors", features)}


def anchored_tokens(encoding: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Which rows of the items' content table are values of anchored features, bool [tokens]."""
    found = np.zeros(encoding["items"]["tokens"], dtype=bool)
    for start, size in anchors_of(encoding).values():
        found[start + 1 : start + size] = True
    return found


def take_keys(keys: ItemKeys, positions: NDArray[np.int64]) -> ItemKeys:
    """The keys of n items among those with keys; -1: an item without keys.

    Args:
        keys: of items, on the CPU.
        positions: of the wanted ones, i64 [n].
    """
    ends = keys.offsets.numpy()
    none = len(ends) - 1  # the position of an item without keys, behind the others
    ends = np.append(ends, ends[-1])
    positions = np.where(positions < 0, none, positions)
    first, counts = ends[positions], np.diff(ends)[positions]
    offsets = np.zeros(len(positions) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    at = torch.from_numpy(ragged_index(first, counts))
    ids = None
    if keys.ids is not None:
        ids = torch.cat([keys.ids, keys.ids.new_zeros(1)])[torch.from_numpy(positions)]
    return ItemKeys(
        keys=keys.keys[at],
        shares=keys.shares[at],
        offsets=torch.from_numpy(offsets),
        ids=ids,
        complete=keys.complete,
    )


def joined_keys(keys: ItemKeys, other: ItemKeys, positions: NDArray[np.int64]) -> ItemKeys:
    """``keys``, where the items at ``positions`` [m] have the keys of the m items of ``other``."""
    count = len(keys.offsets) - 1
    every = ItemKeys(
        keys=torch.cat([keys.keys, other.keys]),
        shares=torch.cat([keys.shares, other.shares]),
        offsets=torch.cat([keys.offsets, keys.offsets[-1] + other.offsets[1:]]),
    )
    order = np.arange(count)
    order[positions] = count + np.arange(len(positions))
    return take_keys(every, order)


def item_keys(
    content: Features,
    anchored: NDArray[np.bool_],
    numbers: NDArray[np.int64],
    ids: NDArray[np.int64] | None = None,
) -> ItemKeys:
    """The keys of n items: the values of their anchored features, then the item itself.

    Args:
        content: of the items.
        anchored: which rows of the content table are values of anchored features, bool [tokens].
        numbers: of the items, which tell them apart, i64 [n]; -1: an item like no other.
        ids: rows of the id table, i64 [n].
    """
    tokens, offsets = content.tokens.numpy(), content.offsets.numpy()
    held = anchored[tokens]
    owner = np.repeat(np.arange(len(numbers)), np.diff(offsets))[held]
    own = np.flatnonzero(numbers >= 0)
    counts = np.bincount(owner, minlength=len(numbers)) + (numbers >= 0)
    ends = np.cumsum(counts)
    keys = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.int64)
    shares = np.ones(len(keys), dtype=np.float32)
    last = np.zeros(len(keys), dtype=bool)
    last[ends[own] - 1] = True
    keys[last], keys[~last] = numbers[own] + len(anchored), tokens[held]
    shares[~last] = content.weights.numpy()[held]
    return ItemKeys(
        keys=torch.from_numpy(keys),
        shares=torch.from_numpy(shares),
        offsets=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int64)),
        ids=None if ids is None else torch.from_numpy(ids),
    )
