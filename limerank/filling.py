"""A prepared log's events into an event store: a server then knows its users at once."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.dataset import Dataset
from limerank.errors import DataError
from limerank.events import Event, event_of
from limerank.progress import Bar
from limerank.schema import Spec, validate
from limerank.sources import read_table
from limerank.stores import EventStore

EVENTS = 8192
"""Events that are made durable together, about."""


def fill(
    store: EventStore,
    data: Dataset | str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> dict[str, int]:
    """Put all events of a dataset into a store, and what its user table says of the users.

    Labels and categories are what the log said; numeric event features come back as a number of the
    same bucket. Filling again changes nothing: each event is known by its place in the log.

    Args:
        store: where to.
        data: a prepared dataset.
        base: the folder that the description's paths begin in, to read the user table; without it
            users have no features.
        quiet: show no progress.

    Returns:
        ``users``, ``events`` and ``accepted`` ones.

    Raises:
        DataError: the user table cannot be read, or has an id twice.
    """
    dataset = data if isinstance(data, Dataset) else Dataset(data)
    count, accepted = len(dataset.events["item"]), 0
    with Bar("filling", total=count, unit="events", quiet=quiet) as bar:
        waiting: list[Event] = []
        for event in _events(dataset):
            waiting.append(event)
            if len(waiting) == EVENTS:
                accepted += _kept(store, waiting)
                bar.advance(len(waiting))
                waiting = []
        accepted += _kept(store, waiting)
        bar.advance(len(waiting))
    if base is not None:
        for user, features in _people(dataset, Path(base)):
            store.set_features(user, features)
    return {"users": len(dataset.user_ids), "events": count, "accepted": accepted}


def _kept(store: EventStore, events: list[Event]) -> int:
    return sum(outcome == "accepted" for outcome in store.append(events)) if events else 0


def _events(dataset: Dataset) -> Iterator[Event]:
    columns, features = dataset.events, _features(dataset)
    ratios = [name for name in dataset.tasks if f"ratio_{name}" in columns]
    for user, (start, end) in enumerate(
        zip(dataset.event_offsets[:-1].tolist(), dataset.event_offsets[1:].tolist(), strict=True)
    ):
        part = slice(start, end)
        items = dataset.item_ids[columns["item"][part]].tolist()
        times = columns["time"][part].tolist()
        labels = {name: columns[f"label_{name}"][part].tolist() for name in dataset.tasks}
        shares = {name: columns[f"ratio_{name}"][part].tolist() for name in ratios}
        codes = {name: columns[f"feature_{name}"][part].tolist() for name in features}
        id = dataset.user_ids[user]
        for place in range(end - start):
            yield event_of(
                {
                    "user": id,
                    "item": items[place],
                    "time": times[place],
                    "labels": _known({name: of[place] for name, of in labels.items()}),
                    "ratios": _known({name: of[place] for name, of in shares.items()}),
                    "features": {
                        name: features[name][of[place]] for name, of in codes.items() if of[place]
                    },
                    "id": f"{start + place:012d}",
                }
            )


def _known(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _features(dataset: Dataset) -> dict[str, list[Any]]:
    """Event feature -> the value of each code; that of 0, unknown, is None."""
    found: dict[str, list[Any]] = {}
    for feature in dataset.manifest["encoding"]["event_features"]:
        name = feature["name"]
        if feature["kind"] == "numeric":
            edges = feature["edges"]
            below = [np.nextafter(np.float32(edges[0]), np.float32(-np.inf))] if edges else [0.0]
            found[name] = [None, *map(float, below), *map(float, edges)]
        else:
            table = pl.read_parquet(dataset.path / "vocab" / f"event_{name}.parquet")
            values: list[Any] = [None] * (int(table["code"].max() or 0) + 1)  # type: ignore[arg-type]
            for value, code in table.select("value", "code").iter_rows():
                values[code] = value
            found[name] = values
    return found


def _people(dataset: Dataset, base: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    spec = validate(Spec, dataset.manifest["spec"], str(dataset.path / "dataset.json"))
    if spec.users is None:
        return
    frame, _ = read_table(spec.users, base, spec.users.read)
    if frame[spec.users.id].is_duplicated().any():
        raise DataError(f"the user table {', '.join(spec.users.files)} has an id twice")
    held: NDArray[Any] = dataset.user_ids
    wanted = {str(id) for id in held.tolist()}
    columns = list(dict.fromkeys(feature.column for feature in spec.users.features))
    for row in frame.iter_rows(named=True):
        if str(row[spec.users.id]) in wanted:
            yield row[spec.users.id], {name: row[name] for name in columns}
