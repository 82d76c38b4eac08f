"""Files of rows: found by name, pattern or folder, and read in batches of bounded size.

Parquet, CSV, TSV and JSON lines. Each record of a file becomes a row or is counted as bad, with an
example: ``delimited`` and ``jsonlines`` cut the formats of text into records, and what the CSV
parser makes of a block is counted against them.
"""

from __future__ import annotations

import glob
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Protocol
from urllib.parse import unquote

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet

from limerank.data.canonical import BLANKS, category
from limerank.data.sources.delimited import DelimitedFile
from limerank.data.sources.jsonlines import JsonLines
from limerank.data.spec import EventSource, Table
from limerank.errors import DataError, SpecError, did_you_mean

ENDINGS = {
    "parquet": "parquet",
    "pq": "parquet",
    "csv": "csv",
    "tsv": "tsv",
    "tab": "tsv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
}
COMPRESSIONS = {"gz": "gzip", "zst": "zstd", "zstd": "zstd", "bz2": "bz2"}
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""The folder of rows without a value, as Hive and Spark write it."""
UNREADABLE = (pa.ArrowException, OSError, EOFError, UnicodeError, pl.exceptions.PolarsError)
"""What libraries raise of files that they cannot read."""
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

Wanted = Sequence[tuple[str, str]]
"""Columns and their roles: keys of ``EXPECTED``."""


# Names


def find_files(source: EventSource | Table, base: Path) -> list[Path]:
    """The files of a source, in the order in which they are read.

    A name, or a pattern that matches no file, may match folders: all files of a known format below
    them are read, but for names that begin with ``_`` or a dot.

    Raises:
        DataError: a name or a pattern matches nothing.
    """
    found: list[Path] = []
    for pattern in source.files:
        matches = [
            base / match for match in sorted(glob.glob(pattern, root_dir=base, recursive=True))
        ]
        files = [path for path in matches if path.is_file()]
        folders = [path for path in matches if path.is_dir()]
        if not files and folders:
            files = [path for folder in folders for path in _below(folder, source.format)]
            if not files:
                endings = ", ".join(f".{ending}" for ending in ENDINGS)
                raise DataError(
                    f"the folder {base / pattern} holds no file to read; expected names that end "
                    f"in {endings}, or give the format"
                )
        if not files:
            raise DataError(
                f"no file matches {pattern!r} (looked for {base / pattern}); relative names are "
                "taken from the folder of the dataset description"
            )
        found += files
    return found


def _below(folder: Path, given: str | None) -> list[Path]:
    """The files below a folder that can be read, by name."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(("_", ".")) for part in parts) or not path.is_file():
            continue
        kind, _ = _ending(path)
        if kind is not None or given is not None:
            found.append(path)
    return found


def _ending(path: Path) -> tuple[str | None, str | None]:
    """Format and compression that a file's name tells; None where it tells nothing."""
    parts = path.name.lower().split(".")[1:]
    compression = COMPRESSIONS.get(parts[-1]) if parts else None
    if compression:
        parts = parts[:-1]
    return ENDINGS.get(parts[-1]) if parts else None, compression


def file_format(path: Path, given: str | None) -> tuple[str, str | None]:
    """("parquet", "csv", "tsv" or "jsonl", compression or None) of a file."""
    ending, compression = _ending(path)
    kind = given or ending
    if kind is None:
        raise SpecError(
            f"{path}: the ending does not tell the format; give format = "
            '"parquet", "csv", "tsv" or "jsonl"'
        )
    return kind, compression


def partitions_of(path: Path, base: Path) -> dict[str, str | None]:
    """The values that folders named ``key=value`` give a file's rows (below ``base``, if it is)."""
    try:
        parts = path.relative_to(base).parts
    except ValueError:
        parts = path.parts
    found: dict[str, str | None] = {}
    for part in PurePath(*parts).parts[:-1]:
        key, equals, value = part.partition("=")
        if equals and key:
            found[unquote(key)] = None if value == NO_PARTITION else unquote(value)
    return found


# Roles


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


def _plain(dtype: pl.DataType) -> pl.DataType:
    """The type in which a column is handed on: dictionaries as text, decimals as numbers."""
    if isinstance(dtype, (pl.Categorical, pl.Enum)):
        return pl.String()
    if isinstance(dtype, pl.Decimal):
        return pl.Int64() if dtype.scale == 0 else pl.Float64()
    return dtype


def _as_plain(values: pl.Series) -> pl.Series:
    dtype = values.dtype
    if isinstance(dtype, pl.Decimal) and dtype.scale == 0:
        integers = values.cast(pl.Int64, strict=False)
        return integers if integers.null_count() == values.null_count() else values.cast(pl.String)
    plain = _plain(dtype)
    return values if plain == dtype else values.cast(plain)


# Files


class _Text(Protocol):
    """A file of text that can be read in batches of rows."""

    columns: dict[str, pl.DataType]
    repeated: set[str]
    remarks: list[str]
    bad: int
    bad_example: str | None
    several_lines: int

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]: ...

    def position(self) -> float: ...


class Reader:
    """One file of rows, read in batches of the columns that are wanted.

    Attributes:
        rows: how many there are, where the format tells.
        columns: names of the columns found, and the Polars type of each (text for CSV and TSV; for
            JSON lines as the first lines have them; None: a type that cannot be read). The keys of
            folders named ``key=value`` are columns of text, where the file has none of that name.
        bad_lines: records that could not be read, so far.
        bad_example: where the first of them is, and what it holds.
        remarks: what is worth to be told of the file, such as a header that has a name twice.
    """

    def __init__(self, path: Path, source: EventSource | Table, base: Path = Path()) -> None:
        self.path, self.source = path, source
        self._several = _several(source)
        self.kind, self.compression = file_format(path, source.format)
        self.rows: int | None = None
        self.remarks: list[str] = []
        self._text: _Text | None = None
        self._repeated: set[str] = set()
        self._types: dict[str, str] = {}
        try:
            if self.kind == "parquet":
                self.columns = self._parquet_columns()
            else:
                make = JsonLines if self.kind == "jsonl" else DelimitedFile
                self._text = make(path, source, self.kind, self.compression)
                self.columns = dict(self._text.columns)
                self._repeated = self._text.repeated
                self.remarks = list(self._text.remarks)
        except UNREADABLE as error:
            raise self._unreadable(error) from None
        found = partitions_of(path, base)
        self.partitions = {name: v for name, v in found.items() if name not in self.columns}
        self.columns |= dict.fromkeys(self.partitions, pl.String())

    def _parquet_columns(self) -> dict[str, pl.DataType | None]:
        with pyarrow.parquet.ParquetFile(self.path) as file:
            schema = file.schema_arrow
            self.rows = file.metadata.num_rows
        counts = Counter(schema.names)
        self._repeated = {name for name, count in counts.items() if count > 1}
        found: dict[str, pl.DataType | None] = {}
        for field in schema:
            self._types[field.name] = str(field.type)
            if pa.types.is_map(field.type):
                found[field.name] = None
                continue
            try:
                empty = pl.from_arrow(pa.array([], field.type))
                found[field.name] = _plain(empty.dtype)  # type: ignore[union-attr]
            except (*UNREADABLE, TypeError, ValueError, NotImplementedError):
                found[field.name] = None
        return found

    @property
    def bad_lines(self) -> int:
        return 0 if self._text is None else self._text.bad

    @property
    def bad_example(self) -> str | None:
        return None if self._text is None else self._text.bad_example

    @property
    def several_lines(self) -> int:
        """Records that go over several lines, so far."""
        return 0 if self._text is None else self._text.several_lines

    def untyped(self, column: str) -> bool:
        """Whether values of a column are text for want of types, and may stand for integers."""
        return self.kind != "parquet" or column in self.partitions

    def bounds(self, column: str) -> tuple[float, float]:
        """The least and the greatest value of an integer column as far as the file tells."""
        unknown = (-math.inf, math.inf)
        dtype = self.columns[column]
        if self.kind != "parquet" or dtype is None or not dtype.is_integer():
            return (0, 1) if dtype == pl.Boolean() else unknown
        low, high = math.inf, -math.inf
        with pyarrow.parquet.ParquetFile(self.path) as file:
            names = file.schema_arrow.names
            column_at = names.index(column)
            if file.metadata.num_columns != len(names):
                return unknown
            for k in range(file.metadata.num_row_groups):
                statistics = file.metadata.row_group(k).column(column_at).statistics
                if statistics is None:
                    return unknown
                if statistics.has_min_max:
                    low, high = min(low, statistics.min), max(high, statistics.max)
                elif statistics.num_values:
                    return unknown
        return low, high

    def position(self, rows: int) -> float:
        """About how many bytes of the file have been read, with ``rows`` rows taken of it."""
        if self._text is None:
            return self.path.stat().st_size * rows / max(self.rows or 0, 1)
        return self._text.position()

    def require(self, wanted: Wanted) -> None:
        """Raise a :class:`DataError` where the file lacks a column, has it twice, or has it in a
        type that is of no use for its role."""
        names = list(dict.fromkeys(name for name, _ in wanted))
        missing = sorted(name for name in names if name not in self.columns)
        if missing:
            hint = did_you_mean(missing[0], self.columns)
            raise DataError(
                f"{self.path} has no column {', '.join(map(repr, missing))}; "
                f"columns found: {', '.join(name or repr(name) for name in self.columns)}"
                f"{hint or self._header_hint()}"
            )
        twice = sorted(set(names) & self._repeated)
        if twice:
            raise DataError(
                f"{self.path} has several columns with the name {twice[0]!r}; rename all but one"
            )
        for name, role in wanted:
            if not fits(self.columns[name], role):
                dtype = self.columns[name]
                held = self._types.get(name, "?") if dtype is None else str(dtype)
                raise DataError(
                    f"{self.path}: column {name!r} holds {held}, expected {EXPECTED[role]}"
                    f"{_advice(held, role)}"
                )

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors about values, which name their column, name this file as well."""
        try:
            yield
        except DataError as error:
            if str(self.path) in str(error):
                raise
            raise DataError(f"{self.path}: {error}") from None

    def _header_hint(self) -> str:
        names = [name for name in self.columns if name not in self.partitions]
        if self.kind in ("csv", "tsv") and names:
            if all(len(name) > 1 and name[0] == name[-1] and name[0] in "\"'" for name in names):
                return f"; the names stand in quotes: set quote = {names[0][0]!r}"
            if len(names) == 1 and not self._repeated and not self.source.columns:
                return "; all names stand in one: set separator"
        return ""

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        """Batches of about ``size`` bytes with these columns, which must exist."""
        columns = list(dict.fromkeys(columns))
        own = [name for name in columns if name not in self.partitions]
        try:
            for frame in self._own_batches(own, size):
                added = [
                    pl.Series(name, [self.partitions[name]], pl.String).new_from_index(
                        0, len(frame)
                    )
                    for name in columns
                    if name in self.partitions
                ]
                frame = frame.with_columns(added) if added else frame
                yield self._without_nulls(frame.select(columns))
        except UNREADABLE as error:
            raise self._unreadable(error) from None

    def _own_batches(self, columns: list[str], size: int) -> Iterator[pl.DataFrame]:
        if self._text is not None:
            yield from self._text.batches(columns, size)
            return
        rows = max(size // (10 * max(len(columns), 1)), 1024)
        with pyarrow.parquet.ParquetFile(self.path, buffer_size=1 << 20) as file:
            read = columns or file.schema_arrow.names[:1]
            for batch in file.iter_batches(rows, columns=read):
                frame = pl.DataFrame(pl.from_arrow(batch)).select(read)
                yield frame.with_columns(_as_plain(frame[name]) for name in read)

    def _without_nulls(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Values that the description says are missing become null."""
        given = self.source.null_values
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
            if values.name in self._several:
                values = _without_elements(values, spellings, self._several[values.name])
            changed.append(values)
        return frame.with_columns(changed) if changed else frame

    def _unreadable(self, error: BaseException) -> DataError:
        message = (str(error) or type(error).__name__).splitlines()[0]
        hint = ""
        if "UTF8" in message or "utf-8" in message or isinstance(error, UnicodeError):
            hint = f'; it is not "{self.source.encoding}": give the file\'s encoding'
        return DataError(f"{self.path} cannot be read as {self.kind}: {message}{hint}")


def _advice(held: str, role: str) -> str:
    """What to do about a column of a wrong type."""
    if role == "id" and ("list" in held.lower() or "array" in held.lower()):
        return " (for histories given as lists, set lists = true)"
    if "binary" in held.lower():
        return "; write it as text"
    if held.lower() == "null":
        return "; every value of it is missing"
    return "; write it as one of these, or leave it out"


def _spelt(values: pl.Series, spellings: Iterable[str]) -> pl.Series | None:
    """Which values are written in one of these ways; None: none can be."""
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


def _several(source: EventSource | Table) -> dict[str, str | None]:
    """The columns that may hold several values in a row, and what stands between them in text."""
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


def in_one_file(table: Table, path: Path) -> Table:
    """The layout of a table for another file of its rows: the format is told by its ending."""
    kind, _ = _ending(path)
    own: dict[str, object] = {"files": (glob.escape(path.name),), "format": None}
    if kind in ("parquet", "jsonl"):  # which name their columns themselves
        own["columns"] = ()
    elif kind is None:
        own["format"] = table.format
    return table.model_copy(update=own)


def read_table(table: Table, base: Path, columns: Sequence[str]) -> tuple[pl.DataFrame, int]:
    """All rows of a table's files, and how many records could not be read."""
    frames, bad = [], 0
    for path in find_files(table, base):
        reader = Reader(path, table, base)
        reader.require([(name, role) for name, role in wanted_of_table(table) if name in columns])
        frames += list(reader.batches(columns, 16 << 20))
        bad += reader.bad_lines
    if not frames:
        raise DataError(f"{', '.join(table.files)}: the table has no rows")
    return concat(frames), bad


def concat(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Batches one below the other; columns whose types differ between them become text, where no
    type of numbers holds both."""
    for name in frames[0].columns:
        types = {frame[name].dtype for frame in frames} - {pl.Null()}
        if len(types) > 1 and pl.String() in types:
            frames = [frame.with_columns(_texts(frame[name])) for frame in frames]
    return pl.concat(frames, how="vertical_relaxed")


def _texts(values: pl.Series) -> pl.Series:
    return values if values.dtype.is_nested() else values.cast(pl.String)
