"""Runs a history: servers in one process, whose operations take turns, and the checks of answers.

The servers are :class:`limerank.serving.engine.Serving` and all below it. What would make a run
depend on anything but the history is replaced (:func:`deterministic`): clocks, locks, random
numbers, and the network or the writing thread of the store.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from limerank.errors import StoreError, UnknownError
from limerank.index import changes, writing
from limerank.index.compaction import compact_index
from limerank.serving import arms, counting, current, exposing, feed, reading, served
from limerank.serving.arms import ArmSpec
from limerank.serving.engine import Serving
from limerank.serving.messages import ArmBody, EventMessage, Explain, Rank, Shown
from limerank.serving.state import users
from limerank.serving.stores import EventStore, sqlite, sqlite_changes
from limerank.serving.stores import valkey as valkey_store
from simulation.checking import SALT, Checks, MismatchError
from simulation.operations import DAY, USERS, History, Operation
from simulation.scheduler import Lock, Scheduler, Task
from simulation.stores import Network, SimulatedSqliteStore, SimulatedValkeyStore
from simulation.truth import Truth
from simulation.valkey_server import SimulatedServer
from simulation.world import OF_MODE, Oracle, World, columns_of, item_source, trained, user_features

TRIES = 3
"""Times that a client sends events, at most."""
REFRESHES = 6
"""Calls after which a server has refreshed the counters of all of its indexes, at the end."""
LOCKING = (users, current, arms)
"""Modules whose locks are held across round trips."""


class Server:
    """A server process.

    Attributes:
        engine: None while it is starting.
        counting: one thread of a server counts impressions.
        configurations: arms that it may serve, with the steps of the operation that changed them.
    """

    def __init__(self, number: int, simulation: Simulation) -> None:
        self.number, self._simulation = number, simulation
        self.engine: Serving | None = None
        self.counting = Lock(simulation.scheduler)
        self.store: EventStore | None = None

    def start(self) -> None:
        """Start the process; StoreError where the store does not answer."""
        simulation = self._simulation
        setting = simulation.history.setting
        self.store = simulation.open_store()
        specs = [
            ArmSpec(name, share, *simulation.folders(self.number, run))
            for name, (run, share) in setting.arms.items()
        ]
        engine = Serving(
            None,
            None,
            self.store,
            arms=specs,
            salt=SALT,
            mode=setting.mode,
            scorer=setting.scorer,
        )
        simulation.checks.started(self.number, setting.arms)
        self.engine = engine

    def end(self) -> None:
        """End the process."""
        self.engine, self.counting = None, Lock(self._simulation.scheduler)
        if self.store is not None:
            self.store.close()
            self.store = None


class Simulation:
    """One history.

    Args:
        history: the operations.
        world: runs and indexes.
        oracle: what rankings must contain.
        folder: an empty folder, for the store and for copies of indexes.
    """

    def __init__(self, history: History, world: World, oracle: Oracle, folder: Path) -> None:
        self.history, self.world, self.folder = history, world, folder
        setting = history.setting
        self.scheduler = Scheduler(random.Random(setting.turns), world.begin)
        self.truth = Truth(
            lambda: self.scheduler.step,
            lambda: self.scheduler.now,
            setting.most,
            setting.most_exposures,
        )
        self.checks = Checks(history.setting, self.scheduler, self.truth, oracle)
        self.valkey = SimulatedServer(lambda: self.scheduler.now / 1000)
        self.servers = [Server(number, self) for number in range(setting.servers)]
        self.faults = 0
        """Round trips that went wrong."""

    def folders(self, server: int, run: int) -> tuple[Path, Path]:
        """Run and index of an arm of a server."""
        setting = self.history.setting
        name = OF_MODE[setting.mode][run]
        copy = self.folder / f"index-{name}-{0 if setting.shared else server}"
        if not copy.exists():
            shutil.copytree(self.world.index(name), copy)
        return self.world.run(name), copy

    def open_store(self) -> EventStore:
        """The store, as one server opens it."""
        setting = self.history.setting
        if setting.store == "valkey":
            network = Network(self.scheduler, self.valkey)
            return SimulatedValkeyStore(self.truth, network, setting.most, setting.most_exposures)
        path = self.folder / "events.db"
        return SimulatedSqliteStore(
            self.truth, self.scheduler, path, setting.most, setting.most_exposures
        )

    def run(self) -> None:
        """Run all operations.

        Raises:
            MismatchError: an answer is not what it must be.
            StuckError: operations wait for each other.
        """
        with deterministic(self.scheduler, self.history.setting.turns, self._skew):
            try:
                for server in self.servers:
                    server.start()
                for number, operation in enumerate(self.history.operations):
                    self._begin(number, operation)
                self.scheduler.run()
                self._finish()
            finally:
                for server in self.servers:
                    self.scheduler.kill(server)
                    server.end()

    def _skew(self) -> int:
        task = self.scheduler.current
        if task is None or task.server is None:
            return 0
        return self.history.setting.skew[task.server.number]

    def _begin(self, number: int, operation: Operation) -> None:
        if operation.kind == "tick":
            self.scheduler.advance(operation.values["milliseconds"])
            return
        server = self.servers[operation.server]
        if operation.kind == "restart":
            self.scheduler.kill(server)
            server.end()
            self.checks.ended(operation.server)
        if operation.kind == "restart_store":
            self.valkey.restart()
            return
        self._spawn(f"{number} {operation.kind}", operation, server)
        self.scheduler.run(operation.overlaps)

    def _spawn(self, name: str, operation: Operation, server: Server) -> Task:
        def work() -> None:
            if operation.kind == "restart":
                server.start()
                return
            self.scheduler.wait(lambda: server.engine is not None)
            assert server.engine is not None
            Running(self, server, operation, task).run()

        task = self.scheduler.spawn(name, work, server)
        if operation.kind != "restart":  # a server that does not start is not a finding
            trips = itertools.count()

            def fault() -> str:
                found = operation.faults.get(next(trips), "")
                self.faults += bool(found)
                return found

            task.fault = fault
        self._watch(task)
        return task

    def _watch(self, task: Task) -> None:
        """Raise what a task found, once it has ended."""
        begun = task._work

        def work() -> None:
            try:
                begun()
            except Exception as error:
                self.failures.append((task.name, error))
                raise

        task._work = work

    @property
    def failures(self) -> list[tuple[str, Exception]]:
        """What tasks raised."""
        return self.checks.failures

    def _finish(self) -> None:
        """Look at everything, when nothing is going on and nothing goes wrong."""
        self._raise()
        count = len(self.servers)
        quiet = [Operation("follow", number) for number in range(count)]
        for user in USERS:
            if self.truth.user(user).now is not None:
                values = {"user": user, "exclude_seen": False}
                quiet.append(Operation("rank", user % count, values))
                quiet.append(Operation("user", (user + 1) % count, {"user": user}))
        for number, operation in enumerate(quiet):
            self._spawn(f"end {number} {operation.kind}", operation, self.servers[operation.server])
            self.scheduler.run()
            self._raise()
        store = self.servers[0].store
        assert store is not None
        self.checks.store(store)
        self._finish_counting()

    def _finish_counting(self) -> None:
        """Refresh the counters of all indexes when all windows are over."""
        self.scheduler.advance(3 * DAY)
        for number, server in enumerate(self.servers):
            for _ in range(REFRESHES):
                self._spawn(f"end count {number}", Operation("count", number), server)
                self.scheduler.run()
                self._raise()
            assert server.engine is not None
            for one in server.engine.arms.currents:
                name = self.world.names[one.served.trained.fingerprint]
                self.checks.counters(name, one.served.index)

    def _raise(self) -> None:
        if self.failures:
            name, error = self.failures[0]
            raise MismatchError(f"operation {name}: {error}") from error


class Running:
    """One operation of a server."""

    def __init__(
        self, simulation: Simulation, server: Server, operation: Operation, task: Task
    ) -> None:
        assert server.engine is not None
        self.simulation, self.server, self.engine = simulation, server, server.engine
        self.operation, self.task = operation, task
        self.checks, self.scheduler = simulation.checks, simulation.scheduler
        self.values = operation.values

    def run(self) -> None:
        """Run it, and check its answer. An error that the fault of a store explains is its
        answer."""
        self.first = self.scheduler.step
        with self.checks.going_on(self.operation), contextlib.suppress(StoreError):
            getattr(self, self.operation.kind)()

    def _of(self, promise: Any) -> Any:
        if isinstance(promise, Future):
            self.scheduler.wait(promise.done)
            return promise.result()
        return promise

    def append(self) -> None:
        begin = self.simulation.world.begin
        messages = [
            EventMessage(**{**event, "time": begin + event["time"]})
            for event in self.values["events"]
        ]
        for _ in range(TRIES if self.values["again"] else 1):
            first = self.scheduler.step
            with contextlib.suppress(StoreError):
                promise = self.engine.append_at_once(messages) or self.engine.append(messages)
                self.checks.appended(self._of(promise), messages, first)
                return

    def rank(self) -> None:
        given = dict(self.values)
        if "time" in given:
            given["time"] += self.simulation.world.begin
        asked = Rank(k=100, **given)
        answer = self.engine.rank_at_once(asked)
        found = self._of(self.engine.rank(asked) if answer is None else answer)
        self.checks.ranked(self.operation.server, asked, found, self.first)

    def explain(self) -> None:
        found = self.engine.explain(Explain(**self.values))
        self.checks.explained(self.values["user"], found, self.first)

    def compact(self) -> None:
        _, index = self.simulation.folders(self.operation.server, self.values["run"])
        with contextlib.suppress(writing.BusyError):
            compact_index(index)

    def shown(self) -> None:
        given = {**self.values, "time": self.simulation.world.begin + self.values["time"]}
        found = self._of(self.engine.shown(Shown(**given)))
        self.checks.shown(found, given["user"], given["ranking"], self.first)

    def features(self) -> None:
        self.engine.put_user(str(self.values["user"]), {"country": self.values["country"]})

    def forget(self) -> None:
        user = self.values["user"]
        try:
            self.engine.forget(str(user))
        except UnknownError:
            self.checks.unknown(user, self.first)
        else:
            self.checks.forgotten(user, self.first)

    def user(self) -> None:
        try:
            found: dict[str, Any] | None = self.engine.user(str(self.values["user"]))
        except UnknownError:
            found = None
        self.checks.described(self.values["user"], found, self.first)

    def put_items(self) -> None:
        variants = self.values["items"]
        found = self.engine.put_items([columns_of(id, of) for id, of in variants.items()])
        self.checks.put(self.operation.server, variants, found, self.first)

    def remove_item(self) -> None:
        try:
            self.engine.remove_item(str(self.values["item"]))
        except UnknownError:
            return
        self.checks.put(self.operation.server, {self.values["item"]: None}, None, self.first)

    def follow(self) -> None:
        self.engine.follow()
        self.checks.followed(self.operation, self.first)

    def count(self) -> None:
        with self.server.counting, contextlib.suppress(writing.BusyError):
            self.engine.arms.count_again(self.engine.counts)

    def rebuild(self) -> None:
        for one in self.engine.arms.currents:
            one.served.states.rebuild([self.values["user"]])

    def reload(self) -> None:
        server, (name, run) = self.operation.server, self.values.values()
        if name not in self.engine.arms.arms:
            return
        path, index = self.simulation.folders(server, run)
        with self.checks.configuring(server, lambda old: {**old, name: (run, old[name][1])}):
            self.engine.reload(str(path), str(index), name)

    def configure(self) -> None:
        server, wanted = self.operation.server, self.values["arms"]
        bodies = {}
        for name, (run, share) in wanted.items():
            path, index = self.simulation.folders(server, run)
            bodies[name] = ArmBody(share=share, run=str(path), index=str(index))
        with self.checks.configuring(server, lambda old: dict(wanted)):
            self.engine.reload(None, None, arms=bodies)


@contextlib.contextmanager
def deterministic(scheduler: Scheduler, seed: int, skew: Callable[[], int]) -> Iterator[None]:
    """Replace what would make a run depend on anything but the history."""

    def seconds() -> float:
        return (scheduler.now + skew()) / 1000

    clock = SimpleNamespace(time=seconds, perf_counter=seconds, monotonic=seconds)
    waiting = SimpleNamespace(monotonic=seconds, sleep=scheduler.sleep)
    threads = SimpleNamespace(Lock=lambda: Lock(scheduler))
    secrets = Secrets(seed)
    with contextlib.ExitStack() as stack:

        def patch(module: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(module, name, value))

        for module in LOCKING:
            patch(module, "threading", threads)
        for timed in (users, exposing, reading, counting, feed):
            patch(timed, "clock", clock)
        patch(writing, "time", waiting)
        for drawing in (exposing, sqlite, sqlite_changes, valkey_store):
            patch(drawing, "secrets", secrets)
        patch(served, "load_trained", trained)  # pure functions, of which one result is enough
        patch(users, "UserFeatureCache", user_features)
        patch(changes, "of_source", item_source)
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


class Secrets:
    """Takes the place of the module ``secrets``."""

    def __init__(self, seed: int) -> None:
        self._draws = random.Random(seed)

    def randbits(self, bits: int) -> int:
        return self._draws.getrandbits(bits)

    def token_hex(self, count: int) -> str:
        return self._draws.randbytes(count).hex()

    def token_urlsafe(self, count: int) -> str:
        return self._draws.randbytes(count).hex()
