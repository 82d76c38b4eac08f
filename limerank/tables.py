"""Tables: the content tokens and numbers of items and users.

The same functions encode a table when a dataset is prepared and when new items arrive later:
:func:`fit` learns vocabularies and scales from the rows of the training window, :func:`encode`
applies them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.errors import DataError
from limerank.schema import Feature, Table

Array = NDArray[Any]

# Values


def whole_numbers(text: pl.Series) -> pl.Series:
    """A text series as integers; null where a value is not a plainly written integer."""
    value = text.cast(pl.Int64, strict=False)
    odd = (
        (text.str.starts_with("0") & (text.str.len_bytes() > 1))
        | text.str.starts_with("+")
        | text.str.starts_with("-0")
    )
    if odd.any():
        value = value.set(odd.fill_null(False), None)
    return value


def as_text(values: pl.Series) -> pl.Series:
    """Categories as text that does not depend on the file's type: 5, 5.0 and "5" are "5"."""
    dtype = values.dtype
    if dtype == pl.Boolean:
        return values.cast(pl.Int8).cast(pl.String)
    if dtype.is_float():
        values = values.fill_nan(None)
        whole = values.cast(pl.Int64, strict=False)
        same = (whole.cast(pl.Float64) == values.cast(pl.Float64)).fill_null(False)
        return whole.cast(pl.String).zip_with(same, values.cast(pl.String))
    if dtype.is_integer():
        return values.cast(pl.String)
    text = values.cast(pl.String)
    text = text.set((text.str.len_bytes() == 0).fill_null(False), None)
    return text.str.replace(r"^(-?\d+)\.0+$", "$1")


def as_numbers(values: pl.Series) -> NDArray[np.float64]:
    """Any series as float64; NaN where a value is missing or no number."""
    dtype = values.dtype
    if dtype == pl.String:
        numbers = values.cast(pl.Float64, strict=False)
        if numbers.null_count() > values.null_count():
            lower = values.str.to_lowercase()
            numbers = numbers.zip_with(
                (lower != "true").fill_null(True), pl.Series([1.0]).new_from_index(0, len(values))
            )
            numbers = numbers.zip_with(
                (lower != "false").fill_null(True), pl.Series([0.0]).new_from_index(0, len(values))
            )
    elif dtype == pl.Null:
        numbers = values.cast(pl.Float64)
    elif dtype.is_numeric() or dtype == pl.Boolean:
        numbers = values.cast(pl.Float64, strict=False)
    else:
        raise DataError(f"column {values.name!r} holds {dtype}, expected numbers")
    if numbers.null_count():
        numbers = numbers.fill_null(float("nan"))
    return numbers.to_numpy()


def candidates(frame: pl.DataFrame, table: Table) -> NDArray[np.bool_]:
    """Which rows of an item table a ranking may offer."""
    if table.candidate is None:
        return np.ones(len(frame), bool)
    allowed: NDArray[np.bool_] = as_numbers(frame[table.candidate]) != 0
    return allowed


# Encoding


@dataclass(frozen=True)
class Encoded:
    """Content of rows: ragged tokens with weights, and normalised numbers."""

    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]
    offsets: NDArray[np.int64]
    numeric: NDArray[np.float32]


@dataclass(frozen=True)
class Encoding:
    """What :func:`fit` learned: the manifest's part, and each categorical's vocabulary."""

    manifest: dict[str, Any]
    vocabularies: dict[str, pl.DataFrame]
    """Feature name -> columns value (text) and code (Int32, from 1)."""


def values_of(frame: pl.DataFrame, feature: Feature) -> pl.DataFrame:
    """Categorical values in long form: columns row (UInt32) and value (text), no nulls."""
    column = frame[feature.column]
    if feature.split is not None:
        column = column.cast(pl.String).str.split(feature.split)
    rows = pl.Series("row", np.arange(len(frame), dtype=np.uint32))
    long = pl.DataFrame([rows, column.alias("value")])
    if isinstance(column.dtype, (pl.List, pl.Array)):
        long = long.explode("value")
        long = long.with_columns(as_text(long["value"]).alias("value"))
        if feature.split is not None:
            long = long.with_columns(pl.col("value").str.strip_chars())
        long = long.filter(pl.col("value").str.len_bytes() > 0)
        return long.unique(maintain_order=True)
    return long.with_columns(as_text(long["value"]).alias("value")).drop_nulls()


def numbers_of(frame: pl.DataFrame, feature: Feature) -> NDArray[np.float64]:
    """A numeric column after its transform; NaN: missing."""
    values = as_numbers(frame[feature.column])
    values = np.where(np.isfinite(values), values, np.nan)
    if feature.transform == "log1p":
        values = np.sign(values) * np.log1p(np.abs(values))
    return values


def vectors_of(frame: pl.DataFrame, feature: Feature, ids: pl.Series) -> NDArray[np.float32]:
    """A column of vectors as a matrix; a row of NaN: missing."""
    column = frame[feature.column]
    if column.dtype == pl.String:
        column = column.str.strip_chars().str.replace_all(r"[\s,;]+", " ").str.split(" ")
        column = column.cast(pl.List(pl.Float32), strict=False)
    elif isinstance(column.dtype, pl.Array):
        column = column.cast(pl.List(pl.Float32))
    elif isinstance(column.dtype, pl.List):
        column = column.cast(pl.List(pl.Float32), strict=False)
    else:
        raise DataError(
            f"column {feature.column!r} holds {column.dtype}, expected lists of numbers or text"
        )
    lengths = column.list.len()
    known = lengths.drop_nulls()
    dim = int(known[0]) if len(known) else 0
    wrong = (lengths != dim).fill_null(False)
    if wrong.any():
        k = int(wrong.arg_true()[0])
        raise DataError(
            f"column {feature.column!r}: the vector of {ids[k]!r} has {lengths[k]} numbers, "
            f"expected {dim} as in the first row"
        )
    flat = column.drop_nulls().explode() if dim else pl.Series([], dtype=pl.Float32)
    if flat.null_count() or flat.is_nan().any():
        raise DataError(f"column {feature.column!r} holds vectors with parts that are no numbers")
    result = np.full((len(frame), dim), np.nan, np.float32)
    result[column.is_not_null().to_numpy()] = flat.to_numpy().reshape(-1, dim)
    return result


def fit(
    frame: pl.DataFrame, features: Sequence[Feature], trained: NDArray[np.bool_], ids: pl.Series
) -> Encoding:
    """Vocabularies and scales from the rows marked ``trained``.

    Codes go by falling number of trained rows, then by value. A value in fewer than
    ``min_count`` of them has no code.
    """
    entries: list[dict[str, Any]] = []
    vocabularies: dict[str, pl.DataFrame] = {}
    tokens = columns = 0
    chosen = frame.filter(pl.Series(trained))
    for feature in features:
        entry: dict[str, Any] = {"name": feature.name, "kind": feature.kind}
        if feature.kind == "categorical":
            counts = values_of(chosen, feature).group_by("value").agg(pl.len().alias("count"))
            vocabulary = vocabulary_of(counts, feature.min_count)
            vocabularies[feature.name] = vocabulary
            entry |= {"start": tokens, "size": len(vocabulary) + 1}
            tokens += len(vocabulary) + 1
        elif feature.kind == "numeric":
            values = numbers_of(chosen, feature)
            values = values[~np.isnan(values)]
            mean = float(values.mean()) if len(values) else 0.0
            std = float(values.std()) if len(values) else 0.0
            entry |= {"column": columns, "mean": mean, "std": std if std > 0 else 1.0}
            entry["transform"] = feature.transform
            columns += 1
        else:
            vectors = vectors_of(frame, feature, ids)
            known = vectors[trained & ~np.isnan(vectors).any(1)] if vectors.size else vectors
            std = float(known.std(dtype=np.float64)) if known.size else 0.0
            entry |= {"column": columns, "dim": vectors.shape[1], "std": std if std > 0 else 1.0}
            columns += vectors.shape[1]
        entries.append(entry)
    manifest = {"features": entries, "tokens": tokens, "numeric": columns}
    return Encoding(manifest, vocabularies)


def vocabulary_of(counts: pl.DataFrame, min_count: int) -> pl.DataFrame:
    """Codes from 1 for the values of ``counts`` (columns value, count)."""
    kept = counts.filter(pl.col("count") >= min_count).sort(
        ["count", "value"], descending=[True, False]
    )
    codes = pl.Series("code", np.arange(1, len(kept) + 1, dtype=np.int32))
    return pl.DataFrame([kept["value"].cast(pl.String), codes])


def encode(
    frame: pl.DataFrame,
    features: Sequence[Feature],
    encoding: Encoding,
    ids: pl.Series,
    *,
    rows: NDArray[np.int64] | None = None,
    count: int | None = None,
) -> Encoded:
    """Tokens and numbers of a table's rows.

    Args:
        frame: the columns that ``features`` name. ``ids`` name its rows in error messages.
        rows, count: where each row of ``frame`` goes among ``count`` rows (default: in order);
            rows that nothing goes to are unknown in every feature.
    """
    count = len(frame) if count is None else count
    rows = np.arange(len(frame)) if rows is None else rows
    entries = encoding.manifest["features"]
    numeric = np.zeros((count, encoding.manifest["numeric"]), np.float32)
    parts: list[tuple[Array, Array]] = []
    lengths: list[Array] = []
    for feature, entry in zip(features, entries, strict=True):
        if feature.kind == "categorical":
            long = values_of(frame, feature).join(
                encoding.vocabularies[feature.name], on="value", how="inner", maintain_order="left"
            )
            row = rows[long["row"].to_numpy().astype(np.int64)]
            code = long["code"].to_numpy()
            order = np.argsort(row, kind="stable")
            known = np.bincount(row, minlength=count)
            ends = np.cumsum(np.maximum(known, 1))
            starts = ends - np.maximum(known, 1)
            tokens = np.full(int(ends[-1]) if count else 0, entry["start"], np.int32)
            row = row[order]
            within = np.arange(len(row)) - (np.cumsum(known) - known)[row]
            tokens[starts[row] + within] = entry["start"] + code[order]
            length = np.maximum(known, 1)
            parts.append((tokens, np.repeat((1.0 / length).astype(np.float32), length)))
            lengths.append(length)
        elif feature.kind == "numeric":
            values = (numbers_of(frame, feature) - entry["mean"]) / entry["std"]
            numeric[rows, entry["column"]] = np.nan_to_num(values, nan=0.0)
        else:
            vectors = vectors_of(frame, feature, ids)
            if vectors.shape[1] not in (0, entry["dim"]):
                raise DataError(
                    f"column {feature.column!r} holds vectors of {vectors.shape[1]} numbers, "
                    f"expected {entry['dim']}"
                )
            first = entry["column"]
            if vectors.shape[1]:
                numeric[rows, first : first + entry["dim"]] = np.nan_to_num(
                    vectors / np.float32(entry["std"]), nan=0.0
                )
    if not parts:
        empty = np.zeros(0, np.int32), np.zeros(0, np.float32)
        return Encoded(*empty, np.zeros(count + 1, np.int64), numeric)
    if all(len(tokens) == count for tokens, _ in parts):  # one value of each feature in each row
        tokens = np.stack([tokens for tokens, _ in parts], 1).ravel()
        offsets = np.arange(count + 1, dtype=np.int64) * len(parts)
        return Encoded(tokens, np.ones(len(tokens), np.float32), offsets, numeric)
    per_row = np.stack(lengths, 1)
    ends = np.cumsum(per_row.ravel())
    starts = (ends - per_row.ravel()).reshape(per_row.shape)
    total = int(ends[-1]) if count else 0
    all_tokens, all_weights = np.empty(total, np.int32), np.empty(total, np.float32)
    for k, (tokens, weights) in enumerate(parts):
        first = np.cumsum(lengths[k]) - lengths[k]
        at = np.arange(len(tokens)) + np.repeat(starts[:, k] - first, lengths[k])
        all_tokens[at], all_weights[at] = tokens, weights
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(per_row.sum(1), out=offsets[1:])
    return Encoded(all_tokens, all_weights, offsets, numeric)
