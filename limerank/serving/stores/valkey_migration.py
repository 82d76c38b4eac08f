"""Keys of format 1 of a Valkey event store as keys of format 2.

Format 1 had one set of all users, one number of events and one list of exposures, so that it could
not be divided among servers::

    users, events, shown, showing, ids      of all users
    u: t: e: c: x: y: s:USER                as now, without a tag
    items, changes, change, erase, identity of the store

Each user is moved by one script: keys are renamed in place, and take no more memory. States are
deleted; they are computed from the events. A migration
that was ended early goes on when it is called again; until it is complete, the store cannot be
opened. A user who has keys of both formats, since a server of an earlier version was still writing,
or whose id an earlier version stored in another form ("7.0"), becomes one user.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import NamedTuple

from limerank.data.canonical import external_id
from limerank.data.exposures import Exposure
from limerank.errors import FormatError, SpecError
from limerank.progress import Bar
from limerank.serving.stores.contract import Id, one_form, readable, renamed
from limerank.serving.stores.valkey import ValkeyStore
from limerank.serving.stores.valkey_cluster import CLUSTER
from limerank.serving.stores.valkey_layout import BUCKETS, FORMAT, MIGRATING, Layout
from limerank.serving.stores.valkey_server import Call, Servers, ValkeyServer, script_call
from limerank.serving.stores.values import read

OF_USER, OF_STORE = "utecxys", ("items", "changes", "change", "erase", "identity")
SCAN = 200
"""Users whose keys are renamed together, at most."""

# KEYS: names, sums, shown, the old users and shown, then u: t: e: c: x: y: s: as they were and as
# they will be. ARGV: user, number of exposures ever stored.
# Returns 1: moved; 0: there is no such user; 2: the user has new keys already.
MOVE = """
if redis.call('EXISTS', KEYS[6]) == 0 then
  redis.call('SREM', KEYS[4], ARGV[1])
  return 0
end
if redis.call('EXISTS', KEYS[13]) == 1 then return 2 end
for at = 6, 11 do
  if redis.call('EXISTS', KEYS[at]) == 1 then redis.call('RENAME', KEYS[at], KEYS[at + 7]) end
end
redis.call('ZADD', KEYS[1], 0, ARGV[1])
redis.call('HINCRBY', KEYS[2], 'users', 1)
redis.call('HINCRBY', KEYS[2], 'events', redis.call('ZCARD', KEYS[14]))
redis.call('HSET', KEYS[2], 'shown', ARGV[2])
for _, id in ipairs(redis.call('ZRANGE', KEYS[17], 0, -1)) do
  local name = id .. '|' .. ARGV[1]
  local change = redis.call('ZSCORE', KEYS[5], name)
  if change then redis.call('ZADD', KEYS[3], change, name) end
end
redis.call('UNLINK', KEYS[12])
redis.call('SREM', KEYS[4], ARGV[1])
return 1
"""


class Migrated(NamedTuple):
    """The result of :func:`migrate`.

    Attributes:
        users: users whose keys were renamed.
        joined: users who became one with another, or whose id got its one form.
    """

    users: int
    joined: int


class _Store(ValkeyStore):
    """A store whose keys are being moved."""

    formats = (MIGRATING,)


def migrate(
    url: str, *, prefix: str = "limerank:", buckets: int = BUCKETS, quiet: bool = True
) -> Migrated:
    """Give the keys of a store the present format. Stop the servers that use the store first.

    Args:
        url: the address of the server.
        prefix: the beginning of all keys.
        buckets: see :class:`~limerank.serving.stores.valkey.ValkeyStore`.
        quiet: show no progress.

    Raises:
        SpecError: it is a cluster, which has no store of format 1.
        FormatError: there is no store, or one of another format.
        StoreError: the server cannot be reached.
    """
    layout = Layout(prefix, buckets)
    if CLUSTER.match(url):
        raise SpecError(
            "a cluster has no store of an earlier format; give the address of the one server "
            "that has it, and copy it to the cluster afterwards: limerank store copy"
        )
    server = ValkeyServer(url)
    try:
        with server.as_store_errors(opening=True):
            found = server.command("GET", f"{prefix}format")
            if found == b"%d" % FORMAT:
                return Migrated(0, 0)
            if found not in (b"1", MIGRATING):
                raise FormatError(
                    f"the keys {prefix}* of {server.address} are of format {found!r}, expected 1"
                )
            server.command("SET", f"{prefix}buckets", buckets, "NX")
            layout = Layout(prefix, int(server.command("GET", f"{prefix}buckets")))
            server.command("SET", f"{prefix}format", MIGRATING)
            done = _moved(server, layout, url, quiet)
            for name, new in zip(OF_STORE, layout.of_all(*OF_STORE), strict=True):
                if server.command("EXISTS", f"{prefix}{name}"):
                    server.one(Call("", ("RENAME", f"{prefix}{name}", new)))
            old = [f"{prefix}{name}" for name in ("users", "events", "shown", "showing", "ids")]
            server.one(Call("", ("UNLINK", *old)))
            server.command("SET", f"{prefix}format", FORMAT)
    finally:
        server.disconnect()
    return done


def _moved(server: Servers, layout: Layout, url: str, quiet: bool) -> Migrated:
    """Move all users."""
    users, shown = (
        f"{layout.prefix}users",
        int(server.command("GET", f"{layout.prefix}showing") or 0),
    )
    moved = joined = 0
    with Bar("moving", total=server.command("SCARD", users), unit="users", quiet=quiet) as bar:
        while server.command("EXISTS", users):
            found = server.command("SRANDMEMBER", users, SCAN)
            plain = [user.decode() for user in found if one_form(user.decode()) is None]
            replies = server.send(
                [script_call(MOVE, _keys(layout, user), [user, shown]) for user in plain]
            )
            moved += replies.count(1)
            several = [user for user, reply in zip(plain, replies, strict=True) if reply == 2]
            odd = [user.decode() for user in found if one_form(user.decode()) is not None]
            for user in several + odd:
                _join(server, layout, url, user)
                joined += 1
            bar.advance(len(found))
    return Migrated(moved, joined)


def _old(layout: Layout, user: str, names: str) -> list[str]:
    return [f"{layout.prefix}{name}:{user}" for name in names]


def _keys(layout: Layout, user: str) -> list[str]:
    return [
        *layout.of_bucket(layout.bucket(user), "names", "sums", "shown"),
        *(f"{layout.prefix}{name}" for name in ("users", "shown")),
        *_old(layout, user, OF_USER),
        *layout.of_user(user, OF_USER),
    ]


def _exposures(server: Servers, layout: Layout, given: str, user: Id) -> list[Exposure]:
    """A user's old exposures; damaged ones are left out and logged."""
    times, data = _old(layout, given, "xy")
    found = server.command("ZRANGE", times, 0, -1, "WITHSCORES")
    values = server.command("HMGET", data, *found[::2]) if found else []
    rows = [
        (0, 0, given, value, int(float(time)), id.decode())
        for id, time, value in zip(found[::2], found[1::2], values, strict=True)
        if value is not None
    ]
    return [replace(one, user=user) for _, _, one in readable(rows)]


def _join(server: Servers, layout: Layout, url: str, given: str) -> None:
    """Append a user's old events to the user of the id's one form, and delete the old keys."""
    form = one_form(given)
    user = external_id("user", given if form is None else form)
    u, times, data = _old(layout, given, "ute")
    found = server.command("ZRANGE", times, 0, -1, "WITHSCORES")
    values = server.command("HMGET", data, *found[::2]) if found else []
    rows = [
        (value.partition(b"|")[2], int(float(time)), id)
        for id, time, value in zip(found[::2], found[1::2], values, strict=True)
        if value is not None
    ]
    with _Store(url, prefix=layout.prefix, durable=False) as store:
        features = server.command("HGET", u, "features")
        if features is not None and store.version(user) is None:
            with contextlib.suppress(FormatError):  # damaged features are lost
                store.set_features(user, read(f"the user {given!r}", features))
        store.append(renamed(given, user, rows))
        store.show(_exposures(server, layout, given, user))
    server.one(Call("", ("UNLINK", *_old(layout, given, OF_USER))))
    server.one(Call("", ("SREM", f"{layout.prefix}users", given)))
