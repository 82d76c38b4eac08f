"""The run, index and live items in use, and how others replace them.

Live items are stored first and then written into the index, so that a server that stops in between
loses none. The index records the last change of the store that it contains; every server of the
store brings it up to date (:meth:`Current.follow`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from limerank.data.canonical import external_id, json_value
from limerank.data.counters import counted_label, due
from limerank.errors import DataError, FormatError, SpecError, StoreError, UnknownError
from limerank.index import Index
from limerank.index.changes import put_live_items, unreadable_items
from limerank.index.counting import count_again
from limerank.index.format import LiveItems
from limerank.index.results import CLAMPED_SHARE
from limerank.index.writing import BusyError, ReadOnlyError, disk_error, writing
from limerank.ranking.item_table import Filters
from limerank.ranking.request import plain
from limerank.serving.counting import ItemCounts
from limerank.serving.served import Loader, Served
from limerank.serving.stores import Id
from limerank.serving.stores.contract import origin
from limerank.serving.stores.values import written
from limerank.storage.cache import is_fetched
from limerank.storage.fetching import discard, own_copy

log = logging.getLogger("limerank.serving")
PATIENCE = 20.0
"""Seconds that a change of the index waits for another change, of this process or another."""


class Added(NamedTuple):
    """How many items :meth:`Current.put_items` added and updated, and what is served now."""

    added: int
    updated: int
    served: Served


class Current:
    """The one :class:`~limerank.serving.served.Served` in use.

    Reading :attr:`served` takes no lock. Changes take turns.

    Args:
        loader: loads runs and indexes.
        run: the run folder to begin with.
        index: an index folder of the run.

    Attributes:
        folders: the run and the index as they were given. What is served are the targets that
            links among them had then: links may lead to another model at any time.
        served: what is served. Live items are written into its index; into a copy of one that was
            fetched from a storage.
    """

    def __init__(self, loader: Loader, run: Path, index: Path) -> None:
        self.loader, self.store = loader, loader.store
        self._changing = threading.Lock()
        self._copies: set[Path] = set()
        self._fixed: Path | None = None
        self.folders = run.absolute(), index.absolute()
        try:
            self.served = self._load(run, index)
        except StoreError as error:  # nothing else is served: follow tries again
            log.error("live items are not ranked yet: %s", error)
            self.served = self._with_table(self.loader.load(_target(run), _target(index)))

    def _load(self, run: Path, index: Path) -> Served:
        """Load a run and an index, and write the live items into the index, which may already be
        acknowledged.

        Raises:
            StoreError: another process changes the index for too long, or the store cannot be
                reached.
        """
        served = self.loader.load(_target(run), _target(index))
        try:
            return self._caught_up(served, PATIENCE)
        except DataError as error:
            served = self._with_table(served)
            # follow tries again.
            log.error("live items are not ranked yet: %s", error)
            return served

    def _use(self, served: Served) -> None:
        """Serve this from now on. The caller holds the lock."""
        served.states.use(served.marked)
        self.served = served
        self._discard_copies(served)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of changes.

        Raises:
            StoreError: another change takes too long.
        """
        if not self._changing.acquire(timeout=PATIENCE):
            raise StoreError(
                f"another change of what is served has taken more than {PATIENCE:g} s; try again"
            )
        try:
            yield
        finally:
            self._changing.release()

    # Runs and indexes

    def reload(self, run: Path | None, index: Path | None) -> Served:
        """Serve another run or index. One that fails its tests is refused, and so is one that
        cannot get the live items; the one in use stays."""
        with self.alone():
            old = self.served
            folders = (run or self.folders[0]).absolute(), (index or self.folders[1]).absolute()
            new = self._load(*folders)
            new.index.verify()
            new.check.state = "passed"
            if (
                new.trained.fingerprint == old.trained.fingerprint
                and new.trained.manifest == old.trained.manifest
                and new.trained.train == old.trained.train
            ):
                # The same model: its users' states in memory stay valid.
                marked = old.states.marked(new.index)
                new = replace(new, states=old.states, marked=marked)
            self.folders = folders
            self._use(new)
        log.info(
            "loaded",
            extra={"run": new.trained.fingerprint, "index_version": new.index.version},
        )
        return new

    def verify(self) -> None:
        """Compare all files of the index in use with their checksums, unless that is done.

        Takes as long as reading the files. A difference goes to the log and to
        :attr:`~limerank.serving.served.Served.check`; rankings go on.
        """
        served = self.served
        if served.check.state != "running":
            return
        try:
            served.index.verify()
        except FormatError as error:
            served.check.error, served.check.state = str(error), "damaged"
            log.error("the index in use is damaged, its rankings may be wrong: %s", error)
            return
        served.check.state = "passed"
        log.info("the index is verified", extra={"index_version": served.index.version})

    def verify_now(self) -> None:
        """Compare all files of the index with their checksums; FormatError where one differs."""
        self.served.index.verify()
        self.served.check.state = "passed"

    def catch_up(self) -> None:
        """Use live items that were stored just now, through another :class:`Current` of the same
        store.

        Raises:
            StoreError: another change takes too long, or the store cannot be reached.
        """
        with self.alone():
            newer = self._caught_up(self.served, PATIENCE)
            if newer is not self.served:
                self._use(newer)

    def follow(self) -> None:
        """Use a newer version of the index that another process has written, and live items that
        another server has stored. A failed step is tried again with the next call."""
        if not self._changing.acquire(blocking=False):
            return  # the change that holds the lock does this as well
        try:
            served = self.served
            newer = self._caught_up(served)
            if newer is not served:
                self._use(newer)
        finally:
            self._changing.release()

    # Counters

    def count_again(self, counts: ItemCounts) -> int | None:
        """Write impressions since the index was built into its counters, when the next refresh that
        the model was trained with is due.

        Args:
            counts: of the store.

        Returns:
            The time after which the index lacks impressions, in milliseconds since 1970; None where
            it gets none: its model has no counters, it was built without what they count, it is a
            shard or split into shards, or its folder is read-only.
        """
        served = self.served
        counted, every = served.index.counted, served.trained.ranker.config.counter_hours
        path = served.index.path
        if counted is None or served.index.shard is not None or self.loader.shards is not None:
            return None
        if path == self._fixed:
            return None
        hour = due(counts.settled, every)
        # An index that was just built has the last hour of its log in part.
        if counted.after not in counts.needed or hour < counted.hour + counted.live:
            return counted.after
        label = counted_label(served.trained.manifest["encoding"]["labels"])
        assert label is not None  # DataShape.counted
        shown = counts.shown(label["name"], counted.after, hour)
        if not shown.ids and not counted.live:
            return counted.after  # perhaps nobody logs what was shown: time alone changes nothing
        with self.alone():
            if served is not self.served:
                return counted.after  # the next call sees what is served now
            try:
                served = self._writable(served)
                with self._writing(served):
                    index = Index.open(served.index.path, served.trained.fingerprint)
                    if index.counted == counted:
                        done = count_again(served.trained, served.index.path, shown, hour)
                        if done.clamped > CLAMPED_SHARE:
                            log.warning("counters of items: %s", "; ".join(done.advice))
            except ReadOnlyError as error:
                log.error("counters of items stay those of the log: %s", error)
                self._fixed = path
                return None
            served = self._with_table(self.loader.reopened(served))
            self._use(served)
        log.info("counters of items are refreshed", extra={"impressions": int(shown.shown.sum())})
        return None if served.index.counted is None else served.index.counted.after

    # Items

    def put_items(self, items: list[dict[str, Any]]) -> Added:
        """Store live items, and write them into the index.

        Args:
            items: columns of the item table, its id column included.

        Raises:
            SpecError: the run's data had no item table.
            DataError: an item has no id, has one twice or cannot be read; nothing is changed.
            StoreError: the store or the index could not be changed.
        """
        self.served.index.expect_own()
        layout = self.served.items.layout
        if layout is None:
            raise SpecError("the run's data had no item table, so items cannot be put live")
        given: dict[Id, dict[str, Any]] = {}
        for position, item in enumerate(items):
            if item.get(layout.id) is None:
                raise DataError(
                    f"items[{position}]: an item needs an id in the column {layout.id!r}"
                )
            id = external_id("item", item[layout.id])
            if id in given:
                raise DataError(f"items[{position}]: the item {id!r} is given twice")
            written(f"items[{position}]", item)  # raises before anything is changed
            given[id] = item
        with self.alone():
            served = self._writable(self.served)
            for position, why in unreadable_items(served.trained, items).items():
                raise DataError(f"items[{position}]: {why}")
            with self._writing(served):
                index = Index.open(served.index.path, served.trained.fingerprint)
                held = index.ids.find(list(given))
                fresh = int(((held < 0) | np.isin(held, index.removed)).sum())
                self.store.put_items(given)
                served = self._brought_up(served, index)
            self._use(served)
        return Added(fresh, len(items) - fresh, served)

    def remove_item(self, item: str) -> Served:
        """Remove an item from rankings.

        Raises:
            UnknownError: neither the index nor the live items have it.
            StoreError: the store or the index could not be changed.
        """
        self.served.index.expect_own()
        with self.alone():
            served = self._writable(self.served)
            with self._writing(served):
                index = Index.open(served.index.path, served.trained.fingerprint)
                row = int(index.ids.find([item])[0])
                id = _id_of_item(item) if row < 0 else plain(index.ids[row])
                excluded = row < 0 or row in index.removed
                if excluded and served.items.live.get(id) is None:
                    raise UnknownError(f"the index has no item {item!r:.80}")
                self.store.put_items({id: None})
                served = self._brought_up(served, index)
            self._use(served)
        return served

    def _writable(self, served: Served) -> Served:
        """With an index that live items may be written into: of one in the cache, whose files
        versions and servers share, a copy of this server's own.

        Raises:
            StoreError: the copy cannot be made.
        """
        if not is_fetched(served.index.path):
            return served
        try:
            own = own_copy(served.index.path)
        except OSError as error:
            raise disk_error(served.index.path, error) from None
        self._discard_copies(getattr(self, "served", None))  # what a failed load has left
        self._copies.add(own)
        return self.loader.reopened(served, own)

    def _discard_copies(self, served: Served | None) -> None:
        """Remove all copies of indexes but the one that is served."""
        for copy in self._copies - ({served.index.path} if served is not None else set()):
            discard(copy)
            self._copies.discard(copy)

    @contextlib.contextmanager
    def _writing(self, served: Served) -> Iterator[None]:
        """Hold the index's lock between processes.

        Raises:
            StoreError: another process changes the index for too long, or its disk is full.
            ReadOnlyError: the index may not be changed.
        """
        try:
            with writing(served.index.path, PATIENCE):
                yield
        except BusyError:
            raise _busy() from None

    # Bringing the index up to date with the store

    def _caught_up(self, served: Served, patience: float = 0.0) -> Served:
        """With the newest version of the index, and all live items that the store has.

        Args:
            served: what is served.
            patience: seconds to wait for another process that changes the index; StoreError where
                it takes longer. 0: leave live items to the next call then.
        """
        if not served.index.current():
            served = self.loader.reopened(served)
        if served.index.shard is not None:  # the servers that ask it have the live items
            return served
        if self._lacking(served.index)[1]:
            served = self._writable(served)
            try:
                with writing(served.index.path, patience):
                    opened = Index.open(served.index.path, served.trained.fingerprint)
                    return self._brought_up(served, opened)
            except BusyError:
                if patience:
                    raise _busy() from None
            except ReadOnlyError as error:
                if not served.pending:
                    log.error("live items are not ranked: %s", error)
        return self._with_table(served)

    def _lacking(self, index: Index) -> tuple[int, dict[Id, dict[str, Any] | None]]:
        """The store's count of changes, and the live items whose last change an index lacks."""
        live = index.live
        same = live is not None and live.store == self.store.identity()
        since = live.change if same and live is not None else 0
        change, items = self.store.items(since)
        if change < since:  # the store is an older copy of itself
            change, items = self.store.items(0)
        return change, items

    def _brought_up(self, served: Served, index: Index) -> Served:
        """With all live items in the newest version of the index. The caller holds its lock.

        An index records the last change of the store that it contains, so that later changes of it,
        such as ``limerank index --remove``, stay. An index without such a record (it was rebuilt,
        or served from another store) gets all live items once, except those removed from it. One
        whose store may have lost changes gets all of them, and removals as well.
        """
        identity = self.store.identity()
        change, items = self._lacking(index)
        known = index.live is not None and origin(index.live.store) == origin(identity)
        ids = list(items)
        rows = index.ids.find(ids)
        excluded = np.isin(rows, index.removed)
        put: dict[Id, dict[str, Any]] = {}
        remove: list[Id] = []
        layout = served.items.layout
        for id, row, removed in zip(ids, rows.tolist(), excluded.tolist(), strict=True):
            columns = items[id]
            if columns is None:
                if row >= 0 and not removed:
                    remove.append(id)
            elif layout is not None and (known or not removed):
                put[id] = {**json_value(columns), layout.id: id}
        skipped = dict(index.live.skipped) if known and index.live is not None else {}
        for id in items:
            skipped.pop(str(id), None)
        if layout is None:
            why = "the run's data had no item table"
            skipped |= {str(id): why for id, columns in items.items() if columns is not None}
        try:
            _put(served, index, put, remove, LiveItems(identity, change, skipped))
        except DataError:
            positions = list(put)
            for position, why in unreadable_items(served.trained, list(put.values())).items():
                skipped[str(positions[position])] = why
                del put[positions[position]]
                log.error("a live item cannot be read by the run and is skipped: %s", why)
            _put(served, index, put, remove, LiveItems(identity, change, skipped))
        return self._with_table(self.loader.reopened(served))

    def _with_table(self, served: Served) -> Served:
        """With the store's live items in the table, and a count of those that the index lacks."""
        live, changed = self.store.items(served.live)
        if live < served.live:
            live, changed = self.store.items(0)
        pending = len(self._lacking(served.index)[1])
        if not changed:
            return served if pending == served.pending else replace(served, pending=pending)
        items = served.items.with_items(changed)
        filters = Filters(items, served.index)
        return replace(served, items=items, filters=filters, live=live, pending=pending)


def _put(
    served: Served,
    index: Index,
    put: Mapping[Id, dict[str, Any]],
    remove: list[Id],
    live: LiveItems,
) -> None:
    if put or remove or index.live != live:
        put_live_items(served.trained, index.path, list(put.values()), remove, live)


def _busy() -> StoreError:
    return StoreError(
        f"another process has changed the index for more than {PATIENCE:g} s; try again"
    )


def _id_of_item(text: str) -> int | str:
    """The id in a URL in its one form; UnknownError where no item can have it."""
    try:
        return external_id("item", text)
    except DataError as error:
        raise UnknownError(str(error)) from None


def _target(folder: Path) -> Path:
    """The folder that a link leads to. What leads nowhere stays as it is: loading it says why."""
    try:
        return folder.resolve()
    except (OSError, RuntimeError, ValueError):  # a circle of links; a name that no file can have
        return folder
