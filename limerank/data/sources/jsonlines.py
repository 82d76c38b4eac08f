"""JSON lines: one object per line, each key a column."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from limerank.data.sources.nested import DEPTH, MOST_COLUMNS, values_at
from limerank.data.sources.rows import FileRows
from limerank.data.sources.text import LONGEST_LINE, ByteStream
from limerank.data.spec import EventSource, Table
from limerank.errors import DataError, with_article
from limerank.storage.logs import LogPath

HEAD_BYTES = 1 << 20
"""Bytes at the beginning of a file from which its columns are known."""
SHOWN = 60
EXACT = 1 << 53
"""Integers below it are exact as float64."""


class JsonLines(FileRows):
    """A file of JSON lines.

    Values of one column become one type in each batch: integers, numbers, booleans or lists of one
    of these, and text where a column mixes them (with integers beyond 64 bits, digit by digit).

    Attributes:
        columns: the keys that the first lines have, and text or a list for each.
        bad_lines, bad_example: lines that are not objects, so far, and the first of them.
    """

    def __init__(
        self, path: LogPath, source: EventSource | Table, kind: str, compression: str | None
    ) -> None:
        super().__init__(path, source, kind, compression)
        self._stream: ByteStream | None = None
        self.columns = dict(self._find_columns())

    def _open(self) -> ByteStream:
        self._stream = ByteStream(self.path, self.compression, self.source.encoding)
        return self._stream

    def position(self, rows: int) -> float:
        return 0.0 if self._stream is None else self._stream.position()

    def _find_columns(self) -> dict[str, pl.DataType]:
        with self._open() as stream:
            head = stream.read(HEAD_BYTES)
            more = len(head) == HEAD_BYTES
            while more and b"\n" not in head and len(head) < LONGEST_LINE:
                data = stream.read(HEAD_BYTES)
                head, more = head + data, len(data) == HEAD_BYTES
        if not head.strip():
            raise DataError(
                f"{self.path} cannot be read as jsonl: it is empty; remove it from files"
            )
        if head.lstrip()[:1] == b"[":
            raise DataError(
                f"{self.path} holds a JSON array, expected JSON lines: one object per line"
            )
        lines = head.split(b"\n")
        if more:
            lines.pop()
        found: dict[str, pl.DataType] = {}
        for row in self._parsed(lines, 1):
            for name, value in row.items():
                _learn(found, name, value)
        if not found:
            raise DataError(
                f"{self.path} has no JSON object in its first lines, which begin with "
                f"{head[:SHOWN].decode(errors='replace')!r}; expected one object per line"
            )
        if more:  # what the first lines leave out may come later
            unknown = {pl.Null(): pl.String(), pl.List(pl.Null()): pl.List(pl.String())}
            found = {name: unknown.get(dtype, dtype) for name, dtype in found.items()}
        return found

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        """The lines' values in these columns, in batches of about ``size`` bytes of memory."""
        self.bad_lines, self.bad_example = 0, None
        block = max(size // 16, 1 << 18)  # objects take some twenty times the text
        rest, line = b"", 1
        with self._open() as stream:
            while True:
                data = stream.read(block)
                last = len(data) < block
                text = rest + data if rest else data
                end = len(text) if last else text.rfind(b"\n") + 1
                rest = text[end:]
                if len(rest) > LONGEST_LINE:
                    raise DataError(
                        f"{self.path}: line {line:,} is longer than {LONGEST_LINE >> 20} MiB"
                    )
                lines = text[:end].split(b"\n")
                rows = self._parsed(lines, line)
                if rows:
                    yield pl.DataFrame(
                        [self._series(name, values_at(rows, name)) for name in columns]
                        or [pl.Series("", [None] * len(rows))]
                    )
                line += len(lines) - 1
                if last:
                    return

    def _parsed(self, lines: list[bytes], first: int) -> list[dict[str, Any]]:
        """The objects of lines; others are counted as bad."""
        stripped = [text for text in map(bytes.strip, lines) if text]
        try:
            rows = json.loads(b"[" + b",".join(stripped) + b"]")
            if len(rows) == len(stripped) and all(type(row) is dict for row in rows):
                return rows
        except (ValueError, RecursionError):
            pass
        good = []
        for k, text in enumerate(lines):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
                what = with_article(type(row).__name__)
            except (ValueError, RecursionError) as error:
                row, what = None, str(error)
            if type(row) is dict:
                good.append(row)
                continue
            self.bad_lines += 1
            if self.bad_example is None:
                shown = text[:SHOWN].decode(errors="replace")
                self.bad_example = (
                    f"{self.path}, line {first + k:,}: not a JSON object ({what}): {shown!r}"
                )
        return good

    def _series(self, name: str, values: list[Any]) -> pl.Series:
        kinds = {type(value) for value in values} - {type(None)}
        if dict in kinds:
            example = next(value for value in values if type(value) is dict)
            fields = f"; name a field, such as {name}.{next(iter(example))}" if example else ""
            raise DataError(
                f"{self.path}: key {name!r} holds objects, such as {example!r:.{SHOWN}}; expected "
                f"single values{fields}"
            )
        if list not in kinds:
            return _scalars(name, values, kinds)
        if kinds != {list}:
            other = next(v for v in values if v is not None and type(v) is not list)
            raise DataError(
                f"{self.path}: key {name!r} holds lists and single values, such as "
                f"{other!r:.{SHOWN}}; expected one of them"
            )
        flat = [value for part in values if part is not None for value in part]
        inner = {type(value) for value in flat} - {type(None)}
        if inner & {list, dict}:
            raise DataError(f"{self.path}: key {name!r} holds lists of lists or objects")
        items = _scalars(name, flat, inner)
        if items.dtype == pl.Null:
            items = items.cast(pl.String)
        parts = iter(items.to_list())
        nested = [None if part is None else [next(parts) for _ in part] for part in values]
        return pl.Series(name, nested, dtype=pl.List(items.dtype))


def _learn(
    found: dict[str, pl.DataType], name: str, value: Any, listed: bool = False, depth: int = DEPTH
) -> None:
    """Add the type of a value, and those of its fields where it is an object."""
    if name not in found and len(found) >= MOST_COLUMNS:
        return
    if found.get(name, pl.Null()) in (pl.Null(), pl.List(pl.Null())):
        own = _type_of(value)
        found[name] = pl.List(own) if listed else own
    inside = isinstance(value, list) and not listed
    for one in value if inside else [value]:
        if isinstance(one, dict) and depth:
            for key, held in one.items():
                _learn(found, f"{name}.{key}", held, listed or inside, depth - 1)


def _type_of(value: Any) -> pl.DataType:
    if value is None:
        return pl.Null()
    if isinstance(value, list):
        inner = next((one for one in value if one is not None), None)
        if isinstance(inner, (int, float)):
            return pl.List(pl.Float64())
        return pl.List(pl.String() if isinstance(inner, (str, type(None))) else pl.Struct([]))
    return pl.Struct([]) if isinstance(value, dict) else pl.String()


def _scalars(name: str, values: list[Any], kinds: set[type]) -> pl.Series:
    """A column of single values in one type."""
    if not kinds:
        return pl.Series(name, values, dtype=pl.Null)
    if kinds == {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    if kinds == {int} and all(v is None or -(1 << 63) <= v < 1 << 63 for v in values):
        return pl.Series(name, values, dtype=pl.Int64)
    if kinds == {float} or (
        kinds == {int, float} and all(type(v) is not int or abs(v) < EXACT for v in values)
    ):
        return pl.Series(name, [None if v is None else float(v) for v in values], dtype=pl.Float64)
    return pl.Series(name, [_text(value) for value in values], dtype=pl.String)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        # Halves of surrogate pairs have no UTF-8.
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None  # NaN and Infinity, which Python writes, are not values
    return json.dumps(value)
