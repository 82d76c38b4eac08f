"""A user's stored state: a window of the latest events, or a stream's sums; and the seen items.

The bytes of a stored state are little-endian; a CRC-32 (u32) at the end covers all of them::

    window       "LRSW" | version u8 | count, size u32 | limerank.data.packing.pack_list | seen
    streaming    "LRSS" | version u8 | H, l, e u32 | events i64 | unknown i64 | index rows i64
                 | newest i64 | order u8 | time f64 | log f64 [H, l] | mean f32 [H, l, e]
                 | F, o, G, S u32 | outcomes f32 [F, o] | keys f32 [F, G, S]
                 | keys | seen
    keys         integer ids, bytes of text ids, tokens, o u32 | text ids, UTF-8, with 0 between
                 | integer ids, tokens, counts, numbers, times i64 | outcomes f32 [V, 3, o]
    seen         u32 | integer ids i64 | u32 size | text ids, UTF-8, with 0 between

``keys`` is a :class:`~limerank.serving.state.keyed.KeyTable`. ``seen`` are the items that the user
has seen; ``unknown`` counts events whose item the index lacked; ``order`` bytes are the id of the
newest event, which orders events of one time. F is 0 without a profile. Windows have version 1.
Streams have version 3; those of earlier versions, which lack profiles or keys, are computed again.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from limerank.data.events import Event
from limerank.errors import FormatError
from limerank.index import Index
from limerank.kernels.prefix import Carry
from limerank.models.profile import Means
from limerank.serving.state.keyed import KeyTable

WINDOW_VERSION = 1
STREAM_VERSION = 4
Rows = NDArray[np.int64]
HEADER = struct.Struct("<4sB")
SHAPE = struct.Struct("<IIIqqqqBd")
MEANS = struct.Struct("<IIII")


@dataclass(frozen=True)
class Seen:
    """External ids of items: integers, ascending, and texts."""

    integers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    texts: tuple[str, ...] = ()

    def add(self, items: Sequence[int | str]) -> Seen:
        """With more items."""
        integers_given = np.unique(
            np.array([item for item in items if isinstance(item, int)], np.int64)
        )
        at = np.searchsorted(self.integers, integers_given)
        held = at < len(self.integers)
        held[held] = self.integers[at[held]] == integers_given[held]
        texts = [item for item in items if isinstance(item, str)]
        return Seen(
            np.insert(self.integers, at[~held], integers_given[~held]),
            tuple(dict.fromkeys([*self.texts, *texts])) if texts else self.texts,
        )

    def rows(self, index: Index) -> Rows:
        """Rows of those items that an index has, ascending."""
        found = [index.ids.find(self.integers)] if len(self.integers) else []
        if self.texts:
            found.append(index.ids.find(list(self.texts)))
        rows = np.concatenate([np.zeros(0, np.int64), *found])
        return np.unique(rows[rows >= 0])

    def pack(self) -> bytes:
        texts = "\0".join(self.texts).encode()
        parts = (struct.pack("<I", len(self.integers)), self.integers.astype("<i8").tobytes())
        return b"".join((*parts, struct.pack("<I", len(texts)), texts))

    @classmethod
    def unpack(cls, data: bytes) -> Seen:
        (count,) = struct.unpack_from("<I", data)
        integers = np.frombuffer(data, "<i8", count, 4).astype(np.int64)
        (size,) = struct.unpack_from("<I", data, 4 + 8 * count)
        texts = data[8 + 8 * count :]
        if len(texts) != size:
            raise ValueError("the ids of seen items end too early")
        return cls(integers, tuple(texts.decode().split("\0")) if size else ())


@dataclass(frozen=True)
class Window:
    """The latest events of a history, packed; their number; and the seen items."""

    packed: bytes
    events: int
    seen: Seen
    open: tuple[Event, ...] | None = field(default=None, compare=False)
    """The events unpacked, until the user stage is computed from them."""

    def pack(self) -> bytes:
        sizes = struct.pack("<II", self.events, len(self.packed))
        return _sealed(
            HEADER.pack(b"LRSW", WINDOW_VERSION) + sizes + self.packed + self.seen.pack()
        )

    @classmethod
    def unpack(cls, data: bytes) -> Window:
        """Read what :meth:`pack` wrote; FormatError where it is damaged."""
        body = _opened(data, b"LRSW", WINDOW_VERSION)
        count, size = struct.unpack_from("<II", body)
        return cls(body[8 : 8 + size], count, Seen.unpack(body[8 + size :]))

    @property
    def nbytes(self) -> int:
        return len(self.packed) + self.seen.integers.nbytes + 64 * len(self.seen.texts)


@dataclass(frozen=True)
class Stream:
    """The links' attention over all events.

    Attributes:
        carry: None before the first event. Its time is in days, or in events where the log has no
            clock.
        events: the number of events.
        unknown: how many of them had an item that the index lacked.
        index_rows: rows of the index at that time.
        newest: time and id of the newest event.
        seen: items that the user has seen.
        keys: statistics of anchored keys; empty for a model without anchored links.
        means: of the profile, B = 1; None before the first event, and for a model without one.
    """

    carry: Carry | None = None
    events: int = 0
    unknown: int = 0
    index_rows: int = 0
    newest: tuple[int, bytes] = (0, b"")
    seen: Seen = field(default_factory=Seen)
    keys: KeyTable = field(default_factory=KeyTable)
    means: Means | None = None

    def pack(self) -> bytes:
        shape: tuple[int, ...] = (0, 0, 0)
        parts, at = b"", 0.0
        if self.carry is not None:
            shape, at = tuple(self.carry.mean.shape), float(self.carry.time)
            parts = self.carry.log.cpu().numpy().astype("<f8").tobytes()
            parts += self.carry.mean.cpu().numpy().astype("<f4").tobytes()
        counts = (self.events, self.unknown, self.index_rows, self.newest[0])
        head = HEADER.pack(b"LRSS", STREAM_VERSION)
        head += SHAPE.pack(*shape, *counts, len(self.newest[1]), at)
        parts += _packed_means(self.means)
        return _sealed(head + self.newest[1] + parts + self.keys.pack() + self.seen.pack())

    @classmethod
    def unpack(cls, data: bytes) -> Stream:
        """Read what :meth:`pack` wrote; FormatError where it is damaged."""
        body = _opened(data, b"LRSS", STREAM_VERSION)
        heads, links, e, events, unknown, rows, newest, order, at = SHAPE.unpack_from(body)
        position = SHAPE.size + order
        id, carry = body[SHAPE.size : position], None
        if heads:
            log = np.frombuffer(body, "<f8", heads * links, position).reshape(heads, links)
            position += log.nbytes
            mean = np.frombuffer(body, "<f4", heads * links * e, position)
            position += mean.nbytes
            carry = Carry(
                torch.from_numpy(mean.reshape(heads, links, e).astype(np.float32)),
                torch.from_numpy(log.astype(np.float64)),
                torch.tensor(at, dtype=torch.float64),
            )
        means, size = _unpacked_means(body[position:])
        position += size
        keys, size = KeyTable.unpack(body[position:])
        seen = Seen.unpack(body[position + size :])
        return cls(carry, events, unknown, rows, (newest, id), seen, keys, means)

    @property
    def nbytes(self) -> int:
        carry = 0 if self.carry is None else self.carry.mean.nbytes + self.carry.log.nbytes
        means = 0 if self.means is None else sum(part.nbytes for part in self.means)
        return (
            carry + means + self.keys.nbytes + self.seen.integers.nbytes + 64 * len(self.seen.texts)
        )


def _packed_means(means: Means | None) -> bytes:
    if means is None:
        return MEANS.pack(0, 0, 0, 0)
    outcomes, keys = (part[0].cpu().numpy().astype("<f4") for part in means)
    return MEANS.pack(*outcomes.shape, *keys.shape[1:]) + outcomes.tobytes() + keys.tobytes()


def _unpacked_means(data: bytes) -> tuple[Means | None, int]:
    """Means, and the number of their bytes."""
    fadings, outcomes, gates, size = MEANS.unpack_from(data)
    at = MEANS.size
    if not fadings:
        return None, at
    found = []
    for shape in ((1, fadings, outcomes), (1, fadings, gates, size)):
        values = np.frombuffer(data, "<f4", math.prod(shape), at).reshape(shape)
        at += values.nbytes
        found.append(torch.from_numpy(values.astype(np.float32)))
    return Means(*found), at


def _sealed(data: bytes) -> bytes:
    return data + zlib.crc32(data).to_bytes(4, "little")


def _opened(data: bytes, magic: bytes, expected: int) -> bytes:
    """The bytes after the header of a state with a correct checksum."""
    if len(data) < HEADER.size + 4 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise FormatError(
            f"a state of {len(data)} bytes is damaged; it is computed again from the events"
        )
    found, version = HEADER.unpack_from(data)
    if found != magic or version != expected:
        raise FormatError(
            f"a state is {found!r} of version {version}, expected {magic!r} of {expected}; it is "
            "computed again from the events"
        )
    return data[HEADER.size : -4]
