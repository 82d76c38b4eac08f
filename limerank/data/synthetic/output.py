"""What a simulation writes: events and truth, the known best, and a description."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from limerank.data.synthetic.world import TRAIN, VALIDATION, World, cut_ms, iso_text

ROW_GROUP = 1 << 17
FILE_ROWS = 1 << 23
"""Events per file, about."""
SAMPLE = 1_000_000
"""Rows, evenly spaced, from which the known best is computed."""


class LogWriter:
    """Events and truth to Parquet, in a second thread, in row groups of about ``ROW_GROUP``."""

    EVENTS = (
        "user_id", "item_id", "time_ms", "request_id", "tab", "click", "like", "watch_ms",
        "duration_ms",
    )  # fmt: skip
    TRUTH = (
        "request_id", "user_id", "item_id", "time_ms", "click_probability", "watch_seconds",
        "like_probability", "propensity",
    )  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: list[dict[str, Any]] = []
        self._held_rows = 0
        self._events: pq.ParquetWriter | None = None
        self._truth: pq.ParquetWriter | None = None
        self._files = self._file_rows = 0
        self._pending: Future[None] | None = None

    def __enter__(self) -> LogWriter:
        self._pool = ThreadPoolExecutor(1)
        return self

    def write(self, block: dict[str, Any]) -> None:
        self._held.append(block)
        self._held_rows += len(block["click"])
        if self._held_rows >= ROW_GROUP // 2:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        if self._pending is not None:
            self._pending.result()
        self._pending = self._pool.submit(self._put, self._held)
        self._held, self._held_rows = [], 0

    def _put(self, blocks: list[dict[str, Any]]) -> None:
        names = dict.fromkeys(self.EVENTS + self.TRUTH)
        joined = pa.table({name: np.concatenate([b[name] for b in blocks]) for name in names})
        events, truth = joined.select(self.EVENTS), joined.select(self.TRUTH)
        if self._events is not None and self._file_rows >= FILE_ROWS:
            self._events.close()
            self._events = None
        if self._events is None:
            path = self._folder / f"events-{self._files:04d}.parquet"
            self._events = self._open(path, events.schema)
            self._files, self._file_rows = self._files + 1, 0
        if self._truth is None:
            self._truth = self._open(self._folder / "truth.parquet", truth.schema)
        self._events.write_table(events, row_group_size=len(joined))
        self._truth.write_table(truth, row_group_size=len(joined))
        self._file_rows += len(joined)

    @staticmethod
    def _open(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
        return pq.ParquetWriter(
            path, schema, compression="snappy", use_dictionary=["tab", "click", "like"]
        )

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self._flush()
            if self._pending is not None:
                self._pending.result()
        finally:
            self._pool.shutdown()
            for writer in (self._events, self._truth):
                if writer is not None:
                    writer.close()


class KnownBest:
    """What the truth itself scores, on an even sample of at most ``SAMPLE`` rows per window."""

    COLUMNS = ("click", "watch_ms", "click_probability", "watch_seconds", "_user_free")

    def __init__(self, world: World) -> None:
        self._test_ms = cut_ms(world, TRAIN + VALIDATION)
        self._step = {
            "overall": -(-world.events // SAMPLE),
            "test": -(-world.events // (4 * SAMPLE)),
        }
        self._seen = dict.fromkeys(self._step, 0)
        self._rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in self._step}

    def add(self, block: dict[str, Any]) -> None:
        after = int(np.searchsorted(block["time_ms"], self._test_ms))
        for window, start in (("overall", 0), ("test", after)):
            step, seen = self._step[window], self._seen[window]
            rows = slice(start + -seen % step, None, step)
            self._rows[window].append(tuple(block[name][rows].copy() for name in self.COLUMNS))
            self._seen[window] = seen + len(block["click"]) - start

    def figures(self) -> dict[str, dict[str, float | int | None]]:
        from limerank import metrics

        found: dict[str, dict[str, float | int | None]] = {}
        for window, rows in self._rows.items():
            columns = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
            click, watch, click_p, seconds, free = columns
            found[window] = {"rows": len(click)}
            if len(click):
                figures = {
                    "auc": metrics.auc(click, click_p),
                    "normalized_entropy": metrics.normalized_entropy(click, click_p),
                    "xauc": metrics.xauc(watch, seconds),
                    "user_free_auc": metrics.auc(click, free),
                }
                found[window] |= {k: x if np.isfinite(x) else None for k, x in figures.items()}
        return found


def spec_text(world: World) -> str:
    """The description of the log, in TOML."""
    return f"""\
name = "synthetic-{world.seed}"

[[events]]
files = ["events-*.parquet"]
user = "user_id"
item = "item_id"
time = "time_ms"
time_unit = "ms"
request = "request_id"

[[labels]]
name = "click"
kind = "binary"

[[labels]]
name = "watch"
kind = "duration"
column = "watch_ms"
scale = 0.001
of = "duration_ms"

[[labels]]
name = "like"
kind = "binary"

[[event_features]]
name = "tab"
kind = "categorical"
when = "context"

[items]
files = ["items.parquet"]
id = "item_id"
features = [
    {{ name = "author", kind = "categorical" }},
    {{ name = "category", kind = "categorical" }},
    {{ name = "tags", kind = "categorical" }},
    {{ name = "duration", kind = "numeric", column = "duration_ms", transform = "log1p" }},
]

[users]
files = ["users.parquet"]
id = "user_id"
features = [
    {{ name = "age_band", kind = "categorical" }},
    {{ name = "device", kind = "categorical" }},
]

[split]
by = "time"
validation_from = "{iso_text(cut_ms(world, TRAIN))}"
test_from = "{iso_text(cut_ms(world, TRAIN + VALIDATION))}"

[history]
length = {world.history}
"""
