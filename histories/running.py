"""One history: starts a store and servers, runs clients and faults, heals, and asks all again."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from histories.clients import Book, Client, Connection, UnansweredError
from histories.exporting import Exporter
from histories.namespaces import Namespaces
from histories.nemesis import Nemesis
from histories.network import Network, Proxies
from histories.processes import Server, clock_library
from histories.record import History
from histories.stores import SETTLING, ClusterOfStores, Failover, OneStore, Stores
from histories.world import ARMS, World, world

SALT = "histories"
PAUSE = 0.05
"""Seconds that a client waits between two requests, on average."""
OPERATOR = 3.0
"""Seconds between two changes of what servers watch."""
FAULTS = ("stop", "kill", "clock", "store link", "client link", "exporter link", "partition",
          "isolate")  # fmt: skip
"""Kinds of faults, besides those of the store."""
OF_FAILOVERS = ("store link", "stop")
"""The same where a replica is promoted by hand."""
KindOfStore = Literal["one", "cluster"]
KindOfNetwork = Literal["proxies", "namespaces"]


@dataclass(frozen=True)
class Setting:
    """What a history runs on.

    Attributes:
        store: one server, or a cluster.
        network: what connects them.
        slowed_by: see :class:`~histories.network.Network`.
        servers: how many.
        mode: of the user states.
        shared: whether all servers serve the same index folders, or copies.
        seconds: that clients ask while faults take place.
        clients: how many.
        failover: see :class:`~histories.stores.OneStore`. A cluster always has replicas.
        faults: kinds of :data:`histories.nemesis.KINDS`.
    """

    store: KindOfStore
    network: KindOfNetwork
    slowed_by: str
    servers: int
    mode: Literal["window", "streaming"]
    shared: bool
    seconds: float
    clients: int
    failover: Failover
    faults: tuple[str, ...]


def draw(
    seed: int,
    *,
    seconds: float,
    failover: Failover = "none",
    servers: int = 0,
    store: KindOfStore = "one",
    network: KindOfNetwork = "proxies",
) -> Setting:
    """The setting of a seed."""
    draws = random.Random(f"{seed} setting")
    drawn = draws.choice((2, 3))
    joined = _network(network)
    faults = FAULTS if failover == "none" else OF_FAILOVERS
    if store == "cluster" and joined.pairs:
        faults = (*faults, "split")
    mode: Literal["window", "streaming"] = draws.choice(("window", "streaming"))
    shared = draws.random() < 0.5
    return Setting(
        store=store,
        network=network,
        slowed_by=joined.slowed_by,
        servers=servers or drawn,
        mode=mode,
        shared=shared,
        seconds=seconds,
        clients=6,
        failover=failover,
        faults=(*faults, *_stores(store, joined, Path(), failover, seed).kinds),
    )


def _network(kind: KindOfNetwork) -> Network:
    return Namespaces() if kind == "namespaces" else Proxies()


def _stores(
    kind: KindOfStore, network: Network, folder: Path, failover: Failover, seed: int
) -> Stores:
    if kind == "cluster":
        return ClusterOfStores(network, folder, seed)
    return OneStore(network, folder, failover)


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
    """A history that goes on: the :class:`~histories.nemesis.System`."""

    def __init__(self, seed: int, setting: Setting, folder: Path) -> None:
        self.seed, self.setting, self.folder = seed, setting, folder
        self.world: World = world()
        self.book = Book(seed)
        self.network = _network(setting.network)
        self.stores = _stores(setting.store, self.network, folder, setting.failover, seed)
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
            history = self._history()
            history.shards = await self.stores.shards(self.book.users)
            return history
        finally:
            await self._end()

    async def _start(self) -> None:
        names = [f"server {one}" for one in range(self.servers)]
        await self.network.start(["clients", "exporter", *names, *self.stores.machines])
        await self.stores.start()
        for number in range(self.servers):
            await self._prepare(number)
        self.addresses = [await self.network.address("clients", one) for one in names]
        url = await self.stores.url("exporter")
        prefix = self.network.command("exporter", [])
        folder = self.folder / "exports"
        self.exporter = Exporter(self.book, self.world, folder, url, prefix, self.seed)
        started = await asyncio.gather(*(self.start_server(one) for one in range(self.servers)))
        if not all(started):
            raise RuntimeError(f"a server does not start: {self._servers[0].log()}")
        self.book.began = time.monotonic()

    async def _prepare(self, number: int) -> None:
        """The index folders, the watched folder and the command of a server."""
        own = self.folder / ("indexes" if self.setting.shared else f"indexes-{number}")
        own.mkdir(exist_ok=True)
        names = [name for of in ARMS.values() for name in of]
        self.indexes.append({name: str(self.world.copy_index(name, own)) for name in names})
        machine = f"server {number}"
        options = ["--state", self.setting.mode, "--salt", SALT]
        options += ["--store", await self.stores.url(machine)]
        for arm, of in ARMS.items():
            run, index = self.world.run(of[0]), self.indexes[number][of[0]]
            options += ["--arm", f"{arm}={run},{index},0.5"]
        watched = self.folder / f"watched-{number}"
        watched.mkdir()
        options += ["--watch", str(watched)]
        prefix = self.network.command(machine, [])
        host, port = self.network.bound(machine)
        bound = host, port if prefix else 0  # ports of one machine are taken by others meanwhile
        self._servers.append(Server(self.folder / f"server-{number}", options, bound, prefix))
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
        self.clients = [
            Client(number, self.book, self.addresses, self.world, self.indexes, self.seed)
            for number in range(self.setting.clients)
        ]
        self.nemesis = Nemesis(self, self.seed, self.setting.faults)
        tasks = [asyncio.create_task(one.run(stop, PAUSE)) for one in self.clients]
        tasks.append(asyncio.create_task(self.nemesis.run(stop)))
        tasks.append(asyncio.create_task(self._operate(stop)))
        tasks.append(asyncio.create_task(self.exporter.run(stop)))
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
        """End what a fault has left, let servers follow each other, and ask them everything
        again."""
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
            self.addresses,
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
        await self.exporter.one()
        client.close()

    async def _agree(self, client: Client, name: str) -> bool:
        """Whether all servers are ready, and serve the same live items and runs."""
        shown = []
        for number in range(self.servers):
            connection = Connection(self.addresses[number])
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

    def _history(self) -> History:
        runs = {
            arm: [self.world.fingerprints[name] for name in names] for arm, names in ARMS.items()
        }
        faults = sorted((*self.nemesis.faults, *self.exporter.faults), key=lambda one: one.end)
        return History(self.seed, asdict(self.setting), runs, self.book.calls, faults)

    async def _end(self) -> None:
        for task in self._starting.values():
            task.cancel()
        for process in self._servers:
            process.kill()
        self.stores.kill()
        await self.network.close()
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
        self.network.listens(f"server {server}", None)
        return True

    def restart_server(self, server: int) -> None:
        self._starting[server] = asyncio.create_task(self._restart(server))

    async def _restart(self, server: int) -> None:
        await self.start_server(server)
        del self._starting[server]

    async def start_server(self, server: int) -> bool:
        started = await self._servers[server].start()
        self.network.listens(f"server {server}", self._servers[server].port)
        return started

    def jump(self, server: int, seconds: float) -> None:
        self._servers[server].clock.jump(seconds)
