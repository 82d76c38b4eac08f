"""Raw values of items and users, as the JSON text that stores hold.

Values that :func:`written` accepts can be read, used for ranking, written as JSON and deleted.
:func:`read` returns only such values, even where an earlier version stored others.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from limerank.data.canonical import ID_BYTES, LARGEST_TIME, external_id
from limerank.data.events import EVENT_ID_BYTES, TEXT_LENGTH, Event
from limerank.data.packing import pack
from limerank.errors import DataError, FormatError

COLUMNS = 1024
"""Columns of one item or user, at most."""
LIST_VALUES = 4096
"""Values in a list, at most."""
ENTRY_LENGTH = 1 << 18
"""Characters of one item's or user's JSON text, at most."""

log = logging.getLogger("limerank.serving.stores")

Scalar = bool | int | float | str | None


def written(what: str, columns: Mapping[str, Any]) -> str:
    """The JSON text of an item's or a user's values.

    Args:
        what: what the values belong to, for messages: "the item 17".
        columns: name -> null, a boolean, a 64-bit integer, a finite number, text, or a list of
            those. NumPy scalars and one-dimensional arrays count as the values in them.

    Raises:
        DataError: a value is of another kind or too large, or there are too many.
    """
    if not isinstance(columns, Mapping):
        raise DataError(f"{what} is {columns!r:.80}, expected a mapping of column to value")
    if len(columns) > COLUMNS:
        raise DataError(f"{what} has {len(columns):,} columns, expected {COLUMNS:,} at most")
    checked: dict[str, Any] = {}
    for name, value in columns.items():
        if not isinstance(name, str) or not 0 < len(name) <= ID_BYTES or _torn(name):
            raise DataError(
                f"{what} has a column called {name!r:.80}, expected text of 1 to {ID_BYTES} "
                "characters"
            )
        value = _plain(value)
        if isinstance(value, (list, tuple)):
            if len(value) > LIST_VALUES:
                raise DataError(
                    f"{what}: the column {name!r} is a list of {len(value):,} values, expected "
                    f"{LIST_VALUES:,} at most"
                )
            checked[name] = [_checked(what, name, _plain(one)) for one in value]
        else:
            checked[name] = _checked(what, name, value)
    text = json.dumps(checked, allow_nan=False)
    if len(text) > ENTRY_LENGTH:
        raise DataError(
            f"{what} has {len(text):,} characters as JSON, expected {ENTRY_LENGTH:,} at most"
        )
    return text


def read(what: str, text: str | bytes) -> dict[str, Any]:
    """The values of a JSON text that :func:`written`, or an earlier version, wrote.

    Unusable values that an earlier version accepted are replaced: integers beyond 64 bits by their
    digits, nested values by JSON text, numbers that are not finite by None, halves of surrogate
    pairs by U+FFFD; texts and lists that are too long are cut.

    Raises:
        FormatError: the text is damaged.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"the values of {what} are damaged ({error}); write them again, or delete them"
        ) from None
    if not isinstance(found, dict):
        raise FormatError(
            f"the values of {what} are not a mapping; write them again, or delete them"
        )
    return {_well_formed(name): _safe(value) for name, value in found.items()}


def items_of(
    rows: Iterable[tuple[str, str | bytes | None]],
) -> dict[int | str, dict[str, Any] | None]:
    """Items from their ids and JSON texts; None: removed. Damaged items are left out and logged,
    so that the others stay readable."""
    found: dict[int | str, dict[str, Any] | None] = {}
    damaged = 0
    for id, text in rows:
        try:
            item = external_id("item", id)
            found[item] = None if text is None else read(f"the item {item!r}", text)
        except (DataError, FormatError):
            damaged += 1
    if damaged:
        log.error("%d live items of the event store are damaged and left out", damaged)
    return found


def beginning(text: str) -> bool:
    """Whether an id can begin with a text."""
    try:
        return len(text.encode()) <= ID_BYTES
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def packed(event: Event) -> bytes:
    """The bytes of an event for a store.

    Raises:
        DataError: the event could not be read or found again, since
            :func:`~limerank.data.events.event_of` did not make it.
    """
    user = external_id("user", event.user)
    legal = (
        user == event.user
        and external_id("item", event.item) == event.item
        and isinstance(event.time, int)
        and abs(event.time) < LARGEST_TIME
        and isinstance(event.id, bytes)
        and 0 < len(event.id) <= EVENT_ID_BYTES
    )
    if not legal:
        raise DataError(
            f"an event of the user {event.user!r:.80} has an id or a time that is not in its one "
            f"form: {event!r:.200}; make events with event_of"
        )
    try:
        return pack(event)
    except UnicodeEncodeError as error:
        raise DataError(f"an event contains half of a surrogate pair ({error})") from None


def _plain(value: Any) -> Any:
    """A NumPy value as a Python value."""
    return value.tolist() if hasattr(value, "tolist") else value


def _torn(text: str) -> bool:
    """Whether a text contains half of a surrogate pair."""
    try:
        text.encode()
        return False
    except UnicodeEncodeError:
        return True


def _checked(what: str, name: str, value: Any) -> Scalar:
    """A value of a column or of its list; DataError where it cannot be stored."""
    wrong: str | None = None
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        if -(1 << 63) <= value < 1 << 63:
            return int(value)
        wrong = "an integer beyond 64 bits, expected text or a smaller one"
        value = "..." if value.bit_length() > 256 else value  # its digits may be too many to print
    elif isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        wrong = "not finite, expected a number or null"
    elif isinstance(value, str):
        if len(value) > TEXT_LENGTH:
            wrong = f"a text of {len(value):,} characters, expected {TEXT_LENGTH:,} at most"
        elif _torn(value):
            wrong = "not Unicode text: it contains half of a surrogate pair"
        else:
            return str(value)
    else:
        wrong = (
            f"{type(value).__name__}, expected null, true, false, a number, text or a list of those"
        )
    raise DataError(f"{what}: the column {name!r} is {value!r:.80}, {wrong}")


def _safe(value: Any) -> Any:
    if isinstance(value, list):
        return [_safe_scalar(one) for one in value[:LIST_VALUES]]
    return _safe_scalar(value)


def _safe_scalar(value: Any) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else str(value)[:TEXT_LENGTH]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _well_formed(value if isinstance(value, str) else json.dumps(value))[:TEXT_LENGTH]


def _well_formed(text: str) -> str:
    """A text with U+FFFD for each half of a surrogate pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
