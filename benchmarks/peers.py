"""This package's models compared with LightGBM, item-kNN, ALS and means on the same impressions.

    python -m benchmarks.peers --data FOLDER                    # the small datasets
    python -m benchmarks.peers --data FOLDER --only ml1m        # any other, of benchmarks.datasets
    python -m benchmarks.peers --data FOLDER --only trivago --models lime-mha --seeds 1 --again

All models share a prepared dataset: its splits, its requests, and the rule that only events before
a request enter. All are judged on the main label (the first binary one) of the test impressions,
over all of them, and apart for *repeats* (the user's history holds the candidate) and new items.

``item mean``
    The item's smoothed rate in the training window (20 impressions at the base rate are added).
``user-item mean``
    log-odds of the item's rate, plus those of the user's smoothed rate over all impressions before
    the request, minus those of the base rate.
``item-knn``
    Mean cosine between the candidate and the positives of the history, over which users had a
    positive label on which items; shrinkage by validation.
``als``
    ``implicit``'s alternating least squares on the same positives; the user's vector is computed
    from the history before the request. Regularisation and weight by validation.
``lightgbm``
    Gradient-boosted trees on the features of ``benchmarks.peer_features``, with and without the
    similarity features, and with counters of items, and of values, besides; leaves, learning
    rate, feature fraction and the encoding of rates by validation, stopped early by the log loss
    there.
ours
    With the defaults of ``limerank train``; nothing is tuned.

Scores of item-kNN and ALS are not probabilities: a logistic curve, fitted to the validation
impressions, maps them. The test split is read once per model and seed. Every model has one thread.
Finished rows are skipped, unless ``--again`` asks for what the package gives now; LightGBM's
features and the setting that validation chose are stored in ``BENCH_WORK``. At last, the AUC of
this package's models minus that of LightGBM is computed, with intervals from a paired bootstrap
over users.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import quality
from benchmarks.datasets import LOGS, QUICK, WORK, prepare_dataset, truth_file
from benchmarks.jobs import Job, finish, workers
from benchmarks.peer_models import PEERS, Log, Result, clocked
from benchmarks.peer_statistics import Impressions, main_label
from benchmarks.peer_tables import ADDED
from benchmarks.rows import has_row, rows, write_row
from limerank import metrics
from limerank.data.dataset import Dataset
from limerank.evaluation.bootstrap import paired_auc

SMALL = ("mind_sample", "kuairand_slice", "ml_latest_small", "synth_short")
DATASETS = (*LOGS, QUICK)
OURS = ("lime-mha", "lime-xor", "two-tower", "hstu")
TRUTH = "truth"
DEFAULTS = {"bf16": False}
"""Other benchmarks train in bfloat16."""
FEATURES = {
    "item mean": ("item rate",),
    "user-item mean": ("item and user rates",),
    "item-knn": ("positives",),
    "als": ("positives",),
    "lightgbm": tuple(ADDED),
    TRUTH: ("simulation",),
}
"""Peer -> what it is given; a row each."""
MODELS = (*PEERS, *OURS, TRUTH)
PREPARED = "as prepared"
"""The features of this package's models: all of the dataset."""
RESAMPLES = 500
SEEDED = ("als", "lightgbm")
PACKAGES = {"als": ("implicit",), "lightgbm": ("lightgbm",)}


def ours(
    name: str,
    model: str,
    log: Log,
    features: str,
    seed: int,
    settings: Mapping[str, Any] | None = None,
) -> Result:
    """Train, or find the finished run, and predict the test split.

    Args:
        settings: what differs from the defaults.
    """
    import torch

    from limerank.evaluation.predict import predict
    from limerank.runs.folder import load_run

    torch.set_num_threads(1)
    setting = {**DEFAULTS, **(settings or {})}
    last = quality.fit(name, log.folder, model, seed, setting)
    loaded = load_run(quality.run_folder(name, model, seed, setting))
    requests = log.dataset.requests_of("test")
    predicted, predict_s = clocked(
        lambda: predict(loaded.ranker, log.dataset, requests, history=loaded.train.history)
    )
    label = main_label(log.dataset)
    values = predicted.values[:, log.dataset.tasks.index(label)].astype(np.float64)
    validated = last["metrics"][label]
    found = {
        "validation_auc": validated["auc"],
        "validation_ne": validated.get("calibrated_ne", validated["ne"]),
        "best_step": last["best_step"],
    }
    return Result(values, float(last["seconds"]), predict_s, found)


def truth(name: str, log: Log, features: str, seed: int) -> Result:
    """What the simulator drew the test impressions' main label by."""
    import polars as pl

    dataset, shown = log.dataset, log.test
    rows = dataset.impression_rows(dataset.requests_of("test"))
    keys = {
        "user_id": dataset.user_ids[shown.users],
        "item_id": dataset.item_ids[shown.items],
        "time_ms": np.asarray(dataset.events["time"][rows]),
    }
    file = truth_file(name)
    assert file is not None, f"{name} is not simulated"
    known = pl.read_parquet(file).unique(list(keys))
    joined = pl.DataFrame(keys).join(known, on=list(keys), how="left", maintain_order="left")
    values = joined[f"{main_label(dataset)}_probability"].cast(pl.Float64).to_numpy()
    assert np.isfinite(values).all(), f"impressions of {name} are missing in its truth"
    return Result(values, 0.0, 0.0, {})


# Rows


def measures(result: Result, shown: Impressions) -> dict[str, Any]:
    """AUC, GAUC and NE of all test impressions, of repeats and of new items, and the costs."""
    found: dict[str, Any] = {}
    for part, chosen in (
        ("", np.ones(len(shown.labels), dtype=bool)),
        (" | repeat", shown.repeats),
        (" | new", ~shown.repeats),
    ):
        labels, predicted = shown.labels[chosen], result.predictions[chosen]
        found[f"impressions{part}"] = int(chosen.sum())
        found[f"positives{part}"] = int(labels.sum())
        if 0 < labels.sum() < len(labels):
            found[f"auc{part}"] = metrics.auc(labels, predicted)
            found[f"gauc{part}"] = metrics.gauc(labels, predicted, shown.users[chosen])
            found[f"ne{part}"] = metrics.normalized_entropy(labels, predicted)
    found["train_s"] = result.train_s
    found["predict_us_per_impression"] = 1e6 * result.predict_s / len(shown.labels)
    return {**found, **result.settings}


def case_of(name: str, model: str, features: str) -> dict[str, Any]:
    return {"dataset": name, "model": model, "features": features}


def predictions_file(name: str, model: str, features: str, seed: int) -> Path:
    """Where the test predictions of a row lie, f64 [n]."""
    return WORK / "peers" / name / f"{model}-{features}-{seed}.npy"


def measure(name: str, folder: Path, model: str, features: str, seed: int) -> None:
    """One row: train, choose by validation, predict the test split once."""
    log = Log(folder)
    shown = log.test
    made_by = PEERS.get(model, partial(ours, name, model))
    if model == TRUTH:
        made_by = partial(truth, name)
    result = made_by(log, features, seed)
    found = measures(result, shown)
    path = predictions_file(name, model, features, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, result.predictions)
    case, packages = case_of(name, model, features), PACKAGES.get(model, ())
    write_row("peers", case, found, seed=seed, packages=packages)
    print(f"{name} {model} ({features}) seed {seed}: AUC {found['auc']:.4f}", flush=True)


def jobs(
    folders: dict[str, Path], models: tuple[str, ...], seeds: int, again: bool = False
) -> Iterator[Job]:
    """What has no row yet; everything, with ``again``."""
    for name, folder in folders.items():
        for model in models:
            if model == TRUTH and truth_file(name) is None:
                continue
            for features in FEATURES.get(model, (PREPARED,)):
                if "counters" in features and Dataset(folder).counters is None:
                    continue
                for seed in range(seeds if model in SEEDED or model in OURS else 1):
                    if again or not has_row("peers", case_of(name, model, features), seed):
                        yield measure, name, folder, model, features, seed


def comparisons(folders: dict[str, Path], models: tuple[str, ...], seeds: int) -> Iterator[Job]:
    """Differences to LightGBM whose predictions are all there."""
    for name, folder in folders.items():
        for model in models:
            for features in FEATURES["lightgbm"]:
                files = [
                    [predictions_file(name, *one, seed) for seed in range(seeds)]
                    for one in ((model, PREPARED), ("lightgbm", features))
                ]
                if model in OURS and all(file.exists() for of_model in files for file in of_model):
                    yield compare, name, folder, model, features, files


def compare(name: str, folder: Path, model: str, features: str, files: list[list[Path]]) -> None:
    """One row: the AUC of a model minus that of LightGBM, the mean over seeds."""
    shown = Log(folder).test
    ours, theirs = ([np.load(file).astype(np.float32) for file in some] for some in files)
    found = paired_auc(shown.labels, shown.users, ours, theirs, resamples=RESAMPLES)
    case = case_of(name, model, PREPARED) | {"against": f"lightgbm, {features}"}
    metrics = {"difference": found.difference, "low": found.low, "high": found.high}
    write_row("peers", case, metrics, repeats=len(ours))


def table_of(name: str) -> list[str]:
    """The rows of a dataset, as on the page."""
    from benchmarks.peers_page import section

    found = [
        row
        for row in rows("peers")
        if row["case"]["dataset"] == name and "against" not in row["case"]
    ]
    return section(found) if found else []


def one_thread() -> None:
    """Processes that start from here compute with one thread each."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(name, "1")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the real datasets")
    parser.add_argument(
        "--only", choices=DATASETS, action="append", help="this dataset (default: the small ones)"
    )
    parser.add_argument("--models", choices=MODELS, action="append", help="this model")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ... up to so many")
    parser.add_argument("--again", action="store_true", help="measure what has a row, too")
    parser.add_argument("--processes", type=int, default=2, help="models at a time, a thread each")
    given = parser.parse_args(arguments)
    one_thread()
    folders = {}
    for name in given.only or SMALL:
        if (folder := prepare_dataset(name, given.data)) is not None:
            folders[name] = folder
    models = tuple(given.models or MODELS)
    with workers(given.processes) as pool:
        finish(pool, "models", jobs(folders, models, given.seeds, given.again))
        finish(pool, "comparisons", comparisons(folders, models, given.seeds))
    for name in folders:
        print("\n".join(["", name, "", *table_of(name)]))


if __name__ == "__main__":
    main()
