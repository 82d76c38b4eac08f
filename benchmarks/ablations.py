"""What each part of LIME contributes: one part changed at a time, all others at their defaults.

    python -m benchmarks.ablations --data FOLDER
    python -m benchmarks.ablations --data FOLDER --what links --what heads --seeds 1

Learning rates are those that ``benchmarks.quality`` chose for the unchanged model. Two epochs keep
the study within an afternoon; read the differences, not the absolute values. Each row has the test
AUC and the cost of a candidate: multiply-adds of scoring, and microseconds of the torch model on
one thread over items that are already encoded. Finished rows are skipped.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import quality
from benchmarks.datasets import prepare_dataset
from benchmarks.jobs import finish, workers
from benchmarks.model_costs import costs
from benchmarks.rows import has_row, write_row

DATASET = "ml1m"
MODELS = ("lime-mha", "lime-xor")
CANDIDATES = 2048
EPOCHS = 2

CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "base": {"": {}},
    "links": {str(n): {"links": n} for n in (2, 4, 8, 16, 64, 128)},
    "heads": {str(n): {"heads": n} for n in (2, 4)},
    "blocks": {str(n): {"blocks": n} for n in (1, 2, 4)},
    "mask": {name: {"variant": name} for name in ("read-only", "dense")},
    "phi": {"softmax": {"variant": "softmax"}},
    "reading": {"a last block": {"variant": "last-block"}},
    "contextual links": {"off": {"variant": "raw-links"}},
    "item weights": {"from personalised links": {"variant": "coupled"}},
    "head": {
        "plain, 32 units": {"gated": False},
        "plain, 64 units": {"gated": False, "hidden": 64},
        "with a product term": {"variant": "product"},
        "hard-swish": {"activation": "hardswish"},
        "SiLU": {"activation": "silu"},
    },
    "hidden": {str(n): {"hidden": n} for n in (16, 64, 128)},
    "id dropout": {str(share): {"id_dropout": share} for share in (0.0, 0.3)},
    "history": {str(n): {"history": n} for n in (16, 32, 64, 256, 512, 2048)},
}
"""What is changed -> to what -> the settings that differ; ``variant``: another model of
benchmarks.variants."""


def cases(models: tuple[str, ...], what: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """(model, part, value) of all changes that a model supports."""
    from benchmarks.variants import VARIANTS

    for part in what:
        for value, change in CHANGES[part].items():
            for model in models:
                variant = change.get("variant")
                if variant is not None and (model, variant) not in VARIANTS:
                    continue
                if "blocks" in change and model != "lime-xor":
                    continue
                yield model, part, value


def case_of(model: str, what: str, value: str) -> dict[str, Any]:
    return {"dataset": DATASET, "model": model, "what": what, "value": value}


def measure(folder: Path, model: str, what: str, value: str, seed: int) -> None:
    """Train with one change, evaluate on the test split, time the scoring."""
    from benchmarks.variants import name_of
    from limerank.evaluation.evaluate import evaluate

    setting = {**quality.chosen(DATASET, model), "epochs": EPOCHS, **CHANGES[what][value]}
    changed = name_of(model, setting.pop("variant", None))
    last = quality.fit(DATASET, folder, changed, seed, setting)
    run = quality.run_folder(DATASET, changed, seed, setting)
    found = next(iter(evaluate(run, data=folder, lists=0).tasks.values()))
    metrics: dict[str, Any] = {"auc": found["auc"], "gauc": found["gauc"], "ne": found["ne"]}
    metrics |= quality.validated(last)
    metrics |= costs(run, folder)
    metrics["us_per_candidate"] = microseconds(run, folder)
    metrics["train_impressions_per_s_one_thread"] = last["impressions_per_s"]
    write_row("ablations", case_of(model, what, value), metrics, seed=seed)
    print(f"{model} {what} {value} seed {seed}: AUC {found['auc']:.4f}", flush=True)


def microseconds(run: Path, folder: Path, repeats: int = 30) -> float:
    """Median time of scoring one request against many items, per item."""
    import numpy as np
    import torch

    from limerank.data.dataset import Dataset
    from limerank.runs.folder import load_run

    ranker, dataset = load_run(run).ranker, Dataset(folder)
    batch = dataset.batch(dataset.requests_of("test")[:1])
    with torch.inference_mode():
        state = ranker.encode_users(batch.users, ranker.item_vectors(batch.items))
        items = np.arange(CANDIDATES) % len(dataset.items)
        terms = ranker.encode_items(ranker.item_vectors(dataset.item_batch(items)))
        taken = []
        for _ in range(repeats):
            started = time.perf_counter()
            ranker.score(state, terms)
            taken.append(time.perf_counter() - started)
    return 1e6 * statistics.median(taken) / CANDIDATES


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the real datasets")
    parser.add_argument(
        "--what", choices=tuple(CHANGES), action="append", help="this part only (repeatable)"
    )
    parser.add_argument("--models", choices=MODELS, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    folder = prepare_dataset(DATASET, given.data)
    if folder is None:
        raise SystemExit(1)
    models = tuple(given.models or MODELS)
    with workers(given.processes) as pool:
        finish(pool, "settings", quality.searches({DATASET: folder}, models))
        waiting = [
            (measure, folder, *case, seed)
            for seed in range(given.seeds)
            for case in cases(models, tuple(given.what or CHANGES))
            if not has_row("ablations", case_of(*case), seed)
        ]
        finish(pool, "runs", waiting)


if __name__ == "__main__":
    main()
