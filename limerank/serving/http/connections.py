"""Connections: bounded in number, in the bytes before a complete request, and in time.

uvicorn parses requests and runs the application. This module bounds what uvicorn does not: the size
and number of headers, the time until they have arrived, pipelined requests, bytes that are not a
request, idle connections, connections of one address, and clients that do not receive their answer.
There is no timer per request: all connections are checked once a second.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from limerank.serving.http.admission import address_of
from limerank.serving.http.problems import Problem
from limerank.serving.http.settings import Settings
from limerank.serving.telemetry import Numbers

log = logging.getLogger("limerank.serving")
ACCEPTED_AT_ONCE = 64
"""New connections that are accepted before open ones are served again, at most."""
MOST_HEADERS = 100
HEADER_BYTES = 32 << 10
"""Bytes of a request's line and headers together, and between the chunks of a body, at most."""
URL_BYTES = 8 << 10
MOST_AHEAD = 16
"""Pipelined requests of a connection: sent before the first of them is answered, at most."""
LINGER_SECONDS = 5.0
"""Seconds for which the rest of a body is read after its request was answered, and in which a
client has to close its end of a closed connection."""
LOOK_SECONDS = 1.0
RESERVED_FILES = 128
"""Open files that are reserved for other purposes than connections."""


class Doors:
    """All connections of a server.

    Args:
        settings: limits.
        numbers: metrics: how many connections are open, and why some were closed.
        files: how many files the process may open.
    """

    def __init__(self, settings: Settings, numbers: Numbers, files: int) -> None:
        self.settings, self.numbers = settings, numbers
        self.most = max(16, min(settings.connections, files - RESERVED_FILES))
        self._proxies = [ipaddress.ip_network(proxy) for proxy in settings.proxies]
        self._open: dict[Connection, str] = {}
        self._of_address: dict[str, dict[Connection, None]] = {}
        """Both in the order of arrival."""
        self._look: asyncio.TimerHandle | None = None

    def enter(self, connection: Connection, host: str) -> bool:
        """Add a connection; where there are too many, another one is closed. False: all others are
        busy, and this one is refused."""
        if self._look is None:
            self._look = connection.loop.call_later(LOOK_SECONDS, self._looked, connection.loop)
        address = address_of(host)
        if len(self._open) >= self.most:
            fullest = max(self._of_address.values(), key=len)
            if not self._make_room(fullest) and not self._make_room(self._open):
                return False
        of_address = self._of_address.get(address, {})
        if len(of_address) >= self.settings.address_connections and (
            not self._is_proxy(address) and not self._make_room(of_address)
        ):
            return False
        self._open[connection] = address
        self._of_address.setdefault(address, {})[connection] = None
        self.numbers.connections.set(len(self._open))
        return True

    def leave(self, connection: Connection) -> None:
        """Remove a closed connection."""
        address = self._open.pop(connection, None)
        if address is None:
            return
        del self._of_address[address][connection]
        if not self._of_address[address]:
            del self._of_address[address]
        self.numbers.connections.set(len(self._open))

    def _is_proxy(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in proxy for proxy in self._proxies)

    def _make_room(self, among: Iterable[Connection]) -> bool:
        """Close the connection that the server has waited for longest: first one that never sent a
        request, last one whose body is being received."""
        found = next((one for one in among if not one.answered and not one.at_work), None)
        if found is None:
            waiting = [one for one in among if not one.is_computed]
            found = min(waiting, key=lambda one: (one.at_work, one.since), default=None)
        if found is None:
            return False
        found.drop("room for others")
        self.leave(found)
        return True

    def _looked(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self._open):
            connection.look(now)
        self._look = loop.call_later(LOOK_SECONDS, self._looked, loop) if self._open else None


class Connection(HttpToolsProtocol):
    """One connection. Each server has a subclass with its ``doors``, see :func:`protocol`."""

    doors: Doors

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.loop.time()
        """Since when the server waits for a request, its headers, or the end of its body."""
        self.answered = False
        self.partial = False
        self.late: float | None = None
        self._headers = self._bytes = self._quiet = 0
        self._progress = self._known_head = False
        self._data = b""
        self._refusal: Problem | None = None
        self._stays = self.doors.enter(self, self.client[0] if self.client else "?")
        if not self._stays:
            self._refuse(503, "too many connections are open; try again", "no room")
            self.send_400_response("")

    def connection_lost(self, exc: Exception | None) -> None:
        self.doors.leave(self)
        super().connection_lost(exc)

    @property
    def at_work(self) -> bool:
        """Whether a request's body is being received, or a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def is_computed(self) -> bool:
        """Whether a request has arrived and is being answered."""
        return self.at_work and not self.cycle.more_body

    def drop(self, reason: str) -> None:
        """Close at once."""
        self.doors.numbers.refused.labels(reason).inc()
        self.transport.abort()

    def look(self, now: float) -> None:
        """Close the connection where the client exceeds a time limit."""
        settings = self.doors.settings
        if self.transport.is_closing():
            self.late = self.late or now + LINGER_SECONDS
            if now > self.late:
                self.drop("not closed by the client")
        elif self.flow.write_paused:
            self.late = self.late or now + settings.write_seconds
            if now > self.late:
                self.drop("answer not taken")
        elif self.at_work:
            self.late = None
        else:
            self.late = None
            waited = now - self.since
            if self._refusal is not None:
                if waited > LINGER_SECONDS:
                    self.transport.close()
            elif self.partial:
                if self.cycle is not None and self.cycle.more_body:
                    if waited > LINGER_SECONDS:
                        self.drop("body after the answer")
                elif waited > settings.header_seconds:
                    self._refuse(
                        408,
                        f"the headers did not arrive within {settings.header_seconds:g} s",
                        "headers too slow",
                    )
                    self.send_400_response("")
            elif waited > (settings.idle_seconds if self.answered else settings.header_seconds):
                self.drop("idle")

    # Called by uvicorn's parser

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.transport.is_closing():
            return
        if not self.partial:
            self.partial = True
            if not self.at_work:
                self.since = self.loop.time()
        self._progress = False
        self._data = data
        super().data_received(data)
        # Parts of a header, of a chunk's head or of a trailer, which the parser buffers.
        self._quiet = 0 if self._progress else self._quiet + len(data)
        if self._quiet > HEADER_BYTES and self._refusal is None:
            self._refuse(431, f"the headers have more than {HEADER_BYTES:,} bytes", "large headers")
            self.send_400_response("")

    def _unsupported_upgrade_warning(self) -> None:
        """Answer a request that asks for another protocol, such as HTTP/2, like any other. The
        parser takes all bytes after its head for that protocol: a new parser continues there."""
        error = sys.exc_info()[1]
        assert isinstance(error, httptools.HttpParserUpgrade)
        rest = self._data[error.args[0] :]
        self.parser = httptools.HttpRequestParser(self)
        length = self._body_header()
        if length is not None:
            self._known_head = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b: %b\r\n\r\n" % length)
        if rest:
            self.data_received(rest)

    def _body_header(self) -> tuple[bytes, bytes] | None:
        """The header with the length of the latest request's body; None: it has no body."""
        for name, value in self.headers:
            if name == b"transfer-encoding" or (name == b"content-length" and int(value)):
                return name, value
        return None

    def on_message_begin(self) -> None:
        if self._known_head:
            return
        self._headers = self._bytes = 0
        self.partial = True
        if len(self.pipeline) >= MOST_AHEAD:
            self._stop(429, f"more than {MOST_AHEAD} requests were pipelined", "sent ahead")
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._known_head:
            return
        super().on_url(url)
        if len(self.url) > URL_BYTES:
            self._stop(414, f"the URL has more than {URL_BYTES:,} bytes", "long URL")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._known_head:
            return
        self._headers += 1
        self._bytes += len(name) + len(value) + 4
        if self._headers > MOST_HEADERS or self._bytes > HEADER_BYTES:
            self._stop(
                431,
                f"the request has more than {MOST_HEADERS} headers or {HEADER_BYTES:,} bytes of "
                "them",
                "large headers",
            )
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._progress = True
        if self._known_head:
            self._known_head = False
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progress = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and self._body_header() is not None:
            return  # its body follows
        self._progress, self.partial = True, False
        if self.cycle is not None:
            self.cycle.more_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.answered, self.since = True, self.loop.time()
        super().on_response_complete()

    # Refusals

    def _refuse(self, status: int, what: str, reason: str) -> None:
        self.doors.numbers.refused.labels(reason).inc()
        self._refusal = Problem(status, what, {"Retry-After": "1"} if status == 503 else None)

    def _stop(self, status: int, what: str, reason: str) -> None:
        """Refuse, and stop the parser: uvicorn then calls :meth:`send_400_response`."""
        self._refuse(status, what, reason)
        raise httptools.HttpParserError(what)

    def send_400_response(self, msg: str) -> None:
        """Send the refusal, and end the connection. Where a request is being answered, that answer
        is the last one."""
        if self._refusal is None:
            self._refuse(400, "this is not an HTTP request", "no HTTP")
        problem = self._refusal
        assert problem is not None
        self.pipeline.clear()
        if self.at_work:
            self.cycle.keep_alive = False
            if self.is_computed or self.cycle.response_started:
                return
            self.cycle.disconnected = True  # its body is broken: end the application's reading
            self.cycle.message_event.set()
            self.cycle.response_complete = True
        self.since = self.loop.time()
        body = problem.body()
        head = [
            f"HTTP/1.1 {problem.status} {problem.phrase}",
            "content-type: application/problem+json",
            f"content-length: {len(body)}",
            "connection: close",
            *(f"{name}: {value}" for name, value in problem.headers.items()),
        ]
        self.transport.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        if self._stays and self.transport.can_write_eof():
            # Bytes that still arrive are read and discarded for a while: closing a connection with
            # unread bytes would discard the answer, too.
            self.transport.write_eof()
        else:
            self.transport.close()


class Acceptor:
    """Accepts new connections in small numbers, so that open connections are served in between,
    however many arrive. The event loop's own server accepts all at once.

    Args:
        listening: a socket that is bound, listening and not blocking.
        made: creates the protocol of a connection.
    """

    def __init__(self, listening: socket.socket, made: Callable[[], asyncio.Protocol]) -> None:
        self._listening, self._made = listening, made
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._begin()

    def stop(self) -> None:
        """Accept no more."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listening)

    def _begin(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening, self._some)

    def _some(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                taken, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no files or no memory are left
                log.error("no connection can be accepted: %s", error.strerror)
                self._loop.remove_reader(self._listening)
                self._pause = self._loop.call_later(LOOK_SECONDS, self._begin)
                return
            taken.setblocking(False)
            if taken.family != getattr(socket, "AF_UNIX", None):
                taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._connect(taken))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, taken: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._made, taken)
        except OSError:  # it is closed already
            taken.close()


def protocol(doors: Doors) -> type[asyncio.Protocol]:
    """The protocol of a server's connections."""
    made: dict[str, Any] = {"doors": doors}
    return type("Connection", (Connection,), made)
