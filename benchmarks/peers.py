"""This package's models beside LightGBM, item-kNN, ALS and means, on the same impressions.

    python -m benchmarks.peers --data FOLDER                    # the small datasets
    python -m benchmarks.peers --data FOLDER --only ml1m        # also trivago
    python -m benchmarks.peers --data FOLDER --only mind_sample --models lightgbm

All models share a prepared dataset: its splits, its requests, and the rule that only events before
a request enter. All are judged on the main label (the first binary one) of the test impressions,
over all of them, and apart for *repeats* (the user's history holds the candidate) and new items.

``item mean``
    The item's smoothed rate in the training window (20 impressions at the base rate are added).
``user-item mean``
    log-odds of the item's rate, plus those of the user's smoothed rate in the history before the
    request, minus those of the base rate.
``item-knn``
    Mean cosine between the candidate and the positives of the history, over which users had a
    positive label on which items; shrinkage by validation.
``als``
    ``implicit``'s alternating least squares on the same positives; the user's vector is computed
    from the history before the request. Regularisation and weight by validation.
``lightgbm``
    Gradient-boosted trees on the features of ``benchmarks.peer_features``, with and without the
    similarity features; leaves and rate by validation, stopped early by the log loss there.
ours
    With the defaults of ``limerank train``; nothing is tuned.

Scores of item-kNN and ALS are not probabilities: a logistic curve, fitted to the validation
impressions, maps them. The test split is read once per model and seed. Every model has one thread.
Finished rows are skipped.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import quality
from benchmarks.datasets import WORK, prepare_dataset
from benchmarks.jobs import Job, finish, workers
from benchmarks.peer_features import (
    SMOOTHING,
    Features,
    Impressions,
    history_of,
    impressions_of,
    main_label,
    parts,
    positives,
)
from benchmarks.rows import has_row, write_row
from limerank import metrics

if TYPE_CHECKING:
    from limerank.data.dataset import Dataset

SMALL = ("mind_sample", "kuairand_slice", "ml_latest_small", "synth_short")
DATASETS = (*SMALL, "ml1m", "trivago", "synth_quick")
OURS = ("lime-mha", "lime-xor", "two-tower", "hstu")
DEFAULTS = {"bf16": False}
"""Other benchmarks train in bfloat16."""
FEATURES = {
    "item mean": ("item rate",),
    "user-item mean": ("item and user rates",),
    "item-knn": ("positives",),
    "als": ("positives",),
    "lightgbm": ("all", "without similarity"),
}
"""Peer -> what it is given; a row each."""
SEEDED = ("als", "lightgbm")
PACKAGES = {"als": ("implicit",), "lightgbm": ("lightgbm",)}
LIGHTGBM = {"objective": "binary", "min_data_in_leaf": 100, "feature_fraction": 0.7}
LIGHTGBM_SETTINGS: tuple[dict[str, Any], ...] = (
    {"num_leaves": 31, "learning_rate": 0.1},
    {"num_leaves": 31, "learning_rate": 0.03},
    {"num_leaves": 7, "learning_rate": 0.1},
)
ROUNDS, PATIENCE = 2000, 50
"""Trees at most, and trees without a lower log loss on validation after which boosting stops."""
SHRINKAGE = (0.0, 10.0, 100.0)
"""What item-kNN tries: users who are added to the norm of a cosine."""
ALS_SETTINGS: tuple[dict[str, float], ...] = (
    {"regularization": 0.1, "alpha": 1.0},
    {"regularization": 1.0, "alpha": 1.0},
    {"regularization": 1.0, "alpha": 10.0},
)
ALS_FACTORS = 32

Values = NDArray[np.float64]


class Log:
    """A prepared dataset, and what several peers read of it, computed on first use."""

    def __init__(self, folder: Path) -> None:
        from limerank.data.dataset import Dataset

        self.folder = folder
        self.dataset: Dataset = Dataset(folder)

    @cached_property
    def validation(self) -> Impressions:
        return impressions_of(self.dataset, "validation")

    @cached_property
    def test(self) -> Impressions:
        return impressions_of(self.dataset, "test")

    @cached_property
    def positives(self) -> Any:
        return positives(self.dataset)


@dataclass(frozen=True)
class Result:
    """Test predictions of a peer, f64 [n], what they cost, and the settings that validation chose.

    ``predict_s`` includes making the features of the test impressions, ``train_s`` those of all
    others; the search for settings is not counted.
    """

    predictions: Values
    train_s: float
    predict_s: float
    settings: dict[str, Any]


def clocked(work: Callable[[], Any]) -> tuple[Any, float]:
    """What ``work`` returns, and its seconds."""
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


def logit(probability: Any) -> Values:
    clipped = np.clip(np.asarray(probability, dtype=np.float64), 1e-7, 1 - 1e-7)
    return np.log(clipped / (1 - clipped))


def sigmoid(values: Values) -> Values:
    return 1 / (1 + np.exp(-np.clip(values, -30, 30)))


def logistic_curve(scores: Values, labels: NDArray[Any]) -> Callable[[Values], Values]:
    """Platt's calibration: the curve p = sigmoid(a + b s) of least log loss, by Newton's method."""
    centre, scale = scores.mean(), scores.std() or 1.0

    def columns(values: Values) -> Values:
        return np.column_stack([np.ones(len(values)), (values - centre) / scale])

    inputs = columns(scores)
    weights = np.array([float(logit(labels.mean())), 0.0])
    for _ in range(30):
        probability = sigmoid(inputs @ weights)
        slope = inputs.T @ (labels - probability) - 1e-3 * weights
        curvature = (inputs.T * (probability * (1 - probability))) @ inputs + 1e-3 * np.eye(2)
        weights = weights + np.linalg.solve(curvature, slope)
    return lambda values: sigmoid(columns(values) @ weights)


# Peers


def item_rates(log: Log) -> tuple[Values, float]:
    """Smoothed rate of each item in the training window, f64 [I], and the base rate."""
    train = impressions_of(log.dataset, "train")
    items = len(log.dataset.items)
    shown = np.bincount(train.items, minlength=items)
    positive = np.bincount(train.items, train.labels, minlength=items)
    base = float(train.labels.mean())
    return (positive + SMOOTHING * base) / (shown + SMOOTHING), base


def item_mean(log: Log, features: str, seed: int) -> Result:
    (rates, _), train_s = clocked(lambda: item_rates(log))
    predicted, predict_s = clocked(lambda: rates[log.test.items])
    return Result(predicted, train_s, predict_s, {})


def user_item_mean(log: Log, features: str, seed: int) -> Result:
    (rates, base), train_s = clocked(lambda: item_rates(log))
    label = log.dataset.events[f"label_{main_label(log.dataset)}"]

    def predict() -> Values:
        predicted = logit(rates[log.test.items]) - logit(base)
        for request, part in parts(log.test.requests):
            seen = label[history_of(log.dataset, request)]
            predicted[part] += logit((seen.sum() + SMOOTHING * base) / (len(seen) + SMOOTHING))
        return sigmoid(predicted)

    predicted, predict_s = clocked(predict)
    return Result(predicted, train_s, predict_s, {})


def liked_before(dataset: Dataset, request: int) -> NDArray[np.int32]:
    """Distinct items of the history before a request that have a positive label."""
    rows = history_of(dataset, request)
    liked = dataset.events[f"label_{main_label(dataset)}"][rows] > 0
    found: NDArray[np.int32] = np.unique(dataset.events["item"][rows[liked]])
    return found


def cooccurrences(log: Log) -> Any:
    """Users who had a positive label on both items, CSR f32 [I, I]; the diagonal: on one."""
    return (log.positives.T @ log.positives).tocsr()


def item_knn(log: Log, features: str, seed: int) -> Result:
    together, train_s = clocked(lambda: cooccurrences(log))
    popularity = together.diagonal()

    def score(shown: Impressions, shrinkage: float) -> Values:
        scores = np.zeros(len(shown.items))
        for request, part in parts(shown.requests):
            liked = liked_before(log.dataset, request)
            if len(liked):
                items = shown.items[part]
                common = together[items][:, liked].toarray()
                common[items[:, None] == liked] = 0  # an item is no neighbour of itself
                norm = np.sqrt(popularity[items][:, None] * popularity[liked]) + shrinkage
                scores[part] = (common / np.maximum(norm, 1e-9)).mean(axis=1)
        return scores

    by_shrinkage = {value: score(log.validation, value) for value in SHRINKAGE}
    best = max(SHRINKAGE, key=lambda value: metrics.auc(log.validation.labels, by_shrinkage[value]))
    calibrated = logistic_curve(by_shrinkage[best], log.validation.labels)
    predicted, predict_s = clocked(lambda: calibrated(score(log.test, best)))
    return Result(predicted, train_s, predict_s, {"shrinkage": best})


def als(log: Log, features: str, seed: int) -> Result:
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    def fit(setting: dict[str, float]) -> Any:
        model = AlternatingLeastSquares(
            factors=ALS_FACTORS, num_threads=1, random_state=seed, use_gpu=False, **setting
        )
        model.fit(log.positives, show_progress=False)
        return model

    def score(model: Any, shown: Impressions) -> Values:
        requests = [request for request, _ in parts(shown.requests)]
        liked = [liked_before(log.dataset, request) for request in requests]
        rows = np.repeat(np.arange(len(requests)), [len(of) for of in liked])
        ones = np.ones(len(rows), dtype=np.float32)
        shape = (len(requests), len(log.dataset.items))
        histories = csr_matrix((ones, (rows, np.concatenate(liked))), shape=shape)
        users = model.recalculate_user(np.arange(len(requests)), histories)
        of_impression = np.repeat(users, [p.stop - p.start for _, p in parts(shown.requests)], 0)
        found: Values = np.einsum("nd,nd->n", of_impression, model.item_factors[shown.items])
        return found.astype(np.float64)

    fitted = {position: fit(setting) for position, setting in enumerate(ALS_SETTINGS)}
    scores = {position: score(model, log.validation) for position, model in fitted.items()}
    best = max(scores, key=lambda position: metrics.auc(log.validation.labels, scores[position]))
    model, train_s = clocked(lambda: fit(ALS_SETTINGS[best]))
    calibrated = logistic_curve(scores[best], log.validation.labels)
    predicted, predict_s = clocked(lambda: calibrated(score(model, log.test)))
    return Result(predicted, train_s, predict_s, dict(ALS_SETTINGS[best]))


def lightgbm(log: Log, features: str, seed: int) -> Result:
    import lightgbm as gbm

    train = impressions_of(log.dataset, "train")

    def tables() -> tuple[Features, Any, Any]:
        made = Features(log.dataset, similarity=features == "all")
        return made, made.table(train)[1], made.table(log.validation)[1]

    (made, of_train, of_validation), features_s = clocked(tables)

    def fit(setting: dict[str, Any], number: int) -> Any:
        return gbm.train(
            {**LIGHTGBM, **setting, "seed": number, "num_threads": 1, "verbosity": -1},
            gbm.Dataset(of_train, train.labels),
            ROUNDS,
            valid_sets=[gbm.Dataset(of_validation, log.validation.labels)],
            callbacks=[gbm.early_stopping(PATIENCE, verbose=False)],
        )

    def loss(setting: dict[str, Any]) -> float:
        return float(fit(setting, 0).best_score["valid_0"]["binary_logloss"])

    best = min(LIGHTGBM_SETTINGS, key=loss)
    model, train_s = clocked(lambda: fit(best, seed))
    predicted, predict_s = clocked(lambda: model.predict(made.table(log.test)[1], num_threads=1))
    settings = {**best, "trees": model.best_iteration, "columns": of_train.shape[1]}
    return Result(np.asarray(predicted), features_s + train_s, predict_s, settings)


PEERS: dict[str, Callable[[Log, str, int], Result]] = {
    "item mean": item_mean,
    "user-item mean": user_item_mean,
    "item-knn": item_knn,
    "als": als,
    "lightgbm": lightgbm,
}


def ours(name: str, model: str, log: Log, features: str, seed: int) -> Result:
    """Train with defaults, or find the finished run, and predict the test split."""
    import torch

    from limerank.evaluation.predict import predict
    from limerank.runs.folder import load_run

    torch.set_num_threads(1)
    last = quality.fit(name, log.folder, model, seed, DEFAULTS)
    loaded = load_run(quality.run_folder(name, model, seed, DEFAULTS))
    requests = log.dataset.requests_of("test")
    predicted, predict_s = clocked(
        lambda: predict(loaded.ranker, log.dataset, requests, history=loaded.train.history)
    )
    task = log.dataset.tasks.index(main_label(log.dataset))
    values = predicted.values[:, task].astype(np.float64)
    return Result(values, float(last["seconds"]), predict_s, {})


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
    result = made_by(log, features, seed)
    found = measures(result, shown)
    path = predictions_file(name, model, features, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, result.predictions)
    case, packages = case_of(name, model, features), PACKAGES.get(model, ())
    write_row("peers", case, found, seed=seed, packages=packages)
    print(f"{name} {model} ({features}) seed {seed}: AUC {found['auc']:.4f}", flush=True)


def jobs(folders: dict[str, Path], models: tuple[str, ...], seeds: int) -> Iterator[Job]:
    """What has no row yet."""
    for name, folder in folders.items():
        for model in models:
            for features in FEATURES.get(model, ("as prepared",)):
                for seed in range(seeds if model in SEEDED or model in OURS else 1):
                    if not has_row("peers", case_of(name, model, features), seed):
                        yield measure, name, folder, model, features, seed


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the real datasets")
    parser.add_argument(
        "--only", choices=DATASETS, action="append", help="this dataset (default: the small ones)"
    )
    parser.add_argument("--models", choices=(*PEERS, *OURS), action="append", help="this model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="models at a time, a thread each")
    given = parser.parse_args(arguments)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(name, "1")
    folders = {}
    for name in given.only or SMALL:
        if (folder := prepare_dataset(name, given.data)) is not None:
            folders[name] = folder
    models = tuple(given.models or (*PEERS, *OURS))
    with workers(given.processes) as pool:
        finish(pool, "models", jobs(folders, models, given.seeds))


if __name__ == "__main__":
    main()
