"""The servers of a Valkey or Redis cluster: which of them has a key, and what to do while that
changes.

A cluster replies to a command for a slot that another server has with ``MOVED`` and its address;
while a slot moves, with ``ASK`` (this key has moved already) or ``TRYAGAIN`` (some of these keys
have); and during a failover with errors that end by themselves. All of these commands changed
nothing, so they are sent again, for :data:`~limerank.serving.stores.valkey_server.SECONDS` at most.
A command whose connection failed may or may not have been executed: that is an error of the caller,
whom the store's contract allows to repeat it.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time as clock
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from limerank.errors import StoreError
from limerank.serving.stores.contract import trouble
from limerank.serving.stores.successions import Lineage
from limerank.serving.stores.valkey_layout import SLOTS, slot_of
from limerank.serving.stores.valkey_server import (
    SECONDS,
    Call,
    Servers,
    ValkeyServer,
    client_of,
    exchange,
    run_on,
)

PORT = "6379"
CLUSTER = re.compile(r"(valkey|redis)s*\+cluster://")
TOGETHER = 16
"""Servers that a process asks at the same time, at most."""
PAUSE, REFRESH_PAUSE = 0.02, 0.1
"""Seconds before a command is sent again, and between two looks at the cluster's map, at least."""
PASSING = ("TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "READONLY", "LOADING")
"""Beginnings of errors that end when a slot has moved, or a failover is over. READONLY: the server
has become a replica."""


class Asked(NamedTuple):
    """Where a command is sent: the address of a server, and whether it imports the key's slot."""

    address: str
    importing: bool = False


class ValkeyCluster(Servers):
    """The servers of a cluster.

    Args:
        url: ``valkey+cluster://USER:PASSWORD@HOST:PORT,HOST:PORT/?OPTIONS``: some of its servers,
            by which the others are found. ``valkeys+cluster`` for TLS.

    Raises:
        SpecError: the URL is not an address.
        valkey.exceptions.ValkeyError, StoreError: none of the servers can be reached, or it is not
            a cluster's.
    """

    EXAMPLE = "valkey+cluster://USER:PASSWORD@HOST:6379,HOST:6379"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        scheme, _, rest = self.url.partition("://")
        login, at, rest = rest.rpartition("@")
        hosts, slash, options = rest.partition("/")
        if not slash:
            hosts, mark, options = rest.partition("?")
            options = mark + options
        self._form = f"{scheme.removesuffix('+cluster')}://{login}{at}%s/{options}"
        self._given = [one if _has_port(one) else f"{one}:{PORT}" for one in hosts.split(",")]
        self._clients: dict[str, Any] = {}
        self._owners: list[str | None] = [None] * SLOTS
        self._replicas: set[str] = set()
        self._lock = threading.Lock()
        self._threads: _Threads | None = None
        self._refreshed = float("-inf")
        if options.partition("?")[0] not in ("", "0"):
            raise self.not_an_address()  # a cluster has no numbered databases
        for address in self._given:
            if not _host(address) or client_of(self.library, self._form % address) is None:
                raise self.not_an_address()

    def send(self, calls: Sequence[Call]) -> list[Any]:
        replies: list[Any] = [None] * len(calls)
        slots = [slot_of(call.key) for call in calls]
        waiting: dict[int, Asked | None] = dict.fromkeys(range(len(calls)))
        until = clock.monotonic() + SECONDS
        while waiting:
            batches: dict[Asked, list[int]] = {}
            for at, asked in waiting.items():
                batches.setdefault(asked or Asked(self._owner(slots[at])), []).append(at)
            found = self._exchanged(
                {asked: [calls[at] for at in part] for asked, part in batches.items()}
            )
            again: dict[int, Asked | None] = {}
            passing: Any = None
            for asked, part in batches.items():
                for at, reply in zip(part, found[asked], strict=True):
                    word, _, rest = str(reply).partition(" ")
                    if not isinstance(reply, self.library.exceptions.ResponseError):
                        replies[at] = reply
                    elif word == "MOVED":
                        owner = self._owners[slots[at]] = self._named(rest, asked)
                        self._notice([owner])
                        again[at] = None
                    elif word == "ASK":
                        again[at] = Asked(self._named(rest, asked), importing=True)
                    elif word in PASSING or isinstance(
                        reply, self.library.exceptions.ReadOnlyError
                    ):
                        again[at], passing = None, reply
                    else:
                        raise reply
            if again and clock.monotonic() > until:
                raise trouble(
                    StoreError,
                    self.address,
                    "is changing its servers now: nothing that is stored is lost; try again later",
                    passing or "slots are moving",
                )
            if passing is not None:
                clock.sleep(PAUSE)
                self._refresh()
            waiting = again
        return replies

    def clients(self) -> list[Any]:
        self._refresh(needed=not any(self._owners))
        known = {one for one in self._owners if one is not None} | self._replicas
        return [self._client(address) for address in sorted(known)]

    def reachable(self) -> list[Any]:
        self._refresh()
        found = []
        for client in self.clients():
            with contextlib.suppress(self.library.exceptions.ConnectionError, OSError):
                exchange(client, [("PING",)])
                found.append(client)
        if not found:
            raise self.library.exceptions.ConnectionError("no server of the cluster answers")
        return found

    def disconnect(self) -> None:
        if self._threads is not None and self._threads.process == os.getpid():
            self._threads.pool.shutdown()
        for client in list(self._clients.values()):
            client.connection_pool.disconnect()

    def problems(self) -> list[str]:
        found = []
        reachable = self.reachable()
        (nodes,) = exchange(reachable[0], [("CLUSTER", "NODES")])
        missing = sum(b"fail" in line.split()[2] for line in nodes.splitlines())
        if missing:
            found.append(
                f"{missing} servers of the event store's cluster have failed; start them, or let "
                "the others forget them (CLUSTER FORGET)"
            )
        (state,) = exchange(reachable[0], [("CLUSTER", "INFO")])
        if b"cluster_state:fail" in state:
            found.append(
                "the cluster of the event store is down: some users can be neither read nor "
                "written; start its servers, or promote their replicas"
            )
        return found

    # Which server has what

    def _owner(self, slot: int) -> str:
        if self._owners[slot] is None:
            self._refresh(needed=True)
        owner = self._owners[slot]
        if owner is None:
            raise self.library.exceptions.ConnectionError(f"no server has the slot {slot}")
        return owner

    def _named(self, moved: str, asked: Asked) -> str:
        """The address in the rest of a MOVED or ASK error; a server that does not know its own
        host leaves it out."""
        host, _, port = moved.rsplit(" ", maxsplit=1)[-1].rpartition(":")
        return f"{host or _host(asked.address)}:{port}"

    def _client(self, address: str) -> Any:
        with self._lock:
            client = self._clients.get(address)
            if client is None:
                host, _, port = address.rpartition(":")
                named = f"[{host}]:{port}" if ":" in host and host[0] != "[" else address
                client = self._clients[address] = client_of(self.library, self._form % named)
        return client

    def _refresh(self, *, needed: bool = False, failed: str = "") -> None:
        """Ask for the cluster's map: servers that answered before come first, that which failed
        last. StoreError or an error of the library where it is needed and no server has it."""
        with self._lock:
            now = clock.monotonic()
            if not needed and now - self._refreshed < REFRESH_PAUSE:
                return
            self._refreshed = now
            known = [*{one for one in self._owners if one is not None}, *self._given]
        error: Exception | None = None
        for address in sorted(dict.fromkeys(known), key=lambda one: one == failed):
            try:
                (ranges,) = exchange(self._client(address), [("CLUSTER", "SLOTS")])
            except (self.library.exceptions.ValkeyError, OSError) as problem:
                error = problem
                continue
            if isinstance(ranges, Exception):
                error = ranges
                continue
            self._learn(ranges, address)
            return
        if needed and error is not None:
            if "cluster support disabled" in str(error):
                raise trouble(
                    StoreError,
                    self.address,
                    "is not a cluster; write its address as valkey://HOST:PORT/0",
                    opening=True,
                )
            raise error

    def _learn(self, ranges: Sequence[Any], address: str) -> None:
        owners: list[str | None] = [None] * SLOTS
        replicas: set[str] = set()
        for first, last, *nodes in ranges:
            names = [_address(node, address) for node in nodes]
            owners[first : last + 1] = [names[0]] * (last + 1 - first)
            replicas.update(names[1:])
        self._notice(owners)
        self._owners, self._replicas = owners, replicas

    def _notice(self, owners: Sequence[str | None]) -> None:
        """Begin a new epoch where a former replica owns slots, before it is asked for anything."""
        promoted = self._replicas.intersection(owners)
        if promoted:
            self._replicas -= promoted
            self.successions.begin()

    def lineage(self, key: str) -> Lineage | None:
        # Of a slot that has moved nothing is lost, but nobody can tell later.
        return Lineage(self.one(Call(key, ("CLUSTER", "MYID"))), promoted=True)

    # Several servers at once

    def _exchanged(self, batches: Mapping[Asked, Sequence[Call]]) -> dict[Asked, list[Any]]:
        """The replies of each server."""
        if len(batches) == 1:
            ((asked, calls),) = batches.items()
            return {asked: self._exchange(asked, calls)}
        with self._lock:
            if self._threads is None or self._threads.process != os.getpid():
                self._threads = _Threads()
            pool = self._threads.pool
        waiting = {
            asked: pool.submit(self._exchange, asked, calls) for asked, calls in batches.items()
        }
        errors = [one.exception() for one in waiting.values()]
        for error in errors:
            if error is not None:
                raise error
        return {asked: one.result() for asked, one in waiting.items()}

    def _exchange(self, asked: Asked, calls: Sequence[Call]) -> list[Any]:
        client = self._client(asked.address)
        try:
            if not asked.importing:
                return run_on(client, calls)
            # A server that imports a slot executes only what ASKING precedes.
            texts = sorted({call.script for call in calls if call.script is not None})
            words: list[tuple[Any, ...]] = [("SCRIPT LOAD", text) for text in texts]
            for call in calls:
                words += [("ASKING",), call.words]
            return exchange(client, words)[len(texts) + 1 :: 2]
        except (self.library.exceptions.ConnectionError, OSError) as error:
            if not isinstance(error, self.library.exceptions.AuthenticationError):
                self._refresh(failed=asked.address)
            raise


def servers_at(url: str) -> Servers:
    """The server or the cluster at an address.

    Raises:
        SpecError: the client library is missing, or the URL is not an address.
    """
    return ValkeyCluster(url) if CLUSTER.match(url) else ValkeyServer(url)


class _Threads:
    """Threads of a process that wait for servers."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.pool = ThreadPoolExecutor(TOGETHER, thread_name_prefix="limerank cluster")


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdecimal() and not host.endswith("]") and ":" in host


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _address(node: Sequence[Any], asked: str) -> str:
    """The address of a server in a cluster's map: host, port and more."""
    host = (node[0] or b"").decode() if isinstance(node[0], bytes) else str(node[0] or "")
    return f"{host if host not in ('', '?') else _host(asked)}:{node[1]}"
