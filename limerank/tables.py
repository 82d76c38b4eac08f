"""Tables: files of rows, and the content tokens and numbers of items and users.

The same functions encode a table when a dataset is prepared and when new items arrive later:
:func:`fit` learns vocabularies and scales from the rows of the training window, :func:`encode`
applies them.
"""

from __future__ import annotations

import glob
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from limerank.errors import DataError, SpecError
from limerank.schema import EventSource, Feature, Table

Array = NDArray[Any]

ENDINGS = {"parquet": "parquet", "pq": "parquet", "csv": "csv", "tsv": "tsv", "tab": "tsv"}
COMPRESSIONS = {"gz": "gzip", "zst": "zstd", "zstd": "zstd", "bz2": "bz2"}
SEPARATOR = "\x1f"
"""Stands for separators of more than one character while a file is read."""


# Files


def find_files(source: EventSource | Table, base: Path) -> list[Path]:
    """The files of a source, in the order in which they are read.

    Raises:
        DataError: a name or a pattern matches nothing.
    """
    found: list[Path] = []
    for pattern in source.files:
        matches = sorted(glob.glob(pattern, root_dir=base, recursive=True))
        files = [base / match for match in matches if (base / match).is_file()]
        if not files:
            raise DataError(
                f"no file matches {pattern!r} (looked for {base / pattern}); relative names are "
                "taken from the folder of the dataset description"
            )
        found += files
    return found


def file_format(path: Path, given: str | None) -> tuple[str, str | None]:
    """("parquet", "csv" or "tsv", compression or None) of a file."""
    parts = path.name.lower().split(".")[1:]
    compression = COMPRESSIONS.get(parts[-1]) if parts else None
    if compression:
        parts = parts[:-1]
    kind = given or (ENDINGS.get(parts[-1]) if parts else None)
    if kind is None:
        raise SpecError(
            f'{path}: the ending does not tell the format; give format = "parquet", "csv" or "tsv"'
        )
    return kind, compression


class _Replaced(io.RawIOBase):
    """A stream of bytes with each ``old`` replaced by one byte ``new``."""

    def __init__(self, stream: Any, old: bytes, new: bytes) -> None:
        self._stream, self._old, self._new = stream, old, new
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = 1 << 20 if size is None or size < 0 else size
        while True:
            data = self._stream.read(size)
            whole = self._rest + data
            if not data:
                self._rest = b""
                return whole.replace(self._old, self._new)
            keep = 0
            for k in range(1, len(self._old)):
                if whole.endswith(self._old[:k]):
                    keep = k
            end = len(whole) - keep
            self._rest = whole[end:]
            if end:
                return whole[:end].replace(self._old, self._new)


class Reader:
    """One file of rows, read in batches of the columns that are wanted.

    Attributes:
        rows: how many there are, where the format tells.
        columns: names of the columns found, and the Polars type of each (text for CSV and TSV).
        bad_lines: lines that had another number of fields than the header, so far.
    """

    def __init__(self, path: Path, source: EventSource | Table) -> None:
        self.path, self.source = path, source
        self.kind, self.compression = file_format(path, source.format)
        self.bad_lines = 0
        self.rows: int | None = None
        self._raw: Any = None
        try:
            self.columns = self._find_columns()
        except (pa.ArrowInvalid, OSError) as error:
            raise self._unreadable(error) from None

    def _find_columns(self) -> dict[str, pl.DataType]:
        if self.kind == "parquet":
            with pyarrow.parquet.ParquetFile(self.path) as file:
                schema = file.schema_arrow
                self.rows = file.metadata.num_rows
            return dict(pl.DataFrame(schema.empty_table()).schema)
        if self.source.columns:
            return {name: pl.String() for name in self.source.columns}
        with self._text_stream() as stream, self._open_csv(stream, 1 << 20, None) as reader:
            return {name: pl.String() for name in reader.schema.names}

    def _text_stream(self) -> Any:
        stream = self._raw = pa.OSFile(str(self.path), "rb")
        if self.compression:
            stream = pa.CompressedInputStream(stream, self.compression)
        encoding = self.source.encoding.lower().replace("_", "-")
        if encoding not in ("utf-8", "utf8"):
            stream = pa.transcoding_input_stream(stream, encoding, "utf-8")
        separator = self.source.separator
        if separator is not None and len(separator) > 1:
            replaced = _Replaced(stream, separator.encode(), SEPARATOR.encode())
            stream = pa.PythonFile(replaced, mode="r")
        return stream

    def _open_csv(self, stream: Any, block: int, columns: list[str] | None) -> Any:
        separator = self.source.separator or ("\t" if self.kind == "tsv" else ",")
        if len(separator) > 1:
            separator = SEPARATOR
        quotes = self.kind == "csv" and self.source.separator in (None, ",", ";")

        def count(_: Any) -> str:
            self.bad_lines += 1
            return "skip"

        names = list(self.source.columns) or None
        return pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=block, column_names=names),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=separator,
                quote_char='"' if quotes else False,
                newlines_in_values=quotes and isinstance(self.source, Table),
                invalid_row_handler=count if columns is not None else (lambda _: "skip"),
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=None if columns is None else {c: pa.string() for c in columns},
                include_columns=columns,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )

    def bounds(self, column: str) -> tuple[float, float]:
        """The least and the greatest value of an integer column as far as the file tells."""
        unknown = (-math.inf, math.inf)
        if self.kind != "parquet" or not self.columns[column].is_integer():
            return (0, 1) if self.columns[column] == pl.Boolean() else unknown
        low, high = math.inf, -math.inf
        with pyarrow.parquet.ParquetFile(self.path) as file:
            place = list(self.columns).index(column)
            if file.metadata.num_columns != len(self.columns):
                return unknown
            for k in range(file.metadata.num_row_groups):
                statistics = file.metadata.row_group(k).column(place).statistics
                if statistics is None:
                    return unknown
                if statistics.has_min_max:
                    low, high = min(low, statistics.min), max(high, statistics.max)
                elif statistics.num_values:
                    return unknown
        return low, high

    def position(self, rows: int) -> float:
        """About how many bytes of the file have been read, with ``rows`` rows taken of it."""
        if self.rows is not None:
            return self.path.stat().st_size * rows / max(self.rows, 1)
        return float(self._raw.tell()) if self._raw is not None and not self._raw.closed else 0.0

    def require(self, columns: Iterable[str]) -> None:
        """Raise a :class:`DataError` where the file lacks one of ``columns``."""
        missing = sorted({name for name in columns if name not in self.columns})
        if missing:
            raise DataError(
                f"{self.path} has no column {', '.join(map(repr, missing))}; "
                f"columns found: {', '.join(self.columns)}"
            )

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        """Batches of about ``size`` bytes with these columns, which must exist."""
        columns = list(dict.fromkeys(columns))
        try:
            if self.kind == "parquet":
                rows = max(size // (10 * len(columns)), 1024)
                with pyarrow.parquet.ParquetFile(self.path, buffer_size=1 << 20) as file:
                    for batch in file.iter_batches(rows, columns=columns):
                        yield pl.DataFrame(pl.from_arrow(batch)).select(columns)
            elif columns:
                # A block of text, in work at several places, takes some twenty times its size.
                block = max(size // 4, 1 << 20)
                with (
                    self._text_stream() as stream,
                    self._open_csv(stream, block, columns) as reader,
                ):
                    for batch in reader:
                        yield pl.DataFrame(pl.from_arrow(batch))
        except (pa.ArrowInvalid, OSError) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> DataError:
        hint = "; give the file's encoding" if "UTF8" in str(error) else ""
        return DataError(f"{self.path} cannot be read as {self.kind}: {error}{hint}")


def read_table(table: Table, base: Path, columns: Sequence[str]) -> tuple[pl.DataFrame, int]:
    """All rows of a table's files, and how many lines could not be parsed."""
    frames, bad = [], 0
    for path in find_files(table, base):
        reader = Reader(path, table)
        reader.require(columns)
        frames += list(reader.batches(columns, 16 << 20))
        bad += reader.bad_lines
    if not frames:
        raise DataError(f"{', '.join(table.files)}: the table has no rows")
    return pl.concat(frames, how="vertical_relaxed"), bad


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
