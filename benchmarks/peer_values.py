"""Counters of item features' values: an attempt, which models of this package do not have.

What :class:`limerank.data.counters.ItemCounters` counts of an item, counted of all items with the
same value of a categorical feature: how its category or author fared lately.
"""

from __future__ import annotations

import numpy as np

from benchmarks.peer_features import MATCHED_FEATURES
from benchmarks.peer_statistics import Floats, Impressions, first_values, main_label
from limerank.data.counters import COUNTERS, Block, Hourly, ItemCounters
from limerank.data.dataset import Dataset


class LatelyOfValues:
    """The counters of the values of impressions' items.

    Args:
        dataset: a prepared dataset with a clock and a binary label.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def table(self, shown: Impressions) -> tuple[list[str], Floats]:
        """Names [F] and values f32 [n, F] of the counters of the first categorical features'
        values."""
        dataset, counted = self.dataset, self.dataset.counters
        assert counted is not None
        rows = dataset.impression_rows(np.arange(len(dataset.requests["count"])))
        items, times = dataset.events["item"][rows], dataset.events["time"][rows]
        positive = dataset.events[f"label_{main_label(dataset)}"][rows] > 0
        at = dataset.events["time"][dataset.requests["first"][shown.requests]]
        features = first_values(dataset.items, dataset.encoding["items"]["features"])
        names, columns = list[str](), [np.zeros((len(shown.items), 0), np.float32)]
        for feature, codes in list(features.items())[:MATCHED_FEATURES]:
            hourly = Hourly.of(Block(codes[items], times, positive))
            of_values = ItemCounters(hourly, counted.mean, counted.end, after=counted.after)
            columns.append(of_values.at(codes[shown.items], at))
            names += [f"counter {counter} of {feature}" for counter in COUNTERS]
        return names, np.hstack(columns)
