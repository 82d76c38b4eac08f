"""Records of the log, format 1: one change of the event store each.

The value is a JSON object in UTF-8, so that other programs can read and write the topic, too::

    {"v": 1, "type": "event", "user": 17, "item": 5, "time": 1764460800000, "labels": {...},
     "ratios": {...}, "features": {...}, "ranking": "main.a", "id": "..."}
    {"v": 1, "type": "shown", "user": 17, "time": ..., "ranking": "main.a", "items": [5, 9],
     "arm": "main", "positions": [1, 2], "values": [...], "teams": [...], "context": {...},
     "features": [{...}, {...}]}
    {"v": 1, "type": "features", "user": 17, "features": {...}}      replaces the user's features
    {"v": 1, "type": "forget", "user": 17}                           deletes the user
    {"v": 1, "type": "item", "item": 5, "columns": {...}}            null: the item is removed

Empty fields are left out. ``id`` is the id of an event as text; ``id_hex`` the bytes of one that
was computed from the content. An event with neither gets a computed one, as a posted event does.

The key is the user's id as text, so that the changes of one user are in one partition, in their
order; that of an item is :data:`ITEM_KEY` and the item's id.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from limerank.data.canonical import external_id
from limerank.data.events import Event, event_of
from limerank.data.exposures import MAIN, Exposure, exposure_of, pack_exposure
from limerank.errors import DataError, FormatError
from limerank.serving.stores import Id
from limerank.serving.stores.values import packed, written

VERSION = 1
ITEM_KEY = "\0item\0"
"""Before an item's id in a key. No user has such an id."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the log: its key and its value, as bytes."""

    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Features:
    """A user's own features were replaced."""

    user: Id
    features: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Forget:
    """A user was deleted."""

    user: Id


@dataclass(frozen=True, slots=True)
class Item:
    """A live item was put, or removed where the columns are None."""

    item: Id
    columns: Mapping[str, Any] | None


Change = Event | Exposure | Features | Forget | Item
"""What a record says."""


def record_of(change: Change) -> Record:
    """The record of a change.

    Raises:
        DataError: the store would refuse the change.
    """
    if isinstance(change, Item):
        columns = None
        if change.columns is not None:
            columns = json.loads(written(f"the item {change.item!r:.80}", change.columns))
        item = external_id("item", change.item)
        return _record(f"{ITEM_KEY}{item}", {"type": "item", "item": item, "columns": columns})
    user = external_id("user", change.user)
    body: dict[str, Any]
    if isinstance(change, Event):
        packed(change)  # raises where a store could not hold it
        body = {"type": "event", "user": user, "item": change.item, "time": change.time}
        for name in ("labels", "ratios", "features"):
            if of := getattr(change, name):
                body[name] = dict(of)
        if change.ranking:
            body["ranking"] = change.ranking
        body |= _id_of(change.id)
    elif isinstance(change, Exposure):
        pack_exposure(change)  # raises where a store could not hold it
        body = {"type": "shown", "user": user, "time": change.time, "ranking": change.ranking}
        body["items"] = change.items
        if change.arm != MAIN:
            body["arm"] = change.arm
        if change.positions != tuple(range(1, len(change.items) + 1)):
            body["positions"] = change.positions
        for name in ("values", "teams", "context", "features"):
            if of := getattr(change, name):
                body[name] = of
    elif isinstance(change, Features):
        text = written(f"the user {user!r:.80}", change.features)
        body = {"type": "features", "user": user, "features": json.loads(text)}
    else:
        body = {"type": "forget", "user": user}
    return _record(str(user), body)


def _id_of(id: bytes) -> dict[str, str]:
    if b"\0" not in id:
        try:
            return {"id": id.decode()}
        except UnicodeDecodeError:
            pass
    return {"id_hex": id.hex()}


def _record(key: str, body: dict[str, Any]) -> Record:
    try:
        text = json.dumps(
            {"v": VERSION, **body}, separators=(",", ":"), allow_nan=False, ensure_ascii=False
        )
        return Record(key.encode(), text.encode())
    except (ValueError, TypeError) as error:
        raise DataError(f"a change cannot be written to the event log: {error}") from None


def change_of(value: bytes | None) -> Change:
    """The change that a record's value says.

    Raises:
        DataError: it is not the value of a record, or has values that no store accepts.
        FormatError: it was written by a later version of limerank.
    """
    try:
        body = json.loads(value or b"")
    except (ValueError, RecursionError) as error:
        raise DataError(f"the value is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise DataError(f"the value is {body!r:.80}, expected a JSON object")
    version = body.pop("v", None)
    if isinstance(version, int) and version > VERSION:
        raise FormatError(
            f"a record of the event log has version {version}, expected {VERSION}; it was written "
            "by a later version of limerank: update this one"
        )
    if version != VERSION or isinstance(version, bool):
        raise DataError(f"the version v is {version!r:.80}, expected {VERSION}")
    kind = body.pop("type", None)
    read = READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise DataError(f"the type is {kind!r:.80}, expected one of {', '.join(READERS)}")
    try:
        return read(body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"a record of type {kind!r} has {what:.200}") from None


def _event(body: dict[str, Any]) -> Event:
    given = body.pop("id_hex", None)
    event = event_of(body)
    event = event if given is None else replace(event, id=bytes.fromhex(given))
    packed(event)
    return event


def _exposure(body: dict[str, Any]) -> Exposure:
    user, time, ranking = body.pop("user"), body.pop("time"), body.pop("ranking")
    exposure = exposure_of(user, time, ranking, body.pop("items"), **body)
    pack_exposure(exposure)
    return exposure


def _features(body: dict[str, Any]) -> Features:
    user = external_id("user", body["user"])
    return Features(user, json.loads(written(f"the user {user!r:.80}", body["features"])))


def _forget(body: dict[str, Any]) -> Forget:
    return Forget(external_id("user", body["user"]))


def _item(body: dict[str, Any]) -> Item:
    item, columns = external_id("item", body["item"]), body["columns"]
    if columns is None:
        return Item(item, None)
    return Item(item, json.loads(written(f"the item {item!r:.80}", columns)))


READERS: Mapping[str, Callable[[dict[str, Any]], Change]] = {
    "event": _event,
    "shown": _exposure,
    "features": _features,
    "forget": _forget,
    "item": _item,
}
"""Type of a record -> what reads its fields."""
