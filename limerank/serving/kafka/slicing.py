"""Write the log as Parquet parts that ``prepare`` reads: the rows of ``limerank export``.

A *part* has the rows of a range of offsets of one partition: items that were shown, with the
outcomes that followed, and events that followed no exposure. Its name has the partition and the
offsets, so that a folder itself says what it has: a part appears complete, by a rename, and the
next one begins where it ends. A process that is killed at any moment loses and doubles nothing.

Ranges are slices of time: a part ends before the first record that was written in the next slice.
It is written when the window after its end is over, since outcomes may follow until then; they are
read from the log behind the part, and exposures of its events from the log before it. All of a
user's changes are in one partition, so no other part is needed. Rows belong to the part that has
their exposure, or event, in its range: never to two.
"""

from __future__ import annotations

import logging
import re
import time as clock
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from limerank.data.attribution import WINDOW
from limerank.data.canonical import LARGEST_TIME
from limerank.data.description import write_spec
from limerank.data.events import Event
from limerank.data.exposures import Exposure
from limerank.data.spec import Spec
from limerank.errors import DataError, FormatError
from limerank.files import make_folder, new_file
from limerank.parts import Part
from limerank.serving.export.columns import Columns, spooled, writer_of
from limerank.serving.export.describing import description_of, expected, positives
from limerank.serving.export.rows import Row, rows_of_user
from limerank.serving.kafka.applying import decoded
from limerank.serving.kafka.dead import DeadLetters
from limerank.serving.kafka.reading import LogReader
from limerank.serving.kafka.records import Features, Forget, Item, change_of
from limerank.serving.stores import Id, Outcome, SqliteStore

log = logging.getLogger("limerank.serving.kafka")
SLICE = 3600.0
"""Seconds of the log in a part, unless others are chosen."""
LATE = 600.0
"""Seconds by which a record may reach the log after the time of its event or exposure, and still be
joined with what is a window away."""
DESCRIPTION = "log.toml"
"""The file of the description in the folder."""
MOST_SHOWN = 1 << 30
"""Exposures of a user in a slice: no bound."""
_name = re.compile(r"part-(\d{5})-(\d{15})-(\d{15})\.parquet")


class Slice(NamedTuple):
    """A part to be written: offsets of a partition, and of what is read around them.

    Attributes:
        partition: of the log.
        since, until: the offsets of the part; the end is excluded.
        first, last: the offsets that are read.
    """

    partition: int
    since: int
    until: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """The name of the part's file."""
        return f"part-{self.partition:05d}-{self.since:015d}-{self.until:015d}.parquet"


class Slicer:
    """Writes the partitions of a log into a folder of Parquet parts.

    Args:
        reader: reads the log; for this slicer alone.
        out: the folder; it is continued.
        like: the labels and features of this description are columns of every part.
        dead: where records that cannot be read go.
        part: the partitions of this process; all when not given.
        since: a position to begin with, by partition, where the folder has no part of it yet.
        window: seconds after an item was shown in which an event counts as its outcome.
        seconds: the length of a slice.

    Attributes:
        written: the parts that were written so far, and
        rows: their rows.

    Raises:
        FormatError: the parts of the folder overlap, or are of another topic.
        StoreError: the brokers do not answer.
    """

    def __init__(
        self,
        reader: LogReader,
        out: Path,
        like: Spec,
        dead: DeadLetters,
        *,
        part: Part | None = None,
        since: dict[int, int] | None = None,
        window: float = WINDOW,
        seconds: float = SLICE,
    ) -> None:
        self.reader, self.out, self.like, self.dead = reader, out, like, dead
        self.window, self.length = round(1000 * window), round(1000 * seconds)
        self.margin = self.window + round(1000 * LATE)
        make_folder(out)
        self._describe()
        self.partitions = reader.partitions(part)
        self.written = self.rows = 0
        self.positions: dict[int, int] = {}
        self._forgotten: dict[int, dict[Id, int]] = {}
        self._scanned: dict[int, int] = {}
        ends = ends_of(out)
        for partition in self.partitions:
            low, high = reader.ends(partition)
            position = ends.get(partition, (since or {}).get(partition, low))
            if position > high:
                raise FormatError(
                    f"{out} has partition {partition} up to offset {position}, but the log ends at "
                    f"{high}: the topic was created again; consume into a new folder"
                )
            if position < low:
                log.error(
                    "%d records of partition %d were deleted from the log before they were "
                    "written; raise retention.ms of the topic",
                    low - position, partition,
                )  # fmt: skip
            self.positions[partition] = max(position, low)
            self._forgotten[partition] = {}
            self._scanned[partition] = self.positions[partition]

    def _describe(self) -> None:
        path = self.out / DESCRIPTION
        columns = Columns()
        columns.expect(*expected(self.like))
        spec = description_of(
            self.out / "part-*.parquet", columns, not positives(self.like), 1, self.like,
            name=self.out.name,
        )  # fmt: skip
        write_spec(path, spec, self.out)

    def behind(self) -> int:
        """Records that are in no part yet."""
        return sum(
            max(0, self.reader.ends(partition)[1] - position)
            for partition, position in self.positions.items()
        )

    def step(self, now: float | None = None) -> int:
        """Write the next part of each partition whose window is over; returns how many.

        Args:
            now: seconds since 1970; the present when not given.

        Raises:
            StoreError: the brokers do not answer: nothing is lost, and a new slicer goes on.
            DataError: there are too many dead letters.
        """
        before = self.written
        for partition in self.partitions:
            found = self._next(partition, clock.time() if now is None else now)
            if found is not None:
                self._write(found)
                self.positions[partition] = found.until
        return self.written - before

    def _next(self, partition: int, now: float) -> Slice | None:
        low, high = self.reader.ends(partition)
        position = self.positions[partition]
        first = next(self.reader.between(partition, position, high, 1), None)
        if first is None:
            return None
        begin = first[0].time // self.length * self.length
        end = begin + self.length
        if end + self.margin > 1000 * now:
            return None
        until = self.reader.first_at(partition, end, first[0].offset + 1, high)
        return Slice(
            partition,
            position,
            until,
            self.reader.first_at(partition, begin - self.margin, low, position),
            self.reader.first_at(partition, end + self.margin, until, high),
        )

    def _write(self, one: Slice) -> None:
        self._look_ahead(one.partition)
        path = self.out / one.name
        with (
            TemporaryDirectory(prefix="limerank-slice-") as folder,
            SqliteStore(Path(folder) / "slice.db", most_exposures=MOST_SHOWN) as store,
        ):
            own = self._collect(one, store)
            rows = self._rows(store, own)
            with (
                new_file(path) as partial,
                spooled(Path(folder), rows, zero_labels=True) as spool,
            ):
                spool.columns.expect(*expected(self.like))
                writer_of(path)(partial, spool)
                self.rows += spool.count
        self.written += 1

    def _look_ahead(self, partition: int) -> None:
        """Know the users who were deleted up to the end of the log."""
        _, end = self.reader.ends(partition)
        for records in self.reader.between(partition, self._scanned[partition], end):
            for one in records:
                if b'"forget"' not in (one.value or b""):
                    continue
                try:
                    change = change_of(one.value)
                except DataError:
                    continue  # a dead letter, when its part is written
                if isinstance(change, Forget):
                    self._forgotten[partition][change.user] = one.offset
        self._scanned[partition] = end

    def _collect(self, one: Slice, store: SqliteStore) -> set[tuple[Id, bytes | str]]:
        """Put what is read for a part into a store; returns what of it is the part's own. The
        first of several records with one id counts."""
        forgotten = self._forgotten[one.partition]
        own: set[tuple[Id, bytes | str]] = set()
        for records in self.reader.between(one.partition, one.first, one.last):
            events: list[tuple[Event, bool]] = []
            exposures: list[tuple[Exposure, bool]] = []
            for record, change in decoded(records, self.dead):
                if isinstance(change, (Features, Forget, Item)):
                    continue
                if record.offset < forgotten.get(change.user, -1):
                    continue
                mine = one.since <= record.offset < one.until
                if isinstance(change, Event):
                    events.append((change, mine))
                else:
                    exposures.append((change, mine))
            accepted = store.append([event for event, _ in events])
            for (event, mine), outcome in zip(events, accepted, strict=True):
                if mine and outcome is Outcome.ACCEPTED:
                    own.add((event.user, event.id))
            shown = store.show([exposure for exposure, _ in exposures])
            for (exposure, mine), outcome in zip(exposures, shown, strict=True):
                if mine and outcome is Outcome.ACCEPTED:
                    own.add((exposure.user, exposure.ranking))
        return own

    def _rows(self, store: SqliteStore, own: set[tuple[Id, bytes | str]]) -> Iterator[Row]:
        def belongs(of: Event | Exposure) -> bool:
            return (of.user, of.id if isinstance(of, Event) else of.ranking) in own

        users = sorted({user for user, _ in own}, key=lambda user: (isinstance(user, str), user))
        for user in users:
            yield from rows_of_user(
                store.exposures(user, 1 - LARGEST_TIME, LARGEST_TIME),
                store.between(user, 1 - LARGEST_TIME, LARGEST_TIME),
                self.window,
                belongs,
                shown=not positives(self.like),
            )


def ends_of(out: Path) -> dict[int, int]:
    """Partition -> the offset at which the parts of a folder end.

    Raises:
        FormatError: parts of a partition overlap, or one is missing between others.
    """
    found: dict[int, int] = {}
    for path in sorted(out.glob("part-*.parquet")):
        match = _name.fullmatch(path.name)
        if match is None:
            continue
        partition, since, until = map(int, match.groups())
        end = found.get(partition, since)
        if since < end:
            raise FormatError(
                f"{path} begins at offset {since}, and the part before it ends at {end}: rows "
                "would be read twice; remove one of them, or consume into a new folder"
            )
        if since > end:
            log.warning("%s: the log from offset %d to %d is in no part", path, end, since)
        found[partition] = until
    return found
