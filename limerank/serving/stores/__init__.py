"""Event stores: one contract, two places.

- :class:`SqliteStore`: a file. The default: nothing to set up, one machine.
- :class:`ValkeyStore`: a Valkey or Redis server, for server processes on several machines.
"""

from __future__ import annotations

import os
import re

from limerank.errors import SpecError
from limerank.serving.stores.contract import (
    Counts,
    EventStore,
    Held,
    Id,
    Outcome,
    State,
    Version,
)
from limerank.serving.stores.sqlite import SqliteStore
from limerank.serving.stores.valkey import ValkeyStore, redacted

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
NEARLY = re.compile(r"(valkey|redis|unix)s*:?/|[^/]*:[^/]*@", re.IGNORECASE)
"""An address that somebody has misspelt."""


def open_store(where: str | os.PathLike[str], most: int | None = None) -> EventStore:
    """The store of an address: that of a Valkey or Redis server, else the path of an SQLite file.

    Args:
        where: such as ``events.db`` or ``valkey://localhost:6379/0``.
        most: events held of a user, at most; all when not given.

    Raises:
        SpecError: it looks like an address, but like none of a store.
        StoreError, FormatError: as the store does.
    """
    if not isinstance(where, str):
        return SqliteStore(where, most=most)
    if where.lower().startswith(SERVERS):
        scheme, _, location = where.partition("://")
        return ValkeyStore(f"{scheme.lower()}://{location}", most=most)
    if "://" in where or NEARLY.match(where):  # no file: its name may hold a password
        raise SpecError(
            f"{redacted(where)} is no address of a store; expected the path of a file, or one that "
            f"begins with {', '.join(SERVERS)}"
        )
    return SqliteStore(where, most=most)
