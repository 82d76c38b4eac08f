"""The plain model: what a store must contain, as the contract of stores says, in plain Python.

It has no versions, indexes, caches or bytes: users with their events, features and exposures, and
live items, each in every form that it ever had. An answer that was computed from one step to
another must agree with a form of that time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from limerank.data.events import Event
from limerank.data.exposures import Exposure
from limerank.serving.stores import Id

T = TypeVar("T")
ACCEPTED, DUPLICATE, EXPIRED = "accepted", "duplicate", "expired"


@dataclass(frozen=True)
class UserForm:
    """A user at one moment.

    Attributes:
        events: in their order: by time, then by id.
        exposures: by time, then by ranking.
        features: the user's own features.
    """

    events: tuple[Event, ...] = ()
    exposures: tuple[Exposure, ...] = ()
    features: Mapping[str, Any] = field(default_factory=dict)


class Past(Generic[T]):
    """Every form that a thing had, each with the step from which on it had it."""

    def __init__(self, first: T) -> None:
        self.forms: list[tuple[int, T]] = [(-1, first)]

    @property
    def now(self) -> T:
        """The present form."""
        return self.forms[-1][1]

    def change(self, step: int, form: T) -> None:
        self.forms.append((step, form))

    def between(self, first: int, last: int) -> list[tuple[int, T]]:
        """The form at one step, and all that followed it until another, each with its step."""
        begun = [one for one in self.forms if one[0] < first][-1:]
        return begun + [one for one in self.forms if first <= one[0] <= last]


Catalogue = Mapping[Id, int | None]
"""Live items: the variant of their columns, or None where the item was removed."""


VARIANT = 0.25
"""The column ``length`` of variant v of an item is a whole number and v times this."""


def variant_of(columns: Mapping[str, Any]) -> int:
    """The variant of an item with these columns."""
    return round(columns["length"] % 1 / VARIANT)


class Truth:
    """What has to be true.

    Args:
        step, now: tell the present step, and the present time in milliseconds since 1970.
        most: events of a user, at most; None: all.
        most_exposures: exposures of a user, at most.

    Attributes:
        catalogue: the live items.
        appended: calls of :meth:`append` so far: step, events, and the outcome of each.
        shown: the same of :meth:`show`.
        exposures: every exposure that was stored, with the time at which it was.
    """

    def __init__(
        self,
        step: Callable[[], int],
        now: Callable[[], int],
        most: int | None,
        most_exposures: int,
    ) -> None:
        self._step, self._now = step, now
        self.most, self.most_exposures = most, most_exposures
        self.exposures: list[tuple[int, Exposure]] = []
        self.users: dict[Id, Past[UserForm | None]] = {}
        self.catalogue: Past[Catalogue] = Past({})
        self.appended: list[tuple[int, Sequence[Event], list[str]]] = []
        self.shown: list[tuple[int, Sequence[Exposure], list[str]]] = []

    def user(self, user: Id) -> Past[UserForm | None]:
        """A user's forms; None while the store does not know the user."""
        return self.users.setdefault(user, Past(None))

    def _change(self, user: Id, form: UserForm | None) -> None:
        self.user(user).change(self._step(), form)

    def append(self, events: Sequence[Event]) -> list[str]:
        """Store events: of a user's events of one id the first counts, and the latest ``most``."""
        outcomes = [DUPLICATE] * len(events)
        for user in dict.fromkeys(event.user for event in events):
            before = self.user(user).now or UserForm()
            held = {event.id: event for event in before.events}
            fresh: dict[bytes, int] = {}
            for position, event in enumerate(events):
                if event.user == user and event.id not in held:
                    fresh.setdefault(event.id, position)
            for position in sorted(fresh.values(), key=lambda one: by_time(events[one])):
                event = events[position]
                held[event.id] = event
                outcomes[position] = ACCEPTED
                if self.most is not None and len(held) > self.most:
                    oldest = min(held.values(), key=by_time)
                    del held[oldest.id]
                    if oldest is event:
                        outcomes[position] = EXPIRED
            ordered = tuple(sorted(held.values(), key=by_time))
            self._change(user, replace(before, events=ordered))
        self.appended.append((self._step(), events, outcomes))
        return outcomes

    def show(self, exposures: Sequence[Exposure]) -> list[str]:
        """Store exposures: the first of a ranking counts, and the latest ``most_exposures``."""
        outcomes = []
        for one in exposures:
            before = self.user(one.user).now or UserForm()
            held = {other.ranking: other for other in before.exposures}
            outcome = DUPLICATE if one.ranking in held else ACCEPTED
            held.setdefault(one.ranking, one)
            ordered = sorted(held.values(), key=lambda other: (other.time, other.ranking))
            latest = tuple(ordered[-self.most_exposures :])
            if outcome == ACCEPTED:
                self.exposures.append((self._now(), one))
                if one not in latest:
                    outcome = EXPIRED
            self._change(one.user, replace(before, exposures=latest))
            outcomes.append(outcome)
        self.shown.append((self._step(), exposures, outcomes))
        return outcomes

    def set_features(self, user: Id, features: Mapping[str, Any]) -> None:
        """Replace a user's features."""
        before = self.user(user).now or UserForm()
        self._change(user, replace(before, features=dict(features)))

    def delete(self, user: Id) -> None:
        """Forget a user."""
        self._change(user, None)

    def put_items(self, items: Mapping[Id, Mapping[str, Any] | None]) -> None:
        """Add, change or remove live items."""
        variants = {id: None if of is None else variant_of(of) for id, of in items.items()}
        self.catalogue.change(self._step(), {**self.catalogue.now, **variants})


def by_time(event: Event) -> tuple[int, bytes]:
    """The order of a user's events."""
    return event.time, event.id


def arm_of_user(shares: Mapping[str, float], user: Id, salt: str) -> str:
    """Weighted rendezvous hashing: the arm with the largest ``-share / ln(number)``, where the
    number in (0, 1] comes from a hash of salt, name and user."""
    found = {}
    for name, share in shares.items():
        digest = hashlib.blake2b(f"{salt}\0{name}\0{user}".encode(), digest_size=8).digest()
        found[name] = -share / math.log((int.from_bytes(digest, "big") + 1) / (1 << 64))
    return max(sorted(found), key=lambda name: found[name])
