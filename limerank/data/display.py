"""Columns of the item table that are shown and never learned from, such as a title.

A dataset and an index hold them as text; a missing value is an empty text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

SEPARATOR = ", "
"""Between the values of a column of lists."""


def texts(frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Columns of an item table as text, without line breaks; what is missing is empty."""
    found = []
    for name in columns:
        values = frame[name]
        if isinstance(values.dtype, pl.List | pl.Array):
            values = values.cast(pl.List(pl.String)).list.join(SEPARATOR, ignore_nulls=True)
        values = values.cast(pl.String, strict=False).fill_null("")
        found.append(values.str.replace_all(r"\s+", " ").str.strip_chars().alias(name))
    return pl.DataFrame(found)


def text(value: Any) -> str | None:
    """One value of a column, such as one of JSON, as text."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return SEPARATOR.join(str(part) for part in value if part is not None)
    return str(value)
