"""What a scorer over an index loses against the model."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limerank.data.batch import Batch
from limerank.data.dataset import Dataset
from limerank.errors import UnknownError
from limerank.index import Index
from limerank.models.tasks import columns
from limerank.progress import Bar
from limerank.ranking.scorer.contract import Rows, Scorer
from limerank.ranking.scorer.model import ModelScorer
from limerank.ranking.scorer.native import NativeScorer
from limerank.results import TableResult, aligned
from limerank.runs.folder import Run


@dataclass(frozen=True)
class TaskFidelity:
    """What a scorer loses of one task.

    Attributes:
        task: the task's name.
        metric: "auc" of a binary task, "xauc" of a duration.
        model: its value for the model's scores.
        lost: that value minus the value for the scorer's scores.
    """

    task: str
    metric: str
    model: float
    lost: float


@dataclass(frozen=True, repr=False)
class Fidelity(TableResult):
    """What a scorer over an index loses against the float32 model; as a table, a row per task.

    Attributes:
        scorer: the scorer's name.
        depth: of the ranked lists that were compared.
        requests, impressions: numbers of them, for the tasks' metrics.
        users: number of users whose lists were compared.
        logit_error_max, logit_error_rms: of the logits of all items for these users.
        overlap: the mean share of the model's first ``depth`` items of the full index, ranked by
            the first task, that are among the scorer's first ``depth``.
        overlap_min: the least such share.
        tasks: the metrics of each task.
    """

    scorer: str
    depth: int
    requests: int
    impressions: int
    users: int
    logit_error_max: float
    logit_error_rms: float
    overlap: float
    overlap_min: float
    tasks: tuple[TaskFidelity, ...]

    def to_dict(self) -> dict[str, float]:
        """Flat, with keys such as ``click/auc`` and ``click/auc_lost``, as in result rows."""
        found: dict[str, float] = {
            "requests": self.requests,
            "impressions": self.impressions,
            "users": self.users,
            "logit_error_max": self.logit_error_max,
            "logit_error_rms": self.logit_error_rms,
            "overlap": self.overlap,
            "overlap_min": self.overlap_min,
        }
        for of in self.tasks:
            found[f"{of.task}/{of.metric}"] = of.model
            found[f"{of.task}/{of.metric}_lost"] = of.lost
        return found

    def columns(self) -> dict[str, list[Any]]:
        return {
            field.name: [getattr(of, field.name) for of in self.tasks]
            for field in fields(TaskFidelity)
        }

    def text(self) -> str:
        rows = [("task", "metric", "model", "lost")]
        rows += [(of.task, of.metric, f"{of.model:.4f}", f"{of.lost:+.6f}") for of in self.tasks]
        return "\n".join(
            [
                f"the {self.scorer} scorer against the float32 model, {self.impressions:,} "
                f"impressions in {self.requests:,} requests",
                *aligned(rows, "<<>>"),
                f"  logit error: {self.logit_error_max:.4f} at most, "
                f"{self.logit_error_rms:.4f} in quadratic mean",
                f"  first {self.depth} items of {self.users:,} users: "
                f"{100 * self.overlap:.2f} % the same, {100 * self.overlap_min:.0f} % at least",
            ]
        )


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
) -> Fidelity:
    """Measure what a scorer over an index loses against the float32 model.

    Args:
        run: of the model that built the index.
        index: of the dataset's items.
        dataset: whose requests are scored.
        split: the split whose impressions are scored, and whose users are ranked for.
        depth: of the lists that are compared.
        users: compare lists for at most so many users, as of their last request in the split.
        requests: score at most so many, spaced evenly, for the metrics of tasks.
        scorer: the scorer to measure; the native one when not given.

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
            f"{missing[0]!r}; build it from the full dataset"
        )

    def encoded(batch: Batch) -> Any:
        """User states whose items are rows of the index."""
        users = batch.users
        if users.keys is not None:
            keys = users.keys.keys - ranker.shape.item_tokens
            own = torch.where(keys < 0, keys, torch.from_numpy(rows)[keys.clamp(min=0)])
            own = own + ranker.shape.item_tokens
            users = replace(users, keys=replace(users.keys, keys=own))
        return ranker.encode_users(users, ranker.item_vectors(batch.items))

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
            state = encoded(batch)
            both = (reference.scores(state, candidates), measured.scores(state, candidates))
            predicted.append((both[0][real], both[1][real]))
            labels.append(batch.labels.numpy()[real])
            bar.advance(len(part))
        for some in np.array_split(of_users, -(-len(of_users) // 32)) if len(of_users) else []:
            batch = dataset.batch(some, history)
            state = encoded(batch)
            error = measured.scores(state) - reference.scores(state)
            squares += float(np.square(error, dtype=np.float64).sum())
            most = max(most, float(np.abs(error).max(initial=0)))
            count += error.size
            true, found = (each.top(state, depth).rows for each in (reference, measured))
            overlaps += [
                len(np.intersect1d(a, b)) / len(a) for a, b in zip(true, found, strict=True)
            ]
            bar.advance(len(some))
    of_tasks: list[TaskFidelity] = []
    if labels:
        label = np.concatenate(labels)
        exact, rounded = (np.concatenate(parts) for parts in zip(*predicted, strict=True))
        for position, (task, own) in enumerate(zip(tasks, columns(tasks), strict=True)):
            (name, before), (_, after) = (
                task.of_kind.separation(label[:, position], z[:, own.start])
                for z in (exact, rounded)
            )
            of_tasks.append(TaskFidelity(task.name, name, before, before - after))
    return Fidelity(
        scorer=measured.name,
        depth=depth,
        requests=len(chosen),
        impressions=sum(map(len, labels)),
        users=len(of_users),
        logit_error_max=most,
        logit_error_rms=(squares / count) ** 0.5 if count else 0.0,
        overlap=float(np.mean(overlaps)) if overlaps else 1.0,
        overlap_min=min(overlaps, default=1.0),
        tasks=tuple(of_tasks),
    )


def _spaced(values: Rows, most: int) -> Rows:
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).astype(np.int64)]
