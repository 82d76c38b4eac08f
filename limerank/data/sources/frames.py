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
from limerank.data.sources.nested import outer
from limerank.data.sources.roles import MIXED
from limerank.data.sources.rows import Rows
from limerank.errors import DataError

TYPE_ROWS = 1 << 16
"""Rows of a column of mixed values whose types a message lists."""
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
    return any(
        kind.__name__ == "DataFrame" and kind.__module__.partition(".")[0] == "pandas"
        for kind in type(value).__mro__
    )


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
        DataError: it is not a frame, or it cannot be read. (A column that Arrow cannot hold is an
            error only where it is read.)
    """

    typed = True

    def __init__(self, frame: object, name: str) -> None:
        self._table, unreadable = _arrow_table(frame, name)
        super().__init__(name, type_name(frame), self._table.nbytes)
        self.count = self._table.num_rows
        found, self.repeated = arrow_columns(self._table.schema)
        self.columns = {**found, **dict.fromkeys(unreadable)}
        self.type_names = {**type_names(self._table.schema), **unreadable}
        self.remarks = [
            f"{name}: several columns have the name {one!r}" for one in sorted(self.repeated)
        ]
        index = getattr(frame, "index", None) if _is_pandas(frame) else None
        self._index = [one for one in getattr(index, "names", ()) if one is not None]

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        read = list(columns) or self._table.schema.names[:1]
        table = self._table.select(outer(read, self._table.schema.names))
        rows = rows_of_batch(len(read), size)
        for at in range(0, table.num_rows, rows):
            yield plain_frame(table.slice(at, rows), read)

    def header_hint(self) -> str:
        if not self._index:
            return ""
        names = ", ".join(map(repr, self._index))
        return f"; reset_index() makes a column of the index {names}"

    def bounds(self, column: str) -> tuple[float, float]:
        dtype = self.columns[column]
        if dtype is None or not dtype.is_integer() or column not in self._table.schema.names:
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
            return _from_pandas(frame)
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


def _from_pandas(frame: Any) -> tuple[pa.Table, dict[str, str]]:
    try:
        return pa.Table.from_pandas(frame, preserve_index=False), {}
    except (*UNREADABLE, TypeError, ValueError, NotImplementedError):
        pass  # one column cannot be converted, or two have one name
    names: list[str] = []
    columns: list[pa.ChunkedArray] = []
    unreadable: dict[str, str] = {}
    for k in range(frame.shape[1]):
        try:
            table = pa.Table.from_pandas(frame.iloc[:, [k]], preserve_index=False)
            names.append(table.schema.names[0])
            columns.append(table.column(0))
        except (*UNREADABLE, TypeError, ValueError, NotImplementedError):
            unreadable[str(frame.columns[k])] = _pandas_type(frame.iloc[:, k])
    return pa.table(columns, names=names), unreadable


def _pandas_type(values: Any) -> str:
    """The type of a pandas column, for messages; of mixed values all their types."""
    kinds = sorted({type(value).__name__ for value in values.dropna()[:TYPE_ROWS]})
    if str(values.dtype) != "object" or len(kinds) < 2:
        return str(values.dtype)
    return f"{MIXED} ({', '.join(kinds)})"
