"""Export a part of an event store as a log."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from limerank.data.attribution import WINDOW
from limerank.data.canonical import LARGEST_TIME
from limerank.data.description import absolute_pattern, load_spec, write_spec
from limerank.data.spec import Spec, Table
from limerank.errors import FormatError, SpecError
from limerank.files import new_file
from limerank.progress import Bar
from limerank.serving.export.columns import spooled, writer_of
from limerank.serving.export.describing import description_of, expected, positives
from limerank.serving.export.rows import Row, rows_of
from limerank.serving.stores import EventStore
from limerank.storage.uris import known_uri


class Exported(NamedTuple):
    """The result of :func:`export`.

    Attributes:
        users: how many users have rows.
        rankings: how many exposures became rows.
        shown: rows of shown items.
        acted: those of them that an event followed.
        events: rows of events that followed no exposure.
        since, until: the time of the rows; the end is excluded.
        description: the description that was written, or None.
    """

    users: int
    rankings: int
    shown: int
    acted: int
    events: int
    since: int
    until: int
    description: Path | None


class _Counts:
    def __init__(self) -> None:
        self.users = self.rankings = self.shown = self.acted = self.events = 0


def export(
    store: EventStore,
    out: str | os.PathLike[str],
    *,
    since: int = 1 - LARGEST_TIME,
    until: int | None = None,
    window: float = WINDOW,
    describe: bool = False,
    like: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> Exported:
    """Write events and exposures of a store as a log, which appears when it is complete.

    A row is an item that a user was shown, with the greatest value of each label over the events
    that followed it within the window, and 0 for labels without such an event; or an event that
    followed no exposure. The same part of an unchanged store gives the same file. Memory grows
    with the number of users' ids, not with the log.

    Args:
        store: the event store.
        out: the log: ``.parquet``, ``.csv`` or ``.jsonl``.
        since, until: times of rows, in milliseconds since 1970 (or an order); the end is excluded.
            By default the end is a window before now, so that the outcomes of all rows are known.
        window: seconds (of a log without a clock: thousands of steps) from an exposure to an
            event, at most.
        describe: also write a description, beside the log with the ending ``.toml``.
        like: a dataset or a description whose labels, features and tables the description gets,
            and whose labels and features are columns also where no row has them.
            Where all its labels are positives, rows are events alone: what was not chosen is no
            part of such a log.
        overwrite: replace existing files.
        quiet: show no progress.

    Raises:
        SpecError: the ending is unknown, the times or the window are wrong, or there is nothing to
            describe.
        FormatError: a file exists, and ``overwrite`` is false.
        StoreError: the store cannot be reached.
    """
    path = Path(out)
    write = writer_of(path)
    if not 0 < window <= LARGEST_TIME / 1e4:
        raise SpecError(f"the window is {window:g} seconds, expected more than 0")
    length = round(1000 * window)
    spec = None if like is None else spec_like(Path(like))
    described = path.with_suffix(".toml") if describe or like is not None else None
    for file in (path, described):
        if file is not None and file.exists() and not overwrite:
            raise FormatError(f"{file} already exists; pass --overwrite or choose another name")
    if until is None:
        with_clock = spec is None or spec.clock
        until = int(clock.time() * 1000) - length if with_clock else LARGEST_TIME - length
    if since >= until:
        raise SpecError(
            f"nothing is between {since} and {until}: give a --since before --until, which is a "
            "window before now by default"
        )
    counts = _Counts()
    rows = _rows(store, since, until, length, not positives(spec), counts, quiet)
    with new_file(path) as partial, spooled(path.parent, rows, zero_labels=True) as spool:
        if spec is not None:
            spool.columns.expect(*expected(spec))
        if described is not None and not spool.columns.labels:
            raise SpecError(
                f"the {spool.count:,} rows between {since} and {until} have no label, which a "
                "description needs; export without one, or a longer time"
            )
        write(partial, spool)
        if described is not None:  # a log never appears without its description
            found = description_of(path, spool.columns, counts.shown, counts.events, spec)
            published = known_uri(path) is not None  # both files, beside each other
            write_spec(described, found, path.parent, [path.name] if published else ())
    return Exported(
        counts.users,
        counts.rankings,
        counts.shown,
        counts.acted,
        counts.events,
        since,
        until,
        described,
    )


def spec_like(like: Path) -> Spec:
    """The description at a path, or of a dataset; its tables are found from any folder."""
    file = like / "spec.toml" if like.is_dir() else like
    spec = load_spec(file)
    tables = {}
    for name in ("items", "users"):
        table: Table | None = getattr(spec, name)
        if table is not None:
            found = tuple(absolute_pattern(pattern, file.parent) for pattern in table.files)
            tables[name] = table.model_copy(update={"files": found})
    return spec.model_copy(update=tables)


def _rows(
    store: EventStore,
    since: int,
    until: int,
    window: int,
    shown: bool,
    counts: _Counts,
    quiet: bool,
) -> Iterator[Row]:
    users = sorted(store.users(), key=lambda user: (isinstance(user, str), user))
    with Bar("exporting", total=len(users), unit="users", quiet=quiet) as bar:
        for user in users:
            rankings, found = set(), False
            for row in rows_of(store, user, since, until, window, shown=shown):
                found = True
                if row.source == "event":
                    counts.events += 1
                else:
                    rankings.add(row.ranking)
                    counts.shown += 1
                    counts.acted += row.outcomes > 0
                yield row
            counts.users += found
            counts.rankings += len(rankings)
            bar.advance(1)
