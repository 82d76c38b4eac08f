"""The peers: means, item-kNN, ALS and LightGBM, each trained, tuned and read on one dataset."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import peer_tables
from benchmarks.peer_statistics import (
    SMOOTHING,
    Impressions,
    earlier_impressions,
    history_of,
    impressions_of,
    main_label,
    parts,
    positives,
)
from limerank import metrics
from limerank.evaluation.popularity import item_means

if TYPE_CHECKING:
    from limerank.data.dataset import Dataset

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


def item_rates(log: Log) -> tuple[Values, float]:
    """Smoothed rate of each item in the training window, f64 [I], and the base rate."""
    train = impressions_of(log.dataset, "train")
    return item_means(log.dataset, main_label(log.dataset)), float(train.labels.mean())


def item_mean(log: Log, features: str, seed: int) -> Result:
    (rates, _), train_s = clocked(lambda: item_rates(log))
    predicted, predict_s = clocked(lambda: rates[log.test.items])
    return Result(predicted, train_s, predict_s, {})


def user_item_mean(log: Log, features: str, seed: int) -> Result:
    (rates, base), train_s = clocked(lambda: item_rates(log))
    label = log.dataset.events[f"label_{main_label(log.dataset)}"]

    def predict() -> Values:
        predicted = logit(rates[log.test.items]) - logit(base)
        earlier = earlier_impressions(log.dataset)
        for request, part in parts(log.test.requests):
            seen = label[earlier[request]]
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
                common[items[:, None] == liked] = 0  # an item is not similar to itself
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
    from threadpoolctl import threadpool_limits

    def fit(setting: dict[str, float]) -> Any:
        with threadpool_limits(1, "blas"):  # implicit asks for it
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
    encoding, position = peer_tables.chosen(log.folder, features)
    made, best = peer_tables.tables(log.folder, features, encoding), peer_tables.SETTINGS[position]
    model, train_s = clocked(lambda: made.fit(best, seed))
    predicted, predict_s = clocked(lambda: model.predict(made.values["test"], num_threads=1))
    settings = {"encoding": encoding, **best, "trees": model.best_iteration}
    settings["columns"] = len(made.names)
    for_training, for_test = made.seconds
    return Result(np.asarray(predicted), for_training + train_s, for_test + predict_s, settings)


PEERS: dict[str, Callable[[Log, str, int], Result]] = {
    "item mean": item_mean,
    "user-item mean": user_item_mean,
    "item-knn": item_knn,
    "als": als,
    "lightgbm": lightgbm,
}
