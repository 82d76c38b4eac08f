"""The last reading of the events: codes, requests and the statistics of each split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.folder import LOG, SPLITS
from limerank.data.pipeline import in_order
from limerank.data.prepare.ids import CodeMap
from limerank.data.prepare.learning import Learned
from limerank.data.prepare.partition import Array, NpyWriter
from limerank.data.prepare.requests import Boundaries
from limerank.data.prepare.sorting import Block, SortedEvents
from limerank.data.prepare.splitting import Splitter
from limerank.data.prepare.spooling import Spooling
from limerank.data.prepare.summary import Stats
from limerank.data.spec import EventFeature
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
        dtypes |= {"requests/split": np.uint8}
        for feature in spec.event_features:
            if feature.kind == "categorical":
                dtypes |= {f"{LOG}/unknown_{feature.name}_{k}": np.int64 for k in ("row", "code")}
        if spec.history.keep is not None:
            dtypes["history/rows"] = np.int64
        writers = {
            name: NpyWriter(self._folder / f"{name}.npy", dtype) for name, dtype in dtypes.items()
        }
        wanted = self._splitter.wanted + [f"label_{label.name}" for label in spec.labels]
        wanted = list(dict.fromkeys(wanted)) + [
            f"feature_{feature.name}" for feature in spec.event_features
        ]
        stats = Stats(
            labels={label.name: np.zeros(len(SPLITS)) for label in spec.labels},
            positives={label.name: np.zeros(len(SPLITS), np.int64) for label in spec.labels},
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
        counts = np.zeros(self._events.user_total, np.int64)
        counts[self._events.rows] = self._events.user_counts
        with NpyWriter(self._folder / "users" / "event_offsets.npy", np.int64) as offsets:
            offsets.append(np.concatenate([[0], np.cumsum(counts)]))
        for feature in spec.event_features:
            if feature.kind == "categorical":
                self._write_unknown(feature)
        return stats

    def _write_unknown(self, feature: EventFeature) -> None:
        """Write the values of a feature that have no code, as text."""
        ids, log = self._spools.coder.features[feature.name], self._folder / LOG
        codes = np.unique(np.load(log / f"unknown_{feature.name}_code.npy", mmap_mode="r"))
        values = ids.values(codes - 1 if ids.text else codes).cast(pl.String)
        pl.DataFrame({"code": codes, "value": values}).write_parquet(
            log / f"unknown_{feature.name}.parquet"
        )

    def _columns_of(self, block: Block) -> tuple[int, dict[str, Array], Stats]:
        """The number of events of a block, its part of each array, and its statistics.

        (Positions in ``history/rows`` are those within the block's part of it.)
        """
        spec, columns = self._spec, block.columns
        arrays: dict[str, Array] = {
            "events/item": self._item_map(columns["item"]),
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
                without = (codes == 0) & (values != self._spools.coder.missing(feature))
                rows = np.flatnonzero(without)
                arrays[f"{LOG}/unknown_{feature.name}_row"] = block.first_event + rows
                arrays[f"{LOG}/unknown_{feature.name}_code"] = values[rows]
            arrays[f"events/{column_of(feature)}"] = codes
        splits, _ = self._splitter.splits_of(block)
        requests = Boundaries(block, self._splitter.grouping).requests(splits)
        first, count, end, own_end = requests.first, requests.count, requests.end, requests.own_end
        owner = np.repeat(np.arange(len(block.counts)), block.counts)[first]
        start = (np.cumsum(block.counts) - block.counts)[owner]
        if spec.history.keep is None:
            start, end = start + block.first_event, end + block.first_event
            own_end = own_end + block.first_event
        else:
            mask = columns[f"label_{spec.history.keep}"] != 0
            arrays["history/rows"] = np.flatnonzero(mask) + block.first_event
            before = np.concatenate([[0], np.cumsum(mask)])
            start, end, own_end = before[start], before[end], before[own_end]
        split = splits[first]
        arrays |= {
            "requests/user": self._events.rows[owner + block.first_user],
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
        positives = {
            label.name: np.bincount(
                where[columns[f"label_{label.name}"][shown] > 0], minlength=len(SPLITS)
            )
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
        stale = _sums(own_end[shown], count) - end * count
        stats = Stats(
            np.bincount(where, minlength=len(SPLITS)),
            np.bincount(split, minlength=len(SPLITS)),
            sums,
            positives,
            lengths,
            known,
            differing,
            np.bincount(split, stale, minlength=len(SPLITS)).astype(np.int64),
            np.array([_distinct(owner[split == k]) for k in range(len(SPLITS))]),
            _late_training(owner, split),
        )
        return block.size, arrays, stats


def _sums(values: Array, counts: Array) -> Array:
    """Sums of consecutive stretches of values, none of which is empty."""
    starts = np.cumsum(counts) - counts
    return np.add.reduceat(values, starts) if len(starts) else np.zeros(0, np.int64)


def _distinct(ascending: Array) -> int:
    """How many distinct values there are."""
    return int(np.count_nonzero(np.diff(ascending))) + (len(ascending) > 0)


def _late_training(owner: Array, split: Array) -> int:
    """How many training requests come after a validation or test request of their user."""
    highest = np.maximum.accumulate(owner * len(SPLITS) + split) - owner * len(SPLITS)
    return int(np.count_nonzero((split == 0) & (highest > 0)))


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
