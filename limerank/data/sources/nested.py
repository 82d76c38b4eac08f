"""Fields of objects as columns: ``geo.country`` of ``{"geo": {"country": "NO"}}``.

A field of a list of objects, such as ``items.id``, is a list with its value in each object. A
column whose own name has dots comes before a field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

DEPTH = 8
"""Levels of objects within objects, at most."""
MOST_COLUMNS = 5000
"""Columns and fields of a file, at most: further ones are not found."""

Types = Mapping[str, pl.DataType | None]


def with_fields(columns: Types) -> dict[str, pl.DataType | None]:
    """The columns, and the fields of those that hold objects, with their types (None: not
    readable)."""
    found = dict(columns)
    for name, dtype in columns.items():
        _add_fields(found, name, dtype, DEPTH)
    return found


def _add_fields(
    found: dict[str, pl.DataType | None], name: str, dtype: pl.DataType | None, depth: int
) -> None:
    listed = isinstance(dtype, (pl.List, pl.Array))
    inner = dtype.inner if isinstance(dtype, (pl.List, pl.Array)) else dtype
    if not isinstance(inner, pl.Struct) or depth == 0:
        return
    for field in inner.fields:
        own = field.dtype if isinstance(field.dtype, pl.DataType) else field.dtype()
        path = f"{name}.{field.name}"
        if path in found or len(found) >= MOST_COLUMNS:
            continue
        found[path] = pl.List(own) if listed else own
        _add_fields(found, path, found[path], depth - 1)


def outer(columns: Iterable[str], known: Iterable[str]) -> list[str]:
    """The columns of a file that hold these columns and fields, each once."""
    return list(dict.fromkeys(_divided(name, set(known))[0] for name in columns))


def _divided(name: str, known: set[str]) -> tuple[str, list[str]]:
    """A column of a file, and the steps from it to a field."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        column = ".".join(parts[:end])
        if column in known:
            return column, parts[end:]
    return name, []


def field_of(frame: pl.DataFrame, name: str) -> pl.Series:
    """A column of a frame, or a field of one that holds objects."""
    column, steps = _divided(name, set(frame.columns))
    values = frame[column]
    for step in steps:
        if isinstance(values.dtype, pl.Struct):
            values = values.struct.field(step)
        else:
            if isinstance(values.dtype, pl.Array):
                values = values.arr.to_list()
            values = values.list.eval(pl.element().struct.field(step))
    return values.alias(name)


def values_at(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """The values of a column or field in JSON objects; None where one has none."""
    if "." not in name:
        return [row.get(name) for row in rows]
    first, *steps = name.split(".")
    found = []
    for row in rows:
        if name in row:
            found.append(row[name])
        elif first in row:
            found.append(_value(row[first], steps))
        else:
            column, rest = _divided(name, set(row))
            found.append(_value(row.get(column), rest))
    return found


def _value(value: Any, steps: list[str]) -> Any:
    for position, step in enumerate(steps):
        if isinstance(value, list):
            return [_value(one, steps[position:]) for one in value]
        value = value.get(step) if isinstance(value, dict) else None
    return value
