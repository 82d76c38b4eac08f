"""Evaluated runs -> one HTML page: plots and tables, nothing loaded from outside."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from limerank import metrics
from limerank.data.dataset import Dataset
from limerank.data.prepare import summary_text
from limerank.errors import FormatError
from limerank.evaluation.legend import legend, metric_of
from limerank.evaluation.predict import predict
from limerank.files import check_output, read_json, write_text
from limerank.index import Index
from limerank.ranking.recommender import Recommender
from limerank.ranking.results import Ranking
from limerank.report import plots
from limerank.report.plots import Series
from limerank.runs.folder import Run, load_run

USERS = 3
ITEMS = 5
PICTURE_EVENTS = 14
PICTURE_LINKS = 12
FAINT = 0.08


def write_report(
    out: str | os.PathLike[str],
    *,
    runs: Sequence[str | os.PathLike[str]],
    index: str | os.PathLike[str] | None = None,
    ceiling: Mapping[str, float] | None = None,
    quantisation: Mapping[str, float] | None = None,
    title: str | None = None,
) -> None:
    """Write the page.

    Args:
        out: the HTML file.
        runs: evaluated run folders on one dataset.
        index: an index of one of the runs, for ranked lists with their reasons.
        ceiling: the best possible ``auc`` and ``xauc``, where the truth is known.
        quantisation: what `limerank.ranking.fidelity.quantisation_report` found.
        title: the page's heading; the dataset's name when not given.

    Raises:
        FormatError: a run has not been evaluated, the runs are of different datasets, the index
            belongs to none of them, or ``out`` cannot be written.
    """
    check_output(out, (".html", ".htm"))
    loaded = [load_run(path) for path in runs]
    results = [_evaluation(run) for run in loaded]
    datasets = {result["dataset"] for result in results}
    if len(datasets) > 1:
        raise FormatError(f"the runs are of different datasets: {', '.join(sorted(datasets))}")
    names = _names(loaded, results)
    dataset = loaded[0].dataset()
    context = {
        "title": title or f"limerank on {dataset.name}",
        "summary": summary_text(dataset.manifest),
        "comparison": _comparison(names, results, ceiling),
        "tables": _tables(names, results, ceiling),
        "slices": _slices(names, results),
        **_legend(results),
        "curves": _curves(names, loaded),
        "agreement": _agreement(names, loaded, dataset),
        "rankings": [],
        "index": None,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("limerank", "torch", "numpy")),
    }
    if index is not None:
        context |= _ranked(loaded, index, dataset, quantisation)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("limerank.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(out, environment.get_template("report.html").render(context) + "\n")


def _evaluation(run: Run) -> dict[str, Any]:
    if not (run.path / "metrics.json").exists():
        raise FormatError(f"{run.path} has not been evaluated; run: limerank evaluate {run.path}")
    return read_json(run.path / "metrics.json", "an evaluated run")


def _names(runs: Sequence[Run], results: Sequence[Mapping[str, Any]]) -> list[str]:
    models = [result["model"] for result in results]
    return [
        model if models.count(model) == 1 else f"{model} ({run.path.name})"
        for model, run in zip(models, runs, strict=True)
    ]


def _leading(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each task's first metric: (task, metric)."""
    return [(task, next(iter(found))) for task, found in result["tasks"].items()]


def _comparison(
    names: list[str], results: list[dict[str, Any]], ceiling: Mapping[str, float] | None
) -> list[str]:
    pictures = []
    best_of = {}
    for task, metric in _leading(results[0])[:2]:
        best_of[task] = None if ceiling is None else ceiling.get(metric)
        rows = [
            (name, position, result["tasks"][task][metric])
            for position, (name, result) in enumerate(zip(names, results, strict=True))
            if result["tasks"][task][metric] is not None
        ]
        if rows:
            label = f"{metric.upper()} of {task} (higher is better)"
            pictures.append(
                plots.dots(f"{metric} of {task} by model", rows, label, best=best_of[task])
            )
    return pictures


def _tables(
    names: list[str], results: list[dict[str, Any]], ceiling: Mapping[str, float] | None
) -> list[dict[str, Any]]:
    tables = []
    for task in results[0]["tasks"]:
        columns = list(results[0]["tasks"][task])
        rows = [
            [name, *(_shown(result["tasks"][task][column]) for column in columns)]
            for name, result in zip(names, results, strict=True)
        ]
        first = task in (pair[0] for pair in _leading(results[0])[:2])
        if ceiling is not None and first and columns[0] in ceiling:
            best = ["best possible", _shown(ceiling[columns[0]])]
            rows.append(best + [""] * (len(columns) - 1))
        tables.append({"name": task, "head": ["model", *columns], "rows": rows})
    if all("lists" in result for result in results):
        columns = [c for c in results[0]["lists"] if "@" in c or c == "mrr"]
        rows = [
            [name, *(_shown(result["lists"].get(column)) for column in columns)]
            for name, result in zip(names, results, strict=True)
        ]
        if columns:
            tables.append({"name": "whole catalogue", "head": ["model", *columns], "rows": rows})
    return tables


def _legend(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What the columns of the tables mean: in lines below them, and by name."""
    names = [name for result in results for found in result["tasks"].values() for name in found]
    names += [name for result in results for name in result.get("lists", {})]
    found = {name: metric for name in names if (metric := metric_of(name)) is not None}
    return {
        "legend": legend(names, width=None),
        "meanings": {name: metric.meaning for name, metric in found.items()},
    }


def _slices(names: list[str], results: list[dict[str, Any]]) -> list[str]:
    task, metric = _leading(results[0])[0]
    pictures = []
    for kind, what in (
        ("history", "events in the user's history (impressions below)"),
        ("item impressions", "the item's impressions in training (below: in the test)"),
        ("user days", "days since the user's first event (impressions below)"),
        ("item days", "days since the item's first event (impressions below)"),
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
        if any(np.isfinite(line.y).any() for line in lines):
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


def _curves(names: list[str], runs: Sequence[Run]) -> list[str]:
    losses, held_out, links = [], [], []
    metric = ""
    for position, (name, run) in enumerate(zip(names, runs, strict=True)):
        text = (run.path / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
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
    pictures = [
        plots.curves("training loss", losses, "batches", "training loss (nats, all tasks)"),
        plots.curves(
            "validation metric", held_out, "batches", f"validation {metric.upper()}", marks=True
        ),
    ]
    if links:
        shapes = [run.ranker.link_shape for run in runs]
        most = max(shape[1] for shape in shapes if shape is not None)
        pictures.append(
            plots.curves(
                "effective links",
                links,
                "batches",
                "effective number of links",
                marks=True,
                level=("all alike", most),
                least=0,
            )
        )
    return pictures


def _of(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [line[name] for line in lines]


def _agreement(names: list[str], runs: Sequence[Run], dataset: Dataset) -> list[str]:
    """Calibration of the first binary task and of the first duration, on the test split."""
    requests = dataset.requests_of("test")
    predicted = [predict(run.ranker, dataset, requests, history=run.train.history) for run in runs]
    tasks = runs[0].ranker.shape.tasks
    pictures = []
    for kind in ("binary", "duration"):
        position = next(
            (position for position, task in enumerate(tasks) if task.kind == kind), None
        )
        if position is None:
            continue
        series = []
        for colour, (name, one) in enumerate(zip(names, predicted, strict=True)):
            values, labels = one.values[:, position], one.labels[:, position]
            if kind == "binary":
                bins = metrics.reliability(labels, values)
                series.append(Series(name, colour, bins.prediction, bins.label))
            else:
                parts = np.array_split(np.argsort(values, kind="stable"), 20)
                x = [float(values[part].mean()) for part in parts if len(part)]
                y = [float(labels[part].mean()) for part in parts if len(part)]
                series.append(Series(name, colour, x, y))
        task = tasks[position].name
        unit = f"probability of {task}" if kind == "binary" else f"seconds of {task}"
        outcomes = f"share with {task}" if kind == "binary" else f"mean seconds of {task}"
        pictures.append(
            plots.agreement(
                f"calibration of {task}",
                series,
                f"predicted {unit}",
                f"observed {outcomes}",
                above="too timid",
                below="too bold",
            )
        )
    return pictures


def _ranked(
    runs: Sequence[Run],
    path: str | os.PathLike[str],
    dataset: Dataset,
    quantisation: Mapping[str, float] | None,
) -> dict[str, Any]:
    index = Index.open(path)
    run = next((run for run in runs if run.fingerprint == index.fingerprint), None)
    if run is None:
        raise FormatError(f"{path} is an index of none of the runs; index one of them")
    recommender = Recommender(run, index)
    rankings = []
    for user in some_users(dataset, USERS):
        ranking = recommender.rank(user, k=ITEMS, explain=ITEMS)
        rankings.append(
            {
                "user": str(user),
                "events": ranking.events,
                "milliseconds": f"{sum(ranking.milliseconds.values()):.1f}",
                "tasks": list(ranking.items[0].scores) if ranking.items else [],
                "rows": [
                    {
                        "id": str(item.id),
                        "scores": [_shown(value) for value in item.scores.values()],
                        "because": ", ".join(
                            f"{event.item} ({event.effect:+.2f})"
                            for event in (item.explanation.reasons() if item.explanation else [])
                        ),
                    }
                    for item in ranking.items
                ],
                "picture": _picture(ranking),
            }
        )
    size = sum(file.stat().st_size for file in Path(path).iterdir())
    facts = [
        ("items", f"{index.items:,}"),
        ("bytes per item, vectors and ids included", f"{size / max(len(index), 1):,.0f}"),
    ]
    if quantisation is not None:
        facts += [
            ("AUC lost to 8-bit numbers", f"{next(iter(_lost(quantisation))):+.6f}"),
            ("true top 100 kept", f"{100 * quantisation['overlap']:.2f} %"),
            ("largest error of a logit", f"{quantisation['logit_error_max']:.4f}"),
        ]
    return {"rankings": rankings, "index": {"model": run.ranker.config.model, "facts": facts}}


def _lost(quantisation: Mapping[str, float]) -> list[float]:
    return [value for name, value in quantisation.items() if name.endswith("auc_lost")]


def some_users(dataset: Dataset, count: int) -> list[Any]:
    """Ids of users of the test split with short, middling and long histories."""
    requests = dataset.requests_of("test")
    columns = dataset.requests
    lengths = (columns["history_end"] - columns["history_start"])[requests]
    ordered = requests[np.argsort(lengths, kind="stable")]
    positions = np.linspace(0.3, 0.9, count) * (len(ordered) - 1)
    users = columns["user"][ordered[positions.astype(np.int64)]]
    return [dataset.user_ids[row] for row in dict.fromkeys(users.tolist())]


def _picture(ranking: Ranking) -> str:
    """Events -> links -> items: the model's own weights as lines, the strongest ones only."""
    shown = [item for item in ranking.items if item.explanation is not None]
    if not shown or shown[0].explanation is None or shown[0].explanation.links is None:
        return ""
    first = shown[0].explanation
    assert first.reads is not None
    weights = np.stack(
        [item.explanation.links.mean(0) for item in shown if item.explanation]  # type: ignore[union-attr]
    )
    if first.reads.shape[1] == 0:
        return ""
    links = np.argsort(-weights.mean(0))[:PICTURE_LINKS]
    reads = first.reads[links]
    mass = weights[:, links].mean(0) @ reads
    events = np.sort(np.argsort(-mass)[:PICTURE_EVENTS])
    row = 26
    height = row * max(len(events), len(links), len(shown)) + 34
    columns = (150, 340, 530)

    def y(position: int, count: int) -> float:
        return 40 + (height - 50) * (position + 0.5) / count

    parts = [
        f'<svg viewBox="0 0 680 {height}" role="img" class="flow">',
        "<title>Events, links and items, joined by the model's weights</title>",
    ]
    for x, text in zip(columns, ("events, old to new", "links", "ranked items"), strict=True):
        parts.append(f'<text x="{x}" y="16" text-anchor="middle" class="head">{text}</text>')
    most = float(reads[:, events].max()) or 1.0
    for a, event in enumerate(events):
        for b in range(len(links)):
            share, end = float(reads[b, event]) / most, y(b, len(links))
            if share > FAINT:
                parts.append(_line(columns[0], y(a, len(events)), columns[1], end, share))
    most = float(weights[:, links].max()) or 1.0
    for b, link in enumerate(links):
        for c in range(len(shown)):
            share, end = float(weights[c, link]) / most, y(c, len(shown))
            if share > FAINT:
                parts.append(_line(columns[1], y(b, len(links)), columns[2], end, share))
    for a, event in enumerate(events):
        label, at = escape(str(first.events[event].item)), y(a, len(events))
        parts.append(
            f'<circle cx="{columns[0]}" cy="{at:.1f}" r="4" class="event"/>'
            f'<text x="{columns[0] - 9}" y="{at + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for b in range(len(links)):
        parts.append(f'<circle cx="{columns[1]}" cy="{y(b, len(links)):.1f}" r="6" class="link"/>')
    for c, item in enumerate(shown):
        label, at = escape(str(item.id)), y(c, len(shown))
        parts.append(
            f'<circle cx="{columns[2]}" cy="{at:.1f}" r="5" class="item"/>'
            f'<text x="{columns[2] + 10}" y="{at + 4:.1f}">{label}</text>'
        )
    return "".join([*parts, "</svg>"])


def _line(x0: float, y0: float, x1: float, y1: float, share: float) -> str:
    middle = (x0 + x1) / 2
    return (
        f'<path d="M{x0} {y0:.1f} C{middle} {y0:.1f} {middle} {y1:.1f} {x1} {y1:.1f}" '
        f'stroke-width="{0.5 + 3 * share:.2f}" stroke-opacity="{0.12 + 0.6 * share:.2f}"/>'
    )


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
