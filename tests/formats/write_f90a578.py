"""Writes tests/formats/f90a578: a dataset that can be extended, and what that gives. See README.md.

Runs against commit f90a578: ``python tests/formats/write_f90a578.py OUT`` from its root.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from limerank import Dataset, prepare

DESCRIPTION = {
    "name": "days",
    "events": [{"time": "time", "request": "page"}, {"time": "time", "shown": False}],
    "labels": [{"name": "click", "kind": "binary"}],
    "event_features": [
        {"name": "device", "kind": "categorical", "when": "context"},
        {"name": "speed", "kind": "numeric"},
        {"name": "price", "kind": "numeric", "when": "impression", "transform": "log1p"},
    ],
    "items": {
        "features": [{"name": "group", "kind": "categorical"}, {"name": "size", "kind": "numeric"}]
    },
    "users": {"features": [{"name": "country", "kind": "categorical"}]},
    "split": {"held_out_users": 0.2},
}


def log(days: range) -> pl.DataFrame:
    """Pages of two items; every day brings a new item, a new user and a new device."""
    rows = []
    for day in days:
        for page in range(10):
            for at in range(2):
                item = (3 * page + 5 * at + day) % (8 + day)
                time = 1_750_000_000 + 86_400 * day + 900 * page
                user, number = f"u{page % (6 + day)}", 10 * day + page
                price = None if page == 3 else 1.5 * item + 1
                device = f"d{page % (2 + day)}"
                rows.append((user, item, time, number, (page + at) % 2, device, 0.1 * page, price))
    names = ["user_id", "item_id", "time", "page", "click", "device", "speed", "price"]
    return pl.DataFrame(rows, names, orient="row")


def sources(days: range) -> list[pl.DataFrame]:
    """Shown pages, and searches."""
    shown = log(days)
    return [shown, shown.gather_every(5).drop("page", "price").with_columns(pl.col("time") - 60)]


def facts(dataset: Dataset) -> dict[str, object]:
    batch = dataset.batch(np.arange(len(dataset.requests["user"])))
    assert batch.shown is not None
    return {
        "items": dataset.item_ids.tolist(),
        "users": dataset.user_ids.tolist(),
        "split": dataset.requests["split"].tolist(),
        "history": batch.users.tokens.tolist(),
        "context": batch.users.context.tolist(),
        "shown": batch.shown.numbers.tolist(),
        "labels": batch.labels.tolist(),
    }


def tables() -> dict[str, pl.DataFrame]:
    """The item table and the user table."""
    n = range(11)
    items = {"id": n, "group": [f"g{k % 3}" for k in n], "size": [2.5 * k for k in n]}
    users = {"id": [f"u{k}" for k in range(9)], "country": ["c0", "c1", "c2"] * 3}
    return {"items": pl.DataFrame(items), "users": pl.DataFrame(users)}


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        first, second = Path(work) / "first", Path(work) / "second"
        prepare(DESCRIPTION, first, events=sources(range(2)), **tables())
        prepare(DESCRIPTION, second, events=sources(range(2, 4)), extend=first, **tables())
        expected = {"first": facts(Dataset(first)), "second": facts(Dataset(second))}
        with tarfile.open(out / "written.tar.xz", "w:xz") as archive:
            archive.add(first, "first")
    (out / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
