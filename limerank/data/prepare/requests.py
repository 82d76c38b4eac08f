"""The requests of sorted events: which impressions share a history, and which stay in one split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limerank.data.prepare.checks import FIRST, NO_ID
from limerank.data.prepare.gaps import MOST_TOGETHER, Grouping
from limerank.data.prepare.partition import Array
from limerank.data.prepare.sorting import Block


@dataclass(frozen=True)
class Requests:
    """The requests of a block; rows are those of the block.

    Attributes:
        first: row of the first impression.
        count: impressions.
        end: row at which the history ends: only events strictly before the first impression.
        own_end: of each event the row at which a history of its own would end.
    """

    first: Array
    count: Array
    end: Array
    own_end: Array


class Boundaries:
    """Where requests begin in a block, before it is known which split an event is in.

    Attributes:
        new_user: which events are the first of their user.
        units: which impressions begin a unit that is never divided between splits: a request with
            an id, impressions that were shown at once, or a single impression.
    """

    def __init__(self, block: Block, grouping: Grouping) -> None:
        """``block`` has the columns time and shown, and request where a source has request ids."""
        columns, n = block.columns, block.size
        self._block, self._grouping = block, grouping
        self._shown = columns["shown"]
        time = columns["time"]
        self._step: NDArray[np.uint8] = columns.get("request", np.zeros(n, np.uint8))
        self.new_user = np.zeros(n, bool)
        self.new_user[np.cumsum(block.counts) - block.counts] = True
        self._free = self._step == NO_ID
        self._apart = self.new_user | (self._step == FIRST)
        self._apart[1:] |= self._free[1:] & ~self._free[:-1]
        page = np.ones(n, bool)
        if grouping.together is not None:
            page[1:] = (np.diff(time) > grouping.together) | ~self._shown[:-1]
        self._page = self._apart | (page & self._free)
        if grouping.session:
            self._page = self._session_starts()
        self.units = self._page & self._shown

    def _session_starts(self) -> NDArray[np.bool_]:
        """The first impression of each session; events that are not shown divide none."""
        rows = np.flatnonzero(self._shown)
        owner, free = np.cumsum(self.new_user)[rows], self._free[rows]
        first = self._step[rows] == FIRST
        first[:1] = True
        gap = np.inf if self._grouping.gap is None else self._grouping.gap
        late = np.diff(self._block.columns["time"][rows]) > gap
        first[1:] |= (np.diff(owner) != 0) | (free[1:] & (late | ~free[:-1]))
        starts = np.zeros(len(self._shown), bool)
        starts[rows] = first
        return starts

    def begins(self) -> NDArray[np.int64]:
        """The row at which each event's unit begins."""
        begins = np.where(self.units | self.new_user, np.arange(len(self.units)), 0)
        return np.maximum.accumulate(begins)

    def without(self, weights: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which impressions are in a unit none of whose events has a weight."""
        if not self.units.any():
            return self._shown
        unit = np.maximum(np.cumsum(self.units) - 1, 0)
        some = np.bincount(unit[weights & self._shown], minlength=int(unit[-1]) + 1) > 0
        return self._shown & ~some[unit]

    def requests(self, split: NDArray[np.uint8]) -> Requests:
        """The requests, where ``split`` has the split of each event."""
        n, shown, free = self._block.size, self._shown, self._free
        time = self._block.columns["time"]
        grouping = self._grouping
        begin = self._apart.copy()
        begin[1:] |= (split[1:] != split[:-1]) | ~shown[:-1]
        if grouping.gap is not None:
            begin[1:] |= (np.diff(time) > grouping.gap) & free[1:]
        begin &= shown
        starts = np.flatnonzero(begin)
        new_time = self.new_user.copy()
        new_time[1:] |= time[1:] != time[:-1]
        alone = np.maximum.accumulate(np.where(new_time, np.arange(n), 0))
        if len(starts) == 0:
            empty = np.zeros(0, np.int64)
            return Requests(empty, empty, empty, alone)
        # A hidden event ends a run, so that a run is all the shown rows up to the next beginning.
        run = np.cumsum(begin)
        position = np.arange(n) - starts[np.maximum(run, 1) - 1]
        position[run == 0] = 0
        first = np.flatnonzero(begin | (self._divided(begin, position) & shown & free))
        shown_before = np.concatenate([[0], np.cumsum(shown)])
        count = np.diff(np.append(shown_before[first], shown_before[-1]))
        end = alone[first]
        if grouping.session:  # events of other sources may divide one
            end = alone[self.begins()[first]]
        return Requests(first, count, end, alone)

    def _divided(self, begin: NDArray[np.bool_], position: Array) -> NDArray[np.bool_]:
        """At which events a run is divided because of its size; ``position``: within the run."""
        size = self._grouping.size
        if self._grouping.together is None:
            return (position % size == 0) & (position > 0)
        pages = np.flatnonzero((self._page | begin) & self._shown)
        part = position[pages] // size
        cut = np.zeros(len(position), bool)
        cut[pages[1:]] = part[1:] != part[:-1]
        # The impressions of a page are divided after a bound, though they have one history.
        within = np.arange(len(position)) - np.maximum.accumulate(
            np.where(begin | cut, np.arange(len(position)), 0)
        )
        return cut | ((within % MOST_TOGETHER == 0) & (within > 0))
