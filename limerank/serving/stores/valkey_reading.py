"""What is read from a Valkey or Redis server, or a cluster of them; :mod:`.valkey` writes.

No call reads anything of all users. What belongs to all of them is divided over buckets
(:mod:`limerank.serving.stores.valkey_layout`), which are asked together.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limerank.data.canonical import external_id
from limerank.data.events import Event
from limerank.data.exposures import Exposure, unpack_exposure
from limerank.data.packing import unpack
from limerank.errors import StoreError
from limerank.serving.stores import valkey_scripts as scripts
from limerank.serving.stores.contract import (
    TRIM,
    Counts,
    EventStore,
    Held,
    Id,
    State,
    Version,
    readable,
)
from limerank.serving.stores.successions import in_epoch
from limerank.serving.stores.valkey_layout import Layout
from limerank.serving.stores.valkey_server import Servers, command
from limerank.serving.stores.values import beginning, items_of, read

PART, TRIES = 2000, 3
"""Events of a user that are read at once, so that the server can answer others in between; and how
often that is tried while the user changes, before all are read at once."""
TOGETHER, SCAN = 32, 1000
"""Buckets that are asked at once for users; users that each replies with, at most."""
STATE = struct.Struct("<QQB")


class ValkeyReads(EventStore):
    """The reading half of :class:`~limerank.serving.stores.valkey.ValkeyStore`."""

    _server: Servers
    _layout: Layout

    def _keys(self, user: Id, names: str, *of_bucket: str) -> list[str]:
        """Keys of a user's bucket, then keys of the user."""
        bucket = self._layout.of_bucket(self._layout.bucket(user), *of_bucket)
        return bucket + self._layout.of_user(user, names)

    def exposures(self, user: Id, since: int, until: int) -> list[Exposure]:
        user = external_id("user", user)
        with self._server.as_store_errors():
            found = self._found(user, "xy", "ZRANGEBYSCORE", since, f"({until}")
        return [unpack_exposure(value, user, time, id.decode()) for id, time, value in found]

    def exposure_count(self, user: Id) -> int:
        (key,) = self._keys(external_id("user", user), "x")
        with self._server.as_store_errors():
            return int(self._server.command("ZCARD", key))

    def shown(
        self, since: Mapping[int, int], limit: int
    ) -> tuple[dict[int, int], list[tuple[int, int, Exposure]]]:
        each = -(-limit // max(len(since), 1))
        keys = {part: self._layout.of_bucket(part, "shown")[0] for part in since}
        with self._server.as_store_errors():
            ranges = self._server.send(
                [
                    command(
                        *("ZRANGEBYSCORE", key, f"({since[part]}", "+inf"),
                        *("WITHSCORES", "LIMIT", 0, each),
                    )
                    for part, key in keys.items()
                ]
            )
            last, names, calls = dict(since), [], []
            for part, found in zip(keys, ranges, strict=True):
                for name, change in _scored(found):
                    last[part] = change
                    ranking, _, user = name.decode().partition("|")
                    times, data = self._keys(user, "xy")
                    names.append((part, change, ranking, user))
                    calls += [command("ZSCORE", times, ranking), command("HGET", data, ranking)]
            answers = self._server.send(calls)
        rows = [
            (part, change, user, data, int(time), ranking)
            for (part, change, ranking, user), time, data in zip(
                names, answers[::2], answers[1::2], strict=True
            )
            if data is not None and time is not None  # dropped in between
        ]
        return last, readable(rows)

    def between(self, user: Id, since: int, until: int) -> list[Event]:
        user = external_id("user", user)
        events: list[Event] = []
        with self._server.as_store_errors():
            for at in itertools.count(0, PART):
                found = self._found(user, "te", "ZRANGEBYSCORE", since, f"({until}", at, PART)
                events += _unpacked(user, found)
                if len(found) < PART:
                    break
        return events

    def _found(
        self,
        user: Id,
        names: str,
        order: str,
        first: int | str,
        last: int | str,
        offset: int = 0,
        limit: int = -1,
    ) -> list[tuple[bytes, int, bytes]]:
        """Id, time and bytes of a user's events or exposures of some time, of one state of the
        store: between two round trips all of them might be dropped."""
        keys, asked = self._keys(user, names), [order, first, last, offset, limit]
        found = self._server.script(scripts.FOUND, keys, asked)
        return [
            (id, int(float(time)), value)
            for id, time, value in zip(found[::3], found[1::3], found[2::3], strict=True)
        ]

    def _values(self, key: str, found: Sequence[tuple[bytes, int]]) -> list[Any]:
        """Values of a hash; None: dropped since."""
        if not found:
            return []
        values: list[Any] = self._server.command("HMGET", key, *[id for id, _ in found])
        return values

    def version(self, user: Id) -> Version | None:
        (key,) = self._keys(external_id("user", user), "u")

        def read_in(epoch: int) -> Version | None:
            born, count = self._server.command("HMGET", key, "born", "count")
            return None if born is None else in_epoch(Version(int(born), int(count)), epoch)

        with self._server.as_store_errors():
            return self._server.successions.read(read_in)

    def held(self, user: Id, since: Version | None = None) -> Held | None:
        user = external_id("user", user)

        def read_in(epoch: int) -> Held | None:
            found = self._held_since(user, None if since is None else in_epoch(since, epoch))
            return found and found._replace(version=in_epoch(found.version, epoch))

        return self._server.successions.read(read_in)

    def _held_since(self, user: Id, since: Version | None) -> Held | None:
        """:meth:`held`, with versions as they are stored."""
        asked: tuple[Any, Any] = ("", -1) if since is None else since
        found = self._held_of(user, asked)
        if found is not None and self.most is not None and found[4] > self.most:
            with (
                contextlib.suppress(StoreError),
                self._server.as_store_errors(),
            ):  # events beyond the bound can be read
                keys = self._keys(user, "utec", "names", "sums")
                self._server.script(scripts.TRIM_USER, keys, [self.most, TRIM])
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
                found = self._server.script(scripts.HELD, keys, [*since, PART])
                if found is None or found[5] != b"1":
                    return found
                rest = self._in_parts(keys, -1 if found[3] == b"1" else int(since[1]))
                if self._server.command("HMGET", keys[0], "born", "count") == found[:2]:
                    return found + rest
            return self._server.script(scripts.HELD, keys, [*since, 1 << 53])

    def _in_parts(self, keys: list[str], after: int) -> list[Any]:
        """Id, time and bytes of a user's events that were added after a change; one state of the
        store if the user did not change meanwhile."""
        rest: list[Any] = []
        for at in itertools.count(0, PART):
            found = _scored(
                self._server.command("ZRANGE", keys[1], at, at + PART - 1, "WITHSCORES")
            )
            if not found:
                return rest
            for (id, time), value in zip(found, self._values(keys[2], found), strict=True):
                change, bar, data = (value or b"").partition(b"|")
                if bar and int(change) > after:
                    rest += [id, time, data]
        raise AssertionError("a count has no end")

    def latest(self, user: Id, count: int, before: int | None = None) -> list[Event]:
        user = external_id("user", user)
        count = count if self.most is None else min(count, self.most)
        if count < 1:
            return []
        end = "+inf" if before is None else f"({before}"
        with self._server.as_store_errors():
            found = self._found(user, "te", "ZREVRANGEBYSCORE", end, "-inf", 0, count)
        return _unpacked(user, found[::-1])

    def state(self, user: Id, kind: str) -> State | None:
        (key,) = self._keys(external_id("user", user), "s")

        def read_in(epoch: int) -> State | None:
            found = self._server.command("HGET", key, kind)
            if found is None:
                return None
            found = found.partition(b"|")[2]
            born, count, size = STATE.unpack_from(found)
            at = STATE.size + size
            version = in_epoch(Version(born, count), epoch)
            return State(found[STATE.size : at], version, found[at:])

        with self._server.as_store_errors():
            return self._server.successions.read(read_in)

    def users(self) -> Iterator[Id]:
        waiting: dict[int, bytes] = dict.fromkeys(range(self._layout.buckets), b"-")
        while waiting:
            some = list(itertools.islice(waiting, TOGETHER))
            for bucket, found in zip(some, self._named(waiting, some, b"+", SCAN), strict=True):
                if len(found) < SCAN:
                    del waiting[bucket]
                else:
                    waiting[bucket] = b"(" + found[-1]
                yield from (external_id("user", user.decode()) for user in found)

    def _named(
        self, first: Mapping[int, bytes], buckets: Sequence[int], last: bytes, limit: int
    ) -> list[list[bytes]]:
        """Users of buckets between two texts, in the order of their text."""
        with self._server.as_store_errors():
            return self._server.send(
                [
                    command(
                        *("ZRANGEBYLEX", self._layout.of_bucket(bucket, "names")[0]),
                        *(first[bucket], last, "LIMIT", 0, limit),
                    )
                    for bucket in buckets
                ]
            )

    def named(self, text: str, limit: int) -> list[Id]:
        if not beginning(text):
            return []
        last = b"[" + text.encode() + b"\xff" if text else b"+"  # no text contains this byte
        waiting = dict.fromkeys(range(self._layout.buckets), b"[" + text.encode() if text else b"-")
        users: list[bytes] = []
        each = max(1, 2 * limit // self._layout.buckets)
        while waiting and limit > 0:
            buckets = list(waiting)
            parts = self._named(waiting, buckets, last, each)
            users = sorted(itertools.chain(users, *parts))[:limit]
            full = len(users) == limit
            # Of other buckets nothing more can be among the first ones.
            waiting = {
                bucket: b"(" + part[-1]
                for bucket, part in zip(buckets, parts, strict=True)
                if len(part) == each and not (full and part[-1] > users[-1])
            }
            each = limit
        return [external_id("user", user.decode()) for user in users]

    def event_count(self, user: Id) -> int | None:
        known, times = self._keys(external_id("user", user), "ut")
        with self._server.as_store_errors():
            found, count = self._server.send([command("EXISTS", known), command("ZCARD", times)])
        return int(count) if found else None

    def counts(self) -> Counts:
        with self._server.as_store_errors():
            found = self._server.send(
                [
                    command("HMGET", self._layout.of_bucket(bucket, "sums")[0], "users", "events")
                    for bucket in range(self._layout.buckets)
                ]
            )
        users, events = (
            sum(int(one or 0) for one in column) for column in zip(*found, strict=True)
        )
        return Counts(users, events)

    @property
    def _item_keys(self) -> list[str]:
        return self._layout.of_all("items", "changes", "change")

    def items(
        self, since: int = 0, limit: int | None = None
    ) -> tuple[int, dict[Id, dict[str, Any] | None]]:
        asked = [since, -1 if limit is None else max(limit, 0)]
        with self._server.as_store_errors():
            change, *rest = self._server.script(scripts.ITEMS, self._item_keys, asked)
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return int(change), items_of((id.decode(), columns or None) for id, columns in pairs)


def _scored(found: Sequence[bytes]) -> list[tuple[bytes, int]]:
    """Members of a sorted set with their scores, from a reply WITHSCORES."""
    return [
        (member, int(float(score))) for member, score in zip(found[::2], found[1::2], strict=True)
    ]


def _unpacked(user: Id, found: Sequence[tuple[bytes, int, bytes]]) -> list[Event]:
    """Events of a user by id, time and bytes."""
    return [unpack(value.partition(b"|")[2], user, time, id) for id, time, value in found]
