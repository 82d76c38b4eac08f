"""CSV, TSV and their like: files cut into records, none of which is lost to an unpaired quote.

A block of a file is looked at before it is parsed. Where its quotes pair up, which is seen in a few
passes over its bytes, it is parsed as it is. Where they do not, it is gone through line by line: a
field that opens a quote and does not close it spoils its own line, which is counted as bad, and
reading goes on with the next one. Quoted line breaks are kept where the record, closed again, has
as many fields as the header.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from limerank.data.sources.text import LONGEST_LINE, ByteStream
from limerank.data.spec import EventSource, Table
from limerank.errors import DataError

SEPARATOR = "\x1f"
"""Stands for separators of more than one byte while a file is read."""
RECORD_LINES = 1000
"""A record that goes over more lines has an unpaired quote."""
HEADER_BYTES = 1 << 20
SHOWN = 60
"""Characters of a bad line that a message shows."""
OPEN, ESCAPED = "a quote that is not closed", "an escape at its end"
ENDS = np.zeros(256, bool)
ENDS[[10, 13]] = True


@dataclass
class _Cut:
    """A block cut into records."""

    body: bytes
    """The records to parse, without those that are bad."""
    records: int
    rest: bytes
    """Of the block's end: the beginning of a record that is not complete."""
    lines: int
    """How many lines ``body`` and the bad records took of the file."""
    bad: list[tuple[int, bytes, str]] = field(default_factory=list)
    """Line within the block, from 0, and text of each record that is none, and what is wrong."""
    several: int = 0
    """Records over several lines."""


class DelimitedFile:
    """A CSV or TSV file.

    Attributes:
        columns: the names of the header, or those given; all of them hold text.
        repeated: names that the header has more than once.
        remarks: what else is strange about the header.
        bad, bad_example, several_lines: records that could not be read, so far, the first of them,
            and records that go over several lines.
    """

    def __init__(
        self, path: Path, source: EventSource | Table, kind: str, compression: str | None
    ) -> None:
        self.path, self._source, self._compression = path, source, compression
        given = source.separator or ("\t" if kind == "tsv" else ",")
        self._long = given.encode() if len(given.encode()) > 1 else None
        self._separator = SEPARATOR if self._long else given
        self._one = self._separator.encode()
        plain = kind == "csv" and source.separator in (None, ",", ";")
        quote = source.quote if source.quote is not None else '"' if plain else ""
        self._quote, self._escape = quote or None, source.escape
        self._guessed = source.quote is None and not quote
        self.bad = self.several_lines = 0
        self.bad_example: str | None = None
        self._stream: ByteStream | None = None
        self._patterns = _Patterns(self._separator, self._quote, self._escape)
        self._read_header(kind)

    def _read_header(self, kind: str) -> None:
        """Find the columns' names; the first line that is not blank holds them, or is a record."""
        with self._open() as stream:
            first = stream.read(HEADER_BYTES)
        if self._long is not None:
            first = first.replace(self._long, SEPARATOR.encode())
        head = _first_line(first)
        if not head:
            raise DataError(
                f"{self.path} cannot be read as {kind}: it is empty; remove it from files, or give "
                "it a header line"
            )
        if self._quote is not None and not self._patterns.closed(head):
            raise DataError(
                f"{self.path}: the first line has a quote that is not closed: "
                f"{head[:SHOWN].decode(errors='replace')!r}; mend it, or set quote"
            )
        fields = self._fields(head)
        names = list(self._source.columns) or fields
        self._header = not self._source.columns
        if self._source.columns and [one.strip().lower() for one in fields] == [
            name.lower() for name in names
        ]:
            raise DataError(
                f"{self.path}: the first line holds the names of the columns: remove columns from "
                "the description"
            )
        counts = Counter(names)
        self.repeated = {name for name, count in counts.items() if count > 1}
        self.columns: dict[str, pl.DataType] = {name: pl.String() for name in names}
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
        self._stream = ByteStream(self.path, self._compression, self._source.encoding)
        return self._stream

    def position(self) -> float:
        """Bytes of the file that have been read."""
        return 0.0 if self._stream is None else self._stream.position()

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        """The records' fields in these columns, in batches of about ``size`` bytes of memory."""
        self.bad = self.several_lines = 0
        self.bad_example = None
        columns_at = [self._names.index(name) for name in columns]
        # A block of text, in work at several places, takes some twenty times its size.
        block = max(size // 4, 1 << 20)
        rest, line, header = b"", 1, self._header
        checked = not self._guessed
        with self._open() as stream:
            while True:
                data = stream.read(block)
                last = len(data) < block
                cut = self._cut(rest + data if rest else data, last)
                if len(cut.rest) > LONGEST_LINE:
                    raise DataError(
                        f"{self.path}: the line {line + cut.lines:,} is longer than "
                        f"{LONGEST_LINE >> 20} MiB; expected text, with one record per line"
                    )
                start = line
                if header and (head := _first_line(cut.body)):
                    at = cut.body.index(head) + len(head)
                    start += _ends(cut.body[:at])
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
        self, cut: _Cut, line: int, columns_at: list[int], columns: Sequence[str]
    ) -> pl.DataFrame:
        """The records of a block that begins with a line of the file; bad ones are counted."""
        wrong: list[tuple[int, str]] = []

        def skip(row: Any) -> str:
            wrong.append((row.actual_columns, row.text))
            return "skip"

        body = cut.body
        names = [str(k) for k in range(len(self._names))]
        table = self._parse(body, names, [str(index_of) for index_of in columns_at], skip)
        found = (0 if table is None else table.num_rows) + len(wrong)
        if found != cut.records and found != _without_blank_lines(cut):
            raise DataError(
                f"{self.path}: {found:,} records were read of the {cut.records:,} in the lines "
                f"{line:,} to {line + cut.lines:,}: their quotes do not pair up; mend them, or "
                "set quote"
            )
        for count, text in wrong:
            at = 0
            if self.bad_example is None:
                at = line + _ends(body[: max(body.find(text.encode()), 0)])
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
        self.bad += 1
        if self.bad_example is None:
            shown = text.decode(errors="replace").splitlines()[0] if text else ""
            if self._long is not None:
                shown = shown.replace(SEPARATOR, self._long.decode())
            shown = shown if len(shown) <= SHOWN else shown[:SHOWN] + "..."
            self.bad_example = f"{self.path}, line {line:,}: {what}: {shown!r}"

    def _refuse_quotes(self, frame: pl.DataFrame) -> None:
        """Quotes are not read unless asked for: say so where a column's values all have them."""
        for values in frame:
            text = values.drop_nulls().head(1000)
            if len(text) and bool(text.str.contains(r'^".*"$').all()):
                raise DataError(
                    f"{self.path}: the values of column {values.name!r} stand in quotes, such as "
                    f'{text[0]}; set quote = \'"\' (or quote = "" if they belong to the values)'
                )

    # Records

    def _cut(self, block: bytes, last: bool) -> _Cut:
        """Cut a block into records; ``last``: it ends with the file."""
        if self._long is not None:
            # The end of a block may hold a part of a separator; it is part of the rest then.
            block = block.replace(self._long, SEPARATOR.encode())
        end = len(block) if last else max(block.rfind(b"\n"), block.rfind(b"\r", 0, -1)) + 1
        body, rest = block[:end], block[end:]
        escaped = self._escape is not None and self._escape.encode() in body
        if not escaped:
            if self._quote is None or self._quote.encode() not in body:
                return _Cut(body, _lines(body), rest, _ends(body))
            found = self._paired(body, rest, last)
            if found is not None:
                return found
        return self._by_line(body, rest, last)

    def _paired(self, body: bytes, rest: bytes, last: bool) -> _Cut | None:
        """The records of a block whose quotes all pair up on their lines; None: they do not."""
        assert self._quote is not None
        data = np.frombuffer(body, np.uint8)
        quote, separator = ord(self._quote), ord(self._separator)
        at = np.flatnonzero(data == quote)
        if len(at) % 2:
            return None
        special = ENDS.copy()
        special[[quote, separator]] = True
        opening, closing = at[0::2], at[1::2]
        before = data[np.maximum(opening - 1, 0)]
        after = data[np.minimum(closing + 1, len(data) - 1)]
        opens = special[before] | (opening == 0)
        closes = special[after] | (closing == len(data) - 1)
        if not (opens.all() and closes.all()):
            return None
        ends = np.flatnonzero(ENDS[data] if b"\r" in body else data == 10)
        inside = np.searchsorted(at, ends) % 2
        if inside.any():
            return None
        return _Cut(body, _lines(body), rest, _ends(body))

    def _by_line(self, body: bytes, rest: bytes, last: bool) -> _Cut:
        """The records of a block, line by line: those with an unpaired quote are bad, and so are
        those with an escape at their end, unless a record goes on behind them."""
        patterns = self._patterns
        quote = None if self._quote is None else self._quote.encode()
        lines = body.splitlines(keepends=True)
        good: list[bytes] = []
        cut = _Cut(b"", 0, rest, 0)
        k = 0
        while k < len(lines):
            line, used = lines[k], 1
            complete = quote is None or quote not in line or patterns.closed(line)
            if complete and not patterns.escaped_end(line):
                good.append(line)
                cut.records += bool(line.strip(b"\r\n"))
            else:
                what = OPEN if not complete else ESCAPED
                record, used, undecided = self._several(lines, k)
                if record is not None and patterns.fields(record) == len(self._names):
                    good.append(record)
                    cut.records += 1
                    cut.several += 1
                elif undecided and not last:
                    cut.rest = b"".join(lines[k:]) + rest
                    break
                else:
                    cut.bad.append((cut.lines, line, what))
                    used = 1
            cut.lines += used
            k += used
        cut.body = b"".join(good)
        return cut

    def _several(self, lines: list[bytes], first: int) -> tuple[bytes | None, int, bool]:
        """The record over several lines that begins with the line ``first`` (None: there is none),
        how many lines it has, and whether it may go on behind the last one."""
        patterns = self._patterns
        mark = None if self._quote is None else self._quote.encode()
        for k in range(first + 1, min(first + RECORD_LINES, len(lines))):
            escaped = patterns.escaped_end(lines[k - 1])
            if escaped and lines[k - 1].endswith(b"\r\n"):
                return None, 1, False  # the escape would stand for one of two bytes
            if not escaped and (mark is None or mark not in lines[k]):
                continue
            record = b"".join(lines[first : k + 1])
            if patterns.escaped_end(record):
                continue
            if patterns.well_closed(record):
                return record, k + 1 - first, False
            if not patterns.open(record):
                return None, 1, False
        return None, 1, first + RECORD_LINES > len(lines)


class _Patterns:
    """What a record looks like, in the dialect of a file."""

    def __init__(self, separator: str, quote: str | None, escape: str | None) -> None:
        # Without quotes a byte stands for them that no text in UTF-8 has.
        s, q = (
            re.escape(separator.encode()),
            re.escape(b"\xff" if quote is None else quote.encode()),
        )
        inner = rb"[^%b]+|%b%b" % (q, q, q)
        plain = rb"[^%b\r\n]+" % s
        if escape is not None:
            e = re.escape(escape.encode())
            inner = rb"%b[\s\S]|[^%b%b]+|%b%b" % (e, e, q, q, q)
            plain = rb"%b[\s\S]|[^%b%b\r\n]+" % (e, e, s)
        inside = rb"%b(?>(?:%b)*)" % (q, inner)
        unquoted = rb"(?>(?!%b)(?>(?:%b)*))" % (q, plain)
        lenient = rb"(?:(?>%b%b(?>(?:%b)*))|%b)" % (inside, q, plain, unquoted)
        strict = rb"(?:(?>%b%b)|%b)" % (inside, q, unquoted)
        self._closed = re.compile(rb"%b(?:%b%b)*[\r\n]*" % (lenient, s, lenient))
        self._well_closed = re.compile(rb"%b(?:%b%b)*[\r\n]*" % (strict, s, strict))
        self._open = re.compile(rb"(?:%b%b)*(?>%b)" % (strict, s, inside))
        self._field = re.compile(rb"%b(%b|[\r\n]*\Z)" % (strict, s))

        self._escaped_end = None
        if escape is not None:
            self._escaped_end = re.compile(rb"(?<!%b)(?:%b%b)*%b(?:\r\n|\r|\n)?\Z" % (e, e, e, e))

    def escaped_end(self, line: bytes) -> bool:
        """Whether an escape stands before the end of a line, which is then taken for text."""
        return self._escaped_end is not None and self._escaped_end.search(line) is not None

    def closed(self, line: bytes) -> bool:
        """Whether every quote that a field opens is closed again; text after it belongs to it."""
        return self._closed.fullmatch(line) is not None

    def well_closed(self, record: bytes) -> bool:
        """The same, with nothing between the closing quote and the end of the field."""
        return self._well_closed.fullmatch(record) is not None

    def open(self, record: bytes) -> bool:
        """Whether the last field opens a quote, and the record ends before it is closed."""
        return self._open.fullmatch(record) is not None

    def fields(self, record: bytes) -> int:
        """How many fields a record has that is well closed."""
        count = at = 0
        while found := self._field.match(record, at):
            count, at = count + 1, found.end()
            if not found[1].strip(b"\r\n"):
                break
        return count


def _lines(body: bytes) -> int:
    """How many lines a block has, blank ones included."""
    return _ends(body) + (len(body) > 0 and body[-1:] not in b"\r\n")


def _ends(body: bytes) -> int:
    """How many ends of lines a block has."""
    count = body.count(b"\n")
    return count + body.count(b"\r") - body.count(b"\r\n") if b"\r" in body else count


def _without_blank_lines(cut: _Cut) -> int:
    """How many records a block has, which :func:`_lines` counts only roughly."""
    if cut.several:
        return cut.records
    return sum(1 for line in cut.body.splitlines() if line)


def _first_line(body: bytes) -> bytes | None:
    """The first line that is not blank, with its end."""
    for line in body.splitlines(keepends=True):
        if line.strip(b"\r\n"):
            return line
    return None
