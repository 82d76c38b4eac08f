"""Events in a Valkey or Redis server, which several server processes share.

Each change is one script, so that it happens whole or not at all. It is durable when it returns
where the server writes its log through (``appendonly yes``, ``appendfsync always``), and nothing
held may be thrown away (``maxmemory-policy noeviction``): a server that is set otherwise is refused
unless that is asked for. One server with replicas or none; no cluster.

Keys, after the prefix (``USER`` is the external id)::

    format              version of this layout
    users, events       set of users; number of events
    u:USER              hash: born, count, dropped, features (JSON)
    t:USER, e:USER      sorted set: event id by time; hash: event id -> COUNT|packed event
    s:USER              hash: kind -> born, count, length of fingerprint, fingerprint, state
    items, changes      hash: item -> JSON, empty where removed; sorted set: item by change
    change              number of changes of items
    identity            random text that tells this store from others
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limerank.errors import FormatError, SpecError, StoreError
from limerank.events import Event, external_id, pack, unpack
from limerank.stores.contract import (
    Counts,
    EventStore,
    Held,
    Id,
    Outcome,
    State,
    Version,
    by_user,
)

FORMAT = 1
SECONDS = 5.0
"""How long an answer of the server may take."""
STATE = struct.Struct("<QQB")

# KEYS: u:, t:, e:, users, events. A new user is born with the random number ARGV[2].
BORN = """
if redis.call('HSETNX', KEYS[1], 'born', ARGV[2]) == 1 then
  redis.call('HSET', KEYS[1], 'count', 0, 'dropped', 0, 'features', '{}')
  redis.call('SADD', KEYS[4], ARGV[1])
end
"""
# ARGV: user, born, most (0: any number), then of each event id, time and bytes, in their order.
# Returns what became of each: 0 duplicate, 1 accepted, 2 expired.
APPEND = (
    BORN
    + """
local count = tonumber(redis.call('HGET', KEYS[1], 'count'))
local dropped = tonumber(redis.call('HGET', KEYS[1], 'dropped'))
local held = redis.call('ZCARD', KEYS[2])
local before, most, out = held, tonumber(ARGV[3]), {}
for at = 4, #ARGV, 3 do
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
      redis.call('HSET', KEYS[3], id, string.format('%.0f|', count) .. ARGV[at + 2])
    end
  end
  out[#out + 1] = said
end
redis.call('HSET', KEYS[1], 'count', string.format('%.0f', count),
           'dropped', string.format('%.0f', dropped))
redis.call('INCRBY', KEYS[5], held - before)
return out
"""
)
# ARGV: user, born, features.
FEATURES = (
    BORN
    + """
redis.call('HSET', KEYS[1], 'features', ARGV[3])
redis.call('HINCRBY', KEYS[1], 'count', 1)
"""
)
# KEYS: u:, t:, e:. ARGV: born and count of the version since which events are wanted, or empty.
# Returns nothing, or born, count, features, whether these are all, then id, time and bytes of each.
HELD = """
local meta = redis.call('HMGET', KEYS[1], 'born', 'count', 'features', 'dropped')
if not meta[1] then return false end
local after = tonumber(ARGV[2])
local some = ARGV[1] == meta[1] and tonumber(meta[4]) <= after and after <= tonumber(meta[2])
local out = {meta[1], meta[2], meta[3], some and '0' or '1'}
local ids = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
for at = 1, #ids, 2 do
  local value = redis.call('HGET', KEYS[3], ids[at])
  local bar = string.find(value, '|', 1, true)
  if not some or tonumber(string.sub(value, 1, bar - 1)) > after then
    out[#out + 1] = ids[at]
    out[#out + 1] = ids[at + 1]
    out[#out + 1] = string.sub(value, bar + 1)
  end
end
return out
"""
# KEYS: u:, t:, e:, s:, users, events. ARGV: user.
DELETE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('DECRBY', KEYS[6], redis.call('ZCARD', KEYS[2]))
redis.call('SREM', KEYS[5], ARGV[1])
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
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
# KEYS: items, changes, change. ARGV: since.
ITEMS = """
local out = {redis.call('GET', KEYS[3]) or '0'}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf')) do
  out[#out + 1] = id
  out[#out + 1] = redis.call('HGET', KEYS[1], id)
end
return out
"""


def redacted(url: str) -> str:
    """An address without its secrets: ``valkey://user:***@host:6379/0``.

    Whatever stands before the last ``@`` is taken for a user and a password, also where the address
    is none; of the options behind ``?`` only the number of the database is shown.
    """
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    before, at, place = rest.rpartition("@")
    user, colon, _ = before.partition(":")
    hidden = f"{user}:***" if colon else "***" if at else ""  # a lone word may be a password
    place, question, query = place.partition("#")[0].partition("?")
    host, slash, path = place.partition("/")
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
        self.url, self.prefix = url, prefix
        self.address = redacted(url)
        self._valkey: Any = valkey
        for scheme in ("redis", "rediss"):
            if url.startswith(f"{scheme}://"):
                url = url.replace("redis", "valkey", 1)
        try:
            self._client: Any = self._valkey.Valkey.from_url(
                url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS
            )
        except ValueError as error:
            raise SpecError(f"{self.url} is no address of a store: {error}") from None
        self._closed = False
        scripts = (APPEND, FEATURES, HELD, DELETE, PUT_STATE, PUT_ITEMS, ITEMS)
        (
            self._append,
            self._features,
            self._held,
            self._delete,
            self._put_state,
            self._put_items,
            self._items,
        ) = map(self._client.register_script, scripts)
        try:
            if durable:
                self._check_durable()
            with self._told():
                self._client.setnx(f"{prefix}format", FORMAT)
                found = self._client.get(f"{prefix}format")
            if found != b"%d" % FORMAT:
                raise FormatError(
                    f"the keys {prefix}* of {self.url} are of format {found!r}, expected {FORMAT}; "
                    "choose another prefix"
                )
        except BaseException:
            self._client.close()
            raise

    def _check_durable(self) -> None:
        wanted = {
            "appendonly": ("yes",),
            "appendfsync": ("always",),
            "maxmemory-policy": ("noeviction",),
        }
        with self._told():
            try:
                found = {name: self._client.config_get(name).get(name) for name in wanted}
            except self._valkey.ResponseError as error:
                raise StoreError(
                    f"{self.url} does not tell how durable it is ({error}); see that it has "
                    "appendonly yes, appendfsync always and maxmemory-policy noeviction, and open "
                    "the store with durable=False"
                ) from None
        wrong = [
            f"{name} {found[name]}" for name, legal in wanted.items() if found[name] not in legal
        ]
        if wrong:
            expected = ", ".join(f"{name} {legal[0]}" for name, legal in wanted.items())
            raise StoreError(
                f"{self.url} may lose what it has acknowledged: it has {', '.join(wrong)}, "
                f"expected {expected}; change its settings, or open the store with durable=False"
            )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the server, as ours."""
        if self._closed:
            raise StoreError(f"the store {self.url} is closed; open it again")
        errors = self._valkey.exceptions
        try:
            yield
        except errors.OutOfMemoryError as error:
            raise _full(self.url, error) from error
        except (errors.ConnectionError, errors.TimeoutError) as error:
            raise StoreError(
                f"the store {self.url} cannot be reached ({error}); start it, or try again later"
            ) from error
        except errors.ValkeyError as error:
            if "OOM" in str(error) or "MISCONF" in str(error):
                raise _full(self.url, error) from error
            raise StoreError(f"the store {self.url} refused: {error}; look after it") from error

    def _keys(self, user: Id, names: str) -> list[str]:
        return [f"{self.prefix}{name}:{user}" for name in names]

    @property
    def _all(self) -> list[str]:
        return [f"{self.prefix}users", f"{self.prefix}events"]

    def append(self, events: Sequence[Event]) -> list[Outcome]:
        outcomes = [Outcome.DUPLICATE] * len(events)
        meant = (Outcome.DUPLICATE, Outcome.ACCEPTED, Outcome.EXPIRED)
        parts = by_user(events)
        orders: list[list[int]] = []
        with self._told():
            pipeline = self._client.pipeline(transaction=False)
            for user, placed in parts.items():
                first: dict[bytes, tuple[int, Event]] = {}
                for place, event in placed:
                    first.setdefault(event.id, (place, event))
                ordered = sorted(first.values(), key=lambda one: (one[1].time, one[1].id))
                arguments: list[Any] = [user, secrets.randbits(62), self.most or 0]
                for _, event in ordered:
                    arguments += [event.id, event.time, pack(event)]
                client = self._client if len(parts) == 1 else pipeline
                found = self._append(
                    keys=self._keys(user, "ute") + self._all, args=arguments, client=client
                )
                orders.append([place for place, _ in ordered])
            answers = [found] if len(parts) == 1 else pipeline.execute()
        for order, answer in zip(orders, answers, strict=True):
            for place, said in zip(order, answer, strict=True):
                outcomes[place] = meant[said]
        return outcomes

    def version(self, user: Id) -> Version | None:
        with self._told():
            born, count = self._client.hmget(f"{self.prefix}u:{user}", "born", "count")
        return None if born is None else Version(int(born), int(count))

    def held(self, user: Id, since: Version | None = None) -> Held | None:
        user = external_id("user", user)
        asked: tuple[Any, Any] = ("", -1) if since is None else since
        with self._told():
            found = self._held(keys=self._keys(user, "ute"), args=list(asked))
        if found is None:
            return None
        born, count, features, whole, *rest = found
        events = [
            unpack(data, user, int(float(time)), id)
            for id, time, data in zip(rest[::3], rest[1::3], rest[2::3], strict=True)
        ]
        return Held(Version(int(born), int(count)), json.loads(features), events, whole == b"1")

    def latest(self, user: Id, count: int) -> list[Event]:
        user = external_id("user", user)
        if count < 1:
            return []
        _, times, data = self._keys(user, "ute")
        with self._told():
            found = self._client.zrange(times, -count, -1, withscores=True)
            packed = self._client.hmget(data, [id for id, _ in found]) if found else []
        return [
            unpack(value.partition(b"|")[2], user, int(time), id)
            for (id, time), value in zip(found, packed, strict=True)
            if value is not None  # dropped in between
        ]

    def set_features(self, user: Id, features: Mapping[str, Any]) -> None:
        user = external_id("user", user)
        with self._told():
            self._features(
                keys=self._keys(user, "ute") + self._all,
                args=[user, secrets.randbits(62), json.dumps(dict(features))],
            )

    def delete_user(self, user: Id) -> bool:
        user = external_id("user", user)
        with self._told():
            return bool(self._delete(keys=self._keys(user, "utes") + self._all, args=[user]))

    def state(self, user: Id, kind: str) -> State | None:
        with self._told():
            found = self._client.hget(f"{self.prefix}s:{user}", kind)
        if found is None:
            return None
        born, count, size = STATE.unpack_from(found)
        at = STATE.size + size
        return State(found[STATE.size : at], Version(born, count), found[at:])

    def put_state(self, user: Id, kind: str, state: State) -> bool:
        born, count = state.version
        data = STATE.pack(born, count, len(state.fingerprint)) + state.fingerprint + state.data
        with self._told():
            return bool(
                self._put_state(keys=self._keys(user, "us"), args=[born, count, kind, data])
            )

    def users(self) -> Iterator[Id]:
        seen: set[bytes] = set()
        cursor = -1
        while cursor:
            with self._told():
                cursor, found = self._client.sscan(self._all[0], max(cursor, 0), count=1000)
            fresh = [user for user in found if user not in seen]
            seen.update(fresh)
            yield from (external_id("user", user.decode()) for user in fresh)

    def named(self, text: str, limit: int) -> list[Id]:
        pattern = re.sub(r"([\\*?\[\]^])", r"\\\1", text) + "*"
        found: set[bytes] = set()
        cursor = -1
        while cursor and len(found) < limit:
            with self._told():
                cursor, some = self._client.sscan(
                    self._all[0], max(cursor, 0), match=pattern, count=1000
                )
            found.update(some)
        users = sorted(user.decode() for user in found)[:limit]
        return [external_id("user", user) for user in users]

    def event_count(self, user: Id) -> int | None:
        keys = self._keys(external_id("user", user), "ut")
        with self._told():
            pipeline = self._client.pipeline()
            pipeline.exists(keys[0]).zcard(keys[1])
            known, count = pipeline.execute()
        return int(count) if known else None

    def check(self) -> list[str]:
        self.counts()
        return []

    def counts(self) -> Counts:
        with self._told():
            users, events = self._client.scard(self._all[0]), self._client.get(self._all[1])
        return Counts(users, int(events or 0))

    @property
    def _item_keys(self) -> list[str]:
        return [f"{self.prefix}{name}" for name in ("items", "changes", "change")]

    def identity(self) -> str:
        key = f"{self.prefix}identity"
        with self._told():
            self._client.set(key, secrets.token_hex(16), nx=True)
            return str(bytes(self._client.get(key) or b"").decode())

    def put_items(self, items: Mapping[Id, Mapping[str, Any] | None]) -> int:
        arguments: list[Any] = []
        for id, columns in items.items():
            arguments += [
                external_id("item", id),
                "" if columns is None else json.dumps(dict(columns)),
            ]
        with self._told():
            return int(self._put_items(keys=self._item_keys, args=arguments))

    def items(self, since: int = 0) -> tuple[int, dict[Id, dict[str, Any] | None]]:
        with self._told():
            change, *rest = self._items(keys=self._item_keys, args=[since])
        return int(change), {
            external_id("item", id.decode()): json.loads(columns) if columns else None
            for id, columns in zip(rest[::2], rest[1::2], strict=True)
        }

    def close(self) -> None:
        self._closed = True
        self._client.close()


def _full(url: str, error: Exception) -> StoreError:
    return StoreError(
        f"the store {url} is full ({error}): nothing was written, all that was acknowledged is "
        "there; make room, and try again"
    )
