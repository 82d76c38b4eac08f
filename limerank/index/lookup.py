"""External ids by row, and rows by external id, in arrays that may be mapped files.

Ids are 64-bit integers or text. They are looked up in *levels*: ascending keys, and the row of each
key. The key of an integer is itself, that of a text a 64-bit hash. Where two levels contain an id,
the earlier one counts. So ids can be added without sorting all of them again: they go into a small
level before the large one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limerank.data.canonical import external_id
from limerank.errors import DataError
from limerank.kernels import _native


class Level(NamedTuple):
    """A part of the lookup: ``keys`` i64, ascending, and the row of each, i32."""

    keys: NDArray[np.int64]
    rows: NDArray[np.int32]


class IdLookup:
    """The external ids of rows, and the rows of ids.

    ``ids[rows]`` gives an array of integers or of text, ``len(ids)`` the number of rows.

    Args:
        values: the integers, i64; or, where they are text, all texts one after another, u8.
        ends: where each text ends, i64; None for integers.
        levels: of the lookup, in order of precedence.
    """

    def __init__(
        self, values: NDArray[Any], ends: NDArray[np.int64] | None, levels: Sequence[Level]
    ) -> None:
        self.text = ends is not None
        """Whether ids are text; else they are integers."""
        self.levels = tuple(levels)
        self._values, self._ends = values, ends

    @classmethod
    def of(cls, values: NDArray[Any]) -> IdLookup:
        """A lookup in memory, of ids by row; DataError where an id is given twice."""
        level, (flat, ends) = level_of(values), flattened(values)
        return cls(flat, ends, [level])

    def __len__(self) -> int:
        return len(self._values) if self._ends is None else len(self._ends)

    def __getitem__(self, rows: Any) -> Any:
        if self._ends is None:
            return self._values[rows]
        at = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        if at.dtype == np.bool_:
            at = np.flatnonzero(at)
        if at.size and (at.min() < -len(self) or at.max() >= len(self)):
            raise IndexError(f"rows are 0 .. {len(self) - 1}")
        at = np.where(at < 0, at + len(self), at).astype(np.int64)
        if at.ndim == 0:
            return self._texts(at[None])[0]
        texts = np.empty(at.shape, dtype=object)
        texts[...] = np.array(self._texts(at.ravel()), dtype=object).reshape(at.shape)
        return texts

    def _texts(self, rows: NDArray[Any]) -> list[str]:
        assert self._ends is not None
        ends = self._ends[rows].tolist()
        starts = np.where(rows > 0, self._ends[np.maximum(rows, 1) - 1], 0).tolist()
        flat = self._values.data
        return [str(flat[a:b], "utf-8") for a, b in zip(starts, ends, strict=True)]

    def find(self, ids: ArrayLike | Sequence[Any], first: int = 0) -> NDArray[np.int64]:
        """The row of each id, i64; -1 where there is none.

        An id is found by any of its spellings (:func:`limerank.data.canonical.external_id`). A
        literal match comes first, for indexes that were written before ids were normalised.

        Args:
            ids: the ids to find.
            first: search the levels from this one on.
        """
        given = np.asarray(ids).ravel() if isinstance(ids, np.ndarray) else list(ids)  # type: ignore[arg-type]
        levels = [level for level in self.levels[first:] if len(level.keys)]
        if not len(given) or not levels:
            return np.full(len(given), -1, dtype=np.int64)
        if not self.text:
            wanted, legal = _as_integers(given)
            found = _native.find(*levels[0], wanted)
            for level in levels[1:]:
                todo = np.flatnonzero(found < 0)
                found[todo] = _native.find(*level, wanted[todo])
            if legal is not None:
                found[~legal] = -1
            return found
        texts = [value if isinstance(value, str) else _text(value) for value in given]
        found = self._find_all(levels, texts)
        missing = np.flatnonzero(found < 0).tolist()
        forms = {position: _text(given[position]) for position in missing}
        other = [position for position in missing if forms[position] not in ("", texts[position])]
        if other:
            found[other] = self._find_all(levels, [forms[position] for position in other])
        return found

    def _find_all(self, levels: Sequence[Level], texts: list[str]) -> NDArray[np.int64]:
        wanted, found = hashes(texts), np.full(len(texts), -1, dtype=np.int64)
        for level in levels:
            todo = np.flatnonzero(found < 0)
            found[todo] = self._find_texts(level, [texts[k] for k in todo], wanted[todo])
        return found

    def _find_texts(
        self, level: Level, texts: list[str], wanted: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        found = np.full(len(texts), -1, dtype=np.int64)
        at = _native.search(level.keys, wanted)
        todo = np.arange(len(texts))
        while len(todo):  # a second time only where two texts have one hash
            todo = todo[at[todo] < len(level.keys)]
            todo = todo[level.keys[at[todo]] == wanted[todo]]
            rows = level.rows[at[todo]].astype(np.int64)
            held = self._texts(rows)
            same = np.array([a == texts[k] for a, k in zip(held, todo, strict=True)], dtype=bool)
            found[todo[same]] = rows[same]
            todo = todo[~same]
            at[todo] += 1
        return found


def flattened(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """The arguments of :class:`IdLookup`: (i64, None), or the bytes of all texts and their ends."""
    if values.dtype.kind in "iu":
        return values.astype(np.int64), None
    encoded = [str(value).encode() for value in values]
    lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), np.cumsum(lengths)


def level_of(values: NDArray[Any], first: int = 0) -> Level:
    """The level of ids whose rows are ``first``, ``first + 1``, and so on.

    Raises:
        DataError: an id is given twice.
    """
    text = values.dtype.kind not in "iu"
    keys = hashes([str(value) for value in values]) if text else values.astype(np.int64)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    again = order[1:][keys[1:] == keys[:-1]].tolist()
    if text and again:  # equal hashes: are the texts equal, too?
        group = order[np.isin(keys, keys[1:][keys[1:] == keys[:-1]])].tolist()
        counts = Counter(str(values[position]) for position in group)
        again = [position for position in group if counts[str(values[position])] > 1]
    if again:
        some = ", ".join(repr(value) for value in dict.fromkeys(values[again].tolist()))
        raise DataError(f"each item needs a different id; given more than once: {some:.200}")
    return Level(keys, (order + first).astype(np.int32))


def merged(older: Level, newer: Level, stale: NDArray[np.int64]) -> Level:
    """One level of two: ``older`` without its ``stale`` rows, and ``newer``."""
    current = ~np.isin(older.rows, stale)
    keys, rows = older.keys[current], older.rows[current]
    at = np.searchsorted(keys, newer.keys)
    return Level(np.insert(keys, at, newer.keys), np.insert(rows, at, newer.rows))


def hashes(texts: Sequence[str]) -> NDArray[np.int64]:
    """64 bits of each text's BLAKE2b."""
    digests = [
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for text in texts
    ]
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)


def _as_integers(values: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
    """Values as integers, and which of them are integers or their plain text; None: all."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return np.ascontiguousarray(values, dtype=np.int64), None
    if isinstance(values, list) and (all_integers := _native.integers(values)) is not None:
        return all_integers, None
    numbers = np.zeros(len(values), dtype=np.int64)
    legal = np.zeros(len(values), dtype=bool)
    for position, value in enumerate(values):
        id = _id(value)
        if isinstance(id, int):
            numbers[position], legal[position] = id, True
    return numbers, legal


def _id(value: Any) -> int | str | None:
    """The normalised id; None where the value is not an id."""
    try:
        return external_id("looked-up", value)
    except DataError:
        return None


def _text(value: Any) -> str:
    """The normalised id as text; empty where the value is not an id."""
    id = _id(value)
    return "" if id is None else str(id)
