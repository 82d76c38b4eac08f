"""What every event store does.

A store keeps events, users' own features, items that were added or changed live, and for each user
the states that models made of the events. What it promises:

- **Durable.** :meth:`~EventStore.append` and every other change return when the change survives a
  crash of process and machine. A change that raised may or may not be there; making it again is
  safe.
- **Idempotent.** A user's event whose id is held already is a duplicate, whatever else it says, and
  changes nothing.
- **One order.** A user's events are ordered by time, and events of one time by the bytes of their
  ids. When they arrived makes no difference.
- **Bounded**, where ``most`` is given: of each user the latest so many events are held. An event
  older than all of a full user's is *expired*: it is refused, and so are events that were dropped
  before and are sent again.
- **Versions.** A user's version changes with each accepted event and each change of the features. A
  user who was deleted and comes back never has an old version again.
- **States** are kept for the version that they were made of. One of another version than the user's
  present one is refused, so that a slow process never replaces a newer state.
- **What is held can be used.** Items, features and events that could not be read, ranked with,
  shown as JSON or deleted again are refused with DataError (:mod:`limerank.serving.stores.values`).

Stores are safe to use from several threads, and several processes may share one: each opens it for
itself. A store cannot be pickled.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from enum import StrEnum
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, TypeVar

from limerank.data.canonical import external_id
from limerank.data.events import Event
from limerank.data.packing import unpack
from limerank.errors import DataError, FormatError, SpecError, StoreError

Id = int | str

log = logging.getLogger("limerank.serving.stores")

TRIM = 4096
"""Events of a user that are dropped in one call where ``most`` is lower than it was, at most."""


class Outcome(StrEnum):
    """What became of an event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    EXPIRED = "expired"


class Version(NamedTuple):
    """How far a user has come: ``changes`` since it was ``born``, a random number."""

    born: int
    changes: int


class Held(NamedTuple):
    """What a store holds of a user.

    Attributes:
        version: of the user.
        features: the user's own features, raw.
        events: in their order, those asked for.
        complete: whether these are all of the user's events; else, those accepted since the version
            that was asked for.
    """

    version: Version
    features: dict[str, Any]
    events: list[Event]
    complete: bool


class State(NamedTuple):
    """A state made of a user's events.

    Attributes:
        fingerprint: of what made it.
        version: of the user, when it was made.
        data: its bytes.
    """

    fingerprint: bytes
    version: Version
    data: bytes


class Counts(NamedTuple):
    """How many users and events a store holds."""

    users: int
    events: int


class EventStore(abc.ABC):
    """A store of events; see the module's text for what all of them promise.

    Every method raises :class:`~limerank.errors.StoreError` where the store cannot be reached, is
    full or is too busy, FormatError where what it holds is damaged, and DataError for an id or a
    value that it cannot hold. Their messages name neither the address nor the path of the store,
    but for those of opening one; their ``detail`` does.

    Attributes:
        most: events held of a user, at most; None: all.
        local: whether questions are answered by this process itself, in microseconds.
        address: where the store is, for logs and the command line; never with a password.
    """

    local = False
    address: str

    def __init__(self, most: int | None) -> None:
        if most is not None and most < 1:
            raise SpecError(f"a store keeps at most {most} events of a user; expected 1 or more")
        self.most = most

    @abc.abstractmethod
    def append(self, events: Sequence[Event]) -> list[Outcome]:
        """Keep events; returns what became of each, when it is durable.

        Where ``most`` is lower than it was, the users of the events lose their oldest ones, at most
        :data:`TRIM` in one call.
        """

    def appending(self, events: Sequence[Event]) -> Future[list[Outcome]]:
        """:meth:`append` without waiting, where a store can: what is given at about the same time
        becomes durable at once. A promise that is not kept may still come true."""
        promise: Future[list[Outcome]] = Future()
        promise.set_result(self.append(events))
        return promise

    @abc.abstractmethod
    def version(self, user: Id) -> Version | None:
        """The user's version; None for one that the store does not hold. The cheapest question."""

    @abc.abstractmethod
    def held(self, user: Id, since: Version | None = None) -> Held | None:
        """What is held of a user, or None.

        Args:
            user: external id.
            since: only the events accepted after this version, at the cost of what happened since.
                All of them where that cannot be told: the version is of another life of this user,
                or events were dropped since.

        Of a user who has more events than ``most``, which was lowered, the oldest ones are dropped
        before, at most :data:`TRIM` in one call.
        """

    @abc.abstractmethod
    def latest(self, user: Id, count: int, before: int | None = None) -> list[Event]:
        """The latest ``count`` events of a user, or of those before a time, oldest first; empty for
        an unknown one. No others are read."""

    @abc.abstractmethod
    def set_features(self, user: Id, features: Mapping[str, Any]) -> None:
        """Replace the user's own features; a new user is made.

        Raises:
            DataError: a value is not a boolean, a 64-bit integer, a finite number, text, null or a
                list of those, or too large.
        """

    @abc.abstractmethod
    def delete_user(self, user: Id) -> bool:
        """Forget a user for good: events, features and states. False: there was none.

        Nothing of the user is read, so that a damaged one can be deleted, too.

        Raises:
            StoreError: the user is deleted, but its old bytes could not be overwritten yet. Calling
                this again tries to.
        """

    @abc.abstractmethod
    def state(self, user: Id, kind: str) -> State | None:
        """The state of this kind, whatever its version; None where there is none."""

    @abc.abstractmethod
    def put_state(self, user: Id, kind: str, state: State) -> bool:
        """Keep a state; False where its version is not the user's present one."""

    @abc.abstractmethod
    def users(self) -> Iterator[Id]:
        """All users, in no order. Users that come or go meanwhile may or may not be among them."""

    @abc.abstractmethod
    def named(self, text: str, limit: int) -> list[Id]:
        """Users whose id begins with a text, in the order of text, at most ``limit``. A store that
        keeps no order gives any of them: the one whose id is the text, and those that it comes upon
        in a bounded time."""

    @abc.abstractmethod
    def event_count(self, user: Id) -> int | None:
        """How many events are held of a user; None for one that the store does not hold. No event
        is read, so that it can be told of a damaged user, too."""

    @abc.abstractmethod
    def check(self) -> list[str]:
        """What an operator has to look after, a line each; empty: nothing.

        Asked every few seconds by whoever serves from the store: its settings and its files may
        change while it is open. The lines name neither address nor path. StoreError where the store
        cannot be reached at all.
        """

    @abc.abstractmethod
    def counts(self) -> Counts:
        """How many users and events are held."""

    @abc.abstractmethod
    def identity(self) -> str:
        """What tells this store from every other one, for as long as it exists: a random text. A
        store that was emptied or made anew has another."""

    @abc.abstractmethod
    def put_items(self, items: Mapping[Id, Mapping[str, Any] | None]) -> int:
        """Add or change live items: id -> values of the item table's columns, or None: removed.

        Returns:
            The number of changes so far, of which the latest ``len(items)`` are these. Others may
            have made changes before them that the caller has not read: go on reading from where
            :meth:`items` was read to, never from this number.

        Raises:
            DataError: as for :meth:`set_features`; nothing is changed then.
        """

    @abc.abstractmethod
    def items(
        self, since: int = 0, limit: int | None = None
    ) -> tuple[int, dict[Id, dict[str, Any] | None]]:
        """The items changed after the first ``since`` changes, each as it is now, in the order of
        the changes; and how many changes that is up to.

        Damaged items are left out and logged.

        Args:
            since: how many changes are known.
            limit: items, at most; those of the earliest changes. The number returned then is the
                place to go on from. All when not given.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Finish what is under way and let go; afterwards every method raises StoreError."""

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
    """An error of a store: ``the event store`` and the text. Where the store is, and what it said,
    stand in the detail alone, and in the message only where a store is being opened."""
    reason = f" ({cause})" if str(cause) else ""
    detail = f"the event store {address} {text}{reason}"
    return kind(detail if opening else f"the event store {text}", detail=detail)


def renamed(what: str, user: Id, rows: Iterable[tuple[bytes, int, bytes]]) -> list[Event]:
    """Events (bytes, time, id) that an earlier version kept under ``what``, which is not the one
    form of an id, as those of ``user``. What is damaged is left out and logged."""
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
        log.error("%d events of the event store were damaged and are gone", damaged)
    return found


def one_form(user: str) -> Id | None:
    """The one form of a user's id that an earlier version kept, where it is another one."""
    try:
        form = external_id("user", user)
    except DataError:
        return None
    return None if str(form) == user else form


def by_user(events: Iterable[Event]) -> dict[Id, list[tuple[int, Event]]]:
    """Events with their places, user by user."""
    parts: dict[Id, list[tuple[int, Event]]] = {}
    for position, event in enumerate(events):
        parts.setdefault(event.user, []).append((position, event))
    return parts
