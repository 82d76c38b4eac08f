"""Impressions of items by hour, counted while a server runs, for the counters of its indexes.

An index has the impressions of the log that it was built from. :class:`ItemCounts` counts later
ones from the store, each when its window is over, and says up to which time none is left out.
:meth:`~limerank.serving.current.Current.count_again` writes what an index lacks into it.
"""

from __future__ import annotations

import logging
import time as clock
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from limerank.data.counters import HOUR
from limerank.data.events import Event
from limerank.data.exposures import Exposure
from limerank.index.counting import Shown
from limerank.serving.feed import Feed
from limerank.serving.stores import Id

log = logging.getLogger("limerank.serving")
MOST_COUNTED = 2_000_000
"""Pairs of an item and an hour that are in memory at most; 400 bytes each, about."""
SECONDS = 0.5
"""That one call of :meth:`ItemCounts.advance` takes, about, where much is to be counted."""
MARKS = 24 * 14
"""Hours whose place in the store is known, at most: an index that was built from an earlier log
needs their impressions again."""


class ItemCounts:
    """Impressions by item and hour. One thread calls it.

    Args:
        feed: of the store, for this alone.
        unknown: those of some items that no index has; their impressions are forgotten where there
            are too many pairs.

    Attributes:
        needed: milliseconds since 1970, of each index: it lacks the impressions after this time.
            Earlier ones than all of these are not counted, and nothing is read where it is empty.
        left_out: impressions that were not counted, since too many pairs were in memory.
    """

    def __init__(
        self, feed: Feed, unknown: Callable[[Collection[Id]], Collection[Id]] = lambda items: ()
    ) -> None:
        self._unknown = unknown
        self.needed: frozenset[int] = frozenset()
        self.left_out = 0
        self._feed = feed
        self._cuts: frozenset[int] = frozenset()
        self._pairs: dict[tuple[Id, int], dict[str, int]] = {}
        self._sifted = False
        """Whether there were too many pairs since they were last dropped: only items that an index
        has get new ones then."""
        self._marks: deque[tuple[int, Mapping[int, int]]] = deque(maxlen=MARKS)

    def __len__(self) -> int:
        """Pairs of an item and an hour, or a part of it."""
        return len(self._pairs)

    @property
    def settled(self) -> int:
        """Milliseconds since 1970; all earlier impressions that an index lacks are counted."""
        return self._feed.settled

    def need(self, after: Iterable[int]) -> None:
        """State after which times indexes lack impressions, see :attr:`needed`."""
        needed = frozenset(after)
        self._sifted = self._sifted and needed == self.needed
        if not needed:
            self._pairs.clear()
        elif (
            not self.needed
            or min(needed) < min(self.needed)
            or any((time + 1) % HOUR for time in needed - self._cuts)
        ):
            self._begin(needed)
        elif (first := min(needed)) > min(self.needed):
            self._pairs = {key: of for key, of in self._pairs.items() if key[1] >= first}
        self.needed = needed

    def _begin(self, needed: frozenset[int]) -> None:
        """Count from the first of these times on. Hours are cut at each of them, so that what each
        index lacks can be distinguished."""
        self._pairs.clear()
        self._cuts = needed
        while self._marks and self._marks[-1][0] * HOUR > min(needed) + 1:
            self._marks.pop()
        if self._marks:
            hour, since = self._marks[-1]
            self._feed.restart(since, hour * HOUR - 1)
        else:
            self._feed.restart(dict.fromkeys(self._feed.since, 0))

    def advance(self, now: int | None = None) -> None:
        """Count what is over, for some time at most. What a client dates ahead is not counted."""
        if not self.needed or not self._feed.clocked:
            return
        first, until = min(self.needed), clock.monotonic() + SECONDS
        last = int(clock.time() * 1000) if now is None else now
        while clock.monotonic() < until:
            before = self._feed.since
            with self._feed.taking(now) as by_user:
                wanted = {
                    user: [one for one in exposures if first < one.time <= last]
                    for user, exposures in by_user.items()
                }
                followed = [
                    (some, self._feed.outcomes(user, some)) for user, some in wanted.items() if some
                ]
                for some, outcomes in followed:
                    self._add(some, outcomes)
            self._mark()
            if self._feed.since == before:
                return

    def shown(self, label: str, after: int, end: int) -> Shown:
        """All impressions after a time, one of :attr:`needed`, and before the hour ``end``;
        positive by a label."""
        some = [
            (item, (cut + 1) // HOUR, of)
            for (item, cut), of in self._pairs.items()
            if cut >= after and (cut + 1) // HOUR < end
        ]
        return Shown(
            [item for item, _, _ in some],
            np.array([hour for _, hour, _ in some], np.int64),
            np.array([of[""] for *_, of in some], np.int64),
            np.array([of.get(label, 0) for *_, of in some], np.int64),
        )

    def _mark(self) -> None:
        """Note how far the store was read before the first exposure of an hour."""
        hour = self._feed.latest // HOUR + 1
        if self._marks and self._marks[-1][0] == hour:
            self._marks.pop()
        self._marks.append((hour, self._feed.since))

    def _add(
        self, exposures: Sequence[Exposure], outcomes: Mapping[tuple[str, Id], Sequence[Event]]
    ) -> None:
        for one in exposures:
            begin = one.time // HOUR * HOUR - 1
            cut = max([begin, *(time for time in self._cuts if time < one.time)])
            for item in one.items:
                key = (item, cut)
                pair = self._pairs.get(key)
                if pair is None:
                    if not self._has_room(item):
                        self._leave_out()
                        continue
                    pair = self._pairs[key] = {"": 0}
                pair[""] += 1
                events = outcomes.get((one.ranking, item), ())
                for label in {name for of in events for name, at in of.labels.items() if at > 0}:
                    pair[label] = pair.get(label, 0) + 1

    def _has_room(self, item: Id) -> bool:
        """Whether a new pair of an item may be in memory. Impressions of items that no index has
        are forgotten once there are too many pairs; all pairs are looked at only once."""
        if len(self._pairs) >= MOST_COUNTED and not self._sifted:
            self._sifted = True
            unknown = set(self._unknown({one for one, _ in self._pairs}))
            for key in [key for key in self._pairs if key[0] in unknown]:
                self._leave_out(self._pairs.pop(key)[""])
        if self._sifted and self._unknown([item]):
            return False
        return len(self._pairs) < MOST_COUNTED

    def _leave_out(self, impressions: int = 1) -> None:
        if not self.left_out:
            log.warning(
                "counters of items: more than %d pairs of an item and an hour wait for the next "
                "refresh; other items are not counted until then",
                MOST_COUNTED,
            )
        self.left_out += impressions
