"""Positives of the catalogue in the training split: how many requests and items have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limerank.data.dataset import Dataset

BLOCK = 1 << 19
"""Impressions that are read at once, about."""


@dataclass(frozen=True)
class Positives:
    """Positives of some requests, by the labels of their kind.

    Attributes:
        of_requests: impressions of each request that are a positive of any label, i64 [requests].
        of_items: positives of each item of the training window, i64 [trained items].
        weights: label -> sum of the weights of its positives.
    """

    of_requests: NDArray[np.int64]
    of_items: NDArray[np.int64]
    weights: dict[str, float]

    @property
    def total(self) -> int:
        """Number of positives."""
        return int(self.of_requests.sum())


def positives(dataset: Dataset, requests: NDArray[np.int64], labels: Sequence[str]) -> Positives:
    """Count the positives of requests.

    Args:
        requests: request rows, i64.
        labels: names of labels whose values above 0 are weights of positives.
    """
    of_requests = np.zeros(len(requests), np.int64)
    of_items = np.zeros(dataset.trained_items, np.int64)
    weights = dict.fromkeys(labels, 0.0)
    counts = dataset.requests["count"][requests].astype(np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.searchsorted(ends, np.arange(BLOCK, total, BLOCK))
    for part in np.split(np.arange(len(requests)), cuts):
        rows = dataset.impression_rows(requests[part])
        chosen = np.zeros(len(rows), bool)
        for label in labels:
            value = np.asarray(dataset.events[f"label_{label}"][rows], np.float64)
            weights[label] += float(value.sum())
            chosen |= value > 0
        owner = np.repeat(np.arange(len(part)), counts[part])
        of_requests[part] = np.bincount(owner[chosen], minlength=len(part))
        items = np.asarray(dataset.events["item"][rows])[chosen]
        items = items[items < dataset.trained_items]
        of_items += np.bincount(items, minlength=dataset.trained_items)
    return Positives(of_requests, of_items, weights)
