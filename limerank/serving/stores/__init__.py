"""Event stores: one contract, two implementations.

- :class:`SqliteStore`: a file. The default: nothing to set up, one machine.
- :class:`ValkeyStore`: a Valkey or Redis server, for server processes on several machines.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from limerank.errors import SpecError
from limerank.serving.stores.contract import (
    MOST_EXPOSURES,
    Counts,
    EventStore,
    Held,
    Id,
    Outcome,
    State,
    Version,
)
from limerank.serving.stores.sqlite import SqliteStore
from limerank.serving.stores.valkey import ValkeyStore
from limerank.serving.stores.valkey_server import redacted

__all__ = [
    "MOST_EXPOSURES",
    "Counts",
    "EventStore",
    "Held",
    "Id",
    "Outcome",
    "SqliteStore",
    "State",
    "ValkeyStore",
    "Version",
    "existing",
    "exists",
    "open_store",
]

SERVERS = ("valkey://", "valkeys://", "redis://", "rediss://", "unix://")
NEARLY = re.compile(r"(valkey|redis|unix)s*:?/|[^/]*:[^/]*@", re.IGNORECASE)
"""Texts that look like a misspelt address."""


def open_store(
    where: str | os.PathLike[str],
    most: int | None = None,
    most_exposures: int = MOST_EXPOSURES,
) -> EventStore:
    """Open the store at an address: a Valkey or Redis server's, or the path of an SQLite file.

    Args:
        where: such as ``events.db`` or ``valkey://localhost:6379/0``.
        most: events stored of a user, at most; all when not given.
        most_exposures: exposures stored of a user, at most.

    Raises:
        SpecError: the text looks like an address, but is not the address of a store.
        StoreError, FormatError: the store cannot be opened.
    """
    if not isinstance(where, str):
        return SqliteStore(where, most=most, most_exposures=most_exposures)
    if where.lower().startswith(SERVERS):
        scheme, _, location = where.partition("://")
        return ValkeyStore(
            f"{scheme.lower()}://{location}", most=most, most_exposures=most_exposures
        )
    if "://" in where or NEARLY.match(where):  # not a path: it may contain a password
        raise SpecError(
            f"{redacted(where)} is not the address of a store; expected the path of a file, or an "
            f"address that begins with {', '.join(SERVERS)}"
        )
    return SqliteStore(where, most=most, most_exposures=most_exposures)


def exists(store: str) -> bool:
    """Whether a store is there: it is a file, or the address of a server."""
    return "://" in store or Path(store).is_file()


def existing(store: str) -> str:
    """The address of a store that exists, unless it is a server's.

    Raises:
        SpecError: there is no such file.
    """
    if not exists(store):
        raise SpecError(f"the store {redacted(store)}: no such file; expected that of a server")
    return store
