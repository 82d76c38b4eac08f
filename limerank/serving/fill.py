"""Copy a prepared log's events into an event store, so that a server knows its users."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.canonical import external_id, id_texts, json_value
from limerank.data.coverage import TableCoverage, cover_table
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.encoding import Encoding, read_vocabulary
from limerank.data.events import EVENT_ID_BYTES, Event, content_id, content_of, event_of
from limerank.data.folder import LOG, open_array
from limerank.data.sources import find_files, read_table
from limerank.data.spec import Spec, Table
from limerank.errors import DataError, SpecError, StorageError
from limerank.progress import Bar
from limerank.serving.stores import EventStore, Outcome
from limerank.storage.uris import as_given, is_uri, joined, parse_uri
from limerank.validation import validate

EVENTS = 8192
"""Events that are made durable together, at least; the last ones are fewer."""


class Filled(NamedTuple):
    """The result of :func:`fill`.

    Attributes:
        users, events: numbers of users and events in the dataset.
        accepted: events that the store did not have before.
        expired: events that a bounded store refused, since it has later ones.
        features: users whose features were written.
        note: why users have no features although the description names a user table; else empty.
        table: how the user table fits the log; None: the table was not read.
    """

    users: int
    events: int
    accepted: int
    expired: int
    features: int
    note: str
    table: TableCoverage | None = None


def fill(
    store: EventStore,
    data: Dataset | str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> Filled:
    """Copy all events of a dataset into a store, and the users' features from its user table.

    Labels and event features are those of the log. (A dataset of an early version gives numbers of
    the same bucket.) An event that the store has already, from any source, is not added again:
    events are equal if their users, items, times and labels are
    (:func:`limerank.data.events.content_of`), and each is added as often as the log contains it. So
    the next day's log, or a log without its oldest days, adds the new events alone.

    Args:
        store: the event store.
        data: a prepared dataset.
        base: the folder, or its URI, that the description's paths are relative to, for the user
            table. When not given, the table is searched where it was when the dataset was prepared.
        quiet: show no progress.

    Raises:
        DataError: the user table cannot be read, or has an id twice.
    """
    dataset = data if isinstance(data, Dataset) else Dataset(data)
    table, note = _user_table(dataset, base)
    users = None if table is None else _read_users(*table)
    count, outcomes = len(dataset.events["item"]), Counter[Outcome]()
    with Bar("filling", total=count, unit="events", quiet=quiet) as bar:
        waiting: list[Event] = []
        for user, events in _events(dataset):
            waiting += _new(store, user, events, dataset)
            if len(waiting) >= EVENTS:
                outcomes.update(store.append(waiting))
                waiting = []
            bar.advance(len(events))
        if waiting:
            outcomes.update(store.append(waiting))
    filled, fit = 0, None
    if table is not None and users is not None:
        frame, ids = users
        fit = _coverage(dataset, table[0], frame, ids)
        for user, features in _features_of_users(dataset, table[0], frame, ids):
            store.set_features(user, features)
            filled += 1
    return Filled(
        len(dataset.user_ids),
        count,
        outcomes[Outcome.ACCEPTED],
        outcomes[Outcome.EXPIRED],
        filled,
        note,
        fit,
    )


def _new(store: EventStore, user: Any, events: list[Event], dataset: Dataset) -> list[Event]:
    """Events that the store lacks, as often as it lacks them."""
    held = store.held(user) if store.version(user) is not None else None
    if held is None:
        return events
    caps = {
        label["name"]: label["cap"]
        for label in dataset.manifest["spec"]["labels"]
        if label["cap"] is not None
    }
    known: dict[bytes, list[bytes]] = {}
    for event in held.events:
        known.setdefault(content_of(event, caps), []).append(event.id)
    ids: list[bytes | None] = []
    for event in events:
        same = known.get(content_of(event))
        ids.append(same.pop(0) if same else None)
    fresh: list[Event] = []
    at = 0
    for _, group in groupby(events, lambda event: event.time):
        tied = list(group)
        fresh += _among(tied, ids[at : at + len(tied)])
        at += len(tied)
    return fresh


def _among(tied: list[Event], held: list[bytes | None]) -> list[Event]:
    """The new events of one time, with ids that sort between those of the stored ones.

    Args:
        tied: all events of this time, in the log's order.
        held: the id of each in the store; None: the event is new.
    """
    if all(id is None for id in held):
        return tied
    fresh: list[Event] = []
    low = b""
    for new, run in groupby(range(len(tied)), lambda index: held[index] is None):
        positions = list(run)
        if not new:
            low = max(low, *(id for index in positions if (id := held[index]) is not None))
            continue
        high = next((id for id in held[positions[-1] :] if id is not None and id > low), None)
        ids = [tied[index].id for index in positions]
        if ids[0] <= low or (high is not None and ids[-1] >= high):
            ids = [_between(low, high, content_id(tied[index], index)[1:]) for index in positions]
        fresh += [replace(tied[index], id=id) for index, id in zip(positions, ids, strict=True)]
    return fresh


def _between(low: bytes, high: bytes | None, own: bytes) -> bytes:
    """An id that sorts after ``low`` and before ``high``, as far as its length allows, and ends
    with ``own``."""
    start = low or b"\0"
    if high is not None and high.startswith(start):
        rest = high[len(start) :]
        start += bytes(len(rest) - len(rest.lstrip(b"\0")) + 1)
    return (start + own)[-EVENT_ID_BYTES:]


def _events(dataset: Dataset) -> Iterator[tuple[int | str, list[Event]]]:
    """Each user's events in the log's order; among equal times their ids have that order."""
    columns, features = dataset.events, _features(dataset)
    given = {name: _Given(dataset, name, values) for name, values in features.items()}
    ratios = [name for name in dataset.tasks if f"ratio_{name}" in columns]
    for user, (start, end) in enumerate(
        zip(dataset.event_offsets[:-1].tolist(), dataset.event_offsets[1:].tolist(), strict=True)
    ):
        part = slice(start, end)
        items = dataset.item_ids[columns["item"][part]].tolist()
        times = columns["time"][part].tolist()
        labels = {name: columns[f"label_{name}"][part].tolist() for name in dataset.tasks}
        shares = {name: columns[f"ratio_{name}"][part].tolist() for name in ratios}
        values = {name: of(start, end) for name, of in given.items()}
        id = external_id("user", dataset.user_ids[user])
        events: list[Event] = []
        for index in range(end - start):
            event = event_of(
                {
                    "user": id,
                    "item": items[index],
                    "time": times[index],
                    "labels": _known({name: of[index] for name, of in labels.items()}),
                    "ratios": _known({name: of[index] for name, of in shares.items()}),
                    "features": {
                        name: of[index] for name, of in values.items() if of[index] is not None
                    },
                }
            )
            events.append(event)
        yield id, _in_order(events)


def _in_order(events: list[Event]) -> list[Event]:
    """Events of one user, sorted by time; the ids of events of one time have the same order."""
    found: list[Event] = []
    for _, group in groupby(events, lambda event: event.time):
        tied = list(group)
        if len(tied) > 1:
            tied = [
                replace(event, id=content_id(event, position))
                for position, event in enumerate(tied)
            ]
        found += tied
    return found


def _known(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not math.isnan(value)}


class _Given:
    """The values of an event feature as the log has them; None: missing.

    A dataset of an early version holds codes alone: a number is then one of its bucket, and a value
    without a code is missing.
    """

    def __init__(self, dataset: Dataset, name: str, values: list[Any]) -> None:
        """``values`` are those of the codes."""
        self._codes, self._values = dataset.events[f"feature_{name}"], values
        log = dataset.path / LOG
        self._numbers: NDArray[Any] | None = None
        self._rows, self._unknown = np.zeros(0, np.int64), self._codes
        self._texts: dict[int, str] = {}
        if (log / f"feature_{name}.npy").exists():
            self._numbers = open_array(log / f"feature_{name}.npy")
        elif (log / f"unknown_{name}.parquet").exists():
            self._rows = open_array(log / f"unknown_{name}_row.npy")
            self._unknown = open_array(log / f"unknown_{name}_code.npy")
            self._texts = dict(pl.read_parquet(log / f"unknown_{name}.parquet").iter_rows())

    def __call__(self, start: int, end: int) -> list[Any]:
        """The values of the events from ``start`` to ``end``."""
        if self._numbers is not None:
            numbers = self._numbers[start:end].tolist()
            return [one if math.isfinite(one) else None for one in numbers]
        values = [self._values[code] for code in self._codes[start:end].tolist()]
        first, last = np.searchsorted(self._rows, [start, end]).tolist()
        for row, code in zip(
            self._rows[first:last].tolist(), self._unknown[first:last].tolist(), strict=True
        ):
            values[row - start] = self._texts[code]
        return values


def _features(dataset: Dataset) -> dict[str, list[Any]]:
    """Event feature -> the value of each code; None for code 0, unknown."""
    found: dict[str, list[Any]] = {}
    for feature in dataset.manifest["encoding"]["event_features"]:
        name = feature["name"]
        if feature["kind"] == "numeric":
            edges = feature["edges"]
            below = [np.nextafter(np.float32(edges[0]), np.float32(-np.inf))] if edges else [0.0]
            found[name] = [None, *map(float, below), *map(float, edges)]
        else:
            table = read_vocabulary(dataset.path, f"event_{name}")
            values: list[Any] = [None] * (int(table["code"].max() or 0) + 1)  # type: ignore[arg-type]
            for value, code in table.select("value", "code").iter_rows():
                values[code] = value
            found[name] = values
    return found


def _user_table(
    dataset: Dataset, base: str | os.PathLike[str] | None
) -> tuple[tuple[Table, Path] | None, str]:
    """The user table and the folder that its paths are relative to, or why there is none."""
    spec = validate(Spec, dataset.manifest["spec"], str(dataset.path / "dataset.json"))
    if spec.users is None or not spec.users.features:
        return None, ""
    if not spec.users.files:
        return None, (
            "users have no features in the store: the user table was passed to prepare as a frame; "
            "write it to a file and name the file in the description"
        )
    if base is not None and is_uri(base):
        folder = parse_uri(as_given(base))
        files = tuple(joined(folder, name) for name in spec.users.files)
        return (spec.users.model_copy(update={"files": files}), Path()), ""
    if base is not None:
        return (spec.users, Path(base)), ""
    try:
        users = load_spec(dataset.path / "spec.toml").users
        if users is not None and users.files:
            find_files(users, dataset.path)
            return (users, dataset.path), ""
        note = f"{dataset.path / 'spec.toml'} names no files of a user table"
    except (SpecError, DataError, StorageError) as error:
        note = str(error)
    return None, (
        f"users have no features in the store: {note}; give the folder of the dataset description"
    )


def item_file(dataset: Dataset) -> Path | None:
    """The local file of a dataset's item table; None: it has none, or several, or it is not where
    it was when the dataset was prepared."""
    try:
        items = load_spec(dataset.path / "spec.toml").items
        found = find_files(items, dataset.path) if items is not None and items.files else []
    except (SpecError, DataError, StorageError):
        return None
    files = [Path(os.path.normpath(one)) for one in found if isinstance(one, Path)]
    return files[0] if len(files) == len(found) == 1 else None


def _read_users(table: Table, base: Path) -> tuple[pl.DataFrame, pl.Series]:
    """The user table, and its ids as text."""
    frame, _ = read_table(table, base, table.read)
    ids = id_texts(frame[table.id])
    if ids.drop_nulls().is_duplicated().any():
        twice = ids.filter(ids.is_duplicated() & ids.is_not_null())[0]
        raise DataError(f"the user table {', '.join(table.files)} has the id {twice!r} twice")
    return frame, ids


def _coverage(dataset: Dataset, table: Table, frame: pl.DataFrame, ids: pl.Series) -> TableCoverage:
    encoding = dataset.manifest["encoding"]["users"]
    vocabularies = {
        one.name: read_vocabulary(dataset.path, f"user_{one.name}")
        for one in table.features
        if one.kind == "categorical"
    }
    users = pl.Series("id", [str(id) for id in dataset.user_ids.tolist()], dtype=pl.String)
    learned = Encoding(encoding, vocabularies)
    return cover_table("user", users, ids, frame, table.features, learned)


def _features_of_users(
    dataset: Dataset, table: Table, frame: pl.DataFrame, ids: pl.Series
) -> Iterator[tuple[Any, dict[str, Any]]]:
    held: NDArray[Any] = dataset.user_ids
    wanted = {str(external_id("user", id)) for id in held.tolist()}
    columns = list(dict.fromkeys(feature.column for feature in table.features))
    for id, row in zip(ids, frame.iter_rows(named=True), strict=True):
        if id in wanted:
            yield id, {name: json_value(row[name]) for name in columns}
