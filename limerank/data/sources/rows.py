"""What every source of rows offers, be it a file of some format or a frame in memory."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import polars as pl

from limerank.data.spec import EventSource, Table
from limerank.storage.logs import LogPath, size_of

TEXT_ROW_BYTES = 16
"""Of a row of text, at least: how many rows a file has is estimated by it."""
COMPRESSION_FACTOR = 6


class Rows(ABC):
    """Rows that are read in batches.

    Attributes:
        name: of the file or the frame, for messages.
        kind: its format, for messages.
        size: bytes, for progress.
        count: how many rows there are; None: not known before all are read.
        typed: whether columns have types; else integers are text as well.
        columns: names, and the Polars type in which each column is read; None: it cannot be.
        type_names: names of the types of columns that cannot be read.
        repeated: names that several columns have.
        remarks: warnings about the file or frame, such as a header that repeats a name.
        bad_lines: records that could not be read, so far.
        bad_example: where the first of them is, and what it contains.
        several_lines: records that go over several lines, so far.
    """

    name: str
    kind: str
    size: int
    typed: bool = False
    count: int | None = None
    columns: dict[str, pl.DataType | None]
    bad_lines: int = 0
    bad_example: str | None = None
    several_lines: int = 0

    def __init__(self, name: str, kind: str, size: int) -> None:
        self.name, self.kind, self.size = name, kind, size
        self.type_names: dict[str, str] = {}
        self.repeated: set[str] = set()
        self.remarks: list[str] = []

    @abstractmethod
    def batches(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        """These columns of all rows, in batches of about ``size`` bytes of memory.

        Each call reads from the beginning.
        """

    def bounds(self, column: str) -> tuple[float, float]:
        """The least and the greatest value of a column of integers; infinite: not known."""
        if self.columns[column] == pl.Boolean():
            return 0, 1
        return -math.inf, math.inf

    def position(self, rows: int) -> float:
        """About how many bytes have been read after ``rows`` rows."""
        return self.size * min(rows / max(self.count or 0, 1), 1.0)

    @property
    def estimated_count(self) -> float:
        """How many rows there are, or about how many."""
        return self.size / TEXT_ROW_BYTES if self.count is None else self.count

    def header_hint(self) -> str:
        """What may be wrong where a column is missing, to end a message; empty: nothing known."""
        return ""


class FileRows(Rows):
    """The rows of one file. A format is a subclass and its line in
    :data:`limerank.data.formats.FORMATS`."""

    def __init__(
        self, path: LogPath, source: EventSource | Table, kind: str, compression: str | None
    ) -> None:
        """Open ``path`` and find its columns.

        Args:
            source: how the file is written (``separator``, ``encoding`` ...).
            kind: the format.
            compression: a name that Arrow knows; None: not compressed.
        """
        super().__init__(str(path), kind, size_of(path))
        self.path, self.source, self.compression = path, source, compression

    @property
    def estimated_count(self) -> float:
        factor = COMPRESSION_FACTOR if self.compression and self.count is None else 1
        return factor * super().estimated_count
