"""Rank for users of a dataset, or for histories given in the call: items, scores and reasons.

>>> recommender = Recommender("runs/mine", "index/mine")
>>> for item in recommender.rank(user=42, k=20, explain=3):
...     print(item.id, item.scores, item.because())
"""

from __future__ import annotations

import os
import time as clock
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limerank.data.batch import Users
from limerank.data.canonical import external_id, milliseconds
from limerank.data.dataset import Dataset
from limerank.data.event_log import EventForm, EventLog
from limerank.data.features import FeatureTable, item_keys, joined_keys
from limerank.data.history import latest
from limerank.errors import FingerprintError, SpecError, UnknownError, check_integer
from limerank.index import Index
from limerank.index.lookup import IdLookup
from limerank.ranking.anchored import AnchorNames
from limerank.ranking.explain import Explanation, Past
from limerank.ranking.flow import RankingFlow, id_list
from limerank.ranking.item_table import Filters, ItemTable
from limerank.ranking.request import (
    HistoryItems,
    index_keys,
    item_vectors,
    past_of,
    plain,
    seen_rows,
)
from limerank.ranking.results import Ranked, Ranking
from limerank.ranking.rules import Rules, rules_of
from limerank.ranking.scorer import Scorer, ScorerName, TopK, scorer_for, weights_of_tasks
from limerank.ranking.similar import SimilarItems, similar_items
from limerank.runs.folder import Run, load_run
from limerank.storage.arguments import READ, with_uris
from limerank.validation import validate

Rows = NDArray[np.int64]


class Recommender:
    """A run and an index, loaded once, ranking for any user.

    Args:
        run: a trained run or its folder.
        index: an index of that run or its folder.
        data: the dataset with the users' events; the one that the run was trained on when not
            given. It is opened when a user's events are first needed.
        scorer: "native" (LIME models, the bytes of the index), "quantised" (the same in torch),
            "model" (any model, float32), "auto" (native where the index holds link weights), or a
            scorer object.
        threads: threads of the native scorer.
        items: the item table (CSV, TSV or Parquet), whose features rules name; the one that the
            dataset was prepared from when not given. It is read when a rule first needs it.

    **Several processes.** Open a Recommender in each process, or pass one to it: a pickled
    Recommender holds the paths of its folders and its settings, and the other process opens them
    again. A forked process may use its parent's Recommender, with one torch thread (a fork does not
    copy the others), but not on a GPU.

    **Ids.** Users and items are named by external ids, in any spelling: 7, ``np.int64(7)``, 7.0 and
    "7" are one id (:func:`limerank.data.canonical.external_id`). Collections of ids may be lists,
    NumPy arrays, polars or pandas series, or Arrow arrays.

    Raises:
        FingerprintError: the index was built by another model.
        SpecError: threads is not an integer of 1 or more, or the index is a shard of one.
    """

    @with_uris(run=READ, index=READ, data=READ, items=READ)
    def __init__(
        self,
        run: Run | str | os.PathLike[str],
        index: Index | str | os.PathLike[str],
        data: Dataset | str | os.PathLike[str] | None = None,
        *,
        scorer: ScorerName | Scorer = "auto",
        threads: int = 1,
        items: str | os.PathLike[str] | None = None,
    ) -> None:
        check_integer("threads", threads, 1)
        self._table = None if items is None else Path(items)
        self.run = run if isinstance(run, Run) else load_run(run)
        path = index.path if isinstance(index, Index) else index
        if not isinstance(index, Index) or index.fingerprint != self.run.fingerprint:
            index = Index.open(path, fingerprint=self.run.fingerprint, verify=None)
        index.expect_all()
        self.index, self.ranker = index, self.run.ranker
        self.tasks = self.ranker.shape.tasks
        self.form = EventForm(self.run.manifest, self.run.path)
        self.encoder = self.form.encoder
        self._scorer_name = None if isinstance(scorer, Scorer) else scorer
        self._threads, self._process = threads, os.getpid()
        self._use_scorer(
            scorer
            if isinstance(scorer, Scorer)
            else scorer_for(scorer, self.ranker, self.index, threads=threads)
        )
        self.length = self.run.history
        self._data = data
        self._device = next(self.ranker.parameters()).device

    @property
    def scorer(self) -> Scorer:
        """The scorer in use."""
        return self._flow.scorer

    def _use_scorer(self, scorer: Scorer) -> None:
        name = f"the index {self.index.path}"
        names = AnchorNames(self.run)
        self._flow = RankingFlow(self.ranker, self.index, scorer, self.form, name, names)

    def _in_this_process(self) -> None:
        """Prepare a forked process: the parent's threads do not exist here, and torch would wait
        for its own."""
        if os.getpid() == self._process:
            return
        if self._device.type == "cuda":
            raise SpecError(
                f"this Recommender was opened by process {self._process}, and a GPU cannot be used "
                'after a fork: open one in each process, or start workers by "spawn"'
            )
        torch.set_num_threads(1)
        if self._scorer_name is not None:
            self._use_scorer(
                scorer_for(self._scorer_name, self.ranker, self.index, threads=self._threads)
            )
        self._process = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._scorer_name is None:
            raise SpecError(
                "a Recommender that was given a scorer cannot be pickled; give the scorer's name"
            )
        data = self._data.path if isinstance(self._data, Dataset) else self._data
        return _opened, (
            str(self.run.path.resolve()),
            self.run.fingerprint,
            str(self._device),
            str(Path(self.index.path).resolve()),
            None if data is None else str(Path(data).resolve()),
            self._scorer_name,
            self._threads,
            None if self._table is None else str(self._table.resolve()),
        )

    @cached_property
    def _filters(self) -> Filters:
        """Filters over the features of items."""
        data = self._data.path if isinstance(self._data, Dataset) else self._data
        folder = self.run.data if data is None else Path(data)
        return Filters(ItemTable(self.run, self._table, folder), self.index)

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset with the users' events."""
        return self.run.dataset(self._data)

    def rank(
        self,
        user: Any = None,
        *,
        k: int = 20,
        candidates: Iterable[Any] | None = None,
        exclude: Iterable[Any] | None = None,
        skip_unknown: bool = False,
        history: Iterable[Any] | None = None,
        exclude_seen: bool = True,
        explain: int = 0,
        task_weights: Mapping[str, float] | None = None,
        time: int | str | datetime | None = None,
        context: Mapping[str, Any] | None = None,
        rules: Rules | Mapping[str, Any] | str | None = None,
    ) -> Ranking:
        """Rank the catalogue, or some candidates, for one user.

        Args:
            user: an external id, for the events in the log and the user's features. An unknown one
                (or None) has an empty history and unknown features.
            k: how many items to return, at most.
            candidates: external ids to rank, or mappings with an ``item`` and values of impression
                features, such as ``{"item": 7, "price": 12.5}``: what is not given is unknown. The
                full index when not given.
            exclude: external ids to leave out.
            skip_unknown: leave out candidates that the index lacks, that were removed or that
                cannot be ranked; the ranking's ``skipped`` counts them. Otherwise they are an
                error.
            history: events given here instead of the log's: item ids, oldest first, each an item
                that the user liked (its first binary label is 1, all else unknown); or mappings
                with ``item`` and any of ``time`` (milliseconds since 1970 or a datetime; an order
                where the log has no clock), ``labels`` (task -> 0 or 1, or seconds), ``ratios``
                (duration task -> share of the item's length) and ``features`` (name -> value).
                Either all events have a time or none has. Without times they are a minute apart,
                and the last one is a minute old.
            exclude_seen: leave out items that the user has seen.
            explain: explain the first so many items.
            task_weights: task -> weight of its logit in the ranking value; 0 where not given. The
                first task alone ranks when None.
            time: when the request is made: milliseconds since 1970, ISO 8601 text or a datetime
                (an order where the log has no clock); only events before it count. The end of the
                log when not given (or of the user's events, where that is later).
            context: context features of the request, name -> value; unknown where not given.
            rules: filter, boosts, pins, limits per value of a feature, and diversity: a mapping
                such as ``{"filter": {"price": {"from": 10, "to": 50}}, "per": {"category": 2}}``,
                or the same as TOML or the name of a ``.toml`` file. See
                :mod:`limerank.ranking.rules`.

        Raises:
            UnknownError: a candidate, an item of the history, a task or a feature is unknown; the
                message lists the unknown ids.
            DataError: the user is not an id, the history or a candidate is malformed, or the time
                is years off the log.
            SpecError: k is not an integer of 1 or more, explain not one of 0 or more,
                task_weights is not a mapping of tasks to finite numbers, or a rule is not valid.
        """
        started = clock.perf_counter()
        check_integer("explain", explain, 0)
        self._in_this_process()
        checked = rules_of(rules)
        request = self._flow.check(
            k,
            candidates=candidates,
            unrankable="skip" if skip_unknown else "refuse",
            exclude=exclude,
            task_weights=task_weights,
            rules=checked,
            filters=self._filters if checked is not None and checked.of_features else None,
        )
        user = None if user is None else external_id("user", user)
        user_row = self._user_row(user)
        now = None if time is None else milliseconds(time)
        if now is not None:
            self.form.check_time(now)
        log = self._log(user_row, now) if history is None else self._given(history, now)
        if now is None:
            now = self._end(log, self.form.log_end if user_row is None else self._log_end)
        past = self._past(log, user_row, now, context or {})
        with torch.inference_mode():
            state = self.ranker.encode_users(past.users, past.vectors)
        encoded = clock.perf_counter()
        seen = seen_rows(self.index, log) if exclude_seen else None
        best = self._flow.best(request, state, seen=seen)
        scored = clock.perf_counter()
        reasons: list[Explanation] = []
        if explain:
            reasons = self._flow.explain(past, request, best.rows[:explain], best.ids[:explain])
        done = clock.perf_counter()
        explanations = [*reasons, *[None] * (len(best.rows) - len(reasons))]
        rows = best.rows.tolist()
        shown = self.index.display
        return Ranking(
            tuple(
                map(
                    Ranked,
                    best.ids,
                    rows,
                    best.values,
                    best.predictions,
                    explanations,
                    [{} for _ in rows] if shown is None else shown.of(rows),
                    best.boosts,
                    best.pinned,
                )
            ),
            user,
            user_row is not None,
            int(past.users.lengths[0]),
            request.candidates,
            {
                "user": round(1e3 * (encoded - started), 3),
                "score": round(1e3 * (scored - encoded), 3),
                "explain": round(1e3 * (done - scored), 3),
            },
            request.skipped,
            tuple(task.name for task in self.tasks),
            self._integer_ids,
        )

    def similar(
        self,
        item: Any,
        k: int = 10,
        *,
        filter: Mapping[str, Any] | None = None,
        exclude: Iterable[Any] | None = None,
    ) -> SimilarItems:
        """The items most similar to one, by what the model knows of them.

        Args:
            item: an external id.
            k: how many items to return, at most.
            filter: item feature -> condition that they fulfil, as in the rules of :meth:`rank`.
            exclude: external ids to leave out.

        Raises:
            UnknownError: the index lacks the item.
            SpecError: the model describes no items, k is not an integer of 1 or more, or a
                condition is not valid.
        """
        allow = None
        if filter is not None:
            conditions = validate(Rules, {"filter": filter}, "the filter").filter
            allow = self._filters.allowed(conditions) if conditions else None
        excluded = () if exclude is None else id_list("items to exclude", exclude)
        return similar_items(self._flow.alike, item, k, allow=allow, exclude=excluded)

    def user_rows(self, users: Iterable[Any] | None = None) -> Rows:
        """Rows of users in the dataset by external id, i64; all users when not given.

        Raises:
            UnknownError: a user is not in the dataset.
        """
        if users is None:
            return np.arange(len(self.dataset.user_ids), dtype=np.int64)
        ids = id_list("users", users)
        rows = self._users.find(ids)
        if (rows < 0).any():
            unknown = [plain(ids[int(position)]) for position in np.flatnonzero(rows < 0)]
            raise UnknownError(
                f"{len(unknown)} of {len(ids)} users are not in {self.dataset.path}: "
                f"{', '.join(map(repr, unknown[:10]))}"
            )
        return rows

    def rank_users(
        self,
        rows: Rows,
        *,
        k: int = 20,
        exclude_seen: bool = True,
        task_weights: Mapping[str, float] | None = None,
        time: int | str | datetime | None = None,
    ) -> TopK:
        """The best k of the catalogue for several users, in one pass over the index.

        Each user's items are those that :meth:`rank` returns for that time, without context.

        Args:
            rows: rows of the users in the dataset; see :meth:`user_rows`.
            time: as for :meth:`rank`; the end of the log when not given.
        """
        self._in_this_process()
        dataset, weights = self.dataset, weights_of_tasks(self.tasks, task_weights)
        starts, ends = dataset.event_offsets[rows], dataset.event_offsets[rows + 1]
        if time is None:
            last = np.where(ends > starts, dataset.events["time"][np.maximum(ends - 1, 0)], 0)
            now = np.maximum(self._log_end, last)
        else:
            moment = milliseconds(time)
            self.form.check_time(moment)
            now = np.full(len(rows), moment, dtype=np.int64)
            before = [
                int(np.searchsorted(dataset.events["time"][start:end], moment))
                for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
            ]
            ends = starts + np.array(before, dtype=np.int64)
        seen = None
        if exclude_seen:
            ids = dataset.item_ids
            seen_ids = [
                np.unique(dataset.events["item"][start:end])
                for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
            ]
            flat = self.index.ids.find(ids[np.concatenate([np.zeros(0, np.int64), *seen_ids])])
            parts = np.split(flat, np.cumsum([len(part) for part in seen_ids])[:-1])
            seen = [part[part >= 0] for part in parts] if seen_ids else []
        if dataset.retained is not None:
            starts, ends = (
                np.searchsorted(dataset.retained, starts),
                np.searchsorted(dataset.retained, ends),
            )
        history = latest(dataset.events, self.encoder, starts, ends, self.length, dataset.retained)
        real = np.arange(history.items.shape[1]) < history.lengths[:, None]
        codes, at = np.unique(history.items[real], return_inverse=True)
        positions = np.zeros(real.shape, dtype=np.int64)
        positions[real] = at
        context = self.encoder.context(
            {name: np.zeros(len(rows), np.int32) for name in self.encoder.context_columns},
            now,
            history.newest,
            history.lengths,
        )
        of_items = self._items(dataset.item_ids, codes)
        users = Users.from_history(
            history,
            items=positions,
            features=dataset.users.take(rows),
            context=torch.from_numpy(context),
            keys=of_items.keys,
        ).to(self._device)
        with torch.inference_mode():
            state = self.ranker.encode_users(users, of_items.vectors)
        return self.scorer.top(state, k, weights=weights, exclude=seen)

    # Arguments

    def _user_row(self, user: int | str | None) -> int | None:
        if user is None:
            return None
        row = int(self._users.find([user])[0])
        return None if row < 0 else row

    @cached_property
    def _integer_ids(self) -> bool:
        """Whether all ids of the index are integers."""
        return bool(np.issubdtype(self.index.ids[np.zeros(0, np.int64)].dtype, np.integer))

    @cached_property
    def _users(self) -> IdLookup:
        return IdLookup.of(self.dataset.user_ids)

    # Histories

    def _log(self, user: int | None, before: int | None) -> EventLog:
        """The user's events in the dataset, all splits, before a time where one is given."""
        if user is None:
            return self._given([], before)
        dataset = self.dataset
        start, end = map(int, dataset.event_offsets[user : user + 2])
        if before is not None:
            end = start + int(np.searchsorted(dataset.events["time"][start:end], before))
        seen_ids = np.arange(start, end)
        rows = seen_ids
        if dataset.retained is not None:
            rows = dataset.retained[slice(*np.searchsorted(dataset.retained, [start, end]))]
        return EventLog(
            dataset.events, np.asarray(rows, dtype=np.int64), seen_ids, dataset.item_ids
        )

    def _given(self, history: Iterable[Any], now: int | None) -> EventLog:
        """Events given in the call, as columns of the dataset's format."""
        entries = self.form.entries(history)
        self._flow.rows("items of the history", [entry["item"] for entry in entries])
        log = self.form.log(self.form.given(entries, now), now)
        return replace(log, ids=self.index.ids[self.index.ids.find(log.ids)])

    @cached_property
    def _log_end(self) -> int:
        """The end of the run's log, or of the dataset's, where that is later."""
        times = self.dataset.manifest["summary"]["time"]
        return max(self.form.log_end, int(times.get("now", times["last"])))

    def _end(self, log: EventLog, log_end: int) -> int:
        """The time of a request that names none."""
        newest = int(log.columns["time"][log.seen].max(initial=np.iinfo(np.int64).min))
        return max(log_end, newest)

    def _past(self, log: EventLog, user: int | None, now: int, context: Mapping[str, Any]) -> Past:
        """The request with the user's history."""
        features = self._unknown if user is None else self.dataset.users
        row = 0 if user is None else user
        return past_of(
            log,
            self.form,
            self.length,
            lambda count: features.take(np.full(count, row)),
            self._items,
            now,
            context,
        )

    def _items(self, ids: Any, codes: NDArray[Any]) -> HistoryItems:
        """The items ``ids[codes]`` as the index has them; those that it lacks as the dataset does,
        without a key of their own."""
        rows = self.index.ids.find(ids[codes])
        vectors = item_vectors(self.index, rows, self._device)
        keys = None if self.ranker.anchors is None else index_keys(self.index, rows)
        lacking = np.flatnonzero(rows < 0)
        if len(lacking):
            items = self.dataset.item_batch(codes[lacking].astype(np.int64))
            with torch.inference_mode():
                vectors[torch.from_numpy(lacking)] = self.ranker.item_vectors(
                    items.to(self._device)
                )
            if keys is not None:
                anchored = self.dataset.anchored
                none = np.full(len(lacking), -1)
                own = item_keys(items.content, anchored, none, items.ids.numpy())
                own = self.ranker.complete(own.to(self._device))
                keys = joined_keys(keys, own, lacking)
        return HistoryItems(vectors, keys)

    @cached_property
    def _unknown(self) -> FeatureTable:
        """The features of an unknown user, as a table of one row."""
        return FeatureTable.unknown(self.run.manifest["encoding"]["users"])


def _opened(
    run: str,
    fingerprint: str,
    device: str,
    index: str,
    data: str | None,
    scorer: ScorerName,
    threads: int,
    items: str | None,
) -> Recommender:
    """Open a Recommender from its pickled form."""
    loaded = load_run(run, device)
    if loaded.fingerprint != fingerprint:
        raise FingerprintError(
            f"{run} is not the run that it was when the Recommender was pickled; open it again"
        )
    return Recommender(loaded, index, data, scorer=scorer, threads=threads, items=items)
