"""Writes tests/formats/1d64d68: datasets of format 3 and what they hold. See README.md.

Runs against commit 1d64d68: ``python tests/formats/write_1d64d68.py OUT`` from its root.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import polars as pl

from limerank import Dataset, prepare

KINDS = ("view", "view", "cart", "purchase")


def log() -> pl.DataFrame:
    """Visits of eight users; every third ends with a purchase, the others with a cart."""
    rows = []
    for visit in range(9):
        for user in range(8):
            for at, kind in enumerate(KINDS if (visit + user) % 3 == 0 else KINDS[:3]):
                item = f"p{(user + 2 * visit + min(at, 1)) % 12}"
                time = 1_750_000_000 + 86_400 * visit + 600 * user + 45 * at
                rows.append((f"u{user}", item, time, kind))
    return pl.DataFrame(rows, ["user_id", "item_id", "time", "event"], orient="row")


def facts(dataset: Dataset) -> dict[str, object]:
    batch = dataset.batch(dataset.requests_of("test"))
    return {
        "labels": dataset.encoding["labels"],
        "event_features": dataset.encoding["event_features"],
        "weights": dataset.events["label_purchase"].tolist(),
        "positives": dataset.manifest["summary"]["positives"],
        "requests": dataset.manifest["counts"]["requests"],
        "history": batch.users.tokens.tolist(),
        "targets": batch.labels.tolist(),
    }


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    items = pl.DataFrame(
        {"id": [f"p{k}" for k in range(12)], "group": [f"g{k % 3}" for k in range(12)]}
    )
    expected = {}
    with tempfile.TemporaryDirectory() as work, tarfile.open(out / "written.tar.xz", "w:xz") as all:
        for by in ("event", "session"):
            description = {
                "name": by,
                "events": [{"time": "time"}],
                "labels": [
                    {
                        "name": "purchase",
                        "kind": "positive",
                        "column": "event",
                        "any_of": ["cart", "purchase"],
                        "weights": {"purchase": 3},
                    }
                ],
                "items": {"features": [{"name": "group", "kind": "categorical"}]},
                "requests": {"by": by},
            }
            prepare(description, Path(work) / by, events=log(), items=items)
            dataset = Dataset(Path(work) / by)
            expected[by] = facts(dataset)
            all.add(dataset.path, by)
    (out / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
