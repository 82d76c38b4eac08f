"""Copy an event store into another one: from a file to a server, or from a server to a cluster."""

from __future__ import annotations

from typing import NamedTuple

from limerank.data.canonical import LARGEST_TIME
from limerank.data.events import Event
from limerank.progress import Bar
from limerank.serving.stores import EventStore, Id, Outcome

EVENTS = 4096
"""Events that are appended together, about."""
ITEMS = 1000
"""Live items that are copied together."""


class Copied(NamedTuple):
    """The result of :func:`copy_store`.

    Attributes:
        users: users of the source.
        events: events that the target did not have.
        exposures: exposures that the target did not have.
        items: live items of the source, removed ones included.
        changed: users who were written; the others were equal already.
    """

    users: int
    events: int
    exposures: int
    items: int
    changed: int


def copy_store(source: EventStore, target: EventStore, *, quiet: bool = True) -> Copied:
    """Copy events, users' features, exposures and live items. States are not copied: they are
    computed from the events.

    What the target has already is skipped, so that a copy that was ended early goes on when it is
    called again, and a second copy adds what was written to the source meanwhile. Users who were
    deleted from the source stay in the target.

    Args:
        source: the store to read. It may be in use.
        target: the store to add to.
        quiet: show no progress.

    Raises:
        StoreError, FormatError: from either store.
    """
    users = events = exposures = changed = 0
    waiting: list[Event] = []

    def append() -> int:
        found = target.append(waiting).count(Outcome.ACCEPTED)
        waiting.clear()
        return found

    with Bar("copying", total=source.counts().users, unit="users", quiet=quiet) as bar:
        for user in source.users():
            users += 1
            bar.advance(1)
            held = source.held(user) if _differs(source, target, user) else None
            if held is None:
                continue
            changed += 1
            waiting += held.events
            shown = source.exposures(user, 1 - LARGEST_TIME, LARGEST_TIME)
            exposures += target.show(shown).count(Outcome.ACCEPTED) if shown else 0
            known = target.held(user)
            if known is None or known.features != held.features:
                target.set_features(user, held.features)
            if len(waiting) >= EVENTS:
                events += append()
        events += append() if waiting else 0
    return Copied(users, events, exposures, _copy_items(source, target), changed)


def _differs(source: EventStore, target: EventStore, user: Id) -> bool:
    """Whether the target lacks something of a user, by counts and features."""
    if source.event_count(user) != target.event_count(user):
        return True
    if source.exposure_count(user) != target.exposure_count(user):
        return True
    features = []
    for store in (source, target):
        version = store.version(user)
        held = None if version is None else store.held(user, version)
        features.append(None if held is None else held.features)
    return features[0] != features[1]


def _copy_items(source: EventStore, target: EventStore) -> int:
    count = since = 0
    known = target.items()[1]
    while True:
        change, items = source.items(since, ITEMS)
        count += len(items)
        fresh = {id: of for id, of in items.items() if id not in known or known[id] != of}
        if fresh:
            target.put_items(fresh)
        if change == since:
            return count
        since = change
