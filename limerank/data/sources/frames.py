"""Frames in memory: Polars, pandas, Arrow, and all that exports an Arrow stream.

pandas is not imported: its frames are known by the name of their module, and Arrow reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import polars as pl
import pyarrow as pa
import pyarrow.compute

from limerank.data.sources.arrow import (
    UNREADABLE,
    arrow_columns,
    plain_frame,
    rows_of_batch,
    type_names,
)
from limerank.data.sources.rows import Rows
from limerank.errors import DataError

EXPECTED_FRAME = "a Polars or pandas DataFrame, or a pyarrow Table"


@runtime_checkable
class Frame(Protocol):
    """A table in memory: ``polars.DataFrame``, ``pandas.DataFrame``, ``pyarrow.Table``, or an
    object of another library that exports an Arrow stream."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


def is_frame(value: object) -> bool:
    """Whether a value is a table of rows and columns that :class:`FrameRows` may read."""
    if isinstance(value, (pl.Series, pa.ChunkedArray)):  # which export a stream of one column
        return False
    return isinstance(value, Frame) or _is_pandas(value)


def _is_pandas(value: object) -> bool:
    kind = type(value)
    return kind.__name__ == "DataFrame" and kind.__module__.partition(".")[0] == "pandas"


def type_name(value: object) -> str:
    """The package and the class of a value, such as ``polars.DataFrame``, for messages."""
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    return kind.__qualname__ if package == "builtins" else f"{package}.{kind.__qualname__}"


class FrameRows(Rows):
    """The rows of a frame.

    Args:
        frame: see :class:`Frame`; its memory is shared, not copied, where its types allow that.
        name: of the frame, for messages, such as "the items frame".

    Raises:
        DataError: it is not a frame, or has a column that Arrow cannot hold.
    """

    typed = True

    def __init__(self, frame: object, name: str) -> None:
        self._table, unreadable = _arrow_table(frame, name)
        super().__init__(name, type_name(frame), self._table.nbytes)
        self.count = self._table.num_rows
        found, self.repeated = arrow_columns(self._table.schema)
        self.columns = {**found, **dict.fromkeys(unreadable)}
        self.type_names = {**type_names(self._table.schema), **unreadable}

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        read = list(columns) or self._table.schema.names[:1]
        table = self._table.select(read)
        rows = rows_of_batch(len(read), size)
        for at in range(0, table.num_rows, rows):
            yield plain_frame(table.slice(at, rows), read)

    def bounds(self, column: str) -> tuple[float, float]:
        dtype = self.columns[column]
        if dtype is None or not dtype.is_integer():
            return super().bounds(column)
        values = self._table.column(column)
        if not pa.types.is_integer(values.type):  # a decimal
            return super().bounds(column)
        found = pyarrow.compute.min_max(values).as_py()
        if found["min"] is None:
            return math.inf, -math.inf
        return found["min"], found["max"]


def _arrow_table(frame: Any, name: str) -> tuple[pa.Table, dict[str, str]]:
    """A frame as an Arrow table; and the types of columns that Arrow cannot hold."""
    try:
        if isinstance(frame, pl.DataFrame):
            return _from_polars(frame)
        if isinstance(frame, pa.Table):
            return frame, {}
        if _is_pandas(frame):
            return pa.Table.from_pandas(frame, preserve_index=False), {}
        if isinstance(frame, Frame):
            return pa.table(frame), {}
    except (*UNREADABLE, TypeError, ValueError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name} ({type_name(frame)}) cannot be read: {message}; give each column one type, "
            "or leave the column out"
        ) from None
    raise DataError(f"{name} is of type {type_name(frame)}, expected {EXPECTED_FRAME}")


def _from_polars(frame: pl.DataFrame) -> tuple[pa.Table, dict[str, str]]:
    columns: dict[str, Any] = {}
    unreadable: dict[str, str] = {}
    for values in frame:
        try:
            if values.dtype == pl.Object:
                raise TypeError
            columns[values.name] = values.to_arrow()
        except (*UNREADABLE, TypeError, ValueError, NotImplementedError):
            unreadable[values.name] = str(values.dtype)
    return pa.table(columns), unreadable
