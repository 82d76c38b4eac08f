"""Events of all sources, read in batches, checked, and spooled in partitions by user."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.canonical import iso
from limerank.data.pipeline import ahead
from limerank.data.prepare.asked import Asked
from limerank.data.prepare.checks import UNITS, better_unit, seem_written
from limerank.data.prepare.coding import RowCoder
from limerank.data.prepare.findings import Findings
from limerank.data.prepare.ids import Mask, TextIdsError
from limerank.data.prepare.logfiles import LogFile, sealed
from limerank.data.prepare.opening import OpenSources
from limerank.data.prepare.partition import Array, Spool
from limerank.data.sources import Reader
from limerank.data.spec import EventSource
from limerank.progress import Bar

PARTITION_ROWS = 1 << 18
"""Small enough that sorting stays within the processor's cache."""


class Spooling:
    """Reads and checks the events of all sources; then they are in spools, in no order yet.

    Attributes:
        asked: what is to be prepared.
        sources: the open files and frames.
        coder: the codes of ids and values.
        findings: what was read, and what was wrong with it.
        spool, lists: events, and the lists of sources whose rows are lists.
        part_limit: partitions with more rows do not fit the memory.
        requests_given: whether a source has request ids.
        shown_sources: which sources are scored.
        history_only: whether events that are no positives are not scored.
        earlier, earlier_events: the dataset whose codes are used, and its events where it is
            extended; None: there is none.
        some_hidden: whether some events are not scored.
        read_rows: how many rows were read, without those of earlier events.
    """

    spool: Spool
    lists: Spool | None
    part_limit: int
    coder: RowCoder
    read_rows: int

    def __init__(self, asked: Asked, work: Path, quiet: bool) -> None:
        """``work`` takes the spools."""
        spec = asked.inputs.spec
        self.asked, self.spec, self.work, self.quiet = asked, spec, work, quiet
        self.room, self.earlier, self.earlier_events = asked.room, asked.earlier, asked.events
        self.sources = self.opened()
        self.findings = Findings()
        self.requests_given = any(source.request is not None for source in spec.events)
        self.shown_sources = np.array([source.shown for source in spec.events])
        self.history_only = spec.requests_by == "event" and not any(
            label.of_every_event for label in spec.labels
        )
        self.some_hidden = self.history_only or not bool(self.shown_sources.all())

    def opened(self) -> OpenSources:
        """The sources, open."""
        return OpenSources(self.asked)

    def read(self) -> None:
        """Spool all events.

        Raises:
            DataError: a file cannot be read, or too many rows are bad.
        """
        self.spool_events()
        self.findings.check_splits(self.spec.split)
        self.read_rows = self.findings.rows
        if self.earlier_events is not None:
            if self.findings.rows:
                self.findings.check_share(self.spec.checks.max_bad_share)
            self.findings.include(self.earlier_events.summary)
        self.findings.check_types(self.spec.labels)
        for label in self.spec.labels:
            self.findings.note_unread(label, [one for of in self.sources.readers for one in of])
        self.findings.check_share(self.spec.checks.max_bad_share)

    def spool_events(self) -> None:
        """Spool the events, from the beginning once more where ids turn out to be text."""
        while True:
            self.findings = Findings()
            self.coder = RowCoder(self.sources, self.findings)
            try:
                self.make_spools()
                self.fill_spools()
                self._close_spools()
                return
            except TextIdsError as found:
                self.ids_are_text(0 if found.ids is self.coder.items else 1)
                self._close_spools()
                shutil.rmtree(self.work)

    def ids_are_text(self, which: int) -> None:
        """Take note that ids of items (0) or of users (1) are text."""
        self.sources.integral[which] = False

    def fill_spools(self) -> None:
        """Read all rows of all sources."""
        findings = self.findings
        total = sum(reader.rows.size for of in self.sources.readers for reader in of)
        with Bar("reading", total=total, unit="bytes", quiet=self.quiet) as bar:
            for number, readers in enumerate(self.sources.readers):
                begin = findings.rows
                for reader in readers:
                    self.read_rows_of(reader, number, bar)
                self.check_where([reader.selection.values for reader in readers], number, begin)

    def check_where(
        self, values: Sequence[Mapping[str, Counter[str]]], number: int, begin: int
    ) -> None:
        """Check that a source has the values of its ``where``.

        Args:
            values: of each of its files, rows by value.
            number: of the source.
            begin: how many rows were read before it.
        """
        if values and self.earlier_events is None:  # a day may have no such rows
            rows = self.findings.rows - begin
            self.findings.check_where(self.spec.events[number], values, rows)

    def read_rows_of(self, reader: Reader, number: int, bar: Bar) -> None:
        """Read a file or frame of a source of events."""
        source, coder, findings = self.spec.events[number], self.coder, self.findings
        code = coder.lists if source.lists else coder.events
        spool = self.lists if source.lists else self.spool
        assert spool is not None
        before = findings.rows
        coder.reading = reader.name
        done = 0.0
        # Three steps, each in its own thread: decode, check, spool.
        frames = ahead(self._with_users(reader, source))
        with reader.named():
            for columns in ahead(code(*one, source, number) for one in frames):
                spool.add(columns)
                at = reader.rows.position(findings.rows - before)
                bar.advance(at - done, note=f"{findings.rows:,} rows")
                done = at
        bar.advance(reader.rows.size - done)
        findings.remark_events(reader, before)

    def _with_users(
        self, reader: Reader, source: EventSource
    ) -> Iterator[tuple[pl.DataFrame, Array, Mask]]:
        """A file's batches, each with its users' codes and which of them are known."""
        first = True
        for frame in reader.batches(self.sources.columns(source), self.asked.batch_bytes):
            if first and source.time is not None:
                self._check_unit(reader, source, frame[source.time])
                first = False
            yield frame, *self.coder.users.codes(frame[source.user])

    def _check_unit(self, reader: Reader, source: EventSource, times: pl.Series) -> None:
        """Say so where the first times of a file seem to have another unit than the one given."""
        found = better_unit(times, source)
        where = f"{reader.name}: times of column {times.name!r} are such as"
        if found is not None:
            unit, example = found
            given = f'the "{source.time_unit}" given'
            if "time_unit" not in source.model_fields_set:
                given = f'"{source.time_unit}" (the default)'
            hint = (
                f"{where} {example:.0f}, which is {iso(round(example * UNITS[unit]))} with "
                f'time_unit = "{unit}", not with {given}'
            )
        elif seem_written(times, source):
            hint = f'{where} {times.drop_nulls()[0]!r}: set time_unit = "text"'
        else:
            return
        self.findings.unit_hints.append(hint)
        self.findings.remarks.append(hint)
        self.findings.examples.setdefault("missing or unparsable time", hint)

    def shown(self, columns: dict[str, Array]) -> NDArray[np.bool_]:
        """Which of the spooled events are scored."""
        shown = np.ones(len(columns["time"]), bool)
        if "source" in columns:
            shown = self.shown_sources[columns["source"]]
        if self.history_only:
            weights = [columns[f"label_{label.name}"] for label in self.spec.labels]
            shown = shown & np.any([weight > 0 for weight in weights], 0)
        return shown

    def sealed_files(self) -> list[list[LogFile]]:
        """The files of each source, with their checksums."""
        return sealed(self.sources.files)

    def make_spools(self, bits: int | None = None) -> None:
        """Spools with ``2**bits`` partitions; by default enough of them that sorting three at once
        fits the memory."""
        rows = 0.0
        for source, readers in zip(self.spec.events, self.sources.readers, strict=True):
            for reader in readers:
                known = reader.rows.count is not None
                rows += reader.rows.estimated_count * (40 if source.lists and known else 1)
        row_bytes = sum(np.dtype(dtype).itemsize for dtype in self.coder.dtypes.values())
        limit = max(self.room // (3 * (4 * row_bytes + 100)), 1 << 12)
        self.part_limit = limit
        if bits is None:
            bits = 0
            while bits < 8 and rows / (1 << bits) > min(limit // 2, PARTITION_ROWS):
                bits += 1
        self.spool = Spool(self.work / "events", self.coder.dtypes, bits)
        self.lists = None
        if any(source.lists for source in self.spec.events):
            dtypes: dict[str, Any] = {
                "user": np.uint64,
                "time": np.int64,
                "source": np.uint8,
                "length": np.int64,
                "values": self.coder.dtypes["item"],
            }
            self.lists = Spool(self.work / "lists", dtypes, bits, ragged="values")

    def _close_spools(self) -> None:
        self.spool.close()
        if self.lists is not None:
            self.lists.close()
