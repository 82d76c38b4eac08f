"""The metrics of each task over the impressions of a split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from limerank.data.dataset import Dataset
from limerank.evaluation.predict import Predictions
from limerank.metrics import Affine
from limerank.models.tasks import Task, liking_task


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
    liking = liking_task(tasks)
    found: dict[str, dict[str, float]] = {}
    for position, task in enumerate(tasks):
        value, label = predicted.values[pick, position], predicted.labels[pick, position]
        if np.isnan(label).all():
            continue  # an output of the training's objective, of which the dataset has no label
        kind = tasks[liking].of_kind
        marks = predicted.labels[pick, liking] if kind.binary or kind.catalogue else label
        positive = marks > 0
        found[task.name] = task.of_kind.measure(label, value, users, positive)
    return found


def calibration(predicted: Predictions, tasks: tuple[Task, ...]) -> list[Affine]:
    """For each output of the model, the map of its logits that fits the predictions best.

    Args:
        predicted: predictions for n impressions, n > 0.
        tasks: of the model. Those without labels keep their logits.
    """
    found: list[Affine] = []
    for position, task in enumerate(tasks):
        label = predicted.labels[:, position]
        if np.isnan(label).all():
            found += [Affine(1.0, 0.0)] * task.of_kind.outputs
        else:
            found += task.of_kind.calibrate(label, predicted.values[:, position], task)
    return found
