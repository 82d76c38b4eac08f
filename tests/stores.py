"""What tests of event stores share: events, and a location in which a store is opened."""

from __future__ import annotations

import itertools

from limerank.data.events import event_of
from limerank.data.exposures import exposure_of
from limerank.serving.stores import SqliteStore, ValkeyStore

NUMBERS = itertools.count()


def event(user=1, at=0, id=None, item=5, **more):
    return event_of({"user": user, "item": item, "time": at, "id": id, **more})


def exposure(user=1, at=0, ranking="main.a", items=(5, "text"), **more):
    return exposure_of(user, at, ranking, items, **more)


def arrived(store):
    """All exposures of a store, in the order of arrival within each part."""
    parts = dict.fromkeys(range(store.parts), 0)
    return [one for _, _, one in store.shown(parts, 100 * store.parts)[1]]


def old_events():
    return [event(at=at, id=f"{at}" if at % 2 else None) for at in range(50)]


class Location:
    """Where stores are opened: the same one again, or a new one."""

    def __init__(self, kind, folder, url=None):
        self.kind, self.folder, self.url = kind, folder, url
        self.number = next(NUMBERS)

    def open(self, **options):
        if self.kind == "sqlite":
            return SqliteStore(self.folder / f"{self.number}.db", **options)
        return ValkeyStore(self.url, prefix=f"{self.number}:", **options)

    def new(self):
        return Location(self.kind, self.folder, self.url)
