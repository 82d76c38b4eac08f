"""A ranker's predictions for the impressions of a dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.dataset import Dataset
from limerank.data.impressions import Use
from limerank.models import Ranker
from limerank.models.tasks import predictions
from limerank.progress import Bar
from limerank.world import Alone, World, collected, dealt


@dataclass(frozen=True)
class Predictions:
    """Predictions for n impressions, in the order of the requests.

    Attributes:
        rows: event rows, i64 [n].
        requests: request rows, i64 [n].
        values: probabilities or expected seconds, f32 [n, K].
        labels: outcomes, f32 [n, K]; NaN for tasks of the model that the dataset has no label of.
        link_use: mean weight of each link per head, f32 [H, l]; None for models without links.
    """

    rows: NDArray[np.int64]
    requests: NDArray[np.int64]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    link_use: NDArray[np.float32] | None


def predict(
    ranker: Ranker,
    dataset: Dataset,
    requests: NDArray[np.int64],
    *,
    history: int | None = None,
    impressions: int = 8192,
    impression_features: Use = "all",
    quiet: bool = True,
    world: World | None = None,
) -> Predictions:
    """Predict the outcomes of every impression of the requests from the history before each.

    Args:
        ranker: the model; it is left in the mode (training or evaluation) that it was in.
        dataset: whose requests are scored.
        requests: request rows, i64.
        history: events of a history, at most; as many as the dataset holds when not given.
        impressions: of a batch, about.
        impression_features: which of the dataset's the model sees; see
            :data:`~limerank.data.impressions.Use`.
        quiet: show no progress.
        world: processes that compute some of the batches each and return the same predictions, bit
            for bit those of one process; this one alone when not given.
    """
    world = world or Alone()
    device = next(ranker.parameters()).device
    counts = dataset.requests["count"][requests].astype(np.int64)
    position = np.zeros(len(dataset.requests["count"]) + 1, dtype=np.int64)
    position[requests + 1] = counts
    np.cumsum(position, out=position)
    total, tasks = int(counts.sum()), ranker.shape.tasks
    values = np.empty((total, len(tasks)), dtype=np.float32)
    labels = np.full((total, len(tasks)), np.nan, dtype=np.float32)
    labelled = [at for at, task in enumerate(tasks) if task.name in dataset.tasks]
    label_columns = [dataset.tasks.index(tasks[at].name) for at in labelled]
    plan = dataset.plan(requests, impressions, history)
    visible = torch.from_numpy(dataset.impressions.used(impression_features))
    was_training = ranker.training
    ranker.eval()

    def put(part: NDArray[np.int64], found: Tensor) -> None:
        """Store the predictions and labels of the impressions of some requests."""
        counts_b = dataset.requests["count"][part].astype(np.int64)
        starts = np.repeat(position[part] - (np.cumsum(counts_b) - counts_b), counts_b)
        at = starts + np.arange(len(starts))
        values[at] = found[:, : len(tasks)].numpy()
        labels[at[:, None], labelled] = found[:, len(tasks) :].numpy()[:, label_columns]

    own = dealt(plan, world)
    hours = 0 if ranker.counters is None else ranker.config.counter_hours
    found, uses = [], []
    with (
        torch.inference_mode(),
        Bar("scoring", total=total, unit="impressions", quiet=quiet) as bar,
    ):
        for part, batch in zip(own, dataset.batches(own, history, hours), strict=True):
            if batch.shown is not None and not visible.all():
                batch = replace(batch, shown=batch.shown.where(visible))
            batch = batch.to(device)
            real = batch.real
            predicted = predictions(ranker(batch)[real].float(), tasks)
            both = torch.cat([predicted, batch.labels[real]], 1).cpu()
            if world.size == 1:
                put(part, both)
            else:
                found.append(both)
            if ranker.folds:
                terms = ranker.encode_items(ranker.item_vectors(batch.items)[: batch.distinct])
                seen = torch.bincount(batch.candidates[real], minlength=batch.distinct)
                uses.append((seen.to(terms.weights.dtype) @ terms.weights)[None])
            bar.advance(len(both))
        if world.size > 1:
            for part, both in zip(plan, collected(world, found, len(plan)), strict=True):
                put(part, both)
        uses = collected(world, uses, len(plan)) if ranker.folds else []
    ranker.train(was_training)
    link_use = None
    if uses and total:
        assert ranker.link_shape is not None
        link_use = (sum(uses[1:], uses[0]) / total).view(ranker.link_shape).cpu().numpy()
    rows = dataset.impression_rows(requests)
    return Predictions(rows, np.repeat(requests, counts), values, labels, link_use)


def effective_links(link_use: NDArray[np.float32]) -> float:
    """How many links the items use: the perplexity of the mean link weights, averaged over heads.

    It is l where all links are used alike, and 1 where items use a single link.

    Args:
        link_use: mean weight of each link per head, f32 [H, l], rows sum to one.
    """
    share = np.maximum(link_use.astype(np.float64), 1e-30)
    return float(np.exp(-(share * np.log(share)).sum(-1)).mean())
