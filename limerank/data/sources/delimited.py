"""CSV, TSV and similar files: ``records`` cuts them into records, which Arrow parses.

The rows that Arrow parses are counted against the records of their block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv

from limerank.data.sources.records import (
    Cut,
    Patterns,
    RecordCutter,
    first_line,
    line_ends,
    records_without_blank_lines,
)
from limerank.data.sources.rows import FileRows
from limerank.data.sources.text import LONGEST_LINE, ByteStream
from limerank.data.spec import EventSource, Table
from limerank.errors import DataError
from limerank.storage.logs import LogPath

SEPARATOR = "\x1f"
"""Replaces separators of more than one byte while a file is read."""
HEADER_BYTES = 1 << 20
SHOWN = 60
"""Characters of a bad line that a message shows."""


class DelimitedFile(FileRows):
    """A CSV or TSV file.

    Attributes:
        columns: the names in the header, or those given; all are text.
        repeated: names that the header has more than once.
        remarks: other warnings about the header.
        bad_lines, bad_example, several_lines: records that could not be read, so far, the first of
            them, and records that go over several lines.
    """

    def __init__(
        self, path: LogPath, source: EventSource | Table, kind: str, compression: str | None
    ) -> None:
        super().__init__(path, source, kind, compression)
        given = source.separator or ("\t" if kind == "tsv" else ",")
        self._long = given.encode() if len(given.encode()) > 1 else None
        self._separator = SEPARATOR if self._long else given
        self._one = self._separator.encode()
        plain = kind == "csv" and source.separator in (None, ",", ";")
        quote = source.quote if source.quote is not None else '"' if plain else ""
        self._quote, self._escape = quote or None, source.escape
        self._guessed = source.quote is None and not quote
        self._stream: ByteStream | None = None
        self._patterns = Patterns(self._separator, self._quote, self._escape)
        self._read_header(kind)

    def _read_header(self, kind: str) -> None:
        """Find the columns' names; the first line that is not blank has them, or is a record."""
        with self._open() as stream:
            first = stream.read(HEADER_BYTES)
        if self._long is not None:
            first = first.replace(self._long, SEPARATOR.encode())
        head = first_line(first)
        if not head:
            raise DataError(
                f"{self.path} cannot be read as {kind}: it is empty; remove it from files, or give "
                "it a header line"
            )
        if self._quote is not None and not self._patterns.closed(head):
            raise DataError(
                f"{self.path}: the first line has a quote that is not closed: "
                f"{head[:SHOWN].decode(errors='replace')!r}; correct it, or set quote"
            )
        fields = self._fields(head)
        names = list(self.source.columns) or fields
        self._header = not self.source.columns
        if self.source.columns and [one.strip().lower() for one in fields] == [
            name.lower() for name in names
        ]:
            raise DataError(
                f"{self.path}: the first line holds the names of the columns: remove columns from "
                "the description"
            )
        counts = Counter(names)
        self.repeated = {name for name, count in counts.items() if count > 1}
        self.columns = dict.fromkeys(names, pl.String())
        self._names = names
        self.remarks = [
            f"{self.path}: the header has the name {name!r} {counts[name]} times"
            for name in sorted(self.repeated - {""})
        ]
        if "" in counts:
            number = names.index("") + 1
            self.remarks.append(f"{self.path}: column {number} of the header has no name")

    def _fields(self, line: bytes) -> list[str]:
        """The fields of one line."""
        table = pyarrow.csv.read_csv(
            pa.BufferReader(line.rstrip(b"\r\n") + b"\n"),
            read_options=pyarrow.csv.ReadOptions(autogenerate_column_names=True, use_threads=False),
            parse_options=self._parse_options(None, False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={f"f{k}": pa.string() for k in range(line.count(self._one) + 1)},
                strings_can_be_null=False,
            ),
        )
        return [str(column[0].as_py()) for column in table.columns]

    def _open(self) -> ByteStream:
        self._stream = ByteStream(self.path, self.compression, self.source.encoding)
        return self._stream

    def position(self, rows: int) -> float:
        return 0.0 if self._stream is None else self._stream.position()

    def header_hint(self) -> str:
        names = list(self.columns)
        if names and all(
            len(name) > 1 and name[0] == name[-1] and name[0] in "\"'" for name in names
        ):
            return f"; the names are in quotes: set quote = {names[0][0]!r}"
        if len(names) == 1 and not self.repeated and not self.source.columns:
            return "; the header is one name: set separator"
        return ""

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        """The records' fields in these columns, in batches of about ``size`` bytes of memory."""
        self.bad_lines = self.several_lines = 0
        self.bad_example = None
        columns_at = [self._names.index(name) for name in columns]
        # A block of text takes some twenty times its size while it is parsed.
        block = max(size // 4, 1 << 20)
        rest, line, header = b"", 1, self._header
        cutter = RecordCutter(self._patterns, len(self._names))
        checked = not self._guessed
        with self._open() as stream:
            while True:
                data = stream.read(block)
                last = len(data) < block
                text = rest + data if rest else data
                if self._long is not None:
                    # A block that ends within a separator keeps that part in its rest.
                    text = text.replace(self._long, SEPARATOR.encode())
                cut = cutter.cut(text, last)
                if len(cut.rest) > LONGEST_LINE:
                    raise DataError(
                        f"{self.path}: the line {line + cut.lines:,} is longer than "
                        f"{LONGEST_LINE >> 20} MiB; expected text, with one record per line"
                    )
                start = line
                if header and (head := first_line(cut.body)):
                    at = cut.body.index(head) + len(head)
                    start += line_ends(cut.body[:at])
                    cut.body, cut.records, header = cut.body[at:], cut.records - 1, False
                for at, text, what in cut.bad:
                    self._count_bad(line + at, text, what)
                self.several_lines += cut.several
                if cut.body:
                    frame = self._frame(cut, start, columns_at, columns)
                    if not checked and len(frame):
                        self._refuse_quotes(frame)
                        checked = True
                    if len(frame):
                        yield frame
                line += cut.lines
                rest = cut.rest
                if last:
                    return

    def _frame(
        self, cut: Cut, line: int, columns_at: list[int], columns: Sequence[str]
    ) -> pl.DataFrame:
        """The records of a block that begins at ``line`` of the file; bad ones are counted."""
        wrong: list[tuple[int, str]] = []

        def skip(row: Any) -> str:
            wrong.append((row.actual_columns, row.text))
            return "skip"

        body = cut.body
        names = [str(k) for k in range(len(self._names))]
        table = self._parse(body, names, [str(index_of) for index_of in columns_at], skip)
        found = (0 if table is None else table.num_rows) + len(wrong)
        if found != cut.records and found != records_without_blank_lines(cut):
            raise DataError(
                f"{self.path}: {found:,} records were read of the {cut.records:,} in the lines "
                f"{line:,} to {line + cut.lines:,}: their quotes do not pair up; correct them, or "
                "set quote"
            )
        for count, text in wrong:
            at = 0
            if self.bad_example is None:
                at = line + line_ends(body[: max(body.find(text.encode()), 0)])
            self._count_bad(at, text.encode(), f"{count} fields, expected {len(names)}")
        if table is None:
            return pl.DataFrame()
        frame = pl.DataFrame(pl.from_arrow(table))
        if columns:
            frame.columns = list(columns)
        if self._long is not None and self._quote is not None:
            long = self._long.decode()
            frame = frame.with_columns(
                pl.col(pl.String).str.replace_all(SEPARATOR, long, literal=True)
            )
        return frame

    def _parse(
        self, body: bytes, names: list[str], wanted: list[str], skip: Callable[[Any], str]
    ) -> pa.Table | None:
        """The fields of records, as text; None: there are only blank lines."""
        wanted = wanted or names[:1]
        marks = [mark.encode() for mark in (self._quote, self._escape) if mark is not None]
        several = any(mark in body for mark in marks)
        try:
            return pyarrow.csv.read_csv(
                pa.BufferReader(body),
                read_options=pyarrow.csv.ReadOptions(
                    column_names=names, block_size=max(len(body) // 2, 1 << 20)
                ),
                parse_options=self._parse_options(skip, several),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(wanted, pa.string()),
                    include_columns=wanted,
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                ),
            )
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error):
                return None
            raise

    def _parse_options(self, skip: Callable[[Any], str] | None, several: bool) -> Any:
        return pyarrow.csv.ParseOptions(
            delimiter=self._separator,
            quote_char=self._quote or False,
            escape_char=self._escape or False,
            newlines_in_values=several,
            invalid_row_handler=skip,
        )

    def _count_bad(self, line: int, text: bytes, what: str) -> None:
        self.bad_lines += 1
        if self.bad_example is None:
            shown = text.decode(errors="replace").splitlines()[0] if text else ""
            if self._long is not None:
                shown = shown.replace(SEPARATOR, self._long.decode())
            shown = shown if len(shown) <= SHOWN else shown[:SHOWN] + "..."
            self.bad_example = f"{self.path}, line {line:,}: {what}: {shown!r}"

    def _refuse_quotes(self, frame: pl.DataFrame) -> None:
        """Raise where all values of a column are in quotes, and ``quote`` is not set."""
        for values in frame:
            text = values.drop_nulls().head(1000)
            if len(text) and bool(text.str.contains(r'^".*"$').all()):
                raise DataError(
                    f"{self.path}: the values of column {values.name!r} are in quotes, such as "
                    f'{text[0]}; set quote = \'"\' (or quote = "" if they belong to the values)'
                )
