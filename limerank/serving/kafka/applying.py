"""Apply the log to an event store.

A batch is written to the store, and its positions are stored with the brokers afterwards. So a
process that is killed in between applies a batch twice, and nothing is lost; twice counts once:

- Events and exposures have ids.
- Features and items replace earlier ones. A replay would bring old ones back for a moment; so only
  the latest of all that are still to be read is applied.
- What was logged before a user was deleted is not applied: the user never returns. The deletion
  itself removes what the store has of the user except what was logged afterwards, so that applying
  it again removes nothing that a server has written since.

To know what is latest, a replay reads what lies between its positions and the end of the log
beforehand (:class:`Latest`).

The text beside a stored position is the identity of the store. Another store, or one that was
emptied, gets the log from its beginning; one that a promotion may have deprived of its latest
changes gets the last minutes again.
"""

from __future__ import annotations

import logging
import time as clock
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limerank.data.canonical import LARGEST_TIME
from limerank.data.events import Event
from limerank.data.exposures import Exposure
from limerank.errors import DataError, FormatError
from limerank.parts import Part
from limerank.serving.kafka.dead import DeadLetters
from limerank.serving.kafka.reading import BATCH, Logged, LogReader, last_positions
from limerank.serving.kafka.records import Change, Features, Forget, Item, change_of
from limerank.serving.stores import EventStore, Id, Outcome
from limerank.serving.stores.contract import origin

log = logging.getLogger("limerank.serving.kafka")
REWIND = 600.0
"""Seconds of the log that are applied again after a promotion, unless others are chosen."""
IDENTITY_SECONDS = 5.0
"""Seconds after which the store is asked again whether it is still the same."""


@dataclass
class _Since:
    """What was logged of a user since the deletion."""

    offset: int
    events: set[bytes] = field(default_factory=set)
    rankings: set[str] = field(default_factory=set)
    features: bool = False


class Latest:
    """Of the records that are known but not applied yet: the last features and item of each id,
    and the last deletion of each user. All changes of one id are in one partition."""

    def __init__(self) -> None:
        self._last: dict[tuple[type, Id], int] = {}
        self._deleted: dict[Id, _Since] = {}

    def note(self, change: Change, offset: int) -> None:
        """Take note of the next record of a partition; known ones change nothing."""
        if isinstance(change, Item):
            self._note(Item, change.item, offset)
            return
        since = self._deleted.get(change.user)
        if isinstance(change, Forget):
            if since is None or since.offset < offset:
                self._deleted[change.user] = _Since(offset)
            return
        if isinstance(change, Features):
            self._note(Features, change.user, offset)
        if since is None or offset <= since.offset:
            return
        if isinstance(change, Event):
            since.events.add(change.id)
        elif isinstance(change, Exposure):
            since.rankings.add(change.ranking)
        else:
            since.features = True

    def _note(self, kind: type, id: Id, offset: int) -> None:
        self._last[kind, id] = max(offset, self._last.get((kind, id), -1))

    def counts(self, change: Change, offset: int) -> bool:
        """Whether a record is to be applied: nothing later replaces or deletes it."""
        if isinstance(change, Item):
            return offset >= self._last.get((Item, change.item), -1)
        since = self._deleted.get(change.user)
        if since is not None and offset < since.offset:
            return False
        if isinstance(change, Features):
            return offset >= self._last.get((Features, change.user), -1)
        return True

    def since(self, user: Id) -> _Since:
        """What was logged of a user since the deletion, which was noted."""
        return self._deleted[user]

    def clear(self) -> None:
        """All that was noted is applied."""
        self._last.clear()
        self._deleted.clear()


@dataclass
class Applied:
    """What was applied, in records.

    Attributes:
        records: all that were read.
        accepted: events and exposures that the store did not have.
        duplicates: those that it had.
        expired: those that are older than what the store holds of a full user.
        replaced: features and items.
        forgotten: deletions of users of whom the store had something.
        skipped: records that a later one replaces or deletes.
        dead: records that cannot be read.
    """

    records: int = 0
    accepted: int = 0
    duplicates: int = 0
    expired: int = 0
    replaced: int = 0
    forgotten: int = 0
    skipped: int = 0
    dead: int = 0


def decoded(records: Sequence[Logged], dead: DeadLetters) -> list[tuple[Logged, Change]]:
    """The changes of records; those that cannot be read are dead letters.

    Raises:
        DataError: there are too many of these.
        FormatError: a record is of a later version.
    """
    found = []
    for one in records:
        try:
            found.append((one, change_of(one.value)))
        except DataError as error:
            dead.put(one, error)
    return found


class Applier:
    """Applies the partitions of a log to a store.

    Args:
        reader: reads the log; for this applier alone.
        store: the store.
        dead: where records that cannot be read go.
        part: the partitions of this process; all when not given.
        since: a position to begin with, by partition, in place of the stored ones.
        rewind: seconds of the log that are applied again after a promotion.

    Attributes:
        applied: what was applied so far.
        positions: partition -> the next record.

    Raises:
        StoreError: the brokers or the store do not answer.
    """

    def __init__(
        self,
        reader: LogReader,
        store: EventStore,
        dead: DeadLetters,
        *,
        part: Part | None = None,
        since: Callable[[int], int] | None = None,
        rewind: float = REWIND,
    ) -> None:
        self.reader, self.store, self.dead, self.rewind = reader, store, dead, rewind
        self.applied, self.positions = Applied(), dict[int, int]()
        self._latest, self._scanned = Latest(), dict[int, int]()
        self.identity = store.identity()
        self._asked = clock.monotonic()
        self._items, self._items_read = dict[Id, dict[str, Any] | None](), 0
        for partition in reader.partitions(part):
            self.positions[partition] = (
                self._start(partition) if since is None else since(partition)
            )
        self._begin()

    def _start(self, partition: int) -> int:
        """Where to begin with a partition, by its stored position."""
        low, high = self.reader.ends(partition)
        stored = self.reader.committed(partition)
        if stored is None:
            return low
        if origin(stored.note) != origin(self.identity):
            log.warning(
                "partition %d was applied to another store: it is read from its beginning",
                partition,
            )
            return low
        position = stored.position
        if position > high:
            log.warning("the topic was created again: it is read from its beginning")
            return low
        if stored.note != self.identity:
            return self._rewound(partition, position)
        if position < low:
            log.error(
                "%d records of partition %d were deleted from the log before they were applied; "
                "raise retention.ms of the topic",
                low - position, partition,
            )  # fmt: skip
        return max(position, low)

    def _rewound(self, partition: int, position: int) -> int:
        """The position some minutes before another one."""
        low, high = self.reader.ends(partition)
        position = max(low, min(position, high))
        if position == low:
            return low
        found = next(self.reader.between(partition, position - 1, position), None)
        time = found[-1].time if found else int(clock.time() * 1000)
        start = time - round(1000 * self.rewind)
        found_at = self.reader.first_at(partition, start, low, position)
        log.warning(
            "the store may have lost its latest changes: %d records of partition %d are applied "
            "again",
            position - found_at, partition,
        )  # fmt: skip
        return found_at

    def _begin(self) -> None:
        """Read from the positions on, and know what is latest up to the end of the log."""
        self._latest.clear()
        self._scanned.clear()
        self._look_ahead(self.positions)
        self.reader.begin(self.positions)

    def _look_ahead(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            start = max(self.positions[partition], self._scanned.get(partition, 0))
            _, end = self.reader.ends(partition)
            self._scanned[partition] = max(start, end)
            for records in self.reader.between(partition, start, end):
                for one in records:
                    try:
                        self._latest.note(change_of(one.value), one.offset)
                    except DataError:
                        continue  # a dead letter, when it is read to be applied

    def behind(self) -> int:
        """Records that are not applied yet."""
        return sum(
            max(0, self.reader.ends(partition)[1] - position)
            for partition, position in self.positions.items()
        )

    def check_store(self) -> None:
        """Apply the last minutes again where a promotion may have deprived the store of them, and
        all where the store is another one."""
        identity = self.store.identity()
        self._asked = clock.monotonic()
        if identity == self.identity:
            return
        same, self.identity = origin(identity) == origin(self.identity), identity
        self._items, self._items_read = {}, 0
        for partition, position in self.positions.items():
            if same:
                self.positions[partition] = self._rewound(partition, position)
            else:
                log.warning("the store is another one: the log is read from its beginning")
                self.positions[partition] = self.reader.ends(partition)[0]
        self._begin()

    def step(self, seconds: float = 0.5, count: int = BATCH) -> int:
        """Apply the next records; returns how many. None may arrive in time.

        Raises:
            StoreError: the brokers or the store do not answer: nothing is lost, and a new applier
                goes on.
            DataError: there are too many dead letters.
        """
        if clock.monotonic() > self._asked + IDENTITY_SECONDS:
            self.check_store()
        records = self.reader.read(count, seconds)
        if not records:
            return 0
        if all(self.positions[one] >= end for one, end in self._scanned.items()):
            self._latest.clear()
        dead = self.dead.count
        changes = decoded(records, self.dead)
        self.applied.dead += self.dead.count - dead
        for one, change in changes:
            self._latest.note(change, one.offset)
        self.positions |= last_positions(records)
        deleting = {one.partition for one, change in changes if isinstance(change, Forget)}
        if deleting:  # servers may have written later events of the user, which stay
            self._look_ahead(deleting)
            self.reader.begin(self.positions)
        self._apply([(change, one.offset) for one, change in changes])
        self.applied.records += len(records)
        self.reader.commit(last_positions(records), self.identity)
        return len(records)

    def _apply(self, changes: Sequence[tuple[Change, int]]) -> None:
        """Apply a batch. Deletions come first: what is applied beside them was logged later."""
        events: list[Event] = []
        exposures: list[Exposure] = []
        features: list[Features] = []
        items: dict[Id, dict[str, Any] | None] = {}
        for change, offset in changes:
            if not self._latest.counts(change, offset):
                self.applied.skipped += 1
            elif isinstance(change, Forget):
                self._forget(change.user)
            elif isinstance(change, Event):
                events.append(change)
            elif isinstance(change, Exposure):
                exposures.append(change)
            elif isinstance(change, Features):
                features.append(change)
            else:
                items.pop(change.item, None)
                items[change.item] = None if change.columns is None else dict(change.columns)
        self._count(self.store.append(events) if events else [])
        self._count(self.store.show(exposures) if exposures else [])
        for one in features:
            self._set(one)
        if items:
            self._put_items(items)
        self.applied.replaced += len(features) + len(items)

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        self.applied.accepted += outcomes.count(Outcome.ACCEPTED)
        self.applied.duplicates += outcomes.count(Outcome.DUPLICATE)
        self.applied.expired += outcomes.count(Outcome.EXPIRED)

    def _set(self, change: Features) -> None:
        """Replace a user's features, unless they are the same: versions need not change."""
        version = self.store.version(change.user)
        held = None if version is None else self.store.held(change.user, version)
        if held is None or held.features != change.features:
            self.store.set_features(change.user, change.features)

    def _put_items(self, items: Mapping[Id, dict[str, Any] | None]) -> None:
        """Put those items that the store does not have in this form: servers encode each again."""
        while True:
            number, known = self.store.items(self._items_read, BATCH)
            self._items |= known
            if number == self._items_read:
                break
            self._items_read = number
        fresh = {
            id: of for id, of in items.items() if id not in self._items or self._items[id] != of
        }
        if fresh:
            self.store.put_items(fresh)

    def _forget(self, user: Id) -> None:
        """Delete what the store has of a user from before the deletion."""
        try:
            held = self.store.held(user)
        except FormatError:  # nothing of the user can be read
            self.store.delete_user(user)
            self.applied.forgotten += 1
            return
        if held is None:
            return
        since = self._latest.since(user)
        shown = self.store.exposures(user, 1 - LARGEST_TIME, LARGEST_TIME)
        later = [one for one in held.events if one.id in since.events]
        later_shown = [one for one in shown if one.ranking in since.rankings]
        if (
            len(later) == len(held.events)
            and len(later_shown) == len(shown)
            and (since.features or not held.features)
            and (later or later_shown or since.features)
        ):
            return  # a server deleted the user, who has returned
        self.store.delete_user(user)
        if later:
            self.store.append(later)
        if later_shown:
            self.store.show(later_shown)
        if since.features and held.features:
            self.store.set_features(user, held.features)
        self.applied.forgotten += 1
