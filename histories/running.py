"""One history: starts a store and servers, runs clients and faults, heals, and asks all again."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from histories.clients import LATE, Book, Client, Connection, UnansweredError
from histories.nemesis import Nemesis
from histories.processes import Server, Store, clock_library
from histories.proxy import Proxy
from histories.record import Call, History, Status
from histories.world import ARMS, World, world

Failover = Literal["none", "asynchronous", "bounded"]
SALT = "histories"
PAUSE = 0.05
"""Seconds that a client waits between two requests, on average."""
OPERATOR = 3.0
"""Seconds between two changes of what servers watch."""
SETTLING = 90.0
"""Seconds after the last fault in which servers have to answer, and to follow each other: their
background tasks wait up to 30 seconds after failures, and the machine may be busy."""
REPLICA_DELAY = 0.02
"""Seconds that the replica is behind."""
BOUNDED = {"min-replicas-to-write": "1", "min-replicas-max-lag": "1"}
"""Settings with which a primary refuses writes that no replica follows."""
FAULTS = ("stop", "kill", "stop store", "kill store", "clock", "store link", "client link",
          "partition")  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What a history runs on.

    Attributes:
        servers: how many.
        mode: of the user states.
        shared: whether all servers serve the same index folders, or copies.
        seconds: that clients ask while faults take place.
        clients: how many.
        failover: none; to a replica that follows asynchronously; or one without which the primary
            refuses writes after a second (:data:`BOUNDED`).
        faults: kinds of :data:`histories.nemesis.KINDS`.
    """

    servers: int
    mode: Literal["window", "streaming"]
    shared: bool
    seconds: float
    clients: int
    failover: Failover
    faults: tuple[str, ...]


def draw(seed: int, *, seconds: float, failover: Failover = "none", servers: int = 0) -> Setting:
    """The setting of a seed."""
    draws = random.Random(f"{seed} setting")
    drawn = draws.choice((2, 3))
    faults = ("replica", "store link", "stop") if failover != "none" else FAULTS
    return Setting(
        servers=servers or drawn,
        mode=draws.choice(("window", "streaming")),
        shared=draws.random() < 0.5,
        seconds=seconds,
        clients=6,
        failover=failover,
        faults=faults,
    )


def run_history(seed: int, setting: Setting, folder: Path) -> History:
    """Run one history; its processes have ended when it returns.

    Args:
        seed: of the faults and the requests.
        setting: what it runs on.
        folder: an empty folder, for the files of all processes.

    Raises:
        RuntimeError: a process does not start while nothing is wrong.
    """
    return asyncio.run(_Running(seed, setting, folder).run())


class _Running:
    """A history that goes on: the :class:`~histories.nemesis.Cluster`."""

    def __init__(self, seed: int, setting: Setting, folder: Path) -> None:
        self.seed, self.setting, self.folder = seed, setting, folder
        self.world: World = world()
        self.book = Book(seed)
        self.stores = [Store(folder / "store-0")]
        if setting.failover != "none":
            self.stores.append(Store(folder / "store-1"))
        self.primary = 0
        self.replication = Proxy()
        self.links: dict[str, Proxy] = {}
        self._servers: list[Server] = []
        self.indexes: list[dict[str, str]] = []
        self._starting: dict[int, asyncio.Task[None]] = {}
        self._turns = itertools.cycle(("two", "one"))

    @property
    def servers(self) -> int:
        return self.setting.servers

    @property
    def now(self) -> float:
        return self.book.now

    @property
    def clocks(self) -> bool:
        return clock_library() is not None

    # The course

    async def run(self) -> History:
        try:
            await self._start()
            await self._under_faults()
            await self._settle()
            return self._history()
        finally:
            await self._end()

    async def _start(self) -> None:
        self.replication.delay = REPLICA_DELAY
        await self.replication.start()
        await self.stores[0].start()
        self.replication.target = self.stores[0].port
        if len(self.stores) > 1:
            await self._follow(1)
            if self.setting.failover == "bounded":
                await self._bound(self.stores[0])
        for number in range(self.servers):
            for link, target in (
                (f"server {number} to the store", self.stores[0].port),
                (f"clients to server {number}", None),
            ):
                self.links[link] = Proxy(target)
                await self.links[link].start()
            self._prepare(number)
        started = await asyncio.gather(*(self.start_server(one) for one in range(self.servers)))
        if not all(started):
            raise RuntimeError(f"a server does not start: {self._servers[0].log()}")
        self.book.began = time.monotonic()

    def _prepare(self, number: int) -> None:
        """The index folders, the watched folder and the command of a server."""
        own = self.folder / ("indexes" if self.setting.shared else f"indexes-{number}")
        own.mkdir(exist_ok=True)
        names = [name for of in ARMS.values() for name in of]
        self.indexes.append({name: str(self.world.copy_index(name, own)) for name in names})
        store = self.links[f"server {number} to the store"]
        options = ["--no-keys", "--state", self.setting.mode, "--salt", SALT]
        options += ["--store", f"valkey://127.0.0.1:{store.port}/0"]
        for arm, of in ARMS.items():
            run, index = self.world.run(of[0]), self.indexes[number][of[0]]
            options += ["--arm", f"{arm}={run},{index},0.5"]
        watched = self.folder / f"watched-{number}"
        watched.mkdir()
        options += ["--watch", str(watched)]
        self._servers.append(Server(self.folder / f"server-{number}", options))
        self._watch(number, "one")

    def _watch(self, number: int, name: str) -> None:
        """Let a server load a run in the arm that has two."""
        arms = {
            arm: {
                "run": str(self.world.run(of)),
                "index": self.indexes[number][of],
                "share": 0.5,
            }
            for arm, of in (("a", name), ("b", ARMS["b"][0]))
        }
        path = self.folder / f"watched-{number}" / "arms.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"arms": arms}), encoding="utf-8")
        partial.replace(path)

    async def _under_faults(self) -> None:
        stop = asyncio.Event()
        ports = [self.links[f"clients to server {one}"].port for one in range(self.servers)]
        self.clients = [
            Client(number, self.book, ports, self.world, self.indexes, self.seed)
            for number in range(self.setting.clients)
        ]
        self.nemesis = Nemesis(self, self.seed, self.setting.faults)
        tasks = [asyncio.create_task(one.run(stop, PAUSE)) for one in self.clients]
        tasks.append(asyncio.create_task(self.nemesis.run(stop)))
        tasks.append(asyncio.create_task(self._operate(stop)))
        try:
            done, _ = await asyncio.wait(
                tasks, timeout=self.setting.seconds, return_when=asyncio.FIRST_EXCEPTION
            )
            for one in done:
                one.result()
        finally:
            stop.set()
            await asyncio.gather(*tasks, return_exceptions=True)
        for one in tasks:
            one.result()

    async def _operate(self, stop: asyncio.Event) -> None:
        """Change what servers watch, all at a time."""
        for name in self._turns:
            try:
                await asyncio.wait_for(stop.wait(), OPERATOR)
                return
            except TimeoutError:
                for number in range(self.servers):
                    self._watch(number, name)

    async def _settle(self) -> None:
        """End all faults, let servers follow each other, and ask them everything again."""
        for link in self.links:
            self.heal(link)
        self.resume_store()
        for number, server in enumerate(self._servers):
            server.clock.jump(0.0)
            server.resume()
            if number in self._starting:
                await self._starting[number]
            if not server.alive:
                await self.start_server(number)
        name = next(self._turns)
        for number in range(self.servers):
            self._watch(number, name)
        self.book.last = True
        client = Client(
            len(self.clients),
            self.book,
            [self.links[f"clients to server {one}"].port for one in range(self.servers)],
            self.world,
            self.indexes,
            self.seed,
        )
        limit = self.now + SETTLING
        before = len(self.book.calls)
        while self.now < limit:
            del self.book.calls[before:]  # answers of servers that have not followed yet
            if await self._agree(client, name):
                break
            await asyncio.sleep(0.25)
        for user in self.book.users:
            for number in range(self.servers):
                await client.rank(number, user)
        await self._export()
        client.close()

    async def _agree(self, client: Client, name: str) -> bool:
        """Whether all servers are ready, and serve the same live items and runs."""
        shown = []
        for number in range(self.servers):
            connection = Connection(self.links[f"clients to server {number}"].port)
            try:
                code, _ = await connection.request("GET", "/readyz")
                _, model = await connection.request("GET", "/v1/model")
            except UnansweredError:
                return False
            finally:
                connection.close()
            calls = [await client.stranger(number, arm) for arm in ARMS]
            runs = sorted(one["run"] for one in model.get("arms", ()))
            wanted = sorted(self.world.fingerprints[one] for one in (name, ARMS["b"][0]))
            if code != 200 or runs != wanted or any(call.status != "ok" for call in calls):
                return False
            shown += [set(call.answer["live"]) for call in calls]
        return all(one == shown[0] for one in shown)

    async def _export(self) -> None:
        """Export all that is stored, by the command."""
        number, begin = next(self.book.numbers), self.now
        out = self.folder / "export.parquet"
        command = [
            *(sys.executable, "-m", "limerank", "export", "--quiet", "--overwrite"),
            *("--store", f"valkey://127.0.0.1:{self.stores[self.primary].port}/0"),
            *("--until", str(self.world.begin + 10 * LATE), "--out", str(out)),
        ]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=False
        )
        answer: dict[str, Any] = {"error": done.stderr[-500:]}
        if done.returncode == 0:
            rows = pl.read_parquet(out).filter(pl.col("position").is_not_null())
            # A ranking is one exposure: its first position stands there once.
            answer = {"rankings": rows.filter(pl.col("position") == 1)["request"].to_list()}
        status: Status = "fail" if done.returncode else "ok"
        self.book.calls.append(
            Call(number, "export", -1, begin, self.now, status, answer=answer, last=True)
        )

    def _history(self) -> History:
        runs = {
            arm: [self.world.fingerprints[name] for name in names] for arm, names in ARMS.items()
        }
        return History(self.seed, asdict(self.setting), runs, self.book.calls, self.nemesis.faults)

    async def _end(self) -> None:
        for task in self._starting.values():
            task.cancel()
        for process in (*self._servers, *self.stores):
            process.kill()
        for proxy in (*self.links.values(), self.replication):
            await proxy.close()
        for path in self.folder.glob("indexes*"):
            shutil.rmtree(path)

    # Faults of processes

    def stop_server(self, server: int) -> None:
        self._servers[server].stop()

    def resume_server(self, server: int) -> None:
        self._servers[server].resume()

    def kill_server(self, server: int) -> bool:
        if server in self._starting:
            return False
        self._servers[server].kill()
        self.links[f"clients to server {server}"].cut()
        return True

    def restart_server(self, server: int) -> None:
        self._starting[server] = asyncio.create_task(self._restart(server))

    async def _restart(self, server: int) -> None:
        await self.start_server(server)
        del self._starting[server]

    async def start_server(self, server: int) -> bool:
        started = await self._servers[server].start()
        link = self.links[f"clients to server {server}"]
        link.target = self._servers[server].port
        link.release()
        return started

    def jump(self, server: int, seconds: float) -> None:
        self._servers[server].clock.jump(seconds)

    def stop_store(self) -> None:
        self.stores[self.primary].stop()

    def resume_store(self) -> None:
        self.stores[self.primary].resume()

    async def restart_store(self, seconds: float) -> None:
        self.stores[self.primary].kill()
        await asyncio.sleep(seconds)
        await self.stores[self.primary].start()

    # Faults of connections

    def disturb(self, link: str, how: str) -> None:
        proxy = self.links[link]
        actions: dict[str, Callable[[], None]] = {
            "cut": proxy.cut,
            "drop": proxy.drop,
            "hold": lambda: proxy.hold("there", "back"),
            "hold requests": lambda: proxy.hold("there"),
            "hold answers": lambda: proxy.hold("back"),
            "slow": lambda: setattr(proxy, "delay", 0.15),
        }
        actions[how]()

    def heal(self, link: str) -> None:
        self.links[link].release()

    # Failover

    async def _follow(self, replica: int) -> None:
        """Start a store as the replica of the primary, and wait until it has its data."""
        store = self.stores[replica]
        await store.start("--replicaof", f"127.0.0.1 {self.replication.port}")
        await _until(store.replicates, "the replica does not follow the primary")

    async def _bound(self, store: Store) -> None:
        for name, value in BOUNDED.items():
            await store.ask(f"CONFIG SET {name} {value}")

    async def lag(self, seconds: float) -> None:
        """The replica loses its primary for some time."""
        self.replication.hold("there", "back")
        await asyncio.sleep(seconds)

    async def fail_over(self) -> None:
        """The primary is killed, and the replica promoted without what it did not get."""
        old, new = self.primary, 1 - self.primary
        self.stores[old].kill()
        self.replication.drop()
        await self.stores[new].ask("REPLICAOF NO ONE")
        if self.setting.failover == "bounded":
            await self._bound(self.stores[new])
        self.primary = new
        for number in range(self.servers):
            link = self.links[f"server {number} to the store"]
            link.target = self.stores[new].port
            link.drop()

    async def rejoin(self) -> None:
        """The old primary follows the new one."""
        self.replication.target = self.stores[self.primary].port
        self.replication.release()
        self.replication.delay = REPLICA_DELAY
        await self._follow(1 - self.primary)


async def _until(done: Callable[[], Awaitable[bool]], what: str) -> None:
    limit = asyncio.get_running_loop().time() + SETTLING
    while not await done():
        if asyncio.get_running_loop().time() > limit:
            raise RuntimeError(what)
        await asyncio.sleep(0.02)
