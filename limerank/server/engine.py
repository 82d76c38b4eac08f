"""What the routes stand on: a served run and index, the store of events, and live items.

A :class:`Served` is one run with one index: it never changes, but for newer versions of its index.
Requests take the one in use and keep it until they are answered, so that another run takes its place
between two requests and no request sees half of each.
"""

from __future__ import annotations

import logging
import threading
import time as clock
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limerank.errors import DataError, FormatError, SpecError, UnknownError
from limerank.events import Event, event_of
from limerank.explain import explain
from limerank.index import Index
from limerank.index_changes import change_items
from limerank.losses import predictions
from limerank.request import plain
from limerank.scorer import Scorer, scorer_for
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
"""Seconds for which the change of an index is tried again while another process changes it."""
PATIENCE = 20.0


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
        threads: that one ranking uses.
        numbers: what is counted.
    """

    def __init__(
        self,
        run: Path,
        index: Path,
        store: EventStore,
        *,
        items: Path | None = None,
        mode: Mode = "window",
        threads: int = 1,
        numbers: Numbers | None = None,
    ) -> None:
        self.store, self.mode, self.threads = store, mode, threads
        self.numbers = numbers or Numbers()
        self._table = items
        self._changing = threading.Lock()
        self._changes = 0
        self._served = self._load(run, index)
        self._catch_up(self._served)

    # Loading

    def _load(self, run: Path, index: Path) -> Served:
        """Load, check and warm a run and an index; raises before anything in use is touched."""
        trained = load_trained(run)
        opened = Index.open(index, trained.fingerprint)
        states = UserStates(trained, opened, self.store, mode=self.mode)
        scorer = scorer_for("auto", trained.ranker, opened, threads=self.threads)
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
            self._served = new
        log.info(
            "loaded",
            extra={"run": new.trained.fingerprint, "index_version": new.index.version},
        )
        return {"run": new.trained.fingerprint, "index_version": new.index.version}

    # Who asks

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

    def _weights(self, served: Served, given: Mapping[str, float] | None) -> NDArray[np.float32]:
        names = [task.name for task in served.trained.ranker.shape.tasks]
        if given is None:
            given = {names[0]: 1.0}
        unknown = [name for name in given if name not in names]
        if unknown:
            raise UnknownError(
                f"no task is called {', '.join(map(repr, unknown))}; the run has {', '.join(names)}"
            )
        return np.array([given.get(name, 0.0) for name in names], dtype=np.float32)

    def _rows(self, served: Served, what: str, ids: Sequence[Any]) -> NDArray[np.int64]:
        rows = served.index.ids.find(ids)
        if (rows < 0).any():
            unknown = [ids[int(place)] for place in np.flatnonzero(rows < 0)[:10]]
            raise UnknownError(
                f"{int((rows < 0).sum())} of {len(ids)} {what} are not in the index: "
                f"{', '.join(map(repr, unknown))}"
            )
        return rows

    # Ranking

    def rank(self, asked: Rank) -> dict[str, Any]:
        served, taken = self._served, {}
        started = clock.perf_counter()
        weights = self._weights(served, asked.task_weights)
        with self.numbers.stage("state", taken):
            ready = self._ready(served, asked)
        with self.numbers.stage("score", taken):
            rows = None
            if asked.candidates is not None:
                rows = self._rows(served, "candidates", asked.candidates)
            gone = [ready.seen] if asked.exclude_seen else []
            if asked.exclude:
                gone.append(served.index.ids.find(asked.exclude))
            excluded = np.concatenate([np.zeros(0, np.int64), *gone])
            allow = None if not asked.filter else served.items.allowed(served.index, asked.filter)
            top = served.scorer.top(
                ready.state,
                asked.k,
                weights=weights,
                rows=rows,
                exclude=[excluded[excluded >= 0]],
                allow=allow,
            )
        found = top.rows[0][top.rows[0] >= 0]
        ids = served.index.ids[found].tolist()
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
            "candidates": len(served.index) - len(served.index.hidden)
            if rows is None
            else len(np.unique(rows)),
            "run": served.trained.fingerprint,
            "index_version": served.index.version,
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
        weights = self._weights(served, asked.task_weights)
        rows = self._rows(served, "items", asked.items)
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
        vectors = torch.from_numpy(np.array(served.index.vectors[rows], dtype=np.float32))
        with self.numbers.stage("explain"):
            found = explain(served.trained.ranker, past, list(asked.items), vectors, weights)
        return {"user": asked.user, "items": [_explained(one) for one in found]}

    # Events

    def append(self, events: list[Happened]) -> dict[str, Any]:
        served = self._served
        checked: list[Event] = []
        for place, given in enumerate(events):
            try:
                event = event_of(given.model_dump(exclude_none=True))
                served.states.check(event)
            except (DataError, UnknownError) as error:
                raise type(error)(f"events[{place}]: {error}") from None
            checked.append(event)
        with self.numbers.stage("append"):
            outcomes = self.store.append(checked)
        return {
            "accepted": outcomes.count(Outcome.ACCEPTED),
            "duplicates": outcomes.count(Outcome.DUPLICATE),
            "expired": outcomes.count(Outcome.EXPIRED),
        }
