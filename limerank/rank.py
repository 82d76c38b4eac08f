"""A user's history meets the whole catalogue: ranked items with scores and reasons.

>>> recommender = Recommender("runs/mine", "index/mine")
>>> for item in recommender.rank(user=42, k=20, explain=3):
...     print(item.id, item.scores, item.because())
"""

from __future__ import annotations

import json
import os
import time as clock
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.batch import Users
from limerank.checkpoint import Run, load_run
from limerank.dataset import Dataset
from limerank.errors import DataError, UnknownError
from limerank.explain import Explanation, Past, explain
from limerank.features import FeatureTable
from limerank.history import Columns, EventEncoder, latest
from limerank.index import Index
from limerank.lookup import IdTable
from limerank.losses import predictions
from limerank.scorer import Scorer, ScorerName, TopK, scorer_for

MINUTE_MS = 60_000
POSITIONS = 1 << 16
"""History positions of an explanation encoded at once."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Ranked:
    """One item of a ranking.

    Attributes:
        id: external id.
        row: its row in the index.
        value: the ranking value, a weighted sum of the tasks' logits.
        scores: what the model says of each task: a probability, or expected seconds.
        explanation: why, for the first items where it was asked for.
    """

    id: Any
    row: int
    value: float
    scores: dict[str, float]
    explanation: Explanation | None = None

    def because(self, most: int = 3) -> list[Any]:
        """Ids of the history's items that raised this item's value most."""
        if self.explanation is None:
            return []
        return [event.item for event in self.explanation.reasons(most)]


@dataclass(frozen=True)
class Ranking(Sequence[Ranked]):
    """Ranked items, best first, and what they were ranked by.

    Attributes:
        items: the items.
        user: the external id that was asked for.
        known: whether the dataset knows that user.
        events: events of the history that the model saw.
        candidates: items that were ranked, before seen ones were left out.
        milliseconds: time of each stage.
    """

    items: tuple[Ranked, ...]
    user: Any
    known: bool
    events: int
    candidates: int
    milliseconds: dict[str, float] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: Any) -> Any:
        return self.items[place]

    def json(self) -> dict[str, Any]:
        """As plain values for JSON; explanations as their reasons."""
        return {
            "user": _plain(self.user),
            "known": self.known,
            "events": self.events,
            "candidates": self.candidates,
            "items": [
                {
                    "id": _plain(item.id),
                    "value": item.value,
                    "scores": item.scores,
                    **({} if item.explanation is None else {"because": _because(item.explanation)}),
                }
                for item in self.items
            ],
            "milliseconds": self.milliseconds,
        }


def _because(explanation: Explanation) -> list[dict[str, Any]]:
    return [
        {"item": _plain(event.item), "age": event.age, "share": event.share, "effect": event.effect}
        for event in explanation.reasons()
    ]


@dataclass(frozen=True)
class _Log:
    """Events of one user: rows of some columns, oldest first, and what their items are.

    ``columns["item"]`` holds codes; ``ids[code]`` is the external id.
    """

    columns: Columns
    rows: Rows
    met: Rows
    """Rows of all events, those included that histories do not hold."""
    ids: Any


class Recommender:
    """A run and an index, loaded once, ranking for any user.

    Args:
        run: a trained run or its folder.
        index: an index of that run or its folder.
        data: the dataset that knows the users' events; the one that the run was trained on when
            not given. It is opened when a user's events are first asked for.
        scorer: "native" (LIME models, the bytes of the index), "quantised" (the same in torch),
            "model" (any model, float32), "auto" (native where the index holds link weights), or a
            scorer.
        threads: of the native scorer.

    Raises:
        FingerprintError: the index was built by another model.
    """

    def __init__(
        self,
        run: Run | str | os.PathLike[str],
        index: Index | str | os.PathLike[str],
        data: Dataset | str | os.PathLike[str] | None = None,
        *,
        scorer: ScorerName | Scorer = "auto",
        threads: int = 1,
    ) -> None:
        self.run = run if isinstance(run, Run) else load_run(run)
        path = index.path if isinstance(index, Index) else index
        if not isinstance(index, Index) or index.fingerprint != self.run.fingerprint:
            index = Index.open(path, fingerprint=self.run.fingerprint)
        self.index, self.ranker = index, self.run.ranker
        self.tasks = self.ranker.shape.tasks
        self.scorer = (
            scorer
            if isinstance(scorer, Scorer)
            else scorer_for(scorer, self.ranker, self.index, threads=threads)
        )
        manifest = self.run.manifest
        self.encoder = EventEncoder(manifest["encoding"], manifest["clock"])
        self.length: int = self.run.train.history or manifest["spec"]["history"]["length"]
        self._data = data
        self._device = next(self.ranker.parameters()).device

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset that knows the users' events."""
        return self._data if isinstance(self._data, Dataset) else self.run.dataset(self._data)

    def rank(
        self,
        user: Any = None,
        *,
        k: int = 20,
        candidates: Iterable[Any] | None = None,
        history: Iterable[Any] | None = None,
        exclude_seen: bool = True,
        explain: int = 0,
        task_weights: Mapping[str, float] | None = None,
        time: int | datetime | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Ranking:
        """Rank the whole catalogue, or some candidates, for one user.

        Args:
            user: an external id, for the events in the log and the user's features. One that
                nobody knows (or None) has an empty history and unknown features.
            k: how many items.
            candidates: external ids to rank; the whole index when not given.
            history: events given here instead of the log's: item ids, oldest first, each an item
                that the user liked (its first binary label is 1, all else unknown); or mappings
                with ``item`` and any of ``time`` (milliseconds since 1970 or a datetime; an order
                where the log has no clock), ``labels`` (task -> 0 or 1, or seconds), ``ratios``
                (duration task -> share of the item's length) and ``features`` (name -> value).
                All events have a time or none; without times they are a minute apart and the
                last one is as old.
            exclude_seen: leave out items that the user has met.
            explain: explain the first so many items.
            task_weights: task -> weight of its logit in the ranking value; 0 where not given. The
                first task alone ranks when None.
            time: when the request is made; only events before it count. The end of the log when
                not given (or of the history given here, where that is later).
            context: context features of the request, name -> value; unknown where not given.

        Raises:
            UnknownError: a candidate, an item of the history, a task or a feature is unknown; all
                unknown ids are listed.
            DataError: the history is malformed.
            SpecError: k is below 1.
        """
        started = clock.perf_counter()
        weights = self._weights(task_weights)
        rows = None if candidates is None else self._candidates(candidates)
        user_row = self._user_row(user)
        now = None if time is None else _milliseconds(time)
        log = self._log(user_row, now) if history is None else self._given(history, now)
        if now is None:
            now = self._end(log)
        past = self._past(log, user_row, now, context or {})
        with torch.inference_mode():
            state = self.ranker.encode_users(past.users, past.vectors)
        encoded = clock.perf_counter()
        seen = [self._met(log)] if exclude_seen else None
        top = self.scorer.top(state, k, weights=weights, rows=rows, exclude=seen)
        found = top.rows[0][top.rows[0] >= 0]
        ids = self.index.ids[found]
        said = predictions(torch.from_numpy(top.logits[0][: len(found)]), self.tasks).tolist()
        scored = clock.perf_counter()
        reasons = self._explain(past, found[:explain], ids[:explain], weights) if explain else []
        done = clock.perf_counter()
        return Ranking(
            tuple(
                Ranked(
                    _plain(ids[place]),
                    int(found[place]),
                    float(top.values[0, place]),
                    dict(zip((task.name for task in self.tasks), said[place], strict=True)),
                    reasons[place] if place < len(reasons) else None,
                )
                for place in range(len(found))
            ),
            user,
            user_row is not None,
            int(past.users.lengths[0]),
            len(self.index) - len(self.index.hidden) if rows is None else len(np.unique(rows)),
            {
                "user": round(1e3 * (encoded - started), 3),
                "score": round(1e3 * (scored - encoded), 3),
                "explain": round(1e3 * (done - scored), 3),
            },
        )

    def user_rows(self, users: Sequence[Any] | None = None) -> Rows:
        """Rows of users in the dataset by external id, of all when not given; UnknownError where
        one is not there."""
        if users is None:
            return np.arange(len(self.dataset.user_ids), dtype=np.int64)
        rows = self._users.find(list(users))
        if (rows < 0).any():
            unknown = [users[int(place)] for place in np.flatnonzero(rows < 0)]
            raise UnknownError(
                f"{len(unknown)} of {len(users)} users are not in {self.dataset.path}: "
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
    ) -> TopK:
        """The best k of the whole catalogue for several users, in one pass over the index.

        For each user what :meth:`rank` gives as of the end of the log, without context.

        Args:
            rows: rows of the users in the dataset; see :meth:`user_rows`.
        """
        dataset, weights = self.dataset, self._weights(task_weights)
        starts, ends = dataset.event_offsets[rows], dataset.event_offsets[rows + 1]
        last = np.where(ends > starts, dataset.events["time"][np.maximum(ends - 1, 0)], 0)
        now = np.maximum(self._log_end, last)
        seen = None
        if exclude_seen:
            ids = dataset.item_ids
            met = [
                np.unique(dataset.events["item"][start:end])
                for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
            ]
            flat = self.index.ids.find(ids[np.concatenate([np.zeros(0, np.int64), *met])])
            parts = np.split(flat, np.cumsum([len(part) for part in met])[:-1])
            seen = [part[part >= 0] for part in parts] if met else []
        if dataset.kept is not None:
            starts, ends = (
                np.searchsorted(dataset.kept, starts),
                np.searchsorted(dataset.kept, ends),
            )
        history = latest(dataset.events, self.encoder, starts, ends, self.length, dataset.kept)
        real = np.arange(history.items.shape[1]) < history.lengths[:, None]
        codes, at = np.unique(history.items[real], return_inverse=True)
        places = np.zeros(real.shape, dtype=np.int64)
        places[real] = at
        context = self.encoder.context(
            {name: np.zeros(len(rows), np.int32) for name in self.encoder.context_columns},
            now,
            history.newest,
            history.lengths,
        )
        users = Users(
            torch.from_numpy(places),
            torch.from_numpy(history.tokens),
            torch.from_numpy(history.age),
            torch.from_numpy(history.lengths.astype(np.int64)),
            dataset.users.take(rows),
            torch.from_numpy(context),
        ).to(self._device)
        with torch.inference_mode():
            state = self.ranker.encode_users(users, self._vectors(dataset.item_ids, codes))
        return self.scorer.top(state, k, weights=weights, exclude=seen)

    # Arguments

    def _weights(self, given: Mapping[str, float] | None) -> NDArray[np.float32]:
        names = [task.name for task in self.tasks]
        if given is None:
            given = {names[0]: 1.0}
        _check_names("task", given, names)
        return np.array([given.get(name, 0.0) for name in names], dtype=np.float32)

    def _rows(self, what: str, ids: Iterable[Any]) -> Rows:
        given = list(ids)
        rows = self.index.ids.find(given)
        if (rows < 0).any():
            unknown = [given[place] for place in np.flatnonzero(rows < 0)]
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            raise UnknownError(
                f"{len(unknown)} of {len(given)} {what} are not in the index {self.index.path}: "
                f"{', '.join(map(repr, unknown[:10]))}{more}"
            )
        return rows

    def _candidates(self, ids: Iterable[Any]) -> Rows:
        rows = self._rows("candidates", ids)
        for never, what in (
            (self.index.removed, "were removed from the index"),
            (self.index.hidden, "occur in histories only and cannot be ranked"),
        ):
            wrong = np.intersect1d(rows, never)
            if len(wrong):
                shown = ", ".join(repr(_plain(self.index.ids[row])) for row in wrong[:10])
                raise UnknownError(f"{len(wrong)} candidates {what}: {shown}")
        return rows

    def _user_row(self, user: Any) -> int | None:
        if user is None:
            return None
        row = int(self._users.find([user])[0])
        return None if row < 0 else row

    @cached_property
    def _users(self) -> IdTable:
        return IdTable.of(self.dataset.user_ids)

    # Histories

    def _log(self, user: int | None, before: int | None) -> _Log:
        """The user's events in the dataset, all splits, before a time where one is given."""
        if user is None:
            return self._given([], before)
        dataset = self.dataset
        start, end = map(int, dataset.event_offsets[user : user + 2])
        if before is not None:
            end = start + int(np.searchsorted(dataset.events["time"][start:end], before))
        met = np.arange(start, end)
        rows = met
        if dataset.kept is not None:
            rows = dataset.kept[slice(*np.searchsorted(dataset.kept, [start, end]))]
        return _Log(dataset.events, np.asarray(rows, dtype=np.int64), met, dataset.item_ids)

    def _given(self, history: Iterable[Any], now: int | None) -> _Log:
        """Events given on the spot, as columns of the dataset's format."""
        events = [_event(entry) for entry in history]
        encoding = self.run.manifest["encoding"]
        labels = {label["name"]: label for label in encoding["labels"]}
        features = {feature["name"]: feature for feature in encoding["event_features"]}
        main = next((name for name, label in labels.items() if label["kind"] == "binary"), None)
        rows = self._rows("items of the history", [event["item"] for event in events])
        codes, items = np.unique(rows, return_inverse=True)
        n = len(events)
        columns: dict[str, NDArray[Any]] = {
            "item": items.astype(np.int32),
            "time": self._times([event.get("time") for event in events], now),
        }
        for name, label in labels.items():
            duration = label["kind"] == "duration"
            columns[f"label_{name}"] = np.full(n, np.nan if duration else 0, np.float32)
            if duration:
                columns[f"ratio_{name}"] = np.full(n, np.nan, np.float32)
        for name in features:
            columns[f"feature_{name}"] = np.zeros(n, np.int32)
        for place, event in enumerate(events):
            given = event.get("labels", {} if main is None else {main: 1})
            _check_names("label", given, labels)
            _check_names("duration label", event.get("ratios", {}), labels)
            _check_names("event feature", event.get("features", {}), features)
            for name, value in given.items():
                columns[f"label_{name}"][place] = _label(labels[name], value)
            for name, value in event.get("ratios", {}).items():
                if f"ratio_{name}" in columns:
                    columns[f"ratio_{name}"][place] = float(value)
            for name, value in event.get("features", {}).items():
                columns[f"feature_{name}"][place] = self._code(features[name], value)
        order = np.argsort(columns["time"], kind="stable")
        if now is not None:
            order = order[columns["time"][order] < now]
        kept = order
        keep = self.run.manifest["spec"]["history"]["keep"]
        if keep is not None:
            kept = order[columns[f"label_{keep}"][order] > 0]
        return _Log(columns, kept, order, self.index.ids[codes])

    def _times(self, given: list[Any], now: int | None) -> NDArray[np.int64]:
        known = [value is not None for value in given]
        if any(known) and not all(known):
            raise DataError(
                f"{len(known) - sum(known)} of {len(known)} events of the history have no time; "
                "give a time to all of them or to none"
            )
        if given and all(known):
            return np.array([_milliseconds(value) for value in given], dtype=np.int64)
        n = len(given)
        if not self.encoder.clock:
            return np.arange(n, dtype=np.int64) + (0 if now is None else now - n)
        end = self._log_end if now is None else now
        return end - MINUTE_MS * np.arange(n, 0, -1, dtype=np.int64)

    @property
    def _log_end(self) -> int:
        return int(self.run.manifest["summary"]["time"]["last"])

    def _end(self, log: _Log) -> int:
        """When a request is made that says nothing of it."""
        newest = int(log.columns["time"][log.met].max(initial=np.iinfo(np.int64).min))
        return max(self._log_end, newest)

    def _code(self, feature: Mapping[str, Any], value: Any) -> int:
        """Code of an event feature's value; 0: unknown."""
        if value is None:
            return 0
        if feature["kind"] == "numeric":
            number = float(value)
            if not np.isfinite(number):
                return 0
            return 1 + int(np.searchsorted(feature["edges"], np.float32(number), side="right"))
        return self._vocabulary(feature["name"]).get(_category(value), 0)

    def _vocabulary(self, feature: str) -> dict[str, int]:
        if feature not in self._vocabularies:
            import pyarrow.parquet

            path = self.run.path / "vocab" / f"event_{feature}.parquet"
            table = pyarrow.parquet.read_table(path)
            codes = zip(table["value"].to_pylist(), table["code"].to_pylist(), strict=True)
            self._vocabularies[feature] = dict(codes)
        return self._vocabularies[feature]

    @cached_property
    def _vocabularies(self) -> dict[str, dict[str, int]]:
        return {}

    def _past(self, log: _Log, user: int | None, now: int, context: Mapping[str, Any]) -> Past:
        """The request with the user's history, and how to take events away from it."""
        base = log.rows[-self.length :]
        codes = np.unique(log.columns["item"][base])
        vectors = self._vectors(log.ids, codes)
        features = self._unknown if user is None else self.dataset.users
        feature_row = 0 if user is None else user
        declared = {
            feature["name"]: feature
            for feature in self.run.manifest["encoding"]["event_features"]
            if feature["when"] == "context"
        }
        _check_names("context feature", context, declared)
        of_request = {
            f"feature_{name}": np.array([self._code(feature, context.get(name))])
            for name, feature in declared.items()
        }

        def users(rows: list[Rows], tokens: Tensor | None) -> Users:
            ends = np.cumsum([len(part) for part in rows])
            starts = ends - [len(part) for part in rows]
            flat = np.concatenate(rows)
            history = latest(log.columns, self.encoder, starts, ends, self.length, flat)
            real = np.arange(history.items.shape[1]) < history.lengths[:, None]
            places = np.where(real, np.searchsorted(codes, history.items), 0)
            if tokens is None:
                at = np.array([now], dtype=np.int64)
                tokens = torch.from_numpy(
                    self.encoder.context(of_request, at, history.newest, history.lengths)
                )
            return Users(
                torch.from_numpy(places.astype(np.int64)),
                torch.from_numpy(history.tokens),
                torch.from_numpy(history.age),
                torch.from_numpy(history.lengths.astype(np.int64)),
                features.take(np.full(len(rows), feature_row)),
                tokens.expand(len(rows), -1),
            ).to(self._device)

        whole = users([base], None)

        def without(places: NDArray[np.int64]) -> Iterator[Users]:
            histories = [np.delete(base, place) for place in places] + [base[:0]]
            size = max(1, POSITIONS // max(len(base), 1))
            for at in range(0, len(histories), size):
                yield users(histories[at : at + size], whole.context)

        items = [_plain(log.ids[code]) for code in log.columns["item"][base]]
        times = np.asarray(log.columns["time"][base], dtype=np.int64)
        return Past(whole, vectors, items, times, without)

    def _vectors(self, ids: Any, codes: NDArray[Any]) -> Tensor:
        """Item vectors of a log's items, ``ids[codes]``: the index's, or the tower's where it lacks
        the item."""
        rows = self.index.ids.find(ids[codes])
        held, missing = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
        found = torch.zeros(len(codes), self.ranker.config.width)
        found[held] = torch.from_numpy(np.array(self.index.vectors[rows[held]], dtype=np.float32))
        found = found.to(self._device)
        if len(missing):
            items = self.dataset.item_batch(codes[missing].astype(np.int64)).to(self._device)
            with torch.inference_mode():
                found[missing] = self.ranker.item_vectors(items)
        return found

    def _met(self, log: _Log) -> Rows:
        """Index rows of the items that a user has met."""
        codes = np.unique(log.columns["item"][log.met])
        rows = self.index.ids.find(log.ids[codes])
        return rows[rows >= 0]

    @cached_property
    def _unknown(self) -> FeatureTable:
        """The features of a user of whom nothing is known, as a table of one row."""
        return FeatureTable.unknown(self.run.manifest["encoding"]["users"])

    # Explanations

    def _explain(
        self, past: Past, rows: Rows, ids: Any, weights: NDArray[np.float32]
    ) -> list[Explanation]:
        vectors = torch.from_numpy(np.array(self.index.vectors[rows], dtype=np.float32))
        names = [_plain(id) for id in ids]
        return explain(self.ranker, past, names, vectors.to(self._device), weights)


def rank_command(
    *,
    run: str | os.PathLike[str],
    index: str | os.PathLike[str],
    user: Any,
    history: Sequence[Any] | None,
    k: int,
    candidates: Sequence[Any] | None,
    explain: bool,
    exclude_seen: bool,
    scorer: str,
    threads: int,
    as_json: bool,
    data: str | os.PathLike[str] | None,
) -> None:
    """``limerank rank``: rank for one user and print a table, or JSON."""
    recommender = Recommender(run, index, data, scorer=scorer, threads=threads)  # type: ignore[arg-type]
    ranking = recommender.rank(
        user,
        k=k,
        candidates=candidates,
        history=history,
        exclude_seen=exclude_seen,
        explain=k if explain else 0,
    )
    print(json.dumps(ranking.json(), indent=2) if as_json else ranking_text(ranking))


def ranking_text(ranking: Ranking) -> str:
    """A ranking, to read: one line per item."""
    who = "a user nobody knows" if not ranking.known else f"user {ranking.user}"
    times = sum(ranking.milliseconds.values())
    lines = [
        f"{who}, {ranking.events:,} events: the best of {ranking.candidates:,} items "
        f"({times:.1f} ms)"
    ]
    if not ranking.items:
        return "\n".join([*lines, "  nothing is left to rank"])
    tasks = list(ranking.items[0].scores)
    ids = max(4, *(len(str(item.id)) for item in ranking.items))
    reasons = any(item.explanation is not None for item in ranking.items)
    lines.append(
        f"  {'':>4}  {'item':<{ids}}"
        + "".join(f"{task:>10}" for task in tasks)
        + ("   because of" if reasons else "")
    )
    for place, item in enumerate(ranking.items, 1):
        line = f"  {place:>4}  {item.id!s:<{ids}}"
        line += "".join(f"{item.scores[task]:>10.4f}" for task in tasks)
        if item.explanation is not None:
            line += "   " + ", ".join(
                f"{event.item} ({event.effect:+.2f})" for event in item.explanation.reasons()
            )
        lines.append(line.rstrip())
    return "\n".join(lines)


def _event(entry: Any) -> dict[str, Any]:
    """An event of a history given on the spot, as a mapping."""
    if not isinstance(entry, Mapping):
        return {"item": entry}
    known = ("item", "time", "labels", "ratios", "features")
    wrong = [name for name in entry if name not in known]
    if wrong or "item" not in entry:
        raise DataError(
            f"an event of the history has {', '.join(map(repr, entry)) or 'nothing'}; expected "
            f"item and any of {', '.join(known[1:])}"
        )
    event = {name: value for name, value in entry.items() if value is not None}
    # A mapping without labels says that nothing is known, unlike a bare id.
    return {"labels": {}, **event}


def _label(label: Mapping[str, Any], value: Any) -> float:
    number = float(value)
    legal = number in (0, 1) if label["kind"] == "binary" else number >= 0 or np.isnan(number)
    if not legal:
        expected = "0 or 1" if label["kind"] == "binary" else "seconds, 0 or more"
        raise DataError(f"the label {label['name']!r} is {value!r}, expected {expected}")
    return number


def _category(value: Any) -> str:
    """Text of a categorical value, as the vocabularies hold it: 5, 5.0 and "5" are "5"."""
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _check_names(what: str, given: Iterable[Any], known: Iterable[str]) -> None:
    unknown = [name for name in given if name not in set(known)]
    if unknown:
        raise UnknownError(
            f"no {what} is called {', '.join(map(repr, unknown))}; known: "
            f"{', '.join(map(repr, known)) or 'none'}"
        )


def _milliseconds(value: Any) -> int:
    if isinstance(value, datetime):
        value = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return round(value.timestamp() * 1000)
    if isinstance(value, (bool, str)) or not np.isfinite(value):
        raise DataError(f"the time {value!r} is neither a number nor a datetime")
    return int(value)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
