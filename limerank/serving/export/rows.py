"""The rows of an exported log: one user at a time.

Two exports of adjacent times have the same rows as one export of both: a row belongs to the
time of its exposure, or of its event where it followed none, and both exports join with all that is
up to a window outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from limerank.data.attribution import attribute
from limerank.data.events import Event, Value
from limerank.data.exposures import Exposure
from limerank.serving.stores import EventStore, Id

Source = Literal["shown", "event"]


@dataclass(frozen=True)
class Row:
    """One row of the log.

    Attributes:
        user, item: external ids.
        time: of the exposure, or of the event.
        source: "shown": an item of an exposure; "event": an event that followed none.
        ranking, arm, position, value, team: of the exposure; None where there is none.
        labels, ratios, features: by name. Of a shown item: the greatest value of each label, and
            the latest of each feature, over the events that followed.
        outcomes: the number of events that followed.
    """

    user: Id
    item: Id
    time: int
    source: Source
    ranking: str | None = None
    arm: str | None = None
    position: int | None = None
    value: float | None = None
    team: str | None = None
    labels: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    features: dict[str, Value] = field(default_factory=dict)
    outcomes: int = 0


def rows_of(
    store: EventStore, user: Id, since: int, until: int, window: int, *, shown: bool = True
) -> Iterator[Row]:
    """The rows of a user, those of one time in the order of the exposure.

    Args:
        store: the event store.
        user: external id.
        since, until: the time of the rows; the end is excluded.
        window: of the attribution.
        shown: whether exposures become rows; otherwise each event is one.
    """
    return rows_of_user(
        store.exposures(user, since - window, until + window),
        store.between(user, since - window, until + window),
        window,
        lambda one: since <= one.time < until,
        shown=shown,
    )


def rows_of_user(
    exposures: Sequence[Exposure],
    events: Sequence[Event],
    window: int,
    belongs: Callable[[Event | Exposure], bool],
    *,
    shown: bool = True,
) -> Iterator[Row]:
    """The rows of one user's exposures and events that belong to a log; the others only decide
    which exposure an event followed.

    Args:
        exposures, events: of the user, oldest first.
        window: of the attribution.
        belongs: whether an exposure, or an event that followed none, is a row of this log.
        shown: whether exposures become rows; otherwise each event is one.
    """
    found = attribute(exposures, events, window)
    if not shown:
        named = {id(one): key[0] for key, of in found.outcomes.items() for one in of}
        arms = {one.ranking: one.arm for one in exposures}
        for event in events:
            if belongs(event):
                ranking = named.get(id(event))
                yield _event(event, ranking, None if ranking is None else arms[ranking])
        return
    for exposure in exposures:
        if belongs(exposure):
            for rank, item in enumerate(exposure.items):
                yield _shown(exposure, rank, found.outcomes.get((exposure.ranking, item), ()))
    for event in found.others:
        if belongs(event):
            yield _event(event, event.ranking or None, None)


def _event(event: Event, ranking: str | None, arm: str | None) -> Row:
    return Row(
        event.user,
        event.item,
        event.time,
        "event",
        ranking=ranking,
        arm=arm,
        labels=dict(event.labels),
        ratios=dict(event.ratios),
        features=dict(event.features),
        outcomes=1,
    )


def _shown(exposure: Exposure, rank: int, outcomes: Sequence[Event]) -> Row:
    labels: dict[str, float] = {}
    ratios: dict[str, float] = {}
    features: dict[str, Value] = {}
    for event in outcomes:
        features |= event.features
        for values, more in ((labels, event.labels), (ratios, event.ratios)):
            for name, value in more.items():
                values[name] = max(value, values.get(name, value))
    features |= exposure.context
    if exposure.features:
        features |= exposure.features[rank]
    return Row(
        exposure.user,
        exposure.items[rank],
        exposure.time,
        "shown",
        ranking=exposure.ranking,
        arm=exposure.arm,
        position=exposure.positions[rank],
        value=_at(exposure.values, rank),
        team=_at(exposure.teams, rank),
        labels=labels,
        ratios=ratios,
        features=features,
        outcomes=len(outcomes),
    )


def _at(values: Sequence[Any], rank: int) -> Any:
    return values[rank] if values else None
