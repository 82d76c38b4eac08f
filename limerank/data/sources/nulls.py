"""Values that a description lists as missing (``null_values``)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import polars as pl

from limerank.data.canonical import BLANKS, category
from limerank.data.spec import EventSource, Table


def without_nulls(
    frame: pl.DataFrame, source: EventSource | Table, lists: dict[str, str | None]
) -> pl.DataFrame:
    """The same rows, with null for each value that ``source.null_values`` lists.

    Args:
        lists: columns of several values in a row, and the separator where they are text; see
            :func:`list_columns`.
    """
    given = source.null_values
    if not given:
        return frame
    changed = []
    for values in frame:
        spellings = given if isinstance(given, tuple) else given.get(values.name, ())
        if not spellings:
            continue
        null = _spelt(values, spellings)
        if null is not None and null.any():
            values = values.set(null, None)
        if values.name in lists:
            values = _without_elements(values, spellings, lists[values.name])
        changed.append(values)
    return frame.with_columns(changed) if changed else frame


def _spelt(values: pl.Series, spellings: Iterable[str]) -> pl.Series | None:
    """Which values have one of these spellings; None: none can have one."""
    dtype = values.dtype
    if dtype == pl.String:
        text = values.str.strip_chars(BLANKS)
        found = text.is_in(list(spellings)).fill_null(False)
        numbers = [category(one) for one in spellings if _number(one) is not None]
        if numbers:  # 0 is "0.0" and "0.00" as well
            plain = text.str.replace(r"^(-?[0-9]+)\.0+$", "$1")
            found |= plain.is_in(numbers).fill_null(False)
        return found
    if dtype.is_numeric():
        given = [number for text in spellings if (number := _number(text)) is not None]
        if dtype.is_integer():
            integers = [int(number) for number in given if float(number).is_integer()]
            found = pl.Series([False]).new_from_index(0, len(values))
            for number in integers:
                found |= (values == number).fill_null(False)
            return found
        found = values.is_in([float(number) for number in given]).fill_null(False)
        return found | values.is_nan().fill_null(False)
    return None


def list_columns(source: EventSource | Table) -> dict[str, str | None]:
    """The columns that may hold several values in a row, and their separator in text."""
    if isinstance(source, EventSource):
        return {source.item: source.list_split} if source.lists else {}
    return {one.column: one.split for one in source.features if one.kind == "categorical"}


def _without_elements(values: pl.Series, spellings: Iterable[str], split: str | None) -> pl.Series:
    """Lists, or text with values between separators, without those values that are missing."""
    lists = values
    if values.dtype == pl.String and split is not None:
        lists = values.str.split(split)
    elif isinstance(values.dtype, pl.Array):
        lists = values.arr.to_list()
    if not isinstance(lists.dtype, pl.List):
        return values
    lengths = lists.list.len().fill_null(0)
    flat = lists.filter(lengths > 0).explode()
    null = _spelt(flat, spellings)
    if null is None or not null.any():
        return values
    rows = pl.Series("row", np.repeat(np.arange(len(values)), lengths.to_numpy()))
    retained = pl.DataFrame([rows, flat.alias("value")]).filter(~null)
    retained = retained.group_by("row", maintain_order=True).agg("value")
    every = pl.DataFrame([pl.Series("row", np.arange(len(values)))])
    found = every.join(retained, on="row", how="left", maintain_order="left")["value"]
    found = found.alias(values.name)
    return found if lists is values or split is None else found.list.join(split)


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else None
    return None
