"""What a scorer over an index loses against the model."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from limerank import metrics
from limerank.data.dataset import Dataset
from limerank.errors import UnknownError
from limerank.index import Index
from limerank.progress import Bar
from limerank.ranking.scorer.contract import Rows, Scorer
from limerank.ranking.scorer.model import ModelScorer
from limerank.ranking.scorer.native import NativeScorer
from limerank.runs.folder import Run


def quantisation_report(
    run: Run,
    index: Index,
    dataset: Dataset,
    *,
    split: str = "test",
    depth: int = 100,
    users: int = 500,
    requests: int = 20_000,
    scorer: Scorer | None = None,
    quiet: bool = True,
) -> dict[str, float]:
    """What a scorer over an index loses against the float32 model.

    Args:
        run: of the model that built the index.
        index: of the dataset's items.
        dataset: whose requests are scored.
        split: whose impressions are scored for AUC; users come from it, too.
        depth: of the lists that are compared.
        users: lists are compared for so many users, as of their last request in the split.
        requests: at most so many, spaced evenly, for AUC.
        scorer: what is measured; the native scorer when not given.

    Returns:
        ``requests``, ``impressions`` and ``users``; for each task ``TASK/auc`` (binary) or
        ``TASK/xauc`` of the model and ``TASK/auc_lost`` or ``TASK/xauc_lost``;
        ``logit_error_max`` and ``logit_error_rms`` over the lists; ``overlap``, the mean share of
        the model's first ``depth`` items of the whole index (ranked by the first task) that are
        among the scorer's first ``depth``, and ``overlap_min``.

    Raises:
        UnknownError: the index does not hold an item of the dataset.
    """
    ranker = run.ranker
    measured = NativeScorer(ranker, index) if scorer is None else scorer
    reference = ModelScorer(ranker, index)
    rows = index.ids.find(dataset.item_ids)
    if (rows < 0).any():
        missing = dataset.item_ids[rows < 0]
        raise UnknownError(
            f"the index {index.path} lacks {len(missing)} items of {dataset.path}, such as "
            f"{missing[0]!r}; build it from the whole dataset"
        )
    history = run.train.history
    chosen = _spaced(dataset.requests_of(split), requests)
    last = np.flatnonzero(np.diff(dataset.requests["user"][chosen], append=-1))
    of_users = _spaced(chosen[last], users)
    tasks = ranker.shape.tasks
    labels: list[NDArray[np.float32]] = []
    predicted: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    squares = count = 0.0
    most = 0.0
    overlaps: list[float] = []
    with (
        torch.inference_mode(),
        Bar("comparing", total=len(chosen) + len(of_users), unit="requests", quiet=quiet) as bar,
    ):
        plan = dataset.plan(chosen, 4096, history)
        for part, batch in zip(plan, dataset.batches(plan, history), strict=True):
            at = dataset.requests["first"][part][:, None] + np.arange(batch.candidates.shape[1])
            real = batch.real.numpy()
            at = np.where(real, at, at[:, :1])
            candidates = rows[dataset.events["item"][at]]
            state = ranker.encode_users(batch.users, ranker.item_vectors(batch.items))
            both = (reference.scores(state, candidates), measured.scores(state, candidates))
            predicted.append((both[0][real], both[1][real]))
            labels.append(batch.labels.numpy()[real])
            bar.advance(len(part))
        for some in np.array_split(of_users, -(-len(of_users) // 32)) if len(of_users) else []:
            batch = dataset.batch(some, history)
            state = ranker.encode_users(batch.users, ranker.item_vectors(batch.items))
            error = measured.scores(state) - reference.scores(state)
            squares += float(np.square(error, dtype=np.float64).sum())
            most = max(most, float(np.abs(error).max(initial=0)))
            count += error.size
            true, found = (each.top(state, depth).rows for each in (reference, measured))
            overlaps += [
                len(np.intersect1d(a, b)) / len(a) for a, b in zip(true, found, strict=True)
            ]
            bar.advance(len(some))
    result: dict[str, float] = {
        "requests": len(chosen),
        "impressions": sum(map(len, labels)),
        "users": len(of_users),
        "logit_error_max": most,
        "logit_error_rms": (squares / count) ** 0.5 if count else 0.0,
        "overlap": float(np.mean(overlaps)) if overlaps else 1.0,
        "overlap_min": min(overlaps, default=1.0),
    }
    if labels:
        label = np.concatenate(labels)
        exact, rounded = (np.concatenate(parts) for parts in zip(*predicted, strict=True))
        for position, task in enumerate(tasks):
            measure, name = (
                (metrics.auc, "auc") if task.kind == "binary" else (metrics.xauc, "xauc")
            )
            before, after = (measure(label[:, position], z[:, position]) for z in (exact, rounded))
            result[f"{task.name}/{name}"] = before
            result[f"{task.name}/{name}_lost"] = before - after
    return result


def _spaced(values: Rows, most: int) -> Rows:
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).astype(np.int64)]
