"""Write records to the log: a producer that acknowledges what all in-sync brokers have."""

from __future__ import annotations

import logging
import threading
import time as clock
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from limerank.errors import DataError, SpecError, StoreError
from limerank.serving.kafka.address import LogAddress
from limerank.serving.kafka.client import connected, library, trouble
from limerank.serving.kafka.records import Record

log = logging.getLogger("limerank.serving.kafka")
SECONDS = 5.0
"""Seconds in which the brokers have to acknowledge a record, unless others are chosen."""
WAITING, WAITING_KIB = 100_000, 64 << 10
"""Records, and their size, that wait for the brokers, at most."""
RECORD_BYTES = 1_000_000
"""Bytes of one record, at most, as brokers have it by default (``message.max.bytes``)."""
LINGER_MS = 2
"""Milliseconds that a record waits for others, which are sent together."""
POLL_SECONDS, CLOSE_SECONDS = 0.1, 2.0


class EventLog:
    """A topic of a Kafka cluster, for writing. Safe to use from several threads.

    A record is acknowledged by all in-sync replicas (``acks=all``), and retries of the client
    neither double nor reorder the records of one key (``enable.idempotence``). A cluster
    decides how many replicas that are: ``min.insync.replicas``.

    Args:
        address: the brokers and the topic.
        seconds: in which a record has to be acknowledged; else the write fails.

    Attributes:
        observe: called with the outcome ("acknowledged" or "failed"), the number of records and
            the seconds of each write.

    Raises:
        SpecError: the client library is missing, a setting of the address is wrong, or the brokers
            answer that they have no such topic.
    """

    def __init__(self, address: LogAddress, *, seconds: float = SECONDS) -> None:
        self.address, self.seconds = address, seconds
        self.observe: Callable[[str, int, float], None] | None = None
        self._library = library()
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._down, self._fatal = "", False
        self._producer = self._made()
        self._thread = threading.Thread(target=self._poll, name="limerank-event-log", daemon=True)
        self._thread.start()
        self._check_topic()

    def _made(self) -> Any:
        milliseconds = round(1000 * self.seconds)
        return connected(
            self._library.Producer,
            self.address,
            {
                "message.max.bytes": RECORD_BYTES,
                "linger.ms": LINGER_MS,
                "compression.type": "lz4",
                "queue.buffering.max.messages": WAITING,
                "queue.buffering.max.kbytes": WAITING_KIB,
                # Java's clients choose the same partition for a key.
                "partitioner": "murmur2_random",
            },
            {
                "acks": "all",
                "enable.idempotence": True,
                "delivery.timeout.ms": milliseconds,
            },
            self._noticed,
        )

    def _check_topic(self) -> None:
        """Refuse a topic that the brokers do not have. Where none answers, rankings go on, and
        writes fail until one does."""
        try:
            found = self._producer.list_topics(self.address.topic, timeout=self.seconds)
        except self._library.KafkaException as error:
            self._down = str(error.args[0].str())
            log.error(
                "the event log %s cannot be reached (%s): writes are answered with 503 until it is",
                self.address.shown, self._down,
            )  # fmt: skip
            return
        topic = found.topics[self.address.topic]
        if topic.error is not None and topic.error.code() in (
            self._library.KafkaError.UNKNOWN_TOPIC_OR_PART,
            self._library.KafkaError.TOPIC_AUTHORIZATION_FAILED,
        ):
            self.close()
            raise SpecError(
                f"the event log {self.address.shown}: {topic.error.str()}; create the topic with "
                "cleanup.policy=delete, and let this user write to it"
            )

    def write(self, records: Sequence[Record]) -> Future[None]:
        """Write records without waiting; the future is done when the brokers acknowledged all.

        If this or the future raises, the records may or may not be in the log: writing them again
        is safe, since readers count what has the same id once.

        Raises:
            DataError: a record is larger than brokers accept; records before it may be written.
            StoreError: too many records wait for the brokers, or (of the future) the brokers did
                not acknowledge in time.
        """
        result: Future[None] = Future()
        result.set_running_or_notify_cancel()
        batch = _Batch(len(records), result, self._failed, self._done)
        if not records:
            result.set_result(None)
            return result
        if self._closed.is_set():
            raise trouble(self.address, "is closed")
        with self._lock:  # one batch after the other: a user's changes in the order of the calls
            producer = self._producer
            for position, record in enumerate(records):
                try:
                    producer.produce(
                        self.address.topic,
                        key=record.key,
                        value=record.value,
                        on_delivery=batch.delivered,
                    )
                except BufferError:
                    batch.cut(len(records) - position)
                    raise trouble(
                        self.address,
                        f"is too busy now: {WAITING:,} changes, or {WAITING_KIB >> 10} MiB, are "
                        "waiting for its acknowledgement; try again later",
                    ) from None
                except self._library.KafkaException as error:
                    batch.cut(len(records) - position)
                    raise self._refused(error.args[0], record) from None
        return result

    def _refused(self, error: Any, record: Record) -> Exception:
        """The error of a record that the client does not take."""
        if error.code() == self._library.KafkaError.MSG_SIZE_TOO_LARGE:
            most = int(self.address.options.get("message.max.bytes", RECORD_BYTES))
            return DataError(
                f"a change has {len(record.value):,} bytes in the event log, which takes {most:,} "
                "at most; send "
                "fewer or shorter values"
            )
        if error.fatal() or error.code() == self._library.KafkaError._FATAL:
            self._fatal = True  # the client refuses everything from now on
        return trouble(self.address, "refused a change; try again", error.str())

    def _failed(self, error: Any) -> StoreError:
        """The error of records that were not acknowledged."""
        self._down = error.str()
        return trouble(
            self.address,
            f"did not acknowledge within {self.seconds:g} s: nothing that was acknowledged is "
            "lost; send it again later, it counts once",
            error.str(),
        )

    def _done(self, failed: bool, count: int, seconds: float) -> None:
        if not failed:
            self._down = ""
        if self.observe is not None:
            self.observe("failed" if failed else "acknowledged", count, seconds)

    def _noticed(self, error: Any) -> None:
        """An error of the client that concerns no record; it tries again by itself."""
        if error.code() == self._library.KafkaError._ALL_BROKERS_DOWN or error.fatal():
            self._down = error.str()
        log.warning("the event log %s: %s", self.address.shown, error.str())

    def _poll(self) -> None:
        while not self._closed.is_set():
            if self._fatal:
                self._replace()
            self._producer.poll(POLL_SECONDS)

    def _replace(self) -> None:
        """Take a new client in place of one that failed, whose records end with an error."""
        log.error("the client of the event log failed (%s); a new one takes its place", self._down)
        with self._lock:
            failed, self._producer, self._fatal = self._producer, self._made(), False
        failed.purge()
        failed.flush(POLL_SECONDS)

    def check(self) -> list[str]:
        """Problems that an operator has to solve, a line each."""
        if not self._down:
            return []
        return [
            f"the event log does not acknowledge ({self._down}), and writes are answered with "
            "503; check its brokers and the address of --log"
        ]

    def close(self) -> None:
        """Wait shortly for what was written, and close."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            left = self._producer.flush(min(self.seconds, CLOSE_SECONDS))
            if left:
                self._producer.purge()
                self._producer.flush(POLL_SECONDS)  # their futures end with an error


class _Batch:
    """The records of one call of :meth:`EventLog.write`, which are acknowledged together."""

    def __init__(
        self,
        count: int,
        result: Future[None],
        failed: Callable[[Any], StoreError],
        done: Callable[[bool, int, float], None],
    ) -> None:
        self._count, self._left, self._result = count, count, result
        self._failed, self._done = failed, done
        self._error: Any = None
        self._cut, self._lock = False, threading.Lock()
        self._started = clock.perf_counter()

    def cut(self, count: int) -> None:
        """The last records are not written, and the caller raises."""
        with self._lock:
            self._cut = True
            self._left -= count

    def delivered(self, error: Any, message: Any) -> None:
        """One record was acknowledged, or was not in time."""
        with self._lock:
            self._left -= 1
            self._error = self._error or error
            ended = self._left == 0 and not self._cut
        if not ended:
            return
        self._done(self._error is not None, self._count, clock.perf_counter() - self._started)
        if self._error is not None:
            self._result.set_exception(self._failed(self._error))
        else:
            self._result.set_result(None)
