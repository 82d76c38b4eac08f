"""Notices that another server has taken the place of a store's server.

A replica that is promoted may lack the latest changes. The next change then gets the number of one
that is lost, so that equal numbers no longer mean equal contents: a state in memory would seem to
be up to date, and an index would seem to have all live items. Therefore a new server begins a new
*epoch*: no version in memory equals one of the store any more, and users are read again.

Servers of Valkey and Redis have a replication id, which changes with a promotion and with a start.
Each connection asks for it before its first command. In a cluster, the map of its servers shows
that a former replica owns slots.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from limerank.serving.stores.contract import Version

T = TypeVar("T")
TRIES = 5
"""Times that a read is done again because the server changed meanwhile."""
NONE = b"0" * 40
"""The second replication id of a server that was not promoted since its start."""


class Lineage(NamedTuple):
    """The replication id of a server, and whether it was promoted since its start."""

    id: bytes
    promoted: bool


class Successions:
    """The epochs of a store in this process.

    Attributes:
        epoch: 0 at first, and another random number with each new server.
        latest: the server of the latest connection; None where it does not say.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.epoch = 0
        self.latest: Lineage | None = None

    def connected(self, connection: Any) -> None:
        """Prepare a new connection of the client library, and ask its server who it is. A server
        that does not say it (INFO is forbidden) counts as the same one."""
        from valkey.exceptions import ResponseError

        connection.on_connect()
        connection.send_command("INFO", "replication")
        try:
            text = connection.read_response()
        except ResponseError:
            return
        text = text.encode() if isinstance(text, str) else bytes(text)
        found = dict(re.findall(rb"(master_replid2?):(\w+)", text))
        if b"master_replid" in found:
            self.saw(Lineage(found[b"master_replid"], found.get(b"master_replid2", NONE) != NONE))

    def saw(self, server: Lineage) -> None:
        """Note the server of a connection."""
        with self._lock:
            if self.latest is not None and self.latest.id != server.id:
                self.epoch = secrets.randbits(62)
            self.latest = server

    def begin(self) -> None:
        """Begin a new epoch."""
        self.epoch = secrets.randbits(62)

    def read(self, of: Callable[[int], T]) -> T:
        """What ``of`` returns for the present epoch, all of whose reads were of one server."""
        for _ in range(TRIES):
            epoch = self.epoch
            found = of(epoch)
            if epoch == self.epoch:
                return found
        return of(secrets.randbits(62))  # of no epoch: nothing in memory equals it


def in_epoch(version: Version, epoch: int) -> Version:
    """A stored version as this process sees it, and the reverse: another one in each epoch."""
    return Version(version.born ^ epoch, version.changes)
