"""The server of a Valkey event store: its address, connections, scripts, settings and errors."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from limerank.errors import SpecError, StoreError
from limerank.serving.stores.contract import trouble
from limerank.serving.stores.successions import Lineage, Successions

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
    hosts, slash, path = position.partition("/")
    host = ",".join(map(_without_secret, hosts.split(",")))
    options = [option.partition("=")[::2] for option in query.split("&")]
    shown = "&".join(
        f"{name}={value if name == 'db' else '***'}" if value else "***" for name, value in options
    )
    return f"{scheme}{mark}{hidden}{at}{host}{slash}{path}{question}{shown if question else ''}"


def _without_secret(host: str) -> str:
    """HOST:PORT, without a port that is no number: it may be a password."""
    name, mark, port = host.rpartition(":")
    return f"{name}:***" if mark and not port.isdecimal() and not port.endswith("]") else host


class Call(NamedTuple):
    """One command.

    Attributes:
        key: a key that it uses; in a cluster, the server that has it executes the command.
        words: the command and its arguments.
        script: the text of the script that an EVALSHA runs.
    """

    key: str
    words: tuple[Any, ...]
    script: str | None = None


def script_call(script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Call:
    """A call of a script; the server gets its text when it lacks it."""
    sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    return Call(keys[0], ("EVALSHA", sha, len(keys), *keys, *arguments), script)


def command(name: str, key: str, *arguments: Any) -> Call:
    """A call of a command whose first argument is its key."""
    return Call(key, (name, key, *arguments))


def client_of(library: Any, url: str, connected: Callable[[Any], None] | None = None) -> Any:
    """A client of one server with its own connections; None where the URL is not an address.
    ``connected`` prepares each connection, in place of the library."""
    # Error texts may contain a part of a password.
    with contextlib.suppress(ValueError, TypeError):
        pool = library.BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=SECONDS,
            socket_timeout=SECONDS,
            socket_connect_timeout=SECONDS,
            valkey_connect_func=connected,
        )
        pool.connection_class(**pool.connection_kwargs)  # refuses unknown options
        if url.startswith("unix:") or _database.fullmatch(urlsplit(url).path):
            return library.Valkey(connection_pool=pool)
    return None


def exchange(client: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """The replies of one server to commands that are sent together; errors of commands are replies,
    too."""
    if len(commands) == 1:
        try:
            return [client.execute_command(*commands[0])]
        except response_errors() as error:
            return [error]
    pipeline = client.pipeline(transaction=False)
    for words in commands:
        pipeline.execute_command(*words)
    found: list[Any] = pipeline.execute(raise_on_error=False)
    return found


def run_on(client: Any, calls: Sequence[Call]) -> list[Any]:
    """The replies of one server to calls, which gets the scripts that it lacks; errors are replies,
    too."""
    replies = exchange(client, [call.words for call in calls])
    lacking = [at for at, reply in enumerate(replies) if is_without_script(reply)]
    if lacking:
        texts = {calls[at].script for at in lacking}
        exchange(client, [("SCRIPT LOAD", text) for text in sorted(filter(None, texts))])
        again = exchange(client, [calls[at].words for at in lacking])
        for at, reply in zip(lacking, again, strict=True):
            replies[at] = reply
    return replies


def response_errors() -> Any:
    """The class of errors that a server replies with."""
    from valkey.exceptions import ResponseError

    return ResponseError


def is_without_script(reply: object) -> bool:
    """Whether a server replied that it does not know a script."""
    from valkey.exceptions import NoScriptError

    return isinstance(reply, NoScriptError)


class Servers:
    """The servers of a store.

    Args:
        url: the address.

    Attributes:
        address: the address without its secrets.
        closed: whether the store was closed.
        successions: notices servers that take the place of others.

    Raises:
        SpecError: the client library is missing, or the URL is not an address.
    """

    EXAMPLE = "valkey://USER:PASSWORD@HOST:6379/0"

    def __init__(self, url: str) -> None:
        try:
            import valkey
        except ModuleNotFoundError:
            raise SpecError(
                "a Valkey store needs the valkey package: pip install 'limerank[valkey]'"
            ) from None
        self.address, self.closed = redacted(url), False
        self.successions = Successions()
        self.library: Any = valkey
        for scheme in ("redis", "rediss"):
            if url.startswith((f"{scheme}://", f"{scheme}+")):
                url = url.replace("redis", "valkey", 1)
        self.url = url

    def send(self, calls: Sequence[Call]) -> list[Any]:
        """The replies to calls, in their order.

        Raises:
            valkey.exceptions.ValkeyError: the first error that a call was replied with, or that a
                server cannot be reached.
        """
        raise NotImplementedError

    def clients(self) -> list[Any]:
        """A client of each server."""
        raise NotImplementedError

    def reachable(self) -> list[Any]:
        """A client of each server that answers; an error of the library where none does."""
        return self.clients()

    def lineage(self, key: str) -> Lineage | None:
        """The server that has a key; None where it does not say."""
        raise NotImplementedError

    def problems(self) -> list[str]:
        """What an operator has to correct besides settings, a line each."""
        return []

    def one(self, call: Call) -> Any:
        """The reply to one call; see :meth:`send`."""
        return self.send([call])[0]

    def script(self, script: str, keys: Sequence[str], arguments: Sequence[Any] = ()) -> Any:
        """The reply to a script; see :meth:`send`."""
        return self.one(script_call(script, keys, arguments))

    def command(self, name: str, key: str, *arguments: Any) -> Any:
        """The reply to a command whose first argument is its key; see :meth:`send`."""
        return self.one(command(name, key, *arguments))

    def disconnect(self) -> None:
        """Close all connections."""
        for client in self.clients():
            client.connection_pool.disconnect()

    def not_an_address(self) -> SpecError:
        """The error for an address that is none."""
        return SpecError(
            f"{self.address} is not the address of a store; expected one such as {self.EXAMPLE}, "
            "with the password percent-encoded ('/' is %2F)"
        )

    def lossy_settings(self) -> list[str]:
        """How the servers' settings differ from :data:`DURABLE`, a line each; empty: not at all."""
        found = [self._lossy_settings(client) for client in self.reachable()]
        return list(dict.fromkeys(line for line in found if line))

    def _lossy_settings(self, client: Any) -> str:
        replies = exchange(client, [("CONFIG GET", name) for name in DURABLE])
        for reply in replies:
            if isinstance(reply, Exception):
                raise trouble(
                    StoreError,
                    self.address,
                    "does not show its settings; make sure that it has "
                    + ", ".join(f"{name} {value}" for name, value in DURABLE.items())
                    + ", and open the store with durable=False",
                    reply,
                )
        found = {name: value for answer in replies for name, value in answer.items()}
        wrong = [name for name, value in DURABLE.items() if found.get(name) != value]
        if not wrong:
            return ""
        has = ", ".join(f"{name} {found.get(name)}" for name in wrong)
        return f"it has {has}, expected {', '.join(f'{name} {DURABLE[name]}' for name in wrong)}"

    @contextlib.contextmanager
    def as_store_errors(self, *, opening: bool = False) -> Iterator[None]:
        """Raise errors of the client library as StoreError."""
        if self.closed:
            raise trouble(StoreError, self.address, "is closed; open it again")
        errors = self.library.exceptions
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
            elif message.startswith(("MOVED", "CROSSSLOT")):
                text = "is a server of a cluster; write its address as valkey+cluster://HOST:PORT"
            else:
                text = "refused a command; check the server"
            raise trouble(StoreError, self.address, text, error, opening=opening) from error


class ValkeyServer(Servers):
    """One server."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.client: Any = client_of(self.library, self.url, self.successions.connected)
        if self.client is None:
            raise self.not_an_address()

    def send(self, calls: Sequence[Call]) -> list[Any]:
        replies = run_on(self.client, calls) if calls else []
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def lineage(self, key: str) -> Lineage | None:
        return self.successions.latest

    def clients(self) -> list[Any]:
        return [self.client]
