"""The metrics of each task over the impressions of a split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from limerank import metrics
from limerank.data.dataset import Dataset
from limerank.evaluation.predict import Predictions
from limerank.models.config import Task


def task_metrics(
    predicted: Predictions,
    dataset: Dataset,
    tasks: tuple[Task, ...],
    chosen: NDArray[np.bool_] | None = None,
) -> dict[str, dict[str, float]]:
    """The metrics of each task: task -> metric -> value.

    Args:
        predicted: predictions for n impressions.
        dataset: that they are of; GAUC groups impressions by its users.
        tasks: of the model.
        chosen: mask of the impressions to measure, bool [n]; all when not given.
    """
    pick = slice(None) if chosen is None else chosen
    users = dataset.requests["user"][predicted.requests[pick]]
    main = next((position for position, task in enumerate(tasks) if task.kind == "binary"), None)
    found: dict[str, dict[str, float]] = {}
    for position, task in enumerate(tasks):
        value, label = predicted.values[pick, position], predicted.labels[pick, position]
        if task.kind == "binary":
            found[task.name] = {
                "auc": metrics.auc(label, value),
                "gauc": metrics.gauc(label, value, users),
                "log_loss": metrics.log_loss(label, value),
                "ne": metrics.normalized_entropy(label, value),
                "calibration": metrics.calibration(label, value),
                "ece": metrics.ece(label, value),
            }
        else:
            positive = label > 0 if main is None else predicted.labels[pick, main]
            found[task.name] = {
                "xauc": metrics.xauc(label, value),
                "wtauc": metrics.wtauc(positive, value, label),
                "mae_s": metrics.mae(label, value),
                "calibration": metrics.calibration(label, value),
            }
    return found
