"""Writes tests/formats/e5ca304: a dataset, a run and an index, and what they give. See README.md.

Runs against commit e5ca304: ``python tests/formats/write_e5ca304.py OUT`` from its root.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from limerank import Dataset, Recommender, build_index, evaluate, load_run, prepare, train
from limerank.evaluation.predict import predict

DESCRIPTION = {
    "name": "seconds",
    "events": [{"time": "time", "request": "page"}],
    "labels": [{"name": "click", "kind": "binary"}],
    "event_features": [{"name": "device", "kind": "categorical", "when": "context"}],
    "items": {"features": [{"name": "group", "kind": "categorical"}]},
}
MODEL = {"model": "lime-mha", "width": 8, "links": 4, "hidden": 8, "neighbours": 3}
CONFIG = {"epochs": 4, "batch_size": 32, "validations": 1}
USERS = ["u1", "u5", None]


def log() -> pl.DataFrame:
    """Pages of two items for 24 users, seconds, minutes and hours after one another."""
    rng = np.random.default_rng(0)
    rows = []
    for page in range(400):
        visit, user = divmod(page, 24)
        time = 1_750_000_000 + 7_200 * (visit // 4) + (0, 3, 33, 300)[visit % 4] + 400 * user
        for _ in range(2):
            item = int(rng.integers(0, 8)) + 2 * (user % 3)
            click = int(rng.random() < (0.7 if item % 3 == user % 3 else 0.2))
            rows.append((f"u{user}", f"i{item}", time, page, click, f"d{page % 3}"))
    return pl.DataFrame(
        rows, ["user_id", "item_id", "time", "page", "click", "device"], orient="row"
    )


def items() -> pl.DataFrame:
    return pl.DataFrame(
        {"id": [f"i{k}" for k in range(12)], "group": [f"g{k % 3}" for k in range(12)]}
    )


def facts(folder: Path) -> dict[str, Any]:
    """What the dataset, the run and the index in a folder give."""
    data, run = Dataset(folder / "data"), load_run(folder / "run")
    test = data.requests_of("test")
    batch = data.batch(test)
    found = evaluate(folder / "run", data=folder / "data", lists=20, out=folder / "metrics.json")
    ranked: dict[str, Any] = {}
    for scorer in ("model", "quantised", "native"):
        recommender = Recommender(run, folder / "index", data, scorer=scorer)
        answers = [recommender.rank(user, k=4, explain=4).to_dict() for user in USERS]
        ranked[scorer] = [
            {name: part for name, part in one.items() if name != "milliseconds"} for one in answers
        ]
    return {
        "tokens": batch.users.tokens.tolist(),
        "context": batch.users.context.tolist(),
        "labels": batch.labels.tolist(),
        "fingerprint": run.fingerprint,
        "metrics": found.to_dict(),
        "predictions": predict(run.ranker, data, test[:5]).values.tolist(),
        "ranked": ranked,
    }


def without_optimiser(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Its numbers are most of a run, and only another training reads them."""
    return None if entry.name.endswith("/optimiser.safetensors") else entry


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        prepare(DESCRIPTION, folder / "data", events=log(), items=items())
        train(folder / "data", folder / "run", model=MODEL, config=CONFIG, quiet=True)
        build_index(folder / "run", folder / "index", items=items(), quiet=True)
        with tarfile.open(out / "written.tar.xz", "w:xz") as archive:
            for name in ("data", "run", "index"):
                archive.add(folder / name, name, filter=without_optimiser)
        expected = facts(folder)
    (out / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
