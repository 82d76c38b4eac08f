"""Faults, drawn from a seed: one begins, lasts for some time, and ends before the next begins."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from histories.network import Network
from histories.record import Fault
from histories.stores import Link, Stores

SHORT, LONG = 0.2, 3.0
"""Seconds that a fault lasts."""
JUMPS = (-86_400.0, -3600.0, -5.0, 5.0, 3600.0, 86_400.0)
"""Seconds by which the clock of a server jumps."""


class System(Protocol):
    """What faults can be done to.

    Attributes:
        network, stores: see there.
        servers: how many.
        now: seconds since the history began.
        clocks: whether clocks of servers can jump.
    """

    @property
    def network(self) -> Network: ...
    @property
    def stores(self) -> Stores: ...
    @property
    def servers(self) -> int: ...
    @property
    def now(self) -> float: ...
    @property
    def clocks(self) -> bool: ...
    def stop_server(self, server: int) -> None: ...
    def resume_server(self, server: int) -> None: ...
    def kill_server(self, server: int) -> bool: ...
    def restart_server(self, server: int) -> None: ...
    def jump(self, server: int, seconds: float) -> None: ...


OF_SERVERS = ("stop", "kill", "clock", "client link")
"""Kinds of faults that no store notices."""


class Nemesis:
    """Draws faults and does them.

    Args:
        system: to which.
        seed: of the faults.
        kinds: names of :data:`KINDS`, to draw from.
    """

    def __init__(self, system: System, seed: int, kinds: Sequence[str]) -> None:
        self._system, self._draws = system, random.Random(f"{seed} nemesis")
        self._kinds = [one for one in kinds if one != "clock" or system.clocks]
        self.faults: list[Fault] = []
        self._killed_at = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """One fault after another, until it is stopped; the last one is ended."""
        while not stop.is_set():
            kind = self._draws.choice(self._kinds)
            seconds = self._draws.uniform(SHORT, LONG)
            await self._pause(stop, self._draws.uniform(0.1, 1.0))
            if stop.is_set():
                return
            await self.one(kind, seconds, stop)

    async def one(self, kind: str, seconds: float, stop: asyncio.Event) -> None:
        """One fault."""
        begin = self._killed_at = self._system.now
        what = await KINDS[kind](self, seconds, stop)
        self.faults.append(Fault(kind, what, begin, self._system.now))
        if kind not in OF_SERVERS:
            found = await self._system.stores.promoted()
            if found.machines:
                what = " and ".join(found.machines) + " took over"
                end = self._system.now - found.ago
                self.faults.append(Fault("failover", what, self._killed_at, end, found.shards))

    @staticmethod
    async def _pause(stop: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)

    def _server(self) -> int:
        return self._draws.randrange(self._system.servers)

    def _store(self) -> str:
        return self._draws.choice(self._system.stores.targets())

    async def _stopped(self, seconds: float, stop: asyncio.Event) -> str:
        server = self._server()
        self._system.stop_server(server)
        await self._pause(stop, seconds)
        self._system.resume_server(server)
        return f"server {server} is stopped (SIGSTOP)"

    async def _killed(self, seconds: float, stop: asyncio.Event) -> str:
        server = self._server()
        if not self._system.kill_server(server):
            return f"server {server} starts"
        await self._pause(stop, seconds / 3)
        self._system.restart_server(server)
        return f"server {server} is killed, and starts again"

    async def _store_stopped(self, seconds: float, stop: asyncio.Event) -> str:
        store = self._store()
        self._system.stores.stop(store)
        await self._pause(stop, seconds)
        self._system.stores.resume(store)
        return f"{store} is stopped (SIGSTOP)"

    async def _store_killed(self, seconds: float, stop: asyncio.Event) -> str:
        store = self._store()
        await self._system.stores.restart(store, seconds / 3)
        return f"{store} is killed and started"

    async def _clock(self, seconds: float, stop: asyncio.Event) -> str:
        server, jump = self._server(), self._draws.choice(JUMPS)
        self._system.jump(server, jump)
        await self._pause(stop, seconds)
        return f"the clock of server {server} is {jump:+g} s ahead"

    async def _link(self, link: Link, seconds: float, stop: asyncio.Event) -> str:
        how = self._draws.choice(self._system.network.disturbances)
        self._system.network.disturb(*link, how)
        await self._pause(stop, 0.0 if how == "drop" else seconds)
        self._system.network.heal(*link)
        return f"{link[0]} to {link[1]}: {how}"

    async def _store_link(self, seconds: float, stop: asyncio.Event) -> str:
        links = self._system.stores.links(f"server {self._server()}")
        return await self._link(self._draws.choice(links), seconds, stop)

    async def _client_link(self, seconds: float, stop: asyncio.Event) -> str:
        return await self._link(("clients", f"server {self._server()}"), seconds, stop)

    async def _exporter_link(self, seconds: float, stop: asyncio.Event) -> str:
        links = self._system.stores.links("exporter")
        return await self._link(self._draws.choice(links), seconds, stop)

    async def _partition(self, seconds: float, stop: asyncio.Event) -> str:
        """All servers lose the store, or one of its servers."""
        how = self._draws.choice(("cut", "hold"))
        of = [self._system.stores.links(f"server {one}") for one in range(self._system.servers)]
        at = self._draws.randrange(len(of[0]))
        links = dict.fromkeys(one[at] for one in of)  # servers may share them
        for link in links:
            self._system.network.disturb(*link, how)
        await self._pause(stop, seconds)
        for link in links:
            self._system.network.heal(*link)
        return f"all servers to {of[0][at][1]}: {how}"

    async def _isolated(self, seconds: float, stop: asyncio.Event) -> str:
        """A machine loses all others."""
        machines = [f"server {one}" for one in range(self._system.servers)]
        machine = self._draws.choice((*machines, *self._system.stores.targets()))
        self._system.network.isolate(machine)
        await self._pause(stop, seconds)
        self._system.network.rejoin(machine)
        return f"{machine} is isolated"

    async def _split(self, seconds: float, stop: asyncio.Event) -> str:
        """A server and a server of the store are on one side, all others on the other."""
        store, server = self._store(), f"server {self._server()}"
        servers = [f"server {one}" for one in range(self._system.servers)]
        others = {*servers, *self._system.stores.machines, "exporter"} - {store, server}
        links = [(one, other) for one in (store, server) for other in sorted(others)]
        for link in links:
            self._system.network.disturb(*link, "hold")
        await self._pause(stop, seconds)
        for link in links:
            self._system.network.heal(*link)
        return f"{store} and {server} are separated from all others"

    async def _failover(self, seconds: float, stop: asyncio.Event) -> str:
        seconds *= self._draws.choice((0.05, 0.2, 1.0))  # few events of a user are lost, or many
        begin = self._system.now
        await self._system.stores.lag(seconds)
        self.faults.append(Fault("lag", "a replica loses its primary", begin, self._system.now))
        begin = self._killed_at = self._system.now
        what = await self._system.stores.fail_over()
        if what:
            self.faults.append(Fault("failover", what, begin, self._system.now))
        await self._system.stores.rejoin()
        return f"a replica was promoted, {seconds:.2f} s after it had lost its primary"


KINDS: dict[str, Callable[[Nemesis, float, asyncio.Event], Awaitable[str]]] = {
    "stop": Nemesis._stopped,
    "kill": Nemesis._killed,
    "stop store": Nemesis._store_stopped,
    "kill store": Nemesis._store_killed,
    "clock": Nemesis._clock,
    "store link": Nemesis._store_link,
    "client link": Nemesis._client_link,
    "exporter link": Nemesis._exporter_link,
    "partition": Nemesis._partition,
    "isolate": Nemesis._isolated,
    "split": Nemesis._split,
    "replica": Nemesis._failover,
}
"""Kind of fault -> what does it."""
