"""Blocks of CSV and TSV files, cut into records; an unpaired quote costs one line at most.

Where the quotes of a block pair up on their lines, which a few passes over its bytes show, all its
lines are records. Else the block is examined line by line: a field that opens a quote and does not
close it makes its own line bad, and the next line is examined as usual. A quoted line break belongs
to a value where the record, closed again, has as many fields as the header.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

RECORD_LINES = 1000
"""A record that goes over more lines has an unpaired quote."""
OPEN, ESCAPED = "a quote that is not closed", "an escape at its end"
ENDS = np.zeros(256, bool)
ENDS[[10, 13]] = True


@dataclass
class Cut:
    """A block cut into records."""

    body: bytes
    """The records to parse, without those that are bad."""
    records: int
    rest: bytes
    """Of the block's end: the beginning of a record that is not complete."""
    lines: int
    """How many lines ``body`` and the bad records took of the file."""
    bad: list[tuple[int, bytes, str]] = field(default_factory=list)
    """Of each bad record: its line within the block, from 0, its text, and what is wrong."""
    several: int = 0
    """Records over several lines."""


class RecordCutter:
    """Cuts blocks of a file into records.

    Args:
        patterns: of the file's dialect.
        fields: of each record.
    """

    def __init__(self, patterns: Patterns, fields: int) -> None:
        self._patterns, self._fields = patterns, fields
        self._separator, self._quote, self._escape = (
            patterns.separator,
            patterns.quote,
            patterns.escape,
        )

    def cut(self, block: bytes, last: bool) -> Cut:
        """Cut a block into records; ``last``: it ends with the file."""
        end = len(block) if last else max(block.rfind(b"\n"), block.rfind(b"\r", 0, -1)) + 1
        body, rest = block[:end], block[end:]
        escaped = self._escape is not None and self._escape.encode() in body
        if not escaped:
            if self._quote is None or self._quote.encode() not in body:
                return Cut(body, _lines(body), rest, line_ends(body))
            found = self._paired(body, rest, last)
            if found is not None:
                return found
        return self._by_line(body, rest, last)

    def _paired(self, body: bytes, rest: bytes, last: bool) -> Cut | None:
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
        return Cut(body, _lines(body), rest, line_ends(body))

    def _by_line(self, body: bytes, rest: bytes, last: bool) -> Cut:
        """The records of a block, line by line: those with an unpaired quote are bad, and so are
        those with an escape at their end, unless a record goes on behind them."""
        patterns = self._patterns
        quote = None if self._quote is None else self._quote.encode()
        lines = body.splitlines(keepends=True)
        good: list[bytes] = []
        cut = Cut(b"", 0, rest, 0)
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
                if record is not None and patterns.fields(record) == self._fields:
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
                return None, 1, False  # the escape would apply to one of two bytes
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


class Patterns:
    """What a record looks like, in the dialect of a file."""

    def __init__(self, separator: str, quote: str | None, escape: str | None) -> None:
        self.separator, self.quote, self.escape = separator, quote, escape
        # Where there are no quotes, a byte that UTF-8 never has takes their position.
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
        """Whether an escape precedes the end of a line, which then belongs to the text."""
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
    return line_ends(body) + (len(body) > 0 and body[-1:] not in b"\r\n")


def line_ends(body: bytes) -> int:
    """How many ends of lines a block has."""
    count = body.count(b"\n")
    return count + body.count(b"\r") - body.count(b"\r\n") if b"\r" in body else count


def records_without_blank_lines(cut: Cut) -> int:
    """How many records a block has, which :func:`_lines` counts only roughly."""
    if cut.several:
        return cut.records
    return sum(1 for line in cut.body.splitlines() if line)


def first_line(body: bytes) -> bytes | None:
    """The first line that is not blank, with its end."""
    for line in body.splitlines(keepends=True):
        if line.strip(b"\r\n"):
            return line
    return None
