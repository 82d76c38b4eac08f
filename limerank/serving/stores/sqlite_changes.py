"""Changes of an SQLite event store: what each does inside the writer's transaction.

Statements read and write up to :data:`ROWS` rows at once: a statement per event would take longer
than its work, since each one gives up Python's lock and waits to get it back.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from limerank.data.events import Event, derived_id
from limerank.data.exposures import Exposure, pack_exposure
from limerank.serving.stores.contract import TRIM, Id, Outcome, by_user, one_form, renamed
from limerank.serving.stores.values import packed

Connection = sqlite3.Connection
Row = tuple[Any, ...]

ROWS = 256
"""Rows that one statement reads or writes, at most."""


@dataclass(frozen=True)
class Append:
    """Append events: the events and their bytes."""

    events: Sequence[Event]
    data: Sequence[bytes]
    most: int | None

    @classmethod
    def packed(cls, events: Sequence[Event], most: int | None) -> Append:
        return cls(events, [packed(event) for event in events], most)

    @classmethod
    def of(cls, parts: Sequence[Append]) -> Append:
        """Several appends as one, in their order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            [event for part in parts for event in part.events],
            [data for part in parts for data in part.data],
            parts[0].most,
        )

    def __call__(self, connection: Connection) -> list[Outcome]:
        parts = by_user(self.events)
        known = _known(connection, [str(user) for user in parts])
        fresh = [user for user in parts if str(user) not in known]
        known |= {str(user): (new_user(connection, user, "{}"), 0, 0, 0) for user in fresh}
        keys = {user: known[str(user)][0] for user in parts}
        held = _held_ids(connection, [(keys[one.user], one.time, one.id) for one in self.events])
        outcomes = [Outcome.DUPLICATE] * len(self.events)
        rows: list[Row] = []
        changed: list[Row] = []
        added = 0
        for user, placed in parts.items():
            key, count, events, dropped = known[str(user)]
            new: dict[bytes, tuple[int, Event]] = {}
            for position, event in placed:
                if (key, event.id) not in held:
                    new.setdefault(event.id, (position, event))
            before = events
            if self.most is not None and events > self.most:  # the bound was higher before
                events -= _drop_oldest(connection, key, min(events - self.most, TRIM))
                dropped = count = count + 1
            elif not new:
                continue
            own: list[Row] = []
            full = self.most is not None and events + len(new) > self.most
            for position, event in sorted(new.values(), key=_by_time):
                if full and self.most is not None and events >= self.most:
                    _insert(connection, own)
                    own = []
                    if not _makes_room(connection, key, event):
                        outcomes[position] = Outcome.EXPIRED
                        continue
                    events, dropped = events - 1, count + 1
                count, events = count + 1, events + 1
                own.append((key, event.time, event.id, count, self.data[position]))
                outcomes[position] = Outcome.ACCEPTED
            rows += own
            changed.append((key, count, events, dropped))
            added += events - before
        _insert(connection, rows)
        _update(connection, changed)
        add_to_totals(connection, len(fresh), added)
        return outcomes


@dataclass(frozen=True)
class Trim:
    """Drop a user's oldest events beyond ``most``, at most :data:`TRIM` of them."""

    user: Id
    most: int

    def __call__(self, connection: Connection) -> None:
        known = _known(connection, [str(self.user)]).get(str(self.user))
        if known is None or known[2] <= self.most:
            return
        key, count, events, _ = known
        deleted = _drop_oldest(connection, key, min(events - self.most, TRIM))
        _update(connection, [(key, count + 1, events - deleted, count + 1)])
        add_to_totals(connection, 0, -deleted)


@dataclass(frozen=True)
class Show:
    """Store exposures: the exposures and their bytes."""

    exposures: Sequence[Exposure]
    data: Sequence[bytes]
    most: int

    @classmethod
    def packed(cls, exposures: Sequence[Exposure], most: int) -> Show:
        return cls(exposures, [pack_exposure(one) for one in exposures], most)

    def __call__(self, connection: Connection) -> list[Outcome]:
        keys = {
            user: row[0]
            for user, row in _known(
                connection, list({str(one.user) for one in self.exposures})
            ).items()
        }
        outcomes = []
        for one, data in zip(self.exposures, self.data, strict=True):
            key = keys.get(str(one.user))
            if key is None:
                key = keys[str(one.user)] = new_user(connection, one.user, "{}")
                add_to_totals(connection, 1, 0)
            done = connection.execute(
                "INSERT INTO exposures(user, time, id, data) VALUES (?,?,?,?) "
                "ON CONFLICT DO NOTHING",
                (key, one.time, one.ranking, data),
            )
            if not done.rowcount:
                outcomes.append(Outcome.DUPLICATE)
                continue
            change = done.lastrowid
            dropped = connection.execute(
                "DELETE FROM exposures WHERE user=? AND (time, id) < (SELECT time, id FROM "
                "exposures WHERE user=? ORDER BY time DESC, id DESC LIMIT 1 OFFSET ?) "
                "RETURNING change",
                (key, key, self.most - 1),
            ).fetchall()
            outcomes.append(Outcome.EXPIRED if (change,) in dropped else Outcome.ACCEPTED)
        return outcomes


def _drop_oldest(connection: Connection, key: int, count: int) -> int:
    """Delete the oldest ``count`` events of a user who has more; returns how many were deleted."""
    first = connection.execute(
        "SELECT time, id FROM events WHERE user=? ORDER BY time, id LIMIT 1 OFFSET ?", (key, count)
    ).fetchone()
    done = connection.execute(
        "DELETE FROM events WHERE user=? AND (time, id) < (?, ?)", (key, *first)
    )
    return done.rowcount


def _makes_room(connection: Connection, key: int, event: Event) -> bool:
    """Delete the oldest event of a full user to make room for another; False: no event
    is older than that one."""
    oldest = connection.execute(
        "SELECT time, id FROM events WHERE user=? ORDER BY time, id LIMIT 1", (key,)
    ).fetchone()
    if (event.time, event.id) < oldest:
        return False
    connection.execute("DELETE FROM events WHERE user=? AND time=? AND id=?", (key, *oldest))
    return True


def _in_parts(rows: Sequence[Row]) -> Iterator[tuple[int, int, list[Any]]]:
    """Rows in parts of a few sizes, so that SQLite can reuse its statements. Yields the number of
    rows, the number of rows that the statement takes, and the values; the last row is repeated."""
    for at in range(0, len(rows), ROWS):
        some = rows[at : at + ROWS]
        padded = 1 << (len(some) - 1).bit_length()
        values = [value for row in some for value in row]
        yield len(some), padded, values + [*some[-1]] * (padded - len(some))


def _placeholders(columns: int, count: int) -> str:
    return ",".join([f"({','.join('?' * columns)})"] * count)


def _known(connection: Connection, users: list[str]) -> dict[str, tuple[int, int, int, int]]:
    """The columns key, count, events and dropped of those users that the store has."""
    found = {}
    for _, padded, values in _in_parts([(user,) for user in users]):
        query = "SELECT id, key, count, events, dropped FROM users WHERE id IN "
        for id, *rest in connection.execute(f"{query}({','.join('?' * padded)})", values):
            found[id] = tuple(rest)
    return found


def _held_ids(
    connection: Connection, events: list[tuple[int, int, bytes]]
) -> set[tuple[int, bytes]]:
    """Which of the events (user's key, time, id) are stored, as (user's key, id). A given id is
    searched at all times of its user; a derived id, which contains the time, at its own time."""
    found: set[tuple[int, bytes]] = set()
    derived = [event for event in events if derived_id(event[2])]
    for _, padded, values in _in_parts(derived):
        query = (  # one lookup each, by the table's own order
            f"WITH new(user, time, id) AS (VALUES {_placeholders(3, padded)}) "
            "SELECT user, id FROM new CROSS JOIN events USING (user, time, id)"
        )
        found.update(connection.execute(query, values))
    given: dict[int, list[bytes]] = {}
    for key, _, id in events:
        if not derived_id(id):
            given.setdefault(key, []).append(id)
    for key, ids in given.items():
        for _, padded, values in _in_parts([(id,) for id in ids]):
            query = (
                "SELECT user, id FROM events INDEXED BY events_by_id WHERE user=? "
                f"AND substr(id, 1, 1) <> x'00' AND id IN ({','.join('?' * padded)})"
            )
            found.update(connection.execute(query, [key, *values]))
    return found


def _insert(connection: Connection, rows: Sequence[Row]) -> None:
    for count, padded, values in _in_parts(rows):
        # Only repeated rows can conflict: stored events were found before.
        statement = f"INSERT INTO events VALUES {_placeholders(5, padded)} ON CONFLICT DO NOTHING"
        done = connection.execute(statement, values)
        assert done.rowcount == count, "a stored event was not found before"


def _update(connection: Connection, users: Sequence[Row]) -> None:
    for _, padded, values in _in_parts(users):
        connection.execute(
            f"WITH new(key, count, events, dropped) AS (VALUES {_placeholders(4, padded)}) "
            "UPDATE users SET count=new.count, events=new.events, dropped=new.dropped "
            "FROM new WHERE users.key=new.key",
            values,
        )


def new_user(connection: Connection, user: Id, features: str) -> int:
    """Add a user without events; returns the key."""
    born = secrets.randbits(62)
    done = connection.execute(
        "INSERT INTO users(id, born, count, events, dropped, features) VALUES (?,?,0,0,0,?)",
        (str(user), born, features),
    )
    assert done.lastrowid is not None
    return done.lastrowid


def add_to_totals(connection: Connection, users: int, events: int) -> None:
    """Count more users and events, or fewer."""
    connection.execute("UPDATE totals SET users=users+?, events=events+?", (users, events))


def to_one_form(connection: Connection) -> None:
    """Rename users whose ids an earlier version stored as they were given, such as "7.0", to the
    one form of the id; where that user exists already, both become one."""
    for key, id, features in connection.execute(
        "SELECT key, id, features FROM users WHERE CAST(CAST(id AS INTEGER) AS TEXT) <> id"
    ).fetchall():
        user = one_form(id)
        if user is None:
            continue
        rows = connection.execute("SELECT data, time, id FROM events WHERE user=?", (key,))
        events = renamed(id, user, rows.fetchall())
        deleted = connection.execute("DELETE FROM events WHERE user=?", (key,)).rowcount
        connection.execute("DELETE FROM states WHERE user=?", (key,))
        connection.execute("DELETE FROM users WHERE key=?", (key,))
        add_to_totals(connection, -1, -deleted)
        if str(user) not in _known(connection, [str(user)]):
            new_user(connection, user, features)
            add_to_totals(connection, 1, 0)
        Append.packed(events, None)(connection)


def _by_time(placed: tuple[int, Event]) -> tuple[int, bytes]:
    return placed[1].time, placed[1].id
