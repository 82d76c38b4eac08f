"""The file of an SQLite event store: its format, how it is opened, and its errors."""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from limerank.errors import FormatError, StoreError
from limerank.files import make_folder
from limerank.serving.stores.contract import trouble
from limerank.serving.stores.sqlite_changes import Connection, to_one_form

OLDEST = (3, 35)
"""The oldest SQLite that has ``UPDATE ... FROM`` and ``RETURNING``."""
FORMAT = 1
APPLICATION = 0x4C494D45
"""The application id in the file's header."""
BUSY_SECONDS = 10.0
"""Seconds that a writer waits for other processes, and a caller for the writer."""
OPEN_SECONDS, OPEN_PAUSE = 30.0, 0.05
"""Seconds that opening waits for processes that open or create the same file, in all and between
two attempts."""
READERS = 64
"""Idle connections for reading, at most."""

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
"""Created where they are missing, as in files of earlier versions. Both find some events of a user
without reading the others: those of the latest changes, and those with a given id. Earlier versions
keep them up to date, too, since SQLite does."""
EXPOSURES = (
    "CREATE TABLE IF NOT EXISTS exposures(change INTEGER PRIMARY KEY AUTOINCREMENT, "
    "user INTEGER NOT NULL, time INTEGER NOT NULL, id TEXT NOT NULL, data BLOB NOT NULL)",
    "CREATE UNIQUE INDEX IF NOT EXISTS exposures_by_id ON exposures(user, id)",
    "CREATE INDEX IF NOT EXISTS exposures_by_time ON exposures(user, time, id)",
    "CREATE TRIGGER IF NOT EXISTS users_exposures AFTER DELETE ON users "
    "BEGIN DELETE FROM exposures WHERE user=old.key; END",
)
"""Created where they are missing. The trigger deletes the exposures of a user whom an earlier
version deletes."""


class SqliteFile:
    """A file that is an event store, with a pool of connections for reading.

    Attributes:
        path, address: the file.
        closed: set when the store closes.
        identity: device and inode of the file when it was opened.
        writer: the one connection for writing.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int | None) -> None:
        if sqlite3.sqlite_version_info < OLDEST:
            raise StoreError(
                f"this Python has SQLite {sqlite3.sqlite_version}, expected "
                f"{'.'.join(map(str, OLDEST))} or later; use a newer Python, or a Valkey server"
            )
        self.path = Path(path)
        self.address = str(self.path)
        self.closed = threading.Event()
        self._process = os.getpid()
        self._readers: queue.LifoQueue[Connection] = queue.LifoQueue(READERS)
        with self.as_store_errors(opening=True):
            make_folder(self.path.parent)
            self.writer = self._open(max_bytes)
            self.identity = identity_of(self.path)

    @property
    def is_own(self) -> bool:
        """Whether this process opened the file; a fork must not use its parent's connections."""
        return os.getpid() == self._process

    @property
    def is_replaced(self) -> bool:
        """Whether the path leads to another file than the open one, or to none."""
        return self.identity != identity_of(self.path)

    def close_readers(self) -> None:
        """Close the idle connections for reading."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._readers.get_nowait().close()

    def _open(self, max_bytes: int | None) -> Connection:
        """The connection for writing, to a file that is a store now."""
        until = time.monotonic() + OPEN_SECONDS
        while True:
            connection = self._connect()
            try:
                self._prepare(connection, max_bytes)
                return connection
            except BaseException as error:
                connection.close()
                # Changing to a write-ahead log fails at once where another process uses the file.
                if not is_busy(error) or time.monotonic() > until:
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
        self._is_new(connection)  # raises before a foreign file is changed
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            connection.execute("PRAGMA journal_mode=WAL")
        if connection.execute("PRAGMA secure_delete=ON").fetchone()[0] != 1:
            raise StoreError(
                "this Python's SQLite does not overwrite deleted bytes; use another Python"
            )
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
        for statement in (*statements.split(";"), *EXPOSURES):
            connection.execute(statement)
        if old:
            to_one_form(connection)
        connection.execute("COMMIT")
        if max_bytes is not None:
            page = connection.execute("PRAGMA page_size").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count={max(max_bytes // page, 1)}")

    def _is_new(self, connection: Connection) -> bool:
        """Whether the file is empty; FormatError where it is not an event store."""
        found = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0]
        if tables and (found != APPLICATION or version != FORMAT):
            raise FormatError(
                f"{self.path} is not an event store of format {FORMAT}"
                + (f" but of format {version}" if found == APPLICATION else "")
                + "; name another file"
            )
        return not tables

    @contextlib.contextmanager
    def as_store_errors(self, *, opening: bool = False) -> Iterator[None]:
        """Raise errors of SQLite and of the disk as StoreError or FormatError."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise _error(self.address, error, opening) from error

    @contextlib.contextmanager
    def reading(self, *, several: bool = True) -> Iterator[Connection]:
        """A connection for reading; in a transaction where ``several`` statements must see one
        state of the store."""
        self.check_open()
        with self.as_store_errors():
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
                    if self.closed.is_set():
                        raise queue.Full
                    self._readers.put_nowait(connection)
                except queue.Full:
                    connection.close()

    def check_open(self) -> None:
        if self.closed.is_set():
            raise trouble(StoreError, self.address, "is closed; open it again")
        if not self.is_own:
            raise trouble(
                StoreError,
                self.address,
                f"was opened by the process {self._process}, of which this one ({os.getpid()}) is "
                "a fork; open it in this process, after the fork",
            )


def identity_of(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def is_busy(error: BaseException) -> bool:
    """Whether another process held the file for too long."""
    return isinstance(error, sqlite3.Error) and ("locked" in str(error) or "busy" in str(error))


def _error(address: str, error: Exception, opening: bool) -> StoreError | FormatError:
    text = str(error)
    damaged = ("not a database", "malformed", "Could not decode")
    if isinstance(error, sqlite3.Error) and any(part in text for part in damaged):
        return trouble(
            FormatError,
            address,
            "is damaged or not an event store; restore a backup",
            error,
            opening=opening,
        )
    if "full" in text or "No space" in text:
        text = (
            "is full now: nothing was written, and all acknowledged events are stored; make room, "
            "or raise the store's limit, and try again"
        )
    elif is_busy(error):
        text = (
            f"is busy: another process has held it for more than {BUSY_SECONDS:.0f} s; try again "
            "later"
        )
    else:
        text = "cannot be used; check its disk and try again"
    return trouble(StoreError, address, text, error, opening=opening)
