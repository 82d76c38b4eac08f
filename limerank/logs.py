"""Logs in, dataset out: ``limerank prepare``.

Rows are read in batches, checked, and spooled to disk in partitions by user; each partition is
sorted by user and time in memory; then the sorted events are streamed twice, once to learn
vocabularies from the training window and once to write codes and requests. Memory stays below the
limit whatever the log's size, apart from what is kept of each user and each item (the
vocabularies and tables) and apart from the events of a single user, which are sorted together.

The folder's format is described in :mod:`limerank.dataset`.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tomli_w
from numpy.typing import NDArray

from limerank.errors import DataError
from limerank.files import new_folder, write_json, write_text
from limerank.partition import (
    MULTIPLIER,
    Array,
    Histogram,
    NpyReader,
    NpyWriter,
    Spool,
    ahead,
    group_order,
    in_order,
    radix_order,
    ragged_index,
    shuffle,
    stable_order,
    sync,
    unshuffle,
    values_at_ranks,
)
from limerank.progress import Bar
from limerank.schema import EventSource, Feature, Label, Spec, Table
from limerank.tables import (
    Encoding,
    Reader,
    as_numbers,
    as_text,
    encode,
    find_files,
    fit,
    vocabulary_of,
    whole_numbers,
)

Mask = NDArray[np.bool_] | None
"""Which rows; None: all of them."""

FORMAT = 1
SPLITS = ("train", "validation", "test")
EDGES = [k / 32 for k in range(1, 32)]
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
UNITS = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
ISO = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
ISO_ZONE = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z")
FINAL = ("time", "label_", "ratio_")
"""Columns of the sorted events that are part of the dataset as they are."""
BATCH_BYTES = 24 << 20
PARTITION_ROWS = 1 << 18
"""Small enough that sorting stays within the processor's cache."""
BLOCK_ROWS = 1 << 18
LIBRARY_BYTES = 320 << 20
"""What Python and the libraries take before any work is done."""


class _TextIdsError(Exception):
    """Ids that looked like integers turned out to be text: read everything again."""

    def __init__(self, ids: _Ids) -> None:
        self.ids = ids


def prepare(
    spec: Spec,
    out: str | Path,
    *,
    base: Path = Path("."),
    memory: int = 2 << 30,
    overwrite: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """Turn the logs that ``spec`` describes into a dataset folder; returns its manifest.

    Args:
        spec: what is where; see :mod:`limerank.schema`.
        out: the dataset's folder. It appears only when it is complete.
        base: the folder that file names in ``spec`` are relative to.
        memory: bytes that the process may use, apart from vocabularies, the item and user
            tables, and the events of a single user. (Python and the libraries take about 200 MiB
            of it; a limit below 512 MiB only makes the parts smaller.)
        overwrite: replace ``out`` where it exists.
        quiet: show no progress.

    Raises:
        DataError: a file or a column is missing, or too many rows are bad (with the reasons).
        FormatError: ``out`` exists and ``overwrite`` is false.
    """
    with new_folder(out, overwrite=overwrite) as folder:
        job = _Job(spec, folder, Path(base), memory, quiet)
        return job.run()


def summary_text(manifest: dict[str, Any]) -> str:
    """What is in a dataset, for people."""
    counts, summary = manifest["counts"], manifest["summary"]
    lines = [
        f"dataset {manifest['name']}",
        f"  users {counts['users']:,}   items {counts['items']:,} "
        f"({manifest['encoding']['trained_items']:,} in the training window)   "
        f"events {counts['events']:,}",
    ]
    if manifest["clock"]:
        first, last = (_iso(summary["time"][key]) for key in ("first", "last"))
        lines.append(f"  from {first} to {last}")
    names = [label["name"] for label in manifest["encoding"]["labels"]]
    shares = [f"{int(100 * q)} %" for q in QUANTILES]
    lines.append("")
    head = f"  {'split':<12}{'requests':>12}{'impressions':>14}{'per request':>13}"
    lines.append(head + "".join(f"{'mean ' + name:>{max(12, len(name) + 7)}}" for name in names))
    for split in SPLITS:
        means = summary["labels"][split]
        row = f"  {split:<12}{counts['requests'][split]:>12,}{counts['impressions'][split]:>14,}"
        row += f"{summary['per_request'][split]:>13.2f}"
        for name in names:
            mean = means[name]
            row += f"{'-' if mean is None else f'{mean:.4f}':>{max(12, len(name) + 7)}}"
        lines.append(row)
    lines += ["", "  history length by request" + "".join(f"{share:>9}" for share in shares)]
    for split in SPLITS:
        values = summary["history"][split]
        lines.append(f"  {split:<25}" + "".join(f"{value:>9,}" for value in values))
    lines += ["", f"  rows read {summary['rows']:,}"]
    for reason, count in summary["dropped"].items():
        lines.append(f"  dropped {count:>12,}  {reason}")
    for reason, count in summary["noted"].items():
        lines.append(f"  noted   {count:>12,}  {reason}")
    lines += [f"  warning: {warning}" for warning in summary["warnings"]]
    return "\n".join(lines) + "\n"


def _iso(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"


class _Ids:
    """User or item ids as int64 codes: the integers themselves, or numbers given to texts."""

    def __init__(self, text: bool) -> None:
        self.text = text
        self._type = pl.Categorical(pl.Categories.random())
        # Polars forgets the numbers it gave to texts when the last series with them is gone.
        self._held = pl.Series([], dtype=self._type)

    def codes(self, values: pl.Series) -> tuple[Array, Mask]:
        """Codes, and which of them are known (None: all)."""
        dtype = values.dtype
        if dtype.is_nested():
            raise DataError(
                f"column {values.name!r} holds {dtype}, expected ids (for histories given as "
                "lists, set lists = true)"
            )
        if self.text:
            codes = self.of_text(as_text(values) if dtype.is_float() else values.cast(pl.String))
        elif dtype == pl.String:
            codes = whole_numbers(values)
            new = codes.null_count() - values.null_count()
            if new and new > int((values.str.len_bytes() == 0).sum()):
                raise _TextIdsError(self)
        elif dtype.is_float() or dtype == pl.UInt64:
            given = values.fill_nan(None) if dtype.is_float() else values
            codes = given.cast(pl.Int64, strict=False)
            if codes.null_count() > given.null_count() or (codes.cast(dtype) != given).any():
                raise _TextIdsError(self)
        elif dtype.is_integer() or dtype == pl.Null:
            codes = values.cast(pl.Int64)
        else:
            raise _TextIdsError(self)
        known = None
        if codes.null_count():
            known = codes.is_not_null().to_numpy()
            codes = codes.fill_null(0)
        return codes.to_numpy().astype(np.int64, copy=False), known

    def of_text(self, text: pl.Series) -> pl.Series:
        empty = (text.str.len_bytes() == 0).fill_null(False)
        if empty.any():
            text = text.set(empty, None)
        return text.cast(self._type).to_physical()

    def values(self, codes: Array) -> pl.Series:
        """The ids that have these codes."""
        if not self.text:
            return pl.Series("id", codes.astype(np.int64, copy=False))
        numbers = pl.Series("id", codes.astype(np.uint32))
        return numbers.cat.to(self._type).cast(pl.String)


@dataclass(frozen=True)
class _Counts:
    """Of the codes of one column: distinct codes, ascending, and sums over their events."""

    codes: Array
    sums: list[NDArray[np.int64]]


class _CodeCounter:
    """Adds up several 0/1 weights by code, in a table where the codes' range is small."""

    def __init__(self, low: int, high: int, weights: int, limit: int) -> None:
        self._low, self._range, self._weights = low, high - low + 1, weights
        self._table = np.zeros((weights, self._range), np.int32) if self._range <= limit else None
        self._parts: list[_Counts] = []
        self._pending = 0

    def add(self, codes: Array, masks: list[Mask]) -> None:
        """Count events; a weight's mask says which of them have it (None: all)."""
        if self._table is not None:
            at = codes.astype(np.int64, copy=False) - self._low
            for total, mask in zip(self._table, masks, strict=True):
                np.add.at(total, at if mask is None else at[mask], np.int32(1))
            return
        if len(codes) == 0:
            return
        low = int(codes.min())
        width = int(codes.max()) - low + 1
        if width <= 4 * len(codes):
            at = codes.astype(np.int64, copy=False) - low
            there = np.flatnonzero(np.bincount(at))
            unique = there + low
        else:
            unique, at = np.unique(codes, return_inverse=True)
            width, there = len(unique), np.arange(len(unique))
        sums = [
            np.bincount(at if mask is None else at[mask], minlength=width)[there] for mask in masks
        ]
        self._parts.append(_Counts(unique, sums))
        self._pending += len(unique)
        if len(self._parts) > 8 and self._pending > 3 * len(self._parts[0].codes):
            self._merge()

    def _merge(self) -> None:
        codes, inverse = np.unique(
            np.concatenate([part.codes for part in self._parts]), return_inverse=True
        )
        sums = [np.zeros(len(codes), np.int64) for _ in range(self._weights)]
        for k, total in enumerate(sums):
            np.add.at(total, inverse, np.concatenate([part.sums[k] for part in self._parts]))
        self._parts = [_Counts(codes, sums)]
        self._pending = 0

    def result(self) -> _Counts:
        """All codes with any event at all; the last weight must count every event."""
        if self._table is not None:
            at = np.flatnonzero(self._table[-1])
            return _Counts(at + self._low, [total[at].astype(np.int64) for total in self._table])
        if not self._parts:
            return _Counts(np.zeros(0, np.int64), [np.zeros(0, np.int64)] * self._weights)
        self._merge()
        return self._parts[0]


class _CodeMap:
    """Codes -> new int32 codes; a code that is not in the map gives 0."""

    def __init__(self, codes: Array, new: NDArray[np.int32], limit: int) -> None:
        order = np.argsort(codes, kind="stable")
        self._codes, self._new = codes[order], new[order]
        self._table: NDArray[np.int32] | None = None
        if len(codes):
            self._low, self._high = int(self._codes[0]), int(self._codes[-1])
            if self._high - self._low + 1 <= limit:
                self._table = np.zeros(self._high - self._low + 1, np.int32)
                self._table[self._codes - self._low] = self._new

    def __call__(self, codes: Array) -> NDArray[np.int32]:
        if len(self._codes) == 0 or len(codes) == 0:
            return np.zeros(len(codes), np.int32)
        codes = codes.astype(np.int64, copy=False)
        if self._table is not None:
            if int(codes.min()) >= self._low and int(codes.max()) <= self._high:
                return self._table[codes - self._low]
            outside = (codes < self._low) | (codes > self._high)
            found = self._table[np.where(outside, self._low, codes) - self._low]
            found[outside] = 0
            return found
        unique, inverse = np.unique(codes, return_inverse=True)
        at = np.minimum(np.searchsorted(self._codes, unique), len(self._codes) - 1)
        new = np.where(self._codes[at] == unique, self._new[at], 0).astype(np.int32)
        return new[inverse]


@dataclass(frozen=True)
class _SortedPart:
    """One partition, sorted: its users with their numbers of events, its columns, its dirt."""

    users: NDArray[np.uint64]
    counts: NDArray[np.int64]
    columns: dict[str, Array]
    duplicates: int = 0
    backwards: int = 0
    broken_lists: int = 0


@dataclass(frozen=True)
class _Stats:
    """What the summary says of each split."""

    impressions: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    requests: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    labels: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    lengths: list[NDArray[np.int64]] = field(
        default_factory=lambda: [np.zeros(1, np.int64) for _ in range(3)]
    )
    """How many requests have a history of 0, 1, 2 ... events."""

    def add(self, other: _Stats) -> None:
        self.impressions[:] += other.impressions
        self.requests[:] += other.requests
        for name, sums in other.labels.items():
            self.labels[name] += sums
        self.lengths[:] = map(_add_padded, self.lengths, other.lengths)


class _Job:
    """One run of :func:`prepare`."""

    def __init__(self, spec: Spec, folder: Path, base: Path, memory: int, quiet: bool) -> None:
        self.spec, self.folder, self.base = spec, folder, base
        self.memory, self.quiet = memory, quiet
        self.work = folder / "work"
        self.bad: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()
        self.warnings: list[str] = []
        self.rows = 0
        self.room = max(memory - LIBRARY_BYTES, memory // 8)
        self.table_limit = max(memory >> 8, 1 << 16)
        """Codes in a smaller range are counted and mapped by tables."""
        self.requests_given = any(source.request is not None for source in spec.events)

    def run(self) -> dict[str, Any]:
        self._open_sources()
        while True:
            try:
                self._read()
                break
            except _TextIdsError as found:
                self.integral[0 if found.ids is self.items else 1] = False
                self._close_spools()
                shutil.rmtree(self.work)
        self._check_share()
        with ThreadPoolExecutor(1) as aside:
            self.aside = aside
            self._sort()
            self._find_cuts()
            self._learn()
            self._write_items_and_users()
            self._write_events()
            shutil.rmtree(self.work)
            manifest = self._manifest()
            write_text(self.folder / "spec.toml", tomli_w.dumps(_without_none(manifest["spec"])))
            write_json(self.folder / "dataset.json", manifest)
        return manifest

    # 1. Reading

    def _open_sources(self) -> None:
        """Find files and columns, and guess which ids are integers."""
        spec = self.spec
        self.shown_sources = np.array([source.shown for source in spec.events])
        self.some_hidden = not bool(self.shown_sources.all())
        self.readers: list[list[Reader]] = []
        for source in spec.events:
            readers = [Reader(path, source) for path in find_files(source, self.base)]
            for reader in readers:
                reader.require(self._columns(source))
            self.readers.append(readers)
        tables = (spec.items, spec.users)
        types: list[list[tuple[pl.DataType, str]]] = [[], []]
        self.table_readers: list[list[Reader]] = [[], []]
        for k, table in enumerate(tables):
            if table is None:
                continue
            for path in find_files(table, self.base):
                reader = Reader(path, table)
                reader.require([table.id, *(feature.column for feature in table.features)])
                self.table_readers[k].append(reader)
                types[k].append((reader.columns[table.id], reader.kind))
        for source, readers in zip(spec.events, self.readers, strict=True):
            for reader in readers:
                item = reader.columns[source.item]
                if isinstance(item, (pl.List, pl.Array)):
                    item = item.inner  # type: ignore[assignment]
                types[0].append((item, reader.kind))
                types[1].append((reader.columns[source.user], reader.kind))
        self.integral = [
            all(dtype.is_integer() or dtype.is_float() or kind != "parquet" for dtype, kind in each)
            for each in types
        ]
        """Whether item ids and user ids are integers, as far as is known yet."""
        for k, table in enumerate(tables):
            if table is not None and self.integral[k]:
                ids = _Ids(False)
                try:
                    for reader in self.table_readers[k]:
                        for frame in reader.batches([table.id], BATCH_BYTES):
                            ids.codes(frame[table.id])
                except _TextIdsError:
                    self.integral[k] = False
        self.feature_is_text = {
            feature.name: self._is_text(feature.column) for feature in spec.event_features
        }

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
                    if not (dtype.is_integer() or dtype == pl.Boolean) or dtype == pl.UInt64:
                        return True
        return False

    def _columns(self, source: EventSource) -> list[str]:
        """The columns that are read of a source's files."""
        spec = self.spec
        wanted = [source.user, source.item]
        wanted += [column for column in (source.time, source.order, source.request) if column]
        if not source.lists:
            wanted += [label.column for label in spec.labels]
            wanted += [label.of for label in spec.labels if label.of is not None]
            wanted += [feature.column for feature in spec.event_features]
        return list(dict.fromkeys(c for c in wanted if c not in source.constant))

    def _read(self) -> None:
        spec = self.spec
        self.bad.clear()
        self.noted.clear()
        self.rows = 0
        self.users, self.items = (_Ids(not integral) for integral in reversed(self.integral))
        self.features = {
            feature.name: _Ids(self.feature_is_text[feature.name])
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
        total = sum(reader.path.stat().st_size for readers in self.readers for reader in readers)
        with Bar("reading", total=total, unit="bytes", quiet=self.quiet) as bar:
            for number, (source, readers) in enumerate(zip(spec.events, self.readers, strict=True)):
                check = self._check_lists if source.lists else self._check_events
                spool = self.lists if source.lists else self.spool
                assert spool is not None
                for reader in readers:
                    reader.bad_lines = 0
                    before = self.rows
                    done = 0.0
                    # Three steps, each in a thread of its own: decode, check, spool.
                    frames = ahead(self._with_users(reader, source))
                    for columns in ahead(check(*one, source, number) for one in frames):
                        spool.add(columns)
                        at = reader.position(self.rows - before)
                        bar.advance(at - done, note=f"{self.rows:,} rows")
                        done = at
                    bar.advance(reader.path.stat().st_size - done)
                    self.bad["unparsable line"] += reader.bad_lines
                    self.rows += reader.bad_lines
        self._close_spools()

    def _dtype(self, ids: _Ids, columns: list[str]) -> type[np.integer[Any]]:
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
        for frame in reader.batches(self._columns(source), self.batch_bytes):
            yield frame, *self.users.codes(frame[source.user])

    def _make_spools(self) -> None:
        """Spools with enough partitions that sorting three of them at once fits the memory."""
        rows = 0.0
        for source, readers in zip(self.spec.events, self.readers, strict=True):
            for reader in readers:
                if reader.rows is not None:
                    rows += reader.rows * (40 if source.lists else 1)
                else:
                    rows += reader.path.stat().st_size * (6 if reader.compression else 1) / 16
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
        good = _Good(n, self.bad)
        good.check(known, "missing user id")
        items, known = self.items.codes(frame[source.item])
        good.check(known, "missing item id")
        times, known = _times(frame[source.time or source.order or ""], source)
        good.check(known, "missing or unparsable time")
        columns: dict[str, Array] = {"user": shuffle(users), "item": items, "time": times}
        if "source" in self.dtypes:
            columns["source"] = np.full(n, number, np.uint8)
        if self.requests_given:
            columns["request"] = np.zeros(n, np.uint64)
            if source.request is not None:
                columns["request"] = _request_keys(frame[source.request])
        for label in self.spec.labels:
            values = self._column(frame, source, label.column)
            length = None if label.of is None else self._column(frame, source, label.of)
            columns |= _label_columns(label, values, length, good)
        for feature in self.spec.event_features:
            values = self._column(frame, source, feature.column)
            columns[f"feature_{feature.name}"] = (
                _float32(as_numbers(values))
                if feature.kind == "numeric"
                else self._feature_codes(feature, values)
            )
        if good.mask is not None:
            columns = {name: array[good.mask] for name, array in columns.items()}
        self._widen(columns["item"])
        return columns

    def _widen(self, items: Array) -> None:
        if len(items):
            _stretch(self.item_range, items)

    def _feature_codes(self, feature: Feature, values: pl.Series) -> Array:
        """Codes of a categorical event feature: text numbers from 1 (0: missing), or integers."""
        ids = self.features[feature.name]
        if ids.text:
            text = values if values.dtype == pl.String else as_text(values)
            return _plus_one(ids.of_text(text))
        whole = values.cast(pl.Int64)
        if whole.null_count():
            whole = whole.fill_null(self._missing(feature))
        return whole.to_numpy()

    def _missing(self, feature: Feature) -> int:
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
        good = _Good(n, self.bad)
        good.check(known, "missing user id")
        times, known = _times(frame[source.time or source.order or ""], source)
        good.check(known, "missing or unparsable time")
        lists = frame[source.item]
        if isinstance(lists.dtype, pl.Array):
            lists = lists.arr.to_list()
        elif not isinstance(lists.dtype, pl.List):
            lists = lists.cast(pl.String).str.strip_chars().str.split(source.list_split)
        lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
        flat = lists.filter(pl.Series(lengths > 0)).explode()
        self._note("missing item ids within lists", flat.null_count())
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

    def _check_share(self) -> None:
        self.bad = +self.bad
        bad = sum(self.bad.values())
        table = "".join(f"\n  {count:>12,}  {reason}" for reason, count in self.bad.most_common())
        if self.rows and bad / self.rows > self.spec.checks.max_bad_share:
            raise DataError(
                f"{bad:,} of {self.rows:,} rows ({100 * bad / self.rows:.1f} %) are bad, more than "
                f"checks.max_bad_share = {self.spec.checks.max_bad_share} allows:{table}\n"
                "mend the log, mend its description, or raise the share"
            )
        if self.rows == bad:
            raise DataError(f"the log has no usable events: {self.rows:,} rows read{table}")

    # 2. Sorting

    def _sort(self) -> None:
        """Sort each partition and append its columns to the arrays of all events."""
        events = self.folder / "events"
        self.user_keys: list[NDArray[np.uint64]] = []
        user_counts: list[NDArray[np.int64]] = []
        self.time_range = [np.iinfo(np.int64).max, np.iinfo(np.int64).min]
        self.shown_range = list(self.time_range)
        self.shown_total = 0
        dtypes = {name: t for name, t in self.dtypes.items() if name not in ("user", "source")}
        if self.some_hidden:
            dtypes["shown"] = np.bool_
        if self.requests_given:
            dtypes["request"] = np.uint8
        self.sorted_dtypes = dtypes
        writers = {
            name: NpyWriter(
                (events if name.startswith(FINAL) else self.work / "sorted") / f"{name}.npy", dtype
            )
            for name, dtype in dtypes.items()
        }
        total = int(self.spool.rows.sum())
        with Bar("sorting", total=total, unit="events", quiet=self.quiet) as bar:
            for part in in_order(self._sort_part, self._parts(self.spool, self.lists)):
                n = len(part.columns["time"])
                if n == 0:
                    continue
                self.user_keys.append(part.users)
                user_counts.append(part.counts)
                self.noted["duplicate row"] += part.duplicates
                self.noted["time going backwards"] += part.backwards
                self.noted["list that does not continue the one before"] += part.broken_lists
                for name, writer in writers.items():
                    writer.append(part.columns[name])
                times = part.columns["time"]
                _stretch(self.time_range, times)
                if self.some_hidden:
                    times = times[part.columns["shown"]]
                if len(times):
                    _stretch(self.shown_range, times)
                    self.shown_total += len(times)
                bar.advance(n)
        for name, writer in writers.items():
            writer.close()
            if name.startswith(FINAL):
                self.aside.submit(sync, writer.path)
        if not self.user_keys:
            raise DataError(f"the log has no usable events: {self.rows:,} rows read")
        self.keys = np.concatenate(self.user_keys)
        self.user_counts = np.concatenate(user_counts)
        self.total = int(self.user_counts.sum())
        if self.shown_total == 0:
            raise DataError("no event of a source with shown = true is left: nothing to score")

    def _parts(
        self, spool: Spool, lists: Spool | None, depth: int = 0
    ) -> Iterator[tuple[Spool, Spool | None, int]]:
        """All partitions by user, those that are too large for memory divided further."""
        for part in range(1 << spool.bits):
            rows = int(spool.rows[part]) + (0 if lists is None else int(lists.rows[part]))
            if rows > self.part_limit and depth < 8:
                finer = None if lists is None else lists.split(part)
                yield from self._parts(spool.split(part), finer, depth + 1)
            elif rows:
                yield spool, lists, part

    def _sort_part(self, place: tuple[Spool, Spool | None, int]) -> _SortedPart:
        spool, lists, number = place
        columns = spool.load(number)
        broken = 0
        first_list = len(columns["user"])
        if lists is not None:
            new, broken = self._list_events(lists.load(number))
            columns = {name: np.concatenate([columns[name], new[name]]) for name in columns}
        keys = columns.pop("user")
        n = len(keys)
        order, keys, starts = group_order(keys)
        users = keys[starts]
        lengths = np.diff(np.append(starts, n))
        rank = np.repeat(np.arange(len(starts)), lengths)
        # Each user's events now stand as in the files; mostly that is in order of time already.
        time = columns["time"][order]
        same_user = rank[1:] == rank[:-1]
        earlier = same_user & (time[1:] < time[:-1])
        if "source" in columns:
            source = columns["source"][order]
            told = earlier & (source[1:] == source[:-1]) & (order[1:] < first_list)
            backwards = int(told.sum())
        else:
            backwards = int(earlier.sum())
        if self.some_hidden:
            shown = self.shown_sources[source]
            wrong = same_user & (time[1:] == time[:-1]) & shown[:-1] & ~shown[1:]
            if earlier.any() or wrong.any():
                order = order[stable_order(rank, (time - time.min()) * 2 + shown)]
        elif earlier.any():
            order = order[stable_order(rank, time)]
        columns = {name: array[order] for name, array in columns.items()}
        if self.some_hidden:
            columns["shown"] = self.shown_sources[columns["source"]]
        keep = self._distinct(columns, rank, order >= first_list)
        if keep is not None:
            columns = {name: array[keep] for name, array in columns.items()}
            lengths = np.bincount(rank[keep], minlength=len(users))
        if self.requests_given:
            columns["request"] = _request_steps(columns["request"])
        return _SortedPart(users, lengths, columns, n - len(columns["time"]), backwards, broken)

    def _distinct(self, columns: dict[str, Array], rank: Array, exempt: NDArray[np.bool_]) -> Mask:
        """Which sorted rows to keep, where some repeat an earlier one exactly (None: all)."""
        time = columns["time"]
        tie = (rank[1:] == rank[:-1]) & (time[1:] == time[:-1])
        in_tie = np.zeros(len(time), bool)
        in_tie[1:] = tie
        in_tie[:-1] |= tie
        in_tie &= ~exempt
        rows = np.flatnonzero(in_tie)
        if len(rows) < 2:
            return None
        group = np.cumsum(np.concatenate([[True], ~tie]))[rows].astype(np.uint64)
        values = [columns["item"][rows]] + ([columns["shown"][rows]] if self.some_hidden else [])
        values += [columns[f"label_{label.name}"][rows] for label in self.spec.labels]
        mixed = group
        for value in values:
            mixed = mixed * np.uint64(MULTIPLIER)
            mixed ^= mixed >> np.uint64(32)
            bits = value.view(np.uint32) if value.dtype == np.float32 else value
            mixed += bits.astype(np.uint64)
        mixed *= np.uint64(MULTIPLIER)
        short = (mixed >> np.uint64(32)).astype(np.uint32)
        order = radix_order(mixed >> np.uint64(32), 32)
        same = np.flatnonzero(short[order[1:]] == short[order[:-1]])
        if len(same) == 0:
            return None
        candidates = np.unique(order[np.concatenate([same, same + 1])])
        frame = pl.DataFrame(
            {"group": group[candidates]}
            | {f"value_{k}": value[candidates] for k, value in enumerate(values)}
        )
        first = frame.with_row_index("at").unique(frame.columns, keep="first")["at"].to_numpy()
        if len(first) == len(candidates):
            return None
        keep = np.ones(len(time), bool)
        keep[rows[np.delete(candidates, first)]] = False
        return keep

    def _list_events(self, lists: dict[str, Array]) -> tuple[dict[str, Array], int]:
        """The events that a partition's lists tell of, each once, in order."""
        n = len(lists["user"])
        dtypes = self.dtypes
        if n == 0:
            return {name: np.zeros(0, dtype) for name, dtype in dtypes.items()}, 0
        order, _, starts = group_order(lists["user"])
        new_user = np.zeros(n, bool)
        new_user[starts] = True
        order = order[stable_order(np.cumsum(new_user) - 1, lists["time"][order])]
        length = lists["length"][order]
        start = (np.cumsum(lists["length"]) - lists["length"])[order]
        values = lists["values"]
        broken = 0
        # The common case at once: a list that begins with the whole one before it.
        previous = np.maximum(np.arange(n) - 1, 0)
        shared = np.where(new_user, 0, np.minimum(length, length[previous]))
        same = values[ragged_index(start, shared)] == values[ragged_index(start[previous], shared)]
        row = np.repeat(np.arange(n), shared)
        differs = np.bincount(row[~same], minlength=n) > 0
        skip = np.where(differs, 0, shared)
        for k in np.flatnonzero(differs).tolist():
            old = values[start[k - 1] : start[k - 1] + length[k - 1]]
            new = values[start[k] : start[k] + length[k]]
            skip[k] = _overlap(old, new)
            broken += int(skip[k] == 0)
        count = length - skip
        index = ragged_index(start + skip, count)
        owner = order[np.repeat(np.arange(n), count)]
        events: dict[str, Array] = {
            "user": lists["user"][owner],
            "item": values[index],
            "time": lists["time"][owner] - 1,
            "source": lists["source"][owner],
        }
        total = len(index)
        for name, dtype in dtypes.items():
            if name not in events:
                events[name] = np.zeros(total, dtype)
        for number, source in enumerate(self.spec.events):
            if source.lists:
                self._fill_constants(events, source, events["source"] == number)
        return events, broken

    def _fill_constants(
        self, events: dict[str, Array], source: EventSource, rows: NDArray[np.bool_]
    ) -> None:
        for label in self.spec.labels:
            value = source.constant.get(label.column)
            key = f"label_{label.name}"
            if label.kind == "binary":
                threshold = 1.0 if label.at_least is None else label.at_least
                events[key][rows] = float(value or 0.0) >= threshold
            else:
                events[key][rows] = np.nan if value is None else float(value) * label.scale
            if label.of is not None:
                events[f"ratio_{label.name}"][rows] = np.nan
        for feature in self.spec.event_features:
            given = source.constant.get(feature.column)
            key = f"feature_{feature.name}"
            if feature.kind == "numeric":
                events[key][rows] = np.nan if given is None else float(given)
            elif given is not None:
                events[key][rows] = self._feature_codes(feature, pl.Series([given]))[0]
            else:
                events[key][rows] = self._missing(feature)

    # 3. Learning from the training window

    def _stream(self, wanted: list[str]) -> Iterator[_Block]:
        """These columns of the sorted events, a stretch of whole users at a time."""
        files = {}
        for name in wanted:
            if name == "shown" and not self.some_hidden:
                continue
            folder = self.folder / "events" if name.startswith(FINAL) else self.work / "sorted"
            files[name] = NpyReader(folder / f"{name}.npy", self.sorted_dtypes[name])
        ends = np.cumsum(self.user_counts)
        size = int(min(max(self.room // 1000, 1 << 12), BLOCK_ROWS))
        first_user = first_event = 0
        try:
            while first_user < len(ends):
                last = int(np.searchsorted(ends, first_event + size, side="right"))
                last = max(last, first_user + 1)
                count = int(ends[last - 1]) - first_event
                columns = {name: file.read(count) for name, file in files.items()}
                if not self.some_hidden:
                    columns["shown"] = np.ones(count, bool)
                yield _Block(first_user, first_event, self.user_counts[first_user:last], columns)
                first_user, first_event = last, first_event + count
        finally:
            for file in files.values():
                file.close()

    def _find_cuts(self) -> None:
        """The times at which validation and testing begin."""
        split = self.spec.split
        self.cuts: list[int] | None = None
        if split.cuts is not None:
            self.cuts = list(split.cuts)
        elif split.by == "time":

            def blocks() -> Iterator[NDArray[np.int64]]:
                for block in ahead(self._stream(["time", "shown"])):
                    times = block.columns["time"]
                    yield times[block.columns["shown"]] if self.some_hidden else times

            ranks = [
                min(int(share * self.shown_total + 1e-9), self.shown_total - 1)
                for share in (split.train, split.train + split.validation)
            ]
            self.cuts = values_at_ranks(blocks, self.shown_range[0], self.shown_range[1], ranks)

    def _splits(self, block: _Block) -> NDArray[np.uint8]:
        """The split of each event of a block; history-only events take part by time or place."""
        if self.cuts is not None:
            time = block.columns["time"]
            return (time >= self.cuts[0]).view(np.uint8) + (time >= self.cuts[1]).view(np.uint8)
        split = self.spec.split
        shown = block.columns["shown"]
        before = np.cumsum(shown) - shown
        starts = np.cumsum(block.counts) - block.counts
        before = before - np.repeat(before[starts], block.counts)
        totals = np.add.reduceat(shown.astype(np.int64), starts)
        first = np.floor(split.train * totals + 1e-9).astype(np.int64)
        second = np.floor((split.train + split.validation) * totals + 1e-9).astype(np.int64)
        return (before >= np.repeat(first, block.counts)).view(np.uint8) + (
            before >= np.repeat(second, block.counts)
        ).view(np.uint8)

    def _learn(self) -> None:
        spec = self.spec
        labels = [label for label in spec.labels if label.kind == "duration"]
        features = spec.event_features
        wanted = ["time", "shown", "item"]
        wanted += [f"label_{label.name}" for label in spec.labels]
        wanted += [f"feature_{feature.name}" for feature in features]
        item_counter = _CodeCounter(self.item_range[0], self.item_range[1], 3, self.table_limit)
        counters: dict[str, _CodeCounter] = {}
        for feature in features:
            if feature.kind == "categorical":
                counters[feature.name] = _CodeCounter(0, 0, 1, 0)
        label_histograms = {label.name: Histogram() for label in labels}
        histograms = {f.name: Histogram() for f in features if f.kind == "numeric"}
        self.label_sums = {label.name: 0.0 for label in spec.labels}
        self.train_shown = 0
        trained_users = np.zeros(len(self.keys), bool)
        with Bar("learning", total=self.total, unit="events", quiet=self.quiet) as bar:
            for block in ahead(self._stream(wanted)):
                columns = block.columns
                train = self._splits(block) == 0
                impressions = train & columns["shown"] if self.some_hidden else train
                item_counter.add(columns["item"], [impressions, train, None])
                starts = np.cumsum(block.counts) - block.counts
                users = slice(block.first_user, block.first_user + len(block.counts))
                trained_users[users] = np.add.reduceat(train.astype(np.int64), starts) > 0
                self.train_shown += int(impressions.sum())
                for label in spec.labels:
                    values = columns[f"label_{label.name}"]
                    self.label_sums[label.name] += float(values[impressions].sum(dtype=np.float64))
                    if label.kind == "duration":
                        label_histograms[label.name].add(values[train & (values > 0)])
                for feature in features:
                    values = columns[f"feature_{feature.name}"]
                    if feature.kind == "numeric":
                        histograms[feature.name].add(values[train & np.isfinite(values)])
                    else:
                        counters[feature.name].add(values[train], [None])
                bar.advance(block.size)
        if self.train_shown == 0:
            raise DataError(
                "the training window holds no impressions; check the split's cut points or shares"
                + (f" (training ends at {_iso(self.cuts[0])})" if self.cuts else "")
            )
        self.trained_users = trained_users
        self.item_counts = item_counter.result()
        self.label_edges = {n: h.quantiles(EDGES) for n, h in label_histograms.items()}
        self.feature_edges = {n: h.quantiles(EDGES) for n, h in histograms.items()}
        self.feature_maps: dict[str, _CodeMap] = {}
        self.feature_sizes: dict[str, int] = {}
        for feature in features:
            if feature.kind != "categorical":
                continue
            counts = counters[feature.name].result()
            ids = self.features[feature.name]
            known = counts.codes != self._missing(feature)
            codes, sums = counts.codes[known], counts.sums[0][known]
            text = as_text(ids.values(codes - 1 if ids.text else codes))
            frame = pl.DataFrame({"value": text, "count": sums})
            vocabulary = vocabulary_of(
                frame.group_by("value").agg(pl.col("count").sum()), feature.min_count
            )
            new = (
                pl.DataFrame({"value": text})
                .join(vocabulary, on="value", how="left", maintain_order="left")["code"]
                .fill_null(0)
                .to_numpy()
            )
            self.feature_maps[feature.name] = _CodeMap(codes, new, self.table_limit)
            self.feature_sizes[feature.name] = len(vocabulary) + 1
            self._write_vocab(f"event_{feature.name}", vocabulary)

    def _write_vocab(self, name: str, frame: pl.DataFrame) -> None:
        path = self.folder / "vocab" / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        frame.write_parquet(path)

    # 4. Items and users

    def _write_items_and_users(self) -> None:
        spec = self.spec
        counts = self.item_counts
        frame, codes = pl.DataFrame(), np.zeros(0, np.int64)
        if spec.items is not None:
            readers = self.table_readers[0]
            frame, codes = self._read_table(spec.items, readers, self.items, "item", None)
        later = np.setdiff1d(codes, counts.codes) if len(codes) else codes
        all_codes = np.concatenate([counts.codes, later])
        zeros = np.zeros(len(later), np.int64)
        impressions = np.concatenate([counts.sums[0], zeros])
        training = np.concatenate([counts.sums[1], zeros])
        order = (
            pl.DataFrame(
                {
                    "later": training == 0,
                    "impressions": -impressions,
                    "id": self.items.values(all_codes),
                    "at": np.arange(len(all_codes)),
                }
            )
            .sort(["later", "impressions", "id"])["at"]
            .to_numpy()
        )
        all_codes = all_codes[order]
        self.trained_items = int((training > 0).sum())
        self.item_map = _CodeMap(
            all_codes, np.arange(len(all_codes), dtype=np.int32), self.table_limit
        )
        self.item_total = len(all_codes)
        ids = self.items.values(all_codes)
        self._write_vocab("items", pl.DataFrame({"id": ids}))
        with NpyWriter(self.folder / "items" / "train_count.npy", np.int64) as writer:
            writer.append(impressions[order])
        rows = self.item_map(codes).astype(np.int64)
        self.item_encoding = self._write_content(
            "item", spec.items, frame, rows, rows < self.trained_items, len(all_codes)
        )

        user_codes = unshuffle(self.keys)
        self._write_vocab("users", pl.DataFrame({"id": self.users.values(user_codes)}))
        frame, rows = pl.DataFrame(), np.zeros(0, np.int64)
        if spec.users is not None:
            order = np.argsort(user_codes, kind="stable")
            ascending = user_codes[order]
            readers = self.table_readers[1]
            frame, codes = self._read_table(spec.users, readers, self.users, "user", ascending)
            rows = order[np.searchsorted(ascending, codes)]
        self.user_encoding = self._write_content(
            "user", spec.users, frame, rows, self.trained_users[rows], len(user_codes)
        )

    def _read_table(
        self, table: Table, readers: list[Reader], ids: _Ids, what: str, wanted: Array | None
    ) -> tuple[pl.DataFrame, Array]:
        """A table's rows without repeated ids, and the code of each.

        ``wanted`` are the codes whose rows are kept, ascending (None: all).
        """
        columns = [table.id, *(feature.column for feature in table.features)]
        frames, parts = [], []
        for reader in readers:
            reader.bad_lines = 0
            for frame in reader.batches(columns, BATCH_BYTES):
                codes, known = ids.codes(frame[table.id])
                keep = np.ones(len(frame), bool) if known is None else known
                self._note(f"{what} table: rows without an id", int((~keep).sum()))
                if wanted is not None:
                    at = np.minimum(np.searchsorted(wanted, codes), len(wanted) - 1)
                    keep = keep & (wanted[at] == codes)
                frames.append(frame.filter(pl.Series(keep)))
                parts.append(codes[keep])
            self._note(f"{what} table: unparsable lines", reader.bad_lines)
        if not frames:
            raise DataError(f"{', '.join(table.files)}: the table has no rows")
        codes = np.concatenate(parts)
        first = pl.Series(codes).is_first_distinct()
        self._note(f"{what} table: rows with an id seen before", int((~first).sum()))
        rows = pl.concat(frames, how="vertical_relaxed").filter(first)
        return rows, codes[first.to_numpy()]

    def _note(self, what: str, count: int) -> None:
        if count:
            self.noted[what] += count

    def _write_content(
        self,
        kind: str,
        table: Table | None,
        frame: pl.DataFrame,
        rows: NDArray[np.int64],
        trained: NDArray[np.bool_],
        count: int,
    ) -> Encoding:
        features = table.features if table is not None else ()
        ids = frame[table.id] if table is not None else pl.Series("id", [], dtype=pl.Int64)
        encoding = fit(frame, features, trained, ids)
        content = encode(frame, features, encoding, ids, rows=rows, count=count)
        folder = self.folder / f"{kind}s"
        folder.mkdir(exist_ok=True)
        np.save(folder / "tokens.npy", content.tokens)
        np.save(folder / "token_weights.npy", content.weights)
        np.save(folder / "token_offsets.npy", content.offsets)
        np.save(folder / "numeric.npy", content.numeric)
        for name, vocabulary in encoding.vocabularies.items():
            self._write_vocab(f"{kind}_{name}", vocabulary)
        return encoding

    # 5. Codes and requests

    def _write_events(self) -> None:
        spec = self.spec
        dtypes: dict[str, Any] = {"events/item": np.int32}
        dtypes |= {f"events/feature_{feature.name}": np.int32 for feature in spec.event_features}
        dtypes |= {f"requests/{name}": np.int32 for name in ("user", "count")}
        dtypes |= {f"requests/{n}": np.int64 for n in ("first", "history_start", "history_end")}
        dtypes |= {"requests/split": np.uint8}
        if spec.history.keep is not None:
            dtypes["history/rows"] = np.int64
        writers = {
            name: NpyWriter(self.folder / f"{name}.npy", dtype) for name, dtype in dtypes.items()
        }
        wanted = ["time", "shown", "item"] + [f"label_{label.name}" for label in spec.labels]
        wanted += ["request"] if self.requests_given else []
        wanted += [f"feature_{feature.name}" for feature in spec.event_features]
        stats = self.stats = _Stats(labels={label.name: np.zeros(3) for label in spec.labels})
        kept = 0
        with Bar("writing", total=self.total, unit="events", quiet=self.quiet) as bar:
            for size, arrays, sums in in_order(self._finish, self._stream(wanted)):
                if "history/rows" in arrays:
                    arrays["requests/history_start"] += kept
                    arrays["requests/history_end"] += kept
                    kept += len(arrays["history/rows"])
                for name, writer in writers.items():
                    writer.append(arrays[name])
                stats.add(sums)
                bar.advance(size)
        for writer in writers.values():
            writer.close()

    def _finish(self, block: _Block) -> tuple[int, dict[str, Array], _Stats]:
        """What is written of a block, and its part of the summary.

        (Positions in ``history/rows`` are those within the block's part of it.)
        """
        spec, columns = self.spec, block.columns
        arrays: dict[str, Array] = {"events/item": self.item_map(columns["item"])}
        for feature in spec.event_features:
            values = columns[f"feature_{feature.name}"]
            if feature.kind == "numeric":
                edges = np.array(self.feature_edges[feature.name], np.float32)
                above = np.searchsorted(edges, values, side="right")
                codes = np.where(np.isfinite(values), above + 1, 0)
            else:
                codes = self.feature_maps[feature.name](values)
            arrays[f"events/feature_{feature.name}"] = codes
        splits = self._splits(block)
        first, count, end = self._requests(block, splits)
        owner = np.repeat(np.arange(len(block.counts)), block.counts)[first]
        start = (np.cumsum(block.counts) - block.counts)[owner]
        if spec.history.keep is None:
            start, end = start + block.first_event, end + block.first_event
        else:
            mask = columns[f"label_{spec.history.keep}"] != 0
            arrays["history/rows"] = np.flatnonzero(mask) + block.first_event
            before = np.concatenate([[0], np.cumsum(mask)])
            start, end = before[start], before[end]
        split = splits[first]
        arrays |= {
            "requests/user": owner + block.first_user,
            "requests/first": first + block.first_event,
            "requests/count": count,
            "requests/history_start": start,
            "requests/history_end": end,
            "requests/split": split,
        }
        shown = columns["shown"] if self.some_hidden else slice(None)
        where = splits[shown]
        sums = {
            label.name: np.bincount(
                where, columns[f"label_{label.name}"][shown], minlength=3
            ).astype(np.float64)
            for label in spec.labels
        }
        lengths = [np.bincount((end - start)[split == k]) for k in range(3)]
        stats = _Stats(
            np.bincount(where, minlength=3), np.bincount(split, minlength=3), sums, lengths
        )
        return block.size, arrays, stats

    def _requests(self, block: _Block, split: NDArray[np.uint8]) -> tuple[Array, Array, Array]:
        """The requests of a block: first row, impressions, end of the history; within the block."""
        columns, n = block.columns, block.size
        time, shown = columns["time"], columns["shown"]
        new_user = np.zeros(n, bool)
        new_user[np.cumsum(block.counts) - block.counts] = True
        new_time = new_user.copy()
        new_time[1:] |= time[1:] != time[:-1]
        begin = new_user.copy()
        begin[1:] |= (split[1:] != split[:-1]) | ~shown[:-1]
        by_gap: NDArray[np.bool_] | None = None
        if self.requests_given:
            step = columns["request"]
            by_gap = step == 0
            begin |= step == 1
            begin[1:] |= by_gap[1:] & ~by_gap[:-1]
        if self.spec.clock:
            far = np.diff(time) > self.spec.requests.gap * 1000
            begin[1:] |= far if by_gap is None else far & by_gap[1:]
        begin &= shown
        starts = np.flatnonzero(begin)
        if len(starts) == 0:
            empty = np.zeros(0, np.int64)
            return empty, empty, empty
        # A hidden event ends a run, so that a run is all the shown rows up to the next beginning.
        run = np.cumsum(begin)
        place = np.arange(n) - starts[np.maximum(run, 1) - 1]
        cut = (place % self.spec.requests.size == 0) & (place > 0) & shown
        if by_gap is not None:
            cut &= by_gap
        first = np.flatnonzero(begin | cut)
        shown_before = np.concatenate([[0], np.cumsum(shown)])
        count = np.diff(np.append(shown_before[first], shown_before[-1]))
        tie_start = np.maximum.accumulate(np.where(new_time, np.arange(n), 0))
        return first, count, tie_start[first]

    # 6. The manifest

    def _manifest(self) -> dict[str, Any]:
        spec, stats = self.spec, self.stats
        labels = []
        for label in spec.labels:
            mean = self.label_sums[label.name] / self.train_shown
            entry: dict[str, Any] = {"name": label.name, "kind": label.kind}
            entry |= {"ratio": label.of is not None, "mean": mean}
            if label.kind == "duration":
                entry["edges"] = self.label_edges[label.name]
            labels.append(entry)
        features = []
        for feature in spec.event_features:
            entry = {"name": feature.name, "kind": feature.kind, "when": feature.when}
            if feature.kind == "numeric":
                entry |= {"size": len(EDGES) + 2, "edges": self.feature_edges[feature.name]}
            else:
                entry["size"] = self.feature_sizes[feature.name]
            features.append(entry)
        impressions = dict(zip(SPLITS, stats.impressions.tolist(), strict=True))
        requests = dict(zip(SPLITS, stats.requests.tolist(), strict=True))
        for split in SPLITS[1:]:
            if not impressions[split]:
                self.warnings.append(f"the {split} split is empty")
        if spec.clock:
            low, high = self.time_range
            if low < 0 or high > 4_102_444_800_000 or high < 631_152_000_000:
                self.warnings.append(
                    f"times run from {_iso(low)} to {_iso(high)}: check the source's time_unit"
                )
        dropped = dict(self.bad.most_common())
        noted = {name: count for name, count in self.noted.items() if count}
        if "duplicate row" in noted:
            dropped["duplicate row"] = noted.pop("duplicate row")
        summary = {
            "time": {"first": self.time_range[0], "last": self.time_range[1]},
            "cuts": self.cuts,
            "labels": {
                split: {
                    name: float(sums[k] / stats.impressions[k]) if stats.impressions[k] else None
                    for name, sums in stats.labels.items()
                }
                for k, split in enumerate(SPLITS)
            },
            "history": {
                split: _quantiles_of_counts(stats.lengths[k]) for k, split in enumerate(SPLITS)
            },
            "history_quantiles": list(QUANTILES),
            "per_request": {
                split: impressions[split] / requests[split] if requests[split] else 0.0
                for split in SPLITS
            },
            "rows": self.rows,
            "bad": sum(self.bad.values()),
            "dropped": dropped,
            "noted": noted,
            "warnings": self.warnings,
        }
        return {
            "format": FORMAT,
            "name": spec.name,
            "clock": spec.clock,
            "spec": spec.model_dump(mode="json"),
            "encoding": {
                "trained_items": self.trained_items,
                "labels": labels,
                "event_features": features,
                "items": self.item_encoding.manifest,
                "users": self.user_encoding.manifest,
            },
            "counts": {
                "users": len(self.keys),
                "items": self.item_total,
                "events": self.total,
                "requests": requests,
                "impressions": impressions,
            },
            "summary": summary,
        }


@dataclass
class _Block:
    """Consecutive events of whole users."""

    first_user: int
    first_event: int
    counts: NDArray[np.int64]
    columns: dict[str, Array]

    @property
    def size(self) -> int:
        return int(self.counts.sum())


class _Good:
    """Which rows of a batch passed all checks so far; each bad row counts for one reason."""

    def __init__(self, rows: int, reasons: Counter[str]) -> None:
        self._rows, self._reasons = rows, reasons
        self.mask: Mask = None

    def check(self, fine: Mask, reason: str) -> None:
        if fine is None or fine.all():
            return
        mask = np.ones(self._rows, bool) if self.mask is None else self.mask
        self._reasons[reason] += int((mask & ~fine).sum())
        self.mask = mask & fine


def _label_columns(
    label: Label, values: pl.Series, length: pl.Series | None, good: _Good
) -> dict[str, Array]:
    """A label's columns, of all rows of a batch; what is wrong with them goes to ``good``."""
    key = f"label_{label.name}"
    if label.kind == "binary" and label.at_least is None and _zeros_and_ones(values):
        return {key: values.cast(pl.UInt8).to_numpy()}
    numbers = as_numbers(values)
    finite = np.isfinite(numbers)
    good.check(finite, f"missing label {label.name}")
    if label.kind == "binary" and label.at_least is not None:
        return {key: (numbers >= label.at_least).view(np.uint8)}
    if label.kind == "binary":
        positive = numbers == 1
        good.check(positive | (numbers == 0) | ~finite, f"label {label.name} is neither 0 nor 1")
        return {key: positive.view(np.uint8)}
    good.check((numbers >= 0) | ~finite, f"negative {label.name}")
    seconds = _float32(numbers * label.scale)
    if label.cap is not None:
        seconds = np.minimum(seconds, np.float32(label.cap))
    if length is None:
        return {key: seconds}
    whole = as_numbers(length)
    ratio = np.full(len(numbers), np.nan)
    np.divide(numbers, whole, out=ratio, where=whole > 0)
    return {key: seconds, f"ratio_{label.name}": _float32(ratio)}


def _zeros_and_ones(values: pl.Series) -> bool:
    if not values.dtype.is_integer() or values.null_count():
        return False
    low, high = values.min(), values.max()
    return isinstance(low, int) and isinstance(high, int) and low >= 0 and high <= 1


def _float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _times(values: pl.Series, source: EventSource) -> tuple[Array, NDArray[np.bool_] | None]:
    """Milliseconds since 1970 (or the order), and which are known (None: all)."""
    dtype = values.dtype
    if isinstance(dtype, pl.Datetime):
        result = values.dt.epoch("ms")
    elif dtype == pl.Date:
        result = values.cast(pl.Datetime("ms")).dt.epoch("ms")
    elif source.time is not None and source.time_unit == "text":
        result = _parse_times(values.cast(pl.String), source.time_format)
    else:
        factor = UNITS[source.time_unit] if source.time is not None else 1.0
        result = values.cast(pl.Int64, strict=False) if dtype == pl.String else values
        if dtype == pl.String and result.null_count() > values.null_count():
            result = values.cast(pl.Float64, strict=False)
        if not (result.dtype.is_numeric() or result.dtype == pl.Boolean):
            raise DataError(f"column {values.name!r} holds {dtype}, expected times or numbers")
        if result.dtype.is_integer():
            result = result.cast(pl.Int64, strict=False)
            limit = (1 << 62) // 1000
            if factor > 1:
                inside = result.is_between(-limit, limit).fill_null(False)
                if not inside.all():
                    result = result.set(~inside, None)
                result = result * int(factor)
            elif factor < 1:
                result = result // round(1 / factor)
        else:
            scaled = (result.cast(pl.Float64) * factor).fill_nan(None).floor()
            result = scaled.cast(pl.Int64, strict=False)
    inside = result.is_between(-(1 << 58), 1 << 58)
    if not inside.all():
        result = result.set(~inside.fill_null(False), None)
    if result.null_count():
        return result.fill_null(0).to_numpy(), result.is_not_null().to_numpy()
    return result.to_numpy().astype(np.int64, copy=False), None


def _parse_times(text: pl.Series, form: str | None) -> pl.Series:
    """Text as milliseconds since 1970; null where it is no time."""
    text = text.str.strip_chars()
    if form is not None:
        zoned = "%z" in form or "%#z" in form
        return _strptime(text, form, zoned)
    result = pl.Series(text.name, [None], dtype=pl.Int64).new_from_index(0, len(text))
    for iso in ISO + ISO_ZONE:
        if result.null_count() == text.null_count():
            break
        zoned = iso in ISO_ZONE
        source = text.str.replace(r"[Zz]$", "+00:00") if zoned else text
        result = result.zip_with(result.is_not_null(), _strptime(source, iso, zoned))
    return result


def _strptime(text: pl.Series, form: str, zoned: bool) -> pl.Series:
    kind = pl.Datetime("ms", "UTC") if zoned else pl.Datetime("ms")
    if form == "%Y-%m-%d":
        days = text.str.strptime(pl.Date, form, strict=False)
        return days.cast(pl.Datetime("ms")).dt.epoch("ms")
    return text.str.strptime(kind, form, strict=False).dt.epoch("ms")


def _request_keys(values: pl.Series) -> NDArray[np.uint64]:
    """A number for each request id, never 0; 0 where there is none."""
    if values.dtype.is_integer():
        keys = shuffle(values.cast(pl.Int64, strict=False).fill_null(0).to_numpy())
    else:
        values = values.cast(pl.String)
        keys = values.hash().to_numpy().astype(np.uint64)
    keys = np.where(keys == 0, np.uint64(1), keys)
    if values.null_count():
        keys[values.is_null().to_numpy()] = 0
    return keys


def _request_steps(keys: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Of each event: 0 without a request id, 2 with that of the event before it, else 1."""
    steps = (keys != 0).view(np.uint8)
    steps[1:] += (keys[1:] == keys[:-1]) & (keys[1:] != 0)
    return steps


def _plus_one(codes: pl.Series) -> NDArray[np.uint32]:
    if codes.null_count():
        return (codes + 1).fill_null(0).to_numpy()
    return codes.to_numpy() + np.uint32(1)


def _overlap(old: Array, new: Array) -> int:
    """How many of ``new`` a list ``old`` before it holds already, at its end."""
    for at in np.flatnonzero(old == new[0]).tolist():
        length = min(len(old) - at, len(new))
        if np.array_equal(old[at : at + length], new[:length]):
            return length
    return 0


def _stretch(bounds: list[int], values: Array) -> None:
    bounds[0] = min(bounds[0], int(values.min()))
    bounds[1] = max(bounds[1], int(values.max()))


def _add_padded(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(a) < len(b):
        a, b = b.copy(), a
    a[: len(b)] += b
    return a


def _quantiles_of_counts(counts: NDArray[np.int64]) -> list[int]:
    total = int(counts.sum())
    if total == 0:
        return [0 for _ in QUANTILES]
    ranks = [min(int(q * total), total - 1) for q in QUANTILES]
    return [int(v) for v in np.searchsorted(np.cumsum(counts), ranks, side="right")]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(v) for key, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_none(v) for v in value]
    return value
