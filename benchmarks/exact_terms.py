"""What exact matches and collaborative vectors are worth: LIME with and without them, on every log.

    python -m benchmarks.exact_terms --data FOLDER
    python -m benchmarks.exact_terms --data FOLDER --only synth_sparse --models lime-mha --seeds 1

Anchored links (`model.anchors`) are compared in four forms: none, those of items, those of the
values of content features, and both. Each is combined with no collaborative vectors and with
vectors as content (`model.vectors`). All other settings are the defaults of ``limerank train``.
The form is to be chosen by the validation split; the test split shows what it gives. Finished rows
are skipped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.datasets import LOGS, QUICK, prepare_dataset
from benchmarks.jobs import Job, finish, workers
from benchmarks.peer_models import Log
from benchmarks.rows import has_row, write_row

BENCH = "exact_terms"
MODELS = ("lime-mha", "lime-xor")
ANCHORS = ("none", "ids", "values", "both")
VECTORS = {"none": 0, "content": 32}
"""How collaborative vectors enter -> their length."""


def anchors_of(folder: Path, form: str) -> tuple[str, ...] | None:
    """The setting ``model.anchors`` of a form of anchored links; None where the dataset has no
    feature that is anchored."""
    from limerank.data.dataset import Dataset
    from limerank.models.config import ITEM, DataShape

    features = tuple(DataShape.of(Dataset(folder).manifest).anchors)
    if form in ("values", "both") and not features:
        return None
    return {"none": (), "ids": (ITEM,), "values": features, "both": (ITEM, *features)}[form]


def case_of(name: str, model: str, anchors: str, vectors: str) -> dict[str, Any]:
    return {"dataset": name, "model": model, "anchors": anchors, "vectors": vectors}


def cases(
    folders: dict[str, Path], models: tuple[str, ...], seeds: int, again: bool = False
) -> Iterator[Job]:
    """What has no row yet, the first seed of everything first; everything, with ``again``."""
    for seed in range(seeds):
        for name, folder in folders.items():
            for model in models:
                for anchors in ANCHORS:
                    if anchors_of(folder, anchors) is None:
                        continue
                    for vectors in VECTORS:
                        case = (name, model, anchors, vectors)
                        if again or not has_row(BENCH, case_of(*case), seed):
                            yield measure, folder, *case, seed


def measure(folder: Path, name: str, model: str, anchors: str, vectors: str, seed: int) -> None:
    """One row: train, and read the test split once."""
    log = Log(folder)
    settings = {"anchors": anchors_of(folder, anchors), "vectors": VECTORS[vectors]}
    result = peers.ours(name, model, log, peers.PREPARED, seed, settings)
    found = peers.measures(result, log.test)
    write_row(BENCH, case_of(name, model, anchors, vectors), found, seed=seed)
    print(
        f"{name} {model} anchors {anchors}, vectors {vectors}, seed {seed}: "
        f"AUC {found['auc']:.4f}, NE {found['ne']:.4f}",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the real datasets")
    parser.add_argument(
        "--only", choices=(*LOGS, QUICK), action="append", help="this log only (repeatable)"
    )
    parser.add_argument("--models", choices=MODELS, action="append", help="this model only")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ... up to so many")
    parser.add_argument("--again", action="store_true", help="measure what has a row, too")
    parser.add_argument("--processes", type=int, default=2, help="models at a time, a thread each")
    given = parser.parse_args(arguments)
    peers.one_thread()
    folders = {}
    for name in given.only or LOGS:
        if (folder := prepare_dataset(name, given.data)) is not None:
            folders[name] = folder
    models = tuple(given.models or MODELS)
    with workers(given.processes) as pool:
        finish(pool, "models", cases(folders, models, given.seeds, given.again))


if __name__ == "__main__":
    main()
