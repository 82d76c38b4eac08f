"""Which rows of a source are read: one for each element of ``each``, if ``where`` selects it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.canonical import categories, category
from limerank.data.spec import EventSource, Table
from limerank.errors import DataError, did_you_mean

SHOWN = 10
"""Values in a message."""
MOST_VALUES = 1000
"""Values of a column that are counted, about."""


class Selection:
    """Applies ``each`` and ``where`` of a source to batches of its rows.

    Attributes:
        empty: rows without an element of ``each``, so far.
        left_out: rows (elements) that ``where`` leaves out, so far.
        values: of each column of ``where``, rows by value.
    """

    def __init__(self, source: EventSource | Table) -> None:
        self.each = source.each
        self.where = {
            column: tuple(category(value) or "" for value in values)
            for column, values in source.where.items()
        }
        self.begin()

    def begin(self) -> None:
        """Count from 0: the rows are read from the beginning."""
        self.empty = self.left_out = 0
        self.values: dict[str, Counter[str]] = {column: Counter() for column in self.where}

    def in_each(self, name: str) -> bool:
        """Whether a column holds lists whose elements are rows."""
        return self.each is not None and (name == self.each or name.startswith(f"{self.each}."))

    def types(
        self, columns: Mapping[str, pl.DataType | None], name: str
    ) -> dict[str, pl.DataType | None]:
        """The types of columns after ``each``.

        Args:
            columns: of the rows, with their types.
            name: of the file or frame, for messages.

        Raises:
            DataError: ``each`` is no column with lists.
        """
        if self.each is None:
            return dict(columns)
        dtype = columns.get(self.each)
        lists = isinstance(dtype, (pl.List, pl.Array))
        if not lists:
            found = [one for one, t in columns.items() if isinstance(t, (pl.List, pl.Array))]
            held = f"holds {dtype}, not lists" if self.each in columns else "does not exist"
            raise DataError(
                f"{name}: column {self.each!r} of each {held}; columns with lists: "
                f"{', '.join(found[:SHOWN]) or 'none'}{did_you_mean(self.each, found)}"
            )
        return {one: _element(t) if self.in_each(one) else t for one, t in columns.items()}

    def needed(self, columns: Sequence[str]) -> list[str]:
        """The columns to read for these ones."""
        return list(dict.fromkeys([*columns, *self.where]))

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows that are read of a batch."""
        if self.each is not None:
            frame = self._elements(frame)
        if self.where:
            keep = np.ones(len(frame), bool)
            for column, wanted in self.where.items():
                keep &= self._matches(frame[column], wanted)
            self.left_out += int(np.count_nonzero(~keep))
            frame = frame.filter(pl.Series(keep))
        return frame

    def _elements(self, frame: pl.DataFrame) -> pl.DataFrame:
        lists = [name for name in frame.columns if self.in_each(name)]
        if not lists:
            return frame
        some = frame[lists[0]].list.len().fill_null(0) > 0
        self.empty += int((~some).sum())
        return frame.filter(some).explode(lists)

    def _matches(self, values: pl.Series, wanted: tuple[str, ...]) -> NDArray[np.bool_]:
        found = values.alias("value").value_counts(name="rows")
        text = categories(found["value"])
        counts = self.values[values.name]
        if len(counts) < MOST_VALUES:
            for value, count in zip(text, found["rows"], strict=True):
                if value is not None:
                    counts[value] += count
        chosen = text.str.to_lowercase().is_in([value.lower() for value in wanted])
        return (
            values.is_in(found["value"].filter(chosen.fill_null(False)).implode())
            .fill_null(False)
            .to_numpy()
        )

    def absent(self) -> list[str]:
        """A warning for each value of ``where`` that no row has."""
        found = []
        for column, wanted in self.where.items():
            counts = self.values[column]
            known = {value.lower() for value in counts}
            others = [value for value in counts if value.lower() not in map(str.lower, wanted)]
            for value in wanted:
                if value.lower() not in known:
                    shown = [f"{text!r} ({n:,} rows)" for text, n in counts.most_common(SHOWN)]
                    found.append(
                        f"where: no row has {column} = {value!r}; values found: "
                        f"{', '.join(shown) or 'none'}{did_you_mean(value, others)}"
                    )
        return found


def _element(dtype: pl.DataType | None) -> pl.DataType | None:
    if not isinstance(dtype, (pl.List, pl.Array)):
        return dtype
    return dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()
