"""Two models on the same impressions: the difference in AUC, with bounds, in all and by slice."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.data.dataset import Dataset
from limerank.errors import DataError, SpecError, did_you_mean
from limerank.evaluation.bootstrap import Interval, paired_auc
from limerank.evaluation.predict import Predictions, predict
from limerank.evaluation.slices import slice_values, slices
from limerank.results import aligned
from limerank.runs.folder import load_run


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
        ours, theirs: run folders, equally many of both: one each, or one per seed.
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
        DataError: the models have different numbers of runs.
        SpecError: no such binary task.
    """
    if not ours or len(ours) != len(theirs):
        raise DataError(f"got {len(ours)} and {len(theirs)} runs, expected equally many of both")
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
        slice_values(first, dataset),
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
        *aligned(
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
