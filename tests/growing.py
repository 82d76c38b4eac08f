"""A log that grows by a day at a time, for several tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tomli_w

START, DAY = 1_700_000_000, 86_400


def log_of(days: int, *, users: int = 50, seed: int = 0, text: bool = False) -> pl.DataFrame:
    """A log of pages with everything that a log may have; each day has new users, items and
    values."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[Any, ...]] = []
    page = 0
    for day in range(days):
        for _ in range(users):
            user = int(rng.integers(0, users + 10 * day))
            # A page may go on after midnight.
            time = START + day * DAY + int(rng.integers(0, DAY + 600))
            page += 1
            for slot in range(int(rng.integers(1, 5))):
                item = int(rng.integers(0, 30 + 5 * day))
                rows.append(
                    (
                        user,
                        item,
                        time + int(rng.integers(0, 2)),
                        page if rng.random() < 0.8 else None,
                        int(rng.random() < 0.4),
                        round(float(rng.exponential(20)), 2),
                        f"d{int(rng.integers(0, 2 + day))}",
                        round(float(rng.lognormal()), 3),
                        slot,
                        round(float(rng.lognormal(3)), 2) if rng.random() < 0.9 else None,
                        ("train", "validation", "test")[int(rng.integers(0, 3))],
                    )
                )
    names = ["user_id", "item_id", "time", "page", "click", "watch", "device", "speed"]
    frame = pl.DataFrame(rows, [*names, "slot", "price", "fold"], orient="row")
    if text:
        frame = frame.with_columns(
            ("u" + pl.col("user_id").cast(pl.String)).alias("user_id"),
            ("i" + pl.col("item_id").cast(pl.String)).alias("item_id"),
        )
    return frame


FEATURES = [
    {"name": "device", "kind": "categorical", "when": "context"},
    {"name": "speed", "kind": "numeric"},
    {"name": "slot", "kind": "categorical", "when": "impression", "bias": True},
    {"name": "price", "kind": "numeric", "when": "impression", "transform": "log1p"},
]


def write_spec(folder: Path, frame: pl.DataFrame, **spec: Any) -> Path:
    """The description of a log whose item and user tables know some of its ids."""
    items, users = (frame[name].unique().sort() for name in ("item_id", "user_id"))
    n = np.arange(len(items))
    pl.DataFrame(
        {
            "item_id": items,
            "group": [f"g{k % 7}" for k in n],
            "tags": [f"t{k % 3}|t{k % 5}" for k in n],
            "length": 10.0 + n,
            "vector": [[float(k), 1.0, float(k % 3)] for k in n],
        }
    ).head(-3).write_parquet(folder / "items.parquet")
    pl.DataFrame({"user_id": users, "country": [f"c{k % 4}" for k in range(len(users))]}).head(
        -2
    ).write_parquet(folder / "users.parquet")
    values = {
        "name": "days",
        "events": [
            {"files": ["log/*.parquet"], "time": "time", "request": "page"},
            {
                "files": ["seen/*.parquet"],
                "time": "time",
                "shown": False,
                "constant": {"click": 1, "watch": 0},
            },
        ],
        "labels": [
            {"name": "click", "kind": "binary"},
            {"name": "watch", "kind": "duration"},
        ],
        "event_features": FEATURES,
        "items": {
            "files": ["items.parquet"],
            "id": "item_id",
            "features": [
                {"name": "group", "kind": "categorical"},
                {"name": "tags", "kind": "categorical", "split": "|"},
                {"name": "length", "kind": "numeric"},
                {"name": "vector", "kind": "text-vector"},
            ],
        },
        "users": {
            "files": ["users.parquet"],
            "id": "user_id",
            "features": [{"name": "country", "kind": "categorical"}],
        },
        "history": {"length": 20},
        **spec,
    }
    (folder / "spec.toml").write_text(tomli_w.dumps(values))
    return folder / "spec.toml"


def write_days(folder: Path, frame: pl.DataFrame, days: range) -> None:
    """A file of impressions and one of other events for each day, by the day in which a row was
    logged; some rows are logged a day late."""
    day = (frame["time"] - START) // DAY
    late = pl.Series(np.random.default_rng(1).random(len(frame)) < 0.03)
    day = day.clip(0) + late.cast(pl.Int64)
    other = pl.Series(np.random.default_rng(2).random(len(frame)) < 0.2)
    for one in days:
        some = frame.filter((day == one) & ~other).drop("fold")
        rest = frame.filter((day == one) & other).select(
            "user_id", "item_id", "time", "device", "speed"
        )
        for name, rows in (("log", some), ("seen", rest)):
            (folder / name).mkdir(exist_ok=True)
            rows.write_parquet(folder / name / f"day-{one}.parquet")
