"""The connections of a history: which can be disturbed, and how. Here: through a proxy each.

A *machine* runs one process and has a name: ``server 0``, ``store 1``, ``clients``, ``exporter``. A
*service* is a name under which a machine is asked, and which may be given to another machine: the
address of a store stays when its replica is promoted. :mod:`histories.namespaces` has machines with
network interfaces of their own; with proxies all processes share the loopback address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from histories.cluster import free_ports
from histories.proxy import Proxy

Address = tuple[str, int]
"""A host and a port."""
SLOW = 0.15
"""Seconds that bytes take in either direction where a connection is slow."""


HELD = {"hold": ("there", "back"), "hold requests": ("there",), "hold answers": ("back",)}
"""Disturbance -> directions that are held."""


class Network(Protocol):
    """What connects the machines of a history.

    Attributes:
        name: ``proxies`` or ``namespaces``.
        disturbances: what can be done to the connections from one machine to another: ``cut``
            (refused), ``hold`` (in both directions), ``hold requests``, ``hold answers``, ``slow``,
            and ``drop`` (closed once).
        slowed_by: what makes connections slow: ``proxy``, ``netem``, ``tbf``, or nothing.
        pairs: whether any two machines can be separated.
    """

    @property
    def name(self) -> str: ...
    @property
    def disturbances(self) -> Sequence[str]: ...
    @property
    def slowed_by(self) -> str: ...
    @property
    def pairs(self) -> bool: ...

    async def start(self, machines: Sequence[str]) -> None:
        """Begin, with these machines."""

    async def close(self) -> None:
        """End; nothing that it started remains."""

    def command(self, machine: str, command: Sequence[str]) -> list[str]:
        """The command that runs a command on a machine."""

    def bound(self, machine: str) -> Address:
        """Where the process of a machine has to listen: another host or port for each."""

    def listens(self, machine: str, port: int | None) -> None:
        """The process of a machine listens on this port; None: it has ended."""

    async def address(self, asker: str, name: str) -> Address:
        """The address at which a machine asks another machine, or a service. It stays."""

    def give(self, service: str, machine: str) -> None:
        """Let a service lead to a machine from now on. Open connections end."""

    def disturb(self, asker: str, name: str, how: str) -> None:
        """Disturb the connections from a machine to a machine or service."""

    def heal(self, asker: str, name: str) -> None:
        """End what disturbs them."""

    def isolate(self, machine: str) -> None:
        """Pull the plug of a machine: nothing reaches it, nothing leaves it."""

    def rejoin(self, machine: str) -> None:
        """Put the plug in again."""

    def delay(self, asker: str, name: str) -> None:
        """Let what a machine sends to another take a little longer, where the network can."""


class Proxies:
    """All processes on the loopback address; each pair of names has a proxy."""

    name, pairs, slowed_by = "proxies", False, "proxy"
    disturbances = ("cut", "hold", "hold requests", "hold answers", "slow", "drop")
    DELAY = 0.02
    """Seconds of :meth:`delay`."""

    def __init__(self) -> None:
        self._links: dict[tuple[str, str], Proxy] = {}
        self._at: dict[str, str] = {}
        self._ports: dict[str, int] = {}
        self._listening: dict[str, int] = {}
        self._delayed: set[tuple[str, str]] = set()

    async def start(self, machines: Sequence[str]) -> None:
        self._at = {one: one for one in machines}
        self._ports = dict(zip(machines, free_ports(len(machines)), strict=True))

    async def close(self) -> None:
        await asyncio.gather(*(one.close() for one in self._links.values()))

    def command(self, machine: str, command: Sequence[str]) -> list[str]:
        return list(command)

    def bound(self, machine: str) -> Address:
        return "127.0.0.1", self._ports[machine]

    def listens(self, machine: str, port: int | None) -> None:
        if port is None:
            self._listening.pop(machine, None)
        else:
            self._listening[machine] = port
        for link in self._touching(machine, asked=True):
            self._aim(link)

    async def address(self, asker: str, name: str) -> Address:
        link = asker, name
        if link not in self._links:
            self._links[link] = Proxy()
            await self._links[link].start()
            self._aim(link)
        return "127.0.0.1", self._links[link].port

    def give(self, service: str, machine: str) -> None:
        self._at[service] = machine
        for link in self._links:
            if link[1] == service:
                self._aim(link)
                self._links[link].drop()

    def disturb(self, asker: str, name: str, how: str) -> None:
        proxy = self._links[asker, name]
        if how == "cut":
            proxy.cut()
        elif how == "drop":
            proxy.drop()
        elif how == "slow":
            proxy.delay = SLOW
        else:
            held = {
                "hold": ("there", "back"),
                "hold requests": ("there",),
                "hold answers": ("back",),
            }
            proxy.hold(*held[how])

    def heal(self, asker: str, name: str) -> None:
        if (asker, name) in self._links:
            self._links[asker, name].release()
            self._slowed((asker, name))

    def isolate(self, machine: str) -> None:
        for link in self._touching(machine):
            self._links[link].hold("there", "back")

    def rejoin(self, machine: str) -> None:
        for link in self._touching(machine):
            self.heal(*link)

    def delay(self, asker: str, name: str) -> None:
        self._delayed.add((asker, name))
        self._slowed((asker, name))

    def _slowed(self, link: tuple[str, str]) -> None:
        self._links[link].delay = self.DELAY if link in self._delayed else 0.0

    def _aim(self, link: tuple[str, str]) -> None:
        """Let a proxy lead to where its name is now."""
        machine = self._at.get(link[1])
        self._links[link].target = None if machine is None else self._listening.get(machine)

    def _touching(self, machine: str, *, asked: bool = False) -> list[tuple[str, str]]:
        """The links to a machine, and from it if not only ``asked``."""
        return [
            (asker, name)
            for asker, name in self._links
            if self._at.get(name) == machine or (asker == machine and not asked)
        ]
