"""The way in: files of events, read in batches, checked, and spooled in partitions by user."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.canonical import categories, iso, numbers
from limerank.data.coverage import presence
from limerank.data.pipeline import ahead
from limerank.data.prepare.checks import (
    UNITS,
    Good,
    as_float32,
    better_unit,
    label_columns,
    request_keys,
    require_time_format,
    seem_written,
    times_of,
)
from limerank.data.prepare.ids import Ids, Mask, TextIdsError
from limerank.data.prepare.inputs import Inputs
from limerank.data.prepare.partition import Array, Spool, shuffle
from limerank.data.sources import Reader, wanted_of_table
from limerank.data.spec import EventSource, Feature
from limerank.errors import DataError
from limerank.progress import Bar

BATCH_BYTES = 24 << 20
PARTITION_ROWS = 1 << 18
"""Small enough that sorting stays within the processor's cache."""


class Spooling:
    """Reads and checks the events of all sources; then they lie in spools, in no order yet.

    Attributes:
        users, items: the codes of ids.
        features: those of the values of each categorical event feature.
        dtypes: the columns of ``spool``: user, item, time, label_NAME, feature_NAME, and, where
            needed, ratio_NAME, source and request.
        spool, lists: events, and the lists of sources whose rows hold lists.
        part_limit: partitions with more rows do not fit the memory.
        item_range: the least and the greatest code of an item.
        rows, bad, noted: rows read, bad ones by reason, and what else is worth to be told.
        examples: of reasons, where the first such row is and what it holds.
        remarks: what is strange about files, such as a header that has a name twice.
        unit_hints: files whose times seem to have another unit than the one given.
        present, parsed, unread: of each event feature, how many of ``feature_rows`` rows have a
            value, how many one that could be read, and one that could not.
        table_readers: the files of the item table and of the user table.
    """

    def __init__(self, inputs: Inputs, work: Path, room: int, quiet: bool) -> None:
        """``work`` takes the spools, and ``room`` is the memory in bytes that all may take."""
        spec = inputs.spec
        self.inputs, self.spec, self.work, self.room, self.quiet = inputs, spec, work, room, quiet
        self.bad: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.remarks: list[str] = []
        self.unit_hints: list[str] = []
        self.present: Counter[str] = Counter()
        self.parsed: Counter[str] = Counter()
        self.unread: dict[str, str] = {}
        self.feature_rows = 0
        self._reading = ""
        self.rows = 0
        self.requests_given = any(source.request is not None for source in spec.events)
        self.shown_sources = np.array([source.shown for source in spec.events])
        self.some_hidden = not bool(self.shown_sources.all())

    def read(self) -> None:
        """Spool all events.

        Raises:
            DataError: a file or a column is missing or of no use, or too many rows are bad.
        """
        self._open()
        while True:
            try:
                self._spool_events()
                break
            except TextIdsError as found:
                self.integral[0 if found.ids is self.items else 1] = False
                self._close_spools()
                shutil.rmtree(self.work)
        self._check_share()

    def _open(self) -> None:
        """Find files and columns, and guess which ids are integers."""
        spec = self.spec
        self.readers: list[list[Reader]] = []
        for number, source in enumerate(spec.events):
            require_time_format(source)
            readers = self.inputs.event_readers(number)
            for reader in readers:
                reader.require(self._wanted(source))
            self.readers.append(readers)
        tables = (spec.items, spec.users)
        may_be_integers: list[list[bool]] = [[], []]
        self.table_readers: list[list[Reader]] = [[], []]
        for k, table in enumerate(tables):
            if table is None:
                continue
            for reader in self.inputs.table_readers(("items", "users")[k]):
                reader.require(wanted_of_table(table))
                self.table_readers[k].append(reader)
                may_be_integers[k].append(_may_be_integers(reader, table.id))
        for source, readers in zip(spec.events, self.readers, strict=True):
            for reader in readers:
                may_be_integers[0].append(_may_be_integers(reader, source.item))
                may_be_integers[1].append(_may_be_integers(reader, source.user))
        self.integral = [all(each) for each in may_be_integers]
        """Whether item ids and user ids are integers, as far as is known yet."""
        for k, table in enumerate(tables):
            if table is not None and self.integral[k]:
                ids = Ids(False)
                try:
                    for reader in self.table_readers[k]:
                        with reader.named():
                            for frame in reader.batches([table.id], BATCH_BYTES):
                                ids.codes(frame[table.id])
                except TextIdsError:
                    self.integral[k] = False
        self.feature_is_text = {
            feature.name: self._is_text(feature.column) for feature in spec.event_features
        }

    def _wanted(self, source: EventSource) -> list[tuple[str, str]]:
        """The columns that are read of a source's files, and the role of each."""
        spec = self.spec
        wanted = [(source.user, "id"), (source.item, "ids" if source.lists else "id")]
        wanted += [(column, "time") for column in (source.time, source.order) if column]
        if source.request is not None:
            wanted.append((source.request, "request"))
        if not source.lists:
            wanted += [(label.column, "label") for label in spec.labels]
            wanted += [(label.of, "number") for label in spec.labels if label.of is not None]
            roles = {"categorical": "category", "numeric": "number"}
            wanted += [(one.column, roles[one.kind]) for one in spec.event_features]
        return [(column, role) for column, role in wanted if column not in source.constant]

    def _is_text(self, column: str) -> bool:
        """Whether an event feature's categories are texts (else integers) in any source."""
        for source, readers in zip(self.spec.events, self.readers, strict=True):
            if column in source.constant:
                value = source.constant[column]
                if isinstance(value, str) or not value.is_integer():
                    return True
            elif not source.lists:
                for reader in readers:
                    dtype = reader.columns[column]
                    assert dtype is not None
                    if not (dtype.is_integer() or dtype == pl.Boolean) or dtype == pl.UInt64:
                        return True
        return False

    def _columns(self, source: EventSource) -> list[str]:
        """The columns that are read of a source's files."""
        return list(dict.fromkeys(column for column, _ in self._wanted(source)))

    def _spool_events(self) -> None:
        spec = self.spec
        self.bad.clear()
        self.noted.clear()
        self.examples.clear()
        self.remarks.clear()
        self.unit_hints.clear()
        self.rows = self.feature_rows = 0
        self.present.clear()
        self.parsed.clear()
        self.unread.clear()
        self.users, self.items = (Ids(not integral) for integral in reversed(self.integral))
        self.features = {
            feature.name: Ids(self.feature_is_text[feature.name], categories)
            for feature in spec.event_features
            if feature.kind == "categorical"
        }
        self.item_range = [np.iinfo(np.int64).max, np.iinfo(np.int64).min]
        dtypes: dict[str, Any] = {"user": np.uint64, "time": np.int64}
        dtypes["item"] = self._dtype(self.items, [source.item for source in spec.events])
        if len(spec.events) > 1:
            dtypes["source"] = np.uint8
        if self.requests_given:
            dtypes["request"] = np.uint64
        for label in spec.labels:
            dtypes[f"label_{label.name}"] = np.uint8 if label.kind == "binary" else np.float32
            if label.of is not None:
                dtypes[f"ratio_{label.name}"] = np.float32
        for feature in spec.event_features:
            if feature.kind == "numeric":
                dtypes[f"feature_{feature.name}"] = np.float32
            else:
                dtypes[f"feature_{feature.name}"] = self._dtype(
                    self.features[feature.name], [feature.column] * len(spec.events)
                )
        self.dtypes = dtypes
        self._make_spools()
        total = sum(reader.rows.size for readers in self.readers for reader in readers)
        with Bar("reading", total=total, unit="bytes", quiet=self.quiet) as bar:
            for number, (source, readers) in enumerate(zip(spec.events, self.readers, strict=True)):
                check = self._check_lists if source.lists else self._check_events
                spool = self.lists if source.lists else self.spool
                assert spool is not None
                for reader in readers:
                    before = self.rows
                    self._reading = reader.name
                    done = 0.0
                    # Three steps, each in a thread of its own: decode, check, spool.
                    frames = ahead(self._with_users(reader, source))
                    with reader.named():
                        for columns in ahead(check(*one, source, number) for one in frames):
                            spool.add(columns)
                            at = reader.rows.position(self.rows - before)
                            bar.advance(at - done, note=f"{self.rows:,} rows")
                            done = at
                    bar.advance(reader.rows.size - done)
                    self.bad["unparsable line"] += reader.rows.bad_lines
                    self.rows += reader.rows.bad_lines
                    self._remark(reader, "unparsable line", self.rows - before)
        self._close_spools()

    def _dtype(self, ids: Ids, columns: list[str]) -> type[np.integer[Any]]:
        """The narrowest integers that surely hold a column's codes: fewer bytes to move."""
        if ids.text:
            return np.uint32
        narrow = np.iinfo(np.int32)
        for source, readers, column in zip(self.spec.events, self.readers, columns, strict=True):
            if column in source.constant:
                value = float(source.constant[column])
                bounds = [(value, value)]
            elif source.lists and column != source.item:
                bounds = []
            else:
                bounds = [reader.bounds(column) for reader in readers]
            if not all(narrow.min < low and high <= narrow.max for low, high in bounds):
                return np.int64
        return np.int32

    def _with_users(
        self, reader: Reader, source: EventSource
    ) -> Iterator[tuple[pl.DataFrame, Array, Mask]]:
        """A file's batches, each with its users' codes and which of them are known."""
        first = True
        for frame in reader.batches(self._columns(source), self.batch_bytes):
            if first and source.time is not None:
                self._check_unit(reader, source, frame[source.time])
                first = False
            yield frame, *self.users.codes(frame[source.user])

    def _check_unit(self, reader: Reader, source: EventSource, times: pl.Series) -> None:
        """Say so where the first times of a file seem to have another unit than the one given."""
        found = better_unit(times, source)
        if found is not None:
            unit, example = found
            self.unit_hints.append(
                f"{reader.name}: times of column {times.name!r} are such as {example:.0f}, which "
                f'is {iso(round(example * UNITS[unit]))} with time_unit = "{unit}", not with the '
                f'"{source.time_unit}" given'
            )
        elif seem_written(times, source):
            self.unit_hints.append(
                f"{reader.name}: times of column {times.name!r} are such as "
                f'{times.drop_nulls()[0]!r}: set time_unit = "text"'
            )
        else:
            return
        self.remarks.append(self.unit_hints[-1])
        self.examples.setdefault("missing or unparsable time", self.unit_hints[-1])

    def _make_spools(self) -> None:
        """Spools with enough partitions that sorting three of them at once fits the memory."""
        rows = 0.0
        for source, readers in zip(self.spec.events, self.readers, strict=True):
            for reader in readers:
                known = reader.rows.count is not None
                rows += reader.rows.estimated_count * (40 if source.lists and known else 1)
        self.batch_bytes = min(max(self.room // 64, 1 << 20), BATCH_BYTES)
        row_bytes = sum(np.dtype(dtype).itemsize for dtype in self.dtypes.values())
        limit = max(self.room // (3 * (4 * row_bytes + 100)), 1 << 12)
        self.part_limit = limit
        """Partitions with more rows are partitioned further."""
        bits = 0
        while bits < 8 and rows / (1 << bits) > min(limit // 2, PARTITION_ROWS):
            bits += 1
        self.spool = Spool(self.work / "events", self.dtypes, bits)
        self.lists: Spool | None = None
        if any(source.lists for source in self.spec.events):
            dtypes: dict[str, Any] = {
                "user": np.uint64,
                "time": np.int64,
                "source": np.uint8,
                "length": np.int64,
                "values": self.dtypes["item"],
            }
            self.lists = Spool(self.work / "lists", dtypes, bits, ragged="values")

    def _close_spools(self) -> None:
        self.spool.close()
        if self.lists is not None:
            self.lists.close()

    def _column(self, frame: pl.DataFrame, source: EventSource, name: str) -> pl.Series:
        if name in source.constant:
            return pl.Series(name, [source.constant[name]]).new_from_index(0, len(frame))
        return frame[name]

    def _check_events(
        self, frame: pl.DataFrame, users: Array, known: Mask, source: EventSource, number: int
    ) -> dict[str, Array]:
        """The columns of a batch's good rows; the others are counted by reason."""
        n = len(frame)
        self.rows += n
        good = Good(n, self.bad, self.examples, self._reading)
        good.check(known, "missing user id")
        items, known = self.items.codes(frame[source.item])
        good.check(known, "missing item id")
        given = frame[source.time or source.order or ""]
        times, known = times_of(given, source)
        good.check(known, "missing or unparsable time", given)
        columns: dict[str, Array] = {"user": shuffle(users), "item": items, "time": times}
        if "source" in self.dtypes:
            columns["source"] = np.full(n, number, np.uint8)
        if self.requests_given:
            columns["request"] = np.zeros(n, np.uint64)
            if source.request is not None:
                columns["request"] = request_keys(frame[source.request])
        for label in self.spec.labels:
            values = self._column(frame, source, label.column)
            length = None if label.of is None else self._column(frame, source, label.of)
            columns |= label_columns(label, values, length, good)
        self.feature_rows += n
        for feature in self.spec.event_features:
            values = self._column(frame, source, feature.column)
            if feature.kind == "numeric":
                columns[f"feature_{feature.name}"] = as_float32(numbers(values))
                self._note_numbers(feature, values, columns[f"feature_{feature.name}"])
            else:
                codes = self._feature_codes(feature, values)
                columns[f"feature_{feature.name}"] = codes
                found = int(np.count_nonzero(codes != self.missing(feature)))
                self.present[feature.name] += found
                self.parsed[feature.name] += found
        if good.mask is not None:
            columns = {name: array[good.mask] for name, array in columns.items()}
        self._widen(columns["item"])
        return columns

    def _widen(self, items: Array) -> None:
        if len(items):
            stretch(self.item_range, items)

    def _feature_codes(self, feature: Feature, values: pl.Series) -> Array:
        """Codes of a categorical event feature: text numbers from 1 (0: missing), or integers."""
        ids = self.features[feature.name]
        if ids.text:
            return _plus_one(ids.of_text(values))
        integers = values.cast(pl.Int64)
        if integers.null_count():
            integers = integers.fill_null(self.missing(feature))
        return integers.to_numpy()

    def _note_numbers(self, feature: Feature, values: pl.Series, found: Array) -> None:
        """Count the values of a numeric event feature, and those that are numbers."""
        readable = np.isfinite(found)
        count = int(np.count_nonzero(readable))
        self.parsed[feature.name] += count
        if values.dtype != pl.String or count == len(values):
            self.present[feature.name] += count
            return
        given, readable = presence(values)
        self.present[feature.name] += int(given.sum())
        unread = given & ~readable
        if feature.name not in self.unread and unread.any():
            self.unread[feature.name] = str(values[int(np.flatnonzero(unread)[0])])

    def missing(self, feature: Feature) -> int:
        """The code of a missing value of a categorical event feature."""
        if self.features[feature.name].text:
            return 0
        return int(np.iinfo(self.dtypes[f"feature_{feature.name}"]).min)

    def _check_lists(
        self, frame: pl.DataFrame, users: Array, known: Mask, source: EventSource, number: int
    ) -> dict[str, Array]:
        """The good rows of a batch whose rows hold lists of items."""
        n = len(frame)
        self.rows += n
        good = Good(n, self.bad, self.examples, self._reading)
        good.check(known, "missing user id")
        given = frame[source.time or source.order or ""]
        times, known = times_of(given, source)
        good.check(known, "missing or unparsable time", given)
        lists = frame[source.item]
        if isinstance(lists.dtype, pl.Array):
            lists = lists.arr.to_list()
        elif not isinstance(lists.dtype, pl.List):
            _refuse_brackets(lists)
            lists = lists.cast(pl.String).str.strip_chars().str.split(source.list_split)
        lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
        flat = lists.filter(pl.Series(lengths > 0)).explode()
        self.note("missing item ids within lists", flat.null_count())
        items, known = self.items.codes(flat)
        row = np.repeat(np.arange(n), lengths)
        if known is not None:
            items, row = items[known], row[known]
            lengths = np.bincount(row, minlength=n)
        keep = lengths > 0 if good.mask is None else good.mask & (lengths > 0)
        values = items[keep[row]]
        self._widen(values)
        return {
            "user": shuffle(users)[keep],
            "time": times[keep],
            "source": np.full(int(keep.sum()), number, np.uint8),
            "length": lengths[keep],
            "values": values,
        }

    def constants(self, source: EventSource) -> dict[str, Any]:
        """What each event of a source of lists has, by the name of its spooled column."""
        values: dict[str, Any] = {}
        unseen = Good(1, Counter())  # the description was checked when it was built
        for label in self.spec.labels:
            given = pl.Series(label.column, [source.constant.get(label.column)])
            length = None if label.of is None else pl.Series(label.of, [None])
            columns = label_columns(label, given, length, unseen)
            values |= {name: array[0] for name, array in columns.items()}
        for feature in self.spec.event_features:
            given = pl.Series(feature.column, [source.constant.get(feature.column)])
            values[f"feature_{feature.name}"] = (
                as_float32(numbers(given))[0]
                if feature.kind == "numeric"
                else self._feature_codes(feature, given)[0]
            )
        return values

    def _check_share(self) -> None:
        self.bad = +self.bad
        bad = sum(self.bad.values())
        table = ""
        for reason, count in self.bad.most_common():
            table += f"\n  {count:>12,}  {reason}"
            if reason in self.examples:
                table += f" ({self.examples[reason]})"
        if self.rows and bad / self.rows > self.spec.checks.max_bad_share:
            raise DataError(
                f"{bad:,} of {self.rows:,} rows ({100 * bad / self.rows:.1f} %) are bad, more than "
                f"checks.max_bad_share = {self.spec.checks.max_bad_share} allows:{table}\n"
                "mend the log, mend its description, or raise the share"
            )
        if self.rows == bad:
            raise DataError(f"the log has no usable events: {self.rows:,} rows read{table}")

    def _remark(self, reader: Reader, bad: str, rows: int) -> None:
        """Keep what is strange about a file that has been read; ``bad`` names its bad lines."""
        self.remarks += reader.rows.remarks
        if rows == 0:
            self.remarks.append(f"{reader.name} holds no rows")
        if reader.rows.bad_example is not None:
            self.examples.setdefault(bad, reader.rows.bad_example)
        self.note("record over several lines", reader.rows.several_lines)

    def remark_table(self, reader: Reader, what: str, rows: int) -> None:
        """The same of a file of the item or the user table."""
        self.note(f"{what}: unparsable lines", reader.rows.bad_lines)
        self._remark(reader, f"{what}: unparsable lines", rows)

    def note(self, what: str, count: int) -> None:
        if count:
            self.noted[what] += count


def _may_be_integers(reader: Reader, column: str) -> bool:
    """Whether the type of a column of ids allows that all of them are integers."""
    dtype = reader.columns[column]
    if isinstance(dtype, (pl.List, pl.Array)):
        dtype = dtype.inner  # type: ignore[assignment]
    assert dtype is not None
    return dtype.is_integer() or dtype.is_float() or reader.untyped(column)


def _refuse_brackets(lists: pl.Series) -> None:
    """Raise a DataError where lists are written as those of Python or JSON: no separator of
    elements takes their brackets away."""
    text = lists.cast(pl.String).drop_nulls().head(1000).str.strip_chars()
    text = text.filter(text != "")
    if len(text) and bool(text.str.contains(r"^(\[.*\]|\(.*\))$").all()):
        raise DataError(
            f"column {lists.name!r} holds lists in brackets, such as {text[0]!r:.60}; write the "
            "items alone with list_split between them, or lists in Parquet or JSON lines"
        )


def _plus_one(codes: pl.Series) -> NDArray[np.uint32]:
    if codes.null_count():
        return (codes + 1).fill_null(0).to_numpy()
    return codes.to_numpy() + np.uint32(1)


def stretch(bounds: list[int], values: Array) -> None:
    """Make ``bounds``, the least and the greatest, hold ``values``."""
    bounds[0] = min(bounds[0], int(values.min()))
    bounds[1] = max(bounds[1], int(values.max()))
