"""Rules over one version of an index: checked, and applied to a scorer.

:mod:`limerank.ranking.rules` defines what each rule means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.spec import Feature
from limerank.errors import SpecError
from limerank.index import Index
from limerank.ranking.conditions import Condition, known_feature
from limerank.ranking.item_table import Filters
from limerank.ranking.request import plain
from limerank.ranking.rules import (
    MOST_DIVERSE,
    Boost,
    Fetch,
    Limit,
    Part,
    Rules,
    boosted,
    choose,
    placed,
)
from limerank.ranking.scorer import Scorer

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


class CheckedRules(NamedTuple):
    """Rules as arrays over the rows of an index.

    Attributes:
        allow: which items fulfil the filter, bool [I]; None: all.
        boosts: each with which items it is for, bool [I].
        pins: row and position of each pinned item.
        limits: of the values of features.
        diversity: weight of being unlike the items above.
    """

    allow: Mask | None
    boosts: tuple[tuple[Boost, Mask], ...]
    pins: tuple[tuple[int, int], ...]
    limits: tuple[Limit, ...]
    diversity: float

    @property
    def reorder(self) -> bool:
        """Whether there is any rule beside the filter."""
        return bool(self.boosts or self.pins or self.limits or self.diversity)


def checked_rules(
    rules: Rules,
    k: int,
    index: Index,
    filters: Filters | None,
    candidates: Rows | None,
    pinned: Rows,
    at: Rows,
) -> CheckedRules:
    """Check rules against an index.

    Args:
        rules: of the request.
        k: length of the list.
        index: what is ranked.
        filters: over the features of its items.
        candidates: rows of the candidates; None: all.
        pinned: rows of those pinned items that can be ranked.
        at: which pins these are of.

    Raises:
        SpecError: a rule names a feature that does not exist or has no such values, a pin is
            beyond k or of no candidate, or the list is too long for diversity.
    """
    if rules.of_features and filters is None:
        raise SpecError("rules name item features, and no item table is given")
    pins = [rules.pins[position] for position in at.tolist()]
    for pin, row in zip(pins, pinned.tolist(), strict=True):
        if pin.position > k:
            raise SpecError(
                f"the pin of {pin.item!r} has position {pin.position}, and the list ends at k = "
                f"{k}; raise k, or leave out the pin"
            )
        if candidates is not None and row not in candidates:
            raise SpecError(
                f"the pinned item {pin.item!r} is not one of the candidates; add it to them"
            )
    if rules.diversity and k > MOST_DIVERSE:
        raise SpecError(f"k is {k}, expected at most {MOST_DIVERSE} with diversity")
    limits = []
    if rules.per:
        assert filters is not None
        filters.items.expect_features()
        assert filters.items.layout is not None
        for name, most in rules.per.items():
            feature = known_feature(filters.items.layout.features, name, "per")
            limits.append(
                Limit(
                    most,
                    partial(_values_of, filters, feature, index),
                    partial(_lacking, filters, feature),
                )
            )
    return CheckedRules(
        None if not rules.filter else _allowed(filters, rules.filter),
        tuple((boost, _boosted(boost, index, filters)) for boost in rules.boosts),
        tuple((row, pin.position) for pin, row in zip(pins, pinned.tolist(), strict=True)),
        tuple(limits),
        rules.diversity,
    )


def _allowed(filters: Filters | None, of: dict[str, Condition]) -> Mask:
    assert filters is not None
    return filters.allowed(of)


def _boosted(boost: Boost, index: Index, filters: Filters | None) -> Mask:
    """Which items a boost is for."""
    found = None if not boost.filter else _allowed(filters, boost.filter)
    if boost.items is None:
        assert found is not None
        return found
    listed = np.zeros(len(index), dtype=bool)
    rows = index.ids.find(list(boost.items))
    listed[rows[rows >= 0]] = True
    return listed if found is None else listed & found


def _values_of(
    filters: Filters, feature: Feature, index: Index, rows: Rows
) -> list[frozenset[str]]:
    return filters.items.values(feature, [plain(id) for id in index.ids[rows]])


def _lacking(filters: Filters, feature: Feature, values: frozenset[str]) -> Mask:
    """Items that have none of some values of a feature; those without features, too."""
    return ~filters.allowed({feature.name: Condition(any=tuple(sorted(values)))})


def ruled_rows(
    rules: CheckedRules,
    scorer: Scorer,
    state: Any,
    k: int,
    *,
    weights: Floats,
    rows: Rows | None,
    excluded: Rows,
    extra: Tensor | None,
    against: Callable[[Rows], Callable[[int], Floats]] | None,
) -> Rows:
    """The rows of a list by rules, in order, i64 [k] or fewer.

    Args:
        rules: of the request.
        scorer: scores the items.
        state: of one user.
        k: length of the list.
        weights: of the tasks' logits, f32 [K].
        rows: candidates; None: the full index.
        excluded: rows to leave out.
        extra: additions to the first-layer sums of the candidates, see
            :meth:`~limerank.ranking.scorer.contract.Scorer.scores`.
        against: similarities to some items, see :meth:`~limerank.ranking.alike.Alike.against`; for
            diversity.
    """
    pinned = np.array([row for row, _ in rules.pins], dtype=np.int64)
    without = np.concatenate([excluded, pinned])
    if rules.boosts:
        fetch = _boosted_order(rules, scorer, state, weights, rows, without, extra)
    else:
        fetch = partial(_top, rules, scorer, state, weights, rows, without, extra)
    count = max(k - len(pinned), 0)
    chosen = np.zeros(0, np.int64)
    if count:
        chosen = choose(
            fetch,
            count,
            pinned=pinned,
            limits=rules.limits,
            diversity=rules.diversity,
            against=against,
        )
    return placed(chosen, rules.pins, k)


def _top(
    rules: CheckedRules,
    scorer: Scorer,
    state: Any,
    weights: Floats,
    rows: Rows | None,
    excluded: Rows,
    extra: Tensor | None,
    n: int,
    masks: Sequence[Mask],
    passed: Rows,
) -> Part:
    """The best items by the scorer's own top k."""
    for mask in masks:
        rules = rules._replace(allow=mask if rules.allow is None else rules.allow & mask)
    top = scorer.top(
        state,
        n,
        weights=weights,
        rows=rows,
        exclude=[np.concatenate([excluded, passed])],
        allow=rules.allow,
        extra=extra,
    )
    found = top.rows[0] >= 0
    return Part(top.rows[0][found], top.values[0][found])


def _boosted_order(
    rules: CheckedRules,
    scorer: Scorer,
    state: Any,
    weights: Floats,
    rows: Rows | None,
    excluded: Rows,
    extra: Tensor | None,
) -> Fetch:
    """The order of all candidates by their boosted values: boosts can raise any of them."""
    of = np.arange(len(scorer)) if rows is None else rows
    logits = scorer.scores(state, rows, extra=extra)[0]
    values = boosted((logits * weights).sum(-1), [(b, mask[of]) for b, mask in rules.boosts])
    left = np.ones(len(scorer), dtype=bool) if rules.allow is None else rules.allow.copy()
    left[scorer.index.hidden] = False
    left[excluded] = False
    order = np.lexsort((of, -values))
    order = order[left[of[order]]]
    of, values = of[order], values[order]
    if rows is not None:  # a candidate may be listed more than once
        first = np.sort(np.unique(of, return_index=True)[1])
        of, values = of[first], values[first]

    def fetch(n: int, masks: Sequence[Mask], passed: Rows) -> Part:
        some = np.ones(len(of), dtype=bool)
        for mask in masks:
            some &= mask[of]
        if len(passed):
            some &= ~np.isin(of, passed)
        at = np.flatnonzero(some)[:n]
        return Part(of[at], values[at])

    return fetch
