"""Spooled events, sorted by user and time, and read again in blocks of complete users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.folder import LOG
from limerank.data.pipeline import ahead, in_order
from limerank.data.prepare.checks import NO_ID, request_steps
from limerank.data.prepare.clock import Clock
from limerank.data.prepare.coding import stretch
from limerank.data.prepare.earlier import EarlierEvents
from limerank.data.prepare.findings import DUPLICATE
from limerank.data.prepare.gaps import Gaps
from limerank.data.prepare.ids import Mask
from limerank.data.prepare.merging import UserEvents, merge, together
from limerank.data.prepare.partition import (
    MULTIPLIER,
    Array,
    NpyReader,
    NpyWriter,
    Spool,
    group_order,
    radix_order,
    shuffle,
    stable_order,
    sync,
)
from limerank.data.prepare.spooling import Spooling
from limerank.data.ragged import ragged_index
from limerank.data.summary import UNSORTED
from limerank.errors import DataError
from limerank.progress import Bar

FINAL = ("time", "label_", "ratio_")
"""Columns of the sorted events that are part of the dataset as they are."""
BLOCK_ROWS = 1 << 18
BEFORE = "event before the window (since)"
"""Of events that are left out because they are too old."""


@dataclass(frozen=True)
class SortedPart:
    """The sorted events of some users, the gaps between impressions, counts of rows by reason."""

    events: UserEvents
    gaps: Gaps
    noted: Counter[str]


@dataclass
class Block:
    """Consecutive events of complete users."""

    first_user: int
    first_event: int
    counts: NDArray[np.int64]
    columns: dict[str, Array]

    @property
    def size(self) -> int:
        return int(self.counts.sum())


class SortedEvents:
    """All events, by user and time, each once.

    Attributes:
        keys, user_counts, total: the users that have events, in order, how many events each has,
            and all have.
        rows, user_total: the row of each of these users in the dataset, and how many users that
            has: known users without events are among them.
        seeds: by row, what decides at random about a user.
        time_range, shown_range: the first and the last time of all events, and of those shown.
        shown_total: how many events are shown.
        some_hidden, requests_given: whether some are not, and whether a source has request ids.
        clock: which times are outliers.
        gaps: between consecutive impressions without a request id.
    """

    def __init__(self, spools: Spooling, folder: Path) -> None:
        """``folder`` is that of the dataset: it takes the columns that are part of it."""
        self._spools, self._folder, self._since = spools, folder, spools.asked.since
        self._spec, self._work = spools.spec, spools.work
        self._room, self._quiet = spools.room, spools.quiet
        self.some_hidden, self.requests_given = spools.some_hidden, spools.requests_given
        self._constants = {
            number: spools.coder.constants(source)
            for number, source in enumerate(spools.spec.events)
            if source.lists
        }

    def sort(self, aside: ThreadPoolExecutor) -> None:
        """Sort each partition and append its columns to the arrays of all events.

        Arrays that are part of the dataset are made durable by ``aside`` meanwhile.

        Raises:
            DataError: no events are left, or none of a source with ``shown``.
        """
        spools = self._spools
        noted = spools.findings.noted
        user_keys: list[NDArray[np.uint64]] = []
        user_counts: list[NDArray[np.int64]] = []
        self.time_range = [np.iinfo(np.int64).max, np.iinfo(np.int64).min]
        self.shown_range = list(self.time_range)
        self.shown_total = 0
        dtypes = {name: t for name, t in spools.coder.dtypes.items() if name != "user"}
        if self.some_hidden:
            dtypes["shown"] = np.bool_
        if spools.requests_given:
            dtypes["request"] = np.uint8
            dtypes["request_key"] = np.uint64
        self._dtypes = dtypes
        writers = {name: NpyWriter(self._path(name), dtype) for name, dtype in dtypes.items()}
        total = int(spools.spool.rows.sum())
        if spools.earlier_events is not None:
            total += spools.earlier_events.total
        self.clock = Clock(total)
        self.gaps = Gaps()
        with Bar("sorting", total=total, unit="events", quiet=self._quiet) as bar:
            for part in self._sorted():
                found, n = part.events, len(part.events)
                noted.update(part.noted)
                if n == 0:
                    continue
                user_keys.append(found.users)
                user_counts.append(found.counts)
                for name, writer in writers.items():
                    writer.append(found.columns[name])
                self.gaps.include(part.gaps)
                times = found.columns["time"]
                stretch(self.time_range, times)
                self.clock.add(times)
                if self.some_hidden:
                    times = times[found.columns["shown"]]
                if len(times):
                    stretch(self.shown_range, times)
                    self.shown_total += len(times)
                bar.advance(n)
        for writer in writers.values():
            writer.close()
            if self._work not in writer.path.parents:
                aside.submit(sync, writer.path)
        hints = spools.findings.unit_hints
        if hints and self.clock.future == self.clock.total:
            raise DataError(f"all events are later than the present: {hints[0]}")
        self.clock.finish()
        if not user_keys:
            raise DataError(
                f"the log has no usable events: {spools.findings.rows:,} rows read"
                + (f", {noted[BEFORE]:,} of them before since" if noted[BEFORE] else "")
            )
        self.keys = np.concatenate(user_keys)
        self.user_counts = np.concatenate(user_counts)
        self.total = int(self.user_counts.sum())
        self._number_users()
        if self.shown_total == 0:
            raise DataError(
                "no event of a source with shown = true is left: nothing to score"
                if not spools.history_only
                else "no event is a positive: lower at_least, or name other values"
            )

    def _path(self, name: str) -> Path:
        """The file of a column."""
        raw = {"source", "split", "request_key"} | {
            f"feature_{feature.name}"
            for feature in self._spec.event_features
            if feature.kind == "numeric" and feature.when != "impression"
        }
        folder = self._folder / LOG if name in raw else self._work / "sorted"
        return (self._folder / "events" if name.startswith(FINAL) else folder) / f"{name}.npy"

    def _number_users(self) -> None:
        """The rows of the users in the dataset: known ones first, in their order."""
        coder, earlier = self._spools.coder, self._spools.earlier
        self.rows, self.user_total = np.arange(len(self.keys)), len(self.keys)
        if earlier is None:
            self.seeds = self.keys
            return
        known = len(earlier.users)
        codes = coder.user_codes(self.keys)
        new = np.flatnonzero(codes >= known)
        self.user_total = known + len(new)
        self.rows = codes.copy()
        self.rows[new] = known + np.arange(len(new))
        seeds = earlier.seeds
        if seeds is None:
            seeds = user_seeds(coder.users.values(np.arange(known)))
        self.seeds = np.concatenate([seeds, user_seeds(coder.users.values(codes[new]))])

    @property
    def all_users(self) -> NDArray[np.int64]:
        """The code of each user of the dataset, by row."""
        coder, earlier = self._spools.coder, self._spools.earlier
        codes = coder.user_codes(self.keys)
        if earlier is None:
            return codes
        known = len(earlier.users)
        return np.concatenate([np.arange(known), codes[codes >= known]])

    def stream(self, wanted: list[str]) -> Iterator[Block]:
        """These columns of the sorted events, a block of complete users at a time."""
        files = {}
        for name in wanted:
            if name == "shown" and not self.some_hidden:
                continue
            files[name] = NpyReader(self._path(name), self._dtypes[name])
        ends = np.cumsum(self.user_counts)
        size = int(min(max(self._room // 1000, 1 << 12), BLOCK_ROWS))
        first_user = first_event = 0
        try:
            while first_user < len(ends):
                last = int(np.searchsorted(ends, first_event + size, side="right"))
                last = max(last, first_user + 1)
                count = int(ends[last - 1]) - first_event
                columns = {name: file.read(count) for name, file in files.items()}
                if not self.some_hidden:
                    columns["shown"] = np.ones(count, bool)
                yield Block(first_user, first_event, self.user_counts[first_user:last], columns)
                first_user, first_event = last, first_event + count
        finally:
            for file in files.values():
                file.close()

    def _sorted(self) -> Iterator[SortedPart]:
        """All events in order, those of a dataset that is extended among them."""
        spools = self._spools
        parts = in_order(self._sort_part, self._parts(spools.spool, spools.lists))
        if spools.earlier_events is None:
            return parts
        return ahead(self._merged(parts, spools.earlier_events))

    def _merged(self, parts: Iterator[SortedPart], earlier: EarlierEvents) -> Iterator[SortedPart]:
        counted: list[Counter[str]] = []

        def new() -> Iterator[UserEvents]:
            for part in parts:
                counted.append(part.noted)
                if len(part.events):
                    yield part.events

        def old() -> Iterator[UserEvents]:
            for users, counts, columns in earlier.chunks(self._spools.coder.features):
                if self.some_hidden:
                    columns["shown"] = self._spools.shown(columns)
                keys = self._spools.coder.user_keys(users)
                found = self._since_events(UserEvents(keys, counts, columns))
                counted.append(found.noted)
                if len(found.events):
                    yield found.events

        minor = ["time"] + ["shown"] * self.some_hidden + ["source"] * (len(self._spec.events) > 1)
        for earlier_part, new_part in together(old(), new()):
            events, tied = merge(earlier_part, new_part, minor)
            noted: Counter[str] = Counter()
            if tied:
                rank = np.repeat(np.arange(len(events.users)), events.counts)
                keep = self._distinct(events.columns, rank, np.zeros(len(events), bool))
                if keep is not None:
                    noted[DUPLICATE] = int((~keep).sum())
                    events = events.where(keep)
            while counted:
                noted.update(counted.pop())
            yield self._finished(events, noted)
        yield SortedPart(_EMPTY, Gaps(), sum(counted, Counter()))

    def _since_events(self, events: UserEvents) -> SortedPart:
        """Those of the events that are not before ``since``."""
        noted: Counter[str] = Counter()
        if self._since is not None:
            keep = events.columns["time"] >= self._since
            noted[BEFORE] = int((~keep).sum())
            events = events.where(keep) if noted[BEFORE] else events
        return SortedPart(events, Gaps(), noted)

    def _finished(self, events: UserEvents, noted: Counter[str]) -> SortedPart:
        """Events with their steps within requests, and the gaps between impressions."""
        columns = events.columns
        new_user = np.zeros(len(events), bool)
        new_user[np.cumsum(events.counts) - events.counts] = True
        free = columns.get("shown", np.ones(len(new_user), bool))
        if self._spools.requests_given:
            keys = columns["request"]
            steps = request_steps(keys, free, new_user)
            columns = {**columns, "request_key": keys, "request": steps}
            free = free & (steps == NO_ID)
        gaps = Gaps()
        gaps.add(columns["time"], free, new_user)
        return SortedPart(UserEvents(events.users, events.counts, columns), gaps, noted)

    def _parts(
        self, spool: Spool, lists: Spool | None, depth: int = 0
    ) -> Iterator[tuple[Spool, Spool | None, int]]:
        """All partitions by user, those that are too large for memory divided further."""
        for part in range(1 << spool.bits):
            rows = int(spool.rows[part]) + (0 if lists is None else int(lists.rows[part]))
            if rows > self._spools.part_limit and depth < 8:
                finer = None if lists is None else lists.split(part)
                yield from self._parts(spool.split(part), finer, depth + 1)
            elif rows:
                yield spool, lists, part

    def _sort_part(self, pair: tuple[Spool, Spool | None, int]) -> SortedPart:
        spool, lists, number = pair
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
        # Each user's events are in the order of the files, which is mostly that of time.
        time = columns["time"][order]
        same_user = rank[1:] == rank[:-1]
        earlier = same_user & (time[1:] < time[:-1])
        if "source" in columns:
            source = columns["source"][order]
            tied = earlier & (source[1:] == source[:-1]) & (order[1:] < first_list)
            unsorted = int(tied.sum())
        else:
            unsorted = int(earlier.sum())
        if self.some_hidden:
            shown = self._spools.shown({name: array[order] for name, array in columns.items()})
            wrong = same_user & (time[1:] == time[:-1]) & shown[:-1] & ~shown[1:]
            if earlier.any() or wrong.any():
                order = order[stable_order(rank, (time - time.min()) * 2 + shown)]
        elif earlier.any():
            order = order[stable_order(rank, time)]
        columns = {name: array[order] for name, array in columns.items()}
        if self.some_hidden:
            columns["shown"] = self._spools.shown(columns)
        keep = self._distinct(columns, rank, order >= first_list)
        if keep is not None:
            columns = {name: array[keep] for name, array in columns.items()}
            lengths = np.bincount(rank[keep], minlength=len(users))
        noted = Counter(
            {
                DUPLICATE: n - len(columns["time"]),
                UNSORTED: unsorted,
                "list that does not continue the one before": broken,
            }
        )
        found = self._since_events(UserEvents(users, lengths, columns))
        noted.update(found.noted)
        if self._spools.earlier_events is not None:
            return SortedPart(found.events, found.gaps, noted)
        return self._finished(found.events, noted)

    def _distinct(self, columns: dict[str, Array], rank: Array, exempt: NDArray[np.bool_]) -> Mask:
        """A mask of the sorted rows without exact repetitions of earlier ones (None: all)."""
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
        values += [columns[f"label_{label.name}"][rows] for label in self._spec.labels]
        types = {label.column for label in self._spec.labels if label.typed}
        values += [
            columns[f"feature_{feature.name}"][rows]
            for feature in self._spec.event_features
            if feature.column in types and feature.kind == "categorical"
        ]
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
        """The events in a partition's lists, each once, in order."""
        n = len(lists["user"])
        dtypes = self._spools.coder.dtypes
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
        # The common case for all lists at once: a list begins with the full list before it.
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
        for number, source in enumerate(self._spec.events):
            if source.lists:
                rows = events["source"] == number
                for name, value in self._constants[number].items():
                    events[name][rows] = value
        return events, broken


def user_seeds(ids: pl.Series) -> NDArray[np.uint64]:
    """What decides at random about users: by their ids alone, u64."""
    if ids.dtype == pl.Int64:
        return shuffle(ids.to_numpy())
    return ids.hash().to_numpy().astype(np.uint64)


_EMPTY = UserEvents(np.zeros(0, np.uint64), np.zeros(0, np.int64), {})


def _overlap(old: Array, new: Array) -> int:
    """How many items at the beginning of ``new`` are the end of the list ``old`` before it."""
    for at in np.flatnonzero(old == new[0]).tolist():
        length = min(len(old) - at, len(new))
        if np.array_equal(old[at : at + length], new[:length]):
            return length
    return 0
