"""Connections: bounded in number, in what they may send before a request stands, and in time.

uvicorn parses requests and runs the application. What it leaves unbounded is bounded here: the size
and number of headers, the time until they have arrived, requests sent ahead, bytes that are no
request, connections that wait, connections of one address, and clients that do not take their
answer. Nothing is set up per request: one look a second goes over all connections.
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
"""New connections that are taken before those that are open have their turn."""
MOST_HEADERS = 100
HEADER_BYTES = 32 << 10
"""Of a request's line and headers together; also of what stands between the parts of a body."""
URL_BYTES = 8 << 10
MOST_AHEAD = 16
"""Requests that a connection may send before the first of them is answered."""
LINGER_SECONDS = 5.0
"""For which what is left of a body is still read after its request was answered, and in which a
connection that was closed has to be gone."""
LOOK_SECONDS = 1.0
RESERVED_FILES = 128
"""Files that the process may open for other things than connections."""


class Doors:
    """All connections of a server.

    Args:
        settings: their limits.
        numbers: how many there are, and why some were closed.
        files: that the process may open.
    """

    def __init__(self, settings: Settings, numbers: Numbers, files: int) -> None:
        self.settings, self.numbers = settings, numbers
        self.most = max(16, min(settings.connections, files - RESERVED_FILES))
        self._proxies = [ipaddress.ip_network(proxy) for proxy in settings.proxies]
        self._open: dict[Connection, str] = {}
        self._of_address: dict[str, dict[Connection, None]] = {}
        """Both in the order in which they came."""
        self._look: asyncio.TimerHandle | None = None

    def enter(self, connection: Connection, host: str) -> bool:
        """A new connection; another one is closed for it where there are too many. False: all are
        at work, and this one finds no room."""
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
        """A connection that is closed."""
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
        """Close the connection that has kept the server waiting longest: first one that never had
        a request, last one whose body is on its way."""
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
    """One connection. A subclass for each server has its ``doors``, see :func:`protocol`."""

    doors: Doors

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.loop.time()
        """Since when it is waited for: a request, its headers, or the end of a body."""
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
        """Whether a request is being read past its headers, or answered."""
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
        """Whether it is late with what is waited for."""
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

    # What uvicorn's parser tells

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
        # Parts of a header, of a chunk's head or of a trailer: the parser holds them.
        self._quiet = 0 if self._progress else self._quiet + len(data)
        if self._quiet > HEADER_BYTES and self._refusal is None:
            self._refuse(431, f"the headers have more than {HEADER_BYTES:,} bytes", "large headers")
            self.send_400_response("")

    def _unsupported_upgrade_warning(self) -> None:
        """A request that asks for another protocol, such as HTTP/2, is answered as any other. The
        parser takes all behind its head for that protocol: another parser goes on there."""
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
        """The header that says how long the body of the latest request is; None: it has none."""
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
            self._stop(429, f"more than {MOST_AHEAD} requests were sent ahead", "sent ahead")
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
            return  # its body is still to come
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
        """Refuse, and end the parser's work: uvicorn then sends what stands below."""
        self._refuse(status, what, reason)
        raise httptools.HttpParserError(what)

    def send_400_response(self, msg: str) -> None:
        """The refusal as an answer, and no more of this connection. Where a request is being
        answered that answer is the last one."""
        if self._refusal is None:
            self._refuse(400, "this is no HTTP request", "no HTTP")
        problem = self._refusal
        assert problem is not None
        self.pipeline.clear()
        if self.at_work:
            self.cycle.keep_alive = False
            if self.is_computed or self.cycle.response_started:
                return
            self.cycle.disconnected = True  # its body is broken: the application is told so
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
            # What is still on its way is read and thrown away for a while: a connection that is
            # closed over unread bytes takes the answer along.
            self.transport.write_eof()
        else:
            self.transport.close()


class Acceptor:
    """Takes new connections from a listening socket, some at a time: however fast they come, those
    that are open have their turn in between. An event loop's own server takes all that there are.

    Args:
        listening: bound, listening and not blocking.
        made: makes the protocol of a connection.
    """

    def __init__(self, listening: socket.socket, made: Callable[[], asyncio.Protocol]) -> None:
        self._listening, self._made = listening, made
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._begin()

    def stop(self) -> None:
        """Take no more."""
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
            except OSError as error:  # no files or memory are left
                log.error("no connection can be taken: %s", error.strerror)
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
