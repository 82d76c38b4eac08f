"""Event stores: one contract, two places.

- :class:`SqliteStore`: a file. The default: nothing to set up, one machine.
- :class:`ValkeyStore`: a Valkey or Redis server, for server processes on several machines.
"""

from __future__ import annotations

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
]
