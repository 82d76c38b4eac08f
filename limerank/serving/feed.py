"""The exposures of a store as they end: each once, when what followed it is known."""

from __future__ import annotations

import time as clock
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from limerank.data.attribution import WINDOW, attribute
from limerank.data.canonical import LARGEST_TIME
from limerank.data.events import Event
from limerank.data.exposures import Exposure
from limerank.serving.stores import EventStore, Id

AT_ONCE = 1000
"""Exposures that one call of :meth:`Feed.taking` reads, about."""
AHEAD = 300_000
"""Milliseconds by which the clock of a client may be ahead. An exposure of a later time has a wrong
time: it is taken at once, so that it does not hold up the others."""


class Feed:
    """Follows the exposures of a store, in their order of arrival within each part of it.

    Args:
        store: the event store.
        window: seconds from an exposure to an outcome, at most.
        clocked: whether the log's times are milliseconds since 1970; an exposure is over when its
            window is. In a log with an order alone it is over at once.

    Attributes:
        since: part of the store -> its last change that was taken.
        latest: milliseconds since 1970 of the latest exposure that was taken.
    """

    def __init__(self, store: EventStore, window: float = WINDOW, *, clocked: bool = True) -> None:
        self.store, self.clocked = store, clocked
        self._length = round(1000 * window)
        self.since: Mapping[int, int] = {}
        self.restart(dict.fromkeys(range(store.parts), 0))

    def restart(self, since: Mapping[int, int], latest: int = -LARGEST_TIME) -> None:
        """Continue after other changes.

        Args:
            since, latest: see the attributes.
        """
        self.since, self.latest = dict(since), latest
        self._open: dict[int, int] = {}
        self._reached = dict.fromkeys(since, -LARGEST_TIME)

    @property
    def settled(self) -> int:
        """Milliseconds since 1970 up to which all exposures that the store had were taken; none of
        a log with an order alone is."""
        return min(self._reached.values()) if self.clocked else -LARGEST_TIME

    @contextmanager
    def taking(self, now: int | None = None) -> Iterator[dict[Id, list[Exposure]]]:
        """The next exposures whose window is over, by user; about :data:`AT_ONCE` at most. If the
        block raises, the next call has them again."""
        now = int(clock.time() * 1000) if now is None else now
        over, latest, reached = now - self._length, self.latest, dict(self._reached)
        # A part is read again when the window of its first exposure that is left is over.
        since = {
            part: change for part, change in self.since.items() if self._open.get(part, now) <= now
        }
        waiting = {part: end for part, end in self._open.items() if end > now}
        last, found = self.store.shown(since, AT_ONCE)
        by_user: dict[Id, list[Exposure]] = {}
        for part, change, one in found:
            if part in waiting:
                continue
            if self.clocked and over < one.time <= now + AHEAD:
                last[part] = change - 1
                waiting[part] = one.time + self._length
                reached[part] = min(one.time, now)
                continue
            by_user.setdefault(one.user, []).append(one)
            latest = max(latest, min(one.time, over))
        # A part that has more is not settled: its exposures may be in any order of time.
        for part, change in since.items():
            if part not in waiting and last[part] == change:
                reached[part] = over
        yield by_user
        self.since, self.latest = {**self.since, **last}, latest
        self._open, self._reached = waiting, reached

    def outcomes(
        self, user: Id, exposures: Sequence[Exposure]
    ) -> dict[tuple[str, Id], list[Event]]:
        """What followed the exposures of a user, see :func:`~limerank.data.attribution.attribute`;
        other exposures of the same time may be in it."""
        low = min(one.time for one in exposures) - self._length
        high = max(one.time for one in exposures) + self._length + 1
        around = self.store.exposures(user, low, high)
        return attribute(around, self.store.between(user, low, high), self._length).outcomes
