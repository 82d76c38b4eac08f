"""Events in a Valkey or Redis server, which server processes on several machines share.

Each change is one script (:mod:`limerank.serving.stores.valkey_scripts`), and therefore atomic. It
is durable when it returns if the server writes its log through (``appendonly yes``, ``appendfsync
always``) and never evicts data (``maxmemory-policy noeviction``): a server with other settings is
refused unless the caller accepts it. One server, with or without replicas; no cluster.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from limerank.data.canonical import external_id
from limerank.data.events import Event
from limerank.data.exposures import Exposure, pack_exposure, unpack_exposure
from limerank.data.packing import unpack
from limerank.errors import FormatError, StoreError
from limerank.serving.stores import valkey_scripts as scripts
from limerank.serving.stores.contract import (
    MOST_EXPOSURES,
    TRIM,
    Counts,
    EventStore,
    Held,
    Id,
    Outcome,
    State,
    Version,
    by_user,
    one_form,
    readable,
    renamed,
    trouble,
)
from limerank.serving.stores.valkey_server import ValkeyServer
from limerank.serving.stores.values import beginning, items_of, packed, read, written

T = TypeVar("T")

FORMAT = 1
APPENDING, WAITING = 16, 4096
"""Calls of ``appending`` that are sent to the server at a time, and that may wait in all."""
PART, TRIES = 2000, 3
"""Events of a user that are read at once, so that the server can answer others in between; and how
often that is tried while the user changes, before all are read at once."""
REWRITE_SECONDS = 3600
"""Seconds that deleted events may remain in the server's log before it is asked to rewrite it."""
NAMED_SCANS, SCAN = 50, 1000
"""Parts of the set of users that are searched for the beginning of an id; users in each, about."""
STATE = struct.Struct("<QQB")


class ValkeyStore(EventStore):
    """An event store in a server that speaks the protocol of Valkey and Redis (6.2 or later).

    Args:
        url: such as ``valkey://localhost:6379/0``, ``redis://...`` or ``unix:///run/valkey.sock``.
        most: events stored of a user, at most; None: all.
        most_exposures: exposures stored of a user, at most.
        prefix: the beginning of all keys.
        durable: False accepts a server that may lose acknowledged events.

    Raises:
        StoreError: the server cannot be reached, or may lose acknowledged events.
        SpecError: the client library is missing, or the URL is not an address.
        FormatError: the prefix is used by another format.
    """

    def __init__(
        self,
        url: str,
        *,
        most: int | None = None,
        most_exposures: int = MOST_EXPOSURES,
        prefix: str = "limerank:",
        durable: bool = True,
    ) -> None:
        super().__init__(most, most_exposures)
        self._server = ValkeyServer(url)
        self.address, self.prefix, self.durable = self._server.address, prefix, durable
        self._client = self._server.client
        self._appenders: _Appenders | None = None
        self._lock = threading.Lock()
        register = self._client.register_script
        self._append, self._trim = register(scripts.APPEND), register(scripts.TRIM_USER)
        self._features, self._held = register(scripts.FEATURES), register(scripts.HELD)
        self._delete, self._put_state = register(scripts.DELETE), register(scripts.PUT_STATE)
        self._show = register(scripts.SHOW)
        self._put_items, self._items = register(scripts.PUT_ITEMS), register(scripts.ITEMS)
        try:
            with self._server.as_store_errors(opening=True):
                lost = self._server.lossy_settings() if durable else []
                if lost:
                    raise StoreError(
                        f"{self.address} may lose acknowledged events: {', '.join(lost)}; "
                        "change its settings, or open the store with durable=False"
                    )
                self._client.setnx(f"{prefix}format", FORMAT)
                found = self._client.get(f"{prefix}format")
            if found != b"%d" % FORMAT:
                raise FormatError(
                    f"the keys {prefix}* of {self.address} are of format {found!r}, expected "
                    f"{FORMAT}; choose another prefix"
                )
            self._to_one_form()
        except BaseException:
            self._server.disconnect()
            raise

    def _to_one_form(self) -> None:
        """Rename users whose ids an earlier version stored as they were given, such as "7.0", to
        the one form of the id; where that user exists already, both become one."""
        done = f"{self.prefix}ids"
        with self._server.as_store_errors(opening=True):
            if self._client.exists(done):
                return
            for given in [given for part in self._scanned() for given in part]:
                id = given.decode()
                user = one_form(id)
                if user is None:
                    continue
                keys = self._keys(id, "utesc")
                found = self._held(keys=keys[:3] + keys[4:], args=["", -1, 1 << 53])
                if found is not None:
                    rest = found[6:]
                    rows = zip(rest[2::3], map(int, map(float, rest[1::3])), rest[::3], strict=True)
                    if self.version(user) is None:
                        with contextlib.suppress(FormatError):  # damaged features are lost
                            self.set_features(user, read(f"the user {id!r}", found[2]))
                    self.append(renamed(id, user, rows))
                self._delete_of(id)
            self._client.set(done, 1)

    def _scanned(self) -> Iterator[list[bytes]]:
        """The ids of all users, in parts."""
        cursor = -1
        while cursor:
            with self._server.as_store_errors():
                cursor, found = self._client.sscan(self._all[0], max(cursor, 0), count=SCAN)
            yield found

    def check(self) -> list[str]:
        found = []
        with self._server.as_store_errors():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.get(f"{self.prefix}format").info("persistence")
            pipeline.get(f"{self.prefix}erase").time()
            format, state, erase, now = pipeline.execute()
            lost = self._server.lossy_settings() if self.durable else []
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
        if self.durable and state.get("aof_last_write_status", "ok") != "ok":
            found.append("the event store could not write its log; check its disk")
        if erase is not None and state.get("aof_enabled"):
            found += self._erased(int(now[0]) - int(erase), int(erase))
        return found

    def _erased(self, seconds: int, since: int) -> list[str]:
        """Ask the server to rewrite its log, which still contains users who were deleted so many
        seconds ago; returns the problems with that."""
        key = f"{self.prefix}erase"
        if seconds < REWRITE_SECONDS:
            return []
        try:
            with self._server.as_store_errors():
                if self._client.delete(key):  # no other process asks at the same time
                    self._client.bgrewriteaof()
        except StoreError:
            with self._server.as_store_errors():
                self._client.set(key, since, nx=True)
            if seconds > 2 * REWRITE_SECONDS:
                return [
                    "the log of the event store still contains deleted users, and it cannot be "
                    "rewritten; make sure that BGREWRITEAOF works and is allowed"
                ]
        return []

    def _keys(self, user: Id, names: str) -> list[str]:
        return [f"{self.prefix}{name}:{user}" for name in names]

    @property
    def _all(self) -> list[str]:
        return [f"{self.prefix}users", f"{self.prefix}events"]

    def append(self, events: Sequence[Event]) -> list[Outcome]:
        outcomes = [Outcome.DUPLICATE] * len(events)
        by_code = (Outcome.DUPLICATE, Outcome.ACCEPTED, Outcome.EXPIRED)
        parts, data = by_user(events), [packed(event) for event in events]
        orders: list[list[int]] = []
        with self._server.as_store_errors():
            pipeline = self._client.pipeline(transaction=False)
            for user, placed in parts.items():
                first: dict[bytes, tuple[int, Event]] = {}
                for position, event in placed:
                    first.setdefault(event.id, (position, event))
                ordered = sorted(first.values(), key=lambda one: (one[1].time, one[1].id))
                arguments: list[Any] = [user, secrets.randbits(62), self.most or 0, TRIM]
                for position, event in ordered:
                    arguments += [event.id, event.time, data[position]]
                client = self._client if len(parts) == 1 else pipeline
                found = self._append(
                    keys=self._keys(user, "utec") + self._all, args=arguments, client=client
                )
                orders.append([position for position, _ in ordered])
            answers = [found] if len(parts) == 1 else pipeline.execute()
        for order, answer in zip(orders, answers, strict=True):
            for position, code in zip(order, answer, strict=True):
                outcomes[position] = by_code[code]
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
        by_code = (Outcome.DUPLICATE, Outcome.ACCEPTED, Outcome.EXPIRED)
        pipeline = self._client.pipeline(transaction=False)
        with self._server.as_store_errors():
            for one in exposures:
                keys = self._keys(one.user, "utec") + self._all + self._keys(one.user, "xy")
                given = [one.user, secrets.randbits(62), self.most_exposures]
                self._show(
                    keys=[*keys, f"{self.prefix}shown", f"{self.prefix}showing"],
                    args=[*given, one.ranking, one.time, pack_exposure(one)],
                    client=pipeline,
                )
            answers = pipeline.execute()
        return [by_code[code] for (code,) in answers]

    def exposures(self, user: Id, since: int, until: int) -> list[Exposure]:
        user = external_id("user", user)
        times, data = self._keys(user, "xy")
        with self._server.as_store_errors():
            found = self._client.zrangebyscore(times, since, f"({until}", withscores=True)
            packed = self._client.hmget(data, [id for id, _ in found]) if found else []
        return [
            unpack_exposure(value, user, int(time), id.decode())
            for (id, time), value in zip(found, packed, strict=True)
            if value is not None  # dropped in between
        ]

    def exposure_count(self, user: Id) -> int:
        (key,) = self._keys(external_id("user", user), "x")
        with self._server.as_store_errors():
            return int(self._client.zcard(key))

    def shown(self, since: int, limit: int) -> tuple[int, list[tuple[int, Exposure]]]:
        with self._server.as_store_errors():
            found = self._client.zrangebyscore(
                f"{self.prefix}shown", f"({since}", "+inf", 0, limit, withscores=True
            )
            pipeline = self._client.pipeline(transaction=False)
            names = [(int(at), *name.decode().partition("|")[::2]) for name, at in found]
            for _, ranking, user in names:
                times, data = self._keys(user, "xy")
                pipeline.zscore(times, ranking).hget(data, ranking)
            answers = pipeline.execute()
        rows = [
            (change, user, data, int(time), ranking)
            for (change, ranking, user), time, data in zip(
                names, answers[::2], answers[1::2], strict=True
            )
            if data is not None and time is not None  # dropped in between
        ]
        return int(found[-1][1]) if found else since, readable(rows)

    def between(self, user: Id, since: int, until: int) -> list[Event]:
        user = external_id("user", user)
        _, times, data = self._keys(user, "ute")
        events: list[Event] = []
        with self._server.as_store_errors():
            for at in itertools.count(0, PART):
                found = self._client.zrangebyscore(
                    times, since, f"({until}", at, PART, withscores=True
                )
                values = self._client.hmget(data, [id for id, _ in found]) if found else []
                events += [
                    unpack(value.partition(b"|")[2], user, int(time), id)
                    for (id, time), value in zip(found, values, strict=True)
                    if value is not None  # dropped in between
                ]
                if len(found) < PART:
                    break
        return events

    def version(self, user: Id) -> Version | None:
        (key,) = self._keys(external_id("user", user), "u")
        with self._server.as_store_errors():
            born, count = self._client.hmget(key, "born", "count")
        return None if born is None else Version(int(born), int(count))

    def held(self, user: Id, since: Version | None = None) -> Held | None:
        user = external_id("user", user)
        asked: tuple[Any, Any] = ("", -1) if since is None else since
        found = self._held_of(user, asked)
        if found is not None and self.most is not None and found[4] > self.most:
            with (
                contextlib.suppress(StoreError),
                self._server.as_store_errors(),
            ):  # events beyond the bound can be read
                self._trim(
                    keys=self._keys(user, "utec") + self._all,
                    args=[user, secrets.randbits(62), self.most, TRIM],
                )
            found = self._held_of(user, asked)
        if found is None:
            return None
        born, count, features, complete, _, _, *rest = found
        events = [
            unpack(data, user, int(float(time)), id)
            for id, time, data in zip(rest[::3], rest[1::3], rest[2::3], strict=True)
        ]
        events.sort(key=lambda event: (event.time, event.id))
        values = read(f"the user {user!r}", features)
        return Held(Version(int(born), int(count)), values, events, complete == b"1")

    def _held_of(self, user: Id, since: tuple[Any, Any]) -> Any:
        keys = self._keys(user, "utec")
        with self._server.as_store_errors():
            for _ in range(TRIES):
                found = self._held(keys=keys, args=[*since, PART])
                if found is None or found[5] != b"1":
                    return found
                rest = self._in_parts(keys, -1 if found[3] == b"1" else int(since[1]))
                if self._client.hmget(keys[0], "born", "count") == found[:2]:
                    return found + rest
            return self._held(keys=keys, args=[*since, 1 << 53])

    def _in_parts(self, keys: list[str], after: int) -> list[Any]:
        """Id, time and bytes of a user's events that were added after a change; one state of the
        store if the user did not change meanwhile."""
        rest: list[Any] = []
        for at in itertools.count(0, PART):
            found = self._client.zrange(keys[1], at, at + PART - 1, withscores=True)
            if not found:
                return rest
            values = self._client.hmget(keys[2], [id for id, _ in found])
            for (id, time), value in zip(found, values, strict=True):
                change, bar, data = (value or b"").partition(b"|")
                if bar and int(change) > after:
                    rest += [id, time, data]
        raise AssertionError("a count has no end")

    def latest(self, user: Id, count: int, before: int | None = None) -> list[Event]:
        user = external_id("user", user)
        count = count if self.most is None else min(count, self.most)
        if count < 1:
            return []
        _, times, data = self._keys(user, "ute")
        with self._server.as_store_errors():
            end = "+inf" if before is None else f"({before}"
            found = self._client.zrevrangebyscore(times, end, "-inf", 0, count, withscores=True)
            found.reverse()
            packed = self._client.hmget(data, [id for id, _ in found]) if found else []
        return [
            unpack(value.partition(b"|")[2], user, int(time), id)
            for (id, time), value in zip(found, packed, strict=True)
            if value is not None  # dropped in between
        ]

    def set_features(self, user: Id, features: Mapping[str, Any]) -> None:
        user, text = external_id("user", user), written(f"the user {user!r:.80}", features)
        with self._server.as_store_errors():
            self._features(
                keys=self._keys(user, "utec") + self._all,
                args=[user, secrets.randbits(62), text],
            )

    def delete_user(self, user: Id) -> bool:
        return self._delete_of(external_id("user", user))

    def _delete_of(self, user: Id) -> bool:
        with self._server.as_store_errors():
            keys = [*self._keys(user, "utescxy"), f"{self.prefix}shown"]
            keys += [*self._all, f"{self.prefix}erase"]
            return bool(self._delete(keys=keys, args=[user, self._client.time()[0]]))

    def state(self, user: Id, kind: str) -> State | None:
        (key,) = self._keys(external_id("user", user), "s")
        with self._server.as_store_errors():
            found = self._client.hget(key, kind)
        if found is None:
            return None
        born, count, size = STATE.unpack_from(found)
        at = STATE.size + size
        return State(found[STATE.size : at], Version(born, count), found[at:])

    def put_state(self, user: Id, kind: str, state: State) -> bool:
        user = external_id("user", user)
        born, count = state.version
        data = STATE.pack(born, count, len(state.fingerprint)) + state.fingerprint + state.data
        with self._server.as_store_errors():
            return bool(
                self._put_state(keys=self._keys(user, "us"), args=[born, count, kind, data])
            )

    def users(self) -> Iterator[Id]:
        seen: set[bytes] = set()
        for found in self._scanned():
            fresh = [user for user in found if user not in seen]
            seen.update(fresh)
            yield from (external_id("user", user.decode()) for user in fresh)

    def named(self, text: str, limit: int) -> list[Id]:
        if not beginning(text):
            return []
        pattern = re.sub(r"([\\*?\[\]^])", r"\\\1", text) + "*"
        found: set[bytes] = set()
        with self._server.as_store_errors():
            if text and self._client.sismember(self._all[0], text):
                found.add(text.encode())
        cursor, scans = -1, 0
        while cursor and len(found) < limit and scans < NAMED_SCANS:
            scans += 1
            with self._server.as_store_errors():
                cursor, some = self._client.sscan(
                    self._all[0], max(cursor, 0), match=pattern, count=SCAN
                )
            found.update(some)
        users = sorted(user.decode() for user in found)[:limit]
        return [external_id("user", user) for user in users]

    def event_count(self, user: Id) -> int | None:
        keys = self._keys(external_id("user", user), "ut")
        with self._server.as_store_errors():
            pipeline = self._client.pipeline()
            pipeline.exists(keys[0]).zcard(keys[1])
            known, count = pipeline.execute()
        return int(count) if known else None

    def counts(self) -> Counts:
        with self._server.as_store_errors():
            users, events = self._client.scard(self._all[0]), self._client.get(self._all[1])
        return Counts(users, int(events or 0))

    @property
    def _item_keys(self) -> list[str]:
        return [f"{self.prefix}{name}" for name in ("items", "changes", "change")]

    def identity(self) -> str:
        key = f"{self.prefix}identity"
        with self._server.as_store_errors():
            self._client.set(key, secrets.token_hex(16), nx=True)
            return str(bytes(self._client.get(key) or b"").decode())

    def put_items(self, items: Mapping[Id, Mapping[str, Any] | None]) -> int:
        arguments: list[Any] = []
        for id, columns in items.items():
            arguments += [
                external_id("item", id),
                "" if columns is None else written(f"the item {id!r:.80}", columns),
            ]
        with self._server.as_store_errors():
            return int(self._put_items(keys=self._item_keys, args=arguments))

    def items(
        self, since: int = 0, limit: int | None = None
    ) -> tuple[int, dict[Id, dict[str, Any] | None]]:
        with self._server.as_store_errors():
            change, *rest = self._items(
                keys=self._item_keys, args=[since, -1 if limit is None else max(limit, 0)]
            )
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return int(change), items_of((id.decode(), columns or None) for id, columns in pairs)

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
