"""What the routes compute: rankings, explanations, events, users and items.

The engine answers from one :class:`~limerank.serving.served.Served` per request. It needs no HTTP:
:mod:`limerank.serving.http` calls it, and so do tests.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time as clock
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from limerank.data.attribution import WINDOW
from limerank.data.canonical import external_id, json_value
from limerank.data.event_log import EventForm
from limerank.errors import FormatError, ShardError, SpecError, UnknownError
from limerank.ranking.request import plain
from limerank.ranking.rules import Rules
from limerank.ranking.scorer import ScorerName
from limerank.ranking.similar import similar_items
from limerank.serving.answers import (
    arms_of,
    described,
    dispatch,
    explained,
    interleaved,
    items_of,
    show_outcomes,
    show_served,
    spec_of,
    unranked,
)
from limerank.serving.arms import Arm, Arms, ArmSpec, one_arm
from limerank.serving.counting import ItemCounts
from limerank.serving.current import Current
from limerank.serving.exposing import Exposing, arm_of, new_ranking
from limerank.serving.feed import Feed
from limerank.serving.intake import Accepted, AnyForm, Intake
from limerank.serving.messages import (
    ArmBody,
    EventMessage,
    Explain,
    Rank,
    Shown,
    UserRequest,
)
from limerank.serving.reading import Tally
from limerank.serving.served import Loader, Served
from limerank.serving.shards.client import Shards
from limerank.serving.shards.scorer import ShardedScorer, left_out, missing_shards
from limerank.serving.state import STATE_BYTES, Mode, Ready
from limerank.serving.stores import EventStore, Outcome
from limerank.serving.stores.values import written
from limerank.serving.telemetry import Numbers
from limerank.validation import validate

log = logging.getLogger("limerank.serving")
Answer = dict[str, Any] | Future[dict[str, Any]]
BRIEF_ITEMS, BRIEF_RANKED, BRIEF_EVENTS, BRIEF_NAMES = 2048, 256, 16, 64
"""Limits of a request that is answered on the event loop: candidates, ranked items, events, and
names in one object."""


class Serving:
    """The engine of :mod:`limerank.serving.http.app`.

    Args:
        run: a run folder, and
        index: an index folder of the run, of a server with one arm.
        arms: the arms of a server with several.
        salt: of the choice of users, see :class:`~limerank.serving.arms.Arms`.
        store: the event store; closed with the engine.
        items: the item table, for filters and for the features in answers.
        mode, keep, memory: see :class:`~limerank.serving.state.UserStates`.
        scorer: "auto", or a scorer by name; see :func:`~limerank.ranking.scorer.scorer_for`.
        threads: threads that one ranking uses.
        window: seconds from an exposure to an outcome, at most, for live counts.
        shards, shard_key, shard_seconds: URLs of servers of the index's shards, that of shard 1
            first, which rank in place of this process (:mod:`limerank.serving.shards`); a key with
            read access to them; the time limit of their answers.

    Attributes:
        arms: what is served, and how it is replaced.
        intake: how events reach the store; a source beside HTTP calls it, too.
        exposing: how exposures reach the store.
        outcomes: live counts of what followed exposures.
        counts: impressions of items, for the counters of the indexes.
        numbers: the metrics.
    """

    def __init__(
        self,
        run: Path | None,
        index: Path | None,
        store: EventStore,
        *,
        arms: Sequence[ArmSpec] = (),
        salt: str = "",
        items: Path | None = None,
        mode: Mode = "window",
        scorer: ScorerName = "auto",
        threads: int = 1,
        window: float = WINDOW,
        shards: Sequence[str] = (),
        shard_key: str = "",
        shard_seconds: float = 2.0,
        keep: bool = False,
        memory: int = STATE_BYTES,
    ) -> None:
        self.store = store
        self.numbers = Numbers()
        self.shards = None
        if shards:
            self.shards = Shards(
                shards, key=shard_key, seconds=shard_seconds, observe=self.numbers.shard_ended
            )
            if len(arms) > 1:
                raise SpecError("shards are of one index: serve one run and index with them")
        self._store_warnings: list[str] = []
        if (run is None or index is None) == (not arms):
            raise SpecError("give a run and an index, or arms")
        specs = arms or one_arm(Path(str(run)), Path(str(index)))
        loader = Loader(store, items, mode, scorer, threads, self.shards, keep, memory)
        try:
            self.arms = Arms(loader, specs, salt)
        except BaseException:
            if self.shards is not None:
                self.shards.close()
            raise
        self.intake = Intake(store, lambda: AnyForm(self._forms()), self.numbers)
        self.exposing = Exposing(store, lambda: self._served.states.form, self.numbers)
        feeds = [Feed(store, window, clocked=self._served.states.form.clock) for _ in range(2)]
        self.outcomes, self.counts = Tally(feeds[0]), ItemCounts(feeds[1], self.arms.unknown)
        log.info("computing: %s", json.dumps(self.dispatch()))

    @property
    def remote(self) -> bool:
        """Whether requests mostly wait for other machines, and need no core."""
        return not self.store.local or self.shards is not None

    @property
    def current(self) -> Current:
        """What the main arm serves."""
        return self.arms.main.current

    @property
    def _served(self) -> Served:
        return self.current.served

    def _forms(self) -> list[EventForm]:
        return [current.served.states.form for current in self.arms.currents]

    def dispatch(self) -> dict[str, Any]:
        """Which implementations compute: reported once at start, and in ``/v1/model``."""
        return dispatch(self._served, self.arms.loader.threads)

    def reload(
        self,
        run: str | None,
        index: str | None,
        arm: str | None = None,
        arms: Mapping[str, ArmBody] | None = None,
    ) -> dict[str, Any]:
        """Serve another run or index in an arm, or other arms. What fails its tests is refused, and
        what is in use stays."""
        if arms is not None:
            if self.shards is not None:
                raise SpecError("this server ranks through shards, which are of one index")
            if run is not None or index is not None or arm is not None:
                raise SpecError("give arms alone, or the run and index of one arm")
            before = [(one.name, one.share) for one in self.arms.arms.values()]
            self.arms.configure([spec_of(name, body) for name, body in arms.items()])
            if before != [(one.name, one.share) for one in self.arms.arms.values()]:
                self.outcomes.shares_changed()
            return {"arms": arms_of(self.arms), "live_items": unranked(self._served)}
        new = self.arms.reload(
            None if run is None else Path(run), None if index is None else Path(index), arm
        )
        return {
            "run": new.trained.fingerprint,
            "index_version": new.index.version,
            "live_items": unranked(new),
        }

    def verify(self) -> None:
        """Compare the index's files with their checksums; see :meth:`Current.verify`."""
        self.arms.verify()

    def follow(self) -> None:
        """Use what other processes have changed; see :meth:`Current.follow`."""
        self.arms.follow()

    def tally(self) -> None:
        """Count outcomes of exposures whose window is over."""
        self.outcomes.step()

    # Rankings

    def _ready(self, served: Served, asked: UserRequest) -> Ready:
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

    def rank(self, asked: Rank) -> Answer:
        """The answer, or a future of it where the ranking is logged."""
        arm = self.arms.of(asked.user, asked.arm)
        answers = []
        for current in arm.models:
            served, taken = current.served, dict[str, float]()
            started = clock.perf_counter()
            with self.numbers.stage("state", taken):
                ready = self._ready(served, asked)
            answers.append(self._ranked(served, asked, ready, taken, started))
        return self._finished(arm, asked, answers)

    def _finished(self, arm: Arm, asked: Rank, answers: list[dict[str, Any]]) -> Answer:
        """The answer of an arm from those of its models, logged if that is asked for."""
        ranking = new_ranking(arm.name)
        self.numbers.arm_requests.labels(arm.name).inc()
        answer = {"ranking": ranking, "arm": arm.name, **answers[0]}
        if arm.spec.mixes:
            answer |= interleaved(answers, arm.spec.mixes, asked.k, ranking)
        if not asked.log:
            return answer
        if asked.arm is not None:
            raise SpecError("a logged ranking is from the user's own arm: leave arm or log out")
        return self.exposing.log(asked, answer)

    def rank_at_once(self, asked: Rank) -> Answer | None:
        """:meth:`rank` for requests that take about a millisecond and wait for nothing: passing
        such a request to another thread takes longer than answering it. None for all others."""
        arm = self.arms.of(asked.user, asked.arm)
        served = arm.current.served
        count = len(served.index) if asked.candidates is None else len(asked.candidates)
        names = (asked.context, asked.task_weights, asked.exclude)
        if (
            not self.store.local
            or served.scorer.name != "native"
            or count > BRIEF_ITEMS
            or asked.k > BRIEF_RANKED
            or asked.history is not None
            or asked.select
            or arm.spec.mixes
            or any(part is not None and len(part) > BRIEF_NAMES for part in names)
            or dict in map(type, asked.candidates or ())
        ):
            return None
        taken: dict[str, float] = {}
        started = clock.perf_counter()
        with self.numbers.stage("state", taken):
            ready = served.states.ready_at_once(
                asked.user, now=asked.time, context=asked.context, index=served.marked
            )
        if ready is None:
            return None
        return self._finished(arm, asked, [self._ranked(served, asked, ready, taken, started)])

    def _ranked(
        self, served: Served, asked: Rank, ready: Ready, taken: dict[str, float], started: float
    ) -> dict[str, Any]:
        flow = served.flow
        with self.numbers.stage("score", taken):
            request = flow.check(
                asked.k,
                candidates=asked.candidates,
                unrankable="omit",
                exclude=asked.exclude,
                task_weights=asked.task_weights,
                rules=asked,
                filters=served.filters,
            )
            seen = ready.seen if asked.exclude_seen else None
            with missing_shards(served.scorer, asked.partial) as missing:
                best = flow.best(request, ready.state, seen=seen)
        features = served.items.features(best.ids)
        display = served.index.display
        shown = [None] * len(best.ids) if display is None else display.of(best.rows)
        taken["total"] = round(1e3 * (clock.perf_counter() - started), 3)
        return {
            "user": asked.user,
            "known": ready.known,
            "events": ready.events,
            "candidates": request.candidates - left_out(served.scorer, missing),
            **({} if request.skipped is None else {"skipped": request.skipped}),
            **({"missing_shards": sorted(missing)} if missing else {}),
            "run": served.trained.fingerprint,
            "index_version": served.index.version,
            "items": [
                {
                    "item": id,
                    "rank": position + 1,
                    "value": best.values[position],
                    "scores": best.predictions[position],
                    **({"boost": best.boosts[position]} if best.boosts[position] else {}),
                    **({"pinned": True} if best.pinned[position] else {}),
                    "features": features[position],
                    **({} if shown[position] is None else {"display": shown[position]}),
                }
                for position, id in enumerate(best.ids)
            ],
            "milliseconds": taken,
        }

    def shard_top(self, data: bytes) -> bytes:
        """Answer a server that ranks through this one; see :mod:`limerank.serving.shards`."""
        with self.numbers.stage("shard"):
            return self._served.shard.answer(data)

    def explain(self, asked: Explain) -> dict[str, Any]:
        served = self.arms.of(asked.user, asked.arm).current.served
        flow = served.flow
        ids = [one["item"] if isinstance(one, dict) else one for one in asked.items]
        rows = flow.rows("items", ids)
        request = flow.check(
            1,
            candidates=asked.items,
            unrankable="omit",
            task_weights=asked.task_weights,
            what="items",
        )
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
        with self.numbers.stage("explain"):
            found = flow.explain(past, request, rows, ids)
        return {"user": asked.user, "items": [explained(one) for one in found]}

    # Exposures and events

    def shown(self, given: Shown) -> Future[dict[str, Any]]:
        """Store an exposure; the future is done when it is durable."""
        arm = given.arm or arm_of(given.ranking or "")
        if given.arm is None and arm not in self.arms.names:
            arm = self.arms.of(given.user).name
        return self.exposing.show(given, arm)

    def append(self, events: list[EventMessage]) -> Future[dict[str, Any]]:
        """Check and store events; the future is done when they are durable, so that no thread waits
        for the disk."""
        return self.intake.submit(events, _counted)

    def append_at_once(self, events: list[EventMessage]) -> Future[dict[str, Any]] | None:
        """:meth:`append` where checking the events takes about a millisecond and the store returns
        at once; None otherwise."""
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
            raise UnknownError(f"nothing is stored of the user {id!r}")
        latest = self.store.latest(id, served.states.length)
        event_items = list(dict.fromkeys(event.item for event in latest))
        return {
            "user": id,
            "known": True,
            "events": count,
            "exposures": self.store.exposure_count(id),
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
            "items": items_of(served, event_items),
        }

    def users(self, text: str, limit: int) -> dict[str, Any]:
        return {"users": self.store.named(text, limit)}

    def put_user(self, user: str, features: dict[str, Any]) -> dict[str, Any]:
        served, id = self._served, _id(user)
        written(f"the user {id!r}", features)  # raises where they cannot be stored
        served.states.user_features.check(features)
        self.store.set_features(id, features)
        return {"user": id, "features": features}

    def forget(self, user: str) -> dict[str, Any]:
        """Delete a user. No event is read, so that a damaged user can be deleted, too."""
        id = _id(user)
        count = self.store.event_count(id)
        forgotten = [current.served.states.forget(id) for current in self.arms.currents]
        self.outcomes.forget(id)
        if not any(forgotten):
            raise UnknownError(f"nothing is stored of the user {id!r}")
        return {"forgotten": count or 0}

    # Items

    def item(self, item: str) -> dict[str, Any]:
        served = self._served
        row = int(served.index.ids.find([item])[0])
        if row < 0:
            raise UnknownError(f"the index has no item {item!r:.80}")
        id = plain(served.index.ids[row])
        (found,) = items_of(served, [id])
        position = int(np.searchsorted(served.index.hidden, row))
        hidden = position < len(served.index.hidden) and served.index.hidden[position] == row
        live = served.items.live.get(id) is not None
        return {**found, "rankable": not hidden, "live": live}

    def items(self, text: str, limit: int) -> dict[str, Any]:
        served = self._served
        index = served.index
        ids = served.items.search(text, limit)
        if not ids and not text:
            return {"items": items_of(served, index.ids[: min(limit, len(index))].tolist())}
        if text:
            exact = index.ids.find([text])
            ids = [str(id) for id in index.ids[exact[exact >= 0]].tolist()] + ids
            if len(ids) < limit and index.display is not None:
                found = np.array(index.display.search(text, limit), dtype=np.int64)
                newest = index.ids.find(index.ids[found]) == found
                ids += map(str, index.ids[found[newest]].tolist())
        rows = index.ids.find(list(dict.fromkeys(ids)))
        held = list(dict.fromkeys(map(plain, index.ids[rows[rows >= 0]].tolist())))
        return {"items": items_of(served, held[:limit])}

    def similar(
        self, item: str, k: int, filter: Mapping[str, Any] | None, exclude: list[str]
    ) -> dict[str, Any]:
        """The items most similar to one.

        Args:
            item: an external id.
            k: how many, at most.
            filter: item feature -> condition, as in ``/v1/rank``.
            exclude: external ids to leave out.
        """
        served, allow = self._served, None
        if filter is not None:
            conditions = validate(Rules, {"filter": filter}, "the filter").filter
            allow = served.filters.allowed(conditions) if conditions else None
        with self.numbers.stage("similar"):
            found = similar_items(served.flow.alike, item, k, allow=allow, exclude=exclude)
        own, *others = items_of(served, [found.item, *(one.id for one in found)])
        return {
            **own,
            "items": [
                {**of, "similarity": one.similarity} for one, of in zip(found, others, strict=True)
            ],
            "index_version": served.index.version,
        }

    def put_items(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        added, updated, served = self.arms.put_items(items)
        return {"index_version": served.index.version, "added": added, "updated": updated}

    def remove_item(self, item: str) -> dict[str, Any]:
        return {"index_version": self.arms.remove_item(item).index.version, "removed": 1}

    # Description, health, metrics

    def model(self, arm: str | None = None) -> dict[str, Any]:
        """Describe the model of an arm, of the main one when not given, and list all arms."""
        served = self.arms.of(None, arm).current.served
        return described(served, self.arms.loader.threads) | {"arms": arms_of(self.arms)}

    def readiness(self) -> dict[str, Any]:
        """Raise where requests would fail or get wrong answers; this asks the store."""
        self.store.counts()
        if any(current.served.check.state == "damaged" for current in self.arms.currents):
            raise FormatError("the index in use is damaged; the server's log says more")
        down = self._down()
        return {"status": "degraded", "shards_down": down} if down else {"status": "ok"}

    def _down(self) -> list[int]:
        """Numbers of the shards that do not answer; ShardError where none does."""
        scorer = self._served.scorer
        return scorer.ping() if isinstance(scorer, ShardedScorer) else []

    def check_store(self) -> None:
        """Log what an operator has to do about the store, when that changes."""
        lines = self.store.check()
        self.numbers.store_warnings.set(len(lines))
        for line in lines:
            if line not in self._store_warnings:
                log.warning("the store: %s", line)
        self._store_warnings = lines

    def count(self) -> None:
        """Bring the gauges up to date.

        Raises:
            StoreError, FormatError: the store cannot be reached; its gauges keep their last values.
        """
        numbers = self.numbers
        show_served(numbers, self.arms, self.counts)
        if self.shards is not None:
            with contextlib.suppress(ShardError):
                self._down()
            numbers.show_shards(len(self.shards), self.shards.down)
        show_outcomes(numbers, self.outcomes, self.arms)
        counts = self.store.counts()
        numbers.users.set(counts.users)
        numbers.events.set(counts.events)

    def close(self) -> None:
        if self.shards is not None:
            self.shards.close()
        self.store.close()


def _id(text: str) -> int | str:
    """The id in a URL in its one form: "17" is 17."""
    return external_id("user", text)


def _counted(accepted: Accepted) -> dict[str, Any]:
    return {
        "accepted": accepted.count(Outcome.ACCEPTED),
        "duplicates": accepted.count(Outcome.DUPLICATE),
        "expired": accepted.count(Outcome.EXPIRED),
    }
