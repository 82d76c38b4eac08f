"""One event of a user and an item: its fields, its checks and its id.

An event holds external ids and raw values, never codes of a model's vocabularies. So a model can
read events that were collected while another one served.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np

from limerank.data.canonical import ID_BYTES, category, external_id, milliseconds
from limerank.errors import DataError

EVENT_ID_BYTES = 64
TEXT_LENGTH = 1 << 16
"""Characters of a feature's text, at most."""
FLOAT32 = float(np.finfo(np.float32).max)

Value = float | int | str
FIELDS = ("user", "item", "time", "labels", "ratios", "features", "context", "id", "ranking")
RANKING = re.compile(r"[A-Za-z0-9._~:-]{1,64}")
"""An id of a ranking: text that needs no escape in a URL, a key or a file."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event, made by :func:`event_of`, which checks it.

    Attributes:
        user, item: external ids: an integer, or text that is not an integer.
        time: milliseconds since 1970, or the order where the log has no clock.
        labels: task -> 0 or 1, or seconds.
        ratios: duration task -> share of the item's length.
        features: event feature -> raw value.
        id: identifies an event that is sent twice, and orders events of the same time.
        ranking: id of the ranking that showed the item; empty where it is not known.
    """

    user: int | str
    item: int | str
    time: int
    labels: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    features: Mapping[str, Value] = field(default_factory=dict)
    id: bytes = b""
    ranking: str = ""


def event_of(given: Mapping[str, Any]) -> Event:
    """An event from plain values, such as JSON.

    Args:
        given: ``user``, ``item``, ``time`` (milliseconds since 1970 or a datetime; an order where
            there is no clock) and any of ``labels`` (task -> 0 or 1, or seconds), ``ratios``,
            ``features`` and ``context`` (name -> value; the model knows which of the two a
            feature is), ``id``, and ``ranking`` (the id of the ranking that showed the item). An
            event without an id gets one computed from user, item, time and labels
            (:func:`content_of`): the same event sent twice counts once.

    Raises:
        DataError: a field is missing, unknown, or has a value that is not valid.
    """
    if not isinstance(given, Mapping):
        raise DataError(f"an event is {given!r:.80}, expected a mapping of {', '.join(FIELDS)}")
    wrong = [name for name in given if name not in FIELDS]
    missing = [name for name in FIELDS[:3] if given.get(name) is None]
    if wrong or missing:
        parts = [f"no {', no '.join(missing)}"] * bool(missing)
        parts += [f"the unknown {', '.join(map(repr, wrong))}"] * bool(wrong)
        raise DataError(
            f"an event has {' and '.join(parts)}; it has {', '.join(FIELDS[:3])} and any of "
            f"{', '.join(FIELDS[3:])}"
        )
    features = _values("features", given.get("features"))
    for name, value in _values("context", given.get("context")).items():
        if name in features:
            raise DataError(f"{name!r} is in both the features and the context of an event")
        features[name] = value
    ranking = given.get("ranking")
    event = Event(
        external_id("user", given["user"]),
        external_id("item", given["item"]),
        milliseconds(given["time"]),
        _numbers("labels", given.get("labels")),
        _numbers("ratios", given.get("ratios")),
        features,
        ranking="" if ranking is None else ranking_id(ranking),
    )
    id = given.get("id")
    return _with_id(event, content_id(event) if id is None else _event_id(id))


def _with_id(event: Event, id: bytes) -> Event:
    return replace(event, id=id)


def ranking_id(value: Any) -> str:
    """The id of a ranking, checked.

    Raises:
        DataError: it is not text of 1 to 64 letters, digits and ``._~:-``.
    """
    if isinstance(value, str) and RANKING.fullmatch(value):
        return value
    raise DataError(
        f"the id of a ranking is {value!r:.80}, expected 1 to 64 letters, digits and ._~:-, as in "
        "the answer to a request"
    )


def _named(what: str, given: Any) -> Iterable[tuple[str, Any]]:
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise DataError(f"the {what} of an event are {given!r:.80}, expected a mapping by name")
    for name in given:
        if not isinstance(name, str) or not 0 < len(name) <= ID_BYTES or not _unicode(name):
            raise DataError(f"the {what} of an event have the name {name!r:.80}, expected text")
    return given.items()


def _unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8, without halves of surrogate pairs."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _numbers(what: str, given: Any) -> dict[str, float]:
    found = {}
    for name, value in _named(what, given):
        if value is None:
            continue
        if isinstance(value, str) or not hasattr(value, "__float__"):
            raise DataError(f"{name!r} of an event's {what} is {value!r:.80}, expected a number")
        number = float(value)
        if math.isinf(number) or number < 0:
            raise DataError(f"{name!r} of an event's {what} is {value!r}, expected 0 or more")
        if not math.isnan(number):  # NaN means not known
            found[name] = number
    return found


def _values(what: str, given: Any) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in _named(what, given):
        if value is None:
            continue
        if hasattr(value, "item") and not isinstance(value, str):
            value = value.item()
        if isinstance(value, (Decimal, date)):
            value = category(value)
        if not isinstance(value, (str, int, float)):
            raise DataError(
                f"{name!r} of an event's {what} is {value!r:.80}, expected a number or text"
            )
        if isinstance(value, float) and math.isnan(value):
            continue
        if isinstance(value, float) and math.isinf(value):
            raise DataError(f"{name!r} of an event's {what} is {value!r}, expected a finite number")
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            value = str(value)
        if isinstance(value, str):
            if len(value) > TEXT_LENGTH:
                raise DataError(
                    f"{name!r} of an event's {what} has {len(value):,} characters, expected "
                    f"{TEXT_LENGTH:,} at most"
                )
            if not _unicode(value):
                raise DataError(
                    f"{name!r} of an event's {what} is {value!r:.80}, not Unicode text: it has "
                    "half of a surrogate pair"
                )
        found[name] = int(value) if isinstance(value, bool) else value
    return found


def _event_id(value: Any) -> bytes:
    if isinstance(value, (str, int)) and not isinstance(value, bool) and _unicode(str(value)):
        id = str(value).encode()
        if 0 < len(id) <= EVENT_ID_BYTES and b"\0" not in id:
            return id
    raise DataError(
        f"the id of an event is {value!r:.80}, expected an integer or text of 1 to "
        f"{EVENT_ID_BYTES} bytes"
    )


def derived_id(id: bytes) -> bool:
    """Whether the id of an event was computed from its content, its time included."""
    return id[:1] == b"\0"


def content_of(event: Event, caps: Mapping[str, float] | None = None) -> bytes:
    """The identity of an event: a hash of user, item, time and outcome, 11 bytes.

    The outcome is the labels that are not 0, as float32, in the order of their names. Other fields,
    and spellings, make no difference.

    Args:
        event: the event.
        caps: label -> the greatest value, where a log cuts longer durations.
    """
    parts = [f"{event.user}\0{event.item}\0{event.time}".encode()]
    for name in sorted(event.labels):
        value = event.labels[name]
        if caps is not None and name in caps:
            value = min(value, caps[name])
        if value:
            parts.append(name.encode() + np.float32(min(value, FLOAT32)).tobytes())
    return hashlib.blake2b(b"\0".join(parts), digest_size=11).digest()


def content_id(event: Event, position: int | None = None) -> bytes:
    """The id of an event without one. It begins with a zero byte, which no given id does.

    Args:
        event: the event.
        position: among the user's events of the same time, where these have an order.
    """
    content = content_of(event)
    if position is None:
        return b"\0" + content
    return b"\0" + min(position, 0xFFFF).to_bytes(2, "big") + content[:9]
