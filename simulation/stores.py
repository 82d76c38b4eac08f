"""The event stores as a simulation drives them: their own code over a simulated server or writer.

Every round trip is a pause, at which other tasks may continue, and may go wrong:

- ``lost``: the request does not arrive, and the caller gets an error;
- ``unanswered``: the change is made, but the caller gets an error;
- ``late``: the caller gets an error, and the change is made later, after others.

The plain model has to know when a change is made. A method that changes something therefore leaves
an *effect* with its task, a function that makes the same change in the plain model. It is called at
the moment of the change: after a commit of SQLite, or after a script of the server has run.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

import valkey
import valkey.connection

from limerank.data.events import Event
from limerank.data.exposures import Exposure
from limerank.errors import StoreError
from limerank.serving.stores import EventStore, Id, Outcome, SqliteStore, ValkeyStore
from limerank.serving.stores import sqlite as sqlite_module
from limerank.serving.stores import valkey as valkey_module
from limerank.serving.stores.contract import trouble
from limerank.serving.stores.sqlite_file import SqliteFile
from limerank.serving.stores.sqlite_writer import Job, Writer
from simulation.scheduler import Scheduler
from simulation.truth import Truth
from simulation.valkey_server import SimulatedServer

LOST, UNANSWERED, LATE = FAULTS = ("lost", "unanswered", "late")
BUCKETS = 16
"""Of users. Histories have a few users, and each bucket costs each reading of all of them."""
ADDRESS = "valkey://simulated:6379/0"
Effect = Callable[[], object] | None


class Watched(EventStore):
    """Leaves the effects of changes with the task that makes them."""

    scheduler: Scheduler
    truth: Truth

    def _effect(self, effect: Callable[[], object]) -> None:
        task = self.scheduler.current
        if task is not None:
            task.effect = effect

    def append(self, events: Sequence[Event]) -> list[Outcome]:
        self._effect(lambda: self.truth.append(events))
        return super().append(events)  # type: ignore[safe-super]

    def appending(self, events: Sequence[Event]) -> Future[list[Outcome]]:
        self._effect(lambda: self.truth.append(events))
        return super().appending(events)

    def show(self, exposures: Sequence[Exposure]) -> list[Outcome]:
        self._effect(lambda: self.truth.show(exposures))
        return super().show(exposures)  # type: ignore[safe-super]

    def showing(self, exposures: Sequence[Exposure]) -> Future[list[Outcome]]:
        self._effect(lambda: self.truth.show(exposures))
        return super().showing(exposures)  # type: ignore[safe-super]

    def set_features(self, user: Id, features: Mapping[str, Any]) -> None:
        self._effect(lambda: self.truth.set_features(user, features))
        super().set_features(user, features)  # type: ignore[safe-super]

    def delete_user(self, user: Id) -> bool:
        self._effect(lambda: self.truth.delete(user))
        return super().delete_user(user)  # type: ignore[safe-super]

    def put_items(self, items: Mapping[Id, Mapping[str, Any] | None]) -> int:
        self._effect(lambda: self.truth.put_items(items))
        return super().put_items(items)  # type: ignore[safe-super]


# Valkey


class Network:
    """Carries messages of clients to a simulated server."""

    def __init__(self, scheduler: Scheduler, server: SimulatedServer) -> None:
        self.scheduler, self.server = scheduler, server

    def exchange(self, message: Sequence[Sequence[Any]]) -> list[Any]:
        """The replies to a message.

        Raises:
            valkey.exceptions.ConnectionError, TimeoutError: it was lost, or its replies were.
        """
        task = self.scheduler.current
        fault = "" if task is None else task.fault()
        changes = any(words[0] == "EVALSHA" for words in message)
        effect: Effect = None
        if task is not None and changes:
            effect, task.effect = task.effect, None

        def arrive() -> list[Any]:
            replies = self.server.execute(message)
            if effect is None:
                return replies
            if _ran(replies):
                effect()
            elif task is not None:
                task.effect = effect  # the client sends the script, and then the message again
            return replies

        self.scheduler.pause()
        if fault == LOST:
            raise valkey.exceptions.ConnectionError("simulated: the connection was refused")
        if fault == LATE and task is not None:
            self.scheduler.spawn(f"late message of {task.name}", arrive)
            raise valkey.exceptions.TimeoutError("simulated: the server is slow")
        replies = arrive()
        self.scheduler.pause()
        if fault == UNANSWERED:
            raise valkey.exceptions.TimeoutError("simulated: the reply was lost")
        return replies


def _ran(replies: list[Any]) -> bool:
    return not any(isinstance(one, valkey.exceptions.NoScriptError) for one in replies)


class Connection(valkey.connection.AbstractConnection):
    """A connection of the client library that leads to a :class:`Network`."""

    def __init__(self, network: Network, **options: Any) -> None:
        super().__init__(**options)
        self._network, self._replies = network, list[Any]()

    def repr_pieces(self) -> list[tuple[str, str]]:
        return []

    def connect(self) -> None:
        pass

    def disconnect(self, *options: Any) -> None:
        self._replies.clear()

    def can_read(self, timeout: float = 0) -> bool:
        return bool(self._replies)

    def pack_commands(self, commands: Any) -> list[tuple[Any, ...]]:
        return list(commands)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self._replies = self._network.exchange(command)

    def send_command(self, *words: Any, **options: Any) -> None:
        self._replies = self._network.exchange([words])

    def read_response(self, *options: Any, **more: Any) -> Any:
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


class _Appenders:
    """Tasks in place of the threads that wait for the server."""

    scheduler: Scheduler

    def __init__(self) -> None:
        self.process = os.getpid()
        self.free = _Free()
        self.threads = self

    def submit(self, work: Callable[[Any], Any], given: Any) -> Future[Any]:
        caller = self.scheduler.current
        promise: Future[Any] = Future()

        def run() -> None:
            try:
                promise.set_result(work(given))
            except Exception as error:  # noqa: BLE001  (the caller gets it)
                promise.set_exception(error)

        task = self.scheduler.spawn("append", run, None if caller is None else caller.server)
        if caller is not None:
            task.name, task.fault = f"append of {caller.name}", caller.fault
        return promise

    def shutdown(self) -> None:
        pass


class _Free:
    def acquire(self, blocking: bool) -> bool:
        return True

    def release(self) -> None:
        pass


class SimulatedValkeyStore(Watched, ValkeyStore):
    """A Valkey store whose client leads to a simulated server."""

    def __init__(self, truth: Truth, network: Network, most: int | None, most_exposures: int):
        self.scheduler, self.truth = network.scheduler, truth
        appenders = type("Appenders", (_Appenders,), {"scheduler": network.scheduler})
        self._patches = mock.patch.object(valkey_module, "_Appenders", appenders)

        class Pool(valkey.ConnectionPool):
            @classmethod
            def from_url(cls, url: Any, **options: Any) -> Any:
                return cls(connection_class=Connection, network=network)

        with mock.patch.object(valkey, "BlockingConnectionPool", Pool):
            super().__init__(ADDRESS, most=most, most_exposures=most_exposures, buckets=BUCKETS)

    def _without_waiting(self, work: Any, given: Any) -> Any:
        task = self.scheduler.current
        if task is not None:
            task.effect = None  # the task that waits for the server has it
        with self._patches:
            return super()._without_waiting(work, given)


# SQLite


class _Job(Job):
    """A change that waits, and what goes wrong with it."""

    def __init__(self, work: Any, scheduler: Scheduler) -> None:
        super().__init__(work)
        task = scheduler.current
        self._scheduler = scheduler
        self.effect: Effect = None if task is None else task.effect
        self.fault = "" if task is None else task.fault()
        if task is not None:
            task.effect = None

    def result(self, address: str) -> Any:
        if self.fault == LATE:
            self._scheduler.pause()
            raise trouble(StoreError, address, "simulated: it took too long for a write")
        self._scheduler.wait(self.future.done)
        return self.future.result()


class _Writer(Writer):
    """The writer of a file as a task."""

    def __init__(self, file: SqliteFile, scheduler: Scheduler) -> None:
        self._file, self._connection = file, file.writer
        self._scheduler = scheduler
        self.waiting: list[_Job] = []
        self._turn = False

    @property
    def is_alive(self) -> bool:
        return True

    def submit(self, work: Callable[[Any], Any], patience: float) -> Job:
        self._file.check_open()
        job = _Job(work, self._scheduler)
        self.waiting.append(job)
        task = self._scheduler.current
        if task is None:
            self._write()
        elif not self._turn:
            self._turn = True
            self._scheduler.spawn("writer", self._write, task.server)
        return job

    def _write(self) -> None:
        """Write all that waits, in one transaction, as the thread does."""
        self._turn = False
        jobs, self.waiting = self.waiting, []
        if any(job.fault == LOST for job in jobs):
            error = trouble(StoreError, "", "simulated: the disk failed before the commit")
            for job in jobs:
                job.future.set_exception(error)
            return
        futures = [job.future for job in jobs]
        if any(job.fault == UNANSWERED for job in jobs):  # the commit's result is not known
            for job in jobs:
                job.future = Future()
        self._commit(list(jobs))
        for job, future in zip(jobs, futures, strict=True):
            if job.effect is not None and job.future.exception() is None:
                job.effect()
            if job.future is not future:
                error = trouble(StoreError, "", "simulated: the disk failed after the commit")
                future.set_exception(error)
                job.future = future

    def close(self) -> None:
        for job in self.waiting:
            job.future.set_exception(trouble(StoreError, "", "was closed; open it again"))


class SimulatedSqliteStore(Watched, SqliteStore):
    """An SQLite store whose writer is a task."""

    def __init__(
        self, truth: Truth, scheduler: Scheduler, path: Path, most: int | None, most_exposures: int
    ) -> None:
        self.scheduler, self.truth = scheduler, truth
        with mock.patch.object(sqlite_module, "Writer", lambda file: _Writer(file, scheduler)):
            super().__init__(path, most=most, most_exposures=most_exposures)
        reading = self._file.reading

        @contextlib.contextmanager
        def paused(*, several: bool = True) -> Iterator[sqlite3.Connection]:
            task = scheduler.current
            fault = "" if task is None else task.fault()
            scheduler.pause()
            with reading(several=several) as connection:
                if fault == LOST:
                    raise sqlite3.OperationalError("simulated: disk I/O error")
                yield connection

        self._file.reading = paused  # type: ignore[method-assign]
