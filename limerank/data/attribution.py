"""Attribution: which exposure an event followed.

An event that names a ranking followed that ranking, if it showed the event's item at most a window
before the event, or after it, since clocks differ. Any other event followed the user's latest
ranking that showed its item at the event's time or up to a window before it. All other events
followed none: the user found the item elsewhere.

Exports, reports of experiments and live counts use this one rule. It depends on no exposure that is
more than a window from the event, so that logs of several days, joined day by day, equal the log of
all days.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from limerank.data.events import Event
from limerank.data.exposures import Exposure

WINDOW = 3600.0
"""Seconds after an exposure in which an event of a shown item counts as its outcome, unless another
window is chosen."""


class Attributed(NamedTuple):
    """Events of one user, by the exposures that they followed.

    Attributes:
        outcomes: (ranking, item) -> the events that followed, oldest first.
        others: the events that followed no exposure, oldest first.
    """

    outcomes: dict[tuple[str, int | str], list[Event]]
    others: list[Event]


def attribute(exposures: Sequence[Exposure], events: Sequence[Event], window: int) -> Attributed:
    """The exposures that the events of one user followed.

    Args:
        exposures: the user's exposures, oldest first.
        events: the user's events, oldest first.
        window: milliseconds from an exposure to an event, at most; of a log that has an order
            alone, its steps.
    """
    showing: dict[int | str, tuple[list[int], list[str]]] = {}
    shown_at: dict[tuple[str, int | str], int] = {}
    for one in exposures:
        for item in one.items:
            times, rankings = showing.setdefault(item, ([], []))
            times.append(one.time)
            rankings.append(one.ranking)
            shown_at[one.ranking, item] = one.time
    outcomes: dict[tuple[str, int | str], list[Event]] = {}
    others: list[Event] = []
    for event in events:
        found = (event.ranking, event.item)
        at = shown_at.get(found)
        if at is None or abs(event.time - at) > window:
            times, rankings = showing.get(event.item, ([], []))
            latest = bisect_right(times, event.time) - 1
            if latest < 0 or event.time - times[latest] > window:
                others.append(event)
                continue
            found = (rankings[latest], event.item)
        outcomes.setdefault(found, []).append(event)
    return Attributed(outcomes, others)
