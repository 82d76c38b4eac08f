"""Metrics of ranked lists: the whole catalogue is ranked for each request."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from limerank import metrics
from limerank.data.dataset import Dataset
from limerank.models import Ranker
from limerank.models.ranker import part_of
from limerank.models.tasks import columns, liking_task
from limerank.progress import Bar

LIST_DEPTHS = (10, 50)
LIST_NUMBERS = 1 << 22
"""First-layer sums held at once while lists are scored, about."""
LIST_REQUESTS = 2000
"""Requests whose lists are measured; drawn at random where a split has more."""
LIST_SEED = 0
"""Of that draw: the same requests for every model."""


def list_metrics(
    ranker: Ranker,
    dataset: Dataset,
    requests: NDArray[np.int64],
    *,
    most: int = LIST_REQUESTS,
    history: int | None = None,
    quiet: bool = True,
) -> dict[str, float]:
    """NDCG@k, HR@k and MRR of the liked items in rankings of the full catalogue.

    The positives of a request's first binary task are relevant; without a binary task, items with
    an outcome > 0 of the first task. Requests without positives are left out. Items that the user
    has seen before the request are neither ranked nor relevant.

    Args:
        ranker: the model.
        dataset: whose requests are ranked for.
        requests: request rows, i64.
        most: measure at most so many requests. Where there are more, they are drawn at random, and
            are the same in every call.
        history: events of a history, at most; as many as the dataset holds when not given.
        quiet: show no progress.

    Returns:
        ``requests`` that were measured, ``catalogue``, the number of rankable items, and the
        metrics, where there was a request to measure.
    """
    tasks = ranker.shape.tasks
    liking = liking_task(tasks)
    output = columns(tasks)[liking].start
    items = len(dataset.items)
    # Requests are drawn before their positives are read: the cost grows with `most`, not the split.
    drawn = requests
    if len(requests) > most:
        drawn = np.random.default_rng(LIST_SEED).permutation(requests)
    relevant: dict[int, NDArray[np.int32]] = {}
    for request in drawn:
        if len(relevant) == most:
            break
        if len(found := _relevant(dataset, request, tasks[liking].name)):
            relevant[int(request)] = found
    requests = np.sort(np.array(list(relevant), dtype=np.int64))
    device = next(ranker.parameters()).device
    was_training = ranker.training
    ranker.eval()
    ranks: list[NDArray[np.float64]] = []
    plan = dataset.plan(requests, 1024, history) if len(requests) else []
    with (
        torch.inference_mode(),
        Bar("ranking", total=len(requests), unit="requests", quiet=quiet) as bar,
    ):
        vectors = torch.cat(
            [
                ranker.item_vectors(
                    dataset.item_batch(np.arange(at, min(at + 65536, items))).to(device)
                )
                for at in range(0, items, 65536)
            ]
        )
        terms = ranker.encode_items(vectors)
        rows = torch.arange(items)
        keys, rows = dataset.item_keys(rows.numpy()).to(device), rows.to(device)
        for part in plan:
            batch = dataset.batch(part, history).to(device)
            state = ranker.encode_users(batch.users, ranker.item_vectors(batch.items))
            chunk = max(1, LIST_NUMBERS // (max(items, 1) * ranker.scratch(state)))
            for at in range(0, len(part), chunk):
                some = part_of(state, slice(at, at + chunk))
                extra = ranker.extra(some, keys, rows)
                scores = ranker.score(some, terms, extra)[..., output].float().cpu().numpy()
                for request, line in zip(part[at : at + chunk], scores, strict=True):
                    ranks.append(_ranks(dataset, request, line, relevant[int(request)]))
                bar.advance(len(scores))
    ranker.train(was_training)
    result = {"requests": float(len(ranks)), "catalogue": float(dataset.candidate.sum())}
    if ranks:
        offsets = np.concatenate([[0], np.cumsum([len(found) for found in ranks])])
        flat = np.concatenate(ranks)
        for depth in LIST_DEPTHS:
            result[f"ndcg@{depth}"] = metrics.ndcg(flat, depth, offsets)
            result[f"hr@{depth}"] = metrics.hit_rate(flat, depth, offsets)
        result["mrr"] = metrics.mrr(flat, offsets)
    return result


def _seen(dataset: Dataset, request: int) -> NDArray[np.int32]:
    """Items of the full history before a request."""
    columns = dataset.requests
    rows = slice(columns["history_start"][request], columns["history_end"][request])
    items: NDArray[np.int32] = dataset.events["item"][
        rows if dataset.retained is None else dataset.retained[rows]
    ]
    return items


def _relevant(dataset: Dataset, request: int, label: str) -> NDArray[np.int32]:
    """Items of a request that the user liked and had not seen before."""
    first = dataset.requests["first"][request]
    shown = slice(first, first + dataset.requests["count"][request])
    liked = dataset.events["item"][shown][dataset.events[f"label_{label}"][shown] > 0]
    return np.setdiff1d(liked[dataset.candidate[liked]], _seen(dataset, request))


def _ranks(
    dataset: Dataset, request: int, scores: NDArray[np.float32], relevant: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Ranks of the relevant items, ascending, 1 the best; of equal scores the lower row comes
    first."""
    scores[np.isnan(scores)] = -np.inf
    scores[_seen(dataset, request)] = -np.inf
    scores[~dataset.candidate] = -np.inf
    ranks = [
        1
        + np.count_nonzero(scores > scores[item])
        + np.count_nonzero(scores[:item] == scores[item])
        for item in relevant
    ]
    return np.sort(np.array(ranks, dtype=np.float64))
