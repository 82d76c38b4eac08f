"""Writes tests/formats/db0d66d: a run with counters and its index, and what they rank. See README.

Runs against commit db0d66d: ``PYTHONPATH=. python tests/formats/write_db0d66d.py OUT`` from its
root.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch

from limerank import Index, Recommender, build_index, load_run, prepare, put_items, train
from tests.formats.write_e5ca304 import DESCRIPTION, USERS, items, log, without_optimiser

MODEL = {
    "model": "lime-mha", "width": 4, "heads": 1, "links": 2, "hidden": 4, "profile": 0,
    "vectors": 0, "base_rates": False, "anchors": (), "neighbours": 0, "counter_hours": 1,
}  # fmt: skip
CONFIG = {"epochs": 4, "batch_size": 32, "validations": 1}
PUT = [{"id": "i3", "group": "g1"}, {"id": "new", "group": "g2"}]


def facts(folder: Path) -> dict[str, Any]:
    """What the run and the index in a folder rank, and the index's counters."""
    run, index = load_run(folder / "run"), Index.open(folder / "index")
    ranked: dict[str, Any] = {}
    for scorer in ("model", "native"):
        recommender = Recommender(run, folder / "index", folder / "data", scorer=scorer)
        answers = [recommender.rank(user, k=3, explain=1).to_dict() for user in USERS]
        ranked[scorer] = [
            {name: part for name, part in one.items() if name != "milliseconds"} for one in answers
        ]
    counters = None if index.counters is None else index.counters.tolist()
    return {"fingerprint": run.fingerprint, "counters": counters, "ranked": ranked}


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        prepare(DESCRIPTION, folder / "data", events=log(), items=items())
        train(folder / "data", folder / "run", model=MODEL, config=CONFIG, quiet=True)
        build_index(folder / "run", folder / "index", quiet=True)
        expected = {"built": facts(folder)}
        with tarfile.open(out / "written.tar.xz", "w:xz") as archive:
            for name in ("data", "run", "index"):
                archive.add(folder / name, name, filter=without_optimiser)
        put_items(folder / "run", folder / "index", PUT)
        expected["put"] = facts(folder)
    (out / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
