"""Parquet files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
import pyarrow.parquet

from limerank.data.sources.arrow import arrow_columns, plain_frame, rows_of_batch, type_names
from limerank.data.sources.nested import outer
from limerank.data.sources.rows import FileRows
from limerank.data.spec import EventSource, Table
from limerank.storage.logs import LogPath, OpenFile, RemoteFile


class ParquetFile(FileRows):
    """A Parquet file: its columns have types, and its number of rows is known."""

    typed = True

    def __init__(
        self, path: LogPath, source: EventSource | Table, kind: str, compression: str | None
    ) -> None:
        super().__init__(path, source, kind, compression)
        with _opened(path) as file:
            schema = file.schema_arrow
            self.count = file.metadata.num_rows
        self.columns, self.repeated = arrow_columns(schema)
        self.type_names = type_names(schema)

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        rows = rows_of_batch(len(columns), size)
        with _opened(self.path, buffered=True) as file:
            read = list(columns) or file.schema_arrow.names[:1]
            of_file = outer(read, file.schema_arrow.names)
            # What is fetched ahead stays in memory until its row groups are read: one at a time.
            groups = [[k] for k in range(file.num_row_groups)]
            for some in groups if isinstance(self.path, RemoteFile) else [None]:
                for batch in file.iter_batches(rows, row_groups=some, columns=of_file):
                    yield plain_frame(batch, read)

    def bounds(self, column: str) -> tuple[float, float]:
        unknown = super().bounds(column)
        dtype = self.columns[column]
        if dtype is None or not dtype.is_integer():
            return unknown
        low, high = math.inf, -math.inf
        with _opened(self.path) as file:
            names = file.schema_arrow.names
            if column not in names:
                return unknown
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


@contextmanager
def _opened(path: LogPath, buffered: bool = False) -> Iterator[Any]:
    """A Parquet file. Of a storage, the parts that a row group's columns need are fetched together,
    in few large requests."""
    if not isinstance(path, RemoteFile):
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20 if buffered else 0) as file:
            yield file
        return
    with OpenFile(path) as source, pyarrow.parquet.ParquetFile(source, pre_buffer=True) as file:
        yield file
