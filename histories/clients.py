"""Clients: what they ask, and what they write down.

Clients share the users and the ids of their events, so that several of them post events of one
user, on several servers, at a time. Each has live items of its own: it changes one after another,
and takes a new one after a change without a clear answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from histories.processes import KEY
from histories.record import Call, Status
from histories.world import EVENTS, FIRST_LIVE, ITEMS, World
from simulation.world import columns_of

PATIENCE, LONG_PATIENCE = 3.0, 20.0
"""Seconds that a client waits for an answer; for one to a reload or a live item."""
KINDS = {"append": 34, "rank": 34, "explain": 4, "user": 4, "stranger": 8, "forget": 3, "put": 4,
         "remove": 2, "logged": 6, "reload": 0.5}  # fmt: skip
"""Kind of request -> its share of all."""
USERS, LIVE = 6, 100
"""Users that get events at a time; live items of a client, at most."""
MOST_LIVE = 1000
"""Live items of all clients, at most."""
TRIES = 3
"""Times that a client sends events that have no clear answer."""
LATE = 10**9
"""Milliseconds from the end of the log to the time of rankings, which is after all events."""
EFFECTS = ("append", "forget", "put", "remove", "logged", "reload")
"""Kinds whose unclear answers matter."""


class UnansweredError(Exception):
    """There is no answer; ``sent``: whether the server may have got the request."""

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


class Connection:
    """A connection to a server, opened when it is first needed.

    Args:
        address: host and port of the server, or of what stands before it.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, path: str, body: Any = None, patience: float = PATIENCE
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the answer.

        Raises:
            UnansweredError: there is none.
        """
        sent = False
        try:
            async with asyncio.timeout(patience):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(*self.address)
                reader, writer = self._streams
                data = b"" if body is None else json.dumps(body).encode()
                head = (
                    f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
                    f"Authorization: Bearer {KEY}\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                )
                sent = True
                writer.write(head.encode() + data)
                answer = (await reader.readuntil(b"\r\n\r\n")).lower()
                size = int(answer.split(b"content-length: ")[1].split(b"\r\n")[0])
                text = await reader.readexactly(size)
                if b"connection: close" in answer:
                    self.close()
                return int(answer.split(b" ", 2)[1]), json.loads(text) if text else {}
        except (OSError, EOFError, TimeoutError, IndexError) as error:
            self.close()
            raise UnansweredError(repr(error), sent=sent) from None
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Close it; the next request opens another."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


@dataclass
class Book:
    """What all clients share: users, their events, and the requests that were written down.

    Attributes:
        seed: of the drawing of items.
        began: when the history began, on the monotonic clock.
        calls: all requests.
        live: every live item that was ever put.
        last: whether the faults are over; see :class:`~histories.record.Call`.
    """

    seed: int
    began: float = field(default_factory=time.monotonic)
    calls: list[Call] = field(default_factory=list)
    live: list[int] = field(default_factory=list)
    last: bool = False
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    active: list[str] = field(default_factory=list)
    _unused: dict[str, list[int]] = field(default_factory=dict)
    _sent: dict[str, list[int]] = field(default_factory=dict)
    _born: int = 0

    @property
    def now(self) -> float:
        """Seconds since the history began."""
        return time.monotonic() - self.began

    @property
    def users(self) -> list[str]:
        """All users that ever were."""
        return list(self._unused)

    def user(self, draws: random.Random) -> str:
        """A user who can get further events."""
        while len(self.active) < USERS:
            user = f"u{self._born}"
            self._born += 1
            self._unused[user] = random.Random(f"{self.seed} {user}").sample(range(EVENTS), EVENTS)
            self._sent[user] = []
            self.active.append(user)
        return draws.choice(self.active)

    def events(self, draws: random.Random) -> list[tuple[str, int]]:
        """Users and items of some events, most of them new."""
        user = self.user(draws)
        found: dict[tuple[str, int], None] = {}
        for _ in range(draws.choice((1, 1, 1, 2, 4))):
            of = user if draws.random() < 0.85 else self.user(draws)
            if self._sent[of] and draws.random() < 0.15:
                found[of, draws.choice(self._sent[of])] = None
                continue
            if self._unused[of]:
                item = self._unused[of].pop()
                self._sent[of].append(item)
                found[of, item] = None
        for one in [one for one in self.active if not self._unused[one]]:
            self.active.remove(one)
        return list(found)


class Client:
    """A client.

    Args:
        number: of the client.
        book: what clients share.
        addresses: of each server.
        world: what they serve.
        indexes: server -> name of a run -> folder of its index.
        seed: of what it asks.
    """

    def __init__(
        self,
        number: int,
        book: Book,
        addresses: Sequence[tuple[str, int]],
        world: World,
        indexes: Sequence[Mapping[str, str]],
        seed: int,
    ) -> None:
        self.book, self.world, self._indexes = book, world, indexes
        self._draws = random.Random(f"{seed} client {number}")
        self._servers = [Connection(one) for one in addresses]
        self._first, self._count = FIRST_LIVE + LIVE * number, 0
        self._item: tuple[int, bool] | None = None

    async def run(self, stop: asyncio.Event, pause: float) -> None:
        """Ask one thing after another, until it is stopped."""
        kinds, weights = list(KINDS), list(KINDS.values())
        while not stop.is_set():
            (kind,) = self._draws.choices(kinds, weights)
            server = self._draws.randrange(len(self._servers))
            await getattr(self, kind)(server)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause * self._draws.uniform(0.5, 1.5))
        self.close()

    def close(self) -> None:
        """Close all connections."""
        for one in self._servers:
            one.close()

    async def _call(
        self,
        kind: str,
        server: int,
        asked: Mapping[str, Any],
        method: str,
        path: str,
        body: Any = None,
        *,
        understood: tuple[int, ...] = (200,),
        patience: float = PATIENCE,
        read: Any = None,
    ) -> Call:
        """Ask, and write down what came of it; ``read`` gives what the checker needs."""
        number, begin = next(self.book.numbers), self.book.now
        if self.book.last:  # nothing is wrong any more but a busy machine
            patience = LONG_PATIENCE
        status: Status = "unknown"
        answer: dict[str, Any] = {}
        try:
            code, found = await self._servers[server].request(method, path, body, patience)
        except UnansweredError as error:
            status = "unknown" if error.sent else "fail"
            answer = {"error": str(error)}
        else:
            if code in understood:
                status, answer = "ok", read(code, found)
            else:
                status = "unknown" if code >= 500 or code == 408 else "fail"
                answer = {"error": found.get("detail", ""), "code": code}
        if status == "unknown" and kind not in EFFECTS:
            status = "fail"
        call = Call(
            number, kind, server, begin, self.book.now, status, asked, answer, self.book.last
        )
        self.book.calls.append(call)
        return call

    # Events and users

    async def append(self, server: int) -> None:
        events = self.book.events(self._draws)
        if not events:
            return
        body = [
            {
                "user": user,
                "item": item,
                "time": self.world.begin + 1000 * (1 + item * 7 % EVENTS),
                "labels": {"click": item % 2},
                "id": f"e{item:03d}",
            }
            for user, item in events
        ]
        for _ in range(TRIES):
            call = await self._call(
                "append", server, {"events": [list(one) for one in events]},
                "POST", "/v1/events", {"events": body}, read=lambda code, found: found,
            )  # fmt: skip
            if call.status == "ok" or self._draws.random() < 0.3:
                return
            server = self._draws.randrange(len(self._servers))
            await asyncio.sleep(0.1)

    async def rank(self, server: int, user: str | None = None) -> None:
        await self._rank(server, user or self._any_user())

    async def stranger(self, server: int, arm: str | None = None) -> Call:
        """Rank for a user without events, by an arm."""
        return await self._rank(server, None, arm)

    def _any_user(self) -> str:
        users = self.book.users
        if not users or self._draws.random() < 0.8:
            return self.book.user(self._draws)
        return self._draws.choice(users)  # also those who get no further events

    async def _rank(self, server: int, user: str | None, arm: str | None = None) -> Call:
        live, timed = list(self.book.live), self._draws.random() < 0.8 or user is None
        body: dict[str, Any] = {
            "user": "a stranger" if user is None else user,
            "k": ITEMS + MOST_LIVE,
        }
        if arm is not None:
            body["arm"] = arm
        if timed:
            body["time"] = self.world.begin + LATE

        def read(code: int, found: dict[str, Any]) -> dict[str, Any]:
            values = {one["item"]: one["value"] for one in found["items"]}
            witnesses = {str(item): values[item] for item in range(EVENTS, ITEMS) if item in values}
            return {
                "known": found["known"],
                "events": found["events"],
                "arm": found["arm"],
                "run": found["run"],
                "version": found["index_version"],
                "seen": [item for item in range(ITEMS) if item not in values],
                "live": {str(item): values[item] for item in live if item in values},
                **({"values": witnesses} if timed else {}),
            }

        asked = {"user": user, "live": live}
        return await self._call("rank", server, asked, "POST", "/v1/rank", body, read=read)

    async def explain(self, server: int) -> None:
        user = self._any_user()
        body = {"user": user, "items": [ITEMS - 1], "time": self.world.begin + LATE}
        await self._call(
            "explain", server, {"user": user}, "POST", "/v1/explain", body,
            read=lambda code, found: {"seen": [one["item"] for one in found["items"][0]["events"]]},
        )  # fmt: skip

    async def user(self, server: int) -> None:
        user = self._any_user()
        await self._call(
            "user", server, {"user": user}, "GET", f"/v1/users/{user}", understood=(200, 404),
            read=lambda code, found: {"seen": [one["item"] for one in found.get("history", ())]},
        )  # fmt: skip

    async def forget(self, server: int) -> None:
        user = self._any_user()
        await self._call(
            "forget", server, {"user": user}, "DELETE", f"/v1/users/{user}", understood=(200, 404),
            read=lambda code, found: {"known": code == 200},
        )  # fmt: skip

    async def logged(self, server: int) -> None:
        """Rank, and store the answer as shown."""
        user = self._any_user()
        body = {"user": user, "k": 3, "log": True, "time": self.world.begin + LATE}
        await self._call(
            "logged", server, {"user": user}, "POST", "/v1/rank", body,
            read=lambda code, found: {name: found[name] for name in ("ranking", "arm", "run")},
        )  # fmt: skip

    # Live items and reloads

    async def put(self, server: int) -> None:
        if self._item is None:
            if self._count == LIVE:
                return
            self._item = (self._first + self._count, False)
            self._count += 1
            self.book.live.append(self._item[0])
        item = self._item[0]
        body = {"items": [columns_of(item, self._draws.randrange(3))]}
        call = await self._call(
            "put", server, {"item": item}, "PUT", "/v1/items", body, patience=LONG_PATIENCE,
            read=lambda code, found: found,
        )  # fmt: skip
        self._item = (item, True) if call.status == "ok" else None

    async def remove(self, server: int) -> None:
        if self._item is None or not self._item[1]:
            return
        item = self._item[0]
        call = await self._call(
            "remove", server, {"item": item}, "DELETE", f"/v1/items/{item}",
            patience=LONG_PATIENCE, read=lambda code, found: found,
        )  # fmt: skip
        if call.status == "unknown":
            self._item = None
        elif call.status == "ok":
            self._item = (item, False)

    async def reload(self, server: int) -> None:
        name = self._draws.choice(("one", "two"))
        body = {
            "arm": "a",
            "run": str(self.world.run(name)),
            "index": self._indexes[server][name],
        }
        await self._call(
            "reload", server, {"run": name}, "POST", "/v1/admin/reload", body,
            patience=LONG_PATIENCE, read=lambda code, found: {},
        )  # fmt: skip
