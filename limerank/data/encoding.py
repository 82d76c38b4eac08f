"""Tables: the content tokens and numbers of items and users.

The same functions encode a table when a dataset is prepared and when new items arrive later:
:func:`fit` learns vocabularies and scales from the rows of the training window, :func:`encode`
applies them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data import display
from limerank.data.canonical import (
    BLANKS,
    categories,
    category,
    category_list,
    external_id,
    number,
    numbers,
)
from limerank.data.spec import Feature, Table
from limerank.errors import DataError, FormatError

Array = NDArray[Any]

# Values


def frame_of(table: Table, rows: Sequence[Mapping[str, Any]], *, ids: bool = True) -> pl.DataFrame:
    """Rows given as mappings, such as JSON, as a frame with the columns that a table reads.

    The id column becomes integers or text (:func:`limerank.data.canonical.external_id`), columns of
    categories text or lists of it, numeric ones float64: the types do not depend on the rows.
    A column that a row lacks is missing there. Without ``ids`` the id column is read only where a
    feature reads it.

    Raises:
        DataError: a value is not valid for its column; the message names both.
    """
    kinds: dict[str, list[Feature]] = {}
    for feature in table.features:
        kinds.setdefault(feature.column, []).append(feature)
    columns: dict[str, pl.Series] = {}
    for name in table.read:
        values = [row.get(name) for row in rows]
        features = kinds.get(name, [])
        if name == table.id and ids:
            given = [
                None if value in (None, "") else external_id(f"{name!r} column's", value)
                for value in values
            ]
            text = any(isinstance(id, str) for id in given)
            of_one_type = [None if id is None else str(id) for id in given] if text else given
            columns[name] = pl.Series(name, of_one_type, dtype=pl.String if text else pl.Int64)
            continue
        if name == table.id and not features:
            continue
        if not features and name in table.display and name != table.candidate:
            columns[name] = pl.Series(name, [display.text(value) for value in values], pl.String)
            continue
        try:
            columns[name] = _column_of(name, values, features)
        except (
            DataError,
            TypeError,
            ValueError,
            OverflowError,
            pl.exceptions.PolarsError,
        ) as error:
            raise DataError(f"column {name!r}: {error}") from None
    return pl.DataFrame(list(columns.values()))


def _column_of(name: str, values: list[Any], features: list[Feature]) -> pl.Series:
    """A column of :func:`frame_of`, for the features that read it."""
    kinds = {feature.kind for feature in features}
    if "text-vector" in kinds:
        vectors = [_vector(value) for value in values]
        return pl.Series(name, vectors, dtype=pl.List(pl.Float32))
    if "categorical" in kinds:
        split = next((f.split for f in features if f.split is not None), None)
        if split is not None or any(isinstance(value, (list, tuple)) for value in values):
            lists = [category_list(value, split) for value in values]
            return pl.Series(name, lists, dtype=pl.List(pl.String))
        return pl.Series(name, [category(value) for value in values], dtype=pl.String)
    found = [number(value) for value in values]
    for value, parsed in zip(values, found, strict=True):
        if math.isnan(parsed) and category(value) is not None:
            raise DataError(f"the value {value!r:.80} is not a number")
    return pl.Series(name, found, dtype=pl.Float64)


def _vector(value: Any) -> list[float] | None:
    if isinstance(value, str):
        value = re.split(r"[\s,;]+", value.strip(BLANKS)) if value.strip(BLANKS) else None
    if value is None:
        return None
    found = [number(part) for part in value]
    if not all(map(math.isfinite, found)):
        raise DataError(f"the vector {value!r:.80} has parts that are not numbers")
    return found


def candidates(frame: pl.DataFrame, table: Table) -> NDArray[np.bool_]:
    """Which rows of an item table are candidates of rankings, bool."""
    if table.candidate is None:
        return np.ones(len(frame), bool)
    allowed: NDArray[np.bool_] = numbers(frame[table.candidate]) != 0
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
    """The result of :func:`fit`: the part of the manifest, and the vocabulary of each categorical
    feature."""

    manifest: dict[str, Any]
    vocabularies: dict[str, pl.DataFrame]
    """Feature name -> columns value (text) and code (Int32, from 1)."""


def values_of(frame: pl.DataFrame, feature: Feature) -> pl.DataFrame:
    """Categorical values in long form: columns row (UInt32) and value (text), no nulls.

    A feature with ``split`` takes text with the separator or lists, as
    :func:`limerank.data.canonical.category_list` does.
    """
    column = frame[feature.column]
    listed = isinstance(column.dtype, (pl.List, pl.Array))
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    if feature.split is not None and column.dtype == pl.String:
        column, listed = column.str.split(feature.split), True
    rows = pl.Series("row", np.arange(len(frame), dtype=np.uint32))
    long = pl.DataFrame([rows, column.alias("value")])
    if listed:
        long = long.explode("value")
        long = long.with_columns(categories(long["value"].alias(feature.column)).alias("value"))
        return long.drop_nulls().unique(maintain_order=True)
    return long.with_columns(categories(column).alias("value")).drop_nulls()


def numbers_of(frame: pl.DataFrame, feature: Feature) -> NDArray[np.float64]:
    """A numeric column after its transform, f64; NaN: missing."""
    values = numbers(frame[feature.column])
    return transformed(np.where(np.isfinite(values), values, np.nan), feature.transform)


def transformed(values: NDArray[np.float64], transform: str) -> NDArray[np.float64]:
    """Numbers after the ``transform`` of their feature: "none", or "log1p" with their sign."""
    return np.sign(values) * np.log1p(np.abs(values)) if transform == "log1p" else values


def vectors_of(frame: pl.DataFrame, feature: Feature, ids: pl.Series) -> NDArray[np.float32]:
    """A column of vectors as a matrix; a row of NaN: missing."""
    column = frame[feature.column]
    if column.dtype == pl.String:
        column = column.str.strip_chars().str.replace_all(r"[\s,;]+", " ").str.split(" ")
        column = column.cast(pl.List(pl.Float32), strict=False)
    elif isinstance(column.dtype, pl.Array):
        column = column.cast(pl.List(pl.Float32))
    elif isinstance(column.dtype, pl.List) or column.dtype == pl.Null:
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
    if dim == 0:  # all are missing or empty
        return np.full((len(frame), 0), np.nan, np.float32)
    flat = column.drop_nulls().explode()
    if flat.null_count() or not flat.is_finite().all():
        raise DataError(f"column {feature.column!r} holds vectors with parts that are not numbers")
    result = np.full((len(frame), dim), np.nan, np.float32)
    result[column.is_not_null().to_numpy()] = flat.to_numpy().reshape(-1, dim)
    return result


def fit(
    frame: pl.DataFrame,
    features: Sequence[Feature],
    trained: NDArray[np.bool_],
    ids: pl.Series,
    earlier: Encoding | None = None,
) -> Encoding:
    """Vocabularies and scales from the rows marked ``trained``.

    Codes go by falling number of trained rows, then by value. A value in fewer than
    ``min_count`` of them has no code.

    Args:
        frame: the columns that ``features`` name.
        features: in the order of the encoding.
        trained: the rows to learn from, bool.
        ids: of the rows, for messages.
        earlier: an encoding of these features, or some of them, that is used again: its codes and
            scales stay as they are, and new values get the codes behind its own.
    """
    known = {} if earlier is None else {one["name"]: one for one in earlier.manifest["features"]}
    entries: list[dict[str, Any]] = []
    vocabularies: dict[str, pl.DataFrame] = {}
    tokens = columns = 0
    chosen = frame.filter(pl.Series(trained))
    for feature in features:
        entry: dict[str, Any] = {"name": feature.name, "kind": feature.kind}
        if feature.kind == "categorical":
            counts = values_of(chosen, feature).group_by("value").agg(pl.len().alias("count"))
            before = None if earlier is None else earlier.vocabularies.get(feature.name)
            vocabulary = vocabulary_of(counts, feature.min_count, before)
            vocabularies[feature.name] = vocabulary
            entry |= {"start": tokens, "size": len(vocabulary) + 1}
            tokens += len(vocabulary) + 1
        elif feature.name in known:
            entry |= known[feature.name] | {"column": columns}
            columns += entry.get("dim", 1)
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
            full = vectors[trained & ~np.isnan(vectors).any(1)] if vectors.size else vectors
            std = float(full.std(dtype=np.float64)) if full.size else 0.0
            entry |= {"column": columns, "dim": vectors.shape[1], "std": std if std > 0 else 1.0}
            columns += vectors.shape[1]
        entries.append(entry)
    manifest = {"features": entries, "tokens": tokens, "numeric": columns}
    return Encoding(manifest, vocabularies)


def vocabulary_of(
    counts: pl.DataFrame, min_count: int, earlier: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Codes from 1 for the values of ``counts`` (columns value, count); those of an ``earlier``
    vocabulary stay, and come first."""
    if earlier is not None:
        counts = counts.filter(~counts["value"].cast(pl.String).is_in(earlier["value"].to_list()))
    frequent = counts.filter(pl.col("count") >= min_count).sort(
        ["count", "value"], descending=[True, False]
    )
    first = 1 if earlier is None else len(earlier) + 1
    codes = pl.Series("code", np.arange(first, first + len(frequent), dtype=np.int32))
    new = pl.DataFrame([frequent["value"].cast(pl.String), codes])
    return new if earlier is None else pl.concat([earlier.select("value", "code"), new])


def read_vocabulary(folder: Path, name: str) -> pl.DataFrame:
    """The vocabulary ``name``, such as ``item_category``, of a dataset's or a run's folder.

    Its values are brought to the form of :mod:`limerank.data.canonical`: values written before a
    rule was added are found as well. Columns value (text) and code (Int32).

    Raises:
        FormatError: the file is missing or damaged.
    """
    table = _vocabulary(folder, name, {"value": (pl.String,), "code": (pl.Int32,)})
    codes = table["code"]
    if codes.null_count() or not codes.is_between(1, len(table)).all():
        raise _damaged(folder, name, "its codes are not 1, 2, ...")
    return (
        table.with_columns(categories(table["value"]).alias("value"))
        .drop_nulls()
        .unique("value", keep="first", maintain_order=True)
    )


def read_vocabulary_ids(folder: Path, name: str) -> pl.Series:
    """The external ids ``name``, such as ``items``, of a dataset's or a run's folder, by row.

    Raises:
        FormatError: the file is missing or damaged.
    """
    return _vocabulary(folder, name, {"id": (pl.Int64, pl.String)})["id"]


def _vocabulary(folder: Path, name: str, columns: Mapping[str, tuple[Any, ...]]) -> pl.DataFrame:
    path = folder / "vocab" / f"{name}.parquet"
    if not path.is_file():
        raise FormatError(f"{folder} is damaged: it has no vocab/{name}.parquet")
    try:
        with open(path, "rb") as file:  # Polars would take a pattern
            table = pl.read_parquet(file.read())
    except (OSError, ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _damaged(folder, name, str(error)) from None
    for column, kinds in columns.items():
        if column not in table.columns or table[column].dtype not in kinds:
            raise _damaged(folder, name, f"it has no column {column} of {kinds[0]}")
    return table


def _damaged(folder: Path, name: str, why: str) -> FormatError:
    return FormatError(
        f"{folder / 'vocab' / name}.parquet is damaged ({why:.200}); restore {folder}, or make it "
        "again"
    )


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
        rows, count: the position of each row of ``frame`` among ``count`` rows (default: in order);
            the other rows are unknown in every feature.
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
