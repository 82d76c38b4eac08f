"""Items that are alike: by what a model knows of each, as its index holds it.

A model that learns describes an item by numbers, which an index holds once per item. Similarities
are means of cosines, from -1 to 1, one for each part::

    vectors   the cosine of x_i and x_j, with x = C^(-1/2) (t - m): the item's vector t, less the
              mean m over the items, whitened by their covariance C
    values    the cosine of the shares of anchored values, such as the category and the brand;
              where the model has anchored links, whose index holds them
    neighbours  the same of the shares of neighbours, among which an item is its own most similar
              one; where the model has neighbours

Without whitening, what most items share, such as popularity, hides what few have in common. The
truth of a simulated shop decided between these parts and others (``python -m benchmarks.similar``).

Item-kNN has neighbours instead: the similarity is that of its score, from 0 to 1. Models that rank
by popularity alone describe no item, and are refused.

Shape letters: n items, D numbers of an item.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from limerank.errors import SpecError
from limerank.index import Index
from limerank.models import Ranker
from limerank.models.fitted import rows_of
from limerank.models.item_knn import ItemKnn

SAMPLED = 1 << 16
"""Items from which means and sizes are computed, at most: evenly spaced."""
CHUNK = 1 << 15
"""Items that are compared at once."""
WITHOUT = {"most-popular": "counts", "popularity": "the content and the popularity of items alone"}
"""Models that describe no item -> what they rank by."""
COUNTING = "item-knn"

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]


def _vectors(index: Index, rows: slice | Rows) -> Floats:
    return np.asarray(index.vectors[rows], dtype=np.float32)


def _keys(index: Index, rows: slice | Rows) -> Floats:
    assert index.weights is not None and index.scales is not None
    at = slice(index.weights.shape[1] - index.keys, None)
    codes = np.asarray(index.weights[rows])[:, at]
    return index.scales.weight_low[at] + index.scales.weight_step[at] * codes


def _links(index: Index, rows: slice | Rows) -> Floats:
    assert index.weights is not None and index.scales is not None
    at = slice(0, index.weights.shape[1] - index.keys)
    codes = np.asarray(index.weights[rows])[:, at]
    return index.scales.weight_low[at] + index.scales.weight_step[at] * codes


def _heads(index: Index, rows: slice | Rows) -> Floats:
    assert index.terms is not None and index.scales is not None
    return index.scales.terms(np.asarray(index.terms[rows]))


PARTS: Mapping[str, Callable[[Index, slice | Rows], Floats]] = {
    "vectors": _vectors,
    "keys": _keys,
    "links": _links,
    "heads": _heads,
}
"""What an index holds of an item: its vector, its key, its link weights, and its part of the first
layer of the head."""


VALUES, NEIGHBOURS = "values", "neighbours"
FLOOR = 1e-3
"""Of the largest variance: directions of a lower one are whitened as if they had this."""


def parts_of(index: Index) -> tuple[str, ...]:
    """The parts that are compared."""
    if index.anchors is None:
        return ("vectors",)
    neighbours = any(start < 0 for start, _ in index.anchors.features)
    return ("vectors", VALUES, NEIGHBOURS) if neighbours else ("vectors", VALUES)


class Alike(abc.ABC):
    """Similarities of the items of one version of an index."""

    def __init__(self, index: Index) -> None:
        self.index = index

    @abc.abstractmethod
    def to(self, row: int, rows: Rows | None = None) -> Floats:
        """Similarities of an item to others, f32 [n].

        Args:
            row: of the item.
            rows: of the others; all of the index when not given.
        """

    def against(self, rows: Rows) -> Callable[[int], Floats]:
        """A function from an item's row to its similarities to some others, f32 [n]."""
        return lambda row: self.to(row, rows)

    least = -np.inf
    """Items of a similarity at or below it are not similar at all."""


class ByTerms(Alike):
    """Means of cosines of what an index holds of items.

    Args:
        index: of a model that learns.
        parts: names in :data:`PARTS`, :data:`VALUES` or :data:`NEIGHBOURS`.
    """

    def __init__(self, index: Index, parts: tuple[str, ...] | None = None) -> None:
        super().__init__(index)
        self._parts: list[_Numbers | _Values] = [
            _Numbers(index, name) if name in PARTS else _Values(index, name == NEIGHBOURS)
            for name in parts or parts_of(index)
        ]

    def to(self, row: int, rows: Rows | None = None) -> Floats:
        found = np.sum([part.to(row, rows) for part in self._parts], axis=0)
        return np.asarray(found / len(self._parts), dtype=np.float32)

    def against(self, rows: Rows) -> Callable[[int], Floats]:
        parts = [part.against(rows) for part in self._parts]
        return lambda row: np.asarray(
            np.sum([of(row) for of in parts], axis=0) / len(parts), dtype=np.float32
        )


class _Numbers:
    """Cosines of whitened numbers of items."""

    def __init__(self, index: Index, name: str) -> None:
        self._index, self._read = index, PARTS[name]

    @cached_property
    def _whitening(self) -> tuple[Floats, Floats]:
        """The mean, [D], and the matrix by which differences from it are whitened, [D, D]."""
        shown = np.setdiff1d(np.arange(len(self._index)), self._index.hidden, assume_unique=True)
        if len(shown) > SAMPLED:
            shown = shown[np.linspace(0, len(shown) - 1, SAMPLED).astype(np.int64)]
        values = self._read(self._index, shown).astype(np.float64)
        mean = values.mean(0) if len(values) else np.zeros(values.shape[1])
        values = values - mean
        variance, directions = np.linalg.eigh(values.T @ values / max(len(values), 1))
        least = max(FLOOR * variance[-1], 1e-12)
        matrix = directions / np.sqrt(np.maximum(variance, least))
        return mean.astype(np.float32), matrix.astype(np.float32)

    def _units(self, rows: slice | Rows) -> Floats:
        """Unit vectors, f32 [n, D]; zero where an item is as the mean."""
        mean, matrix = self._whitening
        values = (self._read(self._index, rows) - mean) @ matrix
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        return np.asarray(values / np.where(norms > 0, norms, 1.0), dtype=np.float32)

    @cached_property
    def _norms(self) -> Floats:
        """Length of each item's whitened numbers, f32 [n]."""
        mean, matrix = self._whitening
        found = np.empty(len(self._index), np.float32)
        for at in range(0, len(found), CHUNK):
            values = (self._read(self._index, slice(at, at + CHUNK)) - mean) @ matrix
            found[at : at + CHUNK] = np.linalg.norm(values, axis=1)
        return np.where(found > 0, found, np.float32(1))

    def to(self, row: int, rows: Rows | None = None) -> Floats:
        (own,) = self._units(np.array([row]))
        if rows is not None:
            return np.asarray(self._units(rows) @ own)
        mean, matrix = self._whitening
        direction = matrix @ own
        found = np.empty(len(self._index), np.float32)
        for at in range(0, len(found), CHUNK):
            some = slice(at, at + CHUNK)
            found[some] = (self._read(self._index, some) - mean) @ direction / self._norms[some]
        return found

    def against(self, rows: Rows) -> Callable[[int], Floats]:
        units = self._units(rows)
        return lambda row: np.asarray(units @ self._units(np.array([row]))[0])


class _Values:
    """Cosines of shares of anchored values, or of neighbours, among which an item is its own most
    similar one. Items with equal values have one set, so that each set is compared once."""

    def __init__(self, index: Index, neighbours: bool = False) -> None:
        assert index.anchors is not None
        self._anchors = index.anchors
        tokens, self._shares = np.asarray(index.anchors.tokens), np.asarray(index.anchors.shares)
        others = (tokens < 0) != neighbours
        self._tokens = np.where(others, 0, np.abs(tokens))
        if neighbours:
            self._shares = np.where(self._shares == 0, self._shares.max(initial=1.0), self._shares)
        self._shares = np.where(others, np.float32(0), self._shares)
        self._starts = np.concatenate([np.zeros(1, np.int64), self._anchors.ends])
        self._set = np.repeat(np.arange(len(self._anchors.ends)), np.diff(self._starts))

    def _sums(self, values: Floats) -> Floats:
        """Sums over the tokens of each set, f32 [S], of values of tokens [T]."""
        sums = np.bincount(self._set, values, len(self._anchors.ends))
        return np.asarray(sums, dtype=np.float32)

    @cached_property
    def _squares(self) -> Floats:
        """Sum of the squared shares of each set, f32 [S]."""
        return self._sums(np.square(self._shares))

    def to(self, row: int, rows: Rows | None = None) -> Floats:
        anchors = self._anchors
        own = np.zeros(int(self._tokens.max(initial=0)) + 1, np.float32)
        for code in anchors.codes[row].tolist():
            part = slice(int(self._starts[code]), int(self._starts[code + 1]))
            np.add.at(own, self._tokens[part], self._shares[part])
        products = self._sums(self._shares * own[self._tokens])
        codes = anchors.codes if rows is None else anchors.codes[rows]
        norms = np.sqrt(self._squares[codes].sum(1) * np.square(own).sum())
        return np.asarray(products[codes].sum(1) / np.where(norms > 0, norms, 1.0))

    def against(self, rows: Rows) -> Callable[[int], Floats]:
        return lambda row: self.to(row, rows)


class ByNeighbours(Alike):
    """Similarities of item-kNN: the share of common users; 0 between items that are no
    neighbours.

    Args:
        ranker: the model.
        index: that it built.
    """

    least = 0.0

    def __init__(self, ranker: ItemKnn, index: Index) -> None:
        super().__init__(index)
        self._neighbours = ranker.neighbours

    @cached_property
    def _items(self) -> Rows:
        """The row of the id table of each item."""
        found: Rows = rows_of(torch.from_numpy(np.array(self.index.vectors))).numpy()
        return found

    def to(self, row: int, rows: Rows | None = None) -> Floats:
        items = self._items if rows is None else self._items[rows]
        own = torch.from_numpy(self._items[row : row + 1])
        sums = self._neighbours.sums(own.to(self._neighbours.ends.device), torch.ones(1))
        found: Floats = sums.cpu().numpy()[items]
        found[items == 0] = 0.0  # of all items that training has not seen
        return found if int(own) else np.zeros_like(found)


def alike(index: Index, ranker: Ranker | None = None) -> Alike:
    """How the items of an index are compared.

    Args:
        index: the index.
        ranker: the model that built it; item-kNN alone needs it.

    Raises:
        SpecError: the model describes no item, or item-kNN is not given.
    """
    if index.model in WITHOUT:
        raise SpecError(
            f"{index.model} ranks by {WITHOUT[index.model]} and does not describe items, so none "
            "are similar; use the index of item-knn or of a model that reads histories"
        )
    if index.model != COUNTING:
        return ByTerms(index)
    if not isinstance(ranker, ItemKnn):
        raise SpecError(
            f"{index.path} is of item-knn, whose neighbours are in its run; give the run "
            "(limerank similar --run RUN)"
        )
    return ByNeighbours(ranker, index)


class Nearest(NamedTuple):
    """The items that are most similar to one, best first: ``rows`` i64 [k] of the index, and their
    similarities, f32 [k]."""

    rows: Rows
    similarities: Floats


def nearest(
    of: Alike,
    row: int,
    k: int,
    *,
    allow: NDArray[np.bool_] | None = None,
    exclude: Rows | None = None,
) -> Nearest:
    """The items most similar to one. It is not among them, and hidden items are not.

    Args:
        of: compares the items.
        row: of the item.
        k: how many, at most; of equal similarities the lower rows come first.
        allow: which items of the index may be among them, bool [n].
        exclude: rows to leave out.
    """
    values = of.to(row)
    wanted = values > of.least if allow is None else (values > of.least) & allow
    wanted[of.index.hidden] = False
    wanted[row] = False
    if exclude is not None:
        wanted[exclude] = False
    rows = np.flatnonzero(wanted)
    found = values[rows]
    if len(rows) > k:
        least = np.partition(found, len(rows) - k)[len(rows) - k]
        above = np.flatnonzero(found > least)
        equal = np.flatnonzero(found == least)[: k - len(above)]
        some = np.concatenate([above, equal])
        rows, found = rows[some], found[some]
    order = np.lexsort((rows, -found))
    return Nearest(rows[order], found[order])
