"""Faults, drawn from a seed: one begins, lasts for some time, and ends before the next begins."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from histories.record import Fault

SHORT, LONG = 0.2, 3.0
"""Seconds that a fault lasts."""
JUMPS = (-86_400.0, -3600.0, -5.0, 5.0, 3600.0, 86_400.0)
"""Seconds by which the clock of a server jumps."""


class Cluster(Protocol):
    """What faults can be done to."""

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
    def stop_store(self) -> None: ...
    def resume_store(self) -> None: ...
    async def restart_store(self, seconds: float) -> None: ...
    def jump(self, server: int, seconds: float) -> None: ...
    def disturb(self, link: str, how: str) -> None: ...
    def heal(self, link: str) -> None: ...
    async def lag(self, seconds: float) -> None: ...
    async def fail_over(self) -> None: ...
    async def rejoin(self) -> None: ...


LINKS = ("cut", "hold", "hold requests", "hold answers", "slow", "drop")
"""What is done to a connection: closed and refused; held in both directions, or in one; slowed;
closed once."""


class Nemesis:
    """Draws faults and does them.

    Args:
        cluster: to which.
        seed: of the faults.
        kinds: names of :data:`KINDS`, to draw from.
    """

    def __init__(self, cluster: Cluster, seed: int, kinds: Sequence[str]) -> None:
        self._cluster, self._draws = cluster, random.Random(f"{seed} nemesis")
        self._kinds = [one for one in kinds if one != "clock" or cluster.clocks]
        self.faults: list[Fault] = []

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
        begin = self._cluster.now
        what = await KINDS[kind](self, seconds, stop)
        self.faults.append(Fault(kind, what, begin, self._cluster.now))

    @staticmethod
    async def _pause(stop: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)

    def _server(self) -> int:
        return self._draws.randrange(self._cluster.servers)

    async def _stopped(self, seconds: float, stop: asyncio.Event) -> str:
        server = self._server()
        self._cluster.stop_server(server)
        await self._pause(stop, seconds)
        self._cluster.resume_server(server)
        return f"server {server} is stopped (SIGSTOP)"

    async def _killed(self, seconds: float, stop: asyncio.Event) -> str:
        server = self._server()
        if not self._cluster.kill_server(server):
            return f"server {server} starts"
        await self._pause(stop, seconds / 3)
        self._cluster.restart_server(server)
        return f"server {server} is killed, and starts again"

    async def _store_stopped(self, seconds: float, stop: asyncio.Event) -> str:
        self._cluster.stop_store()
        await self._pause(stop, seconds)
        self._cluster.resume_store()
        return "the store is stopped (SIGSTOP)"

    async def _store_killed(self, seconds: float, stop: asyncio.Event) -> str:
        await self._cluster.restart_store(seconds / 3)
        return "the store is killed and started"

    async def _clock(self, seconds: float, stop: asyncio.Event) -> str:
        server, jump = self._server(), self._draws.choice(JUMPS)
        self._cluster.jump(server, jump)
        await self._pause(stop, seconds)
        return f"the clock of server {server} is {jump:+g} s ahead"

    async def _link(self, link: str, seconds: float, stop: asyncio.Event) -> str:
        how = self._draws.choice(LINKS)
        self._cluster.disturb(link, how)
        await self._pause(stop, 0.0 if how == "drop" else seconds)
        self._cluster.heal(link)
        return f"{link}: {how}"

    async def _store_link(self, seconds: float, stop: asyncio.Event) -> str:
        return await self._link(f"server {self._server()} to the store", seconds, stop)

    async def _client_link(self, seconds: float, stop: asyncio.Event) -> str:
        return await self._link(f"clients to server {self._server()}", seconds, stop)

    async def _partition(self, seconds: float, stop: asyncio.Event) -> str:
        """All servers lose the store."""
        how = self._draws.choice(("cut", "hold"))
        links = [f"server {one} to the store" for one in range(self._cluster.servers)]
        for link in links:
            self._cluster.disturb(link, how)
        await self._pause(stop, seconds)
        for link in links:
            self._cluster.heal(link)
        return f"all servers to the store: {how}"

    async def _failover(self, seconds: float, stop: asyncio.Event) -> str:
        seconds *= self._draws.choice((0.05, 0.2, 1.0))  # few events of a user are lost, or many
        begin = self._cluster.now
        await self._cluster.lag(seconds)
        self.faults.append(Fault("lag", "the replica loses its primary", begin, self._cluster.now))
        begin = self._cluster.now
        await self._cluster.fail_over()
        self.faults.append(Fault("failover", "the replica is promoted", begin, self._cluster.now))
        await self._cluster.rejoin()
        return f"the replica was promoted, {seconds:.2f} s after it had lost its primary"


KINDS: dict[str, Callable[[Nemesis, float, asyncio.Event], Awaitable[str]]] = {
    "stop": Nemesis._stopped,
    "kill": Nemesis._killed,
    "stop store": Nemesis._store_stopped,
    "kill store": Nemesis._store_killed,
    "clock": Nemesis._clock,
    "store link": Nemesis._store_link,
    "client link": Nemesis._client_link,
    "partition": Nemesis._partition,
    "replica": Nemesis._failover,
}
"""Kind of fault -> what does it."""
