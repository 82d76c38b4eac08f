"""A Valkey server in memory: the commands that the store uses, and its scripts.

It executes one message (the commands that a client sends together) at a time. What it does is
compared with a real server, command by command, in ``tests/test_simulation.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from valkey.exceptions import NoScriptError, ResponseError

from simulation.lua import Table, text, translated

Reply = Any
"""None, bytes, an integer, a list of replies, or a ResponseError."""
OK = b"OK"


class SimulatedServer:
    """Data and scripts of a server.

    Args:
        seconds: the server's clock, in seconds since 1970.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.data: dict[bytes, Any] = {}
        self.scripts: dict[bytes, str] = {}
        self.seconds = seconds

    def restart(self) -> None:
        """Stop and start: data stays, scripts do not."""
        self.scripts = {}

    def execute(self, message: Sequence[Sequence[Any]]) -> list[Reply]:
        """The replies to the commands of one message."""
        replies: list[Reply] = []
        queued: list[list[bytes]] | None = None
        for given in message:
            words = [_bytes(word) for word in given]
            name = words[0].upper()
            if name == b"MULTI":
                queued = []
                replies.append(OK)
            elif name == b"EXEC":
                assert queued is not None
                replies.append([self.reply(one) for one in queued])
                queued = None
            elif queued is not None:
                queued.append(words)
                replies.append(b"QUEUED")
            else:
                replies.append(self.reply(words))
        return replies

    def reply(self, words: list[bytes]) -> Reply:
        """The reply to one command."""
        first = words[0].decode().upper().split()
        if first[0] in ("SCRIPT", "CONFIG") and len(first) == 1:
            first.append(words.pop(1).decode().upper())
        command = getattr(self, "do_" + "_".join(first).lower(), None)
        if command is None:
            return ResponseError(f"unknown command {' '.join(first)}: teach it to the simulation")
        try:
            return command(*words[1:])
        except ResponseError as error:
            return error

    # Scripts

    def do_script_exists(self, *shas: bytes) -> Reply:
        return [int(sha in self.scripts) for sha in shas]

    def do_script_load(self, script: bytes) -> Reply:
        sha = hashlib.sha1(script).hexdigest().encode()
        self.scripts[sha] = script.decode()
        return sha

    def do_evalsha(self, sha: bytes, count: bytes, *rest: bytes) -> Reply:
        if sha not in self.scripts:
            return NoScriptError("No matching script. Please use EVAL.")
        keys, arguments = rest[: int(count)], rest[int(count) :]
        run = translated(self.scripts[sha])
        return _to_reply(run(Table(keys), Table(arguments), self._call))

    def _call(self, *words: Any) -> Any:
        found = self.reply([text(word) for word in words])
        if isinstance(found, ResponseError):
            raise found
        return _to_lua(found)

    # Server

    def do_config_get(self, name: bytes) -> Reply:
        known = {
            b"appendonly": b"yes",
            b"appendfsync": b"always",
            b"maxmemory-policy": b"noeviction",
        }
        return [name, known[name]] if name in known else []

    def do_time(self) -> Reply:
        now = self.seconds()
        return [b"%d" % int(now), b"%d" % int(now % 1 * 1e6)]

    def do_info(self, section: bytes = b"") -> Reply:
        return b"aof_enabled:0\r\naof_last_write_status:ok\r\n"

    # Keys and texts

    def do_exists(self, *keys: bytes) -> Reply:
        return sum(key in self.data for key in keys)

    def do_del(self, *keys: bytes) -> Reply:
        return sum(self.data.pop(key, None) is not None for key in keys)

    do_unlink = do_del

    def do_get(self, key: bytes) -> Reply:
        return self.data.get(key)

    def do_set(self, key: bytes, value: bytes, *options: bytes) -> Reply:
        if b"NX" in options and key in self.data:
            return None
        self.data[key] = value
        return OK

    def do_setnx(self, key: bytes, value: bytes) -> Reply:
        return int(self.do_set(key, value, b"NX") is not None)

    def do_incrby(self, key: bytes, by: bytes) -> Reply:
        value = int(self.data.get(key, b"0")) + int(by)
        self.data[key] = b"%d" % value
        return value

    def do_incr(self, key: bytes) -> Reply:
        return self.do_incrby(key, b"1")

    def do_decrby(self, key: bytes, by: bytes) -> Reply:
        return self.do_incrby(key, b"%d" % -int(by))

    # Hashes

    def do_hincrby(self, key: bytes, name: bytes, by: bytes) -> Reply:
        held = self.data.setdefault(key, {})
        held[name] = b"%d" % (int(held.get(name, b"0")) + int(by))
        return int(held[name])

    def do_hgetall(self, key: bytes) -> Reply:
        return [part for pair in self.data.get(key, {}).items() for part in pair]

    def do_hkeys(self, key: bytes) -> Reply:
        return list(self.data.get(key, ()))

    def do_hlen(self, key: bytes) -> Reply:
        return len(self.data.get(key, ()))

    def do_hset(self, key: bytes, *pairs: bytes) -> Reply:
        held = self.data.setdefault(key, {})
        fresh = len(set(pairs[::2]) - held.keys())
        held.update(zip(pairs[::2], pairs[1::2], strict=True))
        return fresh

    def do_hsetnx(self, key: bytes, name: bytes, value: bytes) -> Reply:
        return 0 if name in self.data.get(key, {}) else self.do_hset(key, name, value)

    def do_hget(self, key: bytes, name: bytes) -> Reply:
        return self.data.get(key, {}).get(name)

    def do_hmget(self, key: bytes, *names: bytes) -> Reply:
        held = self.data.get(key, {})
        return [held.get(name) for name in names]

    def do_hexists(self, key: bytes, name: bytes) -> Reply:
        return int(name in self.data.get(key, {}))

    def do_hdel(self, key: bytes, *names: bytes) -> Reply:
        held = self.data.get(key, {})
        removed = sum(held.pop(name, None) is not None for name in names)
        self._drop_empty(key)
        return removed

    # Lists

    def do_rpush(self, key: bytes, *values: bytes) -> Reply:
        held = self.data.setdefault(key, [])
        held.extend(values)
        return len(held)

    def do_llen(self, key: bytes) -> Reply:
        return len(self.data.get(key, ()))

    def do_lpop(self, key: bytes) -> Reply:
        held = self.data.get(key)
        found = held.pop(0) if held else None
        self._drop_empty(key)
        return found

    def do_lrange(self, key: bytes, first: bytes, last: bytes) -> Reply:
        return _ranged(list(self.data.get(key, ())), first, last)

    def do_ltrim(self, key: bytes, first: bytes, last: bytes) -> Reply:
        if key in self.data:
            self.data[key] = _ranged(self.data[key], first, last)
            self._drop_empty(key)
        return OK

    # Sorted sets: member -> score

    def do_zadd(self, key: bytes, *pairs: bytes) -> Reply:
        held = self.data.setdefault(key, {})
        before = len(held)
        for score, member in zip(pairs[::2], pairs[1::2], strict=True):
            held[member] = float(score)
        return len(held) - before

    def do_zrem(self, key: bytes, *members: bytes) -> Reply:
        return self.do_hdel(key, *members)

    def do_zcard(self, key: bytes) -> Reply:
        return len(self.data.get(key, ()))

    def do_zscore(self, key: bytes, member: bytes) -> Reply:
        found = self.data.get(key, {}).get(member)
        return None if found is None else _score(found)

    def do_zpopmin(self, key: bytes, count: bytes = b"1") -> Reply:
        popped = self._ordered(key)[: int(count)]
        self.do_zrem(key, *(member for member, _ in popped))
        return _with_scores(popped)

    def do_zrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> Reply:
        found = _ranged(self._ordered(key), first, last)
        return _with_scores(found) if b"WITHSCORES" in options else [one for one, _ in found]

    def do_zrangebylex(self, key: bytes, low: bytes, high: bytes, *options: bytes) -> Reply:
        found = [one for one in sorted(self.data.get(key, ())) if _between(one, low, high)]
        if b"LIMIT" in options:
            offset, count = map(int, options[options.index(b"LIMIT") + 1 :][:2])
            found = found[offset : offset + count]
        return found

    def do_zrangebyscore(self, key: bytes, low: bytes, high: bytes, *options: bytes) -> Reply:
        return self._by_score(self._ordered(key), low, high, options)

    def do_zrevrangebyscore(self, key: bytes, high: bytes, low: bytes, *options: bytes) -> Reply:
        return self._by_score(self._ordered(key)[::-1], low, high, options)

    def _ordered(self, key: bytes) -> list[tuple[bytes, float]]:
        return sorted(self.data.get(key, {}).items(), key=lambda one: (one[1], one[0]))

    def _by_score(
        self,
        ordered: list[tuple[bytes, float]],
        low: bytes,
        high: bytes,
        options: tuple[bytes, ...],
    ) -> Reply:
        found = [one for one in ordered if _above(one[1], low) and _above(-one[1], _minus(high))]
        if b"LIMIT" in options:
            at = options.index(b"LIMIT")
            offset, count = int(options[at + 1]), int(options[at + 2])
            found = found[offset:] if count < 0 else found[offset : offset + count]
        return _with_scores(found) if b"WITHSCORES" in options else [one for one, _ in found]

    def _drop_empty(self, key: bytes) -> None:
        if key in self.data and not self.data[key]:
            del self.data[key]


def _bytes(word: Any) -> bytes:
    if isinstance(word, bytes):
        return word
    return repr(word).encode() if isinstance(word, float) else str(word).encode()


def _score(value: float) -> bytes:
    return b"%d" % int(value) if value == int(value) else repr(value).encode()


def _with_scores(found: list[tuple[bytes, float]]) -> list[bytes]:
    return [part for member, score in found for part in (member, _score(score))]


def _ranged(values: list[Any], first: bytes, last: bytes) -> list[Any]:
    begin, end, count = int(first), int(last), len(values)
    begin = max(begin + count, 0) if begin < 0 else begin
    end = end + count if end < 0 else end
    return values[begin : end + 1] if end >= 0 else []


def _between(member: bytes, low: bytes, high: bytes) -> bool:
    """Whether a member lies between two bounds of texts."""
    above = low == b"-" or member > low[1:] or (low[:1] == b"[" and member == low[1:])
    return above and (
        high == b"+" or member < high[1:] or (high[:1] == b"[" and member == high[1:])
    )


def _minus(bound: bytes) -> bytes:
    """A bound of negated scores."""
    exclusive, value = bound[:1] == b"(", float(bound.lstrip(b"("))
    return (b"(" if exclusive else b"") + repr(-value).encode()


def _above(score: float, bound: bytes) -> bool:
    return score > float(bound[1:]) if bound[:1] == b"(" else score >= float(bound)


def _to_lua(found: Reply) -> Any:
    if found is None:
        return False
    if isinstance(found, int):
        return float(found)
    return Table([_to_lua(one) for one in found]) if isinstance(found, list) else found


def _to_reply(found: Any) -> Reply:
    if found is None or found is False:
        return None
    if found is True:
        return 1
    if isinstance(found, float):
        return int(found)
    if isinstance(found, Table):
        values: list[Any] = []
        for one in found.values:
            if one is None:
                break
            values.append(_to_reply(one))
        return values
    return found
