"""What the routes stand on: a served run and index, the store of events, and live items.

A :class:`Served` is a run, a version of its index and the items that were put live. It never
changes: whatever changes makes another one, which takes its place in one assignment. A request
takes the one in use and keeps it until it is answered, so that none sees half of each.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from limerank.data.canonical import external_id, json_value
from limerank.data.encoding import read_vocabulary
from limerank.errors import (
    DataError,
    FormatError,
    SpecError,
    StoreError,
    UnknownError,
)
from limerank.index import Index
from limerank.index.changes import put_live_items, unreadable_items
from limerank.index.reading import LiveItems
from limerank.index.writing import BusyError, ReadOnlyError, writing
from limerank.models.losses import predictions
from limerank.ranking.explain import Explanation, explain
from limerank.ranking.request import plain
from limerank.ranking.scorer import Scorer, ScorerName, scorer_for, weights_of_tasks
from limerank.runs import selftest
from limerank.runs.model import Trained, load_trained
from limerank.serving.intake import Accepted, Intake
from limerank.serving.item_table import Filters, ItemTable
from limerank.serving.messages import Asking, EventMessage, Explain, Rank
from limerank.serving.state import MarkedIndex, Mode, Ready, UserStates
from limerank.serving.stores import EventStore, Id, Outcome
from limerank.serving.stores.values import written
from limerank.serving.telemetry import Numbers

log = logging.getLogger("limerank.serving")
PATHS = 24
"""Ways from an event over a link to an item that an explanation names."""
LINKS = 8
"""Links that an explanation names."""
BRIEF_ITEMS, BRIEF_RANKED, BRIEF_EVENTS, BRIEF_NAMES = 2048, 256, 16, 64
"""At most so many candidates, ranked items, events and names of anything has a request that is
answered at once, on the event loop."""
SHOWN_VALUES = 100
"""Of a categorical context feature, at most, in the description of the model."""
PATIENCE = 20.0
"""Seconds for which the change of an index waits for another one, of this process or another."""


@dataclass
class Check:
    """Whether the files of an index are what they were written as: compared in the background."""

    state: Literal["running", "passed", "damaged"] = "running"
    error: str = ""


@dataclass(frozen=True, eq=False)
class Served:
    """A run, a version of its index and live items, with all that a request needs of them.

    Attributes:
        trained: the run.
        states: of users; shared by all versions of one model.
        marked: the index, as ``states`` are asked for it.
        scorer: over that index.
        items: the item table with the live items.
        filters: over that table and index.
        loaded: when the run was.
        live: the store's changes of live items that the table holds.
        pending: live items that the index does not hold, since it could not be changed.
        check: of the index's files.
    """

    trained: Trained
    states: UserStates
    marked: MarkedIndex
    scorer: Scorer
    items: ItemTable
    filters: Filters
    loaded: str
    live: int = 0
    pending: int = 0
    check: Check = field(default_factory=Check)

    @property
    def index(self) -> Index:
        return self.marked.index


class Serving:
    """The engine of :mod:`limerank.serving.http.app`.

    Args:
        run: a run folder.
        index: an index folder of the run.
        store: of events; closed with the engine.
        items: the item table, for filters and to show features; see :class:`ItemTable`.
        mode: of the users' states, see :class:`~limerank.serving.state.UserStates`.
        scorer: "auto", or one by name; see :func:`~limerank.ranking.scorer.scorer_for`.
        threads: that one ranking uses.
    """

    def __init__(
        self,
        run: Path,
        index: Path,
        store: EventStore,
        *,
        items: Path | None = None,
        mode: Mode = "window",
        scorer: ScorerName = "auto",
        threads: int = 1,
    ) -> None:
        self.store, self.mode, self.threads = store, mode, threads
        self.scorer = scorer
        self.numbers = Numbers()
        self._table = items
        self._changing = threading.Lock()
        """Held by what puts another :class:`Served` in the place of the one in use. No ranking
        takes it."""
        self._store_warnings: list[str] = []
        self._served = self._load(run, index)
        self.intake = Intake(store, lambda: self._served.states.form, self.numbers)

    # Loading

    def _load(self, run: Path, index: Path) -> Served:
        """Load, check and warm a run and an index, and bring the index up to date with the live
        items; raises before anything in use is touched."""
        trained = load_trained(run)
        if not selftest.passes(trained):
            log.warning(
                "%s has no scores to be compared with: it was trained before they were", run
            )
        if not trained.sealed:
            log.warning(
                "%s has no checksums of its present files: changes of its encoding and "
                "vocabularies are not noticed",
                run,
            )
        opened = Index.open(index, trained.fingerprint)
        states = UserStates(trained, opened, self.store, mode=self.mode)
        served = self._over(trained, states, opened, ItemTable(trained, self._table))
        fit = served.items.coverage(trained, opened)
        if fit is not None:
            for line in fit.lines():
                log.info("%s", line)
            for warning in fit.warnings():
                log.warning("%s: %s", self._table, warning)
        nobody = states.ready(None)
        top = served.scorer.top(nobody.state, min(10, max(1, len(opened))))
        if not np.isfinite(top.values[top.rows >= 0]).all():
            raise FormatError(f"{run} ranks with numbers that are not finite; train it again")
        try:
            return self._caught_up(served)
        except (DataError, StoreError) as error:
            # What the index lacks is ranked as soon as it can be changed: see follow.
            served = self._with_table(served)
            log.error("live items are not ranked yet: %s", error)
            return served

    def _over(self, trained: Trained, states: UserStates, index: Index, items: ItemTable) -> Served:
        return Served(
            trained,
            states,
            states.marked(index),
            scorer_for(self.scorer, trained.ranker, index, threads=self.threads),
            items,
            Filters(items, index),
            datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def reload(self, run: str | None, index: str | None) -> dict[str, Any]:
        """Serve another run or index. What does not pass its tests is refused, and the one in use
        goes on."""
        with self._alone():
            old = self._served
            new = self._load(
                Path(run).absolute() if run else old.trained.path,
                Path(index).absolute() if index else old.index.path,
            )
            new.index.verify()
            new.check.state = "passed"
            if (
                new.trained.fingerprint == old.trained.fingerprint
                and new.trained.manifest == old.trained.manifest
                and new.trained.train == old.trained.train
            ):
                # The model is the same: what is in memory of its users stays.
                marked = old.states.marked(new.index)
                new = replace(new, states=old.states, marked=marked)
            self._use(new)
        log.info(
            "loaded",
            extra={"run": new.trained.fingerprint, "index_version": new.index.version},
        )
        return {
            "run": new.trained.fingerprint,
            "index_version": new.index.version,
            "live_items": self._live(new),
        }

    def _use(self, served: Served) -> None:
        """Serve this from now on. Under the lock of changes."""
        served.states.use(served.marked)
        self._served = served

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The right to change what is served.

        Raises:
            StoreError: another change has gone on for too long.
        """
        if not self._changing.acquire(timeout=PATIENCE):
            raise StoreError(
                f"another change of what is served has taken more than {PATIENCE:g} s; try again"
            )
        try:
            yield
        finally:
            self._changing.release()

    # The index's files

    def verify(self) -> None:
        """Compare all files of the index in use with their checksums, where that is not done yet.

        Takes as long as reading them. A difference goes to the log, to the metrics and to
        :meth:`ready`; rankings go on.
        """
        served = self._served
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

    # Who asks

    def _ready(self, served: Served, asked: Asking) -> Ready:
        if asked.user is not None and asked.history is not None:
            raise SpecError("give a user or a history, not both")
        if asked.history is None:
            return served.states.ready(
                asked.user, now=asked.time, context=asked.context, index=served.marked
            )
        return served.states.given(
            [event.model_dump(exclude_none=True) for event in asked.history],
            now=asked.time,
            context=asked.context,
            index=served.marked,
        )

    def _rows(self, index: Index, what: str, ids: Sequence[Any]) -> NDArray[np.int64]:
        rows = index.ids.find(ids)
        if (rows < 0).any():
            unknown = [ids[int(position)] for position in np.flatnonzero(rows < 0)[:10]]
            raise UnknownError(
                f"{int((rows < 0).sum())} of {len(ids)} {what} are not in the index: "
                f"{', '.join(map(repr, unknown))}"
            )
        return rows

    # Ranking

    def rank(self, asked: Rank) -> dict[str, Any]:
        served = self._served
        taken: dict[str, float] = {}
        started = clock.perf_counter()
        with self.numbers.stage("state", taken):
            ready = self._ready(served, asked)
        return self._ranked(served, asked, ready, taken, started)

    def rank_at_once(self, asked: Rank) -> dict[str, Any] | None:
        """What :meth:`rank` gives, where that takes about a millisecond and waits for nothing: then
        handing it to another thread takes longer than answering it. Else None."""
        served = self._served
        count = len(served.index) if asked.candidates is None else len(asked.candidates)
        names = (asked.context, asked.task_weights, asked.exclude)
        if (
            not self.store.local
            or served.scorer.name != "native"
            or count > BRIEF_ITEMS
            or asked.k > BRIEF_RANKED
            or asked.history is not None
            or asked.filter
            or any(part is not None and len(part) > BRIEF_NAMES for part in names)
        ):
            return None
        taken: dict[str, float] = {}
        started = clock.perf_counter()
        with self.numbers.stage("state", taken):
            ready = served.states.ready_at_once(
                asked.user, now=asked.time, context=asked.context, index=served.marked
            )
        return None if ready is None else self._ranked(served, asked, ready, taken, started)

    def _ranked(
        self, served: Served, asked: Rank, ready: Ready, taken: dict[str, float], started: float
    ) -> dict[str, Any]:
        weights = weights_of_tasks(served.trained.ranker.shape.tasks, asked.task_weights)
        scorer, index = served.scorer, served.index
        with self.numbers.stage("score", taken):
            rows = None
            if asked.candidates is not None:
                rows = self._rows(index, "candidates", asked.candidates)
            excluded = ready.seen if asked.exclude_seen else np.zeros(0, np.int64)
            if asked.exclude:
                more = index.ids.find(asked.exclude)
                excluded = np.concatenate([excluded, more[more >= 0]])
            allow = None if not asked.filter else served.filters.allowed(asked.filter)
            top = scorer.top(
                ready.state,
                asked.k,
                weights=weights,
                rows=rows,
                exclude=[excluded],
                allow=allow,
            )
        found = top.rows[0][top.rows[0] >= 0]
        ids = index.ids[found].tolist()
        tasks = served.trained.ranker.shape.tasks
        predicted = predictions(torch.from_numpy(top.logits[0][: len(found)]), tasks).tolist()
        values = top.values[0].tolist()
        names = [task.name for task in tasks]
        features = served.items.features(ids)
        taken["total"] = round(1e3 * (clock.perf_counter() - started), 3)
        return {
            "user": asked.user,
            "known": ready.known,
            "events": ready.events,
            "candidates": len(index) - len(index.hidden) if rows is None else _distinct(rows),
            "run": served.trained.fingerprint,
            "index_version": index.version,
            "items": [
                {
                    "item": id,
                    "rank": position + 1,
                    "value": values[position],
                    "scores": dict(zip(names, predicted[position], strict=True)),
                    "features": features[position],
                }
                for position, id in enumerate(ids)
            ],
            "milliseconds": taken,
        }

    def explain(self, asked: Explain) -> dict[str, Any]:
        served = self._served
        index = served.index
        weights = weights_of_tasks(served.trained.ranker.shape.tasks, asked.task_weights)
        rows = self._rows(index, "items", asked.items)
        if asked.history is not None and asked.user is not None:
            raise SpecError("give a user or a history, not both")
        if asked.history is None:
            past = served.states.past(
                asked.user, now=asked.time, context=asked.context, index=served.marked
            )
        else:
            past = served.states.past_given(
                [event.model_dump(exclude_none=True) for event in asked.history],
                now=asked.time,
                context=asked.context,
                index=served.marked,
            )
        vectors = torch.from_numpy(np.array(index.vectors[rows], dtype=np.float32))
        with self.numbers.stage("explain"):
            found = explain(served.trained.ranker, past, list(asked.items), vectors, weights)
        return {"user": asked.user, "items": [_explained(one) for one in found]}

    # Events

    def append(self, events: list[EventMessage]) -> Future[dict[str, Any]]:
        """Check and store events; the future is done when they are durable, so that no thread waits
        for the disk."""
        answer: Future[dict[str, Any]] = Future()
        answer.set_running_or_notify_cancel()  # a client that disconnects does not cancel a write

        def accepted(done: Future[Accepted]) -> None:
            error = done.exception()
            if error is not None:
                answer.set_exception(error)
                return
            found = done.result()
            answer.set_result(
                {
                    "accepted": found.count(Outcome.ACCEPTED),
                    "duplicates": found.count(Outcome.DUPLICATE),
                    "expired": found.count(Outcome.EXPIRED),
                }
            )

        self.intake.submit(events).add_done_callback(accepted)
        return answer

    def append_at_once(self, events: list[EventMessage]) -> Future[dict[str, Any]] | None:
        """What :meth:`append` gives, where checking the events takes about a millisecond and the
        store makes nobody wait; else None."""
        if not self.store.local or len(events) > BRIEF_EVENTS:
            return None
        return self.append(events)

    # Users

    def user(self, user: str) -> dict[str, Any]:
        served, id = self._served, _id(user)
        known = self.store.version(id)
        held = None if known is None else self.store.held(id, known)  # the features alone
        count = self.store.event_count(id)
        if held is None or count is None:
            raise UnknownError(f"nothing is held of the user {id!r}")
        latest = self.store.latest(id, served.states.length)
        event_items = list(dict.fromkeys(event.item for event in latest))
        return {
            "user": id,
            "known": True,
            "events": count,
            "features": json_value(held.features),
            "history": [
                {
                    "item": event.item,
                    "time": event.time,
                    "labels": json_value(event.labels),
                    "features": json_value(event.features),
                }
                for event in latest
            ],
            "items": [
                {"item": item, "features": of}
                for item, of in zip(event_items, served.items.features(event_items), strict=True)
            ],
        }

    def users(self, text: str, limit: int) -> dict[str, Any]:
        return {"users": self.store.named(text, limit)}

    def put_user(self, user: str, features: dict[str, Any]) -> dict[str, Any]:
        served, id = self._served, _id(user)
        written(f"the user {id!r}", features)  # or refused
        served.states.user_features.check(features)
        self.store.set_features(id, features)
        return {"user": id, "features": features}

    def forget(self, user: str) -> dict[str, Any]:
        """Delete a user, damaged or not: no event is read."""
        id = _id(user)
        count = self.store.event_count(id)
        if not self._served.states.forget(id):
            raise UnknownError(f"nothing is held of the user {id!r}")
        return {"forgotten": count or 0}

    # Items

    def item(self, item: str) -> dict[str, Any]:
        served = self._served
        row = int(served.index.ids.find([item])[0])
        if row < 0:
            raise UnknownError(f"the index holds no item {item!r:.80}")
        id = _plain(served.index.ids[row])
        (features,) = served.items.features([id])
        position = int(np.searchsorted(served.index.hidden, row))
        hidden = position < len(served.index.hidden) and served.index.hidden[position] == row
        return {"item": id, "features": features, "rankable": not hidden}

    def items(self, text: str, limit: int) -> dict[str, Any]:
        served = self._served
        ids = served.items.search(text, limit)
        rows = served.index.ids.find(ids) if ids else np.zeros(0, np.int64)
        if not ids:
            rows = (
                served.index.ids.find([text]) if text else np.arange(min(limit, len(served.index)))
            )
        held = [_plain(served.index.ids[row]) for row in rows[rows >= 0]]
        features = served.items.features(held)
        return {
            "items": [{"item": id, "features": of} for id, of in zip(held, features, strict=True)]
        }

    def put_items(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        layout = self._served.items.layout
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
            written(f"items[{position}]", item)  # or refused, before anything is changed
            given[id] = item
        with self._alone():
            served = self._served
            for position, why in unreadable_items(served.trained, items).items():
                raise DataError(f"items[{position}]: {why}")
            fresh = 0
            with self._writing(served):
                index = Index.open(served.index.path, served.trained.fingerprint)
                held = index.ids.find(list(given))
                fresh = int(((held < 0) | np.isin(held, index.removed)).sum())
                self.store.put_items(given)
                served = self._brought_up(served, index)
            self._use(served)
        return {
            "index_version": served.index.version,
            "added": fresh,
            "updated": len(items) - fresh,
        }

    def remove_item(self, item: str) -> dict[str, Any]:
        with self._alone():
            served = self._served
            with self._writing(served):
                index = Index.open(served.index.path, served.trained.fingerprint)
                row = int(index.ids.find([item])[0])
                id = _id_of_item(item) if row < 0 else _plain(index.ids[row])
                excluded = row < 0 or row in index.removed
                if excluded and served.items.live.get(id) is None:
                    raise UnknownError(f"the index holds no item {item!r:.80}")
                self.store.put_items({id: None})
                served = self._brought_up(served, index)
            self._use(served)
        return {"index_version": served.index.version, "removed": 1}

    # Live items

    @contextlib.contextmanager
    def _writing(self, served: Served) -> Iterator[None]:
        """The right to change the index of what is served.

        Raises:
            StoreError: another process changes it for too long, or its disk is full.
            ReadOnlyError: it may not be changed.
        """
        try:
            with writing(served.index.path, PATIENCE):
                yield
        except BusyError:
            raise StoreError(
                f"another process has changed the index for more than {PATIENCE:g} s; try again"
            ) from None

    def follow(self) -> None:
        """Go on with the newer version of an index that another process has changed, and with the
        live items that another server has put into the store. What fails is tried again with the
        next call."""
        if not self._changing.acquire(blocking=False):
            return  # whoever changes what is served does this as well
        try:
            served = self._served
            newer = self._caught_up(served)
            if newer is not served:
                self._use(newer)
        finally:
            self._changing.release()

    def _caught_up(self, served: Served) -> Served:
        """With the newest version of the index, and all live items that the store has by now."""
        if not served.index.current():
            served = self._reopened(served)
        if self._lacking(served.index)[1]:
            try:
                with writing(served.index.path):
                    opened = Index.open(served.index.path, served.trained.fingerprint)
                    return self._brought_up(served, opened)
            except BusyError:
                pass  # next time
            except ReadOnlyError as error:
                if not served.pending:
                    log.error("live items are not ranked: %s", error)
        return self._with_table(served)

    def _lacking(self, index: Index) -> tuple[int, dict[Id, dict[str, Any] | None]]:
        """The store's count of changes, and the live items of which an index lacks the last one."""
        live = index.live
        same = live is not None and live.store == self.store.identity()
        since = live.change if same and live is not None else 0
        change, items = self.store.items(since)
        if change < since:  # the store is an older copy of itself
            change, items = self.store.items(0)
        return change, items

    def _brought_up(self, served: Served, index: Index) -> Served:
        """With all live items in an index, which is the newest version. Under the right to write.

        An index knows up to which change of the store it holds them; so what was done to it
        afterwards, such as ``limerank index --remove``, stays done. One that does not know (it was
        built anew, or served from another store) gets all of them once, but for those that were
        removed from it.
        """
        identity = self.store.identity()
        change, items = self._lacking(index)
        known = index.live is not None and index.live.store == identity
        ids = list(items)
        rows = index.ids.find(ids)
        excluded = np.isin(rows, index.removed)
        put: dict[Id, dict[str, Any]] = {}
        remove: list[Id] = []
        layout = served.items.layout
        for id, row, away in zip(ids, rows.tolist(), excluded.tolist(), strict=True):
            columns = items[id]
            if columns is None:
                if row >= 0 and not away:
                    remove.append(id)
            elif layout is not None and (known or not away):
                put[id] = {**json_value(columns), layout.id: id}
        skipped = dict(index.live.skipped) if known and index.live is not None else {}
        for id in items:
            skipped.pop(str(id), None)
        if layout is None:
            why = "the run's data had no item table"
            skipped |= {str(id): why for id, columns in items.items() if columns is not None}
        try:
            self._put(served, index, put, remove, LiveItems(identity, change, skipped))
        except DataError:
            positions = list(put)
            for position, why in unreadable_items(served.trained, list(put.values())).items():
                skipped[str(positions[position])] = why
                del put[positions[position]]
                log.error("a live item cannot be read by the run and is skipped: %s", why)
            self._put(served, index, put, remove, LiveItems(identity, change, skipped))
        return self._with_table(self._reopened(served))

    def _put(
        self,
        served: Served,
        index: Index,
        put: Mapping[Id, dict[str, Any]],
        remove: list[Id],
        live: LiveItems,
    ) -> None:
        if put or remove or index.live != live:
            put_live_items(served.trained, index.path, list(put.values()), remove, live)

    def _reopened(self, served: Served) -> Served:
        """With the newest version of the index."""
        index = Index.open(served.index.path, served.trained.fingerprint)
        return replace(
            served,
            marked=served.states.marked(index),
            scorer=scorer_for(self.scorer, served.trained.ranker, index, threads=self.threads),
            filters=Filters(served.items, index),
            # Rows that were there are there still, as they were written.
            check=served.check if index.base == served.index.base else Check(),
        )

    def _with_table(self, served: Served) -> Served:
        """With the live items that the store has by now in the table, and a count of those that
        the index lacks."""
        live, changed = self.store.items(served.live)
        if live < served.live:
            live, changed = self.store.items(0)
        pending = len(self._lacking(served.index)[1])
        if not changed:
            return served if pending == served.pending else replace(served, pending=pending)
        items = served.items.with_items(changed)
        filters = Filters(items, served.index)
        return replace(served, items=items, filters=filters, live=live, pending=pending)

    def _live(self, served: Served) -> dict[str, Any]:
        """What is to be said of live items."""
        skipped = {} if served.index.live is None else served.index.live.skipped
        return {
            "pending": served.pending,
            "skipped": [{"item": id, "why": why} for id, why in skipped.items()],
        }

    # The server's own

    def model(self) -> dict[str, Any]:
        served = self._served
        ranker = served.trained.ranker
        layout = served.items.layout
        encoding = served.trained.manifest["encoding"]
        return {
            "version": version("limerank"),
            "model": ranker.config.model,
            "run": served.trained.fingerprint,
            "loaded": served.loaded,
            "index": {
                "version": served.index.version,
                "items": len(served.index) - len(served.index.hidden),
            },
            "history": served.states.length,
            "state": served.states.mode,
            "links": ranker.config.links if ranker.config.model.startswith("lime") else None,
            "tasks": [{"name": task.name, "kind": task.kind} for task in ranker.shape.tasks],
            "item_id": None if layout is None else layout.id,
            "item_columns": [] if layout is None else layout.read,
            "item_features": []
            if layout is None
            else [
                {"name": one.name, "kind": one.kind, "column": one.column, "split": one.split}
                for one in layout.features
            ],
            "context": [
                {"name": one["name"], "kind": one["kind"], "values": self._values(served, one)}
                for one in encoding["event_features"]
                if one["when"] == "context"
            ],
            "clock": served.states.form.clock,
            "index_check": served.check.state,
            "live_items": self._live(served),
        }

    def _values(self, served: Served, feature: Mapping[str, Any]) -> list[str]:
        """The most frequent values of a categorical context feature that the run knows."""
        if feature["kind"] != "categorical":
            return []
        folder, name = served.trained.path, str(feature["name"])
        return read_vocabulary(folder, f"event_{name}")["value"].head(SHOWN_VALUES).to_list()

    def ready(self) -> dict[str, Any]:
        """Raise where requests could not be answered, or not rightly: the store is asked."""
        self.store.counts()
        if self._served.check.state == "damaged":
            raise FormatError("the index in use is damaged; the server's log says more")
        return {"status": "ok"}

    def check_store(self) -> None:
        """Log what an operator has to look after in the store, when that changes."""
        lines = self.store.check()
        self.numbers.store_warnings.set(len(lines))
        for line in lines:
            if line not in self._store_warnings:
                log.warning("the store: %s", line)
        self._store_warnings = lines

    def count(self) -> None:
        """Bring the gauges up to date.

        Raises:
            StoreError, FormatError: the store is away; its own gauges keep what it said last.
        """
        served, numbers = self._served, self.numbers
        numbers.items.set(len(served.index) - len(served.index.hidden))
        numbers.index_version.set(served.index.version)
        numbers.index_verified.set(served.check.state == "passed")
        numbers.index_damaged.set(served.check.state == "damaged")
        live = served.index.live
        numbers.live_skipped.set(0 if live is None else len(live.skipped))
        numbers.live_pending.set(served.pending)
        numbers.model.clear()
        numbers.model.labels(served.trained.fingerprint, served.trained.ranker.config.model).set(1)
        counts = self.store.counts()
        numbers.users.set(counts.users)
        numbers.events.set(counts.events)

    def close(self) -> None:
        self.store.close()


def _id(text: str) -> int | str:
    """An id of a path as the log has it: "17" is 17."""
    return external_id("user", text)


def _id_of_item(text: str) -> int | str:
    """The same for items; UnknownError where it can be none."""
    try:
        return external_id("item", text)
    except DataError as error:
        raise UnknownError(str(error)) from None


def _plain(value: Any) -> Any:
    return plain(value)


def _distinct(rows: NDArray[np.int64]) -> int:
    """How many different rows there are."""
    ordered = np.sort(rows)
    return int(np.count_nonzero(ordered[1:] != ordered[:-1])) + bool(len(rows))


def _explained(found: Explanation) -> dict[str, Any]:
    events = [
        {
            "item": plain(event.item),
            "time": event.time,
            "age": event.age,
            "share": event.share,
            "effect": None if np.isnan(event.effect) else event.effect,
        }
        for event in found.events
    ]
    links: list[dict[str, Any]] = []
    paths: list[dict[str, Any]] = []
    if found.links is not None and found.reads is not None:
        weights = found.links.mean(0)
        order = np.argsort(-weights, kind="stable")[:LINKS]
        links = [{"link": int(link), "weight": float(weights[link])} for link in order]
        full = weights[:, None] * found.reads
        if full.size:
            heaviest = np.argsort(-full, axis=None, kind="stable")[:PATHS]
            for link, event in zip(*np.unravel_index(heaviest, full.shape), strict=True):
                paths.append(
                    {"event": int(event), "link": int(link), "weight": float(full[link, event])}
                )
    return {
        "item": plain(found.item),
        "value": found.value,
        "without_history": found.without_history,
        "links": links,
        "events": events,
        "paths": paths,
    }
