"""The writing thread of an SQLite event store: changes queue up, and all that have gathered are
written in one transaction, so that the disk is flushed once for all of them (group commit)."""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from itertools import groupby, islice
from typing import Any

from limerank.errors import StoreError
from limerank.serving.stores import sqlite_file
from limerank.serving.stores.contract import trouble
from limerank.serving.stores.sqlite_changes import Append, Connection
from limerank.serving.stores.sqlite_file import SqliteFile

GROUP = 256
"""Changes in one transaction, at most."""
WAITING = 4096
"""Changes that may wait; with more, the store is too busy."""

log = logging.getLogger("limerank.serving.stores")


class Job:
    """A change that waits to be written, and the future of its result."""

    def __init__(self, work: Callable[[Connection], Any]) -> None:
        self.work = work
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()  # a caller that gives up does not cancel it

    def result(self, address: str) -> Any:
        """The result; StoreError where it takes too long."""
        patience = 2 * sqlite_file.BUSY_SECONDS
        try:
            return self.future.result(patience)
        except FutureTimeoutError:
            raise trouble(
                StoreError,
                address,
                f"took more than {patience:.0f} s for a write, which may still complete; is the "
                "disk overloaded, or does another process hold the store? Try again later",
            ) from None


class Writer:
    """Writes all changes of a file, in one thread.

    Args:
        file: an open file.
    """

    def __init__(self, file: SqliteFile) -> None:
        self._file, self._connection = file, file.writer
        self._jobs: queue.Queue[Job | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(
            target=self._run, name=f"writer of {file.path.name}", daemon=True
        )
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, work: Callable[[Connection], Any], patience: float) -> Job:
        """Queue a change.

        Args:
            work: makes the change, given the connection inside a transaction.
            patience: seconds to wait for room in the queue.

        Raises:
            StoreError: the store is closed, or too many changes wait.
        """
        self._file.check_open()
        job = Job(work)
        try:
            self._jobs.put(job, patience > 0, patience)
        except queue.Full:
            raise trouble(
                StoreError,
                self._file.address,
                f"is too busy: {WAITING} writes are waiting; try again later",
            ) from None
        # A job that is queued while the store closes is refused in close().
        return job

    def close(self) -> None:
        """Write all queued changes, and refuse later ones."""
        self._jobs.put(None)
        self._thread.join()
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job.future.set_exception(
                        trouble(StoreError, self._file.address, "was closed; open it again")
                    )

    def _run(self) -> None:
        """Write all that waits, one transaction after another."""
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
            except BaseException as error:  # the thread goes on after any error
                log.exception("a write of the event store failed in an unexpected way")
                for job in waiting:
                    if not job.future.done():
                        job.future.set_exception(error)

    def _commit(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        try:
            with self._file.as_store_errors():
                self._connection.execute("BEGIN IMMEDIATE")
                found = self._done(jobs)
                self._connection.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001  (the job's caller gets it)
            with contextlib.suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            if len(jobs) == 1 or isinstance(error, StoreError):
                for job in jobs:
                    job.future.set_exception(error)
                return
            for job in jobs:  # one that fails does not stop the others
                self._commit([job])
            return
        for job, result in zip(jobs, found, strict=True):
            job.future.set_result(result)

    def _done(self, jobs: list[Job]) -> list[Any]:
        """The results of changes, inside a transaction. Neighbouring appends are one append."""
        found: list[Any] = []
        for _, some in groupby([job.work for job in jobs], lambda work: isinstance(work, Append)):
            works = list(some)
            appends = [work for work in works if isinstance(work, Append)]
            if appends:
                outcomes = iter(Append.of(appends)(self._connection))
                found += [list(islice(outcomes, len(one.events))) for one in appends]
            else:
                found += [work(self._connection) for work in works]
        return found
