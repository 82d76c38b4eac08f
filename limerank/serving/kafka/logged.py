"""A store whose changes are in the log before they are in the store.

The order is what makes the log one of record: a change that was acknowledged is in both. After a
failure in between, the log has a change that the store lacks, and the client got an error: sending
it again, or reading the log into the store, completes it, and it counts once. The other order, or a
store that a reader of the log alone writes, would lose one of these: the log as a superset of the
store, or rankings that contain what was acknowledged before them.

States are derived from the events, and not logged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from limerank.data.events import Event
from limerank.data.exposures import Exposure
from limerank.serving.kafka.client import trouble
from limerank.serving.kafka.records import Change, Features, Forget, Item, record_of
from limerank.serving.kafka.writing import EventLog
from limerank.serving.stores.contract import Counts, EventStore, Held, Id, Outcome, State, Version

T = TypeVar("T")
GRACE_SECONDS = 1.0
"""Seconds beyond those of the log that a waiting change allows for the client's own deadline."""


class LoggedStore(EventStore):
    """An event store that writes to a log first.

    Args:
        store: the store, which this one closes.
        log: the log, which this one closes.

    Raises:
        StoreError: of every change that the brokers do not acknowledge in time; nothing is in the
            store then.
        DataError: a change is larger than the log accepts.
    """

    def __init__(self, store: EventStore, log: EventLog) -> None:
        super().__init__(store.most, store.most_exposures)
        self.store, self.log = store, log
        self.local, self.parts, self.address = store.local, store.parts, store.address

    def _after(self, changes: Sequence[Change], then: Callable[[], Future[T]]) -> Future[T]:
        """The result of a change of the store, which begins when the log has the changes."""
        result: Future[T] = Future()
        result.set_running_or_notify_cancel()

        def copied(done: Future[T]) -> None:
            error = done.exception()
            if error is None:
                result.set_result(done.result())
            else:
                result.set_exception(error)

        def logged(done: Future[None]) -> None:
            error = done.exception()
            if error is None:
                try:
                    then().add_done_callback(copied)
                except Exception as refused:  # noqa: BLE001  (it is the result)
                    error = refused
            if error is not None:
                result.set_exception(error)

        self.log.write([record_of(change) for change in changes]).add_done_callback(logged)
        return result

    def _logged(self, changes: Sequence[Change]) -> None:
        """Wait until the log has the changes."""
        written = self.log.write([record_of(change) for change in changes])
        try:
            written.result(self.log.seconds + GRACE_SECONDS)
        except TimeoutError:
            raise trouble(self.log.address, "does not answer; try again later") from None

    # Changes

    def append(self, events: Sequence[Event]) -> list[Outcome]:
        if events:
            self._logged(events)
        return self.store.append(events)

    def appending(self, events: Sequence[Event]) -> Future[list[Outcome]]:
        return self._after(events, lambda: self.store.appending(events))

    def show(self, exposures: Sequence[Exposure]) -> list[Outcome]:
        if exposures:
            self._logged(exposures)
        return self.store.show(exposures)

    def showing(self, exposures: Sequence[Exposure]) -> Future[list[Outcome]]:
        return self._after(exposures, lambda: self.store.showing(exposures))

    def set_features(self, user: Id, features: Mapping[str, Any]) -> None:
        self._logged([Features(user, features)])
        self.store.set_features(user, features)

    def delete_user(self, user: Id) -> bool:
        """See the contract. The log has the deletion also of a user whom the store does not know:
        a store may have lost a user whom the log has."""
        self._logged([Forget(user)])
        return self.store.delete_user(user)

    def put_items(self, items: Mapping[Id, Mapping[str, Any] | None]) -> int:
        if items:
            self._logged([Item(id, columns) for id, columns in items.items()])
        return self.store.put_items(items)

    def put_state(self, user: Id, kind: str, state: State) -> bool:
        return self.store.put_state(user, kind, state)

    def drop_states(self, user: Id, kinds: Collection[str]) -> int:
        return self.store.drop_states(user, kinds)

    # Reading

    def version(self, user: Id) -> Version | None:
        return self.store.version(user)

    def held(self, user: Id, since: Version | None = None) -> Held | None:
        return self.store.held(user, since)

    def latest(self, user: Id, count: int, before: int | None = None) -> list[Event]:
        return self.store.latest(user, count, before)

    def between(self, user: Id, since: int, until: int) -> list[Event]:
        return self.store.between(user, since, until)

    def exposures(self, user: Id, since: int, until: int) -> list[Exposure]:
        return self.store.exposures(user, since, until)

    def exposure_count(self, user: Id) -> int:
        return self.store.exposure_count(user)

    def shown(
        self, since: Mapping[int, int], limit: int
    ) -> tuple[dict[int, int], list[tuple[int, int, Exposure]]]:
        return self.store.shown(since, limit)

    def state(self, user: Id, kind: str) -> State | None:
        return self.store.state(user, kind)

    def users(self) -> Iterator[Id]:
        return self.store.users()

    def named(self, text: str, limit: int) -> list[Id]:
        return self.store.named(text, limit)

    def event_count(self, user: Id) -> int | None:
        return self.store.event_count(user)

    def check(self) -> list[str]:
        return [*self.log.check(), *self.store.check()]

    def counts(self) -> Counts:
        return self.store.counts()

    def identity(self) -> str:
        return self.store.identity()

    def items(
        self, since: int = 0, limit: int | None = None
    ) -> tuple[int, dict[Id, dict[str, Any] | None]]:
        return self.store.items(since, limit)

    def close(self) -> None:
        try:
            self.log.close()
        finally:
            self.store.close()
