"""Which split each event is in: by time, by position, the last requests, or a column of the log;
with users and items held out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from limerank.data.canonical import HOUR_MS
from limerank.data.folder import SPLITS
from limerank.data.pipeline import ahead
from limerank.data.prepare.gaps import Grouping
from limerank.data.prepare.holdout import FirstSeen, held_out_users, uniform
from limerank.data.prepare.ids import CodeMap
from limerank.data.prepare.partition import values_at_ranks
from limerank.data.prepare.requests import Boundaries
from limerank.data.prepare.sorting import Block, SortedEvents
from limerank.data.protocol import Split
from limerank.data.spec import Spec
from limerank.errors import DataError

TEST = SPLITS.index("test")


class Splitter:
    """The splits of a log's events.

    Attributes:
        cuts: the times at which validation and testing begin; None: the split is not by time.
        grouping: which impressions without a request id share one.
        wanted: the columns of a block that it reads.
        some_hidden: whether some events are never candidates.
    """

    def __init__(self, spec: Spec, events: SortedEvents, table_limit: int) -> None:
        """Find the cuts, and choose the users and items that training never sees.

        Args:
            table_limit: codes in a smaller range are mapped by tables.
        """
        self._split, self._seeds = spec.split, events.seeds[events.rows]
        self._sessions = spec.requests_by == "session"
        self.grouping: Grouping = events.gaps.grouping(spec.requests, spec.clock, self._sessions)
        self._weights = [f"label_{label.name}" for label in spec.labels] if self._sessions else []
        self.cuts = _cuts(spec, events, self._weights)
        split = spec.split
        self.wanted = ["time", "shown", "item"]
        self.wanted += ["request"] if events.requests_given else []
        self.wanted += ["split"] if split.column is not None else []
        self.wanted += self._weights
        self._held_users: NDArray[np.bool_] | None = None
        self._held_items: CodeMap | None = None
        if split.held_out_users:
            self._held_users = held_out_users(self._seeds, split.held_out_users)
        if split.held_out_items:
            seen = FirstSeen()
            for block in ahead(events.stream(["time", "item"])):
                seen.add(block.columns["item"], block.columns["time"])
            codes = np.sort(seen.newest(split.held_out_items))
            self._held_items = CodeMap(codes, np.ones(len(codes), np.int32), table_limit)
        self.some_hidden = events.some_hidden or self._held_items is not None or bool(self._weights)

    def splits_of(self, block: Block) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The split of each event of a block, and whether its item is held out.

        Impressions of held-out items before the test split are hidden in ``block``, and so are
        sessions without a positive, where a request is a session.
        """
        if self._weights:
            positive = _positive(block, self._weights)
            none = Boundaries(block, self.grouping).without(positive)
            block.columns["shown"] = block.columns["shown"] & ~none
        splits = self._by_rule(block)
        if self._held_users is not None:
            users = slice(block.first_user, block.first_user + len(block.counts))
            splits[np.repeat(self._held_users[users], block.counts)] = SPLITS.index("held-out")
        held = np.zeros(block.size, bool)
        if self._held_items is not None:
            held = self._held_items(block.columns["item"]) > 0
            learned = splits < TEST
            block.columns["shown"] = block.columns["shown"] & ~(held & learned)
        return splits, held

    def _by_rule(self, block: Block) -> NDArray[np.uint8]:
        """The split of each event, history-only events included."""
        if self.cuts is not None:
            time = block.columns["time"]
            if self._weights:  # a session is in the split in which it begins
                time = time[Boundaries(block, self.grouping).begins()]
            return (time >= self.cuts[0]).view(np.uint8) + (time >= self.cuts[1]).view(np.uint8)
        if self._split.column is not None:
            given = block.columns["split"]
            return _of_next(given, given < len(SPLITS), block)
        boundaries = Boundaries(block, self.grouping)
        starts = np.cumsum(block.counts) - block.counts
        begun = np.cumsum(boundaries.units)
        number = begun - np.repeat(begun[starts] - boundaries.units[starts], block.counts) - 1
        totals = np.add.reduceat(boundaries.units.astype(np.int64), starts)
        users = slice(block.first_user, block.first_user + len(block.counts))
        first, second = self._borders(totals, self._seeds[users])
        splits = (number >= np.repeat(first, block.counts)).view(np.uint8) + (
            number >= np.repeat(second, block.counts)
        ).view(np.uint8)
        return _of_next(splits, block.columns["shown"], block)

    def _borders(
        self, totals: NDArray[np.int64], seeds: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many requests of each user precede the validation and the test split.

        Args:
            totals: requests of each user.
            seeds: of the users.
        """
        split = self._split
        if split.leave_last is not None:
            enough = totals > 2 * split.leave_last
            first = np.where(enough, totals - 2 * split.leave_last, totals)
            return first, np.where(enough, totals - split.leave_last, totals)
        shares = [share * totals for share in split.shares]
        first, second = (np.floor(share + 1e-9).astype(np.int64) for share in shares)
        few = (first == 0) | (second == first) | (totals == second)
        by_chance = uniform(seeds)
        first, second = (
            np.where(few, np.floor(share + by_chance).astype(np.int64), at_least)
            for share, at_least in zip(shares, (first, second), strict=True)
        )
        return first, second


def _of_next(
    splits: NDArray[np.uint8], known: NDArray[np.bool_], block: Block
) -> NDArray[np.uint8]:
    """Splits of all events: those that are not known are in the split of the user's next event with
    a known one, and after the last one in the test split."""
    if known.all():
        return splits
    n = block.size
    following = np.minimum.accumulate(np.where(known, np.arange(n), n)[::-1])[::-1]
    ends = np.repeat(np.cumsum(block.counts), block.counts)
    found: NDArray[np.uint8] = np.where(
        following < ends, splits[np.minimum(following, n - 1)], TEST
    ).astype(np.uint8)
    return found


def _positive(block: Block, weights: list[str]) -> NDArray[np.bool_]:
    """Which events are positives, by the columns of their weights."""
    found: NDArray[np.bool_] = np.any([block.columns[name] > 0 for name in weights], 0)
    return found & block.columns["shown"]


def _cuts(spec: Spec, events: SortedEvents, weights: list[str]) -> list[int] | None:
    """The times at which validation and testing begin; None: the split is not by time.

    Args:
        spec, events: of the log.
        weights: columns of weights, where only events that have one count.
    """
    split = spec.split
    if split.cuts is not None:
        return list(split.cuts)
    if spec.split_rule != "time":
        return None
    if split.durations is not None:
        return _newest(split, *events.shown_range)

    def blocks() -> Iterator[NDArray[np.int64]]:
        for block in ahead(events.stream(["time", "shown", *weights])):
            times = block.columns["time"]
            if weights:
                yield times[_positive(block, weights)]
            else:
                yield times[block.columns["shown"]] if events.some_hidden else times

    total = sum(map(len, blocks())) if weights else events.shown_total
    ranks = [min(int(share * total + 1e-9), max(total - 1, 0)) for share in split.shares]
    first, last = events.shown_range
    return values_at_ranks(blocks, first, last, ranks)


def _newest(split: Split, first: int, last: int) -> list[int]:
    """The cuts of splits that are durations.

    Args:
        first, last: times of the first and the last impression.
    """
    assert split.durations is not None
    validation, test = split.durations
    test_from = last - test + 1
    cuts = [test_from - validation, test_from]
    if cuts[0] <= first:
        raise DataError(
            f"the log's impressions span {(last - first) / HOUR_MS:,.1f} hours; validation = "
            f"{split.validation!r} and test = {split.test!r} of [split] leave none for training. "
            "Give shorter durations, or shares, such as train = 0.8 and validation = 0.1"
        )
    return cuts
