"""Two models on the same impressions: the difference, and how sure it is.

Impressions of one user are not independent, so users are drawn anew with replacement, all their
impressions with them, the same draw for both models (the paired cluster bootstrap).

Shapes: n impressions, U users, R resamples.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limerank.data.dataset import Dataset
from limerank.errors import DataError, SpecError, did_you_mean
from limerank.evaluation.evaluate import Predictions, ages, cut, predict
from limerank.progress import table
from limerank.runs.folder import load_run


class Interval(NamedTuple):
    """A difference, and the bounds between which ``level`` of its resamples lie; NaN where there
    is nothing to draw from: one user alone."""

    difference: float
    low: float
    high: float


def draws(users: ArrayLike, resamples: int, seed: int = 0) -> NDArray[np.int32]:
    """How often each impression is counted in each resample, i32 [R, n]: all of them at once, to
    look at. What is computed takes them :func:`one_by_one`."""
    return np.stack(list(one_by_one(users, resamples, seed)))


def one_by_one(users: ArrayLike, resamples: int, seed: int = 0) -> Iterator[NDArray[np.int32]]:
    """Yield how often each impression is counted in each resample, i32 [n], R times.

    Args:
        users: [n] whose impression each one is.
    """
    distinct, user_of = np.unique(np.asarray(users), return_inverse=True)
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = rng.integers(0, len(distinct), len(distinct))
        yield np.bincount(drawn, minlength=len(distinct)).astype(np.int32)[user_of]


class Resampled:
    """The AUC of one set of scores in any resample; what is sorted is sorted once.

    Args:
        labels: [n] 0 or 1.
        scores: [n].
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike) -> None:
        self._order = np.argsort(np.asarray(scores), kind="stable")
        ordered = np.asarray(scores)[self._order]
        self._positive = np.asarray(labels)[self._order] > 0
        # Rows of one score are one tie: a positive beats half the negatives of its own.
        self._first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))

    def auc(self, drawn: NDArray[np.int32]) -> float:
        """The AUC of impressions counted as a row of :func:`draws` says; NaN without a class."""
        weights = drawn[self._order].astype(np.float64)
        positives = np.add.reduceat(np.where(self._positive, weights, 0.0), self._first)
        negatives = np.add.reduceat(np.where(self._positive, 0.0, weights), self._first)
        pairs = positives.sum() * negatives.sum()
        below = np.cumsum(negatives) - negatives / 2
        return float(positives @ below / pairs) if pairs else float("nan")


def resampled_auc(
    labels: ArrayLike, scores: ArrayLike, counts: Iterable[NDArray[np.int32]]
) -> NDArray[np.float64]:
    """AUC of each resample, [R]; NaN where it lacks a class.

    Args:
        labels: [n] 0 or 1.
        scores: [n].
        counts: of :func:`draws` or :func:`one_by_one`.
    """
    resampled = Resampled(labels, scores)
    return np.array([resampled.auc(drawn) for drawn in counts])


def paired_auc(
    labels: ArrayLike,
    users: ArrayLike,
    ours: list[NDArray[np.float32]],
    theirs: list[NDArray[np.float32]],
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """AUC of one model minus AUC of another, the mean over runs, with a percentile interval.

    Args:
        labels: [n] 0 or 1.
        users: [n].
        ours, theirs: the scores [n] of each run (seed) of the two models, as many runs of either.
        resamples: how many draws of users.
        level: how much of them the interval holds.
        seed: of the draws.

    Raises:
        DataError: there are no runs, or not as many of either.
    """
    if not ours or len(ours) != len(theirs):
        raise DataError(f"got {len(ours)} and {len(theirs)} runs, expected as many of either")
    pairs = [
        (Resampled(labels, one), Resampled(labels, other))
        for one, other in zip(ours, theirs, strict=True)
    ]
    each_once = np.ones(len(np.asarray(users)), dtype=np.int32)
    gaps = np.array(
        [
            np.mean([one.auc(drawn) - other.auc(drawn) for one, other in pairs])
            for drawn in chain([each_once], one_by_one(users, resamples, seed))
        ]
    )
    drawn = gaps[1:][~np.isnan(gaps[1:])]
    if not len(drawn) or len(np.unique(np.asarray(users))) < 2:
        return Interval(float(gaps[0]), float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(gaps[0]), float(low), float(high))


def differences(
    labels: NDArray[np.float32],
    users: NDArray[Any],
    ours: list[NDArray[np.float32]],
    theirs: list[NDArray[np.float32]],
    ages: Mapping[str, NDArray[np.int64]],
    **options: Any,
) -> Iterator[tuple[str, int, Interval]]:
    """(slice, impressions, :func:`paired_auc`) of all impressions, slice "", and of each slice that
    holds both classes.

    Args:
        ages: what :func:`limerank.evaluation.evaluate.ages` gives, [n] each.
        options: of :func:`paired_auc`, as are the others.
    """
    parts = [("", np.ones(len(labels), dtype=bool))]
    parts += [(f"{kind} {name}", chosen) for kind, name, chosen in cut(ages)]
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


def compare(
    ours: Sequence[str | os.PathLike[str]],
    theirs: Sequence[str | os.PathLike[str]],
    *,
    data: str | os.PathLike[str] | None = None,
    split: str = "test",
    task: str | None = None,
    resamples: int = 500,
    quiet: bool = True,
) -> dict[str, Any]:
    """AUC of one model's runs minus that of another's, over all impressions and in each slice.

    Args:
        ours, theirs: run folders, as many of either: one each, or one per seed.
        data: the dataset; the one that the first run was trained on when not given.
        split: "train", "validation", "test" or "held-out".
        task: a binary task; the first one when not given.
        resamples: draws of users.
        quiet: show no progress.

    Returns:
        ``task``, ``split``, ``runs`` and ``differences``: per slice (the first one holds all
        impressions) ``slice``, ``impressions``, ``difference``, ``low`` and ``high``, None where
        there are no bounds.

    Raises:
        DataError: not as many runs of either.
        SpecError: no such binary task.
    """
    if not ours or len(ours) != len(theirs):
        raise DataError(f"got {len(ours)} and {len(theirs)} runs, expected as many of either")
    if resamples < 1:
        raise SpecError(f"resamples is {resamples}, expected 1 or more")
    dataset = load_run(ours[0]).dataset(data)
    tasks = [label["name"] for label in dataset.encoding["labels"] if label["kind"] == "binary"]
    task = task or next(iter(tasks), "")
    if task not in tasks:
        raise SpecError(
            f"no binary task {task!r}; known: {', '.join(tasks) or 'none'}"
            f"{did_you_mean(task, tasks)}"
        )
    position = dataset.tasks.index(task)
    predicted = [
        [_predicted(run, dataset, split, quiet) for run in runs] for runs in (ours, theirs)
    ]
    first = predicted[0][0]
    scores = [[one.values[:, position] for one in of_model] for of_model in predicted]
    found = differences(
        first.labels[:, position],
        dataset.requests["user"][first.requests],
        scores[0],
        scores[1],
        ages(first, dataset),
        resamples=resamples,
    )
    return {
        "task": task,
        "split": split,
        "runs": [[str(run) for run in runs] for runs in (ours, theirs)],
        "differences": [
            {"slice": name, "impressions": impressions, **_bounds(interval)}
            for name, impressions, interval in found
        ],
    }


def _bounds(interval: Interval) -> dict[str, float | None]:
    return {
        name: None if math.isnan(value) else value for name, value in interval._asdict().items()
    }


def _predicted(
    run: str | os.PathLike[str], dataset: Dataset, split: str, quiet: bool
) -> Predictions:
    loaded = load_run(run)
    loaded.dataset(dataset.path)  # refuses a dataset of another encoding
    return predict(
        loaded.ranker,
        dataset,
        dataset.requests_of(split),
        history=loaded.train.history,
        quiet=quiet,
    )


def comparison_text(result: Mapping[str, Any]) -> str:
    """What :func:`compare` found, to read; an asterisk where the bounds do not hold 0, no bounds
    where the impressions are of a single user."""
    ours, theirs = (", ".join(runs) for runs in result["runs"])
    lines = [
        f"{result['task']} AUC of {ours}",
        f"minus that of {theirs}, {result['split']} split, 95 % over users",
        "",
        *table(
            [
                ("slice", "impressions", "difference  ", "between"),
                *map(_cells, result["differences"]),
            ],
            "<>><",
            (26, 12, 12),
        ),
    ]
    return "\n".join(lines)


def _cells(part: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """One line of the table: an asterisk stands right of a difference that is sure."""
    sure, between = " ", "-"
    if part["low"] is not None:
        sure = "*" if part["low"] > 0 or part["high"] < 0 else " "
        between = f"{part['low']:+.4f} and {part['high']:+.4f}"
    return (
        part["slice"] or "all",
        f"{part['impressions']:,}",
        f"{part['difference']:+.4f} {sure}",
        between,
    )
