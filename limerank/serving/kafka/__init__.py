"""Kafka as the log of record of a server: ``serve --log kafka://HOST:9092/TOPIC``.

Each change of the event store (an event, an exposure, a user's features, a deleted user, a live
item) is written to a topic first, and acknowledged only after the brokers acknowledged it. Then it
is written to the store (:mod:`~limerank.serving.kafka.logged`). So the log never lacks what a store
has, and the next ranking still sees the event: it does not wait for another process.

``limerank consume`` reads the topic, into a store (:mod:`~limerank.serving.kafka.applying`) or into
Parquet files for ``prepare`` (:mod:`~limerank.serving.kafka.slicing`).
"""

from limerank.serving.kafka.address import LogAddress, parse_log
from limerank.serving.kafka.logged import LoggedStore
from limerank.serving.kafka.writing import EventLog

__all__ = ["EventLog", "LogAddress", "LoggedStore", "parse_log"]
