"""New events, sorted by user and time, merged with those of a dataset that is extended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limerank.data.prepare.partition import Array
from limerank.data.ragged import ragged_index


@dataclass(frozen=True)
class UserEvents:
    """Events by user, then time.

    Attributes:
        users: keys of the users, ascending, u64.
        counts: how many events each of them has, i64.
        columns: of the events.
    """

    users: NDArray[np.uint64]
    counts: NDArray[np.int64]
    columns: dict[str, Array]

    def __len__(self) -> int:
        return int(self.counts.sum())

    def part(self, first: int, last: int) -> UserEvents:
        """The users from position ``first`` to ``last``."""
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        rows = slice(int(ends[first]), int(ends[last]))
        columns = {name: array[rows] for name, array in self.columns.items()}
        return UserEvents(self.users[first:last], self.counts[first:last], columns)

    def where(self, keep: NDArray[np.bool_]) -> UserEvents:
        """Those of the events that are marked; users without events are left out."""
        owner = np.repeat(np.arange(len(self.users)), self.counts)[keep]
        counts = np.bincount(owner, minlength=len(self.users))
        some = counts > 0
        columns = {name: array[keep] for name, array in self.columns.items()}
        return UserEvents(self.users[some], counts[some], columns)


def together(
    earlier: Iterator[UserEvents], new: Iterator[UserEvents]
) -> Iterator[tuple[UserEvents, UserEvents]]:
    """Pairs of earlier and new events of the same range of users, in the order of users; one of a
    pair may be empty.

    Args:
        earlier: events of ascending users, a range of them at a time.
        new: the same; users behind the last earlier one come last.
    """
    waiting = next(new, None)
    for old in earlier:
        last = old.users[-1]
        parts: list[UserEvents] = []
        while waiting is not None and waiting.users[0] <= last:
            until = int(np.searchsorted(waiting.users, last, side="right"))
            parts.append(waiting.part(0, until))
            rest = waiting.part(until, len(waiting.users))
            waiting = rest if len(rest.users) else next(new, None)
        yield old, _joined(parts, old)
    while waiting is not None:
        yield waiting.part(0, 0), waiting
        waiting = next(new, None)


def _joined(parts: list[UserEvents], like: UserEvents) -> UserEvents:
    """Events of ascending users as one; of none, an empty one with the columns of ``like``."""
    parts = parts or [like.part(0, 0)]
    return UserEvents(
        np.concatenate([part.users for part in parts]),
        np.concatenate([part.counts for part in parts]),
        {name: np.concatenate([part.columns[name] for part in parts]) for name in like.columns},
    )


def merge(old: UserEvents, new: UserEvents, minor: list[str]) -> tuple[UserEvents, bool]:
    """Earlier and new events in one order: by user, then by the columns of ``minor``, of which the
    first is the time; those that are equal in all stay in the order old, new.

    Returns:
        The events, and whether an earlier and a new one share their user and time.
    """
    if not len(new):
        return old, False
    if not len(old):
        return new, False
    users = np.union1d(old.users, new.users)
    ranks = [np.repeat(np.searchsorted(users, part.users), part.counts) for part in (old, new)]
    counts = np.bincount(ranks[0], minlength=len(users))
    counts += np.bincount(ranks[1], minlength=len(users))
    # Only users that have new events are sorted.
    changed = np.isin(old.users, new.users)
    starts = np.cumsum(old.counts) - old.counts
    rows = ragged_index(starts[changed], old.counts[changed])
    rank = np.concatenate([ranks[0][rows], ranks[1]])
    keys = [np.concatenate([old.columns[name][rows], new.columns[name]]) for name in minor]
    order = np.lexsort((*reversed(keys), rank))
    of_new = np.flatnonzero(order >= len(rows))
    # Where each new event goes: behind the old ones that precede it, of its own and earlier users.
    before = np.searchsorted(ranks[0], ranks[1][order[of_new] - len(rows)], side="left")
    own = np.cumsum(order < len(rows))[of_new]
    first = np.concatenate([[0], np.cumsum(old.counts[changed])])
    of_rank = np.searchsorted(
        np.searchsorted(users, old.users[changed]), ranks[1][order[of_new] - len(rows)], side="left"
    )
    at = before + own - first[of_rank]
    chosen = order[of_new] - len(rows)
    columns = {
        name: np.insert(old.columns[name], at, new.columns[name][chosen]) for name in old.columns
    }
    return UserEvents(users, counts, columns), _tied(rank[order], keys[0][order], order < len(rows))


def _tied(rank: Array, time: Array, is_old: NDArray[np.bool_]) -> bool:
    """Whether an earlier and a new one of sorted events share user and time."""
    apart = (rank[1:] != rank[:-1]) | (time[1:] != time[:-1])
    group = np.cumsum(np.concatenate([[True], apart])) - 1
    olds = np.bincount(group, is_old, minlength=int(group[-1]) + 1)
    return bool(np.any((olds > 0) & (olds < np.bincount(group))))
