"""Event stores: one contract, two places.

- :class:`SqliteStore`: a file. The default: nothing to set up, one machine.
- :class:`ValkeyStore`: a Valkey or Redis server, for server processes on several machines.
"""

from __future__ import annotations

import os

from limerank.stores.contract import (
    Counts,
    EventStore,
    Held,
    Id,
    Outcome,
    State,
    Version,
)
from limerank.stores.sqlite import SqliteStore
from limerank.stores.valkey import ValkeyStore

__all__ = [
    "Counts",
    "EventStore",
    "Held",
    "Id",
    "Outcome",
    "SqliteStore",
    "State",
    "ValkeyStore",
    "Version",
    "open_store",
]

SERVERS = ("valkey://", "valkeys://", "redis://", "rediss://", "unix://")


def open_store(where: str | os.PathLike[str], most: int | None = None) -> EventStore:
    """The store of an address: that of a Valkey or Redis server, else the path of an SQLite file.

    Args:
        where: such as ``events.db`` or ``valkey://localhost:6379/0``.
        most: events held of a user, at most; all when not given.
    """
    if isinstance(where, str) and where.startswith(SERVERS):
        return ValkeyStore(where, most=most)
    return SqliteStore(where, most=most)
