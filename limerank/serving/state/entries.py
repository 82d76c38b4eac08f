"""Users in memory: what was computed of each, for which version of the index."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from limerank.index import Index
from limerank.models.links import LinkState
from limerank.serving.state.stored import Rows, Stream, Window
from limerank.serving.state.user_features import EncodedUser
from limerank.serving.stores import Version

ENTRY_BYTES = 12 << 10
"""Bytes of a user in memory besides arrays, as measured: objects, and gaps between allocations."""


@dataclass(frozen=True, eq=False)
class Mark:
    """Identifies a version of the index. Versions with equal ``print`` have equal vectors of all
    common items; versions with equal ``base`` have equal rows
    (:attr:`limerank.index.Index.base`)."""

    print: str
    base: str


@dataclass(frozen=True)
class MarkedIndex:
    """A version of the index with its mark, from :meth:`UserStates.marked`.

    Requests refer to it while they run. Entries in memory store the mark alone: otherwise an index
    that changes all day would keep all its old versions open."""

    index: Index
    mark: Mark


class AskedState(NamedTuple):
    """LIME: the state of the previous request. It is also the state of all requests with the same
    context from ``since`` until just before ``until``."""

    context: Mapping[str, Any]
    since: int
    until: float
    state: LinkState


@dataclass
class Entry:
    """A user in memory.

    Attributes:
        version: the user's version; None for the entry that all unknown users share.
        encoded: the user's encoded features.
        stored: the window or the stream.
        mark: of the index version that the entry is valid for.
        seen: index rows of seen items, ascending.
        written: the version whose state the store has; None: none is known.
        stage: the request context and the user stage computed for it; for LIME, whose links do not
            depend on the context, the time of the newest event and the links.
        asked: LIME: the state of the previous request, which most requests of a user repeat.
    """

    version: Version | None
    encoded: EncodedUser
    stored: Window | Stream
    mark: Mark
    seen: Rows
    written: Version | None
    stage: tuple[Any, Any] | None = None
    asked: AskedState | None = None

    @property
    def nbytes(self) -> int:
        stage = () if self.stage is None else self.stage[1]
        of_stage = sum(getattr(part, "nbytes", 0) for part in stage)
        return ENTRY_BYTES + self.stored.nbytes + self.seen.nbytes + of_stage


class EntryCache:
    """Entries by user, of which the least recently used leave when their bytes exceed a limit.

    Safe to use from several threads.

    Args:
        memory: bytes of all entries, about.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._entries: OrderedDict[int | str | None, Entry] = OrderedDict()
        self._sizes: dict[int | str | None, int] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, user: int | str | None) -> Entry | None:
        """The entry of a user; None: the entry that all unknown users share."""
        with self._lock:
            return self._entries.get(user)

    def put(self, user: int | str | None, entry: Entry) -> None:
        """Add an entry, or mark it as used just now."""
        with self._lock:
            self._drop(user)
            if entry.version is None and user is not None:
                user = None  # unknown users share one entry
                self._drop(user)
            self._entries[user] = entry
            self._bytes += entry.nbytes
            self._sizes[user] = entry.nbytes
            while self._bytes > self.memory and len(self._entries) > 1:
                self._drop(next(iter(self._entries)))

    def remove(self, user: int | str | None) -> None:
        """Remove the entry of a user, if there is one."""
        with self._lock:
            self._drop(user)

    def _drop(self, user: int | str | None) -> None:
        if self._entries.pop(user, None) is not None:
            self._bytes -= self._sizes.pop(user)

    def size(self) -> tuple[int, int]:
        """The number of entries, and about how many bytes they take."""
        with self._lock:
            return len(self._entries), self._bytes


def catalogue_of(index: Index) -> str:
    """A text that changes whenever the vector of an item in the index may have changed: the index
    was rebuilt, or an item was updated. Adding items does not change it."""
    return f"{index.base} {index.superseded}"
