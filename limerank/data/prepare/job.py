"""Logs in, dataset out: ``limerank prepare``.

Rows are read in batches, checked, and spooled to disk in partitions by user
(:mod:`~limerank.data.prepare.spooling`); each partition is sorted by user and time in memory
(:mod:`~limerank.data.prepare.sorting`); then the sorted events are streamed twice, once to learn
vocabularies from the training window and once to write codes and requests. Memory stays below the
limit whatever the log's size, apart from what is kept of each user and each item (the vocabularies
and tables) and apart from the events of a single user, which are sorted together.

The folder's format is described in :mod:`limerank.data.folder`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.canonical import iso
from limerank.data.coverage import FeatureCoverage, TableCoverage, cover_features, missing_words
from limerank.data.description import write_spec
from limerank.data.encoding import Encoding, candidates, encode, fit, vocabulary_of
from limerank.data.folder import FORMAT, MANIFEST, SPLITS
from limerank.data.pipeline import ahead, in_order
from limerank.data.prepare.checks import NEWEST, OLDEST
from limerank.data.prepare.holdout import FirstSeen, held_out_users
from limerank.data.prepare.ids import CodeCounter, CodeMap, Ids
from limerank.data.prepare.inputs import Description, Input, Inputs, frame_record, inputs_of
from limerank.data.prepare.nobody import suspects
from limerank.data.prepare.partition import (
    Array,
    Histogram,
    NpyWriter,
    unshuffle,
    values_at_ranks,
)
from limerank.data.prepare.sorting import Block, SortedEvents
from limerank.data.prepare.spooling import BATCH_BYTES, Spooling
from limerank.data.prepare.summary import QUANTILES, Stats, quantiles_of_counts
from limerank.data.sources import Reader, concat
from limerank.data.spec import EventFeature, Table
from limerank.errors import DataError
from limerank.files import new_folder, write_json
from limerank.progress import Bar

EDGES = [k / 32 for k in range(1, 32)]
LIBRARY_BYTES = 320 << 20
"""What Python and the libraries take before any work is done."""


def prepare(
    spec: Description,
    out: str | Path,
    *,
    events: Input | Sequence[Input | None] | None = None,
    items: Input | None = None,
    users: Input | None = None,
    base: str | Path | None = None,
    memory: int = 2 << 30,
    overwrite: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """Turn logs into a dataset folder; returns its manifest.

    The rows are in the files that the description names, or are passed along: frames are read by
    the rules of Parquet files, and give the same dataset. ::

        prepare("shop.toml", "data/shop")
        prepare(
            {
                "name": "shop",
                "events": [{"time": "time", "time_unit": "ms"}],
                "labels": [{"name": "click", "kind": "binary"}],
            },
            "data/shop",
            events=clicks,  # a Polars or pandas DataFrame, or a pyarrow Table
        )

    Args:
        spec: what the columns are: the path of a description in TOML, a mapping of the same shape,
            or a :class:`~limerank.data.spec.Spec`.
        out: the dataset's folder. It appears only when it is complete.
        events: rows of events in place of the files of the description: a Polars or pandas
            DataFrame, a pyarrow Table or another object that exports an Arrow stream, or the name
            or pattern of files, relative to the working directory. With several ``[[events]]`` in
            the description a list with one of these, or None for its files, for each.
        items, users: the same for the item table and the user table.
        base: the folder that names of files in the description are relative to. Not given: the
            folder of the TOML file, else the working directory.
        memory: bytes that the process may use, apart from frames that are passed, vocabularies,
            the item and user tables, and the events of a single user. (Python and the libraries
            take about 200 MiB of it; a limit below 512 MiB only makes the parts smaller.)
        overwrite: replace ``out`` where it exists.
        quiet: show no progress.

    Raises:
        SpecError: the description is not valid, or rows are passed that it does not describe.
        DataError: a file or a column is missing, an argument is not a frame, or too many rows are
            bad (with the reasons).
        FormatError: ``out`` exists and ``overwrite`` is false.
    """
    inputs = inputs_of(spec, base, events=events, items=items, users=users)
    with new_folder(out, overwrite=overwrite, mark=MANIFEST) as folder:
        return _Job(inputs, folder, memory, quiet).run()


class _Job:
    """One run of :func:`prepare`."""

    def __init__(self, inputs: Inputs, folder: Path, memory: int, quiet: bool) -> None:
        self.inputs, self.spec, self.folder, self.quiet = inputs, inputs.spec, folder, quiet
        self.warnings: list[str] = []
        self.coverage: dict[str, TableCoverage] = {}
        room = max(memory - LIBRARY_BYTES, memory // 8)
        self.spools = Spooling(inputs, folder / "work", room, quiet)
        self.table_limit = max(memory >> 8, 1 << 16)
        """Codes in a smaller range are counted and mapped by tables."""

    def run(self) -> dict[str, Any]:
        self.spools.read()
        self.events = SortedEvents(self.spools, self.folder)
        with ThreadPoolExecutor(1) as aside:
            self.events.sort(aside)
            self._find_cuts()
            self._hold_out()
            self._learn()
            self._write_items_and_users()
            self._write_events()
            shutil.rmtree(self.folder / "work")
            manifest = self._manifest()
            write_spec(self.folder / "spec.toml", self.spec, self.inputs.base)
            write_json(self.folder / MANIFEST, manifest)
        return manifest

    # Learning from the training window

    def _find_cuts(self) -> None:
        """The times at which validation and testing begin."""
        split, events = self.spec.split, self.events
        self.cuts: list[int] | None = None
        if split.cuts is not None:
            self.cuts = list(split.cuts)
        elif split.by == "time":

            def blocks() -> Iterator[NDArray[np.int64]]:
                for block in ahead(events.stream(["time", "shown"])):
                    times = block.columns["time"]
                    yield times[block.columns["shown"]] if events.some_hidden else times

            ranks = [
                min(int(share * events.shown_total + 1e-9), events.shown_total - 1)
                for share in (split.train, split.train + split.validation)
            ]
            first, last = events.shown_range
            self.cuts = values_at_ranks(blocks, first, last, ranks)

    def _hold_out(self) -> None:
        """Choose the users and items that training never sees."""
        split, events = self.spec.split, self.events
        self.held_users: NDArray[np.bool_] | None = None
        self.held_items: CodeMap | None = None
        if split.held_out_users:
            self.held_users = held_out_users(events.keys, split.held_out_users)
        if split.held_out_items:
            seen = FirstSeen()
            for block in ahead(events.stream(["time", "item"])):
                seen.add(block.columns["item"], block.columns["time"])
            codes = np.sort(seen.newest(split.held_out_items))
            self.held_items = CodeMap(codes, np.ones(len(codes), np.int32), self.table_limit)
        self.some_hidden = events.some_hidden or self.held_items is not None

    def _parts(self, block: Block) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The split of each event of a block, and whether its item is held out.

        Impressions of such items before the test split are hidden in ``block``.
        """
        splits = self._splits(block)
        if self.held_users is not None:
            users = slice(block.first_user, block.first_user + len(block.counts))
            splits[np.repeat(self.held_users[users], block.counts)] = SPLITS.index("held-out")
        held = np.zeros(block.size, bool)
        if self.held_items is not None:
            held = self.held_items(block.columns["item"]) > 0
            learned = splits < SPLITS.index("test")
            block.columns["shown"] = block.columns["shown"] & ~(held & learned)
        return splits, held

    def _splits(self, block: Block) -> NDArray[np.uint8]:
        """The split of each event by time or place; history-only events take part."""
        if self.cuts is not None:
            time = block.columns["time"]
            return (time >= self.cuts[0]).view(np.uint8) + (time >= self.cuts[1]).view(np.uint8)
        split = self.spec.split
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

    def _learn(self) -> None:
        spec = self.spec
        labels = [label for label in spec.labels if label.kind == "duration"]
        features = spec.event_features
        wanted = ["time", "shown", "item"]
        wanted += [f"label_{label.name}" for label in spec.labels]
        wanted += [f"feature_{feature.name}" for feature in features]
        lowest, highest = self.spools.item_range
        item_counter = CodeCounter(lowest, highest, 3, self.table_limit)
        counters: dict[str, CodeCounter] = {}
        for feature in features:
            if feature.kind == "categorical":
                counters[feature.name] = CodeCounter(0, 0, 1, 0)
        label_histograms = {label.name: Histogram() for label in labels}
        histograms = {f.name: Histogram() for f in features if f.kind == "numeric"}
        self.label_sums = {label.name: 0.0 for label in spec.labels}
        self.train_shown = 0
        trained_users = np.zeros(len(self.events.keys), bool)
        with Bar("learning", total=self.events.total, unit="events", quiet=self.quiet) as bar:
            for block in ahead(self.events.stream(wanted)):
                columns = block.columns
                splits, held = self._parts(block)
                train = (splits == 0) & ~held
                impressions = train & columns["shown"] if self.some_hidden else train
                item_counter.add(columns["item"], [impressions, train, None])
                starts = np.cumsum(block.counts) - block.counts
                users = slice(block.first_user, block.first_user + len(block.counts))
                trained_users[users] = np.add.reduceat(train.astype(np.int64), starts) > 0
                self.train_shown += int(impressions.sum())
                for label in spec.labels:
                    values = columns[f"label_{label.name}"]
                    self.label_sums[label.name] += float(values[impressions].sum(dtype=np.float64))
                    if label.kind == "duration":
                        label_histograms[label.name].add(values[train & (values > 0)])
                for feature in features:
                    values = columns[f"feature_{feature.name}"]
                    if feature.kind == "numeric":
                        histograms[feature.name].add(values[train & np.isfinite(values)])
                    else:
                        counters[feature.name].add(values[train], [None])
                bar.advance(block.size)
        if self.train_shown == 0:
            raise DataError(
                "the training window holds no impressions; check the split's cut points or shares"
                + (f" (training ends at {iso(self.cuts[0])})" if self.cuts else "")
                + "".join(f"; {hint}" for hint in self.spools.unit_hints[:1])
            )
        self.trained_users = trained_users
        self.item_counts = item_counter.result()
        self.label_edges = {n: h.quantiles(EDGES) for n, h in label_histograms.items()}
        self.feature_edges = {n: h.quantiles(EDGES) for n, h in histograms.items()}
        self.feature_maps: dict[str, CodeMap] = {}
        self.feature_sizes: dict[str, int] = {}
        self.missing_words: dict[str, tuple[int, str | None]] = {}
        self.unknown: dict[str, str | None] = {}
        for feature in features:
            if feature.kind != "categorical":
                continue
            counts = counters[feature.name].result()
            ids = self.spools.features[feature.name]
            known = counts.codes != self.spools.missing(feature)
            codes, sums = counts.codes[known], counts.sums[0][known]
            text = ids.values(codes - 1 if ids.text else codes).cast(pl.String)
            frame = pl.DataFrame({"value": text, "count": sums})
            words = frame.filter(missing_words(frame["value"]))
            self.missing_words[feature.name] = int(words["count"].sum()), _first(words["value"])
            vocabulary = vocabulary_of(
                frame.group_by("value").agg(pl.col("count").sum()), feature.min_count
            )
            new = (
                pl.DataFrame({"value": text})
                .join(vocabulary, on="value", how="left", maintain_order="left")["code"]
                .fill_null(0)
                .to_numpy()
            )
            self.unknown[feature.name] = _first(text.filter(pl.Series(new == 0)))
            self.feature_maps[feature.name] = CodeMap(codes, new, self.table_limit)
            self.feature_sizes[feature.name] = len(vocabulary) + 1
            self._write_vocab(f"event_{feature.name}", vocabulary)

    def _write_vocab(self, name: str, frame: pl.DataFrame) -> None:
        path = self.folder / "vocab" / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        frame.write_parquet(path)

    # Items and users

    def _write_items_and_users(self) -> None:
        spec, spools = self.spec, self.spools
        counts = self.item_counts
        frame, codes = pl.DataFrame(), np.zeros(0, np.int64)
        rows_of_table, stray = 0, None
        if spec.items is not None:
            readers = spools.table_readers[0]
            frame, codes, rows_of_table, _ = self._read_table(
                spec.items, readers, spools.items, "item", None
            )
        later = np.setdiff1d(codes, counts.codes) if len(codes) else codes
        all_codes = np.concatenate([counts.codes, later])
        zeros = np.zeros(len(later), np.int64)
        impressions = np.concatenate([counts.sums[0], zeros])
        training = np.concatenate([counts.sums[1], zeros])
        order = (
            pl.DataFrame(
                {
                    "later": training == 0,
                    "impressions": -impressions,
                    "id": spools.items.values(all_codes),
                    "at": np.arange(len(all_codes)),
                }
            )
            .sort(["later", "impressions", "id"])["at"]
            .to_numpy()
        )
        all_codes = all_codes[order]
        self.trained_items = int((training > 0).sum())
        self.item_map = CodeMap(
            all_codes, np.arange(len(all_codes), dtype=np.int32), self.table_limit
        )
        self.item_total = len(all_codes)
        ids = spools.items.values(all_codes)
        self._write_vocab("items", pl.DataFrame({"id": ids}))
        with NpyWriter(self.folder / "items" / "train_count.npy", np.int64) as writer:
            writer.append(impressions[order])
        rows = self.item_map(codes).astype(np.int64)
        candidate = np.ones(len(all_codes), bool)
        if spec.items is not None:
            candidate[rows] = candidates(frame, spec.items)
        np.save(self.folder / "items" / "candidate.npy", candidate)
        self.item_encoding = self._write_content(
            "item", spec.items, frame, rows, rows < self.trained_items, len(all_codes)
        )
        self.warnings += suspects(
            "item", spools.items.values(counts.codes), counts.sums[2].astype(np.int64)
        )
        if spec.items is not None:
            in_log = np.isin(codes, counts.codes)
            with_row = np.zeros(len(all_codes), bool)
            with_row[rows] = True
            lacking = ids.filter(pl.Series(~with_row))
            table_ids = spools.items.values(codes[~in_log][:1])
            self._cover(
                "item",
                spec.items,
                frame.filter(pl.Series(in_log)) if in_log.any() else frame,
                self.item_encoding,
                (len(counts.codes), int(in_log.sum()), rows_of_table),
                (lacking, table_ids),
            )

        user_codes = unshuffle(self.events.keys)
        self._write_vocab("users", pl.DataFrame({"id": spools.users.values(user_codes)}))
        self.warnings += suspects("user", spools.users.values(user_codes), self.events.user_counts)
        frame, rows = pl.DataFrame(), np.zeros(0, np.int64)
        if spec.users is not None:
            order = np.argsort(user_codes, kind="stable")
            ascending = user_codes[order]
            readers = spools.table_readers[1]
            frame, codes, rows_of_table, stray = self._read_table(
                spec.users, readers, spools.users, "user", ascending
            )
            rows = order[np.searchsorted(ascending, codes)]
        self.user_encoding = self._write_content(
            "user", spec.users, frame, rows, self.trained_users[rows], len(user_codes)
        )
        if spec.users is not None:
            lacking_codes = np.delete(user_codes, rows)[:1]
            table_codes = np.array([] if stray is None else [stray], np.int64)
            self._cover(
                "user",
                spec.users,
                frame,
                self.user_encoding,
                (len(user_codes), len(rows), rows_of_table),
                (spools.users.values(lacking_codes), spools.users.values(table_codes)),
            )

    def _cover(
        self,
        what: str,
        table: Table,
        frame: pl.DataFrame,
        encoding: Encoding,
        numbers: tuple[int, int, int],
        examples: tuple[pl.Series, pl.Series],
    ) -> None:
        """Note how a table fits the log: ids of the log, those met, rows of the table; and ids
        that only the log, or only the table, has."""
        ids, matched, rows = numbers
        only_log, only_table = (None if len(one) == 0 else str(one[0]) for one in examples)
        features = cover_features(frame, table.features, encoding)
        self.coverage[what] = TableCoverage(
            what, ids, matched, rows, matched, only_log, only_table, features
        )

    def _read_table(
        self, table: Table, readers: list[Reader], ids: Ids, what: str, wanted: Array | None
    ) -> tuple[pl.DataFrame, Array, int, int | None]:
        """A table's rows without repeated ids, the code of each, how many rows the table has, and
        a code that is not wanted.

        ``wanted`` are the codes whose rows are kept, ascending (None: all).
        """
        columns = table.read
        frames, parts = [], []
        total, stray = 0, None
        for reader in readers:
            rows = 0
            for frame in reader.batches(columns, BATCH_BYTES):
                rows += len(frame)
                with reader.named():
                    codes, known = ids.codes(frame[table.id])
                keep = np.ones(len(frame), bool) if known is None else known
                self.spools.note(f"{what} table: rows without an id", int((~keep).sum()))
                total += int(keep.sum())
                if wanted is not None:
                    at = np.minimum(np.searchsorted(wanted, codes), len(wanted) - 1)
                    others = keep & (wanted[at] != codes)
                    if stray is None and others.any():
                        stray = int(codes[others][0])
                    keep = keep & ~others
                frames.append(frame.filter(pl.Series(keep)))
                parts.append(codes[keep])
            self.spools.remark_table(reader, f"{what} table", rows + reader.rows.bad_lines)
        if not frames:
            name = ", ".join(table.files) or f"the {what}s frame"
            raise DataError(f"{name}: the table has no rows")
        codes = np.concatenate(parts)
        first = pl.Series(codes).is_first_distinct()
        self.spools.note(f"{what} table: rows with an id seen before", int((~first).sum()))
        total -= int((~first).sum())
        return concat(frames).filter(first), codes[first.to_numpy()], total, stray

    def _write_content(
        self,
        kind: str,
        table: Table | None,
        frame: pl.DataFrame,
        rows: NDArray[np.int64],
        trained: NDArray[np.bool_],
        count: int,
    ) -> Encoding:
        features = table.features if table is not None else ()
        ids = frame[table.id] if table is not None else pl.Series("id", [], dtype=pl.Int64)
        encoding = fit(frame, features, trained, ids)
        content = encode(frame, features, encoding, ids, rows=rows, count=count)
        folder = self.folder / f"{kind}s"
        folder.mkdir(exist_ok=True)
        np.save(folder / "tokens.npy", content.tokens)
        np.save(folder / "token_weights.npy", content.weights)
        np.save(folder / "token_offsets.npy", content.offsets)
        np.save(folder / "numeric.npy", content.numeric)
        for name, vocabulary in encoding.vocabularies.items():
            self._write_vocab(f"{kind}_{name}", vocabulary)
        return encoding

    # Codes and requests

    def _write_events(self) -> None:
        spec = self.spec
        dtypes: dict[str, Any] = {"events/item": np.int32}
        dtypes |= {f"events/feature_{feature.name}": np.int32 for feature in spec.event_features}
        dtypes |= {f"requests/{name}": np.int32 for name in ("user", "count")}
        dtypes |= {f"requests/{n}": np.int64 for n in ("first", "history_start", "history_end")}
        dtypes |= {"requests/split": np.uint8, "users/event_offsets": np.int64}
        if spec.history.keep is not None:
            dtypes["history/rows"] = np.int64
        writers = {
            name: NpyWriter(self.folder / f"{name}.npy", dtype) for name, dtype in dtypes.items()
        }
        writers["users/event_offsets"].append(np.zeros(1, np.int64))
        wanted = ["time", "shown", "item"] + [f"label_{label.name}" for label in spec.labels]
        wanted += ["request"] if self.spools.requests_given else []
        wanted += [f"feature_{feature.name}" for feature in spec.event_features]
        stats = self.stats = Stats(
            labels={label.name: np.zeros(len(SPLITS)) for label in spec.labels},
            known={feature.name: 0 for feature in spec.event_features},
        )
        retained = 0
        with Bar("writing", total=self.events.total, unit="events", quiet=self.quiet) as bar:
            for size, arrays, sums in in_order(self._finish, self.events.stream(wanted)):
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

    def _finish(self, block: Block) -> tuple[int, dict[str, Array], Stats]:
        """What is written of a block, and its part of the summary.

        (Positions in ``history/rows`` are those within the block's part of it.)
        """
        spec, columns = self.spec, block.columns
        arrays: dict[str, Array] = {
            "events/item": self.item_map(columns["item"]),
            "users/event_offsets": block.first_event + np.cumsum(block.counts),
        }
        for feature in spec.event_features:
            values = columns[f"feature_{feature.name}"]
            if feature.kind == "numeric":
                edges = np.array(self.feature_edges[feature.name], np.float32)
                above = np.searchsorted(edges, values, side="right")
                codes = np.where(np.isfinite(values), above + 1, 0)
            else:
                codes = self.feature_maps[feature.name](values)
            arrays[f"events/feature_{feature.name}"] = codes
        splits, _ = self._parts(block)
        first, count, end = self._requests(block, splits)
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
        shown = columns["shown"] if self.some_hidden else slice(None)
        where = splits[shown]
        sums = {
            label.name: np.bincount(
                where, columns[f"label_{label.name}"][shown], minlength=len(SPLITS)
            ).astype(np.float64)
            for label in spec.labels
        }
        lengths = [np.bincount((end - start)[split == k]) for k in range(len(SPLITS))]
        known = {
            feature.name: int(np.count_nonzero(arrays[f"events/feature_{feature.name}"]))
            for feature in spec.event_features
        }
        stats = Stats(
            np.bincount(where, minlength=len(SPLITS)),
            np.bincount(split, minlength=len(SPLITS)),
            sums,
            lengths,
            known,
        )
        return block.size, arrays, stats

    def _requests(self, block: Block, split: NDArray[np.uint8]) -> tuple[Array, Array, Array]:
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
        if self.spools.requests_given:
            step = columns["request"]
            by_gap = step == 0
            begin |= step == 1
            begin[1:] |= by_gap[1:] & ~by_gap[:-1]
        if self.spec.clock:
            far = np.diff(time) > self.spec.requests.gap * 1000
            begin[1:] |= far if by_gap is None else far & by_gap[1:]
        begin &= shown
        starts = np.flatnonzero(begin)
        if len(starts) == 0:
            empty = np.zeros(0, np.int64)
            return empty, empty, empty
        # A hidden event ends a run, so that a run is all the shown rows up to the next beginning.
        run = np.cumsum(begin)
        position = np.arange(n) - starts[np.maximum(run, 1) - 1]
        cut = (position % self.spec.requests.size == 0) & (position > 0) & shown
        if by_gap is not None:
            cut &= by_gap
        first = np.flatnonzero(begin | cut)
        shown_before = np.concatenate([[0], np.cumsum(shown)])
        count = np.diff(np.append(shown_before[first], shown_before[-1]))
        tie_start = np.maximum.accumulate(np.where(new_time, np.arange(n), 0))
        return first, count, tie_start[first]

    # The manifest

    def _event_coverage(self, feature: EventFeature, known: int) -> FeatureCoverage:
        """What became of an event feature, of which so many events have a known value.

        (Rows that were dropped later are among those present, so ``known`` is scaled to them.)
        """
        spools, name = self.spools, feature.name
        rows, present = spools.feature_rows, spools.present[name]
        words, word = self.missing_words.get(name, (0, None))
        return FeatureCoverage(
            name,
            feature.column,
            feature.kind,
            rows,
            present,
            spools.parsed[name],
            min(round(known * rows / self.events.total), spools.parsed[name]),
            spools.unread.get(name),
            self.unknown.get(name),
            words,
            word,
        )

    def _frames(self) -> dict[str, Any]:
        """The frames that rows were in, for the manifest; empty: all rows were in files."""
        items, users = map(frame_record, self.spools.table_readers)
        events = [frame_record(readers) for readers in self.spools.readers]
        if not any([*events, items, users]):
            return {}
        return {"frames": {"events": events, "items": items, "users": users}}

    def _manifest(self) -> dict[str, Any]:
        spec, stats = self.spec, self.stats
        spools, events = self.spools, self.events
        labels = []
        for label in spec.labels:
            mean = self.label_sums[label.name] / self.train_shown
            if label.kind == "binary" and mean in (0.0, 1.0):
                self.warnings.append(
                    f"label {label.name} is {mean:.0f} in all impressions of the training window"
                )
            entry: dict[str, Any] = {"name": label.name, "kind": label.kind}
            entry |= {"ratio": label.of is not None, "mean": mean}
            if label.kind == "duration":
                entry["edges"] = self.label_edges[label.name]
            labels.append(entry)
        features = []
        for feature in spec.event_features:
            entry = {"name": feature.name, "kind": feature.kind, "when": feature.when}
            if feature.kind == "numeric":
                entry |= {"size": len(EDGES) + 2, "edges": self.feature_edges[feature.name]}
            else:
                entry["size"] = self.feature_sizes[feature.name]
            features.append(entry)
        impressions = dict(zip(SPLITS, stats.impressions.tolist(), strict=True))
        requests = dict(zip(SPLITS, stats.requests.tolist(), strict=True))
        for split in ("validation", "test"):
            if not impressions[split]:
                self.warnings.append(f"the {split} split is empty")
        if spec.clock:
            low, high = events.time_range
            if low < 0 or high > NEWEST or high < OLDEST:
                self.warnings.append(
                    f"times run from {iso(low)} to {iso(high)}: check the source's time_unit"
                )
            self.warnings += events.clock.warnings()
        events_covered = [
            self._event_coverage(feature, stats.known[feature.name])
            for feature in spec.event_features
        ]
        coverage = [line for table in self.coverage.values() for line in table.lines()]
        if events_covered:
            shares = ", ".join(covered.text() for covered in events_covered)
            coverage.append(f"event features, events with a known value: {shares}")
        for table in self.coverage.values():
            self.warnings += table.warnings()
        for covered in events_covered:
            self.warnings += covered.warnings("event")
        for empty in [split for split in ("validation", "test") if not requests[split]]:
            self.warnings.append(
                f"without {empty} requests a model cannot be measured there: choose other cut "
                "points or shares in [split]"
            )
        dropped = dict(spools.bad.most_common())
        noted = {name: count for name, count in spools.noted.items() if count}
        if "duplicate row" in noted:
            dropped["duplicate row"] = noted.pop("duplicate row")
        summary = {
            "time": {
                "first": events.time_range[0],
                "last": events.time_range[1],
                "now": events.clock.now if spec.clock else events.time_range[1],
            },
            "cuts": self.cuts,
            "labels": {
                split: {
                    name: float(sums[k] / stats.impressions[k]) if stats.impressions[k] else None
                    for name, sums in stats.labels.items()
                }
                for k, split in enumerate(SPLITS)
            },
            "history": {
                split: quantiles_of_counts(stats.lengths[k]) for k, split in enumerate(SPLITS)
            },
            "history_quantiles": list(QUANTILES),
            "per_request": {
                split: impressions[split] / requests[split] if requests[split] else 0.0
                for split in SPLITS
            },
            "rows": spools.rows,
            "bad": sum(spools.bad.values()),
            "dropped": dropped,
            "noted": noted,
            "examples": dict(spools.examples),
            "tables": {what: table.json() for what, table in self.coverage.items()},
            "event_features": [asdict(covered) for covered in events_covered],
            "coverage": coverage,
            "warnings": self.warnings + spools.remarks,
        }
        return {
            "format": FORMAT,
            "name": spec.name,
            "clock": spec.clock,
            "spec": spec.model_dump(mode="json"),
            **self._frames(),
            "encoding": {
                "trained_items": self.trained_items,
                "labels": labels,
                "event_features": features,
                "items": self.item_encoding.manifest,
                "users": self.user_encoding.manifest,
            },
            "counts": {
                "users": len(events.keys),
                "items": self.item_total,
                "events": events.total,
                "requests": requests,
                "impressions": impressions,
            },
            "summary": summary,
        }


def _first(values: pl.Series) -> str | None:
    return None if len(values) == 0 else str(values[0])
