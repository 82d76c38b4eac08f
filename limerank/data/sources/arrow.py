"""Columns of Arrow data, as Polars series of plain types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import polars as pl
import pyarrow as pa

from limerank.data.sources.nested import field_of, with_fields

UNREADABLE = (pa.ArrowException, OSError, EOFError, UnicodeError, pl.exceptions.PolarsError)
"""What libraries raise for data that they cannot read."""


def arrow_columns(schema: pa.Schema) -> tuple[dict[str, pl.DataType | None], set[str]]:
    """The columns of a schema and the fields of objects with their Polars types (None: not
    readable), and repeated names."""
    counts = Counter(schema.names)
    found: dict[str, pl.DataType | None] = {}
    for field in schema:
        if pa.types.is_map(field.type):
            found[field.name] = None
            continue
        try:
            empty = pl.from_arrow(pa.array([], field.type))
            found[field.name] = _plain(empty.dtype)  # type: ignore[union-attr]
        except (*UNREADABLE, TypeError, ValueError, NotImplementedError):
            found[field.name] = None
    return with_fields(found), {name for name, count in counts.items() if count > 1}


def type_names(schema: pa.Schema) -> dict[str, str]:
    """The Arrow type of each column, for messages."""
    return {field.name: str(field.type) for field in schema}


def rows_of_batch(columns: int, size: int) -> int:
    """How many rows of so many columns take about ``size`` bytes."""
    return max(size // (10 * max(columns, 1)), 1024)


def plain_frame(data: pa.RecordBatch | pa.Table, columns: Iterable[str]) -> pl.DataFrame:
    """These columns and fields of Arrow data in their plain types."""
    frame = pl.DataFrame(pl.from_arrow(data))
    return pl.DataFrame([_as_plain(field_of(frame, name)) for name in columns])


def _plain(dtype: pl.DataType) -> pl.DataType:
    """The type in which a column is read: dictionaries as text, decimals as numbers, and so those
    in lists and objects."""
    if isinstance(dtype, pl.List):
        return pl.List(_plain(_typed(dtype.inner)))
    if isinstance(dtype, pl.Struct):
        return pl.Struct([pl.Field(one.name, _plain(_typed(one.dtype))) for one in dtype.fields])
    if isinstance(dtype, (pl.Categorical, pl.Enum)):
        return pl.String()
    if isinstance(dtype, pl.Decimal):
        return pl.Int64() if dtype.scale == 0 else pl.Float64()
    return dtype


def _typed(dtype: Any) -> pl.DataType:
    """A type, given as such or by its class."""
    found: pl.DataType = dtype if isinstance(dtype, pl.DataType) else dtype()
    return found


def _as_plain(values: pl.Series) -> pl.Series:
    dtype = values.dtype
    if isinstance(dtype, pl.Decimal) and dtype.scale == 0:
        integers = values.cast(pl.Int64, strict=False)
        return integers if integers.null_count() == values.null_count() else values.cast(pl.String)
    plain = _plain(dtype)
    return values if plain == dtype else values.cast(plain)
