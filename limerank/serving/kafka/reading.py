"""Read the log: partitions, positions in them, and records from a position on.

A *position* is the offset of the next record of a partition. Partitions are assigned explicitly and
not by the brokers: ``--part K/N`` names those of a process, which never move to another one.
"""

from __future__ import annotations

import logging
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from limerank.errors import SpecError, StoreError
from limerank.parts import Part
from limerank.serving.kafka.address import LogAddress
from limerank.serving.kafka.client import connected, library, trouble

log = logging.getLogger("limerank.serving.kafka")
SECONDS = 10.0
"""Seconds that the brokers have for an answer."""
BATCH = 1000
"""Records that are read together, at most."""
AT_ONCE_SECONDS = 0.005
"""Seconds in which records that were fetched already are read."""
QUEUED_KIB = 32 << 10
"""Size of the records that are fetched ahead, about."""
GROUP = "limerank"
"""Under this name the brokers store positions, unless another one is chosen."""


class Logged(NamedTuple):
    """A record as it is read.

    Attributes:
        partition, offset: where it is.
        time: when it was written, in milliseconds since 1970, by the clock of its writer or broker.
        key, value: its bytes.
    """

    partition: int
    offset: int
    time: int
    key: bytes | None
    value: bytes | None


class Committed(NamedTuple):
    """A position that the brokers store, and a text beside it."""

    position: int
    note: str


class LogReader:
    """A topic for reading. Not for several threads.

    Args:
        address: the brokers and the topic.
        group: the name under which positions are stored.
        seconds: that the brokers have for an answer.

    Raises:
        SpecError: the client library is missing, or a setting of the address is wrong.
    """

    def __init__(
        self, address: LogAddress, *, group: str = GROUP, seconds: float = SECONDS
    ) -> None:
        self.address, self.seconds = address, seconds
        self._library = library()
        self._last_error = ""
        self._ended: dict[int, int] = {}
        self._consumer = connected(
            self._library.Consumer,
            address,
            {"queued.max.messages.kbytes": QUEUED_KIB, "fetch.wait.max.ms": 100},
            {
                "group.id": group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
            },
            self._noticed,
        )

    def _noticed(self, error: Any) -> None:
        self._last_error = error.str()

    def _answer(self, ask: Any, *given: Any, **more: Any) -> Any:
        """The brokers' answer to a question.

        Raises:
            StoreError: they do not answer, or refuse.
        """
        try:
            return ask(*given, **more)
        except self._library.KafkaException as error:
            raise self._trouble(error.args[0].str()) from None

    def _trouble(self, cause: str) -> StoreError:
        reason = f"{cause}; {self._last_error}" if self._last_error else cause
        return trouble(
            self.address, "cannot be read now: check its brokers, or try again later", reason
        )

    def partitions(self, part: Part | None = None) -> list[int]:
        """The partitions of the topic, or those of part K of N: K - 1, K - 1 + N, ...

        Raises:
            SpecError: the topic does not exist, or the part has no partition.
        """
        found = self._answer(
            self._consumer.list_topics, self.address.topic, timeout=self.seconds
        ).topics[self.address.topic]
        all_ = sorted(found.partitions)
        if not all_:
            why = "" if found.error is None else f" ({found.error.str()})"
            raise SpecError(
                f"the event log {self.address.shown} has no such topic{why}; start a server with "
                "--log, or create the topic"
            )
        own = all_ if part is None else all_[part.number - 1 :: part.of]
        if not own:
            raise SpecError(
                f"part {part} has none of the {len(all_)} partitions of the topic; use at most "
                f"{len(all_)} parts"
            )
        return own

    def ends(self, partition: int) -> tuple[int, int]:
        """The first position of a partition, and the one after its last record."""
        at = self._library.TopicPartition(self.address.topic, partition)
        low, high = self._answer(
            self._consumer.get_watermark_offsets, at, timeout=self.seconds, cached=False
        )
        return int(low), int(high)

    def committed(self, partition: int) -> Committed | None:
        """The stored position of a partition; None where none is."""
        at = self._library.TopicPartition(self.address.topic, partition)
        (found,) = self._answer(self._consumer.committed, [at], timeout=self.seconds)
        if found.error is not None:
            raise self._trouble(found.error.str())
        return None if found.offset < 0 else Committed(found.offset, found.metadata or "")

    def commit(self, positions: Mapping[int, int], note: str) -> None:
        """Store positions, and a text beside them."""
        given = [
            self._library.TopicPartition(self.address.topic, partition, position, note)
            for partition, position in sorted(positions.items())
        ]
        for one in self._answer(self._consumer.commit, offsets=given, asynchronous=False):
            if one.error is not None:
                raise self._trouble(one.error.str())

    def begin(self, positions: Mapping[int, int]) -> None:
        """Read from these positions on, and no other partitions."""
        self._ended.clear()
        self._consumer.assign(
            [
                self._library.TopicPartition(self.address.topic, partition, position)
                for partition, position in sorted(positions.items())
            ]
        )

    def read(self, count: int = BATCH, seconds: float = 0.5) -> list[Logged]:
        """The next records, at most ``count``; none where none arrives in time.

        Raises:
            StoreError: the brokers refuse, or deleted what is next.
        """
        given = self._answer(self._consumer.consume, 1, seconds)
        if given and count > 1:  # and what was fetched with it
            given += self._answer(self._consumer.consume, count - 1, AT_ONCE_SECONDS)
        found = []
        for one in given:
            error = one.error()
            if error is None:
                found.append(_logged(one))
            elif error.code() == self._library.KafkaError._PARTITION_EOF:
                self._ended[one.partition()] = one.offset()
            elif not error.retriable():
                raise self._trouble(error.str())
        return found

    def between(
        self, partition: int, since: int, until: int, count: int = BATCH
    ) -> Iterator[list[Logged]]:
        """The records of a partition from a position to another, that one excluded, at most
        ``count`` together.

        Raises:
            StoreError: no record arrives for too long.
        """
        if since >= until:
            return
        self.begin({partition: since})
        limit = clock.monotonic() + self.seconds
        position = since
        # The last offsets may be no records, but marks of transactions, which are not read.
        while position < until and self._ended.get(partition, -1) < until:
            found = self.read(min(count, until - position))
            if found:
                limit = clock.monotonic() + self.seconds
                position = found[-1].offset + 1
                yield [one for one in found if one.offset < until]
            elif clock.monotonic() > limit:
                raise self._trouble(f"no record for {self.seconds:g} s")

    def first_at(self, partition: int, time: int, since: int, until: int) -> int:
        """The first position, of some, whose record was written at a time or later, by a binary
        search; ``until`` where none was. Where writers' clocks differ, it is one near to that."""
        while since < until:
            middle = (since + until) // 2
            found = next(self.between(partition, middle, until, 1), None)
            if not found or found[0].time >= time:
                until = middle
            else:
                since = found[0].offset + 1
        return until

    def close(self) -> None:
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _logged(message: Any) -> Logged:
    return Logged(
        message.partition(), message.offset(), message.timestamp()[1], message.key(),
        message.value(),
    )  # fmt: skip


def last_positions(records: Sequence[Logged]) -> dict[int, int]:
    """Partition -> the position after the last of some records."""
    found: dict[int, int] = {}
    for one in records:
        found[one.partition] = max(one.offset + 1, found.get(one.partition, 0))
    return found
