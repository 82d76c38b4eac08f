"""Asking the servers of all shards at once, within a time limit.

All questions are sent before the first answer is read, so the shards compute at the same time and
no further threads are needed. A thread of the server uses one connection per shard; idle ones are
used again.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from limerank.errors import ShardError, SpecError
from limerank.serving.shards.wire import MEDIA, MOST_ANSWER, PATH, Answer

PAUSE_SECONDS = 1.0
"""After a shard did not answer in time, further requests do not wait for it for so long."""
PIECE = 1 << 16
"""Bytes of an answer that are read at once."""


class Shards:
    """The servers of the shards of an index.

    Args:
        urls: of the servers, that of shard 1 first.
        key: with read access to them; empty: they take none.
        seconds: time limit of an answer.
        observe: called with the shard's number, the outcome and the seconds of each question.

    Raises:
        SpecError: a URL is not one.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        key: str = "",
        seconds: float = 2.0,
        observe: Callable[[int, str, float], None] = lambda number, outcome, seconds: None,
    ) -> None:
        self.links = [_Link(number, len(urls), url, key) for number, url in enumerate(urls, 1)]
        self.seconds, self._observe = seconds, observe

    def __len__(self) -> int:
        return len(self.links)

    @property
    def down(self) -> list[int]:
        """Numbers of the shards that failed to answer the last question they were asked."""
        return [link.number for link in self.links if not link.up]

    def ask(self, questions: Sequence[bytes | None]) -> list[Answer | ShardError | None]:
        """Ask all shards at once.

        Args:
            questions: to each shard; None: it is not asked.

        Returns:
            The answer of each shard, or why it has none.
        """
        started = time.monotonic()
        until = started + self.seconds
        sent: list[_Sent | ShardError | None] = []
        for link, question in zip(self.links, questions, strict=True):
            try:
                sent.append(None if question is None else link.send(question, until))
            except ShardError as error:
                sent.append(error)
        found: list[Answer | ShardError | None] = []
        for link, one in zip(self.links, sent, strict=True):
            if isinstance(one, _Sent):
                try:
                    answer = link.receive(one, until)
                    self._observe(link.number, "answered", time.monotonic() - started)
                    found.append(answer)
                    continue
                except ShardError as error:
                    one = error
            if one is not None:
                outcome = "skipped" if isinstance(one, _SkippedError) else "failed"
                self._observe(link.number, outcome, time.monotonic() - started)
            found.append(one)
        return found

    def close(self) -> None:
        """Close idle connections."""
        for link in self.links:
            link.close()


class _SkippedError(ShardError):
    """A shard was not asked, since it hung shortly before."""


class _Sent(NamedTuple):
    """A question under way; ``reused``: over a connection that was idle before."""

    connection: http.client.HTTPConnection
    question: bytes
    reused: bool


class _Link:
    """Connections to the server of one shard."""

    def __init__(self, number: int, of: int, url: str, key: str) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise SpecError(
                f"the URL of shard {number} is {url!r:.200}, expected such as http://shard-1:8000"
            )
        self.number, self.up = number, True
        self._what, self._url = f"shard {number} of {of}", url
        self._host, self._port, self._secure = parts.hostname, port, parts.scheme == "https"
        self._path = parts.path.rstrip("/") + PATH
        self._headers = {"Content-Type": MEDIA}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._paused = 0.0

    def send(self, question: bytes, until: float, *, fresh: bool = False) -> _Sent:
        """Send a question.

        Raises:
            ShardError: the server cannot be reached.
        """
        with self._lock:
            if time.monotonic() < self._paused:
                raise _SkippedError(f"{self._what} did not answer in time shortly before")
            connection = None if fresh or not self._idle else self._idle.pop()
        reused = connection is not None
        try:
            if connection is None:
                of = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
                connection = of(self._host, self._port, timeout=_left(until))
                connection.connect()
            self._limit(connection, until)
            connection.request("POST", self._path, question, self._headers)
        except (OSError, http.client.HTTPException) as error:
            if connection is not None:
                connection.close()
            if reused:
                return self.send(question, until, fresh=True)
            raise self._failed(error) from None
        return _Sent(connection, question, reused)

    def receive(self, sent: _Sent, until: float) -> Answer:
        """The answer to a question.

        Raises:
            ShardError: the server does not answer in time, or not with an answer.
        """
        connection = sent.connection
        try:
            self._limit(connection, until)
            response = connection.getresponse()
            data = bytearray()
            while piece := response.read1(PIECE):
                data += piece
                if len(data) > MOST_ANSWER:
                    raise http.client.HTTPException(f"more than {MOST_ANSWER:,} bytes")
                self._limit(connection, until)
            if response.length:
                raise http.client.IncompleteRead(bytes(data[:0]), response.length)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if sent.reused and not isinstance(error, TimeoutError):
                # It had been closed while it was idle.
                return self.receive(self.send(sent.question, until, fresh=True), until)
            raise self._failed(error) from None
        if response.will_close:
            connection.close()
        else:
            with self._lock:
                self._idle.append(connection)
        if response.status != http.client.OK:
            text = bytes(data[:1000]).decode("utf-8", "replace")
            raise self._failed(None, f"answered {response.status}", text)
        try:
            answer = Answer.from_bytes(bytes(data))
        except SpecError as error:
            raise self._failed(None, "sent another answer than expected", str(error)) from None
        self.up = True
        return answer

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _limit(self, connection: http.client.HTTPConnection, until: float) -> None:
        if connection.sock is not None:
            connection.sock.settimeout(_left(until))

    def _failed(self, error: Exception | None, what: str = "", more: str = "") -> ShardError:
        self.up = False
        if isinstance(error, TimeoutError):
            what = "did not answer in time"
            with self._lock:
                self._paused = time.monotonic() + PAUSE_SECONDS
        elif error is not None:
            what, more = "cannot be reached", str(error) or type(error).__name__
        text = f"{self._what} {what}"
        return ShardError(
            f"{text}; try again, or ask for a partial answer",
            detail=f"{text} ({self._url}{f': {more}' if more else ''})",
        )


def _left(until: float) -> float:
    """Seconds that are left; at least a millisecond, since 0 would not wait at all."""
    return max(0.001, until - time.monotonic())
