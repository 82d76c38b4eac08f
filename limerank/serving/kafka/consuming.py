"""``limerank consume``: the log into a store and into Parquet parts, until it is stopped."""

from __future__ import annotations

import contextlib
import logging
import threading
import time as clock
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from limerank.data.attribution import WINDOW
from limerank.data.spec import Spec
from limerank.errors import SpecError, StoreError
from limerank.parts import Part
from limerank.progress import Bar
from limerank.serving.kafka.address import LogAddress
from limerank.serving.kafka.applying import REWIND, Applied, Applier
from limerank.serving.kafka.dead import MOST, DeadLetters
from limerank.serving.kafka.reading import GROUP, SECONDS, LogReader
from limerank.serving.kafka.slicing import SLICE, Slicer
from limerank.serving.stores import MOST_EXPOSURES, open_store

log = logging.getLogger("limerank.serving.kafka")
PATIENCE = 300.0
"""Seconds in which the brokers and the store may be unreachable before the command ends."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before the next attempt: at first, and at most; each wait is twice the one before."""
SLICE_SECONDS = 10.0
"""Seconds between two looks for parts to be written."""
BEHIND_SECONDS = 5.0
"""Seconds between two counts of what is not consumed yet."""
BEGINNING = 0
"""As a time: the first record."""


@dataclass(frozen=True)
class Consuming:
    """What is consumed, and where it goes.

    Attributes:
        address: the log.
        store: a store that changes are applied to, or None.
        out: a folder of Parquet parts, or None, and
        like: a description whose labels and features these have.
        dead: the file of records that cannot be read, and
        most_dead: how many it takes.
        part: the partitions of this process; all when None.
        group: the name under which the brokers store positions.
        since: milliseconds since 1970 (:data:`BEGINNING`: the first record), in place of stored
            positions; None: these.
        window, slice: seconds of the attribution, and of a part; see
            :class:`~limerank.serving.kafka.slicing.Slicer`.
        rewind: see :class:`~limerank.serving.kafka.applying.Applier`.
        most, most_exposures: see :func:`~limerank.serving.stores.open_store`.
        patience: seconds in which brokers and store may be unreachable.
        seconds: that the brokers have for an answer.
    """

    address: LogAddress
    store: str | None = None
    out: Path | None = None
    like: Spec | None = None
    dead: Path = Path("dead-letters.jsonl")
    most_dead: int = MOST
    part: Part | None = None
    group: str = GROUP
    since: int | None = None
    window: float = WINDOW
    slice: float = SLICE
    rewind: float = REWIND
    most: int | None = None
    most_exposures: int = MOST_EXPOSURES
    patience: float = PATIENCE
    seconds: float = SECONDS


class Consumed(NamedTuple):
    """The result of :func:`consume`: what was applied, the parts that were written, their rows, and
    the dead letters in the file."""

    applied: Applied
    parts: int
    rows: int
    dead: int


@dataclass
class _Total:
    """What all attempts did together."""

    applied: Applied = field(default_factory=Applied)
    parts: int = 0
    rows: int = 0

    def add(self, applier: Applier | None, slicer: Slicer | None) -> None:
        if applier is not None:
            for name, count in vars(applier.applied).items():
                setattr(self.applied, name, getattr(self.applied, name) + count)
            applier.applied = Applied()
        if slicer is not None:
            self.parts += slicer.written
            self.rows += slicer.rows
            slicer.written = slicer.rows = 0


class Metrics:
    """What ``/metrics`` of a consumer has, for Prometheus.

    Args:
        port: of the loopback and all other addresses.

    Raises:
        SpecError: the package prometheus-client is missing, or the port is in use.
    """

    def __init__(self, port: int) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
        except ModuleNotFoundError:
            raise SpecError("--metrics: pip install 'limerank[serve]'") from None
        registry = CollectorRegistry()
        self._records = Counter(
            "limerank_consumed_records",
            "Records applied to the store by outcome: accepted, duplicates, expired, replaced, "
            "forgotten, skipped, dead.",
            ["outcome"],
            registry=registry,
        )
        self._rows = Counter("limerank_consumed_rows", "Rows of Parquet parts.", registry=registry)
        self._parts = Counter("limerank_consumed_parts", "Parquet parts.", registry=registry)
        self._behind = Gauge(
            "limerank_consume_behind",
            "Records of the log that are not consumed yet, by target: store, parts.",
            ["target"],
            registry=registry,
        )
        self._up = Gauge(
            "limerank_consume_up", "1: the log and the store answer; 0: not.", registry=registry
        )
        try:
            self._server, _ = start_http_server(port, registry=registry)
        except OSError as error:
            raise SpecError(f"--metrics {port}: {error.strerror}; choose another port") from None
        self.port = self._server.server_port

    def show(self, applier: Applier | None, slicer: Slicer | None) -> None:
        """Count what was done since the last call."""
        if applier is not None:
            for name, count in vars(applier.applied).items():
                if name != "records":
                    self._records.labels(name).inc(count)
        if slicer is not None:
            self._rows.inc(slicer.rows)
            self._parts.inc(slicer.written)

    def show_behind(self, target: str, count: int) -> None:
        """Bring the gauge of what is not consumed up to date."""
        self._behind.labels(target).set(count)

    def up(self, up: bool) -> None:
        """Whether the log and the store answer."""
        self._up.set(up)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def consume(
    given: Consuming,
    *,
    until_end: bool = False,
    metrics: Metrics | None = None,
    quiet: bool = True,
    stop: threading.Event | None = None,
) -> Consumed:
    """Consume a log.

    Args:
        given: what, and where it goes.
        until_end: end where the log ended at the start, and no part is left whose window is over.
        metrics: where to count, beside the result.
        quiet: show no progress.
        stop: ends the call when it is set, after the present batch.

    Raises:
        SpecError: there is nothing to do, the topic does not exist, or an option is wrong.
        StoreError: the brokers or the store did not answer for ``patience`` seconds. Everything
            that was acknowledged is stored; call again.
        DataError: too many records cannot be read.
        FormatError: a record is of a later version, or the folder is not one of parts.
    """
    if given.store is None and given.out is None:
        raise SpecError("give a store to apply the log to (--store), or a folder (--out), or both")
    if given.out is not None and given.like is None:
        raise SpecError(
            "--out needs --like: a dataset or a description, whose labels and features the parts "
            "have"
        )
    if given.slice <= 0 or given.window <= 0:
        raise SpecError("the slice and the window are seconds, expected more than 0")
    dead, total = DeadLetters(given.dead, given.most_dead), _Total()
    stop, since = stop or threading.Event(), given.since
    wait, failing = FIRST_WAIT, None
    with Bar("consuming", unit="records", quiet=quiet) as bar:
        while not stop.is_set():
            try:
                with _targets(given, dead, since) as (applier, slicer):
                    since = None
                    for _ in _steps(applier, slicer, until_end, metrics, bar):
                        if metrics is not None:
                            metrics.show(applier, slicer)
                            metrics.up(True)
                        total.add(applier, slicer)
                        wait, failing = FIRST_WAIT, None
                        if stop.is_set():
                            break
                    else:
                        break
            except StoreError as error:
                if metrics is not None:
                    metrics.up(False)
                now = clock.monotonic()
                failing = now if failing is None else failing
                if now - failing + wait > given.patience:
                    raise
                log.error("%s; the next attempt follows in %g s", error.detail, wait)
                stop.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)
    return Consumed(total.applied, total.parts, total.rows, dead.count)


@contextlib.contextmanager
def _targets(
    given: Consuming, dead: DeadLetters, since: int | None
) -> Iterator[tuple[Applier | None, Slicer | None]]:
    """What the log is written to, each with a reader of its own."""
    with contextlib.ExitStack() as open_:
        applier = slicer = None
        if given.store is not None:
            store = open_.enter_context(open_store(given.store, given.most, given.most_exposures))
            reader = open_.enter_context(_reader(given))
            applier = Applier(
                reader,
                store,
                dead,
                part=given.part,
                since=None if since is None else lambda one: _position(reader, one, since),
                rewind=given.rewind,
            )
        if given.out is not None and given.like is not None:
            own = open_.enter_context(_reader(given))
            begin = None
            if since is not None:
                begin = {one: _position(own, one, since) for one in own.partitions(given.part)}
            slicer = Slicer(
                own, given.out, given.like, dead, part=given.part, since=begin,
                window=given.window, seconds=given.slice,
            )  # fmt: skip
        yield applier, slicer


def _reader(given: Consuming) -> LogReader:
    return LogReader(given.address, group=given.group, seconds=given.seconds)


def _position(reader: LogReader, partition: int, since: int) -> int:
    low, high = reader.ends(partition)
    return low if since == BEGINNING else reader.first_at(partition, since, low, high)


def _steps(
    applier: Applier | None, slicer: Slicer | None, until_end: bool, metrics: Any, bar: Bar
) -> Iterator[None]:
    """Consume, and yield after each step; ends at the end of the log if that is asked for."""
    ends: dict[int, int] = {}
    if applier is not None:
        ends = {one: applier.reader.ends(one)[1] for one in applier.positions}
    looked = counted = -SLICE_SECONDS
    while True:
        now, moved = clock.monotonic(), 0
        open_ = applier is not None and (
            not until_end or any(applier.positions[one] < end for one, end in ends.items())
        )
        if applier is not None and open_:
            moved = applier.step()
        if slicer is not None and (until_end or now >= looked + SLICE_SECONDS):
            looked = now
            moved += slicer.step()
        bar.advance(moved)
        if metrics is not None and now >= counted + BEHIND_SECONDS:
            counted = now
            for name, one in (("store", applier), ("parts", slicer)):
                if one is not None:
                    metrics.show_behind(name, one.behind())
        yield
        if until_end and not moved and not open_:
            return
        if not moved and applier is None and not until_end:
            clock.sleep(1.0)
