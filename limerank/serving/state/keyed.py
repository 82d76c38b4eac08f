"""What a stream holds of each anchored key: running statistics, exact over all events.

Keys are stable over versions of an index: items by external id, values of features by their row in
the run's content table, and neighbours by their row in its id table. The statistics are those of
:class:`limerank.models.anchors.KeyStatistics`, sums over events, so that a new event changes those
of its own item's keys alone.

A key takes about 130 bytes. One that the latest :data:`REMEMBERED` events lack is dropped when the
number of events is next a multiple of :data:`CHUNK`, so a user has the keys of at most 5,120
events: 0.7 MB for the items, and as much for each anchored feature whose values never repeat.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limerank.data.canonical import DAY_MS
from limerank.index import Index
from limerank.models.anchors import FADING, OUTCOMES, KeyStatistics

CHUNK = 1024
"""Events that are merged into a stream at once."""
REMEMBERED = 4096
"""Events after which a key without another event may be dropped."""
SIZES = struct.Struct("<IIIIq")

Integers = NDArray[np.int64]


def _none() -> Integers:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class KeyTable:
    """Statistics of V keys of one user; rows are integer item ids, text item ids, then tokens.

    Attributes:
        integers: external ids of items that are integers, i64.
        texts: those that are text.
        tokens: rows of the content table, and keys of neighbours, i64.
        counts: events with each key, i64 [V].
        numbers: events of the history up to the newest with the key, that one included, i64 [V].
        times: time of that event, i64 [V].
        outcomes: sum, fading sum and newest of the embedded outcomes, f32 [V, 3, o].
        positive: events of the history up to its newest positive one, that one included; 0: none.
    """

    integers: Integers = field(default_factory=_none)
    texts: tuple[str, ...] = ()
    tokens: Integers = field(default_factory=_none)
    counts: Integers = field(default_factory=_none)
    numbers: Integers = field(default_factory=_none)
    times: Integers = field(default_factory=_none)
    outcomes: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((0, 3, OUTCOMES), np.float32)
    )
    positive: int = 0

    def __len__(self) -> int:
        return len(self.counts)

    def updated(
        self, later: KeyStatistics, times: Integers, events: int, index: Index, item_tokens: int
    ) -> KeyTable:
        """With the statistics of events that come after all before.

        Args:
            later: of one history, these events; keys of items are rows of ``index``.
            times: of these events, i64 [n].
            events: number of events before them.
            index: finds items by external id, and external ids by row.
            item_tokens: rows of the content table: the key of row i is ``item_tokens + i``.
        """
        newest_positive = int(later.positive)
        positive = events + newest_positive if newest_positive else self.positive
        if not len(later.keys):
            return replace(self, positive=positive)
        keys, rows = self._keys(index, item_tokens)
        new, n = later.keys.cpu().numpy(), later.counts.cpu().numpy()
        every = np.union1d(keys, new)
        old_at, new_at = np.searchsorted(every, keys), np.searchsorted(every, new)
        counts, numbers, at = (np.zeros(len(every), np.int64) for _ in range(3))
        outcomes = np.zeros((len(every), 3, self.outcomes.shape[2]), np.float32)
        counts[old_at], numbers[old_at] = self.counts[rows], self.numbers[rows]
        at[old_at], outcomes[old_at] = self.times[rows], self.outcomes[rows]
        sums, faded, newest = (
            part.float().cpu().numpy() for part in (later.sums, later.faded, later.newest)
        )
        outcomes[new_at, 0] += sums
        outcomes[new_at, 1] = outcomes[new_at, 1] * np.power(FADING, n)[:, None] + faded
        outcomes[new_at, 2] = newest
        position = len(times) - 1 - later.ago.cpu().numpy()
        counts[new_at] += n
        numbers[new_at], at[new_at] = events + 1 + position, times[position]
        found = self._of(every, counts, numbers, at, outcomes, index, item_tokens)
        return replace(found, positive=positive)

    def remembered(self, events: int) -> KeyTable:
        """Without the keys that the latest :data:`REMEMBERED` of so many events lack."""
        recent = events - self.numbers < REMEMBERED
        if recent.all():
            return self
        ends = np.cumsum([len(self.integers), len(self.texts)])
        integers, texts, tokens = np.split(recent, ends)
        return KeyTable(
            self.integers[integers],
            tuple(text for text, one in zip(self.texts, texts, strict=True) if one),
            self.tokens[tokens],
            self.counts[recent],
            self.numbers[recent],
            self.times[recent],
            self.outcomes[recent],
            self.positive,
        )

    def statistics(
        self, events: int, newest: int, index: Index, item_tokens: int, *, clock: bool, device: Any
    ) -> KeyStatistics:
        """The statistics of a history of ``events`` events, the newest of them at ``newest``."""
        keys, rows = self._keys(index, item_tokens)
        ago = events - self.numbers[rows]
        age = (newest - self.times[rows]) / DAY_MS if clock else ago
        sums, faded, last = np.moveaxis(self.outcomes[rows], 1, 0)
        parts = (np.array([0, len(keys)]), keys, self.counts[rows], sums, faded, last, ago)
        of_all = (np.array([self.positive]), np.array([events]))
        return KeyStatistics(
            *(
                torch.from_numpy(np.ascontiguousarray(part)).to(device)
                for part in (*parts, age.astype(np.float32), *of_all)
            )
        )

    def _keys(self, index: Index, item_tokens: int) -> tuple[Integers, Integers]:
        """Keys of an index, ascending, and the row of each here; without unknown items."""
        found = [index.ids.find(self.integers)] if len(self.integers) else []
        if self.texts:
            found.append(index.ids.find(list(self.texts)))
        items = np.concatenate([_none(), *found])
        keys = np.concatenate([items + item_tokens, self.tokens])
        known = np.concatenate([items >= 0, np.ones(len(self.tokens), bool)])
        order = np.argsort(keys, kind="stable")
        order = order[known[order]]
        return keys[order], order

    @classmethod
    def _of(
        cls,
        keys: Integers,
        counts: Integers,
        numbers: Integers,
        times: Integers,
        outcomes: NDArray[np.float32],
        index: Index,
        item_tokens: int,
    ) -> KeyTable:
        """Keys of an index, ascending, by external id: tokens come last here."""
        first = int(np.searchsorted(keys, item_tokens))
        order = np.concatenate([np.arange(first, len(keys)), np.arange(first)])
        ids = index.ids[keys[first:] - item_tokens]
        text = index.ids.text
        return cls(
            _none() if text else np.asarray(ids, np.int64),
            tuple(map(str, ids)) if text else (),
            keys[:first],
            counts[order],
            numbers[order],
            times[order],
            outcomes[order],
        )

    def pack(self) -> bytes:
        texts = "\0".join(self.texts).encode()
        width = self.outcomes.shape[2]
        arrays = (self.integers, self.tokens, self.counts, self.numbers, self.times)
        return b"".join(
            (
                SIZES.pack(len(self.integers), len(texts), len(self.tokens), width, self.positive),
                texts,
                *(part.astype("<i8").tobytes() for part in arrays),
                self.outcomes.astype("<f4").tobytes(),
            )
        )

    @classmethod
    def unpack(cls, data: bytes) -> tuple[KeyTable, int]:
        """Read what :meth:`pack` wrote at the start of ``data``, and how many bytes it takes."""
        integers, size, tokens, width, positive = SIZES.unpack_from(data)
        at = SIZES.size + size
        texts = tuple(data[SIZES.size : at].decode().split("\0")) if size else ()
        rows, parts = integers + len(texts) + tokens, []
        for count in (integers, tokens, rows, rows, rows):
            parts.append(np.frombuffer(data, "<i8", count, at).astype(np.int64))
            at += 8 * count
        outcomes = np.frombuffer(data, "<f4", rows * 3 * width, at).astype(np.float32)
        at += outcomes.nbytes
        ids, values, counts, numbers, times = parts
        outcomes = outcomes.reshape(rows, 3, width)
        return cls(ids, texts, values, counts, numbers, times, outcomes, positive), at

    @property
    def nbytes(self) -> int:
        """Bytes in memory, about."""
        arrays = (self.integers, self.tokens, self.counts, self.numbers, self.times, self.outcomes)
        return sum(part.nbytes for part in arrays) + 64 * len(self.texts)
