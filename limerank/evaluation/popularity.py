"""The mean outcome of each item, without any model: what every model should beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from limerank.data.dataset import Dataset
from limerank.models.tasks import Task

SMOOTHING = 20.0
"""Impressions with the mean outcome that are added to those of each item."""
AT_ONCE = 1 << 16
"""Requests whose impressions are read at once."""


def item_means(dataset: Dataset, task: str) -> NDArray[np.float64]:
    """Smoothed mean outcome of each item over the impressions of the training split, f64 [I].

        (sum of outcomes + 20 m) / (impressions + 20),  m the mean of all outcomes

    An item without impressions has m; 0 for all where the split is empty.
    """
    items, labels = dataset.events["item"], dataset.events[f"label_{task}"]
    sums = np.zeros(len(dataset.items))
    counts = np.zeros(len(dataset.items))
    requests = dataset.requests_of("train")
    for at in range(0, len(requests), AT_ONCE):
        rows = dataset.impression_rows(requests[at : at + AT_ONCE])
        sums += np.bincount(items[rows], labels[rows], len(sums))
        counts += np.bincount(items[rows], minlength=len(sums))
    mean = sums.sum() / max(counts.sum(), 1.0)
    found: NDArray[np.float64] = (sums + SMOOTHING * mean) / (counts + SMOOTHING)
    return found


def popularity(
    dataset: Dataset, requests: NDArray[np.int64], tasks: tuple[Task, ...]
) -> dict[str, tuple[str, float]]:
    """How well :func:`item_means` order the impressions of some requests: task -> the metric of
    its kind that measures order (AUC, XAUC) and its value; tasks without labels are left out, and
    those of positives, which are judged by lists of the full catalogue.

    Args:
        dataset: whose training split gives the means.
        requests: request rows, i64; not empty.
        tasks: of a model.
    """
    rows = dataset.impression_rows(requests)
    items = dataset.events["item"][rows]
    return {
        task.name: task.of_kind.separation(
            np.asarray(dataset.events[f"label_{task.name}"][rows]),
            item_means(dataset, task.name)[items],
        )
        for task in tasks
        if task.name in dataset.tasks and task.kind != "positive"
    }
