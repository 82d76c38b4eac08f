"""Single events as the columns and codes that a prepared dataset has.

The server uses it for posted events, and for a history that a request contains.
"""

from __future__ import annotations

import time as clock
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.data.batch import Impressions
from limerank.data.canonical import DAY_MS, category, iso, milliseconds, number
from limerank.data.encoding import read_vocabulary
from limerank.data.events import FLOAT32, Event, event_of
from limerank.data.history import Columns, EventEncoder
from limerank.data.impressions import ImpressionEncoder
from limerank.data.labels import Label
from limerank.errors import DataError, FormatError, check_names, did_you_mean

MINUTE_MS = 60_000
FAR_MS = 3653 * DAY_MS
"""Ten years: a time further from the log is an error."""

EventRows = NDArray[np.int64]


@dataclass(frozen=True)
class EventLog:
    """Events of one user.

    Attributes:
        columns: in the dataset's format; ``columns["item"]`` has codes.
        rows: rows of the events that histories hold, oldest first.
        seen: rows of all events, oldest first.
        ids: external ids of the items by code.
    """

    columns: Columns
    rows: EventRows
    seen: EventRows
    ids: Any


OFFERED = 8
"""Types of events that a client is offered, at most, of one column of types."""


class EventForm:
    """What a run knows of an event: its labels, features and their codes.

    Args:
        manifest: of the dataset that the run was trained on.
        folder: of the run; its vocabularies are read when they are first needed.
    """

    def __init__(self, manifest: Mapping[str, Any], folder: Path) -> None:
        encoding = manifest["encoding"]
        self.encoder = EventEncoder(encoding, manifest["clock"])
        self.labels = {label["name"]: label for label in encoding["labels"]}
        self.features = {feature["name"]: feature for feature in encoding["event_features"]}
        self.impressions = ImpressionEncoder(encoding)
        self.context_features = {
            name: feature for name, feature in self.features.items() if feature["when"] == "context"
        }
        self.keep: str | None = manifest["spec"]["history"]["keep"]
        times = manifest["summary"]["time"]
        self.log_start: int = int(times["first"])
        """The time of the log's first event."""
        self.log_end: int = int(times.get("now", times["last"]))
        """The time of the log's last event that is not in the future: a request's default time."""
        if self.log_end < self.log_start:
            raise FormatError(
                f"the log of {folder} ends at {self.log_end}, before its start at "
                f"{self.log_start}: the folder was changed; make it again"
            )
        given = [Label.model_validate(label) for label in manifest["spec"]["labels"]]
        self._caps = {label.name: label.cap for label in given}
        types = {one["column"]: one["name"] for one in manifest["spec"]["event_features"]}
        self._typed = [
            (label, types[label.column]) for label in given if label.typed and label.column in types
        ]
        """Labels that follow from the type of an event, and the feature that holds it."""
        self._types = {name for _, name in self._typed}
        self._folder = folder

    @property
    def clock(self) -> bool:
        """Whether times are milliseconds since 1970; else they only order the events."""
        return self.encoder.clock

    @cached_property
    def main(self) -> str | None:
        """The first binary or positive label."""
        return next((n for n, label in self.labels.items() if label["kind"] != "duration"), None)

    def check(self, event: Event) -> None:
        """Refuse an event with names or values that the run does not have.

        Raises:
            UnknownError: the run has no label or feature of that name.
            DataError: a binary label is neither 0 nor 1, or the time is far from the log.
        """
        self.check_time(event.time)
        check_names("label", event.labels, self.labels)
        check_names("duration label", event.ratios, self.labels)
        # Histories do not contain impression features, but events of a log have them.
        known = {**self.features, **self.impressions.features}
        check_names("event feature", event.features, known)
        for name, value in event.labels.items():
            if self.labels[name]["kind"] == "binary" and value not in (0, 1):
                raise DataError(f"the label {name!r} is {value!r}, expected 0 or 1")

    def check_time(self, time: int) -> None:
        """Refuse a time that is years from the log: it has another unit, or its clock is wrong.

        Raises:
            DataError: the log has a clock, and the time is more than ``FAR_MS`` before its first
                event, or after both its last one and the present.
        """
        if not self.clock:
            return
        low = self.log_start - FAR_MS
        high = max(self.log_end, round(clock.time() * 1000)) + FAR_MS
        if low <= time <= high:
            return
        meant = [
            f"{time * factor // divisor} (given in {unit})"
            for unit, factor, divisor in (
                ("seconds", 1000, 1), ("microseconds", 1, 1000), ("nanoseconds", 1, 1_000_000)
            )
            if low <= time * factor // divisor <= high
        ]  # fmt: skip
        raise DataError(
            f"the time {time} is {iso(time)} in milliseconds since 1970, years off the log, which "
            f"runs from {iso(self.log_start)} to {iso(self.log_end)}"
            + (f"; did you mean {' or '.join(meant)}?" if meant else "")
        )

    def entries(self, history: Iterable[Any]) -> list[dict[str, Any]]:
        """The events of a request's history as mappings; DataError where one is not an event."""
        if isinstance(history, (str, bytes, Mapping)) or not isinstance(history, Iterable):
            raise DataError(
                f"the history is {history!r:.80}, expected a list of events: item ids, or mappings "
                "with an item"
            )
        return [_entry(entry, self.main) for entry in history]

    def given(self, entries: Sequence[Mapping[str, Any]], now: int | None) -> list[Event]:
        """Events of :meth:`entries`, in their order.

        Either all have a time or none has. Without times they are a minute apart (one step, where
        there is only an order) and end before ``now``; not given: the end of the log.
        """
        times = self._times([entry.get("time") for entry in entries], now)
        events = [
            event_of({"user": 0, "id": position, **entry, "time": int(time)})
            for position, (entry, time) in enumerate(zip(entries, times, strict=True))
        ]
        for event in events:
            self.check(event)
        return events

    def _times(self, given: list[Any], now: int | None) -> NDArray[np.int64]:
        known = [value is not None for value in given]
        if any(known) and not all(known):
            raise DataError(
                f"{len(known) - sum(known)} of {len(known)} events of the history have no time; "
                "give a time to all of them or to none"
            )
        if given and all(known):
            return np.array([milliseconds(value) for value in given], dtype=np.int64)
        n = len(given)
        if not self.clock:
            return np.arange(n, dtype=np.int64) + (0 if now is None else now - n)
        end = self.log_end if now is None else now
        return end - MINUTE_MS * np.arange(n, 0, -1, dtype=np.int64)

    def log(self, events: Sequence[Event], now: int | None = None) -> EventLog:
        """Events of one user as columns; those of one time stay in the order given.

        Values that this run does not know, such as a label of another run, are left out.

        Args:
            events: in any order.
            now: only events before it count.
        """
        n = len(events)
        events = list(map(self.completed, events)) if self._typed else events
        codes: dict[int | str, int] = {}
        columns: dict[str, NDArray[Any]] = {
            "item": np.array([codes.setdefault(e.item, len(codes)) for e in events], np.int32),
            "time": np.array([event.time for event in events], dtype=np.int64),
        }
        for name, label in self.labels.items():
            duration = label["kind"] == "duration"
            columns[f"label_{name}"] = np.full(n, np.nan if duration else 0, np.float32)
            if duration:
                columns[f"ratio_{name}"] = np.full(n, np.nan, np.float32)
        for name in self.features:
            columns[f"feature_{name}"] = np.zeros(n, np.int32)
        for position, event in enumerate(events):
            for name, value in event.labels.items():
                if name in self.labels:
                    columns[f"label_{name}"][position] = self._label(name, value)
            for name, value in event.ratios.items():
                if f"ratio_{name}" in columns:
                    columns[f"ratio_{name}"][position] = min(value, FLOAT32)
            for name, feature in event.features.items():
                if name in self.features:
                    columns[f"feature_{name}"][position] = self._code(self.features[name], feature)
        order = np.argsort(columns["time"], kind="stable")
        if now is not None:
            order = order[columns["time"][order] < now]
        retained = order
        if self.keep is not None:
            retained = order[columns[f"label_{self.keep}"][order] > 0]
        ids = np.empty(len(codes), dtype=object)
        ids[:] = list(codes)
        return EventLog(columns, retained, order, ids)

    def completed(self, event: Event) -> Event:
        """An event with the labels that follow from its type, where it has no such label; and with
        the type that follows from its label, where only one has it."""
        labels, features = dict(event.labels), dict(event.features)
        for label, feature in self._typed:
            if label.name not in labels and feature in features:
                weight = label.weight_of(category(features[feature]))
                labels[label.name] = float(weight > 0) if label.kind == "binary" else weight
            elif labels.get(label.name) and feature not in features and len(label.values) == 1:
                features[feature] = label.values[0]
        return replace(event, labels=labels, features=features)

    def event_types(self) -> list[dict[str, Any]]:
        """The types of events that clients may post, the most frequent ones of a log of types
        first: ``name``, ``labels`` and ``features`` of such an event, ``main``: whether it has the
        main label, and ``good``: whether any label of it is not 0.

        They are the values of each feature that holds types, at most :data:`OFFERED`; each other
        binary label; and an event without the main one.
        """
        found: list[dict[str, Any]] = []
        for feature in dict.fromkeys(name for _, name in self._typed):
            table = read_vocabulary(self._folder, f"event_{feature}")
            for value in table["value"].head(OFFERED).to_list():
                labels = {
                    label.name: float(label.weight_of(value) > 0)
                    if label.kind == "binary"
                    else label.weight_of(value)
                    for label, of in self._typed
                    if of == feature
                }
                found.append({"name": value, "labels": labels, "features": {feature: value}})
        typed = {label.name for label, _ in self._typed}
        for name, label in self.labels.items():
            if label["kind"] != "duration" and name not in typed:
                found.append({"name": name, "labels": {name: 1.0}, "features": {}})
        if self.main is not None and self.labels[self.main]["kind"] == "binary":
            without = {"name": f"no {self.main}", "labels": {self.main: 0.0}, "features": {}}
            found += [] if self.main in typed else [without]
        for one in found:
            one["main"] = self.main in one["labels"]
            one["good"] = any(one["labels"].values())
        return found

    def outcomes(self, columns: Columns, rows: EventRows) -> list[tuple[str, ...]]:
        """Names of the outcomes of events: labels that they have, and values of categorical event
        features that are not known before, such as the type of an event.

        Args:
            columns: of events.
            rows: the events, i64 [n].
        """
        named: list[list[str]] = [[] for _ in rows]
        typed = [label.name for label, _ in self._typed]
        for name, label in self.labels.items():
            if label["kind"] != "duration" and name not in typed:
                for position in np.flatnonzero(columns[f"label_{name}"][rows] > 0).tolist():
                    named[position].append(name)
        for name, feature in self.features.items():
            if feature["kind"] == "categorical" and feature["when"] == "outcome":
                values = {code: value for value, code in self._vocabulary(name).items()}
                for position, code in enumerate(columns[f"feature_{name}"][rows].tolist()):
                    if code in values:
                        named[position].append(values[code])
        return list(map(tuple, named))

    def retained(self, event: Event) -> bool:
        """Whether histories hold the event."""
        return self.keep is None or self.completed(event).labels.get(self.keep, 0) > 0

    def context(self, given: Mapping[str, Any]) -> dict[str, NDArray[np.int64]]:
        """Columns of one request's context; unknown where not given.

        Raises:
            UnknownError: there is no context feature of that name.
        """
        check_names("context feature", given, self.context_features)
        return {
            f"feature_{name}": np.array([self._code(feature, given.get(name))])
            for name, feature in self.context_features.items()
        }

    def shown(self, given: Sequence[Mapping[str, Any]]) -> Impressions:
        """Impression features [n, F] of n candidates; unknown where not given.

        Args:
            given: of each candidate, impression feature -> value.

        Raises:
            UnknownError: there is no impression feature of that name.
            DataError: a ranking cannot know the feature, because it decides it.
        """
        encoder = self.impressions
        columns: dict[str, NDArray[Any]] = {}
        for column, feature in zip(encoder.columns, encoder.features.values(), strict=True):
            numeric = feature["kind"] == "numeric"
            columns[column] = np.full(len(given), np.nan if numeric else 0, np.float32)
            if not numeric:
                columns[column] = columns[column].astype(np.int32)
        for row, values in enumerate(given):
            if not values.keys() <= encoder.features.keys():
                check_names("impression feature", values, encoder.features)
            for name, value in values.items():
                feature = encoder.features[name]
                if feature["bias"]:
                    raise DataError(
                        f"a candidate has a value of {name!r}, which is a bias: a ranking decides "
                        "it and cannot know it; leave it out"
                    )
                columns[f"impression_{name}"][row] = (
                    _finite(value) if feature["kind"] == "numeric" else self._code(feature, value)
                )
        return encoder.encode(columns)

    def _label(self, name: str, value: float) -> float:
        if self.labels[name]["kind"] == "binary":
            return float(value == 1)
        cap = self._caps.get(name)
        return min(value, FLOAT32 if cap is None else cap)

    def _code(self, feature: Mapping[str, Any], value: Any) -> int:
        """Code of an event feature's value; 0: unknown."""
        if value is None:
            return 0
        if feature["kind"] == "numeric":
            given = _finite(value)
            if np.isnan(given):
                return 0
            return 1 + int(np.searchsorted(feature["edges"], given, side="right"))
        text = category(value)
        if text is None:
            return 0
        known = self._vocabulary(feature["name"])
        if text not in known and feature["name"] in self._types:
            text = text.lower()
        return known.get(text, 0)

    def _vocabulary(self, feature: str) -> dict[str, int]:
        if feature not in self._vocabularies:
            table = read_vocabulary(self._folder, f"event_{feature}")
            known = dict(table.select("value", "code").iter_rows())
            if feature in self._types:  # in any case
                known = {value.lower(): code for value, code in known.items()} | known
            self._vocabularies[feature] = known
        return self._vocabularies[feature]

    @cached_property
    def _vocabularies(self) -> dict[str, dict[str, int]]:
        return {}


def _finite(value: Any) -> np.float32:
    """A number as float32; NaN where it is missing or not finite."""
    with np.errstate(over="ignore"):
        found = np.float32(np.nan if value is None else number(value))
    return found if np.isfinite(found) else np.float32(np.nan)


def _entry(entry: Any, main: str | None) -> dict[str, Any]:
    """An event of a request's history, as a mapping."""
    if not isinstance(entry, Mapping):
        # An id alone is an item that the user liked; a mapping without labels is not.
        return {"item": entry, "labels": {} if main is None else {main: 1}}
    known = ("item", "time", "labels", "ratios", "features")
    wrong = [name for name in entry if name not in known]
    if wrong or "item" not in entry:
        raise DataError(
            f"an event of the history has {', '.join(map(repr, entry)) or 'nothing'}; expected "
            f"item and any of {', '.join(known[1:])}"
            + (did_you_mean(wrong[0], known) if wrong else "")
        )
    return {name: value for name, value in entry.items() if value is not None}
