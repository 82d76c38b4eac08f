"""Two models on the same requests: the difference in AUC of their predictions, in all and by slice,
or in NDCG@10 of their ranked lists, with bounds."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.data.dataset import Dataset
from limerank.data.interactions import main_label
from limerank.errors import DataError, SpecError, did_you_mean
from limerank.evaluation.bootstrap import Interval, paired_auc
from limerank.evaluation.legend import legend
from limerank.evaluation.list_metrics import gain
from limerank.evaluation.lists import draw_requests, is_of_positives, rank_lists, seen_by_default
from limerank.evaluation.predict import Predictions, predict
from limerank.evaluation.slices import slice_values, slices
from limerank.results import TableResult, aligned, none_for_nan
from limerank.runs.folder import load_run
from limerank.storage.arguments import READ, with_uris

AUC, NDCG = METRICS = "auc", "ndcg@10"
DEPTH = 10
"""Of the lists that are compared."""
Runs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One run folder, or one per seed."""


@dataclass(frozen=True)
class Difference:
    """The difference in a metric on a slice.

    Attributes:
        slice: kind and range, such as "history 10-49"; empty for all impressions.
        impressions: number of impressions; of requests with a positive, where lists are compared.
        difference: the metric of our model minus that of theirs, the mean over runs.
        low, high: bounds that hold the true difference with 95 % confidence; NaN (null in JSON)
            where the impressions are of a single user.
    """

    slice: str
    impressions: int
    difference: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        bounds = {"low": none_for_nan(self.low), "high": none_for_nan(self.high)}
        return {**asdict(self), **bounds}

    @property
    def significant(self) -> bool:
        """Whether 0 lies outside of the bounds."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, repr=False)
class Comparison(TableResult):
    """A metric of our model minus that of theirs: a row for all impressions, and one for each slice
    where the metric is AUC.

    Attributes:
        task: the task that is compared.
        split: that was measured.
        runs: run folders of our model, and of theirs.
        differences: of all impressions, then of each slice.
        metric: "auc" or "ndcg@10".
    """

    task: str
    split: str
    runs: tuple[tuple[str, ...], tuple[str, ...]]
    differences: tuple[Difference, ...]
    metric: str = AUC

    def to_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "metric": self.metric,
            "split": self.split,
            "runs": [list(runs) for runs in self.runs],
            "differences": [part.to_dict() for part in self.differences],
        }

    def columns(self) -> dict[str, list[Any]]:
        return {
            field.name: [part.to_dict()[field.name] for part in self.differences]
            for field in fields(Difference)
        }

    def caption(self) -> str:
        ours, theirs = (", ".join(runs) for runs in self.runs)
        return (
            f"{self.task} {self.metric.upper()}, {ours} minus {theirs}, {self.split} split, 95 % "
            "intervals over users"
        )

    def text(self) -> str:
        """An asterisk marks a difference whose bounds do not hold 0."""
        ours, theirs = (", ".join(runs) for runs in self.runs)
        counted = "impressions" if self.metric == AUC else "requests"
        rows = [("slice", counted, "difference  ", "95 % interval")]
        for part in self.differences:
            interval = "-"
            if not math.isnan(part.low):
                interval = f"{part.low:+.4f} to {part.high:+.4f}"
            rows.append(
                (
                    part.slice or "all",
                    f"{part.impressions:,}",
                    f"{part.difference:+.4f} {'*' if part.significant else ' '}",
                    interval,
                )
            )
        return "\n".join(
            [
                f"{self.task} {self.metric.upper()}, A minus B, {self.split} split, 95 % intervals "
                "over users",
                f"  A: {ours}",
                f"  B: {theirs}",
                "",
                *aligned(rows, "<>><", (26, 12, 12)),
            ]
        )

    def legend(self) -> str:
        """What the columns of :meth:`text` mean, to be printed below it."""
        by = "a bootstrap over users" if self.metric == AUC else "the spread between users"
        return "\n".join(
            [
                *legend([self.metric]),
                f"  Bounds are of 95 % confidence, by {by}; * marks a difference whose bounds",
                "    do not hold 0.",
            ]
        )


def differences(
    labels: NDArray[np.float32],
    users: NDArray[Any],
    ours: list[NDArray[np.float32]],
    theirs: list[NDArray[np.float32]],
    values_of_kind: Mapping[str, NDArray[np.int64]],
    **options: Any,
) -> Iterator[tuple[str, int, Interval]]:
    """Yield (slice, impressions, :func:`paired_auc`) of all impressions, named "", and of each
    slice that holds both classes.

    Args:
        labels: 0 or 1, f32 [n].
        users: [n].
        ours, theirs: the scores [n] of each run (seed) of the two models.
        values_of_kind: of :func:`limerank.evaluation.slices.slice_values`, [n] each.
        options: of :func:`paired_auc`.
    """
    parts = [("", np.ones(len(labels), dtype=bool))]
    parts += [(f"{kind} {name}", chosen) for kind, name, chosen in slices(values_of_kind)]
    for name, chosen in parts:
        if 0 < labels[chosen].sum() < chosen.sum():
            found = paired_auc(
                labels[chosen],
                users[chosen],
                [scores[chosen] for scores in ours],
                [scores[chosen] for scores in theirs],
                **options,
            )
            yield name, int(chosen.sum()), found


@with_uris(ours=READ, theirs=READ, data=READ)
def compare(
    ours: Runs,
    theirs: Runs,
    *,
    data: str | os.PathLike[str] | None = None,
    split: str = "test",
    task: str | None = None,
    metric: str | None = None,
    resamples: int = 500,
    quiet: bool = True,
) -> Comparison:
    """AUC of one model's runs minus that of another's, over all impressions and in each slice; or
    NDCG@10 of ranked lists of the full catalogue.

    Args:
        ours, theirs: a run folder, or a list of them, one per seed; equally many of both.
        data: the dataset; the one that the first run was trained on when not given. Each run reads
            it through its own encoding, so that runs of different days can be compared.
        split: "train", "validation", "test" or "held-out".
        task: a binary task; the first one when not given. Lists are those of the task that ranks.
        metric: "auc" or "ndcg@10"; by default AUC where the log has a binary task.
        resamples: draws of users.
        quiet: show no progress.

    Raises:
        DataError: the models have different numbers of runs.
        SpecError: there is no such binary task, or no such metric.
        FingerprintError: the dataset lacks what a run reads.
    """
    if metric not in (None, *METRICS):
        raise SpecError(f"metric is {metric!r}, expected {' or '.join(METRICS)}")
    ours, theirs = (
        [runs] if isinstance(runs, (str, os.PathLike)) else runs for runs in (ours, theirs)
    )
    if not ours or len(ours) != len(theirs):
        raise DataError(f"got {len(ours)} and {len(theirs)} runs, expected equally many of both")
    if resamples < 1:
        raise SpecError(f"resamples is {resamples}, expected 1 or more")
    dataset = load_run(ours[0]).dataset(data)
    tasks = [label["name"] for label in dataset.encoding["labels"] if label["kind"] == "binary"]
    if metric == NDCG or (metric is None and not tasks and is_of_positives(dataset)):
        if task is not None:
            raise SpecError(f"task is {task!r}, but lists are compared: leave it out")
        return _of_lists(ours, theirs, dataset.own, split, quiet)
    task = task or next(iter(tasks), "")
    if task not in tasks:
        raise SpecError(
            f"no binary task {task!r}; known: {', '.join(tasks) or 'none'}"
            f"{did_you_mean(task, tasks)}"
        )
    predicted = [
        [_predicted(run, dataset.own, split, task, quiet) for run in runs]
        for runs in (ours, theirs)
    ]
    first, labels, _ = predicted[0][0]
    scores = [[values for *_, values in of_model] for of_model in predicted]
    found = differences(
        labels,
        dataset.requests["user"][first.requests],
        scores[0],
        scores[1],
        slice_values(first, dataset),
        resamples=resamples,
    )
    return Comparison(
        task,
        split,
        (tuple(map(str, ours)), tuple(map(str, theirs))),
        tuple(Difference(name, impressions, *interval) for name, impressions, interval in found),
    )


def _of_lists(
    ours: Sequence[str | os.PathLike[str]],
    theirs: Sequence[str | os.PathLike[str]],
    dataset: Dataset,
    split: str,
    quiet: bool,
) -> Comparison:
    """The comparison of ranked lists, over the requests of a split that have a positive."""
    main = main_label(dataset.encoding["labels"])
    if main is None:
        raise SpecError(f"{dataset.path} has no label that says what a list should hold")
    label, names = str(main["name"]), (tuple(map(str, ours)), tuple(map(str, theirs)))
    requests = dataset.requests_of(split)
    chosen = draw_requests(dataset, requests, label, seen_by_default(dataset))
    if not len(chosen):
        return Comparison(label, split, names, (), metric=NDCG)
    gains = []
    for pair in zip(ours, theirs, strict=True):
        lists = []
        for run in pair:
            loaded = load_run(run)
            lists.append(
                rank_lists(
                    loaded.ranker,
                    loaded.dataset(dataset),
                    chosen,
                    DEPTH,
                    history=loaded.train.history,
                    name=f"lists of {run}",
                    quiet=quiet,
                )
            )
        gains.append(gain(lists[0], lists[1], chosen, dataset, DEPTH))
    low, difference, high = (
        float(np.mean([getattr(one, name) for one in gains]))
        for name in ("low", "difference", "high")
    )
    found = Difference("", len(chosen), difference, low, high)
    return Comparison(label, split, names, (found,), metric=NDCG)


def _predicted(
    run: str | os.PathLike[str], dataset: Dataset, split: str, task: str, quiet: bool
) -> tuple[Predictions, NDArray[np.float32], NDArray[np.float32]]:
    """Predictions of a run for a split; the labels and the predictions of one task, f32 [n]."""
    loaded = load_run(run)
    tasks = [one.name for one in loaded.ranker.shape.tasks]
    if task not in tasks:
        raise SpecError(f"{run} does not predict {task!r}, but {', '.join(tasks)}")
    found = predict(
        loaded.ranker,
        loaded.dataset(dataset),
        dataset.requests_of(split),
        history=loaded.train.history,
        quiet=quiet,
    )
    at = tasks.index(task)
    return found, found.labels[:, at], found.values[:, at]
