"""The server of a Valkey event store: its address, connections, settings and errors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from limerank.errors import SpecError, StoreError
from limerank.serving.stores.contract import trouble

SECONDS = 5.0
"""Seconds that an answer of the server may take."""
CONNECTIONS = 64
"""Connections to the server, at most; more threads wait for one, as long as for an answer."""
DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
"""Settings with which a server keeps all that it has acknowledged."""
_database = re.compile(r"(?:/[0-9]*)?")
"""The path of an address; the client library takes any other text for database 0."""


def redacted(url: str) -> str:
    """An address without its secrets: ``valkey://user:***@host:6379/0``.

    All text before the last ``@`` counts as a user and a password, even in a text that is not an
    address; of the options after ``?`` only the number of the database is shown.
    """
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    before, at, position = rest.rpartition("@")
    user, colon, _ = before.partition(":")
    hidden = f"{user}:***" if colon else "***" if at else ""  # a lone word may be a password
    position, question, query = position.partition("#")[0].partition("?")
    host, slash, path = position.partition("/")
    name, port_mark, port = host.rpartition(":")
    if port_mark and not port.isdecimal() and not port.endswith("]"):
        host = f"{name}:***"
    options = [option.partition("=")[::2] for option in query.split("&")]
    shown = "&".join(
        f"{name}={value if name == 'db' else '***'}" if value else "***" for name, value in options
    )
    return f"{scheme}{mark}{hidden}{at}{host}{slash}{path}{question}{shown if question else ''}"


class ValkeyServer:
    """A connection pool to one server.

    Args:
        url: the address.

    Attributes:
        address: the address without its secrets.
        client: the client of the library.
        closed: whether the store was closed.

    Raises:
        SpecError: the client library is missing, or the URL is not an address.
    """

    def __init__(self, url: str) -> None:
        try:
            import valkey
        except ModuleNotFoundError:
            raise SpecError(
                "a Valkey store needs the valkey package: pip install 'limerank[valkey]'"
            ) from None
        self.address, self.closed = redacted(url), False
        self._valkey: Any = valkey
        for scheme in ("redis", "rediss"):
            if url.startswith(f"{scheme}://"):
                url = url.replace("redis", "valkey", 1)
        self._pool: Any = None
        pools: Any = valkey.BlockingConnectionPool
        # Error texts may contain a part of a password.
        with contextlib.suppress(ValueError, TypeError):
            pool = pools.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=SECONDS,
                socket_timeout=SECONDS,
                socket_connect_timeout=SECONDS,
            )
            pool.connection_class(**pool.connection_kwargs)  # refuses unknown options
            if url.startswith("unix:") or _database.fullmatch(urlsplit(url).path):
                self._pool = pool
        if self._pool is None:
            raise SpecError(
                f"{self.address} is not the address of a store; expected one such as "
                "valkey://USER:PASSWORD@HOST:6379/0, with the password percent-encoded ('/' is %2F)"
            )
        self.client: Any = valkey.Valkey(connection_pool=self._pool)

    def disconnect(self) -> None:
        """Close all connections."""
        self._pool.disconnect()

    def lossy_settings(self) -> list[str]:
        """How the server's settings differ from :data:`DURABLE`, a line each; empty: not at all."""
        pipeline = self.client.pipeline(transaction=False)
        for name in DURABLE:
            pipeline.config_get(name)
        try:
            found = {name: value for answer in pipeline.execute() for name, value in answer.items()}
        except self._valkey.ResponseError as error:
            raise trouble(
                StoreError,
                self.address,
                "does not show its settings; make sure that it has "
                + ", ".join(f"{name} {value}" for name, value in DURABLE.items())
                + ", and open the store with durable=False",
                error,
            ) from None
        wrong = [name for name, value in DURABLE.items() if found.get(name) != value]
        if not wrong:
            return []
        has = ", ".join(f"{name} {found.get(name)}" for name in wrong)
        return [f"it has {has}, expected {', '.join(f'{name} {DURABLE[name]}' for name in wrong)}"]

    @contextlib.contextmanager
    def as_store_errors(self, *, opening: bool = False) -> Iterator[None]:
        """Raise errors of the client library as StoreError."""
        if self.closed:
            raise trouble(StoreError, self.address, "is closed; open it again")
        errors = self._valkey.exceptions
        try:
            yield
        except (errors.ValkeyError, OSError) as error:
            message = str(error)
            if (
                isinstance(error, errors.OutOfMemoryError)
                or "OOM" in message
                or "MISCONF" in message
            ):
                text = (
                    "is full now: nothing was written, and all acknowledged events are stored; "
                    "make room, and try again"
                )
            elif "No connection available" in message:
                text = (
                    f"is too busy now: {CONNECTIONS} requests are waiting for its answers; try "
                    "again later"
                )
            elif isinstance(error, (errors.AuthenticationError, errors.NoPermissionError)):
                text = "does not let this process in; check the user and password of its address"
            elif isinstance(error, (errors.ConnectionError, errors.TimeoutError, OSError)):
                text = "cannot be reached now: start it, or try again later"
            else:
                text = "refused a command; check the server"
            raise trouble(StoreError, self.address, text, error, opening=opening) from error
