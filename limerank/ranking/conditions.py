"""Conditions on the features of items: the filters of a request, and whom a boost is for.

A condition is a list of values, of which an item needs one, or an object with any of these parts,
all of which must hold::

    ["Tents", "Stoves"]             one of these values; null: items without a value
    {"any": ["Tents", "Stoves"]}    the same
    {"all": ["red", "blue"]}        each of these values, of a feature with several per item
    {"not": ["Tents", null]}        none of these values
    {"from": 10, "to": 50}          a number from 10 to 50, both included; either may be left out

Features of texts are compared with their values as the model's vocabularies have them, numeric ones
as numbers. An item without a value is in no range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from limerank.data.canonical import INT64, category, number
from limerank.data.spec import Feature
from limerank.errors import DataError, SpecError, did_you_mean

MOST_VALUES = 1_000
"""Values in one list of a condition, at most."""
MOST_FEATURES = 100
"""Features that one filter names, at most."""
MOST_TEXT = 256
"""Characters of a value or a name, at most."""
PARTS = ("any", "all", "not", "from", "to")
EXAMPLE = '["Tents"], {"not": ["Tents"]} or {"from": 10, "to": 50}'

Values = frozenset[str | None]


@dataclass(frozen=True)
class Condition:
    """What an item's values of one feature must fulfil; parts that are None always hold.

    Attributes:
        any: values of which the item has one; None stands for no value.
        all: values that the item has.
        none: values that the item has not.
        low, high: bounds of a number, both included.
    """

    any: tuple[Any, ...] | None = None
    all: tuple[Any, ...] | None = None
    none: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, given: Any) -> Condition:
        """From a request or a file of rules.

        Raises:
            ValueError: it is not a condition, or no item can fulfil its range.
        """
        if isinstance(given, Condition):
            return given
        if not isinstance(given, Mapping):
            return cls(any=_values("the condition", given))
        unknown = [name for name in given if name not in PARTS]
        if unknown or not given:
            what = f"no part is called {str(unknown[0])[:40]!r}" if unknown else "it is empty"
            hint = did_you_mean(unknown[0], PARTS) if unknown else ""
            raise ValueError(f"{what}; expected {', '.join(PARTS)}, such as {EXAMPLE}{hint}")
        lists = {name: _values(name, given[name]) for name in PARTS[:3] if name in given}
        low, high = (_bound(name, given.get(name)) for name in PARTS[3:])
        if low is not None and high is not None and low > high:
            raise ValueError(f"no number is from {low:g} to {high:g}; from must be the lower one")
        return cls(lists.get("any"), lists.get("all"), lists.get("not"), low, high)


def _values(name: str, given: Any) -> tuple[Any, ...]:
    if isinstance(given, str | bytes) or not isinstance(given, list | tuple | set | frozenset):
        given = [given]
    if len(given) > MOST_VALUES:
        raise ValueError(f"{name} has {len(given):,} values, expected at most {MOST_VALUES:,}")
    for value in given:
        if value is not None and not isinstance(value, str | int | float):
            kind = "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"
            raise ValueError(f"{name} has {kind} as a value, expected texts, numbers or null")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} has {value!r} as a value, expected a finite number")
        if isinstance(value, int) and value not in INT64:
            raise ValueError(
                f"{name} has an integer of more than 64 bits as a value; give it as text"
            )
        if isinstance(value, str) and len(value) > MOST_TEXT:
            raise ValueError(
                f"{name} has a text of {len(value):,} characters, expected at most {MOST_TEXT}"
            )
    return tuple(given)


def _bound(name: str, given: Any) -> float | None:
    if given is None:
        return None
    wrong = isinstance(given, bool) or not isinstance(given, int | float)
    if not wrong:
        wrong = given not in INT64 if isinstance(given, int) else not math.isfinite(given)
    if wrong:
        what = "an integer of more than 64 bits" if isinstance(given, int) else f"{given!r:.80}"
        raise ValueError(f"{name} is {what}, expected a finite number")
    return float(given)


KINDS: tuple[dict[str, Any], ...] = (
    {"type": "integer"},
    {"type": "number"},
    {"type": "string", "maxLength": MOST_TEXT},
    {"type": "boolean"},
    {"type": "null"},
)
VALUE: dict[str, Any] = {"anyOf": list(KINDS)}
LIST: dict[str, Any] = {"type": "array", "items": VALUE, "maxItems": MOST_VALUES}
SCHEMA: dict[str, Any] = {
    "anyOf": [
        LIST,
        {
            "type": "object",
            "properties": {
                **{name: LIST for name in PARTS[:3]},
                **{name: {"type": "number"} for name in PARTS[3:]},
            },
            "minProperties": 1,
            "additionalProperties": False,
        },
    ]
}
Given = Annotated[Condition, BeforeValidator(Condition.of), WithJsonSchema(SCHEMA)]
Conditions = Annotated[
    dict[Annotated[str, Field(max_length=MOST_TEXT)], Given], Field(max_length=MOST_FEATURES)
]
"""Item feature -> condition; an item must fulfil all of them."""


@dataclass(frozen=True)
class Wanted:
    """A condition in the one form of its feature: values as texts of the vocabularies, or numbers
    in the same form."""

    any: Values | None
    all: frozenset[str]
    none: Values
    low: float | None
    high: float | None

    @property
    def ranged(self) -> bool:
        """Whether it has a bound."""
        return self.low is not None or self.high is not None

    def holds(self, values: Values, number: float) -> bool:
        """Whether it holds for an item with these values: {None} where it has none, with NaN as
        its number."""
        return (
            (self.any is None or not self.any.isdisjoint(values))
            and self.all <= values
            and self.none.isdisjoint(values)
            and (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
        )


def wanted(
    features: tuple[Feature, ...], given: Mapping[str, Condition]
) -> tuple[tuple[Feature, Wanted], ...]:
    """Conditions in their one form, in the order of the features.

    Raises:
        SpecError: a feature is unknown or has vectors, or a range is of no numeric feature.
        DataError: a feature cannot have such a value.
    """
    by_name = {one.name: one for one in features}
    unknown = [name for name in given if name not in by_name]
    if unknown:
        raise SpecError(
            f"no item feature is called {', '.join(map(repr, unknown[:10]))}; known: "
            f"{', '.join(by_name) or 'none'}{did_you_mean(unknown[0], by_name)}"
        )
    return tuple((one, _wanted(one, given[one.name])) for one in features if one.name in given)


def _wanted(feature: Feature, of: Condition) -> Wanted:
    if feature.kind == "text-vector":
        raise SpecError(f"{feature.name!r} has vectors, which no condition can name")
    if feature.kind != "numeric" and (of.low is not None or of.high is not None):
        raise SpecError(
            f"{feature.name!r} is a {feature.kind} feature, and from and to are for numeric ones; "
            f'list its values instead, such as {{"{feature.name}": ["a", "b"]}}'
        )
    every = _texts(feature, of.all or ())
    if None in every:
        raise SpecError(f"{feature.name!r}: all has null, and no item has null beside values")
    return Wanted(
        None if of.any is None else _texts(feature, of.any),
        frozenset(text for text in every if text is not None),
        _texts(feature, of.none or ()),
        of.low,
        of.high,
    )


def _texts(feature: Feature, values: tuple[Any, ...]) -> Values:
    found = set()
    for value in values:
        text = text_of(feature, value)
        if text is None and value is not None and feature.kind == "numeric":
            raise DataError(
                f"the condition on {feature.name!r} has {value!r:.80}, expected numbers, or null "
                "for items without a value"
            )
        found.add(text)
    return frozenset(found)


def text_of(feature: Feature, value: Any) -> str | None:
    """One value of a feature as text; None: unknown."""
    if value is None:
        return None
    return category(number(value) if feature.kind == "numeric" else value)


def known_feature(features: tuple[Feature, ...], name: str, what: str) -> Feature:
    """The categorical feature of this name; SpecError where there is none."""
    by_name = {one.name: one for one in features}
    if name not in by_name:
        raise SpecError(
            f"{what}: no item feature is called {name!r}; known: "
            f"{', '.join(by_name) or 'none'}{did_you_mean(name, by_name)}"
        )
    if by_name[name].kind != "categorical":
        raise SpecError(
            f"{what}: {name!r} is a {by_name[name].kind} feature, expected a categorical one"
        )
    return by_name[name]
