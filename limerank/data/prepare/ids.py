"""Ids as integers: those of users and items, and the values of categorical event features.

:class:`Ids` gives each id its code, :class:`CodeCounter` counts events by code, and
:class:`CodeMap` turns these codes into those of the dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.canonical import id_integers, id_texts
from limerank.data.prepare.partition import Array
from limerank.errors import DataError

Mask = NDArray[np.bool_] | None
"""A mask of rows; None: all rows."""


class TextIdsError(Exception):
    """Ids that seemed to be integers are text: all files have to be read again."""

    def __init__(self, ids: Ids) -> None:
        self.ids = ids


class Ids:
    """Ids, or categories, as int64 codes: the integers themselves, or numbers given to texts.

    Args:
        text: whether they are texts.
        form: what brings a series to the form of :mod:`limerank.data.canonical`, as text.
        known: texts in that form, each once, that have the codes 0, 1, ... already.
        integers: the known ones as integers: then :meth:`values` are integers where all texts are.

    Attributes:
        known: how many texts were known at the beginning.
        learned: for each call that had new texts: how many there were as written, and how many more
            their canonical forms are. They have the next codes, in this order.
    """

    def __init__(
        self,
        text: bool,
        form: Callable[[pl.Series], pl.Series] = id_texts,
        known: pl.Series | None = None,
        integers: pl.Series | None = None,
    ) -> None:
        self.text, self._integers = text, integers
        self._form = form
        self._type = pl.Categorical(pl.Categories.random())
        # Polars forgets the numbers of texts with the last series that has them.
        self._held = pl.Series([], dtype=self._type)
        self._canonical = np.zeros(0, np.int64)
        """For each text as written: the code of its canonical form; -1 where it has none."""
        self._moved = False
        """Whether any text is written otherwise than its canonical form."""
        self.known = 0 if known is None else len(known)
        self.learned: list[tuple[int, int]] = []
        if known is not None:
            self._held = known.cast(self._type)
            self._canonical = np.arange(len(known))

    def codes(self, values: pl.Series) -> tuple[Array, Mask]:
        """Codes, and which of them are known (None: all).

        Raises:
            TextIdsError: these ids are not integers, as was expected.
            DataError: the column has no ids, or one that may have lost digits.
        """
        if values.dtype.is_nested():
            raise DataError(
                f"column {values.name!r} holds {values.dtype}, expected ids (for histories given "
                "as lists, set lists = true)"
            )
        if self.text:
            codes = self.of_text(values)
        else:
            codes, others = id_integers(values)
            if others:
                raise TextIdsError(self)
        known = None
        if codes.null_count():
            known = codes.is_not_null().to_numpy()
            codes = codes.fill_null(0)
        return codes.to_numpy().astype(np.int64, copy=False), known

    def of_text(self, values: pl.Series) -> pl.Series:
        """Codes of texts, null where one is missing. Each text is brought to its form once."""
        text = values if values.dtype == pl.String else self._form(values)
        codes = text.cast(self._type).to_physical()
        count = codes.max()
        if isinstance(count, int) and count >= len(self._canonical):
            self._learn(count + 1, values.name)
        if not self._moved:
            return codes
        moved = pl.Series(self._canonical[codes.fill_null(0).to_numpy()])
        return moved.set((moved < 0) | codes.is_null(), None).alias(values.name)

    def _learn(self, count: int, column: str) -> None:
        """The canonical forms of the texts that have the numbers up to ``count``."""
        new = np.arange(len(self._canonical), count)
        texts = self.values(new).alias(column)
        formed = self._form(texts)
        if formed is texts:
            self._canonical = np.concatenate([self._canonical, new])
            self.learned.append((len(new), 0))
            return
        codes = formed.cast(self._type).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()
        self._moved = self._moved or not np.array_equal(codes, new)
        # A form that is new itself has a number behind these, and is its own form.
        more = np.arange(count, max(count, int(codes.max(initial=-1)) + 1))
        self._canonical = np.concatenate([self._canonical, codes, more])
        self.learned.append((len(new), len(more)))

    def texts(self) -> pl.Series:
        """The texts that :attr:`learned` counts, by code."""
        return self._texts(np.arange(self.known, len(self._canonical)))

    def learn_again(self, texts: pl.Series, learned: Sequence[Sequence[int]]) -> Array:
        """Learn what other ids have learned, as if their rows came next here; returns the code that
        each of the texts has here, -1 where it has none.

        Args:
            texts, learned: of those ids.
        """
        at = 0
        for written, more in learned:
            self.of_text(texts[at : at + written])
            at += written + more
        return self.of_text(texts).cast(pl.Int64).fill_null(-1).to_numpy()

    def values(self, codes: Array) -> pl.Series:
        """The ids that have these codes."""
        if not self.text:
            return pl.Series("id", codes.astype(np.int64, copy=False))
        if self._integers is not None:
            found = self._integer_values(codes, self._integers.to_numpy())
            if found is not None:
                return found
            self._integers = None
        return self._texts(codes)

    def _texts(self, codes: Array) -> pl.Series:
        numbers = pl.Series("id", codes.astype(np.uint32))
        return numbers.cat.to(self._type).cast(pl.String)

    def _integer_values(self, codes: Array, known: NDArray[np.int64]) -> pl.Series | None:
        """The ids as integers; None: one that is not known is not an integer."""
        found = np.zeros(len(codes), np.int64)
        old = codes < len(known)
        found[old] = known[codes[old]]
        new, others = id_integers(self._texts(codes[~old]))
        if others:
            return None
        found[~old] = new.to_numpy()
        return pl.Series("id", found)


@dataclass(frozen=True)
class Counts:
    """Of the codes of one column: distinct codes, ascending, and sums over their events."""

    codes: Array
    sums: list[NDArray[np.int64]]


class CodeCounter:
    """Adds up several 0/1 weights by code, in a table where the codes' range is small."""

    def __init__(self, low: int, high: int, weights: int, limit: int) -> None:
        self._low, self._range, self._weights = low, high - low + 1, weights
        self._table = np.zeros((weights, self._range), np.int32) if self._range <= limit else None
        self._parts: list[Counts] = []
        self._pending = 0

    def add(self, codes: Array, masks: list[Mask]) -> None:
        """Count events; a weight's mask says which of them have it (None: all)."""
        if self._table is not None:
            at = codes.astype(np.int64, copy=False) - self._low
            for total, mask in zip(self._table, masks, strict=True):
                np.add.at(total, at if mask is None else at[mask], np.int32(1))
            return
        if len(codes) == 0:
            return
        low = int(codes.min())
        width = int(codes.max()) - low + 1
        if width <= 4 * len(codes):
            at = codes.astype(np.int64, copy=False) - low
            there = np.flatnonzero(np.bincount(at))
            unique = there + low
        else:
            unique, at = np.unique(codes, return_inverse=True)
            width, there = len(unique), np.arange(len(unique))
        sums = [
            np.bincount(at if mask is None else at[mask], minlength=width)[there] for mask in masks
        ]
        self._parts.append(Counts(unique, sums))
        self._pending += len(unique)
        if len(self._parts) > 8 and self._pending > 3 * len(self._parts[0].codes):
            self._merge()

    def _merge(self) -> None:
        codes, inverse = np.unique(
            np.concatenate([part.codes for part in self._parts]), return_inverse=True
        )
        sums = [np.zeros(len(codes), np.int64) for _ in range(self._weights)]
        for k, total in enumerate(sums):
            np.add.at(total, inverse, np.concatenate([part.sums[k] for part in self._parts]))
        self._parts = [Counts(codes, sums)]
        self._pending = 0

    def result(self) -> Counts:
        """All codes with any event at all; the last weight must count every event."""
        if self._table is not None:
            at = np.flatnonzero(self._table[-1])
            return Counts(at + self._low, [total[at].astype(np.int64) for total in self._table])
        if not self._parts:
            return Counts(np.zeros(0, np.int64), [np.zeros(0, np.int64)] * self._weights)
        self._merge()
        return self._parts[0]


class CodeMap:
    """Codes -> new int32 codes; a code that is not in the map gives 0."""

    def __init__(self, codes: Array, new: NDArray[np.int32], limit: int) -> None:
        order = np.argsort(codes, kind="stable")
        self._codes, self._new = codes[order], new[order]
        self._table: NDArray[np.int32] | None = None
        if len(codes):
            self._low, self._high = int(self._codes[0]), int(self._codes[-1])
            if self._high - self._low + 1 <= limit:
                self._table = np.zeros(self._high - self._low + 1, np.int32)
                self._table[self._codes - self._low] = self._new

    def __call__(self, codes: Array) -> NDArray[np.int32]:
        if len(self._codes) == 0 or len(codes) == 0:
            return np.zeros(len(codes), np.int32)
        codes = codes.astype(np.int64, copy=False)
        if self._table is not None:
            if int(codes.min()) >= self._low and int(codes.max()) <= self._high:
                return self._table[codes - self._low]
            outside = (codes < self._low) | (codes > self._high)
            found = self._table[np.where(outside, self._low, codes) - self._low]
            found[outside] = 0
            return found
        unique, inverse = np.unique(codes, return_inverse=True)
        at = np.minimum(np.searchsorted(self._codes, unique), len(self._codes) - 1)
        new = np.where(self._codes[at] == unique, self._new[at], 0).astype(np.int32)
        return new[inverse]
