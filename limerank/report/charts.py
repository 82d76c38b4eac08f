"""The charts of the report: evaluated runs to SVG elements.

In every function ``names`` are the labels of the runs, in the order of ``results`` (the contents of
``metrics.json``) or ``runs``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from limerank.data.dataset import Dataset
from limerank.evaluation.predict import predict
from limerank.report import plots
from limerank.report.plots import Series
from limerank.runs.folder import Run


def leading(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The main metric of each task: (task, metric)."""
    return [(task, next(iter(found))) for task, found in result["tasks"].items()]


def comparison(
    names: list[str], results: list[dict[str, Any]], ceiling: Mapping[str, float] | None
) -> list[str]:
    """A dot chart of the main metric of each of the first two tasks; ``ceiling``: best possible."""
    pictures = []
    for task, metric in leading(results[0])[:2]:
        best = None if ceiling is None else ceiling.get(metric)
        rows = [
            (name, position, result["tasks"][task][metric])
            for position, (name, result) in enumerate(zip(names, results, strict=True))
            if result["tasks"][task][metric] is not None
        ]
        if rows:
            label = f"{metric.upper()} of {task} (higher is better)"
            pictures.append(plots.dots(f"{metric} of {task} by model", rows, label, best=best))
    return pictures


def slices(names: list[str], results: list[dict[str, Any]]) -> list[str]:
    """The main metric of repeats and new items, by length of history, impressions of the item, and
    age of user and of item. What has impressions in a single slice is left out."""
    task, metric = leading(results[0])[0]
    pictures = []
    for kind, what in (
        ("candidate", "whether the user's history holds the item (below: test impressions)"),
        ("history", "events in the user's history (below: test impressions)"),
        ("item impressions", "the item's training impressions (below: test impressions)"),
        ("user days", "days since the user's first event (below: test impressions)"),
        ("item days", "days since the item's first event (below: test impressions)"),
    ):
        parts = [
            part for part in results[0]["slices"] if part["kind"] == kind and part["impressions"]
        ]
        lines = []
        for position, (name, result) in enumerate(zip(names, results, strict=True)):
            tasks = {
                part["slice"]: part["tasks"] for part in result["slices"] if part["kind"] == kind
            }
            values = [tasks.get(part["slice"], {}).get(task, {}).get(metric) for part in parts]
            numbers = [float("nan") if value is None else value for value in values]
            lines.append(Series(name, position, list(range(len(numbers))), numbers))
        if len(parts) > 1 and any(np.isfinite(line.y).any() for line in lines):
            pictures.append(
                plots.slices(
                    f"{metric} by {kind}",
                    [part["slice"] for part in parts],
                    [part["impressions"] for part in parts],
                    lines,
                    what,
                    f"{metric.upper()} of {task}",
                )
            )
    return pictures


def curves(names: list[str], runs: Sequence[Run]) -> list[str]:
    """Training loss, validation metric and effective links over the steps of training; none where
    all models were fitted by counting."""
    losses, held_out, links = [], [], []
    metric = ""
    for position, (name, run) in enumerate(zip(names, runs, strict=True)):
        text = (run.path / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        if run.ranker.fitted:
            continue
        points = [line for line in lines if "loss" in line]
        losses.append(Series(name, position, _of(points, "step"), _of(points, "loss")))
        tested = [line for line in lines if "validation" in line]
        task, found = next(iter(tested[0]["validation"].items()))
        metric = next(iter(found))
        values = [line["validation"][task][metric] for line in tested]
        held_out.append(Series(name, position, _of(tested, "step"), values))
        if "effective_links" in tested[0]:
            links.append(
                Series(name, position, _of(tested, "step"), _of(tested, "effective_links"))
            )
    if not losses:
        return []
    pictures = [
        plots.curves("training loss", losses, "steps", "training loss (nats, all tasks)"),
        plots.curves(
            "validation metric", held_out, "steps", f"validation {metric.upper()}", marks=True
        ),
    ]
    if links:
        shapes = [run.ranker.link_shape for run in runs]
        most = max(shape[1] for shape in shapes if shape is not None)
        pictures.append(
            plots.curves(
                "effective links",
                links,
                "steps",
                "effective number of links",
                marks=True,
                level=("uniform", most),
                least=0,
            )
        )
    return pictures


def _of(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [line[name] for line in lines]


def agreement(names: list[str], runs: Sequence[Run], dataset: Dataset) -> list[str]:
    """Calibration of the first binary and the first duration task, on the test split."""
    requests = dataset.requests_of("test")
    predicted = [predict(run.ranker, dataset, requests, history=run.train.history) for run in runs]
    tasks = runs[0].ranker.shape.tasks
    pictures = []
    first = {task.kind: position for position, task in reversed(list(enumerate(tasks)))}
    for position in sorted(first.values()):
        if np.isnan(predicted[0].labels[:, position]).all():
            continue  # the dataset has no label of this task
        series = []
        for colour, (name, one) in enumerate(zip(names, predicted, strict=True)):
            x, y = tasks[position].of_kind.reliability(
                one.labels[:, position], one.values[:, position]
            )
            series.append(Series(name, colour, x.tolist(), y.tolist()))
        task = tasks[position].name
        unit, outcomes = tasks[position].of_kind.described(tasks[position])
        pictures.append(
            plots.agreement(
                f"calibration of {task}",
                series,
                f"predicted {unit}",
                f"observed {outcomes}",
                above="too low",
                below="too high",
            )
        )
    return pictures
