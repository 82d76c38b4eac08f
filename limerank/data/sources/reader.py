"""Rows as a description reads them, and how its files and frames are opened."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from limerank.data.formats import FORMATS
from limerank.data.sources.arrow import UNREADABLE
from limerank.data.sources.frames import FrameRows
from limerank.data.sources.nulls import list_columns, without_nulls
from limerank.data.sources.paths import Partitions, file_format, find_files, partitions_of
from limerank.data.sources.roles import EXPECTED, Wanted, advice, fits, wanted_of_table
from limerank.data.sources.rows import FileRows, Rows
from limerank.data.sources.selection import Selection
from limerank.data.spec import EventSource, Table
from limerank.errors import DataError, StorageError, did_you_mean
from limerank.storage.logs import LogPath, RemoteFile
from limerank.storage.systems import failure

FIELDS = 8
"""Fields of objects that a message lists."""


class Reader:
    """Rows of one file or frame as a description reads them: with checked columns, the values of
    partitions, and null for each value that the description lists as missing.

    Args:
        rows: of a file or a frame.
        source: the part of the description that they belong to.
        partitions: columns that have one value in all rows, by the names of folders; one that
            ``rows`` has as well is refused where it is read.

    Attributes:
        columns: names, and the Polars type of each (text for CSV and TSV; for JSON lines as the
            first lines have them; None: a type that cannot be read).
    """

    def __init__(
        self,
        rows: Rows,
        source: EventSource | Table,
        partitions: Partitions | None = None,
    ) -> None:
        self.rows, self.source = rows, source
        self.name = rows.name
        self._lists = list_columns(source)
        given = partitions or {}
        self._conflicts = {name: one for name, one in given.items() if name in rows.columns}
        self.partitions = {name: one for name, one in given.items() if name not in rows.columns}
        self.selection = Selection(source)
        self.columns = self.selection.types(
            rows.columns | {name: one.dtype for name, one in self.partitions.items()}, self.name
        )

    def untyped(self, column: str) -> bool:
        """Whether values of a column are text for lack of types, and may be integers."""
        if column in self.partitions:
            return self.partitions[column].dtype == pl.String
        return not self.rows.typed

    def bounds(self, column: str) -> tuple[float, float]:
        """The least and the greatest value of a column of integers; infinite: not known."""
        if column in self.partitions:
            value = self.partitions[column][0]
            return (value, value) if isinstance(value, int) else (-math.inf, math.inf)
        return self.rows.bounds(column)

    def require(self, wanted: Wanted) -> None:
        """Raise a :class:`DataError` where the file lacks a column, has it twice, or has it in a
        type that is of no use for its role."""
        names = self.selection.needed([name for name, _ in wanted])
        missing = sorted(name for name in names if name not in self.columns)
        if missing:
            hint = did_you_mean(missing[0], self.columns)
            raise DataError(
                f"{self.name} has no column {', '.join(map(repr, missing))}; "
                f"columns found: {', '.join(name or repr(name) for name in self.columns)}"
                f"{hint or self.rows.header_hint()}"
            )
        for name in names:
            if name in self._conflicts:
                raise DataError(
                    f"{self.name} has a column {name!r}, and the folder "
                    f"{name}={self._conflicts[name][0]} that it is in gives its rows a column of "
                    "the same name; rename the column or the folders, so that it is clear which "
                    "one is read"
                )
        twice = sorted(set(names) & self.rows.repeated)
        if twice:
            raise DataError(
                f"{self.name} has several columns with the name {twice[0]!r}; rename all but one"
            )
        for name, role in wanted:
            if not fits(self.columns[name], role):
                dtype = self.columns[name]
                held = self.rows.type_names.get(name, "?") if dtype is None else str(dtype)
                raise DataError(
                    f"{self.name}: column {name!r} holds {held}, expected {EXPECTED[role]}"
                    f"{self._fields_of(name) or advice(held, role)}"
                )

    def _fields_of(self, name: str) -> str:
        """Advice about a column that holds objects, or lists of them; empty: it does not."""
        fields = [one for one in self.columns if one.startswith(f"{name}.")]
        outside = [name, *(name[:k] for k in range(len(name)) if name[k] == ".")]
        lists = [one for one in outside if isinstance(self.columns.get(one), (pl.List, pl.Array))]
        if not fields and "." not in name:
            return ""
        found = f"; name one of its fields {', '.join(fields[:FIELDS])}" if fields else ""
        if lists:
            found += f'; each = "{min(lists, key=len)}" makes a row of every element'
        return found

    @contextmanager
    def named(self) -> Iterator[None]:
        """Adds the name of the file or frame to errors about the values of a column."""
        try:
            yield
        except DataError as error:
            if self.name in str(error):
                raise
            raise DataError(f"{self.name}: {error}") from None

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        """Batches of about ``size`` bytes with these columns, which must exist."""
        wanted = list(dict.fromkeys(columns))
        columns = self.selection.needed(wanted)
        own = [name for name in columns if name not in self.partitions]
        self.selection.begin()
        try:
            for frame in self.rows.batches(own, size):
                added = [
                    self.partitions[name].new_from_index(0, len(frame))
                    for name in columns
                    if name in self.partitions
                ]
                frame = frame.with_columns(added) if added else frame
                frame = self.selection.apply(frame.select(columns)).select(wanted)
                yield without_nulls(frame, self.source, self._lists)
        except UNREADABLE as error:
            path = self.rows.path if isinstance(self.rows, FileRows) else self.name
            raise _unreadable(path, self.rows.kind, self.source, error) from None


def open_files(
    paths: Sequence[LogPath], source: EventSource | Table, base: Path = Path()
) -> list[Reader]:
    """Open files of a source.

    Args:
        base: names of folders below it may give columns; see
            :func:`~limerank.data.sources.paths.partitions_of`.

    Raises:
        DataError: a file cannot be read.
        SpecError: its format is not known.
        StorageError: its storage cannot be reached.
    """
    partitions = partitions_of(paths, base)
    return [_open_file(*one, source) for one in zip(paths, partitions, strict=True)]


def _open_file(path: LogPath, partitions: Partitions, source: EventSource | Table) -> Reader:
    kind, compression = file_format(path, source.format)
    module, _, name = FORMATS[kind].reads.partition(":")
    format_class: type[FileRows] = getattr(importlib.import_module(module), name)
    try:
        rows = format_class(path, source, kind, compression)
    except UNREADABLE as error:
        raise _unreadable(path, kind, source, error) from None
    return Reader(rows, source, partitions)


def open_source(
    source: EventSource | Table, base: Path, frame: object | None = None, name: str = ""
) -> list[Reader]:
    """Readers of all rows of a source, in their order.

    Args:
        source: of events, or a table.
        base: the folder that its names of files begin in.
        frame: the rows themselves, in place of files; None: its files are read.
        name: of the frame, for messages.

    Raises:
        DataError: a file is missing, or a file or the frame cannot be read.
    """
    if frame is not None:
        return [Reader(FrameRows(frame, name), source)]
    return open_files(find_files(source, base), source, base)


def _unreadable(
    path: LogPath | str, kind: str, source: EventSource | Table, error: BaseException
) -> DataError | StorageError:
    if isinstance(path, RemoteFile) and (found := failure(path.uri, error)) is not None:
        return found
    message = (str(error) or type(error).__name__).splitlines()[0]
    hint = ""
    if "UTF8" in message or "utf-8" in message or isinstance(error, UnicodeError):
        hint = f'; it is not "{source.encoding}": give the file\'s encoding'
    return DataError(f"{path} cannot be read as {kind}: {message}{hint}")


def read_table(table: Table, base: Path, columns: Sequence[str]) -> tuple[pl.DataFrame, int]:
    """All rows of a table's files, and how many records could not be read."""
    frames, bad = [], 0
    for reader in open_source(table, base):
        reader.require([(name, role) for name, role in wanted_of_table(table) if name in columns])
        frames += list(reader.batches(columns, 16 << 20))
        bad += reader.rows.bad_lines
    if not frames:
        raise DataError(f"{', '.join(table.files) or 'the frame'}: the table has no rows")
    return concat(frames), bad


def concat(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Batches as one frame. A column that is text in one batch and has another type in another one
    becomes text; different types of numbers become the wider one."""
    for name in frames[0].columns:
        types = {frame[name].dtype for frame in frames} - {pl.Null()}
        if len(types) > 1 and pl.String() in types:
            frames = [frame.with_columns(_texts(frame[name])) for frame in frames]
    return pl.concat(frames, how="vertical_relaxed")


def _texts(values: pl.Series) -> pl.Series:
    return values if values.dtype.is_nested() else values.cast(pl.String)
