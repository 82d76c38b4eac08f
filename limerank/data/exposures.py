"""Exposures: rankings that were really shown to a user, and their bytes.

An exposure holds what the next model can learn from: the items with their positions and values, the
context of the request, and the arm of an experiment that ranked. Events may name its ranking.

Format of the bytes, version 1: version u8 | zlib of a JSON object | crc32 u32. The checksum is of
all bytes before it and begins with user, time and ranking, which a store has beside the bytes. Keys
of the object: ``i`` items, ``a`` arm, and where they are not the default ``p`` positions, ``v``
values, ``t`` teams, ``c`` context, ``f`` features of each item.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limerank.data.canonical import external_id, milliseconds
from limerank.data.events import Value, ranking_id
from limerank.errors import DataError, FormatError

VERSION = 1
MOST_SHOWN = 1000
"""Items of one exposure, at most."""
MOST_BYTES = 1 << 22
"""Bytes of an exposure before they are compressed, at most."""
ARM = re.compile(r"[A-Za-z0-9_-]{1,32}")
"""A name of an arm."""
MOST_ARMS = 16
"""Arms of a server, at most."""
ARMS_FILE = "arms.json"
"""The file of a watched folder that names arms, with paths relative to the folder."""
MAIN = "main"
"""The name of the arm of a server that has one."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """A ranking as it was shown, made by :func:`exposure_of`, which checks it.

    Attributes:
        user: external id, an integer or text that is not an integer.
        time: when it was shown, in milliseconds since 1970; an order where the log has no clock.
        ranking: id of the ranking, unique for the user.
        items: external ids of the shown items, the upper ones first.
        positions: of each item on the page, from 1 on.
        arm: the arm of the experiment that ranked.
        values: ranking value of each item; empty where they are not known.
        teams: of an interleaved ranking: the arm that each item came from; else empty.
        context: context feature -> value.
        features: impression features of each item; empty where there are none.
    """

    user: int | str
    time: int
    ranking: str
    items: tuple[int | str, ...]
    positions: tuple[int, ...]
    arm: str = MAIN
    values: tuple[float, ...] = ()
    teams: tuple[str, ...] = ()
    context: Mapping[str, Value] = field(default_factory=dict)
    features: tuple[Mapping[str, Value], ...] = ()


def exposure_of(
    user: Any,
    time: Any,
    ranking: Any,
    items: Sequence[Any],
    *,
    arm: str = MAIN,
    positions: Sequence[int] | None = None,
    values: Sequence[float] = (),
    teams: Sequence[str] = (),
    context: Mapping[str, Value] | None = None,
    features: Sequence[Mapping[str, Value]] = (),
) -> Exposure:
    """An exposure from plain values.

    Args:
        user, items: ids in any spelling.
        time: milliseconds since 1970 or a datetime; an order where the log has no clock.
        ranking: id of the ranking.
        arm, values, teams, context, features: see :class:`Exposure`.
        positions: 1, 2, ... when not given.

    Raises:
        DataError: a value is of another kind, an item is shown twice, or lengths differ.
    """
    count = len(items)
    if not 1 <= count <= MOST_SHOWN:
        raise DataError(f"{count:,} items were shown, expected 1 to {MOST_SHOWN:,}")
    shown = tuple(external_id("item", item) for item in items)
    if len(set(shown)) < count:
        twice = next(item for item in shown if shown.count(item) > 1)
        raise DataError(f"the item {twice!r:.80} was shown twice in one ranking; name it once")
    at = tuple(range(1, count + 1)) if positions is None else tuple(positions)
    for what, given in (
        ("positions", at),
        ("values", values),
        ("teams", teams),
        ("features", features),
    ):
        if len(given) not in (0, count) or (what == "positions" and len(given) != count):
            raise DataError(
                f"{count:,} items were shown with {len(given):,} {what}; expected one each"
            )
    for position in at:
        if isinstance(position, bool) or not isinstance(position, int) or position < 1:
            raise DataError(f"a position is {position!r:.80}, expected 1, 2 or more")
    for value in values:
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise DataError(f"a value is {value!r:.80}, expected a finite number")
    for name in (arm, *teams):
        arm_name(name)
    return Exposure(
        external_id("user", user),
        milliseconds(time),
        ranking_id(ranking),
        shown,
        at,
        arm,
        tuple(map(float, values)),
        tuple(teams),
        dict(context or {}),
        tuple(features) if any(features) else (),
    )


def arm_name(name: Any) -> str:
    """The name of an arm, checked; DataError where it is none."""
    if isinstance(name, str) and ARM.fullmatch(name):
        return name
    raise DataError(f"the arm is {name!r:.80}, expected a name of 1 to 32 letters, digits, _ and -")


def pack_exposure(exposure: Exposure) -> bytes:
    """The bytes of an exposure without its user, time and ranking.

    Raises:
        DataError: it could not be read again, or is too large.
    """
    body: dict[str, Any] = {"i": exposure.items, "a": exposure.arm}
    if exposure.positions != tuple(range(1, len(exposure.items) + 1)):
        body["p"] = exposure.positions
    for key, part in (
        ("v", exposure.values),
        ("t", exposure.teams),
        ("c", exposure.context),
        ("f", exposure.features),
    ):
        if part:
            body[key] = part
    try:
        text = json.dumps(body, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError) as error:  # halves of surrogate pairs, numbers not finite
        raise DataError(f"an exposure cannot be stored: {error}") from None
    if len(text) > MOST_BYTES:
        raise DataError(
            f"an exposure has {len(text):,} bytes, expected {MOST_BYTES:,} at most; log fewer "
            "features of its items"
        )
    data = bytes([VERSION]) + zlib.compress(text, 1)
    return data + zlib.crc32(data, _beside(exposure)).to_bytes(4, "little")


def unpack_exposure(data: bytes, user: int | str, time: int, ranking: str) -> Exposure:
    """The exposure that :func:`pack_exposure` packed.

    Raises:
        FormatError: the bytes are damaged, of a later version, or of another exposure.
    """
    blank = Exposure(user, time, ranking, (), ())
    body, check = data[:-4], data[-4:]
    if not body or zlib.crc32(body, _beside(blank)) != int.from_bytes(check, "little"):
        raise FormatError(
            f"{len(data)} bytes of an exposure are damaged: their checksum is wrong; restore the "
            "store from a backup, or delete this user"
        )
    if body[0] != VERSION:
        raise FormatError(
            f"an exposure is packed in version {body[0]}, expected {VERSION}; it was written by a "
            "later version of limerank"
        )
    found = json.loads(zlib.decompressobj().decompress(body[1:], MOST_BYTES))
    items = tuple(found["i"])
    return Exposure(
        user,
        time,
        ranking,
        items,
        tuple(found.get("p", range(1, len(items) + 1))),
        found["a"],
        tuple(found.get("v", ())),
        tuple(found.get("t", ())),
        found.get("c", {}),
        tuple(found.get("f", ())),
    )


def _beside(exposure: Exposure) -> int:
    given = f"{exposure.user}\0{exposure.time}\0{exposure.ranking}"
    return zlib.crc32(given.encode())
