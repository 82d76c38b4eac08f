"""Rules of a request: what a shop wants of a ranking beside the model's values.

In this order, and the same in Python, command and server:

1. **Which items.** The candidates without excluded, seen and removed items, and of these the ones
   that fulfil the ``filter`` (:mod:`limerank.ranking.conditions`).
2. **Boosts.** An item that a boost is for has the value ``multiply * value + add`` in place of
   ``value``; several boosts apply in their order. The ranking value is a weighted sum of logits:
   ``add = 0.69`` doubles the odds of a binary task of weight 1. A negative value that is multiplied
   by more than 1 becomes lower.
3. **Pins.** Each pinned item takes its position, counted from 1, whether the user has seen it or
   not and whether it fulfils the filter or not. If the list ends before that position, it takes the
   last one.
4. **The other positions** are filled from the first to the last, each with the item that has the
   highest value of those that keep every limit ``per``: at most so many items of each value of a
   feature, pinned items included. Items without a value have no limit. Of equal values the lower
   row of the index comes first.
5. With ``diversity`` L, positions are filled from the *pool*, the :data:`POOL` k best items (at
   least :data:`LEAST_POOL`), by maximal marginal relevance (Carbonell and Goldstein 1998)::

       (1 - L) (value - lowest) / (highest - lowest) - L max over chosen j of similarity(i, j)

   with the highest and lowest value of the pool, and similarities of
   :mod:`limerank.ranking.alike`; pinned items are chosen from the beginning. If no item of the
   pool keeps the limits, the items after it follow as in step 4.

:func:`choose` does steps 4 and 5 over best-first parts of the ranking, as few as it needs; the
result is that over all of it.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from limerank.data.canonical import external_id
from limerank.errors import DataError, SpecError
from limerank.ranking.conditions import MOST_TEXT, Conditions
from limerank.validation import Frozen, validate

MOST_BOOSTS = 20
MOST_PINS = 100
MOST_PER = 5
MOST_BOOSTED = 10_000
"""Items that one boost lists, at most."""
MOST_POSITION = 10_000
MOST_DIVERSE = 500
"""Items of a list with diversity, at most."""
POOL, LEAST_POOL = 5, 100
LARGEST = 1e6
"""Of what a boost adds or multiplies by."""

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]


def _id(value: Any) -> int | str:
    if isinstance(value, str) and len(value) > MOST_TEXT:
        raise ValueError(f"the id has {len(value):,} characters, expected at most {MOST_TEXT}")
    try:
        return external_id("given", value)
    except DataError as error:
        raise ValueError(str(error)) from None


Id = Annotated[
    int | str,
    BeforeValidator(_id),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer"},
                {"type": "string", "minLength": 1, "maxLength": MOST_TEXT},
            ]
        }
    ),
]
Name = Annotated[str, Field(max_length=MOST_TEXT)]


class Boost(Frozen):
    """Changes the values of some items."""

    filter: Conditions = Field({}, description="Which items: feature to condition, as in filter.")
    items: tuple[Id, ...] | None = Field(
        None,
        max_length=MOST_BOOSTED,
        description="Which items, by id; with a filter, those of them that fulfil it.",
    )
    multiply: float = Field(1.0, ge=0, le=LARGEST, description="Factor of the ranking value.")
    add: float = Field(
        0.0, ge=-LARGEST, le=LARGEST, description="Added to the ranking value, after multiply."
    )

    @model_validator(mode="after")
    def _check(self) -> Boost:
        if not self.filter and self.items is None:
            raise ValueError("a boost is for no item: give a filter or items")
        return self


class Pin(Frozen):
    """An item at a position."""

    item: Id = Field(description="External id.")
    position: int = Field(ge=1, le=MOST_POSITION, description="From 1, at most k.")


class Rules(Frozen):
    """The rules of a request; see the module's text."""

    filter: Conditions | None = Field(
        None,
        description="Item feature to condition; an item must fulfil all: a list of values, or an "
        "object of any, all, not (lists of values), from and to (numbers).",
    )
    boosts: tuple[Boost, ...] = Field(
        (), max_length=MOST_BOOSTS, description="Changes of the ranking values of some items."
    )
    pins: tuple[Pin, ...] = Field((), max_length=MOST_PINS, description="Items at positions.")
    per: dict[Name, Annotated[int, Field(ge=1, le=MOST_POSITION)]] = Field(
        {},
        max_length=MOST_PER,
        description="Categorical item feature to the number of items that each of its values may "
        "have in the list.",
    )
    diversity: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Weight of being unlike the items above, by maximal marginal relevance; 0 "
        "ranks by value alone.",
    )
    unknown: Literal["refuse", "skip"] | None = Field(
        None,
        description="Candidates and pins that cannot be ranked: refuse the request, or skip and "
        "count them.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Rules:
        for what in ("item", "position"):
            counts = Counter(getattr(pin, what) for pin in self.pins)
            twice = [value for value, count in counts.items() if count > 1]
            if twice:
                raise ValueError(f"two pins have the {what} {twice[0]!r:.80}; give each once")
        return self

    @property
    def select(self) -> bool:
        """Whether there is any rule about items, values or positions."""
        return bool(self.filter is not None or self.reorder)

    @property
    def reorder(self) -> bool:
        """Whether there is any rule beside the filter."""
        return bool(self.boosts or self.pins or self.per or self.diversity)

    @property
    def of_features(self) -> bool:
        """Whether a rule names features of items."""
        return bool(self.filter or self.per or any(boost.filter for boost in self.boosts))


def read_rules(*texts: str) -> Rules:
    """Rules from TOML: files by name, or TOML itself; several are joined.

    Raises:
        SpecError: a file cannot be read, it is not TOML, or a rule is not valid.
    """
    parts = []
    for text in texts:
        if text.endswith(".toml"):
            try:
                text = Path(text).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
                raise SpecError(f"cannot read the rules in {text}: {why}") from None
        parts.append(text)
    try:
        values = tomllib.loads("\n".join(parts))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(
            f"the rules are not TOML: {error}; give a file that ends in .toml, or TOML such as "
            "'per = {category = 2}'"
        ) from None
    return validate(Rules, values, "the rules")


class Part(NamedTuple):
    """The best items of a ranking, best first: ``rows`` of the index, i64 [n], and their values,
    f32 [n]. Fewer than were asked for: there are no more."""

    rows: Rows
    values: Floats


Fetch = Callable[[int, Sequence[NDArray[np.bool_]], Rows], Part]
"""(n, masks, rows) -> the best n items that all masks bool [I] allow, without those rows."""


class Limit(NamedTuple):
    """At most ``most`` items of each value of a feature.

    Attributes:
        most: how many.
        values: rows -> the values of each.
        lacking: values -> which items of the index have none of them, bool [I].
    """

    most: int
    values: Callable[[Rows], list[frozenset[str]]]
    lacking: Callable[[frozenset[str]], NDArray[np.bool_]]


class _Counts:
    """The items that each value of the limited features has in the list so far."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._limits = limits
        self._counts: list[Counter[str]] = [Counter() for _ in limits]

    def of(self, rows: Rows) -> list[tuple[frozenset[str], ...]]:
        """The limited values of items."""
        columns = [limit.values(rows) for limit in self._limits]
        return list(zip(*columns, strict=True)) if columns else [()] * len(rows)

    def fits(self, values: tuple[frozenset[str], ...]) -> bool:
        """Whether an item with these values keeps every limit."""
        return all(
            counts[value] < limit.most
            for limit, counts, own in zip(self._limits, self._counts, values, strict=True)
            for value in own
        )

    def add(self, values: tuple[frozenset[str], ...]) -> None:
        """Count an item of the list."""
        for counts, own in zip(self._counts, values, strict=True):
            counts.update(own)

    def masks(self) -> list[NDArray[np.bool_]]:
        """Which items have no value that has reached its limit."""
        found = []
        for limit, counts in zip(self._limits, self._counts, strict=True):
            full = frozenset(value for value, count in counts.items() if count >= limit.most)
            if full:
                found.append(limit.lacking(full))
        return found


def choose(
    fetch: Fetch,
    k: int,
    *,
    pinned: Rows,
    limits: Sequence[Limit] = (),
    diversity: float = 0.0,
    against: Callable[[Rows], Callable[[int], Floats]] | None = None,
) -> Rows:
    """Rows of the items that fill the positions of a list which are not pinned, in order.

    Args:
        fetch: the ranking.
        k: how many.
        pinned: rows of pinned items, which ``fetch`` never returns.
        limits: of the values of features.
        diversity: weight of being unlike the items chosen before.
        against: rows -> a function from an item's row to its similarities to them, f32 [n]; for
            diversity.
    """
    counts = _Counts(limits)
    for values in counts.of(pinned):
        counts.add(values)
    chosen: list[int] = []
    if diversity > 0:
        assert against is not None
        pool = fetch(max(POOL * k, LEAST_POOL), (), np.zeros(0, np.int64))
        chosen = _diverse(pool, k, pinned, counts, diversity, against)
        if len(chosen) == k or not limits:
            return np.array(chosen, dtype=np.int64)
        passed = pool.rows
    else:
        passed = np.zeros(0, np.int64)
    # Each part begins with an item that fits, so there are at most k parts.
    while len(chosen) < k:
        size = k - len(chosen) if not limits else max(POOL * (k - len(chosen)), LEAST_POOL)
        part = fetch(size, counts.masks(), passed)
        for row, values in zip(part.rows.tolist(), counts.of(part.rows), strict=True):
            if counts.fits(values):
                counts.add(values)
                chosen.append(row)
                if len(chosen) == k:
                    break
        if len(part.rows) < size:
            break
        passed = np.concatenate([passed, part.rows])
    return np.array(chosen, dtype=np.int64)


def _diverse(
    pool: Part,
    k: int,
    pinned: Rows,
    counts: _Counts,
    diversity: float,
    against: Callable[[Rows], Callable[[int], Floats]],
) -> list[int]:
    """Items of the pool by maximal marginal relevance."""
    rows, values = pool
    if not len(rows):
        return []
    spread = float(values[0]) - float(values[-1])
    relevance = (values.astype(np.float64) - values[-1]) / (spread if spread > 0 else 1.0)
    similarities = against(rows)
    nearest = np.full(len(rows), -np.inf)
    for row in pinned.tolist():
        nearest = np.maximum(nearest, similarities(row))
    own, left = counts.of(rows), np.ones(len(rows), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < k:
        for at in np.flatnonzero(left).tolist() if any(own) else ():
            left[at] = counts.fits(own[at])
        if not left.any():
            break
        like = np.where(np.isfinite(nearest), nearest, 0.0)
        gain = np.where(left, (1 - diversity) * relevance - diversity * like, -np.inf)
        best = int(gain.argmax())  # of equal ones the first, which has the higher value
        left[best] = False
        counts.add(own[best])
        chosen.append(int(rows[best]))
        nearest = np.maximum(nearest, similarities(int(rows[best])))
    return chosen


def placed(chosen: Rows, pins: Iterable[tuple[int, int]], k: int) -> Rows:
    """The list: chosen items, and pinned ones (row, position from 1) at their positions, or at the
    end where the list is shorter."""
    by_position = {position: row for row, position in pins}
    rest, found = iter(chosen.tolist()), []
    for position in range(1, k + 1):
        row = by_position.pop(position, None)
        row = next(rest, None) if row is None else row
        if row is None:
            break
        found.append(row)
    found += [row for _, row in sorted(by_position.items())]
    return np.array(found[:k], dtype=np.int64)


def boosted(values: Floats, boosts: Sequence[tuple[Boost, NDArray[np.bool_]]]) -> Floats:
    """Values after boosts, each with which items it is for, bool [n]; f32."""
    found = values.copy()
    for boost, of in boosts:
        changed = found[of] * np.float32(boost.multiply) + np.float32(boost.add)
        found[of] = changed
    return found


def rules_of(given: Rules | Mapping[str, Any] | str | None) -> Rules | None:
    """Rules as a record: from a record, a mapping of its fields, or TOML; see :func:`read_rules`.

    Raises:
        SpecError: a rule is not valid.
    """
    if given is None or isinstance(given, Rules):
        return given
    if isinstance(given, str):
        return read_rules(given)
    return validate(Rules, given, "the rules")
