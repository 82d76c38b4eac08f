"""Events as bytes, for stores and spilled states.

Format, version 1. ``varint`` is unsigned LEB128, ``zigzag`` a signed one (0, -1, 1, -2 ...),
``text`` a varint length and UTF-8, ``f32`` and ``f64`` are little-endian::

    event    version u8 | id of the item | values | crc32 u32
    events   version u8 | id of the user | varint count | names | count x entry | crc32 u32
    entry    text id of the event | zigzag time since the entry before | id of the item | values
    names    varint count | count x text
    id       u8: 0 -> zigzag integer, 1 -> text
    values   varint count | count x (u8: 16 * part + form | name | value)
    part     0 label, 1 ratio, 2 feature, 3 the id of a ranking, named "ranking"
    form     0 -> zero, 1 -> one, 2 -> f32, 3 -> f64, 4 -> zigzag integer, 5 -> text
    name     in an event: text; in events: varint position among the names

The checksum (CRC-32) is of all bytes before it. That of a single event begins with its user, its
time and its id, which a store has beside the bytes: an event read for another user is damaged.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from limerank.data.canonical import external_id
from limerank.data.events import Event, Value
from limerank.errors import DataError, FormatError

VERSION = 1


def pack(event: Event) -> bytes:
    """The bytes of an event without its user, time and id, which :func:`unpack` takes as arguments.

    Raises:
        DataError: a number or a text could not be read again.
    """
    out = bytearray([VERSION])
    _put_id(out, event.item)
    _put_values(out, event, None)
    return _sealed(out, _beside(event.user, event.time, event.id))


def unpack(data: bytes, user: int | str, time: int, id: bytes) -> Event:
    """The event that :func:`pack` packed.

    Raises:
        FormatError: the bytes are damaged, of a later version, or of another event.
    """
    reader = _Unpacker(data, _beside(user, time, id))
    event = _event(reader, user, time, id, None)
    reader.end()
    return event


def pack_list(user: int | str, events: Sequence[Event]) -> bytes:
    """Events of one user, in their order."""
    out = bytearray([VERSION])
    _put_id(out, user)
    _put_varint(out, len(events))
    parts = (part for event in events for part in _parts(event))
    names = {name: column for column, name in enumerate(dict.fromkeys(n for p in parts for n in p))}
    _put_varint(out, len(names))
    for name in names:
        _put_text(out, name.encode())
    before = 0
    for event in events:
        _put_text(out, event.id)
        _put_varint(out, _zigzag(event.time - before))
        before = event.time
        _put_id(out, event.item)
        _put_values(out, event, names)
    return _sealed(out, 0)


def unpack_list(data: bytes) -> tuple[int | str, list[Event]]:
    """What :func:`pack_list` packed: the user and the events; FormatError as for :func:`unpack`."""
    reader = _Unpacker(data, 0)
    user, count = reader.id(), reader.varint()
    names = [reader.text() for _ in range(reader.varint())]
    events, time = [], 0
    for _ in range(count):
        id = reader.bytes()
        time += reader.signed()
        events.append(_event(reader, user, time, id, names))
    reader.end()
    return user, events


def _beside(user: int | str, time: int, id: bytes) -> int:
    return zlib.crc32(b"%b\0%d\0%b" % (str(user).encode(), time, id))


def _sealed(out: bytearray, start: int) -> bytes:
    return bytes(out) + zlib.crc32(out, start).to_bytes(4, "little")


def _put_varint(out: bytearray, number: int) -> None:
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


def _zigzag(number: int) -> int:
    return number << 1 if number >= 0 else -number * 2 - 1


def _put_text(out: bytearray, text: bytes) -> None:
    _put_varint(out, len(text))
    out += text


def _put_id(out: bytearray, id: int | str) -> None:
    if isinstance(id, str):
        out.append(1)
        _put_text(out, id.encode())
    else:
        out.append(0)
        _put_varint(out, _zigzag(id))


def _parts(event: Event) -> tuple[Mapping[str, Value], ...]:
    parts = (event.labels, event.ratios, event.features)
    return (*parts, {"ranking": event.ranking}) if event.ranking else parts


def _put_values(out: bytearray, event: Event, names: Mapping[str, int] | None) -> None:
    parts = _parts(event)
    _put_varint(out, sum(map(len, parts)))
    for part, values in enumerate(parts):
        for name, value in values.items():
            form, data = _formed(value)
            out.append(16 * part + form)
            if names is None:
                _put_text(out, name.encode())
            else:
                _put_varint(out, names[name])
            out += data


def _formed(value: Value) -> tuple[int, bytes]:
    out = bytearray()
    if not isinstance(value, str) and not (
        -(1 << 63) <= value < 1 << 63 if isinstance(value, int) else math.isfinite(value)
    ):
        raise DataError("a number of an event is beyond 64 bits or not finite; expected another")
    if isinstance(value, str):
        _put_text(out, value.encode())
        return 5, bytes(out)
    if isinstance(value, int):
        _put_varint(out, _zigzag(value))
        return 4, bytes(out)
    if value in (0.0, 1.0) and math.copysign(1, value) > 0:
        return int(value), b""
    try:
        short = struct.pack("<f", value)
    except OverflowError:  # beyond float32
        return 3, struct.pack("<d", value)
    if struct.unpack("<f", short)[0] == value:
        return 2, short
    return 3, struct.pack("<d", value)


def _event(
    reader: _Unpacker, user: int | str, time: int, id: bytes, names: Sequence[str] | None
) -> Event:
    """The event whose item and values a reader has next."""
    item = reader.id()
    labels, ratios, features, ranking = reader.values(names)
    return Event(user, item, time, labels, ratios, features, id, ranking.get("ranking", ""))


class _Unpacker:
    """Reads packed bytes, after a check of their checksum and version."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._at, self._end = bytes(data), 1, len(data) - 4
        if self._end < 1 or zlib.crc32(self._data[:-4], start) != int.from_bytes(
            self._data[-4:], "little"
        ):
            raise FormatError(
                f"{len(self._data)} bytes of events are damaged: their checksum is wrong; restore "
                "the store from a backup, or delete this user"
            )
        if self._data[0] != VERSION:
            raise FormatError(
                f"events are packed in version {self._data[0]}, expected {VERSION}; they were "
                "written by a later version of limerank"
            )

    def _take(self, size: int) -> bytes:
        at, self._at = self._at, self._at + size
        if self._at > self._end:
            raise FormatError("bytes of events are damaged: they end too early")
        return self._data[at : self._at]

    def varint(self) -> int:
        data, at, number, shift = self._data, self._at, 0, 0
        while at < self._end:
            byte = data[at]
            at += 1
            if byte < 128:
                self._at = at
                return number | byte << shift
            number |= (byte & 127) << shift
            shift += 7
        raise FormatError("bytes of events are damaged: they end too early")

    def signed(self) -> int:
        number = self.varint()
        return -(number + 1 >> 1) if number & 1 else number >> 1

    def bytes(self) -> bytes:
        return self._take(self.varint())

    def text(self) -> str:
        try:
            return self.bytes().decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"bytes of events are damaged: {error}") from None

    def id(self) -> int | str:
        if not self._take(1)[0]:
            return self.signed()
        text = self.text()
        try:
            return external_id("item", text)  # earlier versions stored other forms
        except DataError:
            return text

    def values(self, names: Sequence[str] | None) -> tuple[dict[str, Any], ...]:
        """Labels, ratios, features, and the id of a ranking by "ranking"."""
        parts: tuple[dict[str, Any], ...] = ({}, {}, {}, {})
        for _ in range(self.varint()):
            part, form = divmod(self._take(1)[0], 16)
            column = 0 if names is None else self.varint()
            if part > 3 or form > 5 or (names is not None and column >= len(names)):
                raise FormatError("bytes of events are damaged: no value has this form")
            name = self.text() if names is None else names[column]
            value = self._value(form)
            if not isinstance(value, float) or math.isfinite(value):
                parts[part][name] = value  # numbers that are not finite are not known
        return parts

    def _value(self, form: int) -> Value:
        if form == 2:
            number: float = struct.unpack("<f", self._take(4))[0]
            return number
        if form == 3:
            number = struct.unpack("<d", self._take(8))[0]
            return number
        if form == 4:
            return self.signed()
        return self.text() if form == 5 else float(form)

    def end(self) -> None:
        if self._at != self._end:
            raise FormatError("bytes of events are damaged: there are bytes behind their end")
