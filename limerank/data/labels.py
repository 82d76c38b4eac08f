"""The labels of a description: what a model predicts of an event, and from which values.

A label of kind "positive" gives each event a weight: 0 where it is none, so that the event is part
of histories only. Values of its column are compared as categories
(:func:`limerank.data.canonical.category`), in lower case: ``Purchase`` and ``purchase`` are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from limerank.data.canonical import categories, category
from limerank.validation import Frozen

RULES = ("equals", "any_of", "weights")
"""Fields that compare the values of a label's column with words."""


def with_column(values: Any) -> Any:
    """Values of a label or a feature: its column is its name, where none is given."""
    if isinstance(values, dict) and not values.get("column"):
        values = {**values, "column": values.get("name", "")}
    return values


class Label(Frozen):
    """An outcome of an event: the model predicts it, and histories contain it."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    """Name of the task in metrics, rankings and responses."""
    kind: Literal["binary", "duration", "positive"]
    """"positive" for logs of what users did, without what else was shown: the model ranks the
    whole catalogue by how likely an item is the next positive. "binary" for outcomes of shown items
    that happen or not, "duration" for seconds, such as watch time."""
    column: str = ""
    """Column of the label. By default it is the name. A positive label without ``equals``,
    ``any_of``, ``weights`` or ``at_least`` needs none: every event is a positive."""
    equals: str | float | None = None
    """Value of the column, such as "purchase", of events with the label; others are without it.
    Case is ignored."""
    any_of: tuple[str | float, ...] = ()
    """The same with several values."""
    weights: dict[str, float] = Field(default_factory=dict)
    """For positive labels: weight of an event by the value of the column, such as ``{ cart = 1,
    purchase = 3 }``; 1 by default. Events of weight 0 only enter histories."""
    at_least: float | None = None
    """For binary and positive labels: events whose column is at least this value have the label,
    such as 4 for a rating of 4 or 5."""
    scale: float = Field(1.0, gt=0)
    """For durations: seconds per unit of the column, such as 0.001 for milliseconds."""
    cap: float | None = Field(None, gt=0)
    """For durations: longer values are cut to this many seconds. Use it against outliers, such as
    videos that were left running."""
    of: str | None = None
    """For durations: column with the full length of the item, in the same unit."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind") == "positive":
            rules = [values.get(name) for name in (*RULES, "at_least")]
            if all(rule in (None, (), [], {}) for rule in rules):
                return values
        return with_column(values)

    @field_validator("weights")
    @classmethod
    def _not_negative(cls, weights: dict[str, float]) -> dict[str, float]:
        for value, weight in weights.items():
            if weight < 0:
                raise ValueError(f"the weight of {value!r} is {weight:g}, expected 0 or more")
        return weights

    @model_validator(mode="after")
    def _check(self) -> Label:
        if self.kind == "duration" and self.at_least is not None:
            raise ValueError("at_least is for binary and positive labels")
        if self.kind != "duration" and (self.of is not None or self.cap is not None):
            raise ValueError("of and cap are for duration labels")
        if self.kind == "duration" and (self.equals is not None or self.any_of):
            raise ValueError("equals and any_of are for binary and positive labels")
        if self.kind != "positive" and self.weights:
            raise ValueError('weights are for labels of kind = "positive"')
        rules = [name for name in ("equals", "any_of") if getattr(self, name) not in (None, ())]
        if self.at_least is not None and (rules or self.weights):
            raise ValueError(
                f"at_least compares numbers, {(rules or ['weights'])[0]} compares words; keep one"
            )
        if len(rules) > 1:
            raise ValueError("equals and any_of: keep one of them")
        listed = self.listed
        stray = [value for value in self.weights if listed and _form(value) not in listed]
        if stray:
            raise ValueError(
                f"weights has {stray[0]!r}, which is not among the positives "
                f"{', '.join(self.values)}; add it to any_of, or leave it out"
            )
        if self.weights and not any(self.weights.values()) and set(listed) <= set(self._weights):
            raise ValueError("all weights are 0: no event would be a positive")
        return self

    @property
    def values(self) -> tuple[str, ...]:
        """The values that have the label, as written; empty: all."""
        given = self.any_of if self.equals is None else (self.equals,)
        return tuple(category(value) or "" for value in given)

    @property
    def listed(self) -> tuple[str, ...]:
        """The same as they are compared."""
        return tuple(map(_form, self.values))

    @property
    def _weights(self) -> dict[str, float]:
        return {_form(value): weight for value, weight in self.weights.items()}

    @property
    def compares(self) -> bool:
        """Whether the column's values are compared with words."""
        return bool(self.values or self.weights)

    @property
    def typed(self) -> bool:
        """Whether the column holds the type of each event."""
        every = self.kind == "positive" and self.at_least is None
        return self.compares or (every and self.column != "")

    @property
    def of_every_event(self) -> bool:
        """Whether every event is a positive of weight 1."""
        return self.kind == "positive" and self.at_least is None and not self.compares

    @property
    def rule(self) -> str:
        """Which events have the label, for messages."""
        if self.at_least is not None:
            return f"{self.column} of {self.at_least:g} or more"
        if not self.values and not self.weights:
            return "every event"
        named = self.values or tuple(self.weights)
        each = [f"{one} (weight {weight:g})" for one in named if (weight := self.weight_of(one))]
        each += [] if self.values else ["every other value (weight 1)"]
        return f"{self.column} = {', '.join(each)}"

    def weight_of(self, value: str | None) -> float:
        """Weight of an event by the value of the column: 0, or 1 where no weight is given."""
        form = _form(value)
        if self.values and form not in self.listed:
            return 0.0
        return self._weights.get(form, 1.0)

    def weights_of(self, values: pl.Series) -> NDArray[np.float32]:
        """The same of many values, f32; missing ones have the weight 0."""
        known = values.unique().drop_nulls()
        weights = [0.0 if one is None else self.weight_of(one) for one in categories(known)]
        found = values.replace_strict(known, weights, default=0.0, return_dtype=pl.Float32)
        return found.fill_null(0.0).to_numpy()


def _form(value: Any) -> str:
    """A value as it is compared."""
    return (category(value) or "").lower()


def types(values: pl.Series) -> pl.Series:
    """Types of events as vocabularies hold them: categories in lower case; null: missing."""
    return categories(values).str.to_lowercase()


def types_of_events(labels: Sequence[Any], features: Sequence[Any]) -> list[dict[str, str]]:
    """An event feature for each column with types of events that has none yet.

    Args:
        labels, features: of a description: records, or the mappings that they are made from.
    """
    names = {_get(one, "name") for one in [*labels, *features]}
    columns = {_get(one, "column") or _get(one, "name") for one in features}
    added = []
    for label in labels:
        if isinstance(label, dict):
            try:
                label = Label.model_validate(label)
            except ValueError:
                continue  # reported as an error of the label
        if not isinstance(label, Label) or not label.typed or label.column in columns:
            continue
        name = re.sub(r"\W", "_", label.column, flags=re.ASCII).lstrip("_0123456789") or "event"
        while name in names:
            name += "_type"
        names.add(name)
        columns.add(label.column)
        added.append({"name": name, "kind": "categorical", "column": label.column})
    return added


def _get(record: Any, name: str) -> Any:
    return record.get(name) if isinstance(record, dict) else getattr(record, name, None)


def columns_of(labels: Iterable[Label]) -> list[tuple[str, str]]:
    """The columns that labels read and the role of each (:mod:`limerank.data.sources.roles`)."""
    found = []
    for label in labels:
        if label.typed:
            found.append((label.column, "category"))
        elif label.column:
            found.append((label.column, "label"))
        if label.of is not None:
            found.append((label.of, "number"))
    return found
