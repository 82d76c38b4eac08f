"""Items that are alike: by what a model knows of each, as its index holds it.

A model that learns describes an item by numbers, which an index holds once per item. They are
centred, so that what all items share does not count, and compared by their cosine::

    x_i = (t_i - mean of t over the items of the index)
    similarity(i, j) = x_i . x_j / (|x_i| |x_j|)                     from -1 to 1

``t_i`` is the vector of the item (``vectors.f32``), and with profiles the item's key too, each
divided by its root mean square over the items; see :data:`PARTS`.

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


def parts_of(index: Index) -> tuple[str, ...]:
    """The parts that are compared."""
    return ("vectors", "keys") if index.keys else ("vectors",)


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
    """Cosines of what an index holds of items.

    Args:
        index: of a model that learns.
        parts: names in :data:`PARTS`.
    """

    def __init__(self, index: Index, parts: tuple[str, ...] | None = None) -> None:
        super().__init__(index)
        self._parts = parts or parts_of(index)

    @cached_property
    def _centre(self) -> tuple[Floats, Floats]:
        """The mean of each number, and the factor of its part, f32 [D]."""
        shown = np.setdiff1d(np.arange(len(self.index)), self.index.hidden, assume_unique=True)
        if len(shown) > SAMPLED:
            shown = shown[np.linspace(0, len(shown) - 1, SAMPLED).astype(np.int64)]
        means, factors = [], []
        for name in self._parts:
            values = PARTS[name](self.index, shown).astype(np.float64)
            mean = values.mean(0) if len(values) else np.zeros(values.shape[1])
            size = np.sqrt(np.square(values - mean).sum(1).mean()) if len(values) else 0.0
            means.append(mean)
            factors.append(np.full(values.shape[1], 1 / size if size > 0 else 0.0))
        return np.concatenate(means).astype(np.float32), np.concatenate(factors).astype(np.float32)

    def described(self, rows: slice | Rows) -> Floats:
        """Unit vectors of items, f32 [n, D]; zero where an item is as the mean."""
        mean, factor = self._centre
        values = np.concatenate([PARTS[name](self.index, rows) for name in self._parts], 1)
        values = (values - mean) * factor
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        unit: Floats = np.asarray(values / np.where(norms > 0, norms, 1.0), dtype=np.float32)
        return unit

    def against(self, rows: Rows) -> Callable[[int], Floats]:
        described = self.described(rows)
        return lambda row: described @ self.described(np.array([row]))[0]

    def to(self, row: int, rows: Rows | None = None) -> Floats:
        (own,) = self.described(np.array([row]))
        if rows is not None:
            return self.described(rows) @ own
        found = np.empty(len(self.index), np.float32)
        for at in range(0, len(found), CHUNK):
            found[at : at + CHUNK] = self.described(slice(at, at + CHUNK)) @ own
        return found


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
