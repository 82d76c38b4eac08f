"""The last reading of the events: codes, requests and the statistics of each split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.data.folder import SPLITS
from limerank.data.pipeline import in_order
from limerank.data.prepare.ids import CodeMap
from limerank.data.prepare.learning import Learned
from limerank.data.prepare.partition import Array, NpyWriter
from limerank.data.prepare.sorting import Block, SortedEvents
from limerank.data.prepare.splitting import Splitter
from limerank.data.prepare.spooling import Spooling
from limerank.data.prepare.summary import Stats
from limerank.data.spec import EventFeature, Spec
from limerank.progress import Bar


class EventWriter:
    """Writes the events and the requests of a dataset."""

    def __init__(
        self,
        spools: Spooling,
        events: SortedEvents,
        splitter: Splitter,
        learned: Learned,
        item_map: CodeMap,
        folder: Path,
        quiet: bool,
    ) -> None:
        """``item_map`` gives the rows of items, and ``folder`` is that of the dataset."""
        self._spec, self._spools, self._events = spools.spec, spools, events
        self._splitter, self._learned, self._item_map = splitter, learned, item_map
        self._folder, self._quiet = folder, quiet

    def write(self) -> Stats:
        """Write the columns of the events that are not written yet, and the requests.

        Returns:
            The dataset's statistics by split.
        """
        spec = self._spec
        dtypes: dict[str, Any] = {"events/item": np.int32}
        dtypes |= {
            f"events/{column_of(feature)}": np.float32
            if feature.kind == "numeric" and feature.when == "impression"
            else np.int32
            for feature in spec.event_features
        }
        dtypes |= {f"requests/{name}": np.int32 for name in ("user", "count")}
        dtypes |= {f"requests/{n}": np.int64 for n in ("first", "history_start", "history_end")}
        dtypes |= {"requests/split": np.uint8, "users/event_offsets": np.int64}
        if spec.history.keep is not None:
            dtypes["history/rows"] = np.int64
        writers = {
            name: NpyWriter(self._folder / f"{name}.npy", dtype) for name, dtype in dtypes.items()
        }
        writers["users/event_offsets"].append(np.zeros(1, np.int64))
        wanted = ["time", "shown", "item"] + [f"label_{label.name}" for label in spec.labels]
        wanted += ["request"] if self._spools.requests_given else []
        wanted += [f"feature_{feature.name}" for feature in spec.event_features]
        stats = Stats(
            labels={label.name: np.zeros(len(SPLITS)) for label in spec.labels},
            known={feature.name: 0 for feature in spec.event_features},
        )
        retained = 0
        with Bar("writing", total=self._events.total, unit="events", quiet=self._quiet) as bar:
            for size, arrays, sums in in_order(self._columns_of, self._events.stream(wanted)):
                if "history/rows" in arrays:
                    arrays["requests/history_start"] += retained
                    arrays["requests/history_end"] += retained
                    retained += len(arrays["history/rows"])
                for name, writer in writers.items():
                    writer.append(arrays[name])
                stats.add(sums)
                bar.advance(size)
        for writer in writers.values():
            writer.close()
        return stats

    def _columns_of(self, block: Block) -> tuple[int, dict[str, Array], Stats]:
        """The number of events of a block, its part of each array, and its statistics.

        (Positions in ``history/rows`` are those within the block's part of it.)
        """
        spec, columns = self._spec, block.columns
        arrays: dict[str, Array] = {
            "events/item": self._item_map(columns["item"]),
            "users/event_offsets": block.first_event + np.cumsum(block.counts),
        }
        for feature in spec.event_features:
            values = columns[f"feature_{feature.name}"]
            if feature.kind == "numeric" and feature.when == "impression":
                codes = np.where(np.isfinite(values), values, np.float32(np.nan))
            elif feature.kind == "numeric":
                edges = np.array(self._learned.feature_edges[feature.name], np.float32)
                above = np.searchsorted(edges, values, side="right")
                codes = np.where(np.isfinite(values), above + 1, 0)
            else:
                codes = self._learned.categories[feature.name].codes(values)
            arrays[f"events/{column_of(feature)}"] = codes
        splits, _ = self._splitter.splits_of(block)
        first, count, end = requests_of(block, splits, self._spec, self._spools.requests_given)
        owner = np.repeat(np.arange(len(block.counts)), block.counts)[first]
        start = (np.cumsum(block.counts) - block.counts)[owner]
        if spec.history.keep is None:
            start, end = start + block.first_event, end + block.first_event
        else:
            mask = columns[f"label_{spec.history.keep}"] != 0
            arrays["history/rows"] = np.flatnonzero(mask) + block.first_event
            before = np.concatenate([[0], np.cumsum(mask)])
            start, end = before[start], before[end]
        split = splits[first]
        arrays |= {
            "requests/user": owner + block.first_user,
            "requests/first": first + block.first_event,
            "requests/count": count,
            "requests/history_start": start,
            "requests/history_end": end,
            "requests/split": split,
        }
        shown = columns["shown"] if self._splitter.some_hidden else slice(None)
        where = splits[shown]
        sums = {
            label.name: np.bincount(
                where, columns[f"label_{label.name}"][shown], minlength=len(SPLITS)
            ).astype(np.float64)
            for label in spec.labels
        }
        lengths = [np.bincount((end - start)[split == k]) for k in range(len(SPLITS))]
        known = {}
        for feature in spec.event_features:
            codes = arrays[f"events/{column_of(feature)}"]
            is_known = np.isfinite(codes) if codes.dtype == np.float32 else codes != 0
            known[feature.name] = int(
                np.count_nonzero(is_known[shown] if feature.when == "impression" else is_known)
            )
        differing = {
            feature.name: _differing(first, count, arrays[f"events/{column_of(feature)}"])
            for feature in spec.event_features
            if feature.when == "context"
        }
        stats = Stats(
            np.bincount(where, minlength=len(SPLITS)),
            np.bincount(split, minlength=len(SPLITS)),
            sums,
            lengths,
            known,
            differing,
        )
        return block.size, arrays, stats


def column_of(feature: EventFeature) -> str:
    """The column of an event feature in the dataset's ``events``."""
    return f"{'impression' if feature.when == 'impression' else 'feature'}_{feature.name}"


def _differing(first: Array, count: Array, values: Array) -> NDArray[np.int64]:
    """How many requests have several impressions, and in how many of these the values differ."""
    several = count > 1
    first, count = first[several], count[several]
    if not len(first):
        return np.zeros(2, np.int64)
    bounds = np.stack([first, first + count], 1).ravel()
    padded = np.append(values, values[-1:])  # a request may end with the block
    high, low = (pick.reduceat(padded, bounds)[::2] for pick in (np.maximum, np.minimum))
    return np.array([len(first), np.count_nonzero(high != low)])


def requests_of(
    block: Block, split: NDArray[np.uint8], spec: Spec, requests_given: bool
) -> tuple[Array, Array, Array]:
    """The requests of a block: first row, impressions, end of the history; within the block."""
    columns, n = block.columns, block.size
    time, shown = columns["time"], columns["shown"]
    new_user = np.zeros(n, bool)
    new_user[np.cumsum(block.counts) - block.counts] = True
    new_time = new_user.copy()
    new_time[1:] |= time[1:] != time[:-1]
    begin = new_user.copy()
    begin[1:] |= (split[1:] != split[:-1]) | ~shown[:-1]
    by_gap: NDArray[np.bool_] | None = None
    if requests_given:
        step = columns["request"]
        by_gap = step == 0
        begin |= step == 1
        begin[1:] |= by_gap[1:] & ~by_gap[:-1]
    if spec.clock:
        far = np.diff(time) > spec.requests.gap * 1000
        begin[1:] |= far if by_gap is None else far & by_gap[1:]
    begin &= shown
    starts = np.flatnonzero(begin)
    if len(starts) == 0:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty
    # A hidden event ends a run, so that a run is all the shown rows up to the next beginning.
    run = np.cumsum(begin)
    position = np.arange(n) - starts[np.maximum(run, 1) - 1]
    cut = (position % spec.requests.size == 0) & (position > 0) & shown
    if by_gap is not None:
        cut &= by_gap
    first = np.flatnonzero(begin | cut)
    shown_before = np.concatenate([[0], np.cumsum(shown)])
    count = np.diff(np.append(shown_before[first], shown_before[-1]))
    tie_start = np.maximum.accumulate(np.where(new_time, np.arange(n), 0))
    return first, count, tie_start[first]
