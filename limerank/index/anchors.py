"""Anchored values of the items of an index: a code per item and anchored feature.

A *set* is what an item has of one anchored feature: tokens (rows of the content table) with their
shares. Equal sets have one number, the code; set 0 is empty. Features with several values per item
therefore cost a scorer no more than those with one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from limerank.data.ragged import ragged_index
from limerank.index.format import ANCHOR_TABLES

Rows = NDArray[np.int64]


class Keys(NamedTuple):
    """Of n items: ``keys`` i64 [T] and ``shares`` f32 [T], item after item, and ``offsets``
    i64 [n + 1], where each item's begin and, last, end. As limerank.data.batch.ItemKeys."""

    keys: Rows
    shares: NDArray[np.float32]
    offsets: Rows


class Anchors:
    """The anchored values of an index.

    Attributes:
        features: first row and number of rows of each anchored feature in the content table.
        item_tokens: rows of the content table: the key of row i is ``item_tokens + i``.
        codes: sets of each row, i32 [rows, F].
        tokens: of all sets, one after another, i32 [T].
        shares: of each token, f32 [T].
        ends: where each set ends, i64 [S]; that of set 0 is 0.

    Raises:
        ValueError: the arrays do not fit together.
    """

    def __init__(self, of: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self.features = tuple((int(start), int(size)) for start, size in of["features"])
        self.item_tokens = int(of["item_tokens"])
        self.codes: NDArray[np.int32] = arrays["anchor_codes.i32"]
        self.tokens, self.shares, self.ends = (arrays[name] for name in ANCHOR_TABLES)
        if self.codes.ndim != 2 or self.codes.shape[1] != len(self.features):
            raise ValueError(f"anchor_codes has the shape {self.codes.shape}")
        sizes = (self.tokens.ndim, self.tokens.shape, self.ends.ndim)
        if sizes != (1, self.shares.shape, 1) or not len(self.ends):
            raise ValueError("the sets of anchored values do not fit together")
        if self.ends[0] or self.ends[-1] != len(self.tokens):
            raise ValueError(f"the sets of anchored values end at {self.ends[-1]}")

    @property
    def sets(self) -> int:
        """Number of sets, the empty one included, S."""
        return len(self.ends)

    def of_sets(self, sets: NDArray[Any]) -> Keys:
        """Tokens and shares of sets, integers [n]."""
        end = self.ends[sets]
        first = np.where(sets > 0, self.ends[np.maximum(sets, 1) - 1], 0)
        at = ragged_index(first, end - first)
        return Keys(self.tokens[at].astype(np.int64), self.shares[at], _offsets(end - first))

    def codes_of(self, rows: NDArray[Any] | slice) -> Keys:
        """Of each row: its sets that are not empty and, last, S + row. Row -1 has none.

        Args:
            rows: of the index, integers [n], or a slice of them.
        """
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self.codes)))
        rows = rows.astype(np.int64, copy=False)
        if not len(self.codes):
            return Keys(rows[:0], np.zeros(0, np.float32), _offsets(np.zeros(len(rows), np.int64)))
        keys = np.empty((len(rows), len(self.features) + 1), np.int64)
        keys[:, :-1] = self.codes[rows]
        keys[:, -1] = rows + self.sets
        keys[rows < 0] = 0
        held = keys > 0
        found = keys[held]
        return Keys(found, np.ones(len(found), np.float32), _offsets(held.sum(1)))

    def keys(self, rows: NDArray[Any] | slice) -> Keys:
        """Of each row: the tokens of its anchored values and, last, the item itself,
        ``item_tokens + row``. Row -1, an item that the index lacks, has none.

        Args:
            rows: of the index, integers [n], or a slice of them.
        """
        own = self.codes_of(rows)
        is_item = own.keys >= self.sets
        found = self.of_sets(np.where(is_item, 0, own.keys))
        lengths = np.maximum(np.diff(found.offsets), is_item)
        ends = np.cumsum(lengths)
        keys = np.empty(int(ends[-1]) if len(ends) else 0, np.int64)
        shares = np.ones(len(keys), np.float32)
        last = np.zeros(len(keys), bool)
        last[ends[is_item] - 1] = True
        keys[last] = own.keys[is_item] - self.sets + self.item_tokens
        keys[~last], shares[~last] = found.keys, found.shares
        return Keys(keys, shares, np.concatenate([[0], ends])[own.offsets])


class SetEncoder:
    """Items -> codes, with a number for every set that was not seen before.

    Sets are compared by 64-bit hashes: of a million sets, two have one hash in one of ten million
    catalogues.

    Args:
        features: first row and number of rows of each anchored feature in the content table.
        tokens, shares, ends: the sets so far, as of :class:`Anchors`.
    """

    def __init__(
        self,
        features: Sequence[tuple[int, int]],
        tokens: NDArray[Any],
        shares: NDArray[Any],
        ends: NDArray[Any],
    ) -> None:
        self.features = tuple(features)
        counts = np.diff(ends, prepend=0)
        owner = np.repeat(np.arange(len(ends)), counts)
        hashes = _hashes(np.asarray(tokens), np.asarray(shares), owner, len(ends))
        order = np.argsort(hashes[1:], kind="stable")
        self._hashes, self._numbers = hashes[1:][order], order + 1
        self.sets, self._end = len(ends), len(tokens)

    def __call__(
        self, tokens: NDArray[np.int64], shares: NDArray[np.float32], offsets: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """Name of the array -> rows to append.

        Args:
            tokens: rows of the content table, item after item, i64 [T].
            shares: weight of each, f32 [T].
            offsets: where each item's tokens begin and, last, end, i64 [n + 1].
        """
        count, width = len(offsets) - 1, len(self.features)
        kind = np.full(len(tokens), -1)
        for number, (start, size) in enumerate(self.features):
            kind[(tokens > start) & (tokens < start + size)] = number
        held = kind >= 0
        tokens, shares = tokens[held], shares[held]
        owner = (np.repeat(np.arange(count), np.diff(offsets)) * width)[held] + kind[held]
        order = np.argsort(owner, kind="stable")
        tokens, shares, owner = tokens[order], shares[order], owner[order]
        lengths = np.bincount(owner, minlength=count * width)
        filled = np.flatnonzero(lengths)
        hashes = _hashes(tokens, shares, owner, count * width)[filled]
        distinct, first, of = np.unique(hashes, return_index=True, return_inverse=True)
        at = np.searchsorted(self._hashes, distinct)
        known = np.zeros(len(distinct), bool)
        inside = at < len(self._hashes)
        known[inside] = self._hashes[at[inside]] == distinct[inside]
        numbers = np.empty(len(distinct), np.int64)
        numbers[known] = self._numbers[at[known]]
        new = np.flatnonzero(~known)
        new = new[np.argsort(first[new])]  # numbered as they come
        numbers[new] = self.sets + np.arange(len(new))
        codes = np.zeros(count * width, np.int32)
        codes[filled] = numbers[of]
        starts = np.cumsum(lengths) - lengths
        chosen = filled[first[new]]
        taken = ragged_index(starts[chosen], lengths[chosen])
        ends = self._end + np.cumsum(lengths[chosen])
        inserted = np.flatnonzero(~known)
        self._hashes = np.insert(self._hashes, at[inserted], distinct[inserted])
        self._numbers = np.insert(self._numbers, at[inserted], numbers[inserted])
        self.sets, self._end = self.sets + len(new), self._end + len(taken)
        return {
            "anchor_codes.i32": codes.reshape(count, width),
            "anchor_tokens.i32": tokens[taken],
            "anchor_shares.f32": shares[taken],
            "anchor_ends.i64": ends,
        }


def compacted(anchors: Anchors, rows: NDArray[Any]) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """The sets that some rows use.

    Returns:
        The new number of each old set, i32 [S], and name of the table -> array.
    """
    used = np.unique(np.append(anchors.codes[rows].ravel(), 0))
    numbers = np.zeros(anchors.sets, np.int32)
    numbers[used] = np.arange(len(used))
    tokens, shares, offsets = anchors.of_sets(used)
    return numbers, dict(zip(ANCHOR_TABLES, (tokens, shares, offsets[1:]), strict=True))


def _offsets(lengths: NDArray[Any]) -> Rows:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _hashes(
    tokens: NDArray[Any], shares: NDArray[Any], owner: NDArray[Any], count: int
) -> NDArray[np.uint64]:
    """A hash of each of ``count`` sets, u64: the sum of mixed bits of its tokens and shares, in any
    order. ``owner`` ascends."""
    bits = np.ascontiguousarray(shares, np.float32).view(np.uint32).astype(np.uint64)
    mixed = (tokens.astype(np.uint64) << np.uint64(32)) | bits
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # of splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    found = np.zeros(count, np.uint64)
    if len(owner):
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        found[owner[first]] = np.add.reduceat(mixed, first)
    return found
