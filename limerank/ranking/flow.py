"""The ranking flow that :class:`~limerank.ranking.recommender.Recommender` and the server share.

    request -> checked request -> user state -> best rows -> predictions -> explanations

1. :meth:`RankingFlow.check` turns task weights, candidates and exclusions into arrays, or refuses
   them.
2. The caller makes the user state: from a dataset or a given history
   (:class:`~limerank.ranking.recommender.Recommender`), or from an event store
   (:class:`~limerank.serving.state.UserStates`).
3. :meth:`RankingFlow.best` scores the candidates, follows the rules of the request
   (:mod:`limerank.ranking.rules`), and turns the best rows into external ids and predictions.
4. :meth:`RankingFlow.explain` explains items of the ranking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.batch import Impressions
from limerank.data.event_log import EventForm
from limerank.errors import DataError, UnknownError, check_integer
from limerank.index import Index
from limerank.models import Ranker
from limerank.models.tasks import predictions
from limerank.ranking.alike import Alike, alike
from limerank.ranking.anchored import AnchorNames
from limerank.ranking.explain import Explanation, Past, explain
from limerank.ranking.item_table import Filters
from limerank.ranking.request import index_keys, plain
from limerank.ranking.ruled import CheckedRules, checked_rules, ruled_rows
from limerank.ranking.rules import Rules, boosted
from limerank.ranking.scorer import Scorer, weights_of_tasks

Rows = NDArray[np.int64]
Unrankable = Literal["refuse", "skip", "omit"]
"""How candidates are treated that cannot be ranked: they are not in the index, were removed from
it, or occur in histories only.

- ``refuse``: each of them is an error.
- ``skip``: they are left out and counted.
- ``omit``: an id that is not in the index is an error; the others are left out without a count. For
  servers, where an item may be removed between the choice of candidates and their ranking.
"""
SHOWN = 10
"""Ids that a message lists, at most."""
NO_ROWS: Rows = np.zeros(0, np.int64)


class CheckedRequest(NamedTuple):
    """What to rank, as arrays.

    Attributes:
        k: how many items to return, at most.
        weights: of the tasks' logits in the ranking value, f32 [K].
        rows: index rows of the candidates, i64 [n]; None: the full index.
        excluded: index rows to leave out besides seen items, i64.
        candidates: how many items are ranked before any are left out.
        skipped: how many candidates were left out; None unless ``unrankable`` is ``skip``.
        shown: impression features of the candidates, [n, F]; None: no candidate has any.
        rules: of the request; None: there are none.
    """

    k: int
    weights: NDArray[np.float32]
    rows: Rows | None
    excluded: Rows
    candidates: int
    skipped: int | None
    shown: Impressions | None = None
    rules: CheckedRules | None = None


class Best(NamedTuple):
    """The best items of one request, best first; lists of equal length.

    Attributes:
        rows: index rows, i64 [n].
        ids: external ids, as Python values.
        values: ranking values, after boosts.
        predictions: task -> its prediction, for each item: a probability, or expected seconds.
        boosts: what boosts added to each value; 0 where there is none.
        pinned: whether each item has its position by a pin.
    """

    rows: Rows
    ids: list[Any]
    values: list[float]
    predictions: list[dict[str, float]]
    boosts: list[float]
    pinned: list[bool]


@dataclass(frozen=True, eq=False)
class RankingFlow:
    """Ranks with one model over one version of its index.

    Attributes:
        ranker: the model.
        index: the version of the index.
        scorer: over that index.
        form: the event form of the model's run, which reads impression features.
        index_name: how messages name the index.
        names: of the values of anchored features, for explanations.
    """

    ranker: Ranker
    index: Index
    scorer: Scorer
    form: EventForm
    index_name: str = "the index"
    names: AnchorNames | None = None

    def check(
        self,
        k: int,
        *,
        candidates: Iterable[Any] | None = None,
        unrankable: Unrankable = "refuse",
        exclude: Iterable[Any] | None = None,
        task_weights: Mapping[str, float] | None = None,
        what: str = "candidates",
        rules: Rules | None = None,
        filters: Filters | None = None,
    ) -> CheckedRequest:
        """Check a request and find its rows in the index.

        Args:
            k: how many items to return, at most.
            candidates: external ids to rank, or mappings with an ``item`` and values of impression
                features; the full index when not given.
            unrankable: what to do with candidates that cannot be ranked.
            exclude: external ids to leave out; those that the index lacks are ignored.
            task_weights: task -> weight of its logit in the ranking value; the first task alone
                when None.
            what: how messages name the candidates.
            rules: of the request; their ``unknown`` takes precedence over ``unrankable``.
            filters: over the features that rules name.

        Raises:
            UnknownError: a task or an impression feature is unknown, or a candidate is refused.
            DataError: candidates or exclusions are not a list of ids, a candidate has a value that
                a ranking cannot know, or one that has values is listed twice.
            SpecError: k is not an integer of 1 or more, a weight is not a finite number, or a rule
                cannot be followed.
        """
        check_integer("k", k, 1)
        if rules is not None and rules.unknown is not None:
            unrankable = rules.unknown
        weights = weights_of_tasks(self.ranker.shape.tasks, task_weights)
        rows, skipped, shown = None, None, None
        if candidates is None:
            count = len(self.index) - len(self.index.hidden)
        else:
            ids, values = _with_values(id_list(what, candidates))
            rows, known = self._candidates(ids, unrankable, what)
            skipped = len(ids) - len(rows) if unrankable == "skip" else None
            if values is not None and any(values):
                rows, shown = self._shown(rows, [values[at] for at in known.tolist()])
            count = _distinct(rows)
        excluded = NO_ROWS
        if exclude is not None:
            found = self.index.ids.find(id_list("items to exclude", exclude))
            excluded = found[found >= 0]
        of_rules = None
        if rules is not None and rules.select:
            pins = self._candidates([pin.item for pin in rules.pins], unrankable, "pins")
            of_rules = checked_rules(rules, k, self.index, filters, rows, *pins)
            if unrankable == "skip":
                skipped = (skipped or 0) + len(rules.pins) - len(of_rules.pins)
        return CheckedRequest(k, weights, rows, excluded, count, skipped, shown, of_rules)

    def best(self, request: CheckedRequest, state: Any, *, seen: Rows | None = None) -> Best:
        """The best items for one user state, as the rules of the request have it.

        Args:
            request: what :meth:`check` returned.
            state: one user's state, as the ranker's ``encode_users`` returns it.
            seen: index rows of the user's own items, to leave out; None: they may be ranked.

        Raises:
            SpecError: k is below 1, or the model has no similarities for diversity.
        """
        excluded = request.excluded if seen is None else seen
        if seen is not None and len(request.excluded):
            excluded = np.concatenate([seen, request.excluded])
        extra = None if request.shown is None else self._added(request)
        rules = request.rules
        if rules is None or not rules.reorder:
            top = self.scorer.top(
                state,
                request.k,
                weights=request.weights,
                rows=request.rows,
                exclude=[excluded],
                allow=None if rules is None else rules.allow,
                extra=extra,
            )
            found = top.rows[0][top.rows[0] >= 0]
            logits, values = top.logits[0][: len(found)], top.values[0][: len(found)]
            changed = values
        else:
            found = ruled_rows(
                rules,
                self.scorer,
                state,
                request.k,
                weights=request.weights,
                rows=request.rows,
                excluded=excluded,
                extra=extra,
                against=self.alike.against if rules.diversity else None,
            )
            if extra is not None and request.rows is not None:
                extra = extra[:, torch.from_numpy(np.searchsorted(request.rows, found))]
            logits = self.scorer.scores(state, found, extra=extra)[0]
            values = (logits * request.weights).sum(-1)
            changed = boosted(values, [(boost, of[found]) for boost, of in rules.boosts])
        tasks = self.ranker.shape.tasks
        predicted = predictions(torch.from_numpy(logits), tasks).tolist()
        names = [task.name for task in tasks]
        pinned = set() if rules is None else {row for row, _ in rules.pins}
        return Best(
            found,
            self.index.ids[found].tolist(),
            changed.tolist(),
            [dict(zip(names, of_item, strict=True)) for of_item in predicted],
            (changed - values).tolist(),
            [row in pinned for row in found.tolist()],
        )

    @cached_property
    def alike(self) -> Alike:
        """Similarities of the index's items; SpecError where the model has none."""
        return alike(self.index, self.ranker)

    def explain(
        self, past: Past, request: CheckedRequest, rows: Rows, ids: Sequence[Any]
    ) -> list[Explanation]:
        """Explain items of a ranking.

        Args:
            past: the request with its user's history.
            request: what :meth:`check` returned.
            rows: index rows of the items, i64 [n], among the request's candidates.
            ids: their external ids, which the explanations name.
        """
        vectors = torch.from_numpy(np.array(self.index.vectors[rows], dtype=np.float32))
        shown = None
        if request.shown is not None and request.rows is not None:
            shown = request.shown.take(torch.from_numpy(np.searchsorted(request.rows, rows)))
        keys = None
        if self.ranker.anchors is not None:
            keys = index_keys(self.index, rows).to(past.vectors.device)
        counted = None
        if self.index.counters is not None:
            counted = torch.from_numpy(np.array(self.index.counters[rows]))
            counted = counted.to(past.vectors.device)
        found = explain(
            self.ranker,
            past,
            [plain(id) for id in ids],
            vectors.to(past.vectors.device),
            request.weights,
            shown=shown,
            features=list(self.form.impressions.features),
            keys=keys,
            counted=counted,
            names=self.names,
        )
        titles = self.titles([*past.items, *map(plain, ids)])
        return [replace(one, titles=titles) for one in found] if titles else found

    def titles(self, ids: Iterable[Any]) -> dict[Any, str]:
        """External id -> title: the first column of the description's ``display``; without those
        that have none."""
        if self.index.display is None:
            return {}
        distinct = list(dict.fromkeys(ids))
        found = self.index.display.titles(self.index.ids.find(distinct))
        return {id: title for id, title in zip(distinct, found, strict=True) if title}

    def rows(self, what: str, ids: Sequence[Any] | NDArray[Any]) -> Rows:
        """Index rows of external ids, i64 [n]; UnknownError lists those that the index lacks."""
        rows = self.index.ids.find(ids)
        if (rows < 0).any():
            unknown = [plain(ids[int(position)]) for position in np.flatnonzero(rows < 0)]
            more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
            raise UnknownError(
                f"{len(unknown)} of {len(ids)} {what} are not in {self.index_name}: "
                f"{', '.join(map(repr, unknown[:SHOWN]))}{more}"
            )
        return rows

    @torch.inference_mode()
    def _added(self, request: CheckedRequest) -> Tensor | None:
        return self.ranker.added_by(request.shown)

    def _shown(self, rows: Rows, values: Sequence[Mapping[str, Any]]) -> tuple[Rows, Impressions]:
        """Candidates in the order of their rows, and their impression features."""
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        twice = rows[1:][rows[1:] == rows[:-1]]
        if len(twice):
            raise DataError(
                f"the candidate {plain(self.index.ids[twice[0]])!r} is listed more than once; list "
                "each candidate once where candidates have values"
            )
        return rows, self.form.shown([values[at] for at in order.tolist()])

    def _candidates(
        self, ids: list[Any] | NDArray[Any], unrankable: Unrankable, what: str
    ) -> tuple[Rows, Rows]:
        """Index rows of the candidates that are ranked, and their positions among all."""
        removed, hidden = self.index.removed, self.index.hidden
        if unrankable == "skip":
            rows = self.index.ids.find(ids)
            wanted = (rows >= 0) & ~np.isin(rows, removed) & ~np.isin(rows, hidden)
            return rows[wanted], np.flatnonzero(wanted)
        rows = self.rows(what, ids)
        if unrankable == "refuse":
            for never, why in (
                (removed, "were removed from the index"),
                (hidden, "occur in histories only and cannot be ranked"),
            ):
                wrong = np.intersect1d(rows, never)
                if len(wrong):
                    shown = ", ".join(repr(plain(self.index.ids[row])) for row in wrong[:SHOWN])
                    raise UnknownError(f"{len(wrong)} of {len(rows)} {what} {why}: {shown}")
        return rows, np.arange(len(rows))


def _with_values(
    given: list[Any] | NDArray[Any],
) -> tuple[list[Any] | NDArray[Any], list[Mapping[str, Any]] | None]:
    """Ids of candidates, and the values of their impression features, where one has any."""
    # Types are few: asking each id would take longer than finding it.
    if not any(issubclass(kind, Mapping) for kind in set(map(type, given))):
        return given, None
    ids: list[Any] = []
    values: list[Mapping[str, Any]] = []
    for one in given:
        if not isinstance(one, Mapping):
            one = {"item": one}
        elif one.get("item") is None:
            raise DataError(
                f"a candidate is {dict(one)!r:.80}, expected an id, or a mapping with an item and "
                'values of impression features, such as {"item": 7, "price": 12.5}'
            )
        ids.append(one["item"])
        values.append({name: value for name, value in one.items() if name != "item"})
    return ids, values


def id_list(what: str, given: Iterable[Any]) -> list[Any] | NDArray[Any]:
    """Ids given as a list, a NumPy array, a polars or pandas series or an Arrow array.

    Raises:
        DataError: it is a single text, or not a collection at all.
    """
    if isinstance(given, list):
        return given
    if isinstance(given, np.ndarray):
        if given.ndim != 1:
            raise DataError(
                f"the {what} are an array of shape {given.shape}, expected a list of ids"
            )
        return given
    if hasattr(given, "to_pylist"):  # Arrow: its own scalars are no numbers
        found: list[Any] = given.to_pylist()
        return found
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise DataError(f"the {what} are {given!r:.80}, expected a list of ids")
    return list(given)


def _distinct(rows: Rows) -> int:
    """How many different rows there are."""
    ordered = np.sort(rows)
    return int(np.count_nonzero(ordered[1:] != ordered[:-1])) + bool(len(rows))
