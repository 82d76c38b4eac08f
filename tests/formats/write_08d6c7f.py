"""Writes tests/formats/08d6c7f: a run of format 10, with a numeric feature, and what it ranks. See
README.

Runs against commit 08d6c7f: ``PYTHONPATH=. python tests/formats/write_08d6c7f.py OUT`` from its
root.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import torch

from limerank import build_index, prepare, train
from tests.formats.write_db0d66d import facts
from tests.formats.write_e5ca304 import DESCRIPTION, items, log, without_optimiser

MODEL = {
    "model": "lime-mha", "width": 4, "heads": 1, "links": 2, "hidden": 4, "profile": 0,
    "vectors": 0, "base_rates": False, "anchors": (), "neighbours": 0, "counter_hours": 0,
}  # fmt: skip
CONFIG = {"epochs": 4, "batch_size": 32, "validations": 1}


def described() -> dict[str, Any]:
    """With a price of items."""
    features = [*DESCRIPTION["items"]["features"], {"name": "price", "kind": "numeric"}]
    return {**DESCRIPTION, "items": {"features": features}}


def priced() -> pl.DataFrame:
    return items().with_columns(price=pl.Series([float(k * k) for k in range(12)]))


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        prepare(described(), folder / "data", events=log().head(240), items=priced())
        train(folder / "data", folder / "run", model=MODEL, config=CONFIG, quiet=True)
        build_index(folder / "run", folder / "index", quiet=True)
        (out / "expected.json").write_text(json.dumps(facts(folder), separators=(",", ":")) + "\n")
        with tarfile.open(out / "written.tar.xz", "w:xz") as archive:
            for name in ("data", "run", "index"):
                archive.add(folder / name, name, filter=without_optimiser)


if __name__ == "__main__":
    main()
