"""The event stores of histories: one server, with a replica or without, or a cluster.

Each is a :class:`Stores`, which says what its machines are, how they are asked, and which faults it
knows. Another kind of store, or of log, is one more class like these.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from histories.cluster import Cluster, Node, name_of
from histories.network import Network
from histories.processes import Store
from limerank.serving.stores import open_store
from limerank.serving.stores.valkey_layout import SLOTS, slot_of

Failover = Literal["none", "asynchronous", "bounded"]
SETTLING = 90.0
"""Seconds in which stores have to be as they should be after a fault; the machine may be busy."""
BOUNDED = {"min-replicas-to-write": "1", "min-replicas-max-lag": "1"}
"""Settings with which a primary refuses writes that no replica follows."""
PRIMARIES = 3
Link = tuple[str, str]
"""Names of a machine that asks, and of what it asks."""


class Promoted(NamedTuple):
    """Replicas that took over.

    Attributes:
        machines: these replicas.
        shards: their numbers.
        ago: seconds since all servers agreed about them.
    """

    machines: tuple[str, ...] = ()
    shards: tuple[int, ...] = ()
    ago: float = 0.0


class Stores(Protocol):
    """The event store of a history.

    Attributes:
        machines: on which it runs.
        kinds: of faults that it knows, besides those of servers and connections.
    """

    @property
    def machines(self) -> Sequence[str]: ...
    @property
    def kinds(self) -> Sequence[str]: ...

    async def start(self) -> None:
        """Start all processes."""

    async def url(self, asker: str) -> str:
        """The address of the store for a machine."""

    def links(self, asker: str) -> Sequence[Link]:
        """The connections of a machine to the store, which can be disturbed."""

    def targets(self) -> Sequence[str]:
        """The machines that faults may stop, kill or isolate."""

    def stop(self, machine: str) -> None:
        """SIGSTOP."""

    def resume(self, machine: str) -> None:
        """SIGCONT."""

    async def restart(self, machine: str, seconds: float) -> None:
        """Kill a process, and start it after some time."""

    async def promoted(self) -> Promoted:
        """Which replicas took over since the last call, when all machines agree and work."""

    async def shards(self, users: Sequence[str]) -> dict[str, int]:
        """The shard of each user; none where one server has all."""

    async def lag(self, seconds: float) -> None:
        """A replica loses its primary for some time."""

    async def fail_over(self) -> str:
        """This primary is killed, and its replica takes over without what it did not get. Returns
        what took place; empty: :meth:`promoted` will."""

    async def rejoin(self) -> None:
        """The old primary follows the new one."""

    def kill(self) -> None:
        """Kill all processes."""


class OneStore:
    """A Valkey or Redis server, and a replica if there are failovers.

    Args:
        network: in which it is the service ``store``.
        folder: of its files.
        failover: none; to a replica that follows asynchronously; or one without which the primary
            refuses writes after a second (:data:`BOUNDED`).
    """

    def __init__(self, network: Network, folder: Path, failover: Failover) -> None:
        self._network, self._folder, self._failover = network, folder, failover
        self.machines = ("store 0",) if failover == "none" else ("store 0", "store 1")
        self.kinds = ("stop store", "kill store") if failover == "none" else ("replica",)
        self._stores: list[Store] = []
        self._primary = 0

    async def start(self) -> None:
        for number, machine in enumerate(self.machines):
            prefix = self._network.command(machine, [])
            path = self._folder / f"store-{number}"
            self._stores.append(Store(path, self._network.bound(machine), prefix))
            self._network.listens(machine, self._stores[-1].port)
        self._network.give("store", "store 0")
        await self._stores[0].start()
        if len(self._stores) > 1:
            await self._follow(1)
            await self._bound()

    async def url(self, asker: str) -> str:
        host, port = await self._network.address(asker, "store")
        return f"valkey://{host}:{port}/0"

    def links(self, asker: str) -> Sequence[Link]:
        return ((asker, "store"),)

    def targets(self) -> Sequence[str]:
        return (self.machines[self._primary],)

    def _store(self, machine: str) -> Store:
        return self._stores[self.machines.index(machine)]

    def stop(self, machine: str) -> None:
        self._store(machine).stop()

    def resume(self, machine: str) -> None:
        self._store(machine).resume()

    async def restart(self, machine: str, seconds: float) -> None:
        self._store(machine).kill()
        await asyncio.sleep(seconds)
        await self._store(machine).start()

    async def promoted(self) -> Promoted:
        return Promoted()

    async def shards(self, users: Sequence[str]) -> dict[str, int]:
        return {}

    async def lag(self, seconds: float) -> None:
        self._network.disturb(*self._replication(), "hold")
        await asyncio.sleep(seconds)

    async def fail_over(self) -> str:
        old, new = self._primary, 1 - self._primary
        self._stores[old].kill()
        await self._stores[new].ask("REPLICAOF NO ONE")
        self._network.heal(*self._replication())
        self._primary = new
        await self._bound()
        self._network.give("store", self.machines[new])
        return "the replica is promoted"

    async def rejoin(self) -> None:
        await self._follow(1 - self._primary)

    def _replication(self) -> Link:
        return self.machines[1 - self._primary], self.machines[self._primary]

    async def _follow(self, replica: int) -> None:
        """Start a store as the replica of the primary, and wait until it has its data."""
        host, port = await self._network.address(*self._replication())
        self._network.delay(*self._replication())
        await self._stores[replica].start("--replicaof", f"{host} {port}")
        await until(self._stores[replica].replicates, "the replica does not follow the primary")

    async def _bound(self) -> None:
        if self._failover == "bounded":
            for name, value in BOUNDED.items():
                await self._stores[self._primary].ask(f"CONFIG SET {name} {value}")

    def kill(self) -> None:
        for one in self._stores:
            one.kill()


class ClusterOfStores:
    """A cluster of three primaries with a replica each, which choose new primaries themselves.

    Clients find the servers of a cluster by the addresses that these announce. With proxies each
    server announces one, so that it is disturbed for all machines at a time.

    Args:
        network: of the servers.
        folder: of their files.
        seed: of the servers that faults take.
    """

    kinds = ("stop store", "kill store", "replica")
    machines = tuple(f"store {number}" for number in range(2 * PRIMARIES))

    def __init__(self, network: Network, folder: Path, seed: int) -> None:
        self._network, self._folder = network, folder
        self._draws = random.Random(f"{seed} cluster")
        self._old, self._new = "", ""
        self._ports: dict[str, int] = {}
        self._primaries: frozenset[str] = frozenset()
        self._running: Cluster | None = None

    @property
    def _cluster(self) -> Cluster:
        assert self._running is not None, "the cluster has not started"
        return self._running

    async def start(self) -> None:
        nodes = []
        for number, machine in enumerate(self.machines):
            host, port = self._network.bound(machine)
            announced = None
            if self._network.pairs:
                port += number  # the servers of a cluster are known by their ports
            else:
                announced = await self._network.address("machines", machine)
            self._network.listens(machine, port)
            nodes.append(Node(port, host, announced, tuple(self._network.command(machine, []))))
        self._ports = dict(zip(self.machines, (one.port for one in nodes), strict=True))
        self._running = Cluster(self._folder / "cluster", PRIMARIES, 1, nodes=nodes)
        await asyncio.to_thread(self._cluster.begin)
        await self.promoted()

    async def url(self, asker: str) -> str:
        return self._cluster.url

    def links(self, asker: str) -> Sequence[Link]:
        return [(asker if self._network.pairs else "machines", one) for one in self.machines]

    def targets(self) -> Sequence[str]:
        return self.machines

    def stop(self, machine: str) -> None:
        self._cluster.processes[self._ports[machine]].send_signal(signal.SIGSTOP)

    def resume(self, machine: str) -> None:
        process = self._cluster.processes.get(self._ports[machine])
        if process is not None:
            process.send_signal(signal.SIGCONT)

    async def restart(self, machine: str, seconds: float) -> None:
        self._cluster.kill(self._ports[machine])
        await asyncio.sleep(seconds)
        self._cluster.start(self._ports[machine])

    async def promoted(self) -> Promoted:
        before, found = self._primaries, [frozenset[str]()]

        async def agree() -> bool:
            found[0] = await asyncio.to_thread(self._agreed)
            return bool(found[0])

        async def healthy() -> bool:
            done = await asyncio.to_thread(self._agreed, healthy=True)
            await asyncio.sleep(0.2)  # twice: none of them is about to take over
            return bool(done) and done == await asyncio.to_thread(self._agreed, healthy=True)

        what = "the servers of the cluster do not agree"
        await until(agree, what)
        agreed = asyncio.get_running_loop().time()
        await until(healthy, what)
        now = await asyncio.to_thread(self._agreed)
        if now != found[0]:  # one more took over meanwhile
            found[0], agreed = now, asyncio.get_running_loop().time()
        self._primaries = found[0]
        new = sorted(found[0] - before) if before else []
        shards = tuple(self.machines.index(one) % PRIMARIES for one in new)
        return Promoted(tuple(new), shards, asyncio.get_running_loop().time() - agreed)

    async def shards(self, users: Sequence[str]) -> dict[str, int]:
        def found() -> dict[str, int]:
            with open_store(self._cluster.url) as store:
                layout = store._layout  # type: ignore[attr-defined]
            keys = {user: layout.of_user(user, "u")[0] for user in users}
            return {user: slot_of(key) * PRIMARIES // SLOTS for user, key in keys.items()}

        return await asyncio.to_thread(found)

    def _agreed(self, *, healthy: bool = False) -> frozenset[str]:
        """The primaries, where all servers see the same ones, and no failure if they have to be
        ``healthy``; else none."""
        from valkey.exceptions import ValkeyError

        found = set()
        for port in self._ports.values():
            client = self._cluster.client(port)
            try:
                if healthy and not self._cluster.is_ready(port):
                    return frozenset()
                nodes = client.execute_command("CLUSTER NODES")
                found.add(self._masters(nodes, healthy=healthy))
            except (ValkeyError, OSError):
                return frozenset()  # it does not answer yet
            finally:
                client.close()
        return found.pop() if len(found) == 1 else frozenset()

    def _masters(self, nodes: Mapping[str, Mapping[str, Any]], *, healthy: bool) -> frozenset[str]:
        """The primaries of the map of a server; none where it sees a failure."""
        names = {name_of(port): machine for machine, port in self._ports.items()}
        if healthy and any(
            "fail" in one["flags"] or "handshake" in one["flags"] for one in nodes.values()
        ):
            return frozenset()
        owners = [one for one in nodes.values() if "master" in one["flags"] and one["slots"]]
        return frozenset(names[one["node_id"]] for one in owners)

    def _partner(self, machine: str) -> str:
        number = self.machines.index(machine)
        return self.machines[(number + PRIMARIES) % (2 * PRIMARIES)]

    async def lag(self, seconds: float) -> None:
        self._old = self._draws.choice(sorted(self._primaries))
        self._new = self._partner(self._old)
        self.stop(self._new)
        client = self._cluster.client(self._ports[self._old])
        await asyncio.to_thread(client.execute_command, "CLIENT", "KILL", "TYPE", "replica")
        client.close()
        await asyncio.sleep(seconds)

    async def fail_over(self) -> str:
        self._cluster.kill(self._ports[self._old])
        self.resume(self._new)
        client = self._cluster.client(self._ports[self._new])

        async def took_over() -> bool:
            return bool((await asyncio.to_thread(client.execute_command, "ROLE"))[0] == b"master")

        await until(took_over, f"{self._new} does not take over from {self._old}")
        client.close()
        return ""

    async def rejoin(self) -> None:
        self._cluster.start(self._ports[self._old])

    def kill(self) -> None:
        if self._running is not None:
            for port in list(self._running.processes):
                self._running.kill(port)


async def until(done: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait until something is so; RuntimeError with ``what`` if it is not in :data:`SETTLING`
    seconds."""
    limit = asyncio.get_running_loop().time() + SETTLING
    while not await done():
        if asyncio.get_running_loop().time() > limit:
            raise RuntimeError(what)
        await asyncio.sleep(0.02)
