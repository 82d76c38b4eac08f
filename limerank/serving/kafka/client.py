"""The client library, its settings and its errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from limerank.errors import SpecError, StoreError
from limerank.serving.kafka.address import LogAddress


def library() -> Any:
    """The client library.

    Raises:
        SpecError: it is not installed.
    """
    try:
        import confluent_kafka
    except ModuleNotFoundError:
        raise SpecError(
            "an event log needs the confluent-kafka package: pip install 'limerank[kafka]'"
        ) from None
    return confluent_kafka


def connected(
    kind: Any,
    address: LogAddress,
    defaults: Mapping[str, Any],
    insisted: Mapping[str, Any],
    noticed: Callable[[Any], None],
) -> Any:
    """A client of the brokers of an address.

    Args:
        kind: the class of the client.
        address: the brokers; its options replace the defaults.
        defaults, insisted: settings of librdkafka.
        noticed: receives errors that the client meets by itself.

    Raises:
        SpecError: an option of the address is unknown or has a wrong value.
    """
    config = {**defaults, **address.options, **insisted}
    config |= {"bootstrap.servers": address.servers, "error_cb": noticed, "log_level": 2}
    errors = (library().KafkaException, ValueError, TypeError)
    try:
        return kind(config)
    except errors as error:
        reason = str(error.args[0].str()) if hasattr(error.args[0], "str") else str(error)
        for secret in address.secrets:
            reason = reason.replace(secret, "***")
        raise SpecError(f"the event log {address.shown}: {reason}") from None


def trouble(address: LogAddress, text: str, cause: object = "") -> StoreError:
    """An error of the log: its address and the cause are in the ``detail`` alone."""
    reason = f" ({cause})" if str(cause) else ""
    return StoreError(
        f"the event log {text}", detail=f"the event log {address.shown} {text}{reason}"
    )
