"""Which split each event is in: by time or by position, with users and items held out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from limerank.data.folder import SPLITS
from limerank.data.pipeline import ahead
from limerank.data.prepare.holdout import FirstSeen, held_out_users
from limerank.data.prepare.ids import CodeMap
from limerank.data.prepare.partition import values_at_ranks
from limerank.data.prepare.sorting import Block, SortedEvents
from limerank.data.spec import Spec


class Splitter:
    """The splits of a log's events.

    Attributes:
        cuts: the times at which validation and testing begin; None: the split is by position.
        some_hidden: whether some events are never candidates.
    """

    def __init__(self, spec: Spec, events: SortedEvents, table_limit: int) -> None:
        """Find the cuts, and choose the users and items that training never sees.

        Args:
            table_limit: codes in a smaller range are mapped by tables.
        """
        self._split = spec.split
        self.cuts = _cuts(spec, events)
        split = spec.split
        self._held_users: NDArray[np.bool_] | None = None
        self._held_items: CodeMap | None = None
        if split.held_out_users:
            self._held_users = held_out_users(events.keys, split.held_out_users)
        if split.held_out_items:
            seen = FirstSeen()
            for block in ahead(events.stream(["time", "item"])):
                seen.add(block.columns["item"], block.columns["time"])
            codes = np.sort(seen.newest(split.held_out_items))
            self._held_items = CodeMap(codes, np.ones(len(codes), np.int32), table_limit)
        self.some_hidden = events.some_hidden or self._held_items is not None

    def splits_of(self, block: Block) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The split of each event of a block, and whether its item is held out.

        Impressions of held-out items before the test split are hidden in ``block``.
        """
        splits = self._by_rule(block)
        if self._held_users is not None:
            users = slice(block.first_user, block.first_user + len(block.counts))
            splits[np.repeat(self._held_users[users], block.counts)] = SPLITS.index("held-out")
        held = np.zeros(block.size, bool)
        if self._held_items is not None:
            held = self._held_items(block.columns["item"]) > 0
            learned = splits < SPLITS.index("test")
            block.columns["shown"] = block.columns["shown"] & ~(held & learned)
        return splits, held

    def _by_rule(self, block: Block) -> NDArray[np.uint8]:
        """The split of each event by time or position, history-only events included."""
        if self.cuts is not None:
            time = block.columns["time"]
            return (time >= self.cuts[0]).view(np.uint8) + (time >= self.cuts[1]).view(np.uint8)
        split = self._split
        shown = block.columns["shown"]
        before = np.cumsum(shown) - shown
        starts = np.cumsum(block.counts) - block.counts
        before = before - np.repeat(before[starts], block.counts)
        totals = np.add.reduceat(shown.astype(np.int64), starts)
        first = np.floor(split.train * totals + 1e-9).astype(np.int64)
        second = np.floor((split.train + split.validation) * totals + 1e-9).astype(np.int64)
        return (before >= np.repeat(first, block.counts)).view(np.uint8) + (
            before >= np.repeat(second, block.counts)
        ).view(np.uint8)


def _cuts(spec: Spec, events: SortedEvents) -> list[int] | None:
    """The times at which validation and testing begin; None: they begin at positions."""
    split = spec.split
    if split.cuts is not None:
        return list(split.cuts)
    if split.by != "time":
        return None

    def blocks() -> Iterator[NDArray[np.int64]]:
        for block in ahead(events.stream(["time", "shown"])):
            times = block.columns["time"]
            yield times[block.columns["shown"]] if events.some_hidden else times

    ranks = [
        min(int(share * events.shown_total + 1e-9), events.shown_total - 1)
        for share in (split.train, split.train + split.validation)
    ]
    first, last = events.shown_range
    return values_at_ranks(blocks, first, last, ranks)
