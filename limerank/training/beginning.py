"""What a model has before its first step: starting values that depend on the log, statistics and
neighbours of its items, and the weights of the run that it starts from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from limerank.kernels.attention import real_positions
from limerank.models import Ranker
from limerank.models.config import TrainConfig
from limerank.training.collaborative import statistics
from limerank.training.neighbours import neighbour_lists
from limerank.training.objectives import Objective
from limerank.training.warm import Start
from limerank.world import World

SAMPLED = 256
"""Histories, about, whose events' ages set starting values; see Ranker.start_at."""
COUNTED = 4096
"""Requests, about, whose counters set the buckets of a model."""


def begin(
    ranker: Ranker,
    objective: Objective,
    config: TrainConfig,
    start: Start | None,
    quiet: bool,
) -> None:
    """Set all that a new model has before it is trained.

    Args:
        ranker: with random weights.
        objective: that it is trained for; it gets the statistics of items by folds.
        config: how it is trained.
        start: what it starts from; None: random weights.
        quiet: show no progress.
    """
    if start is None:
        ranker.start_at(_ages(objective, config))
    else:
        start.load_weights(ranker)
    tower, model = ranker.item_tower, ranker.config
    dataset = objective.dataset
    if (curves := tower.content.curves) is not None:
        curves.fit(dataset.items.numeric, np.arange(dataset.trained_items))
    if (curves := ranker.user_tower.content.curves) is not None:
        users = np.unique(dataset.requests["user"][objective.requests])
        curves.fit(dataset.users.numeric, users)
    if model.id_evidence:
        counts = torch.from_numpy(objective.item_counts.astype("float32"))
        if start is not None:
            counts = torch.maximum(counts, start.faded_counts(ranker))
        tower.id_shares[1:] = counts / (counts + model.id_evidence)
    if tower.statistics is not None:
        earlier = None if start is None else tower.statistics.clone()
        width, rates = model.vectors, model.base_rates
        found = statistics(objective.dataset, width, rates, quiet, earlier)
        tower.statistics.copy_(found.of_all)
        objective.statistics = found
    if ranker.counters is not None:
        counters = objective.dataset.counters
        assert counters is not None  # DataShape.counted
        if start is None or not start.has_counters:
            ranker.counters.fit(_counted(objective, model.counter_hours))
        ranker.counters.values[1:] = torch.from_numpy(
            counters.latest(np.arange(objective.dataset.trained_items))
        )
    if ranker.neighbour_table is not None:
        most, vectors = ranker.neighbour_table.ids.shape[1], None
        if objective.statistics is not None and model.vectors:
            vectors = objective.statistics.values[..., -model.vectors :]
        lists = neighbour_lists(objective.dataset, most, vectors, objective.in_order, quiet)
        ranker.neighbour_table.set(lists[-1])
        objective.neighbours = lists


def share_start(world: World, ranker: Ranker, objective: Objective) -> None:
    """Give all processes the weights, statistics and neighbours of process 0: another machine may
    have rounded otherwise."""
    if world.size == 1:
        return
    tensors = [*ranker.parameters(), *ranker.buffers()]
    if objective.statistics is not None:
        tensors.append(objective.statistics.values)
    tensors += [part for lists in objective.neighbours or () for part in lists]
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(world.from_first(tensor))


def _counted(objective: Objective, hours: int) -> Tensor:
    """Counters [n, F] of impressions of the training split, refreshed every so many hours."""
    rows = objective.requests
    batch = objective.dataset.batch(rows[:: max(len(rows) // COUNTED, 1)], 1, counted=hours)
    assert batch.counted is not None
    return batch.counted[batch.real]


def _ages(objective: Objective, config: TrainConfig) -> Tensor:
    """Ages [n] of the events in some histories of the training split."""
    rows = objective.requests
    some = rows[:: max(len(rows) // SAMPLED, 1)]
    users = objective.dataset.batch(some, config.history).users
    return users.age[real_positions(users.lengths, users.age.shape[1])]
