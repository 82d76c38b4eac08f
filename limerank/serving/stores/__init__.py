"""Event stores: one contract, two implementations.

- :class:`SqliteStore`: a file. The default: nothing to set up, one machine.
- :class:`ValkeyStore`: a Valkey or Redis server, for server processes on several machines, or a
  cluster of such servers.
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
from limerank.serving.stores.valkey_layout import BUCKETS
from limerank.serving.stores.valkey_migration import Migrated
from limerank.serving.stores.valkey_migration import migrate as migrate_valkey
from limerank.serving.stores.valkey_server import redacted

__all__ = [
    "MOST_EXPOSURES",
    "Counts",
    "EventStore",
    "Held",
    "Id",
    "Migrated",
    "Outcome",
    "SqliteStore",
    "State",
    "ValkeyStore",
    "Version",
    "existing",
    "exists",
    "migrate_store",
    "open_store",
]

SERVERS = ("valkey://", "valkeys://", "redis://", "rediss://", "unix://")
CLUSTERS = ("valkey+cluster://", "valkeys+cluster://", "redis+cluster://", "rediss+cluster://")
NEARLY = re.compile(r"(valkey|redis|unix)s*(\+cluster)?:?/|[^/]*:[^/]*@", re.IGNORECASE)
"""Texts that look like a misspelt address."""


def open_store(
    where: str | os.PathLike[str],
    most: int | None = None,
    most_exposures: int = MOST_EXPOSURES,
    buckets: int = BUCKETS,
) -> EventStore:
    """Open the store at an address: of a Valkey or Redis server or cluster, or the path of an
    SQLite file.

    Args:
        where: such as ``events.db``, ``valkey://localhost:6379/0`` or
            ``valkey+cluster://host:6379,host:6379``.
        most: events stored of a user, at most; all when not given.
        most_exposures: exposures stored of a user, at most.
        buckets: of a new store on servers, see :class:`ValkeyStore`.

    Raises:
        SpecError: the text looks like an address, but is not the address of a store.
        StoreError, FormatError: the store cannot be opened.
    """
    if not isinstance(where, str):
        return SqliteStore(where, most=most, most_exposures=most_exposures)
    if is_served(where):
        return ValkeyStore(_lower(where), most=most, most_exposures=most_exposures, buckets=buckets)
    if "://" in where or NEARLY.match(where):  # not a path: it may contain a password
        raise SpecError(
            f"{redacted(where)} is not the address of a store; expected the path of a file, or an "
            f"address that begins with {', '.join(SERVERS + CLUSTERS)}"
        )
    return SqliteStore(where, most=most, most_exposures=most_exposures)


def is_served(where: str) -> bool:
    """Whether a text is the address of a server or a cluster."""
    return where.lower().startswith(SERVERS + CLUSTERS)


def _lower(where: str) -> str:
    """An address with its scheme in lower case."""
    scheme, _, location = where.partition("://")
    return f"{scheme.lower()}://{location}"


def migrate_store(where: str, *, buckets: int = BUCKETS, quiet: bool = True) -> Migrated:
    """Give the keys of a Valkey store of an earlier version the present format; see
    :func:`limerank.serving.stores.valkey_migration.migrate`.

    Raises:
        SpecError: the text is not the address of a server.
    """
    if not is_served(where):
        raise SpecError(f"{redacted(where)} is not the address of a Valkey or Redis server")
    return migrate_valkey(_lower(where), buckets=buckets, quiet=quiet)


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
