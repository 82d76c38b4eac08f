"""What the routes stand on: a served run and index, the store of events, and live items.

A :class:`Served` is one run with one index: it never changes, but for newer versions of its index.
Requests take the one in use and keep it until they are answered, so that another run takes its
place between two requests and no request sees half of each.
"""

from __future__ import annotations

import logging
import threading
import time as clock
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limerank import selftest
from limerank.errors import DataError, FormatError, SpecError, UnknownError
from limerank.events import Event, event_of, external_id
from limerank.explain import Explanation, explain
from limerank.index import Index
from limerank.index.changes import change_items
from limerank.losses import predictions
from limerank.request import plain
from limerank.scorer import Scorer, ScorerName, scorer_for, weights_of_tasks
from limerank.server.messages import Asking, Explain, Happened, Rank
from limerank.server.numbers import Numbers
from limerank.server.table import ItemTable
from limerank.state import Mode, Ready, UserStates
from limerank.stores import EventStore, Outcome
from limerank.trained import Trained, load_trained

log = logging.getLogger("limerank.server")
PATHS = 24
"""Ways from an event over a link to an item that an explanation names."""
LINKS = 8
"""Links that an explanation names."""
BRIEF_ITEMS, BRIEF_EVENTS = 2048, 16
"""Items that are ranked, and events that are taken, by a request that is answered at once."""
PATIENCE = 20.0
"""Seconds for which the change of an index is tried again while another process changes it."""


@dataclass
class Served:
    """A run and an index of it, with all that ranking needs."""

    trained: Trained
    states: UserStates
    scorer: Scorer
    items: ItemTable
    loaded: str

    @property
    def index(self) -> Index:
        return self.scorer.index


class Serving:
    """The engine of :mod:`limerank.server.app`.

    Args:
        run: a run folder.
        index: an index folder of the run.
        store: of events; closed with the engine.
        items: the item table, for filters and to show features; see :class:`ItemTable`.
        mode: of the users' states, see :class:`~limerank.state.UserStates`.
        scorer: "auto", or one by name; see :func:`~limerank.scorer.scorer_for`.
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
        self._changes = 0
        self._served = self._load(run, index)
        self._catch_up(self._served)

    # Loading

    def _load(self, run: Path, index: Path) -> Served:
        """Load, check and warm a run and an index; raises before anything in use is touched."""
        trained = load_trained(run)
        if not selftest.passes(trained):
            log.warning(
                "%s has no scores to be compared with: it was trained before they were", run
            )
        opened = Index.open(index, trained.fingerprint)
        states = UserStates(trained, opened, self.store, mode=self.mode)
        scorer = scorer_for(self.scorer, trained.ranker, opened, threads=self.threads)
        served = Served(
            trained,
            states,
            scorer,
            ItemTable(trained, self._table),
            datetime.now(UTC).isoformat(timespec="seconds"),
        )
        nobody = states.ready(None)
        top = scorer.top(nobody.state, min(10, max(1, len(opened))))
        if not np.isfinite(top.values[top.rows >= 0]).all():
            raise FormatError(f"{run} ranks with numbers that are not finite; train it again")
        return served

    def reload(self, run: str | None, index: str | None) -> dict[str, Any]:
        """Serve another run or index. What does not pass its tests is refused, and the one in use
        goes on."""
        with self._changing:
            old = self._served
            new = self._load(
                Path(run) if run else old.trained.path, Path(index) if index else old.index.path
            )
            self._changes = 0
            self._catch_up(new)
            if new.trained.fingerprint == old.trained.fingerprint:
                # The model is the same: what is in memory of its users stays. Requests under way
                # go on with the new index, too.
                new.states = old.states
                new.states.use_index(new.index)
                old.scorer = new.scorer
            self._served = new
        log.info(
            "loaded",
            extra={"run": new.trained.fingerprint, "index_version": new.index.version},
        )
        return {"run": new.trained.fingerprint, "index_version": new.index.version}

    # Who asks

    def _asked(self, served: Served, asked: Asking) -> tuple[Scorer, Ready]:
        """The user's state, and the scorer of the very index that it speaks of."""
        while True:
            scorer = served.scorer
            if served.states.index is scorer.index:
                ready = self._ready(served, asked)
                if served.states.index is scorer.index:
                    return scorer, ready
            clock.sleep(0.001)  # the index is being replaced

    def _ready(self, served: Served, asked: Asking) -> Ready:
        if asked.user is not None and asked.history is not None:
            raise SpecError("give a user or a history, not both")
        if asked.history is None:
            return served.states.ready(asked.user, now=asked.time, context=asked.context)
        return served.states.given(
            [event.model_dump(exclude_none=True) for event in asked.history],
            now=asked.time,
            context=asked.context,
        )

    def _rows(self, index: Index, what: str, ids: Sequence[Any]) -> NDArray[np.int64]:
        rows = index.ids.find(ids)
        if (rows < 0).any():
            unknown = [ids[int(place)] for place in np.flatnonzero(rows < 0)[:10]]
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
        weights = weights_of_tasks(served.trained.ranker.shape.tasks, asked.task_weights)
        with self.numbers.stage("state", taken):
            scorer, ready = self._asked(served, asked)
        index = scorer.index
        with self.numbers.stage("score", taken):
            rows = None
            if asked.candidates is not None:
                rows = self._rows(index, "candidates", asked.candidates)
            gone = ready.seen if asked.exclude_seen else np.zeros(0, np.int64)
            if asked.exclude:
                more = index.ids.find(asked.exclude)
                gone = np.concatenate([gone, more[more >= 0]])
            allow = None if not asked.filter else served.items.allowed(index, asked.filter)
            top = scorer.top(
                ready.state,
                asked.k,
                weights=weights,
                rows=rows,
                exclude=[gone],
                allow=allow,
            )
        found = top.rows[0][top.rows[0] >= 0]
        ids = index.ids[found].tolist()
        tasks = served.trained.ranker.shape.tasks
        said = predictions(torch.from_numpy(top.logits[0][: len(found)]), tasks).tolist()
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
                    "rank": place + 1,
                    "value": values[place],
                    "scores": dict(zip(names, said[place], strict=True)),
                    "features": features[place],
                }
                for place, id in enumerate(ids)
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
            past = served.states.past(asked.user, now=asked.time, context=asked.context)
        else:
            past = served.states.past_given(
                [event.model_dump(exclude_none=True) for event in asked.history],
                now=asked.time,
                context=asked.context,
            )
        vectors = torch.from_numpy(np.array(index.vectors[rows], dtype=np.float32))
        with self.numbers.stage("explain"):
            found = explain(served.trained.ranker, past, list(asked.items), vectors, weights)
        return {"user": asked.user, "items": [_explained(one) for one in found]}

    # Events

    def append(self, events: list[Happened]) -> Future[dict[str, Any]]:
        """Check events and have them kept: a promise, so that nobody waits for the disk alone."""
        served = self._served
        checked: list[Event] = []
        for place, given in enumerate(events):
            try:
                event = event_of(given.__dict__)  # its fields, checked
                served.states.check(event)
            except (DataError, UnknownError) as error:
                raise type(error)(f"events[{place}]: {error}") from None
            checked.append(event)
        answer: Future[dict[str, Any]] = Future()
        answer.set_running_or_notify_cancel()  # it is kept, whoever goes away
        started = clock.perf_counter()

        def told(kept: Future[list[Outcome]]) -> None:
            self.numbers.stages.labels("append").observe(clock.perf_counter() - started)
            error = kept.exception()
            if error is not None:
                answer.set_exception(error)
                return
            outcomes = kept.result()
            answer.set_result(
                {
                    "accepted": outcomes.count(Outcome.ACCEPTED),
                    "duplicates": outcomes.count(Outcome.DUPLICATE),
                    "expired": outcomes.count(Outcome.EXPIRED),
                }
            )

        self.store.appending(checked).add_done_callback(told)
        return answer

    # What takes a thread of its own

    def brief(self, asked: Rank | list[Happened]) -> bool:
        """Whether a request takes about a millisecond and waits for nothing: then handing it to
        another thread takes longer than answering it."""
        if not self.store.local:
            return False
        if isinstance(asked, list):
            return len(asked) <= BRIEF_EVENTS
        served = self._served
        count = len(served.index) if asked.candidates is None else len(asked.candidates)
        return (
            served.scorer.name == "native"
            and count <= BRIEF_ITEMS
            and asked.k <= BRIEF_ITEMS
            and asked.history is None
            and not asked.filter
            and served.states.at_hand(asked.user)
        )

    # Users

    def user(self, user: str) -> dict[str, Any]:
        served, id = self._served, _id(user)
        held = self.store.held(id)
        if held is None:
            raise UnknownError(f"nothing is held of the user {id!r}")
        latest = held.events[-served.states.length :]
        met = list(dict.fromkeys(event.item for event in latest))
        return {
            "user": id,
            "known": True,
            "events": len(held.events),
            "features": held.features,
            "history": [
                {
                    "item": event.item,
                    "time": event.time,
                    "labels": dict(event.labels),
                    "features": dict(event.features),
                }
                for event in latest
            ],
            "items": [
                {"item": item, "features": of}
                for item, of in zip(met, served.items.features(met), strict=True)
            ],
        }

    def users(self, text: str, limit: int) -> dict[str, Any]:
        return {"users": self.store.named(text, limit)}

    def put_user(self, user: str, features: dict[str, Any]) -> dict[str, Any]:
        served, id = self._served, _id(user)
        served.states.people.check(features)
        self.store.set_features(id, features)
        return {"user": id, "features": features}

    def forget(self, user: str) -> dict[str, Any]:
        id = _id(user)
        held = self.store.held(id)
        if held is None or not self._served.states.forget(id):
            raise UnknownError(f"nothing is held of the user {id!r}")
        return {"forgotten": len(held.events)}

    # Items

    def item(self, item: str) -> dict[str, Any]:
        served = self._served
        row = int(served.index.ids.find([item])[0])
        if row < 0:
            raise UnknownError(f"the index holds no item {item!r}")
        (features,) = served.items.features([_plain(served.index.ids[row])])
        place = int(np.searchsorted(served.index.hidden, row))
        hidden = place < len(served.index.hidden) and served.index.hidden[place] == row
        return {"item": _plain(served.index.ids[row]), "features": features, "rankable": not hidden}

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
        with self._changing:
            served = self._served
            layout = served.items.layout
            if layout is None:
                raise SpecError("the run's data had no item table, so items cannot be put live")
            ids = []
            for item in items:
                if not isinstance(item.get(layout.id), (int, str)):
                    raise DataError(f"every item needs an id in the column {layout.id!r}")
                ids.append(external_id("item", item[layout.id]))
            held = served.index.ids.find(ids)
            fresh = int(((held < 0) | np.isin(held, served.index.removed)).sum())
            self._change(served, put=items, remove=[])
            self._changes = self.store.put_items(dict(zip(ids, items, strict=True)))
            served.items.put(dict(zip(ids, items, strict=True)))
        return {
            "index_version": served.index.version,
            "added": fresh,
            "updated": len(items) - fresh,
        }

    def remove_item(self, item: str) -> dict[str, Any]:
        with self._changing:
            served = self._served
            row = int(served.index.ids.find([item])[0])
            if row < 0 or row in served.index.removed:
                raise UnknownError(f"the index holds no item {item!r}")
            id = _plain(served.index.ids[row])
            self._change(served, put=[], remove=[id])
            self._changes = self.store.put_items({id: None})
            served.items.put({id: None})
        return {"index_version": served.index.version, "removed": 1}

    def _change(self, served: Served, put: list[Any], remove: list[Any]) -> None:
        """Change the index on disk and go on with its new version. Under the lock of changes."""
        until = clock.monotonic() + PATIENCE
        while True:
            try:
                change_items(
                    served.trained, served.index.path, put=put or None, remove=remove or None
                )
                break
            except FormatError:
                if clock.monotonic() > until:  # another process has been at it for long
                    raise
                clock.sleep(0.05)
        self._reopen(served)

    def follow(self) -> None:
        """Go on with the newer version of an index that another process has changed, and with the
        live items that another server has put into the store."""
        with self._changing:
            served = self._served
            if not served.index.current():
                self._reopen(served)
            self._catch_up(served)

    def _reopen(self, served: Served) -> None:
        index = Index.open(served.index.path, served.trained.fingerprint)
        scorer = scorer_for(self.scorer, served.trained.ranker, index, threads=self.threads)
        served.states.use_index(index)
        served.scorer = scorer

    def _catch_up(self, served: Served) -> None:
        """Put the store's live items into an index that has not got them: a new one, or one that
        another server has not changed yet."""
        self._changes, changed = self.store.items(self._changes)
        if not changed:
            return
        ids = list(changed)
        rows = served.index.ids.find(ids)
        gone = (rows < 0) | np.isin(rows, served.index.removed)
        put = [item for id, item in changed.items() if item is not None]
        remove = [
            id for id, away in zip(ids, gone, strict=True) if changed[id] is None and not away
        ]
        if put or remove:
            self._change(served, put, remove)
        served.items.put(changed)

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
                {"name": one["name"], "kind": one["kind"], "values": self._values(one)}
                for one in encoding["event_features"]
                if one["when"] == "context"
            ],
            "clock": served.states.form.clock,
        }

    def _values(self, feature: Mapping[str, Any]) -> list[str]:
        """Values of a categorical context feature that the run knows, the first hundred."""
        if feature["kind"] != "categorical":
            return []
        import polars as pl

        path = self._served.trained.path / "vocab" / f"event_{feature['name']}.parquet"
        return [str(value) for value in pl.read_parquet(path)["value"].head(100)]

    def ready(self) -> dict[str, Any]:
        """Raise where requests could not be answered: the store is asked."""
        self.store.counts()
        return {"status": "ok"}

    def count(self) -> None:
        """Bring the gauges up to date."""
        served, counts = self._served, self.store.counts()
        self.numbers.users.set(counts.users)
        self.numbers.events.set(counts.events)
        self.numbers.items.set(len(served.index) - len(served.index.hidden))
        self.numbers.index_version.set(served.index.version)
        self.numbers.model.clear()
        self.numbers.model.labels(
            served.trained.fingerprint, served.trained.ranker.config.model
        ).set(1)

    def close(self) -> None:
        self.store.close()


def _id(text: str) -> int | str:
    """An id of a path as the log has it: "17" is 17."""
    return external_id("user", text)


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
        whole = weights[:, None] * found.reads
        if whole.size:
            heaviest = np.argsort(-whole, axis=None, kind="stable")[:PATHS]
            for link, event in zip(*np.unravel_index(heaviest, whole.shape), strict=True):
                paths.append(
                    {"event": int(event), "link": int(link), "weight": float(whole[link, event])}
                )
    return {
        "item": plain(found.item),
        "value": found.value,
        "without_history": found.without_history,
        "links": links,
        "events": events,
        "paths": paths,
    }
