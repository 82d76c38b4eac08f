"""Logs with faults that logs of people have: each is counted, named or refused."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from limerank.logs import prepare, summary_text
from limerank.logs.clock import Clock
from limerank.schema import Spec

DAY = 86_400_000
START = 1_718_000_000_000
EVENTS = {"files": ["log.parquet"], "user": "user", "item": "item", "time": "time"}
CLICK = {"name": "click", "kind": "binary"}


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is most of the time of many tiny datasets."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def make_spec(events: dict[str, Any] | None = None, **values: Any) -> Spec:
    source = {"time_unit": "ms", **EVENTS, **(events or {})}
    return Spec.model_validate({"name": "test", "events": [source], "labels": [CLICK], **values})


def run(folder: Path, spec: Spec) -> dict[str, Any]:
    """Prepare into a new folder ``out-N``; returns the manifest."""
    return prepare(spec, folder / f"out-{len(list(folder.glob('out-*')))}", base=folder)


def rows(count: int = 200, **columns: Any) -> dict[str, list[Any]]:
    """Columns of a log of ``count`` events in which nothing is wrong."""
    rng = random.Random(5)
    log: dict[str, list[Any]] = {
        "user": [rng.randrange(20) for _ in range(count)],
        "item": [rng.randrange(15) for _ in range(count)],
        "time": [START + k * 60_000 for k in range(count)],
        "click": [rng.randrange(2) for _ in range(count)],
    }
    return log | columns


def write(folder: Path, columns: dict[str, Any], name: str = "log.parquet") -> None:
    frame = pl.DataFrame(columns)
    if name.endswith(".parquet"):
        frame.write_parquet(folder / name)
    else:
        frame.write_csv(folder / name, separator="\t" if name.endswith("tsv") else ",")


# Times


def clock_of(times: list[int], present: int = START + 365 * DAY) -> Clock:
    clock = Clock(len(times), present)
    order = np.random.default_rng(3).permutation(len(times))
    for part in np.array_split(np.array(times, np.int64)[order], 3):
        clock.add(part)
    clock.finish()
    return clock


@pytest.mark.parametrize(
    ("times", "now", "word"),
    [
        ([START + k for k in range(100)], START + 99, None),
        ([*(START + k for k in range(100)), START + 900 * DAY], START + 99, "later than"),
        ([*(START + k for k in range(100)), START + 9 * DAY], START + 99, "far after all"),
        ([0, *(START + k for k in range(100)), START + 9 * DAY], START + 99, "before 1990"),
        ([*(START + k * DAY for k in range(100)), START + 120 * DAY], START + 120 * DAY, None),
        ([START, START + 90 * DAY], START + 90 * DAY, None),
        ([*(START + k for k in range(98)), *[START + 9 * DAY] * 2], START + 9 * DAY, None),
        ([START + 900 * DAY + k for k in range(100)], START + 900 * DAY + 99, "later than"),
        ([*range(100), START], 99, "far after all"),
    ],
)
def test_now_is_the_newest_time_that_is_no_outlier(
    times: list[int], now: int, word: str | None
) -> None:
    clock = clock_of(times)
    assert clock.now == now
    said = " ".join(clock.warnings())
    assert (word in said) if word else not said, said


def test_one_event_of_the_future_is_said_and_is_not_now(tmp_path: Path) -> None:
    columns = rows(201)
    columns["time"][200] = 1_890_000_000_000  # 2029
    write(tmp_path, columns)
    manifest = run(tmp_path, make_spec())
    time = manifest["summary"]["time"]
    assert time == {"first": START, "last": 1_890_000_000_000, "now": START + 199 * 60_000}
    (warning,) = manifest["summary"]["warnings"]
    assert "2029-11-22" in warning
    assert warning in summary_text(manifest)
