"""The roles of columns, and which types of columns can have them."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from limerank.data.spec import Table

EXPECTED = {
    "id": "ids: integers or text",
    "ids": "ids, or lists of ids",
    "time": "times, or numbers",
    "request": "request ids: integers or text",
    "label": "numbers, or true and false",
    "category": "one value in each row: text, a number, true or false",
    "categories": "categories, or lists of them",
    "number": "numbers, one value in each row",
    "vector": "lists of numbers, or text",
}
"""What the column of a role must hold, for messages."""

MIXED = "mixed values"
"""Begins the type of a column whose values have several types, for messages."""

Wanted = Sequence[tuple[str, str]]
"""Columns and their roles: keys of ``EXPECTED``."""


def wanted_of_table(table: Table) -> list[tuple[str, str]]:
    """The columns that are read of a table, and the role of each."""
    roles = {"categorical": "categories", "numeric": "number", "text-vector": "vector"}
    found = [(table.id, "id")]
    found += [(feature.column, roles[feature.kind]) for feature in table.features]
    return found + ([] if table.candidate is None else [(table.candidate, "number")])


def fits(dtype: pl.DataType | None, role: str) -> bool:
    """Whether a column of this type can have a role (None: a type that is not read at all)."""
    if dtype is None or dtype in (pl.Binary, pl.Object, pl.Time, pl.Duration):
        return False
    if isinstance(dtype, (pl.List, pl.Array)):
        inner = dtype.inner
        assert isinstance(inner, pl.DataType)
        if role == "vector":
            return inner.is_numeric() or inner in (pl.Null, pl.String)
        return role in ("ids", "categories") and fits(
            inner, role[:-1] if role == "ids" else "category"
        )
    if isinstance(dtype, pl.Struct):
        return False
    if dtype == pl.Null:
        return role in ("request", "category", "categories", "number", "vector")
    if role == "vector":
        return dtype == pl.String
    if role in ("category", "categories"):
        return True
    if role == "time":
        return dtype.is_numeric() or dtype in (pl.Datetime, pl.Date, pl.String)
    if role in ("label", "number"):
        return dtype.is_numeric() or dtype in (pl.Boolean, pl.String)
    return dtype.is_numeric() or dtype == pl.String


def advice(held: str, role: str) -> str:
    """What to do about a column of a wrong type."""
    if held.startswith(MIXED):
        return "; give it one type, such as text with astype(str)"
    if role == "id" and ("list" in held.lower() or "array" in held.lower()):
        return " (for histories given as lists, set lists = true)"
    if "binary" in held.lower():
        return "; write it as text"
    if held.lower() == "null":
        return "; every value of it is missing"
    return "; write it as one of these, or leave it out"
