"""Items that the same users interact with: how often, counted in bounded memory.

Shape letters: n distinct pairs of a user and an item, I rows of the id table, F groups of users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from limerank.data.batch import TrainingEvents
from limerank.data.ragged import ragged_index

PAIRS = 1 << 21
"""Pairs of items that are counted at once, about: 100 bytes each."""
USERS = 1 << 14
"""Users of an item that its neighbours are counted with, at most: evenly drawn where there are
more."""
STEPS = 20
"""Items of a user from one to another, in their order, at most, for the one to follow the other."""
MOST_PAIRS = 1 << 31
"""Pairs of events that are counted for all items together, at most: some minutes of one core. Where
there are more, fewer users of the items with many are drawn."""


@dataclass(frozen=True)
class Interacted:
    """Which users interacted with which items.

    Attributes:
        users: of each pair, counted from 0, ascending, i32 [n].
        items: of each pair, a row of the id table, i32 [n]; of a user, the newest one first.
        rows: of each user, what the events call it, i64.
        again: of each item, the users who came back to it, i64 [I].
        weights: of each item, the weight of its positives, f64 [I].
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    rows: NDArray[np.int64]
    again: NDArray[np.int64]
    weights: NDArray[np.float64]

    @property
    def users_of_items(self) -> NDArray[np.int64]:
        """Users of each item, i64 [I]."""
        return np.bincount(self.items, minlength=len(self.again))

    @classmethod
    def of(cls, events: TrainingEvents, rows: int, window: int) -> Interacted:
        """Of the training window: the ``window`` latest different items of each user."""
        users, items = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
        named = [np.zeros(0, np.int64)]
        again = np.zeros(rows, np.int64)
        popularity = np.zeros(rows)
        number = 0
        for block in events.blocks():
            popularity += np.bincount(block.items, block.weights, rows)
            held = block.counted & (block.items > 0)
            if not held.any():
                continue
            owner, item = block.users[held], block.items[held]
            named.append(owner[np.flatnonzero(np.diff(owner, prepend=-1))])
            owner = np.cumsum(np.diff(owner, prepend=owner[0]) != 0)
            keys = owner * rows + item
            distinct, last, counts = np.unique(keys[::-1], return_index=True, return_counts=True)
            last = len(keys) - 1 - last  # the newest event of each pair
            order = np.argsort(-last)  # newest first within the block, and so within each user
            order = order[np.argsort(distinct[order] // rows, kind="stable")]
            of = distinct[order] // rows
            size = np.bincount(of)
            position = np.arange(len(of)) - np.repeat(np.cumsum(size) - size, size)
            some = order[position < window]
            users.append((number + distinct[some] // rows).astype(np.int32))
            items.append((distinct[some] % rows).astype(np.int32))
            again += np.bincount(items[-1][counts[some] > 1], minlength=rows)
            number += int(owner[-1]) + 1
        popularity[0] = 0.0
        own = np.concatenate(users), np.concatenate(items), np.concatenate(named)
        return cls(*own, again, popularity)


class Together(NamedTuple):
    """Items of rows ``low .. high - 1`` and those that share users with them.

    Attributes:
        low, high: the rows.
        owner: counts from ``low``, i64 [P].
        other: a row, i64 [P].
        users: of both, in each group, f64 [P, F].
        followed: the sum of 1 / g over those users with whom the owner came g items after the
            other, :data:`STEPS` at most, f64 [P, F].
    """

    low: int
    high: int
    owner: NDArray[np.int64]
    other: NDArray[np.int64]
    users: NDArray[np.float64]
    followed: NDArray[np.float64]


def counted_together(
    interacted: Interacted, rows: int, groups: NDArray[np.int64] | None = None, of: int = 1
) -> Iterator[Together]:
    """All pairs of items with common users, in parts of about :data:`PAIRS` pairs of events, and
    about :data:`MOST_PAIRS` at most in all. Memory holds some 30 bytes for each pair of a user and
    an item besides.

    Args:
        interacted: users and items.
        rows: of the id table.
        groups: the group of each user, 0 .. ``of`` - 1; None: all are in one.
        of: number of groups.
    """
    users, items = interacted.users, interacted.items
    of_user = np.bincount(users).astype(np.int32)
    first_of_user = np.cumsum(of_user, dtype=np.int64) - of_user
    position = (np.arange(len(users)) - first_of_user[users]).astype(np.int32)
    of_item = np.argsort(items, kind="stable")
    by_item, rank = users[of_item], position[of_item]
    of_gap = np.concatenate([[0.0], 1 / np.arange(1, STEPS + 1)])
    n = np.bincount(items, minlength=rows)
    start = np.cumsum(n) - n
    pairs = np.bincount(items, of_user[users], rows).astype(np.float64, copy=False)
    taken = _taken(n, pairs)
    cost = np.cumsum(pairs * (taken / np.maximum(n, 1)))
    low = 0
    while low < rows:
        done = cost[low - 1] if low else 0
        high = max(int(np.searchsorted(cost, done + PAIRS, side="right")), low + 1)
        own = taken[low:high]
        at = ragged_index(np.zeros(high - low, np.int64), own)
        owner = np.repeat(np.arange(high - low), own)
        if (n[low:high] > own).any():  # evenly drawn of the item's users
            at = at * n[low:high][owner] // own[owner]
        at = start[low:high][owner] + at
        chosen = by_item[at]
        others = ragged_index(first_of_user[chosen], of_user[chosen])
        gaps = position[others] - np.repeat(rank[at], of_user[chosen])  # positive: it came before
        keys = np.repeat(owner, of_user[chosen]) * rows + items[others]
        if groups is not None:
            keys = keys * of + np.repeat(groups[chosen], of_user[chosen])
        keys = keys * (STEPS + 1) + np.where((gaps > 0) & (gaps <= STEPS), gaps, 0)
        keys.sort()
        keys, gaps = np.divmod(keys, STEPS + 1)
        begins = np.flatnonzero(np.diff(keys, prepend=-1))
        counts = np.diff(np.append(begins, len(keys))).astype(np.float64)
        steps = np.add.reduceat(of_gap[gaps], begins) if len(begins) else counts
        keys, group = (keys[begins], 0) if groups is None else np.divmod(keys[begins], of)
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        pair = np.cumsum(np.diff(keys, prepend=-1) != 0) - 1
        together, followed = np.zeros((len(first), of)), np.zeros((len(first), of))
        together[pair, group], followed[pair, group] = counts, steps
        owner, of_pair = keys[first] // rows, keys[first] % rows
        drawn = (n[owner + low] / taken[owner + low])[:, None]
        yield Together(low, high, owner, of_pair, together * drawn, followed * drawn)
        low = high


def _taken(users: NDArray[np.int64], pairs: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many users of each item are counted, i64 [I]: all of them, or the largest number, alike
    for all items that have more, which keeps to the limits of users and of pairs.

    Args:
        users: of each item, i64 [I].
        pairs: of events, that all users of each item make, f64 [I].
    """
    of_user = pairs / np.maximum(users, 1)
    low, high = 1, USERS
    while low < high:
        middle = (low + high + 1) // 2
        if float((of_user * np.minimum(users, middle)).sum()) <= MOST_PAIRS:
            low = middle
        else:
            high = middle - 1
    return np.minimum(users, low)


class Part(NamedTuple):
    """Neighbours of consecutive rows of the id table."""

    counts: NDArray[np.int64]
    items: NDArray[np.int32]
    similarities: NDArray[np.float32]


def best(
    owner: NDArray[np.int64],
    other: NDArray[np.integer],
    similarity: NDArray[np.float32],
    rows: int,
    most: int,
) -> Part:
    """The ``most`` similar ones of each owner (of ``rows``), of equal ones the lower rows."""
    held = similarity > 0
    owner, other, similarity = owner[held], other[held], similarity[held]
    counts = np.bincount(owner, minlength=rows)
    long = counts[owner] > most
    if long.any():
        some = np.flatnonzero(long)
        order = some[np.lexsort((-similarity[some], owner[some]))]
        size = np.where(counts > most, counts, 0)
        position = np.arange(len(order)) - np.repeat(np.cumsum(size) - size, size)
        held = ~long
        held[order[position < most]] = True
        owner, other, similarity = owner[held], other[held], similarity[held]
        counts = np.bincount(owner, minlength=rows)
    return Part(counts, other.astype(np.int32), similarity)
