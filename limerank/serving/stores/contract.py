"""The contract of all event stores.

A store holds events, users' own features, items that were added or changed live, for each user the
states that models computed from the events, and exposures: the rankings that the user was shown. It
guarantees:

- **Durable.** :meth:`~EventStore.append` and every other change return when the change survives a
  crash of process and machine. A change that raised may or may not be stored; repeating it is safe.
- **Idempotent.** A user's event whose id is stored already is a duplicate, whatever its other
  fields are, and changes nothing.
- **One order.** A user's events are ordered by time, and events of one time by the bytes of their
  ids. Their order of arrival makes no difference.
- **Bounded**, where ``most`` is given: each user's latest ``most`` events are stored. An event that
  is older than all events of a full user is *expired*: it is refused, and so are events that were
  dropped before and are sent again.
- **Exposures** are durable and idempotent like events: a user's exposure whose ranking is stored
  already is a duplicate. They are bounded always: each user's latest ``most_exposures`` are stored.
  They change no version, and are deleted with their user.
- **Versions.** A user's version changes with each accepted event and each change of the features. A
  user who was deleted and returns never gets an earlier version again.
- **States** belong to the version that they were computed from. A state of any other version than
  the user's present one is refused, so that a slow process never replaces a newer state.
- **Usable values.** Items, features and events that could not be read, used for ranking, written as
  JSON or deleted again are refused with DataError (:mod:`limerank.serving.stores.values`).

Stores are safe to use from several threads, and several processes may share one: each opens it for
itself. A store cannot be pickled.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from enum import StrEnum
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, TypeVar

from limerank.data.canonical import external_id
from limerank.data.events import Event
from limerank.data.exposures import Exposure, unpack_exposure
from limerank.data.packing import unpack
from limerank.errors import DataError, FormatError, SpecError, StoreError

Id = int | str

log = logging.getLogger("limerank.serving.stores")

MOST_STATES = 4
"""States of a user, at most: those of the model that is served, of one to be served next, and of
arms. Of more, those that were written longest ago leave."""
MOST_EXPOSURES = 1000
"""Exposures stored of a user, at most, unless the store is opened with another bound."""
TRIM = 4096
"""Events of a user that one call drops after ``most`` was lowered, at most."""


class Outcome(StrEnum):
    """The outcome of appending an event or an exposure."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    EXPIRED = "expired"


class Version(NamedTuple):
    """A user's version: the number of changes since the user was created as ``born``, a random
    number."""

    born: int
    changes: int


class Held(NamedTuple):
    """A user as stored.

    Attributes:
        version: the user's version.
        features: the user's own features, raw.
        events: the requested events, in their order.
        complete: whether these are all of the user's events, not only those accepted after the
            requested version.
    """

    version: Version
    features: dict[str, Any]
    events: list[Event]
    complete: bool


class State(NamedTuple):
    """A state computed from a user's events.

    Attributes:
        fingerprint: identifies the model and settings that computed it.
        version: the user's version at that time.
        data: its bytes.
    """

    fingerprint: bytes
    version: Version
    data: bytes


class Counts(NamedTuple):
    """The number of users and events in a store."""

    users: int
    events: int


def origin(identity: str) -> str:
    """What the identities of one store have in common, before and after it lost changes."""
    return identity.partition(".")[0]


class EventStore(abc.ABC):
    """A store of events; the module's docstring lists its guarantees.

    Every method raises :class:`~limerank.errors.StoreError` where the store cannot be reached, is
    full or is too busy, FormatError where stored bytes are damaged, and DataError for an id or a
    value that it cannot store. Except when a store is being opened, the messages contain neither
    its address nor its path; ``detail`` does.

    Attributes:
        most: events stored of a user, at most; None: all.
        most_exposures: exposures stored of a user, at most.
        local: whether this process reads the store itself, in microseconds.
        parts: into how many parts users are divided; see :meth:`shown`.
        address: the store's address or path, for logs and the command line; never with a password.
    """

    local = False
    parts = 1
    address: str

    def __init__(self, most: int | None, most_exposures: int = MOST_EXPOSURES) -> None:
        if most is not None and most < 1:
            raise SpecError(f"most is {most} events of a user, expected 1 or more")
        if most_exposures < 1:
            raise SpecError(f"most_exposures is {most_exposures} of a user, expected 1 or more")
        self.most, self.most_exposures = most, most_exposures

    @abc.abstractmethod
    def append(self, events: Sequence[Event]) -> list[Outcome]:
        """Store events; returns the outcome of each when they are durable.

        After ``most`` was lowered, the users of these events lose their oldest events, at most
        :data:`TRIM` in one call.
        """

    def appending(self, events: Sequence[Event]) -> Future[list[Outcome]]:
        """:meth:`append` without waiting, where a store supports it: events that are passed at
        about the same time become durable together. If the future raises, the events may or may
        not be stored; appending them again is safe."""
        outcomes: Future[list[Outcome]] = Future()
        outcomes.set_result(self.append(events))
        return outcomes

    @abc.abstractmethod
    def version(self, user: Id) -> Version | None:
        """The user's version; None for an unknown user. The cheapest read."""

    @abc.abstractmethod
    def held(self, user: Id, since: Version | None = None) -> Held | None:
        """A user's features and events; None for an unknown user.

        Args:
            user: external id.
            since: only the events accepted after this version; the cost grows with their number
                alone. All events where that is not possible: the user was deleted and created again
                since, or events were dropped since.

        After ``most`` was lowered, a user who has more events loses the oldest ones first, at most
        :data:`TRIM` in one call.
        """

    @abc.abstractmethod
    def latest(self, user: Id, count: int, before: int | None = None) -> list[Event]:
        """The latest ``count`` events of a user, or of those before a time, oldest first; empty for
        an unknown user. No other events are read."""

    @abc.abstractmethod
    def between(self, user: Id, since: int, until: int) -> list[Event]:
        """The events of a user from a time to another, that one excluded, oldest first; empty for
        an unknown user. No other events are read."""

    @abc.abstractmethod
    def show(self, exposures: Sequence[Exposure]) -> list[Outcome]:
        """Store exposures; returns the outcome of each when they are durable. Unknown users are
        created, without events. Versions do not change."""

    @abc.abstractmethod
    def showing(self, exposures: Sequence[Exposure]) -> Future[list[Outcome]]:
        """:meth:`show` without waiting, as :meth:`appending` is to :meth:`append`."""

    @abc.abstractmethod
    def exposures(self, user: Id, since: int, until: int) -> list[Exposure]:
        """The exposures of a user from a time to another, that one excluded, oldest first; those of
        one time by their rankings. Empty for an unknown user."""

    @abc.abstractmethod
    def exposure_count(self, user: Id) -> int:
        """The number of a user's exposures. None is read."""

    @abc.abstractmethod
    def shown(
        self, since: Mapping[int, int], limit: int
    ) -> tuple[dict[int, int], list[tuple[int, int, Exposure]]]:
        """The exposures stored after given changes. Each part of the store numbers its own changes.

        Args:
            since: part -> the change after which its exposures are wanted, 0 for all. Other parts
                are not read.
            limit: about how many are read at most, in equal shares of the parts.

        Returns:
            Part -> the change to continue from, which stays where there are no more; and (part,
            change, exposure) in the order of arrival within each part, without those that were
            dropped or deleted since. Damaged ones are left out and logged.
        """

    @abc.abstractmethod
    def set_features(self, user: Id, features: Mapping[str, Any]) -> None:
        """Replace the user's own features; an unknown user is created.

        Raises:
            DataError: a value is not a boolean, a 64-bit integer, a finite number, text, null or a
                list of those, or too large.
        """

    @abc.abstractmethod
    def delete_user(self, user: Id) -> bool:
        """Delete a user: events, exposures, features and states. False: the user was unknown.

        Nothing of the user is read, so that a damaged user can be deleted, too.

        Raises:
            StoreError: the user is deleted, but the old bytes could not be overwritten yet. Another
                call tries again.
        """

    @abc.abstractmethod
    def state(self, user: Id, kind: str) -> State | None:
        """The user's state of this kind, of any version; None where there is none."""

    @abc.abstractmethod
    def put_state(self, user: Id, kind: str, state: State) -> bool:
        """Store a state, in place of an earlier one of the kind; False where its version is not the
        user's present one. If the user has more than :data:`MOST_STATES` then, the one that was
        written longest ago is deleted."""

    @abc.abstractmethod
    def drop_states(self, user: Id, kinds: Collection[str]) -> int:
        """Delete a user's states of all kinds but these; returns how many there were."""

    @abc.abstractmethod
    def users(self) -> Iterator[Id]:
        """All users, in no order. Users created or deleted meanwhile may or may not be included."""

    @abc.abstractmethod
    def named(self, text: str, limit: int) -> list[Id]:
        """Users whose id begins with a text: the first ``limit`` of them in the order of their
        text. No others are read."""

    @abc.abstractmethod
    def event_count(self, user: Id) -> int | None:
        """The number of a user's events; None for an unknown user. No event is read, so that this
        works for a damaged user, too."""

    @abc.abstractmethod
    def check(self) -> list[str]:
        """Problems that an operator has to solve, a line each; empty: none.

        A server calls this every few seconds, since settings and files of a store may change while
        it is open. The lines contain neither address nor path. StoreError where the store cannot be
        reached at all.
        """

    @abc.abstractmethod
    def counts(self) -> Counts:
        """The number of users and events."""

    @abc.abstractmethod
    def identity(self) -> str:
        """A random text that no other store has, constant as long as the store exists. A store that
        was emptied or created again has another one. A store that may have lost its latest changes
        has another text with the same :func:`origin`: numbers of changes do not identify them."""

    @abc.abstractmethod
    def put_items(self, items: Mapping[Id, Mapping[str, Any] | None]) -> int:
        """Add or change live items: id -> values of the item table's columns, or None: removed.

        Returns:
            The number of changes so far; these are the latest ``len(items)`` of them. Other
            processes may have made changes before that the caller has not read: continue reading
            from the number that :meth:`items` returned, never from this one.

        Raises:
            DataError: as for :meth:`set_features`; nothing is changed then.
        """

    @abc.abstractmethod
    def items(
        self, since: int = 0, limit: int | None = None
    ) -> tuple[int, dict[Id, dict[str, Any] | None]]:
        """The items changed after the first ``since`` changes, in the order of the changes, each in
        its present form; and the number of changes that this includes.

        Damaged items are left out and logged.

        Args:
            since: how many changes the caller knows.
            limit: items of the earliest changes, at most; continue with the returned number. All
                when not given.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Finish pending writes and close; afterwards every method raises StoreError."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an event store cannot be pickled: open it in the other process, by its address"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


E = TypeVar("E", StoreError, FormatError)


def trouble(
    kind: type[E], address: str, text: str, cause: object = "", *, opening: bool = False
) -> E:
    """An error of a store, whose message is "the event store" and the text. Its address and the
    cause are in the ``detail`` alone, or in the message, too, where a store is being opened."""
    reason = f" ({cause})" if str(cause) else ""
    detail = f"the event store {address} {text}{reason}"
    return kind(detail if opening else f"the event store {text}", detail=detail)


def renamed(what: str, user: Id, rows: Iterable[tuple[bytes, int, bytes]]) -> list[Event]:
    """Events (bytes, time, id) that an earlier version stored under ``what``, which is not the one
    form of an id, as events of ``user``. Damaged events are left out and logged."""
    found, damaged = [], 0
    for data, time, id in rows:
        try:
            event = unpack(data, what, time, id)
            item = external_id("item", event.item)
        except (FormatError, DataError):
            damaged += 1
        else:
            found.append(replace(event, user=user, item=item))
    if damaged:
        log.error("%d events of the event store were damaged and are lost", damaged)
    return found


def readable(
    rows: Iterable[tuple[int, int, str, bytes, int, str]],
) -> list[tuple[int, int, Exposure]]:
    """Exposures (part, change, user, bytes, time, ranking) that can be read; damaged ones are
    logged."""
    found, damaged = [], 0
    for part, change, user, data, time, ranking in rows:
        try:
            one = unpack_exposure(data, external_id("user", user), time, ranking)
        except (FormatError, DataError):
            damaged += 1
        else:
            found.append((part, change, one))
    if damaged:
        log.error("%d exposures of the event store are damaged and left out", damaged)
    return found


def one_form(user: str) -> Id | None:
    """The one form of a user's id that an earlier version stored; None where it is the same text
    or not an id."""
    try:
        form = external_id("user", user)
    except DataError:
        return None
    return None if str(form) == user else form


def by_user(events: Iterable[Event]) -> dict[Id, list[tuple[int, Event]]]:
    """Events with their positions, by user."""
    parts: dict[Id, list[tuple[int, Event]]] = {}
    for position, event in enumerate(events):
        parts.setdefault(event.user, []).append((position, event))
    return parts
