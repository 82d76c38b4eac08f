"""Items and users of a dataset: their order, their ids and their content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.coverage import TableCoverage, cover_features
from limerank.data.display import texts
from limerank.data.encoding import Encoding, candidates, encode, fit
from limerank.data.folder import DISPLAY, LOG
from limerank.data.prepare.asked import BATCH_BYTES
from limerank.data.prepare.ids import CodeMap, Ids
from limerank.data.prepare.learning import Learned, write_vocabulary
from limerank.data.prepare.partition import Array, NpyWriter
from limerank.data.prepare.sorting import SortedEvents
from limerank.data.prepare.spooling import Spooling
from limerank.data.prepare.suspects import suspects
from limerank.data.sources import Reader, concat
from limerank.data.spec import Table
from limerank.errors import DataError


class TableWriter:
    """Writes the items and the users of a dataset.

    Attributes:
        item_map: codes of items -> rows of the dataset.
        item_total, trained_items: how many items there are, and how many have events in training.
        item_encoding, user_encoding: what was learned of the tables.
        coverage: "item" or "user" -> how the table fits the log.
        warnings: about ids that may mean a missing one.
    """

    item_map: CodeMap
    item_total: int
    trained_items: int
    item_encoding: Encoding
    user_encoding: Encoding

    def __init__(
        self,
        spools: Spooling,
        events: SortedEvents,
        learned: Learned,
        folder: Path,
        table_limit: int,
    ) -> None:
        """``folder`` is that of the dataset."""
        self._spools, self._events, self._learned = spools, events, learned
        self._folder, self._table_limit = folder, table_limit
        self.coverage: dict[str, TableCoverage] = {}
        self.warnings: list[str] = []

    def write_items(self) -> None:
        """Items of the training window come first, the most shown first of all."""
        spec, spools = self._spools.spec, self._spools
        counts = self._learned.item_counts
        frame, codes = pl.DataFrame(), np.zeros(0, np.int64)
        rows_of_table = 0
        if spec.items is not None:
            readers = spools.sources.table_readers[0]
            frame, codes, rows_of_table, _ = self._read_table(
                spec.items, readers, spools.coder.items, "item", None
            )
        known = 0 if spools.earlier is None else spools.earlier.trained_items
        absent = np.ones(known, bool)  # known items keep their id, with or without events
        absent[counts.codes[counts.codes < known] if known else []] = False
        new = codes[codes >= known] if known else codes
        later = np.setdiff1d(new, counts.codes) if len(new) else new
        later = np.concatenate([np.flatnonzero(absent), later])
        all_codes = np.concatenate([counts.codes, later])
        zeros = np.zeros(len(later), np.int64)
        impressions = np.concatenate([counts.sums[0], zeros])
        training = np.concatenate([counts.sums[1], zeros])
        others = np.flatnonzero(all_codes >= known) if known else np.arange(len(all_codes))
        order = (
            pl.DataFrame(
                {
                    "later": training[others] == 0,
                    "impressions": -impressions[others],
                    "id": spools.coder.items.values(all_codes[others]),
                    "at": others,
                }
            )
            .sort(["later", "impressions", "id"])["at"]
            .to_numpy()
        )
        if known:
            held = np.flatnonzero(all_codes < known)
            order = np.concatenate([held[np.argsort(all_codes[held])], order])
        all_codes, training = all_codes[order], training[order]
        self.trained_items = known + int((training[known:] > 0).sum())
        self.item_map = CodeMap(
            all_codes, np.arange(len(all_codes), dtype=np.int32), self._table_limit
        )
        self.item_total = len(all_codes)
        ids = spools.coder.items.values(all_codes)
        write_vocabulary(self._folder, "items", pl.DataFrame({"id": ids}))
        with NpyWriter(self._folder / "items" / "train_count.npy", np.int64) as writer:
            writer.append(impressions[order])
        rows = self.item_map(codes).astype(np.int64)
        if spec.items is not None and spec.items.display:
            self._write_display(frame, spec.items, rows, len(all_codes))
        candidate = np.ones(len(all_codes), bool)
        if spec.items is not None:
            candidate[rows] = candidates(frame, spec.items)
        np.save(self._folder / "items" / "candidate.npy", candidate)
        self.item_encoding = self._write_content(
            "item", spec.items, frame, rows, rows < self.trained_items, len(all_codes)
        )
        self.warnings += suspects(
            "item", spools.coder.items.values(counts.codes), counts.sums[2].astype(np.int64)
        )
        if spec.items is not None:
            in_log = np.isin(codes, counts.codes)
            with_row = np.zeros(len(all_codes), bool)
            with_row[rows] = True
            lacking = ids.filter(pl.Series(~with_row))
            table_ids = spools.coder.items.values(codes[~in_log][:1])
            self._cover(
                "item",
                spec.items,
                frame.filter(pl.Series(in_log)) if in_log.any() else frame,
                self.item_encoding,
                (len(counts.codes), int(in_log.sum()), rows_of_table),
                (lacking, table_ids),
            )

    def _write_display(self, frame: pl.DataFrame, table: Table, rows: Array, count: int) -> None:
        """Write the columns that are shown, a row for each item of the dataset."""
        at = np.full(count, len(frame), np.int64)
        at[rows] = np.arange(len(frame))
        shown = texts(frame, table.display)
        empty = pl.DataFrame({name: [""] for name in table.display})
        (self._folder / "items").mkdir(exist_ok=True)
        pl.concat([shown, empty])[at].write_parquet(self._folder / "items" / DISPLAY)

    def write_users(self) -> None:
        """Users come in the order of their events."""
        spec, spools = self._spools.spec, self._spools
        user_codes, of_events = self._events.all_users, self._events.rows
        ids = spools.coder.users.values(user_codes)
        write_vocabulary(self._folder, "users", pl.DataFrame({"id": ids}))
        np.save(self._folder / LOG / "users.npy", self._events.seeds)
        self.warnings += suspects("user", ids.gather(of_events), self._events.user_counts)
        trained = np.zeros(len(user_codes), bool)
        trained[of_events] = self._learned.trained_users
        frame, rows, rows_of_table = pl.DataFrame(), np.zeros(0, np.int64), 0
        stray: int | None = None
        if spec.users is not None:
            order = np.argsort(user_codes, kind="stable")
            ascending = user_codes[order]
            readers = spools.sources.table_readers[1]
            frame, codes, rows_of_table, stray = self._read_table(
                spec.users, readers, spools.coder.users, "user", ascending
            )
            rows = order[np.searchsorted(ascending, codes)]
        self.user_encoding = self._write_content(
            "user", spec.users, frame, rows, trained[rows], len(user_codes)
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
                (spools.coder.users.values(lacking_codes), spools.coder.users.values(table_codes)),
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
        """Record how a table fits the log: ids of the log, those that the table has, rows of the
        table; and an id that only the log, or only the table, has."""
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

        ``wanted`` are the codes whose rows are read, ascending (None: all).
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
                self._spools.findings.note(f"{what} table: rows without an id", int((~keep).sum()))
                total += int(keep.sum())
                if wanted is not None:
                    at = np.minimum(np.searchsorted(wanted, codes), len(wanted) - 1)
                    others = keep & (wanted[at] != codes)
                    if stray is None and others.any():
                        stray = int(codes[others][0])
                    keep = keep & ~others
                frames.append(frame.filter(pl.Series(keep)))
                parts.append(codes[keep])
            self._spools.findings.remark_table(reader, f"{what} table", rows)
        if not frames:
            name = ", ".join(table.files) or f"the {what}s frame"
            raise DataError(f"{name}: the table has no rows")
        codes = np.concatenate(parts)
        first = pl.Series(codes).is_first_distinct()
        self._spools.findings.note(
            f"{what} table: rows with an id seen before", int((~first).sum())
        )
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
        earlier = self._spools.earlier
        known = None if earlier is None else earlier.content(kind, tuple(features))
        encoding = fit(frame, features, trained, ids, known)
        if table is not None:
            log = self._folder / LOG
            frame.select(table.needed).write_parquet(log / f"{kind}s.parquet")
            np.save(log / f"{kind}_rows.npy", rows.astype(np.int64))
        content = encode(frame, features, encoding, ids, rows=rows, count=count)
        folder = self._folder / f"{kind}s"
        folder.mkdir(exist_ok=True)
        np.save(folder / "tokens.npy", content.tokens)
        np.save(folder / "token_weights.npy", content.weights)
        np.save(folder / "token_offsets.npy", content.offsets)
        np.save(folder / "numeric.npy", content.numeric)
        for name, vocabulary in encoding.vocabularies.items():
            write_vocabulary(self._folder, f"{kind}_{name}", vocabulary)
        return encoding
