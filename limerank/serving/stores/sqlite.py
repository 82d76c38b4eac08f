"""Events in one SQLite file: nothing to set up, and several processes may share it.

One thread writes (:mod:`limerank.serving.stores.sqlite_writer`). The journal is a write-ahead log
with full synchronisation, so that a commit is on the disk when it returns. Readers never wait for
writers.

Tables: ``users`` (version, counts, features), ``events`` (clustered by user, time and event id;
indexed by the change that added them, and by given ids), ``exposures`` (in the order of arrival),
``states``, ``items``, and one row of ``totals``.

Deleted bytes are overwritten with zeros, and the write-ahead log is emptied after the
deletion of a user.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from limerank.data.canonical import LARGEST_TIME, external_id
from limerank.data.events import Event
from limerank.data.exposures import Exposure, unpack_exposure
from limerank.data.packing import unpack
from limerank.errors import StoreError
from limerank.serving.stores import sqlite_file
from limerank.serving.stores.contract import (
    MOST_EXPOSURES,
    MOST_STATES,
    Counts,
    EventStore,
    Held,
    Id,
    Outcome,
    State,
    Version,
    readable,
    trouble,
)
from limerank.serving.stores.sqlite_changes import (
    Append,
    Connection,
    Show,
    Trim,
    add_to_totals,
    new_user,
)
from limerank.serving.stores.sqlite_file import SqliteFile, is_busy
from limerank.serving.stores.sqlite_writer import Writer
from limerank.serving.stores.values import beginning, items_of, read, written

T = TypeVar("T")

ERASE_TRIES, ERASE_WAIT = 20, 0.1
"""Attempts to empty the write-ahead log after a user was deleted; seconds that each waits for other
processes, and until the next one."""


class SqliteStore(EventStore):
    """An event store in one file.

    Args:
        path: the file; created where there is none. SQLite adds files with ``-wal`` and ``-shm``.
        most: events stored of a user, at most; None: all.
        most_exposures: exposures stored of a user, at most.
        max_bytes: size of the file at most, about; None: as large as the disk allows.

    Raises:
        FormatError: the file is not a store, or of another format.
        StoreError: the file cannot be used, or Python's SQLite is too old.
    """

    local = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        most: int | None = None,
        most_exposures: int = MOST_EXPOSURES,
        max_bytes: int | None = None,
    ) -> None:
        super().__init__(most, most_exposures)
        self._file = SqliteFile(path, max_bytes)
        self.path, self.address = self._file.path, self._file.address
        self._identity: str | None = None
        self._unerased = False
        self._writer = Writer(self._file)
        with contextlib.suppress(StoreError):
            self._erase(1)  # a process that ended early may have left deleted bytes in the log

    # Writing

    def _change(self, work: Callable[[Connection], T]) -> T:
        job = self._writer.submit(work, sqlite_file.BUSY_SECONDS)
        result: T = job.result(self.address)
        return result

    def append(self, events: Sequence[Event]) -> list[Outcome]:
        return self._change(Append.packed(events, self.most)) if events else []

    def appending(self, events: Sequence[Event]) -> Future[list[Outcome]]:
        return self._writer.submit(Append.packed(events, self.most), 0).future

    def show(self, exposures: Sequence[Exposure]) -> list[Outcome]:
        return self._change(Show.packed(exposures, self.most_exposures)) if exposures else []

    def showing(self, exposures: Sequence[Exposure]) -> Future[list[Outcome]]:
        return self._writer.submit(Show.packed(exposures, self.most_exposures), 0).future

    def set_features(self, user: Id, features: Mapping[str, Any]) -> None:
        user, text = external_id("user", user), written(f"the user {user!r:.80}", features)

        def work(connection: Connection) -> None:
            done = connection.execute(
                "UPDATE users SET features=?, count=count+1 WHERE id=?", (text, str(user))
            )
            if not done.rowcount:
                new_user(connection, user, text)
                add_to_totals(connection, 1, 0)

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
            # A trigger deletes the exposures, in earlier versions, too.
            add_to_totals(connection, -1, -known[1])
            return True

        found = self._change(work)
        self._unerased |= found  # the write-ahead log may contain the old bytes
        if self._unerased and not self._erase(ERASE_TRIES):
            raise trouble(
                StoreError,
                self.address,
                "has deleted the user, but its write-ahead log still contains the user's bytes, "
                "because another process reads it; end that process, and delete the user again",
            )
        return found

    def _erase(self, tries: int) -> bool:
        """Empty the write-ahead log; False: other processes use it."""
        for number in range(tries):
            if number:
                self._file.closed.wait(ERASE_WAIT)
            with self._file.reading(several=False) as connection:
                connection.execute(f"PRAGMA busy_timeout={round(1000 * ERASE_WAIT)}")
                try:
                    busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                except sqlite3.OperationalError as error:
                    if not is_busy(error):
                        raise
                    busy = True
                finally:
                    connection.execute(
                        f"PRAGMA busy_timeout={round(1000 * sqlite_file.BUSY_SECONDS)}"
                    )
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
            connection.execute(
                "DELETE FROM states WHERE rowid IN (SELECT rowid FROM states WHERE user="
                "(SELECT key FROM users WHERE id=?) ORDER BY kind=? DESC, count DESC, rowid DESC "
                "LIMIT -1 OFFSET ?)",
                (str(user), kind, MOST_STATES),
            )
            return done.rowcount > 0

        return self._change(work)

    def drop_states(self, user: Id, kinds: Collection[str]) -> int:
        user = external_id("user", user)

        def work(connection: Connection) -> int:
            return connection.execute(
                "DELETE FROM states WHERE user=(SELECT key FROM users WHERE id=?) "
                f"AND kind NOT IN ({','.join('?' * len(kinds))})",
                (str(user), *kinds),
            ).rowcount

        return self._change(work)

    def identity(self) -> str:
        self._file.check_open()
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
        with self._file.reading(several=False) as connection:
            found = connection.execute(
                "SELECT born, count FROM users WHERE id=?", (str(external_id("user", user)),)
            ).fetchone()
        return None if found is None else Version(*found)

    def held(self, user: Id, since: Version | None = None) -> Held | None:
        user = external_id("user", user)
        if self.most is not None and (self.event_count(user) or 0) > self.most:
            with contextlib.suppress(StoreError):  # events that cannot be dropped now can be read
                self._change(Trim(user, self.most))
        with self._file.reading() as connection:
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
        with self._file.reading() as connection:
            rows = connection.execute(
                "SELECT data, time, id FROM events WHERE user=(SELECT key FROM users WHERE id=?) "
                "AND time<? ORDER BY time DESC, id DESC LIMIT ?",
                (str(user), LARGEST_TIME if before is None else before, count),
            ).fetchall()
        return [unpack(data, user, time, id) for data, time, id in reversed(rows)]

    def between(self, user: Id, since: int, until: int) -> list[Event]:
        user = external_id("user", user)
        with self._file.reading(several=False) as connection:
            rows = connection.execute(
                "SELECT data, time, id FROM events WHERE user=(SELECT key FROM users WHERE id=?) "
                "AND time>=? AND time<? ORDER BY time, id",
                (str(user), since, until),
            ).fetchall()
        return [unpack(data, user, time, id) for data, time, id in rows]

    def exposures(self, user: Id, since: int, until: int) -> list[Exposure]:
        user = external_id("user", user)
        with self._file.reading(several=False) as connection:
            rows = connection.execute(
                "SELECT data, time, id FROM exposures WHERE user=(SELECT key FROM users WHERE "
                "id=?) AND time>=? AND time<? ORDER BY time, id",
                (str(user), since, until),
            ).fetchall()
        return [unpack_exposure(data, user, time, id) for data, time, id in rows]

    def exposure_count(self, user: Id) -> int:
        with self._file.reading(several=False) as connection:
            found = connection.execute(
                "SELECT COUNT(*) FROM exposures WHERE user=(SELECT key FROM users WHERE id=?)",
                (str(external_id("user", user)),),
            ).fetchone()
        return int(found[0])

    def shown(
        self, since: Mapping[int, int], limit: int
    ) -> tuple[dict[int, int], list[tuple[int, int, Exposure]]]:
        if not since:
            return {}, []
        with self._file.reading(several=False) as connection:
            rows = connection.execute(
                "SELECT 0, change, users.id, data, time, exposures.id FROM exposures "
                "CROSS JOIN users ON users.key=exposures.user "
                "WHERE change>? ORDER BY change LIMIT ?",
                (since[0], limit),
            ).fetchall()
        return {0: rows[-1][1] if rows else since[0]}, readable(rows)

    def state(self, user: Id, kind: str) -> State | None:
        with self._file.reading() as connection:
            found = connection.execute(
                "SELECT fingerprint, born, states.count, data FROM users "
                "JOIN states ON states.user=key WHERE id=? AND kind=?",
                (str(external_id("user", user)), kind),
            ).fetchone()
        return None if found is None else State(found[0], Version(*found[1:3]), found[3])

    def users(self) -> Iterator[Id]:
        last = 0
        while True:
            with self._file.reading() as connection:
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
        with self._file.reading(several=False) as connection:
            rows = connection.execute(
                "SELECT id FROM users WHERE id>=? AND id<? ORDER BY id LIMIT ?",
                (text, text + "\U0010ffff", limit),
            ).fetchall()
        return [external_id("user", id) for (id,) in rows]

    def event_count(self, user: Id) -> int | None:
        with self._file.reading(several=False) as connection:
            found = connection.execute(
                "SELECT events FROM users WHERE id=?", (str(external_id("user", user)),)
            ).fetchone()
        return None if found is None else int(found[0])

    def check(self) -> list[str]:
        self.counts()
        found = []
        if self._file.is_replaced:
            found.append(
                "the file of the event store was moved, deleted or replaced while it is open: "
                "later writes will be lost; stop this process, and put the file back"
            )
        if not self._writer.is_alive:
            found.append("the writer of the event store has ended: restart this process")
        if self._unerased and not self._erase(1):
            found.append(
                "the write-ahead log of the event store still contains bytes of deleted users, "
                "because another process reads it; end that process"
            )
        return found

    def counts(self) -> Counts:
        with self._file.reading() as connection:
            return Counts(*connection.execute("SELECT users, events FROM totals").fetchone())

    def items(
        self, since: int = 0, limit: int | None = None
    ) -> tuple[int, dict[Id, dict[str, Any] | None]]:
        with self._file.reading() as connection:
            change: int = connection.execute("SELECT items FROM totals").fetchone()[0]
            rows = connection.execute(
                "SELECT id, columns, change FROM items WHERE change>? ORDER BY change LIMIT ?",
                (since, -1 if limit is None else max(limit, 0)),
            ).fetchall()
        if limit is not None and len(rows) >= limit:
            change = rows[-1][2] if rows else since
        return change, items_of((id, columns) for id, columns, _ in rows)

    def close(self) -> None:
        if self._file.closed.is_set():
            return
        self._file.closed.set()
        if not self._file.is_own:
            return  # the connections are the parent process's
        self._writer.close()
        self._file.close_readers()
        self._file.writer.close()
