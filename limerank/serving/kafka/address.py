"""The address of a log: ``kafka://HOST:9092,HOST:9092/TOPIC``, and what it means for librdkafka."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from limerank.errors import SpecError
from limerank.serving.stores.valkey_server import redacted

PASSWORD = "LIMERANK_KAFKA_PASSWORD"
"""Environment variable of the password, so that it is on no command line."""
EXAMPLE = "kafka://HOST:9092,HOST:9092/TOPIC"
PORT = 9092
OURS = frozenset(
    {
        "bootstrap.servers", "metadata.broker.list", "group.id", "acks", "request.required.acks",
        "enable.idempotence", "enable.auto.commit", "auto.commit.enable", "auto.offset.reset",
        "delivery.timeout.ms", "message.timeout.ms", "partitioner", "enable.partition.eof",
        "isolation.level", "security.protocol", "sasl.username", "sasl.password",
    }
)  # fmt: skip
"""Settings of the client that this module decides; an address cannot change them."""
_topic = re.compile(r"[A-Za-z0-9._-]{1,249}")
_host = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


@dataclass(frozen=True)
class LogAddress:
    """A topic on brokers.

    Attributes:
        servers: HOST:PORT of some brokers, separated by commas.
        topic: the topic.
        options: settings of librdkafka.
        shown: the address without secrets, for logs and messages.
        secrets: texts that no log and no answer may contain.
    """

    servers: str
    topic: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    shown: str = ""
    secrets: tuple[str, ...] = field(default=(), repr=False)


def parse_log(text: str) -> LogAddress:
    """The parts of an address.

    Args:
        text: ``kafka://[USER[:PASSWORD]@]HOST[:PORT],.../TOPIC[?NAME=VALUE&...]``, or the same with
            ``kafkas://``, for TLS. Names are settings of librdkafka. With a user, SASL is used:
            PLAIN, unless ``sasl.mechanism`` names another one; a password that is not in the
            address is that of the environment variable :data:`PASSWORD`.

    Raises:
        SpecError: the text has another form, or a setting that limerank decides.
    """
    scheme, mark, rest = text.partition("://")
    shown = redacted(text)
    before, query_mark, query = rest.partition("?")
    login, at, location = before.rpartition("@")
    hosts, _, topic = location.partition("/")
    found = [_host.fullmatch(host) for host in hosts.split(",")]
    if scheme not in ("kafka", "kafkas") or not mark or None in found:
        raise SpecError(
            f"{shown} is not the address of an event log; expected one such as {EXAMPLE}, or "
            "kafkas:// for TLS"
        )
    if not _topic.fullmatch(topic) or topic in (".", ".."):
        raise SpecError(
            f"the topic in {shown} is missing or not a name of letters, digits, '.', '_' and '-'; "
            f"expected an address such as {EXAMPLE}"
        )
    options: dict[str, Any] = {}
    secrets = []
    for name, value in parse_qsl(query, keep_blank_values=True) if query_mark else ():
        if name in OURS:
            raise SpecError(f"{shown}: limerank decides {name}; leave it out of the address")
        if name in options:
            raise SpecError(f"{shown}: {name} is given twice")
        options[name] = value
        secrets.append(value)
    encrypted = scheme == "kafkas"
    if at:
        user, _, password = login.partition(":")
        password = unquote(password) or os.environ.get(PASSWORD, "")
        if not user or not password:
            raise SpecError(
                f"{shown} has a user and no password, or no user; set {PASSWORD}, or write "
                "USER:PASSWORD@ with the password percent-encoded"
            )
        secrets += [password, login.partition(":")[2]]
        options = {"sasl.mechanism": "PLAIN"} | options
        options |= {"sasl.username": unquote(user), "sasl.password": password}
        options["security.protocol"] = "SASL_SSL" if encrypted else "SASL_PLAINTEXT"
    elif encrypted:
        options["security.protocol"] = "SSL"
    servers = ",".join(
        host if match is None or match[1] else f"{host}:{PORT}"
        for host, match in zip(hosts.split(","), found, strict=True)
    )
    return LogAddress(servers, topic, options, shown, tuple(filter(None, secrets)))
