"""A Kafka cluster for tests: the mock brokers of librdkafka, which listen on loopback.

They live in one client of this process, and other clients and processes connect to them as to any
cluster. They do not store anything on a disk, have no ACLs, and answer no search by time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

try:
    import confluent_kafka
except ModuleNotFoundError:
    confluent_kafka = None

needs_kafka = pytest.mark.skipif(
    confluent_kafka is None, reason="confluent-kafka is not installed: pip install limerank[kafka]"
)
NUMBERS = itertools.count()
SECONDS = 10.0


@contextlib.contextmanager
def brokers(count: int = 1) -> Iterator[str]:
    """Mock brokers; gives their addresses, ``HOST:PORT,...``. A topic appears when it is used."""
    host = confluent_kafka.Producer({"test.mock.num.brokers": count, "log_level": 2})
    found = host.list_topics(timeout=SECONDS)
    yield ",".join(f"{one.host}:{one.port}" for one in found.brokers.values())
    del host


def new_topic() -> str:
    return f"topic-{next(NUMBERS)}"


SERVER = """
import sys
from confluent_kafka import Producer
host = Producer({"test.mock.num.brokers": 1, "log_level": 2})
(one,) = host.list_topics(timeout=10).brokers.values()
print(f"{one.host}:{one.port}", flush=True)
sys.stdin.read()
"""


class Process:
    """A mock broker in a process of its own, which can be stopped and killed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.servers = self.process.stdout.readline().strip()
        assert self.servers

    def hold(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)  # until all its threads are stopped

    def release(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.release()
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def broker_process() -> Iterator[Process]:
    process = Process()
    try:
        yield process
    finally:
        process.end()


def messages(servers: str, topic: str) -> list[Any]:
    """All messages of a topic, partition by partition."""
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": servers, "group.id": "test", "enable.auto.commit": False}
    )
    parts = consumer.list_topics(topic, timeout=SECONDS).topics[topic].partitions
    found = []
    try:
        for part in sorted(parts):
            at = confluent_kafka.TopicPartition(topic, part, 0)
            _, end = consumer.get_watermark_offsets(at, timeout=SECONDS)
            consumer.assign([at])
            left = end
            while left:
                got = consumer.consume(left, SECONDS)
                assert got, "the brokers do not answer"
                found += got
                left -= len(got)
    finally:
        consumer.close()
    return found
