"""Events in one SQLite file: nothing to set up, and several processes may share it.

Writers queue up, and one thread writes all that have gathered in one transaction: the disk is
flushed once for all of them (group commit). The journal is a write-ahead log with full
synchronisation, so that a commit is on the disk when it returns. Readers never wait for writers.

Tables: ``users`` (version, counts, features), ``events`` (clustered by user, time and event id;
indexed by the change that brought them, and by the ids that were given), ``states``, ``items``, and
one row of ``totals``. Deleted bytes are overwritten with zeros, and the write-ahead log is emptied
after a user was deleted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

from limerank.data.canonical import LARGEST_TIME, external_id
from limerank.data.events import Event, derived_id
from limerank.data.packing import unpack
from limerank.errors import FormatError, StoreError
from limerank.serving.stores.contract import (
    TRIM,
    Counts,
    EventStore,
    Held,
    Id,
    Outcome,
    State,
    Version,
    by_user,
    one_form,
    renamed,
    trouble,
)
from limerank.serving.stores.values import beginning, items_of, packed, read, written

T = TypeVar("T")
Connection = sqlite3.Connection
Row = tuple[Any, ...]

OLDEST = (3, 35)
"""Of SQLite: it has UPDATE ... FROM and RETURNING."""
FORMAT = 1
APPLICATION = 0x4C494D45
"""Marks the file as one of ours."""
GROUP = 256
"""Writes of one transaction, at most."""
ROWS = 256
"""Rows that one statement reads or writes, at most."""
WAITING = 4096
"""Writes that may wait for their turn; with more, the store is too busy."""
BUSY_SECONDS = 10.0
"""How long a writer waits for other processes, and a caller for the writer."""
OPEN_SECONDS, OPEN_PAUSE = 30.0, 0.05
"""How long opening waits for processes that open or make the same file, and between its tries."""
ERASE_TRIES, ERASE_WAIT = 20, 0.1
"""Tries to empty the write-ahead log after a user was deleted; how long each waits for others, and
until the next one, in seconds."""
READERS = 64
"""Connections that are kept for reading, at most."""

SCHEMA = """
CREATE TABLE users(
    key INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, born INTEGER NOT NULL,
    count INTEGER NOT NULL, events INTEGER NOT NULL, dropped INTEGER NOT NULL,
    features TEXT NOT NULL);
CREATE TABLE events(
    user INTEGER NOT NULL, time INTEGER NOT NULL, id BLOB NOT NULL, count INTEGER NOT NULL,
    data BLOB NOT NULL, PRIMARY KEY(user, time, id)) WITHOUT ROWID;
CREATE TABLE states(
    user INTEGER NOT NULL, kind TEXT NOT NULL, fingerprint BLOB NOT NULL, count INTEGER NOT NULL,
    data BLOB NOT NULL, PRIMARY KEY(user, kind));
CREATE TABLE items(id TEXT PRIMARY KEY, change INTEGER NOT NULL, columns TEXT) WITHOUT ROWID;
CREATE INDEX items_by_change ON items(change);
CREATE TABLE totals(users INTEGER NOT NULL, events INTEGER NOT NULL, items INTEGER NOT NULL);
INSERT INTO totals VALUES (0, 0, 0);
"""
INDEXES = """
CREATE INDEX IF NOT EXISTS events_by_change ON events(user, count);
CREATE INDEX IF NOT EXISTS events_by_id ON events(user, id) WHERE substr(id, 1, 1) <> x'00';
"""
"""Made where they are missing: files of earlier versions have none. Both find events of one user
without its other events: those of the latest changes, and those with an id that was given. Versions
that do not know of them keep them up to date all the same."""

log = logging.getLogger("limerank.serving.stores")


class SqliteStore(EventStore):
    """An event store in one file.

    Args:
        path: the file; made where there is none. Beside it lie ``-wal`` and ``-shm`` files.
        most: events held of a user, at most; None: all.
        max_bytes: how large the file may become, about; None: as large as the disk allows.

    Raises:
        FormatError: the file is no store, or of another format.
        StoreError: Python's SQLite is too old.
    """

    local = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        most: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        super().__init__(most)
        if sqlite3.sqlite_version_info < OLDEST:
            raise StoreError(
                f"this Python has SQLite {sqlite3.sqlite_version}, expected "
                f"{'.'.join(map(str, OLDEST))} or later; use a newer Python, or a Valkey server"
            )
        self.path = Path(path)
        self.address = str(self.path)
        self._identity: str | None = None
        self._process = os.getpid()
        self._unerased = False
        self._closed = threading.Event()
        self._readers: queue.LifoQueue[Connection] = queue.LifoQueue(READERS)
        self._jobs: queue.Queue[_Job | None] = queue.Queue(WAITING)
        with self._as_store_errors(opening=True):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._open(max_bytes)
            self._file = _identity(self.path)
        self._writer = threading.Thread(
            target=self._write, name=f"writer of {self.path.name}", daemon=True
        )
        self._writer.start()
        with contextlib.suppress(StoreError):
            self._erase(1)  # what a process that ended early may have left in the log

    # Connections

    def _open(self, max_bytes: int | None) -> Connection:
        """The writer's connection, to a file that is a store."""
        until = time.monotonic() + OPEN_SECONDS
        while True:
            connection = self._connect()
            try:
                self._prepare(connection, max_bytes)
                return connection
            except BaseException as error:
                connection.close()
                # Changing to a write-ahead log does not wait for others by itself.
                if not _is_busy(error) or time.monotonic() > until:
                    raise
            time.sleep(OPEN_PAUSE)

    def _connect(self) -> Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA synchronous=FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: Connection, max_bytes: int | None) -> None:
        self._is_new(connection)  # a foreign file stays as it is
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            connection.execute("PRAGMA journal_mode=WAL")
        if connection.execute("PRAGMA secure_delete=ON").fetchone()[0] != 1:
            raise StoreError("this Python's SQLite does not overwrite what is deleted; use another")
        connection.execute("BEGIN IMMEDIATE")
        statements = INDEXES
        old = not connection.execute(
            "SELECT COUNT(*) FROM sqlite_schema WHERE name='events_by_change'"
        ).fetchone()[0]
        if self._is_new(connection):
            old = False
            statements = SCHEMA + INDEXES
            connection.execute(f"PRAGMA application_id={APPLICATION}")
            connection.execute(f"PRAGMA user_version={FORMAT}")
        for statement in statements.split(";"):
            connection.execute(statement)
        if old:
            _to_one_form(connection)
        connection.execute("COMMIT")
        if max_bytes is not None:
            page = connection.execute("PRAGMA page_size").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count={max(max_bytes // page, 1)}")

    def _is_new(self, connection: Connection) -> bool:
        """Whether the file holds nothing yet; FormatError where it holds something else."""
        found = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0]
        if tables and (found != APPLICATION or version != FORMAT):
            raise FormatError(
                f"{self.path} is no event store of format {FORMAT}"
                + (f" but of {version}" if found == APPLICATION else "")
                + "; name another file"
            )
        return not tables

    @contextlib.contextmanager
    def _as_store_errors(self, *, opening: bool = False) -> Iterator[None]:
        """Errors of SQLite and of the disk, as ours."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise _error(self.address, error, opening) from error

    @contextlib.contextmanager
    def _reading(self, *, several: bool = True) -> Iterator[Connection]:
        """A connection; in a transaction where several statements read what is of one moment."""
        self._check_open()
        with self._as_store_errors():
            try:
                connection = self._readers.get_nowait()
            except queue.Empty:
                connection = self._connect()
            try:
                if several:
                    connection.execute("BEGIN")
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")
                try:
                    if self._closed.is_set():
                        raise queue.Full
                    self._readers.put_nowait(connection)
                except queue.Full:
                    connection.close()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise trouble(StoreError, self.address, "is closed; open it again")
        if os.getpid() != self._process:
            raise trouble(
                StoreError,
                self.address,
                f"was opened by the process {self._process}, of which this one ({os.getpid()}) is "
                "a fork; open it in this process, after the fork",
            )

    # Writing

    def _change(self, work: Callable[[Connection], T]) -> T:
        result: T = self._promised(work, BUSY_SECONDS).result(self.address)
        return result

    def _promised(self, work: Callable[[Connection], Any], patience: float) -> _Job:
        self._check_open()
        job = _Job(work)
        try:
            self._jobs.put(job, patience > 0, patience)
        except queue.Full:
            raise trouble(
                StoreError,
                self.address,
                f"is too busy: {WAITING} writes wait for it; try again later",
            ) from None
        # Closing lets all that wait finish, and a job that came too late is refused there.
        return job

    def _write(self) -> None:
        """The writer's thread: all that waits, one transaction after another."""
        ended = False
        while not ended:
            jobs = [self._jobs.get()]
            with contextlib.suppress(queue.Empty):
                while jobs[-1] is not None and len(jobs) < GROUP:
                    jobs.append(self._jobs.get_nowait())
            ended = jobs[-1] is None
            waiting = [job for job in jobs if job is not None]
            try:
                self._commit(waiting)
            except BaseException as error:  # the thread goes on, whatever happens
                log.exception("a write of the event store failed in an unexpected way")
                for job in waiting:
                    if not job.future.done():
                        job.future.set_exception(error)

    def _commit(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        try:
            with self._as_store_errors():
                self._connection.execute("BEGIN IMMEDIATE")
                found = self._done(jobs)
                self._connection.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001  (whoever waits for the job is told)
            with contextlib.suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            if len(jobs) == 1 or isinstance(error, StoreError):
                for job in jobs:
                    job.future.set_exception(error)
                return
            for job in jobs:  # one that cannot be done does not stop the others
                self._commit([job])
            return
        for job, result in zip(jobs, found, strict=True):
            job.future.set_result(result)

    def _done(self, jobs: list[_Job]) -> list[Any]:
        """The results of writes, in a transaction. What is appended side by side is appended at
        once: a statement per event would take longer than its work, for each gives Python's lock
        to the other threads and waits to have it back."""
        found: list[Any] = []
        for _, some in groupby([job.work for job in jobs], lambda work: isinstance(work, _Append)):
            works = list(some)
            appends = [work for work in works if isinstance(work, _Append)]
            if appends:
                outcomes = iter(_Append.of(appends)(self._connection))
                found += [list(islice(outcomes, len(one.events))) for one in appends]
            else:
                found += [work(self._connection) for work in works]
        return found

    def append(self, events: Sequence[Event]) -> list[Outcome]:
        return self._change(_Append.packed(events, self.most)) if events else []

    def appending(self, events: Sequence[Event]) -> Future[list[Outcome]]:
        return self._promised(_Append.packed(events, self.most), 0).future

    def set_features(self, user: Id, features: Mapping[str, Any]) -> None:
        user, text = external_id("user", user), written(f"the user {user!r:.80}", features)

        def work(connection: Connection) -> None:
            done = connection.execute(
                "UPDATE users SET features=?, count=count+1 WHERE id=?", (text, str(user))
            )
            if not done.rowcount:
                _new_user(connection, user, text)
                _count(connection, 1, 0)

        self._change(work)

    def delete_user(self, user: Id) -> bool:
        user = external_id("user", user)

        def work(connection: Connection) -> bool:
            known = connection.execute(
                "DELETE FROM users WHERE id=? RETURNING key, events", (str(user),)
            ).fetchone()
            if known is None:
                return False
            connection.execute("DELETE FROM events WHERE user=?", known[:1])
            connection.execute("DELETE FROM states WHERE user=?", known[:1])
            _count(connection, -1, -known[1])
            return True

        found = self._change(work)
        self._unerased |= found  # the write-ahead log may hold the old bytes
        if self._unerased and not self._erase(ERASE_TRIES):
            raise trouble(
                StoreError,
                self.address,
                "has deleted the user, but the user's old bytes still lie in its write-ahead log, "
                "which another process reads; end that, and delete the user again",
            )
        return found

    def _erase(self, tries: int) -> bool:
        """Empty the write-ahead log; False: others have held it all the time."""
        for number in range(tries):
            if number:
                self._closed.wait(ERASE_WAIT)
            with self._reading(several=False) as connection:
                connection.execute(f"PRAGMA busy_timeout={round(1000 * ERASE_WAIT)}")
                try:
                    busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                except sqlite3.OperationalError as error:
                    if not _is_busy(error):
                        raise
                    busy = True
                finally:
                    connection.execute(f"PRAGMA busy_timeout={round(1000 * BUSY_SECONDS)}")
            if not busy:
                self._unerased = False
                return True
        return False

    def put_state(self, user: Id, kind: str, state: State) -> bool:
        user = external_id("user", user)

        def work(connection: Connection) -> bool:
            done = connection.execute(
                "INSERT INTO states SELECT key, ?, ?, count, ? FROM users "
                "WHERE id=? AND born=? AND count=? "
                "ON CONFLICT(user, kind) DO UPDATE SET fingerprint=excluded.fingerprint, "
                "count=excluded.count, data=excluded.data",
                (kind, state.fingerprint, state.data, str(user), *state.version),
            )
            return done.rowcount > 0

        return self._change(work)

    def identity(self) -> str:
        self._check_open()
        if self._identity is None:
            made = secrets.token_hex(16)

            def work(connection: Connection) -> str:
                connection.execute("CREATE TABLE IF NOT EXISTS identity(value TEXT NOT NULL)")
                connection.execute(
                    "INSERT INTO identity SELECT ? WHERE NOT EXISTS (SELECT 1 FROM identity)",
                    (made,),
                )
                return str(connection.execute("SELECT value FROM identity").fetchone()[0])

            self._identity = self._change(work)
        return self._identity

    def put_items(self, items: Mapping[Id, Mapping[str, Any] | None]) -> int:
        rows = [
            (
                str(external_id("item", id)),
                None if columns is None else written(f"the item {id!r:.80}", columns),
            )
            for id, columns in items.items()
        ]

        def work(connection: Connection) -> int:
            change: int = connection.execute("SELECT items FROM totals").fetchone()[0]
            for id, columns in rows:
                change += 1
                connection.execute(
                    "INSERT INTO items VALUES (?,?,?) ON CONFLICT(id) DO UPDATE SET "
                    "change=excluded.change, columns=excluded.columns",
                    (id, change, columns),
                )
            connection.execute("UPDATE totals SET items=?", (change,))
            return change

        return self._change(work)

    # Reading

    def version(self, user: Id) -> Version | None:
        with self._reading(several=False) as connection:
            found = connection.execute(
                "SELECT born, count FROM users WHERE id=?", (str(external_id("user", user)),)
            ).fetchone()
        return None if found is None else Version(*found)

    def held(self, user: Id, since: Version | None = None) -> Held | None:
        user = external_id("user", user)
        if self.most is not None and (self.event_count(user) or 0) > self.most:
            with contextlib.suppress(StoreError):  # what cannot be dropped now can be read
                self._change(_Trim(user, self.most))
        with self._reading() as connection:
            known = connection.execute(
                "SELECT key, born, count, dropped, features FROM users WHERE id=?", (str(user),)
            ).fetchone()
            if known is None:
                return None
            key, born, count, dropped, features = known
            some = since is not None and since.born == born and dropped <= since.changes <= count
            if some and since is not None:
                rows = connection.execute(
                    "SELECT data, time, id FROM events INDEXED BY events_by_change "
                    "WHERE user=? AND count>? ORDER BY time, id",
                    (key, since.changes),
                ).fetchall()
            else:
                rows = connection.execute(
                    "SELECT data, time, id FROM events WHERE user=? ORDER BY time, id", (key,)
                ).fetchall()
        events = [unpack(data, user, time, id) for data, time, id in rows]
        features = read(f"the user {user!r}", features)
        return Held(Version(born, count), features, events, not some)

    def latest(self, user: Id, count: int, before: int | None = None) -> list[Event]:
        user = external_id("user", user)
        count = max(count if self.most is None else min(count, self.most), 0)
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT data, time, id FROM events WHERE user=(SELECT key FROM users WHERE id=?) "
                "AND time<? ORDER BY time DESC, id DESC LIMIT ?",
                (str(user), LARGEST_TIME if before is None else before, count),
            ).fetchall()
        return [unpack(data, user, time, id) for data, time, id in reversed(rows)]

    def state(self, user: Id, kind: str) -> State | None:
        with self._reading() as connection:
            found = connection.execute(
                "SELECT fingerprint, born, states.count, data FROM users "
                "JOIN states ON states.user=key WHERE id=? AND kind=?",
                (str(external_id("user", user)), kind),
            ).fetchone()
        return None if found is None else State(found[0], Version(*found[1:3]), found[3])

    def users(self) -> Iterator[Id]:
        last = 0
        while True:
            with self._reading() as connection:
                rows = connection.execute(
                    "SELECT key, id FROM users WHERE key>? ORDER BY key LIMIT 1000", (last,)
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from (external_id("user", id) for _, id in rows)

    def named(self, text: str, limit: int) -> list[Id]:
        if not beginning(text):
            return []
        with self._reading(several=False) as connection:
            rows = connection.execute(
                "SELECT id FROM users WHERE id>=? AND id<? ORDER BY id LIMIT ?",
                (text, text + "\U0010ffff", limit),
            ).fetchall()
        return [external_id("user", id) for (id,) in rows]

    def event_count(self, user: Id) -> int | None:
        with self._reading(several=False) as connection:
            found = connection.execute(
                "SELECT events FROM users WHERE id=?", (str(external_id("user", user)),)
            ).fetchone()
        return None if found is None else int(found[0])

    def check(self) -> list[str]:
        self.counts()
        found = []
        if self._file != _identity(self.path):
            found.append(
                "the file of the event store was moved, deleted or replaced while it is open: what "
                "is written now will be lost; stop this process, and put the file back"
            )
        if not self._writer.is_alive():
            found.append("the writer of the event store has ended: start this process anew")
        if self._unerased and not self._erase(1):
            found.append(
                "the write-ahead log of the event store still holds bytes of deleted users, "
                "because another process reads it; end that"
            )
        return found

    def counts(self) -> Counts:
        with self._reading() as connection:
            return Counts(*connection.execute("SELECT users, events FROM totals").fetchone())

    def items(
        self, since: int = 0, limit: int | None = None
    ) -> tuple[int, dict[Id, dict[str, Any] | None]]:
        with self._reading() as connection:
            change: int = connection.execute("SELECT items FROM totals").fetchone()[0]
            rows = connection.execute(
                "SELECT id, columns, change FROM items WHERE change>? ORDER BY change LIMIT ?",
                (since, -1 if limit is None else max(limit, 0)),
            ).fetchall()
        if limit is not None and len(rows) >= limit:
            change = rows[-1][2] if rows else since
        return change, items_of((id, columns) for id, columns, _ in rows)

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        if os.getpid() != self._process:
            return  # the connections are the other process's
        self._jobs.put(None)
        self._writer.join()
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job.future.set_exception(
                        trouble(StoreError, self.address, "was closed; open it again")
                    )
        with contextlib.suppress(queue.Empty):
            while True:
                self._readers.get_nowait().close()
        self._connection.close()


def _by_time(placed: tuple[int, Event]) -> tuple[int, bytes]:
    return placed[1].time, placed[1].id


class _Job:
    """A write, and the promise of its result."""

    def __init__(self, work: Callable[[Connection], Any]) -> None:
        self.work = work
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()  # it happens, whoever goes away

    def result(self, address: str) -> Any:
        try:
            return self.future.result(2 * BUSY_SECONDS)
        except FutureTimeoutError:
            raise trouble(
                StoreError,
                address,
                f"took more than {2 * BUSY_SECONDS:.0f} s for a write, which may still happen; is "
                "the disk overloaded, or does another process hold the store? Try again later",
            ) from None


def _new_user(connection: Connection, user: Id, features: str) -> int:
    born = secrets.randbits(62)
    done = connection.execute(
        "INSERT INTO users(id, born, count, events, dropped, features) VALUES (?,?,0,0,0,?)",
        (str(user), born, features),
    )
    assert done.lastrowid is not None
    return done.lastrowid


def _to_one_form(connection: Connection) -> None:
    """Bring ids of users that an earlier version kept as they came, such as "7.0", to their one
    form; where that is a user, too, both become one."""
    for key, id, features in connection.execute(
        "SELECT key, id, features FROM users WHERE CAST(CAST(id AS INTEGER) AS TEXT) <> id"
    ).fetchall():
        user = one_form(id)
        if user is None:
            continue
        rows = connection.execute("SELECT data, time, id FROM events WHERE user=?", (key,))
        events = renamed(id, user, rows.fetchall())
        deleted = connection.execute("DELETE FROM events WHERE user=?", (key,)).rowcount
        connection.execute("DELETE FROM states WHERE user=?", (key,))
        connection.execute("DELETE FROM users WHERE key=?", (key,))
        _count(connection, -1, -deleted)
        if str(user) not in _known(connection, [str(user)]):
            _new_user(connection, user, features)
            _count(connection, 1, 0)
        _Append.packed(events, None)(connection)


def _count(connection: Connection, users: int, events: int) -> None:
    connection.execute("UPDATE totals SET users=users+?, events=events+?", (users, events))


@dataclass(frozen=True)
class _Append:
    """Events to be kept, and their bytes."""

    events: Sequence[Event]
    data: Sequence[bytes]
    most: int | None

    @classmethod
    def packed(cls, events: Sequence[Event], most: int | None) -> _Append:
        return cls(events, [packed(event) for event in events], most)

    @classmethod
    def of(cls, parts: Sequence[_Append]) -> _Append:
        """All of several, one after another."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            [event for part in parts for event in part.events],
            [data for part in parts for data in part.data],
            parts[0].most,
        )

    def __call__(self, connection: Connection) -> list[Outcome]:
        parts = by_user(self.events)
        known = _known(connection, [str(user) for user in parts])
        fresh = [user for user in parts if str(user) not in known]
        known |= {str(user): (_new_user(connection, user, "{}"), 0, 0, 0) for user in fresh}
        keys = {user: known[str(user)][0] for user in parts}
        held = _held_ids(connection, [(keys[one.user], one.time, one.id) for one in self.events])
        outcomes = [Outcome.DUPLICATE] * len(self.events)
        rows: list[Row] = []
        changed: list[Row] = []
        added = 0
        for user, placed in parts.items():
            key, count, events, dropped = known[str(user)]
            new: dict[bytes, tuple[int, Event]] = {}
            for position, event in placed:
                if (key, event.id) not in held:
                    new.setdefault(event.id, (position, event))
            before = events
            if self.most is not None and events > self.most:  # it was higher
                events -= _drop_oldest(connection, key, min(events - self.most, TRIM))
                dropped = count = count + 1
            elif not new:
                continue
            own: list[Row] = []
            full = self.most is not None and events + len(new) > self.most
            for position, event in sorted(new.values(), key=_by_time):
                if full and self.most is not None and events >= self.most:
                    _insert(connection, own)
                    own = []
                    if not _makes_room(connection, key, event):
                        outcomes[position] = Outcome.EXPIRED
                        continue
                    events, dropped = events - 1, count + 1
                count, events = count + 1, events + 1
                own.append((key, event.time, event.id, count, self.data[position]))
                outcomes[position] = Outcome.ACCEPTED
            rows += own
            changed.append((key, count, events, dropped))
            added += events - before
        _insert(connection, rows)
        _update(connection, changed)
        _count(connection, len(fresh), added)
        return outcomes


@dataclass(frozen=True)
class _Trim:
    """A user's oldest events to be dropped, where there are more than ``most``."""

    user: Id
    most: int

    def __call__(self, connection: Connection) -> None:
        known = _known(connection, [str(self.user)]).get(str(self.user))
        if known is None or known[2] <= self.most:
            return
        key, count, events, _ = known
        deleted = _drop_oldest(connection, key, min(events - self.most, TRIM))
        _update(connection, [(key, count + 1, events - deleted, count + 1)])
        _count(connection, 0, -deleted)


def _drop_oldest(connection: Connection, key: int, count: int) -> int:
    """Delete a user's oldest events, which has more of them; returns how many."""
    first = connection.execute(
        "SELECT time, id FROM events WHERE user=? ORDER BY time, id LIMIT 1 OFFSET ?", (key, count)
    ).fetchone()
    done = connection.execute(
        "DELETE FROM events WHERE user=? AND (time, id) < (?, ?)", (key, *first)
    )
    return done.rowcount


def _makes_room(connection: Connection, key: int, event: Event) -> bool:
    """Delete a full user's oldest event for a newer one; False: there is no older one."""
    oldest = connection.execute(
        "SELECT time, id FROM events WHERE user=? ORDER BY time, id LIMIT 1", (key,)
    ).fetchone()
    if (event.time, event.id) < oldest:
        return False
    connection.execute("DELETE FROM events WHERE user=? AND time=? AND id=?", (key, *oldest))
    return True


def _in_parts(rows: Sequence[Row]) -> Iterator[tuple[int, int, list[Any]]]:
    """Rows in parts of few different sizes, so that SQLite knows the statements: how many there
    are, how many places the statement has, and the values. The last one is repeated."""
    for at in range(0, len(rows), ROWS):
        some = rows[at : at + ROWS]
        padded = 1 << (len(some) - 1).bit_length()
        values = [value for row in some for value in row]
        yield len(some), padded, values + [*some[-1]] * (padded - len(some))


def _placeholders(columns: int, count: int) -> str:
    return ",".join([f"({','.join('?' * columns)})"] * count)


def _known(connection: Connection, users: list[str]) -> dict[str, tuple[int, int, int, int]]:
    """Key, count, events and dropped of those users that are known."""
    found = {}
    for _, padded, values in _in_parts([(user,) for user in users]):
        query = "SELECT id, key, count, events, dropped FROM users WHERE id IN "
        for id, *rest in connection.execute(f"{query}({','.join('?' * padded)})", values):
            found[id] = tuple(rest)
    return found


def _held_ids(
    connection: Connection, events: list[tuple[int, int, bytes]]
) -> set[tuple[int, bytes]]:
    """Which of these events, (user's key, time, id), are held: (user's key, id). An id that was
    given is looked for at all times of its user; one that follows from the content, at its own."""
    found: set[tuple[int, bytes]] = set()
    derived = [event for event in events if derived_id(event[2])]
    for _, padded, values in _in_parts(derived):
        query = (  # one by one, by the events' own order
            f"WITH new(user, time, id) AS (VALUES {_placeholders(3, padded)}) "
            "SELECT user, id FROM new CROSS JOIN events USING (user, time, id)"
        )
        found.update(connection.execute(query, values))
    given: dict[int, list[bytes]] = {}
    for key, _, id in events:
        if not derived_id(id):
            given.setdefault(key, []).append(id)
    for key, ids in given.items():
        for _, padded, values in _in_parts([(id,) for id in ids]):
            query = (
                "SELECT user, id FROM events INDEXED BY events_by_id WHERE user=? "
                f"AND substr(id, 1, 1) <> x'00' AND id IN ({','.join('?' * padded)})"
            )
            found.update(connection.execute(query, [key, *values]))
    return found


def _insert(connection: Connection, rows: Sequence[Row]) -> None:
    for count, padded, values in _in_parts(rows):
        # Only repeated rows can be in conflict: those that are held are known.
        statement = f"INSERT INTO events VALUES {_placeholders(5, padded)} ON CONFLICT DO NOTHING"
        done = connection.execute(statement, values)
        assert done.rowcount == count, "an event that is held was not known"


def _update(connection: Connection, users: Sequence[Row]) -> None:
    for _, padded, values in _in_parts(users):
        connection.execute(
            f"WITH new(key, count, events, dropped) AS (VALUES {_placeholders(4, padded)}) "
            "UPDATE users SET count=new.count, events=new.events, dropped=new.dropped "
            "FROM new WHERE users.key=new.key",
            values,
        )


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one that is put in its place."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.Error) and ("locked" in str(error) or "busy" in str(error))


def _error(address: str, error: Exception, opening: bool) -> StoreError | FormatError:
    text = str(error)
    damaged = ("not a database", "malformed", "Could not decode")
    if isinstance(error, sqlite3.Error) and any(part in text for part in damaged):
        return trouble(
            FormatError,
            address,
            "is damaged or no event store; restore a backup",
            error,
            opening=opening,
        )
    if "full" in text or "No space" in text:
        text = (
            "is full now: nothing was written, all that was acknowledged is there; make room, or "
            "raise the store's limit, and try again"
        )
    elif _is_busy(error):
        text = (
            f"is busy: another process has held it for more than {BUSY_SECONDS:.0f} s; try again "
            "later"
        )
    else:
        text = "cannot be used; look after its disk and try again"
    return trouble(StoreError, address, text, error, opening=opening)
