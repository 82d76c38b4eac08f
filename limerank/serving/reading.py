"""Reading an experiment: what users of each arm did with what they were shown.

An *outcome* of a label is a shown item that an event with the label (above 0) followed
(:mod:`limerank.data.attribution`). :func:`read` takes all exposures of a time from a store, as
``limerank ab`` does. :class:`Tally` follows a store while a server runs: it counts each exposure
once, when its window is over, so that its cost does not grow with the store.
"""

from __future__ import annotations

import math
import threading
import time as clock
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from limerank.data.attribution import WINDOW, attribute
from limerank.data.canonical import LARGEST_TIME
from limerank.data.events import Event
from limerank.data.exposures import Exposure
from limerank.metrics.experiments import (
    CONFIDENCE,
    PLANNED,
    Interval,
    Sums,
    difference,
    rate,
    sample_ratio,
    sequential_difference,
    sequential_mean,
)
from limerank.serving.feed import AT_ONCE, Feed
from limerank.serving.stores import EventStore, Id

Key = tuple[str, ...]
"""A count of a user: (label,), or (label, team, other team): outcomes of one team of an interleaved
ranking less those of the other."""
TALLIES = 2
"""Times that one step counts some exposures, at most."""
MOST_TALLIED = 100_000
"""Users whose counts a tally has; later ones are not counted, which it reports."""


class Counts(NamedTuple):
    """Of one user in one arm: requests, and outcomes by key."""

    requests: int
    outcomes: Mapping[Key, int]


NOTHING = Counts(0, {})


@dataclass
class ArmSums:
    """Sums over the users of an arm."""

    users: int = 0
    requests: int = 0
    squares: int = 0
    by_key: dict[Key, list[int]] = field(default_factory=dict)
    """Sums of a user's outcomes, of their squares, and of outcomes times requests."""

    def change(self, old: Counts, new: Counts) -> None:
        """A user's counts were ``old`` and are ``new``."""
        self.users += (new.requests > 0) - (old.requests > 0)
        self.requests += new.requests - old.requests
        self.squares += new.requests**2 - old.requests**2
        for key in new.outcomes.keys() | old.outcomes.keys():
            sums = self.by_key.setdefault(key, [0, 0, 0])
            x, before = new.outcomes.get(key, 0), old.outcomes.get(key, 0)
            sums[0] += x - before
            sums[1] += x * x - before * before
            sums[2] += x * new.requests - before * old.requests

    def per_request(self, key: Key) -> Sums:
        """Outcomes per request, by user."""
        x, xx, xy = self.by_key.get(key, (0, 0, 0))
        return Sums(self.users, x, self.requests, xx, self.squares, xy)

    def per_user(self, key: Key) -> Sums:
        """Outcomes per user."""
        x, xx, _ = self.by_key.get(key, (0, 0, 0))
        return Sums(self.users, x, self.users, xx, self.users, x)


def counts_of(
    exposures: Sequence[Exposure], outcomes: Mapping[tuple[str, Id], Sequence[Event]]
) -> dict[str, Counts]:
    """Arm -> the counts of a user with these exposures and what followed them."""
    requests: dict[str, int] = defaultdict(int)
    found: dict[str, dict[Key, int]] = defaultdict(lambda: defaultdict(int))
    for one in exposures:
        requests[one.arm] += 1
        teams = sorted(set(one.teams))
        for rank, item in enumerate(one.items):
            events = outcomes.get((one.ranking, item), ())
            for label in {name for of in events for name, value in of.labels.items() if value > 0}:
                found[one.arm][(label,)] += 1
                if len(teams) == 2:
                    sign = 1 if one.teams[rank] == teams[0] else -1
                    found[one.arm][(label, *teams)] += sign
    return {arm: Counts(count, dict(found[arm])) for arm, count in requests.items()}


@dataclass
class Reading:
    """Sums of all arms.

    Attributes:
        arms: name -> sums over the users.
        several: users who were shown rankings of several arms, as when shares change.
        fresh: arm -> users for the sample ratio: those whose first arm it is.
    """

    arms: dict[str, ArmSums] = field(default_factory=dict)
    several: int = 0
    fresh: dict[str, int] = field(default_factory=dict)

    def change(self, arm: str, old: Counts, new: Counts) -> None:
        """A user's counts in an arm were ``old`` and are ``new``."""
        self.arms.setdefault(arm, ArmSums()).change(old, new)

    def report(
        self,
        label: str,
        *,
        control: str | None = None,
        shares: Mapping[str, float] | None = None,
        confidence: float = CONFIDENCE,
        planned: int = PLANNED,
    ) -> dict[str, Any]:
        """Rates of a label by arm, and differences from one arm, as JSON values.

        Args:
            label: the label.
            control: the arm that others are compared with; that with most users if not given.
            shares: of the users, for the sample ratio; not checked if not given.
            confidence: of all intervals.
            planned: see :func:`~limerank.metrics.experiments.sequential_difference`.
        """
        key = (label,)
        names = sorted(self.arms)
        first = control or max(names, key=lambda name: self.arms[name].users, default="")
        found: dict[str, Any] = {"label": label, "control": first, "arms": {}}
        for name in names:
            sums = self.arms[name]
            one: dict[str, Any] = {
                "requests": sums.requests,
                "users": sums.users,
                "outcomes": sums.by_key.get(key, [0])[0],
                "per_request": _interval(rate(sums.per_request(key), confidence)),
                "per_user": _interval(rate(sums.per_user(key), confidence)),
            }
            if name != first and first in self.arms:
                for what in ("per_request", "per_user"):
                    mine, other = (getattr(self.arms[arm], what)(key) for arm in (name, first))
                    one[f"{what}_difference"] = _interval(difference(mine, other, confidence))
                    one[f"{what}_difference_sequential"] = _interval(
                        sequential_difference(mine, other, confidence, planned)
                    )
            teams = [of for of in sums.by_key if len(of) == 3 and of[0] == label]
            for of in teams:
                preference = sums.per_request(of)
                one["interleaved"] = {
                    "teams": list(of[1:]),
                    "credit_difference": _interval(rate(preference, confidence)),
                    "credit_difference_sequential": _interval(
                        sequential_mean(preference, confidence, planned)
                    ),
                }
            found["arms"][name] = one
        found["several_arms"] = self.several
        found["sample_ratio_p"] = self.sample_ratio(shares) if shares else None
        return found

    def sample_ratio(self, shares: Mapping[str, float]) -> float:
        """The p-value of the sample ratio of users who were new when they came to their arm."""
        return sample_ratio([self.fresh.get(arm, 0) for arm in shares], list(shares.values()))

    def labels(self) -> list[str]:
        """All labels with an outcome."""
        keys = {key for sums in self.arms.values() for key in sums.by_key}
        return sorted({key[0] for key in keys})

    def most_frequent(self) -> str | None:
        """The label with most outcomes in all arms; None where there is no outcome."""
        counts = {
            name: sum(sums.by_key.get((name,), [0])[0] for sums in self.arms.values())
            for name in self.labels()
        }
        return max(counts, key=lambda name: counts[name], default=None)


def _interval(found: Interval) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in found._asdict().items()}


def read(
    store: EventStore,
    *,
    since: int = 1 - LARGEST_TIME,
    until: int | None = None,
    window: float = WINDOW,
) -> Reading:
    """Read all exposures of a time, user by user.

    Args:
        store: the event store.
        since, until: time of the exposures, in milliseconds since 1970 (or an order); the end is
            excluded, and by default a window before now.
        window: seconds from an exposure to an outcome, at most.
    """
    length = round(1000 * window)
    end = int(clock.time() * 1000) - length if until is None else until
    found = Reading()
    for user in store.users():
        exposures = store.exposures(user, since - length, end + length)
        inside = [one for one in exposures if since <= one.time < end]
        if not inside:
            continue
        events = store.between(user, since - length, end + length)
        outcomes = attribute(exposures, events, length).outcomes
        counts = counts_of(inside, outcomes)
        for arm, count in counts.items():
            found.change(arm, NOTHING, count)
        found.several += len(counts) > 1
        found.fresh[inside[0].arm] = found.fresh.get(inside[0].arm, 0) + 1
    return found


class Tally:
    """Follows the exposures of a store. One thread calls :meth:`advance`; others read
    :attr:`reading` while they hold :attr:`lock`.

    Args:
        feed: of the store, for this alone.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.reading, self.uncounted, self.lock = Reading(), 0, threading.Lock()
        self._users: dict[Id, dict[str, Counts]] = {}

    @property
    def users(self) -> int:
        """How many users it has counted."""
        return len(self._users)

    def shares_changed(self) -> None:
        """Check the sample ratio by later users alone."""
        self.reading.fresh = {}

    def advance(self, now: int | None = None) -> int:
        """Count the next exposures of the feed. Returns how many."""
        with self._feed.taking(now) as by_user:
            followed = [
                (user, exposures, self._feed.outcomes(user, exposures))
                for user, exposures in by_user.items()
            ]
            for user, exposures, outcomes in followed:
                self._count(user, exposures, outcomes)
        return sum(map(len, by_user.values()))

    def step(self) -> None:
        """Count some exposures of the feed: as many as a background step may."""
        for _ in range(TALLIES):
            if self.advance() < AT_ONCE:
                break

    def forget(self, user: Id) -> None:
        """Take a deleted user out of all counts."""
        with self.lock:
            held = self._users.pop(user, {})
            self.reading.several -= len(held) > 1
            for arm, counts in held.items():
                self.reading.change(arm, counts, NOTHING)

    def _count(
        self,
        user: Id,
        exposures: Sequence[Exposure],
        outcomes: Mapping[tuple[str, Id], Sequence[Event]],
    ) -> None:
        held = self._users.get(user)
        if held is None:
            if len(self._users) >= MOST_TALLIED:
                self.uncounted += 1
                return
            held = self._users[user] = {}
            fresh = self.reading.fresh
            fresh[exposures[0].arm] = fresh.get(exposures[0].arm, 0) + 1
        with self.lock:
            for arm, more in counts_of(exposures, outcomes).items():
                old = held.get(arm, NOTHING)
                merged = dict(old.outcomes)
                for key, count in more.outcomes.items():
                    merged[key] = merged.get(key, 0) + count
                if arm not in held and len(held) == 1:
                    self.reading.several += 1
                held[arm] = Counts(old.requests + more.requests, merged)
                self.reading.change(arm, old, held[arm])
