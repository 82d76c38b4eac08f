"""Events in a Valkey or Redis server, or a cluster of them, which server processes on several
machines share.

Each change is one script (:mod:`limerank.serving.stores.valkey_scripts`), and therefore atomic. It
is durable when it returns if the server writes its log through (``appendonly yes``, ``appendfsync
always``) and never evicts data (``maxmemory-policy noeviction``): a server with other settings is
refused unless the caller accepts it. A cluster may lose acknowledged changes when a replica takes
over from a primary, since replicas follow with a delay.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from limerank.data.canonical import external_id
from limerank.data.events import Event
from limerank.data.exposures import Exposure, pack_exposure
from limerank.errors import FormatError, StoreError
from limerank.serving.stores import valkey_scripts as scripts
from limerank.serving.stores.contract import (
    MOST_EXPOSURES,
    MOST_STATES,
    TRIM,
    Id,
    Outcome,
    State,
    by_user,
    trouble,
)
from limerank.serving.stores.successions import in_epoch
from limerank.serving.stores.valkey_cluster import servers_at
from limerank.serving.stores.valkey_layout import BUCKETS, FORMAT, MIGRATING, Layout
from limerank.serving.stores.valkey_reading import STATE, ValkeyReads
from limerank.serving.stores.valkey_server import Call, command, exchange, script_call
from limerank.serving.stores.values import packed, written

T = TypeVar("T")

APPENDING, WAITING = 16, 4096
"""Calls of ``appending`` that are sent to the server at a time, and that may wait in all."""
REWRITE_SECONDS = 3600
"""Seconds that deleted events may remain in the servers' logs before they are asked to rewrite
them."""
OUTCOMES = (Outcome.DUPLICATE, Outcome.ACCEPTED, Outcome.EXPIRED)


class ValkeyStore(ValkeyReads):
    """An event store in servers that speak the protocol of Valkey and Redis (6.2 or later).

    Args:
        url: such as ``valkey://localhost:6379/0``, ``redis://...``, ``unix:///run/valkey.sock``, or
            ``valkey+cluster://host:6379,host:6379``: some servers of a cluster.
        most: events stored of a user, at most; None: all.
        most_exposures: exposures stored of a user, at most.
        prefix: the beginning of all keys; without braces.
        durable: False accepts a server that may lose acknowledged events.
        buckets: of a new store: into how many parts users are divided, which a cluster spreads over
            its servers. One that exists has its own.

    Raises:
        StoreError: the server cannot be reached, or may lose acknowledged events.
        SpecError: the client library is missing, or the URL is not an address.
        FormatError: the prefix is used by another format.
    """

    formats: tuple[bytes, ...] = (b"%d" % FORMAT,)

    def __init__(
        self,
        url: str,
        *,
        most: int | None = None,
        most_exposures: int = MOST_EXPOSURES,
        prefix: str = "limerank:",
        durable: bool = True,
        buckets: int = BUCKETS,
    ) -> None:
        super().__init__(most, most_exposures)
        Layout(prefix, buckets)  # refuses both before anything is opened
        self._server = servers_at(url)
        self.address, self.prefix, self.durable = self._server.address, prefix, durable
        self._appenders: _Appenders | None = None
        self._lock = threading.Lock()
        try:
            with self._server.as_store_errors(opening=True):
                lost = self._server.lossy_settings() if durable else []
                if lost:
                    raise StoreError(
                        f"{self.address} may lose acknowledged events: {', '.join(lost)}; "
                        "change its settings, or open the store with durable=False"
                    )
                names = [f"{prefix}buckets", f"{prefix}format"]
                found = self._server.command("GET", names[1])
                if found is None:
                    for name, value in zip(names, (buckets, FORMAT), strict=True):
                        self._server.command("SET", name, value, "NX")
                    found = self._server.command("GET", names[1])
                if found not in self.formats:
                    raise self._wrong_format(found)
                self._layout = Layout(prefix, int(self._server.command("GET", names[0])))
        except BaseException:
            self._server.disconnect()
            raise
        self.parts = self._layout.buckets

    def _wrong_format(self, found: bytes) -> FormatError:
        if found in (b"1", MIGRATING):
            return FormatError(
                f"the keys {self.prefix}* of {self.address} are those of an earlier version "
                f"(format 1), expected format {FORMAT}; stop the servers that use them, and run: "
                f"limerank store migrate {self.address}"
            )
        return FormatError(
            f"the keys {self.prefix}* of {self.address} are of format {found!r}, expected "
            f"{FORMAT}; choose another prefix"
        )

    def check(self) -> list[str]:
        found, persistence = [], []
        with self._server.as_store_errors():
            (erased_at,) = self._layout.of_all("erase")
            format, erase, now = self._server.send(
                [
                    command("GET", f"{self.prefix}format"),
                    command("GET", erased_at),
                    Call(erased_at, ("TIME",)),
                ]
            )
            lost = self._server.lossy_settings() if self.durable else []
            found += self._server.problems()
            for client in self._server.reachable():
                (state,) = exchange(client, [("INFO", "persistence")])
                persistence.append(state)
        if lost:
            found.append(
                f"the event store may lose acknowledged events: {', '.join(lost)}; change its "
                "settings back"
            )
        if format != b"%d" % FORMAT:
            found.append(
                "the event store was emptied or replaced while it is open; stop this process, and "
                "restore its data"
            )
        states = [state for state in persistence if isinstance(state, Mapping)]
        if self.durable and any(one.get("aof_last_write_status", "ok") != "ok" for one in states):
            found.append("the event store could not write its log; check its disk")
        if erase is not None and any(one.get("aof_enabled") for one in states):
            found += self._erased(int(now[0]) - int(erase), int(erase))
        return found

    def _erased(self, seconds: int, since: int) -> list[str]:
        """Ask the servers to rewrite their logs, which still contain users who were deleted so many
        seconds ago; returns the problems with that."""
        (key,) = self._layout.of_all("erase")
        if seconds < REWRITE_SECONDS:
            return []
        try:
            with self._server.as_store_errors():
                if self._server.command("DEL", key):  # no other process asks at the same time
                    for client in self._server.reachable():
                        (reply,) = exchange(client, [("BGREWRITEAOF",)])
                        if isinstance(reply, Exception):
                            raise reply
        except StoreError:
            with self._server.as_store_errors():
                self._server.command("SET", key, since, "NX")
            if seconds > 2 * REWRITE_SECONDS:
                return [
                    "the log of the event store still contains deleted users, and it cannot be "
                    "rewritten; make sure that BGREWRITEAOF works and is allowed"
                ]
        return []

    def append(self, events: Sequence[Event]) -> list[Outcome]:
        outcomes = [Outcome.DUPLICATE] * len(events)
        data = [packed(event) for event in events]
        # One call for all users of a bucket.
        keys: dict[int, list[str]] = {}
        arguments: dict[int, list[Any]] = {}
        orders: dict[int, list[int]] = {}
        for user, placed in by_user(events).items():
            first: dict[bytes, tuple[int, Event]] = {}
            for position, event in placed:
                first.setdefault(event.id, (position, event))
            ordered = sorted(first.values(), key=lambda one: (one[1].time, one[1].id))
            bucket = self._layout.bucket(user)
            if bucket not in keys:
                keys[bucket] = self._layout.of_bucket(bucket, "names", "sums")
                arguments[bucket], orders[bucket] = [self.most or 0, TRIM], []
            keys[bucket] += self._layout.of_user(user, "utec")
            arguments[bucket] += [user, secrets.randbits(62), len(ordered)]
            for position, event in ordered:
                arguments[bucket] += [event.id, event.time, data[position]]
                orders[bucket].append(position)
        calls = [script_call(scripts.APPEND, keys[one], arguments[one]) for one in keys]
        with self._server.as_store_errors():
            answers = self._server.send(calls)
        for order, answer in zip(orders.values(), answers, strict=True):
            for position, code in zip(order, answer, strict=True):
                outcomes[position] = OUTCOMES[code]
        return outcomes

    def appending(self, events: Sequence[Event]) -> Future[list[Outcome]]:
        return self._without_waiting(self.append, list(events))

    def showing(self, exposures: Sequence[Exposure]) -> Future[list[Outcome]]:
        return self._without_waiting(self.show, list(exposures))

    def _without_waiting(
        self, work: Callable[[list[T]], list[Outcome]], given: list[T]
    ) -> Future[list[Outcome]]:
        if self._server.closed:
            raise trouble(StoreError, self.address, "is closed; open it again")
        with self._lock:
            if self._appenders is None or self._appenders.process != os.getpid():
                self._appenders = _Appenders()
            appenders = self._appenders
        if not appenders.free.acquire(blocking=False):
            raise trouble(
                StoreError,
                self.address,
                f"is too busy now: {WAITING} writes are waiting; try again later",
            )
        promise = appenders.threads.submit(work, given)
        promise.add_done_callback(lambda _: appenders.free.release())
        return promise

    def show(self, exposures: Sequence[Exposure]) -> list[Outcome]:
        outcomes = [Outcome.DUPLICATE] * len(exposures)
        keys: dict[int, list[str]] = {}
        arguments: dict[int, list[Any]] = {}
        orders: dict[int, list[int]] = {}
        for position, one in enumerate(exposures):
            bucket = self._layout.bucket(one.user)
            if bucket not in keys:
                keys[bucket] = self._layout.of_bucket(bucket, "names", "sums", "shown")
                arguments[bucket], orders[bucket] = [self.most_exposures], []
            keys[bucket] += self._layout.of_user(one.user, "ucxy")
            arguments[bucket] += [one.user, secrets.randbits(62), one.ranking, one.time]
            arguments[bucket].append(pack_exposure(one))
            orders[bucket].append(position)
        calls = [script_call(scripts.SHOW, keys[one], arguments[one]) for one in keys]
        with self._server.as_store_errors():
            answers = self._server.send(calls)
        for order, answer in zip(orders.values(), answers, strict=True):
            for position, code in zip(order, answer, strict=True):
                outcomes[position] = OUTCOMES[code]
        return outcomes

    def set_features(self, user: Id, features: Mapping[str, Any]) -> None:
        user, text = external_id("user", user), written(f"the user {user!r:.80}", features)
        with self._server.as_store_errors():
            keys = self._keys(user, "uc", "names", "sums")
            self._server.script(scripts.FEATURES, keys, [user, secrets.randbits(62), text])

    def delete_user(self, user: Id) -> bool:
        user = external_id("user", user)
        (erase,) = self._layout.of_all("erase")
        keys = self._keys(user, "utescxy", "names", "sums", "shown")
        with self._server.as_store_errors():
            now = self._server.one(Call(erase, ("TIME",)))[0]
            # Before: this process may end at any time. After: another one may have asked for
            # rewriting in between.
            self._server.command("SET", erase, now, "NX")
            found = bool(self._server.script(scripts.DELETE, keys, [user]))
            self._server.command("SET", erase, now, "NX")
        return found

    def put_state(self, user: Id, kind: str, state: State) -> bool:
        user = external_id("user", user)
        keys, epoch = self._keys(user, "us"), self._server.successions.epoch
        born, count = in_epoch(state.version, epoch)
        data = STATE.pack(born, count, len(state.fingerprint)) + state.fingerprint + state.data
        with self._server.as_store_errors():
            number = self._server.script(scripts.PUT_STATE, keys, [born, count, kind, data])
            if epoch != self._server.successions.epoch:  # it may be of changes that are lost
                self._server.command("HDEL", keys[1], kind)
                return False
            if number > MOST_STATES:
                self._drop_earliest(keys[1], kind)
        return bool(number)

    def _drop_earliest(self, key: str, kind: str) -> None:
        """Delete the states that were written longest ago until there are few enough, but not one
        kind."""
        found: dict[bytes, bytes] = self._server.command("HGETALL", key)
        written = sorted(
            (int(data.partition(b"|")[0]), name)
            for name, data in found.items()
            if name != kind.encode()
        )
        left = [name for _, name in written[: max(0, len(written) + 1 - MOST_STATES)]]
        if left:
            self._server.command("HDEL", key, *left)

    def drop_states(self, user: Id, kinds: Collection[str]) -> int:
        (key,) = self._keys(external_id("user", user), "s")
        with self._server.as_store_errors():
            found = self._server.command("HKEYS", key)
            left = [name for name in found if name.decode() not in kinds]
            return int(self._server.command("HDEL", key, *left)) if left else 0

    def identity(self) -> str:
        """See the contract. After a promotion the text is another one of the same origin."""
        key, lineage = self._layout.of_all("identity", "lineage")
        with self._server.as_store_errors():
            server = self._server.lineage(key)
            if server is None:
                self._server.command("SET", key, secrets.token_hex(16), "NX")
                found = self._server.command("GET", key)
            else:
                given = [server.id, int(server.promoted), secrets.token_hex(16)]
                found = self._server.script(scripts.IDENTITY, [key, lineage], given)
        return str(bytes(found or b"").decode())

    def put_items(self, items: Mapping[Id, Mapping[str, Any] | None]) -> int:
        arguments: list[Any] = []
        for id, columns in items.items():
            arguments += [
                external_id("item", id),
                "" if columns is None else written(f"the item {id!r:.80}", columns),
            ]
        with self._server.as_store_errors():
            return int(self._server.script(scripts.PUT_ITEMS, self._item_keys, arguments))

    def close(self) -> None:
        appenders = self._appenders
        if appenders is not None and appenders.process == os.getpid():
            appenders.threads.shutdown()  # events that were passed before are appended
        self._server.closed = True
        self._server.disconnect()


class _Appenders:
    """Threads of a process that wait for the server, so that callers need not."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.free = threading.BoundedSemaphore(WAITING)
        self.threads = ThreadPoolExecutor(APPENDING, thread_name_prefix="limerank append")
