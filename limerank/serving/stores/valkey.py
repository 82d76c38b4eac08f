"""Events in a Valkey or Redis server, which several server processes share.

Each change is one script, so that it happens whole or not at all. It is durable when it returns
where the server writes its log through (``appendonly yes``, ``appendfsync always``), and nothing
held may be thrown away (``maxmemory-policy noeviction``): a server that is set otherwise is refused
unless that is asked for. One server with replicas or none; no cluster.

Keys, after the prefix (``USER`` is the external id)::

    format              version of this layout
    ids                 there once all users' ids are in their one form
    users, events       set of users; number of events
    u:USER              hash: born, count, dropped, features (JSON), from, listed
    t:USER, e:USER      sorted set: event id by time; hash: event id -> COUNT|packed event
    c:USER              list: COUNT|event id, in the order of the changes, of those since ``from``
    s:USER              hash: kind -> born, count, length of fingerprint, fingerprint, state
    items, changes      hash: item -> JSON, empty where removed; sorted set: item by change
    change              number of changes of items
    erase               when a user was deleted first since the server's log was last written anew
    identity            random text that tells this store from others

``c:USER`` holds all events accepted since the change ``from``, as long as ``listed`` is ``count``.
A version of limerank that does not know of it changes ``count`` alone: the list then begins anew.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from limerank.data.canonical import external_id
from limerank.data.events import Event
from limerank.data.packing import unpack
from limerank.errors import FormatError, SpecError, StoreError
from limerank.serving.stores.contract import (
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
    renamed,
    trouble,
)
from limerank.serving.stores.values import beginning, items_of, packed, read, written

FORMAT = 1
SECONDS = 5.0
"""How long an answer of the server may take."""
CONNECTIONS = 64
"""Connections to the server, at most; threads beyond wait for one, as long as for an answer."""
APPENDING, WAITING = 16, 4096
"""Calls of ``appending`` that wait for the server at a time, and that wait in all, at most."""
PART, TRIES = 2000, 3
"""Events of a user that are read at once, so that the server can answer others in between; and how
often that is tried while the user changes, before all are read at once."""
REWRITE_SECONDS = 3600
"""How long deleted events may stand in the server's log before it is told to write it anew."""
NAMED_SCANS, SCAN = 50, 1000
"""Parts of the set of users that are searched for the beginning of an id; users in each, about."""
_database = re.compile(r"(?:/[0-9]*)?")
"""The path of an address: the library takes any other text for the database 0."""
STATE = struct.Struct("<QQB")

# KEYS: u:, t:, e:, c:, users, events. A new user is born with the random number ARGV[2].
# Then it is told whether all changes so far are listed; else the list begins anew.
BORN = """
if redis.call('HSETNX', KEYS[1], 'born', ARGV[2]) == 1 then
  redis.call('HSET', KEYS[1], 'count', 0, 'dropped', 0, 'features', '{}', 'from', 0, 'listed', 0)
  redis.call('DEL', KEYS[4])
  redis.call('SADD', KEYS[5], ARGV[1])
end
local meta = redis.call('HMGET', KEYS[1], 'count', 'dropped', 'listed')
local count, dropped = tonumber(meta[1]), tonumber(meta[2])
if meta[3] ~= meta[1] then
  redis.call('HSET', KEYS[1], 'from', meta[1])
  redis.call('DEL', KEYS[4])
end
local function whole(number) return string.format('%.0f', number) end
"""
# Drops the oldest events of one who has more than `most`; sets held, count and dropped.
TRIMMED = """
if most > 0 and held > most then
  local number = math.min(held - most, trim)
  local popped = redis.call('ZPOPMIN', KEYS[2], number)
  for at = 1, #popped, 2 do redis.call('HDEL', KEYS[3], popped[at]) end
  held, count = held - number, count + 1
  dropped = count
end
"""
# Keeps count and dropped; and of the list, no more than twice what is held.
ENDED = """
redis.call('HSET', KEYS[1], 'count', whole(count), 'dropped', whole(dropped),
           'listed', whole(count))
if redis.call('LLEN', KEYS[4]) > 2 * held + 64 then
  redis.call('LTRIM', KEYS[4], -held - 1, -1)
  local first = redis.call('LPOP', KEYS[4])
  redis.call('HSET', KEYS[1], 'from', string.sub(first, 1, string.find(first, '|', 1, true) - 1))
end
redis.call('INCRBY', KEYS[6], held - before)
"""
# ARGV: user, born, most (0: any number), trim, then of each event id, time and bytes, in their
# order. Returns what became of each: 0 duplicate, 1 accepted, 2 expired.
APPEND = (
    BORN
    + """
local held = redis.call('ZCARD', KEYS[2])
local before, most, trim, out = held, tonumber(ARGV[3]), tonumber(ARGV[4]), {}
"""
    + TRIMMED
    + """
for at = 5, #ARGV, 3 do
  local id, said = ARGV[at], 0
  if redis.call('HEXISTS', KEYS[3], id) == 0 then
    redis.call('ZADD', KEYS[2], ARGV[at + 1], id)
    said, held = 1, held + 1
    if most > 0 and held > most then
      local oldest = redis.call('ZPOPMIN', KEYS[2])[1]
      held = held - 1
      if oldest == id then
        said = 2
      else
        redis.call('HDEL', KEYS[3], oldest)
        dropped = count + 1
      end
    end
    if said == 1 then
      count = count + 1
      redis.call('HSET', KEYS[3], id, whole(count) .. '|' .. ARGV[at + 2])
      redis.call('RPUSH', KEYS[4], whole(count) .. '|' .. id)
    end
  end
  out[#out + 1] = said
end
"""
    + ENDED
    + """
return out
"""
)
# ARGV: user, born, most, trim. Only of a user who is known.
TRIM_USER = (
    """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
"""
    + BORN
    + """
local held = redis.call('ZCARD', KEYS[2])
local before, most, trim = held, tonumber(ARGV[3]), tonumber(ARGV[4])
"""
    + TRIMMED
    + ENDED
    + """
return before - held
"""
)
# ARGV: user, born, features.
FEATURES = (
    BORN
    + """
count = whole(count + 1)
redis.call('HSET', KEYS[1], 'features', ARGV[3], 'count', count, 'listed', count)
"""
)
# KEYS: u:, t:, e:, c:. ARGV: born and count of the version since which events are wanted, or empty;
# events that may be read at once.
# Returns nothing, or born, count, features, whether these are all, how many are held, whether they
# are too many, then id, time and bytes of each.
HELD = """
local meta = redis.call('HMGET', KEYS[1], 'born', 'count', 'features', 'dropped', 'from', 'listed')
if not meta[1] then return false end
local count, after = tonumber(meta[2]), tonumber(ARGV[2])
local some = ARGV[1] == meta[1] and tonumber(meta[4]) <= after and after <= count
local held = redis.call('ZCARD', KEYS[2])
local out = {meta[1], meta[2], meta[3], some and '0' or '1', held, '0'}
local function put(id, time, value, change)
  local bar = value and string.find(value, '|', 1, true)
  if not bar then return end
  local number = tonumber(string.sub(value, 1, bar - 1))
  if number == (change or number) and (not some or number > after) then
    out[#out + 1] = id
    out[#out + 1] = time
    out[#out + 1] = string.sub(value, bar + 1)
  end
end
if some and meta[6] == meta[2] and tonumber(meta[5]) <= after then
  if after < count then
    for _, entry in ipairs(redis.call('LRANGE', KEYS[4], after - count, -1)) do
      local bar = string.find(entry, '|', 1, true)
      local change, id = tonumber(string.sub(entry, 1, bar - 1)), string.sub(entry, bar + 1)
      if change > after then
        put(id, redis.call('ZSCORE', KEYS[2], id), redis.call('HGET', KEYS[3], id), change)
      end
    end
  end
elseif held > tonumber(ARGV[3]) then
  out[6] = '1'
else
  local ids = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
  for at = 1, #ids, 2 do
    put(ids[at], ids[at + 1], redis.call('HGET', KEYS[3], ids[at]))
  end
end
return out
"""
# KEYS: u:, t:, e:, s:, c:, users, events, erase. ARGV: user, seconds since 1970.
DELETE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('DECRBY', KEYS[7], redis.call('ZCARD', KEYS[2]))
redis.call('SREM', KEYS[6], ARGV[1])
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('SET', KEYS[8], ARGV[2], 'NX')
return 1
"""
# KEYS: u:, s:. ARGV: born, count, kind, bytes.
PUT_STATE = """
local meta = redis.call('HMGET', KEYS[1], 'born', 'count')
if meta[1] ~= ARGV[1] or meta[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
return 1
"""
# KEYS: items, changes, change. ARGV: of each item id and JSON.
PUT_ITEMS = """
local change = tonumber(redis.call('GET', KEYS[3]) or '0')
for at = 1, #ARGV, 2 do
  change = change + 1
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  redis.call('ZADD', KEYS[2], change, ARGV[at])
end
redis.call('SET', KEYS[3], string.format('%.0f', change))
return change
"""
# KEYS: items, changes, change. ARGV: since, limit (-1: none).
# Returns up to which change, then id and JSON of each item.
ITEMS = """
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES',
                         'LIMIT', 0, ARGV[2])
local out = {redis.call('GET', KEYS[3]) or '0'}
if tonumber(ARGV[2]) >= 0 and #found >= 2 * tonumber(ARGV[2]) then
  out[1] = found[#found] or ARGV[1]
end
for at = 1, #found, 2 do
  out[#out + 1] = found[at]
  out[#out + 1] = redis.call('HGET', KEYS[1], found[at])
end
return out
"""
DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
"""Settings with which a server keeps what it has acknowledged."""


def redacted(url: str) -> str:
    """An address without its secrets: ``valkey://user:***@host:6379/0``.

    Whatever stands before the last ``@`` is taken for a user and a password, also where the address
    is none; of the options behind ``?`` only the number of the database is shown.
    """
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    before, at, position = rest.rpartition("@")
    user, colon, _ = before.partition(":")
    hidden = f"{user}:***" if colon else "***" if at else ""  # a lone word may be a password
    position, question, query = position.partition("#")[0].partition("?")
    host, slash, path = position.partition("/")
    name, port_mark, port = host.rpartition(":")
    if port_mark and not port.isdecimal() and not port.endswith("]"):
        host = f"{name}:***"
    options = [option.partition("=")[::2] for option in query.split("&")]
    shown = "&".join(
        f"{name}={value if name == 'db' else '***'}" if value else "***" for name, value in options
    )
    return f"{scheme}{mark}{hidden}{at}{host}{slash}{path}{question}{shown if question else ''}"


class ValkeyStore(EventStore):
    """An event store in a server that speaks the protocol of Valkey and Redis (6.2 or later).

    Args:
        url: such as ``valkey://localhost:6379/0``, ``redis://...`` or ``unix:///run/valkey.sock``.
        most: events held of a user, at most; None: all.
        prefix: what the names of all keys begin with.
        durable: False accepts a server that may lose what it has acknowledged.

    Raises:
        StoreError: the server cannot be reached, or does not keep what it acknowledges.
        SpecError: the client library is missing, or the URL is none.
        FormatError: the prefix is used by another format.
    """

    def __init__(
        self, url: str, *, most: int | None = None, prefix: str = "limerank:", durable: bool = True
    ) -> None:
        super().__init__(most)
        try:
            import valkey
        except ModuleNotFoundError:
            raise SpecError(
                "a Valkey store needs the valkey package: pip install 'limerank[valkey]'"
            ) from None
        self.address, self.prefix, self.durable = redacted(url), prefix, durable
        self._valkey: Any = valkey
        for scheme in ("redis", "rediss"):
            if url.startswith(f"{scheme}://"):
                url = url.replace("redis", "valkey", 1)
        self._pool: Any = None
        pools: Any = valkey.BlockingConnectionPool
        # Texts of errors may hold a part of a password.
        with contextlib.suppress(ValueError, TypeError):
            pool = pools.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=SECONDS,
                socket_timeout=SECONDS,
                socket_connect_timeout=SECONDS,
            )
            pool.connection_class(**pool.connection_kwargs)  # refuses options that are none
            if url.startswith("unix:") or _database.fullmatch(urlsplit(url).path):
                self._pool = pool
        if self._pool is None:
            raise SpecError(
                f"{self.address} is no address of a store; expected one such as "
                "valkey://USER:PASSWORD@HOST:6379/0, where what is no letter or digit of the "
                "password is written as %2F and so on"
            )
        self._client: Any = valkey.Valkey(connection_pool=self._pool)
        self._appenders: _Appenders | None = None
        self._lock = threading.Lock()
        self._closed = False
        scripts = (APPEND, TRIM_USER, FEATURES, HELD, DELETE, PUT_STATE, PUT_ITEMS, ITEMS)
        (
            self._append,
            self._trim,
            self._features,
            self._held,
            self._delete,
            self._put_state,
            self._put_items,
            self._items,
        ) = map(self._client.register_script, scripts)
        try:
            with self._as_store_errors(opening=True):
                lost = self._lost() if durable else []
                if lost:
                    raise StoreError(
                        f"{self.address} may lose what it has acknowledged: {', '.join(lost)}; "
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
            self._pool.disconnect()
            raise

    def _to_one_form(self) -> None:
        """Bring ids of users that an earlier version kept as they came, such as "7.0", to their one
        form; where that is a user, too, both become one."""
        done = f"{self.prefix}ids"
        with self._as_store_errors(opening=True):
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
                        with contextlib.suppress(FormatError):  # damaged ones are gone
                            self.set_features(user, read(f"the user {id!r}", found[2]))
                    self.append(renamed(id, user, rows))
                self._delete_of(id)
            self._client.set(done, 1)

    def _scanned(self) -> Iterator[list[bytes]]:
        """All users, part by part."""
        cursor = -1
        while cursor:
            with self._as_store_errors():
                cursor, found = self._client.sscan(self._all[0], max(cursor, 0), count=SCAN)
            yield found

    def _lost(self) -> list[str]:
        """How the server's settings differ from those with which it keeps what it acknowledges."""
        pipeline = self._client.pipeline(transaction=False)
        for name in DURABLE:
            pipeline.config_get(name)
        try:
            found = {name: value for answer in pipeline.execute() for name, value in answer.items()}
        except self._valkey.ResponseError as error:
            raise trouble(
                StoreError,
                self.address,
                "does not tell how durable it is; see that it has "
                + ", ".join(f"{name} {value}" for name, value in DURABLE.items())
                + ", and open the store with durable=False",
                error,
            ) from None
        wrong = [name for name, value in DURABLE.items() if found.get(name) != value]
        if not wrong:
            return []
        has = ", ".join(f"{name} {found.get(name)}" for name in wrong)
        return [f"it has {has}, expected {', '.join(f'{name} {DURABLE[name]}' for name in wrong)}"]

    def check(self) -> list[str]:
        found = []
        with self._as_store_errors():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.get(f"{self.prefix}format").info("persistence")
            pipeline.get(f"{self.prefix}erase").time()
            format, state, erase, now = pipeline.execute()
            lost = self._lost() if self.durable else []
        if lost:
            found.append(
                f"the event store may lose what it acknowledges: {', '.join(lost)}; change its "
                "settings back"
            )
        if format != b"%d" % FORMAT:
            found.append(
                "the event store was emptied or is another one than was opened; stop this process, "
                "and put its data back"
            )
        if self.durable and state.get("aof_last_write_status", "ok") != "ok":
            found.append("the event store could not write its log; look after its disk")
        if erase is not None and state.get("aof_enabled"):
            found += self._erased(int(now[0]) - int(erase), int(erase))
        return found

    def _erased(self, seconds: int, since: int) -> list[str]:
        """Have the server write its log anew, which still holds what was deleted so long ago; what
        is wrong with that."""
        key = f"{self.prefix}erase"
        if seconds < REWRITE_SECONDS:
            return []
        try:
            with self._as_store_errors():
                if self._client.delete(key):  # no other process is at it
                    self._client.bgrewriteaof()
        except StoreError:
            with self._as_store_errors():
                self._client.set(key, since, nx=True)
            if seconds > 2 * REWRITE_SECONDS:
                return [
                    "the log of the event store still holds deleted users: it cannot be written "
                    "anew; see that BGREWRITEAOF works and is allowed"
                ]
        return []

    @contextlib.contextmanager
    def _as_store_errors(self, *, opening: bool = False) -> Iterator[None]:
        """Errors of the server, as ours."""
        if self._closed:
            raise trouble(StoreError, self.address, "is closed; open it again")
        errors = self._valkey.exceptions
        try:
            yield
        except (errors.ValkeyError, OSError) as error:
            message = str(error)
            if (
                isinstance(error, errors.OutOfMemoryError)
                or "OOM" in message
                or "MISCONF" in message
            ):
                text = (
                    "is full now: nothing was written, all that was acknowledged is there; make "
                    "room, and try again"
                )
            elif "No connection available" in message:
                text = (
                    f"is too busy now: {CONNECTIONS} requests are waiting for its answers; try "
                    "again later"
                )
            elif isinstance(error, (errors.AuthenticationError, errors.NoPermissionError)):
                text = "does not let this process in; give it a user and a password that may"
            elif isinstance(error, (errors.ConnectionError, errors.TimeoutError, OSError)):
                text = "cannot be reached now: start it, or try again later"
            else:
                text = "refused; look after it"
            raise trouble(StoreError, self.address, text, error, opening=opening) from error

    def _keys(self, user: Id, names: str) -> list[str]:
        return [f"{self.prefix}{name}:{user}" for name in names]

    @property
    def _all(self) -> list[str]:
        return [f"{self.prefix}users", f"{self.prefix}events"]

    def append(self, events: Sequence[Event]) -> list[Outcome]:
        outcomes = [Outcome.DUPLICATE] * len(events)
        meant = (Outcome.DUPLICATE, Outcome.ACCEPTED, Outcome.EXPIRED)
        parts, data = by_user(events), [packed(event) for event in events]
        orders: list[list[int]] = []
        with self._as_store_errors():
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
            for position, message in zip(order, answer, strict=True):
                outcomes[position] = meant[message]
        return outcomes

    def appending(self, events: Sequence[Event]) -> Future[list[Outcome]]:
        if self._closed:
            raise trouble(StoreError, self.address, "is closed; open it again")
        with self._lock:
            if self._appenders is None or self._appenders.process != os.getpid():
                self._appenders = _Appenders()
            appenders = self._appenders
        if not appenders.free.acquire(blocking=False):
            raise trouble(
                StoreError,
                self.address,
                f"is too busy now: {WAITING} writes wait for it; try again later",
            )
        promise = appenders.threads.submit(self.append, list(events))
        promise.add_done_callback(lambda _: appenders.free.release())
        return promise

    def version(self, user: Id) -> Version | None:
        (key,) = self._keys(external_id("user", user), "u")
        with self._as_store_errors():
            born, count = self._client.hmget(key, "born", "count")
        return None if born is None else Version(int(born), int(count))

    def held(self, user: Id, since: Version | None = None) -> Held | None:
        user = external_id("user", user)
        asked: tuple[Any, Any] = ("", -1) if since is None else since
        found = self._held_of(user, asked)
        if found is not None and self.most is not None and found[4] > self.most:
            with (
                contextlib.suppress(StoreError),
                self._as_store_errors(),
            ):  # what is too much can be read
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
        with self._as_store_errors():
            for _ in range(TRIES):
                found = self._held(keys=keys, args=[*since, PART])
                if found is None or found[5] != b"1":
                    return found
                rest = self._in_parts(keys, -1 if found[3] == b"1" else int(since[1]))
                if self._client.hmget(keys[0], "born", "count") == found[:2]:
                    return found + rest
            return self._held(keys=keys, args=[*since, 1 << 53])

    def _in_parts(self, keys: list[str], after: int) -> list[Any]:
        """Id, time and bytes of a user's events that came after a change, of one moment if the user
        did not change meanwhile."""
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
        with self._as_store_errors():
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
        with self._as_store_errors():
            self._features(
                keys=self._keys(user, "utec") + self._all,
                args=[user, secrets.randbits(62), text],
            )

    def delete_user(self, user: Id) -> bool:
        return self._delete_of(external_id("user", user))

    def _delete_of(self, user: Id) -> bool:
        with self._as_store_errors():
            keys = [*self._keys(user, "utesc"), *self._all, f"{self.prefix}erase"]
            return bool(self._delete(keys=keys, args=[user, self._client.time()[0]]))

    def state(self, user: Id, kind: str) -> State | None:
        (key,) = self._keys(external_id("user", user), "s")
        with self._as_store_errors():
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
        with self._as_store_errors():
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
        with self._as_store_errors():
            if text and self._client.sismember(self._all[0], text):
                found.add(text.encode())
        cursor, scans = -1, 0
        while cursor and len(found) < limit and scans < NAMED_SCANS:
            scans += 1
            with self._as_store_errors():
                cursor, some = self._client.sscan(
                    self._all[0], max(cursor, 0), match=pattern, count=SCAN
                )
            found.update(some)
        users = sorted(user.decode() for user in found)[:limit]
        return [external_id("user", user) for user in users]

    def event_count(self, user: Id) -> int | None:
        keys = self._keys(external_id("user", user), "ut")
        with self._as_store_errors():
            pipeline = self._client.pipeline()
            pipeline.exists(keys[0]).zcard(keys[1])
            known, count = pipeline.execute()
        return int(count) if known else None

    def counts(self) -> Counts:
        with self._as_store_errors():
            users, events = self._client.scard(self._all[0]), self._client.get(self._all[1])
        return Counts(users, int(events or 0))

    @property
    def _item_keys(self) -> list[str]:
        return [f"{self.prefix}{name}" for name in ("items", "changes", "change")]

    def identity(self) -> str:
        key = f"{self.prefix}identity"
        with self._as_store_errors():
            self._client.set(key, secrets.token_hex(16), nx=True)
            return str(bytes(self._client.get(key) or b"").decode())

    def put_items(self, items: Mapping[Id, Mapping[str, Any] | None]) -> int:
        arguments: list[Any] = []
        for id, columns in items.items():
            arguments += [
                external_id("item", id),
                "" if columns is None else written(f"the item {id!r:.80}", columns),
            ]
        with self._as_store_errors():
            return int(self._put_items(keys=self._item_keys, args=arguments))

    def items(
        self, since: int = 0, limit: int | None = None
    ) -> tuple[int, dict[Id, dict[str, Any] | None]]:
        with self._as_store_errors():
            change, *rest = self._items(
                keys=self._item_keys, args=[since, -1 if limit is None else max(limit, 0)]
            )
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return int(change), items_of((id.decode(), columns or None) for id, columns in pairs)

    def close(self) -> None:
        appenders = self._appenders
        if appenders is not None and appenders.process == os.getpid():
            appenders.threads.shutdown()  # what was given is appended
        self._closed = True
        self._pool.disconnect()


class _Appenders:
    """Threads of a process that wait for the server, so that nobody else does."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.free = threading.BoundedSemaphore(WAITING)
        self.threads = ThreadPoolExecutor(APPENDING, thread_name_prefix="limerank append")
