"""The report: evaluated runs as one HTML page of charts and tables, which loads nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from limerank.data.dataset import Dataset
from limerank.errors import FormatError
from limerank.evaluation.legend import legend, metric_of
from limerank.files import check_output, read_json, write_text
from limerank.index import Index
from limerank.ranking.fidelity import Fidelity
from limerank.ranking.recommender import Recommender
from limerank.report import charts
from limerank.report.charts import leading
from limerank.report.flow import flow_picture
from limerank.report.lists import UserLists, user_lists
from limerank.runs.alarms import alarms_of
from limerank.runs.folder import Run, load_run
from limerank.storage.arguments import NEW_FILE, READ, with_uris

USERS = 3
ITEMS = 5


@with_uris(out=NEW_FILE, runs=READ, index=READ)
def write_report(
    out: str | os.PathLike[str],
    *,
    runs: Sequence[str | os.PathLike[str]],
    index: str | os.PathLike[str] | None = None,
    ceiling: Mapping[str, float] | None = None,
    quantisation: Fidelity | None = None,
    title: str | None = None,
) -> None:
    """Write an HTML page that compares evaluated runs.

    Args:
        out: the HTML file.
        runs: evaluated run folders on one dataset.
        index: an index of one of the runs, to show ranked items with reasons.
        ceiling: the best possible ``auc`` and ``xauc``, if known, as for simulated logs.
        quantisation: result of :func:`limerank.ranking.fidelity.quantisation_report`.
        title: heading of the page; by default it names the dataset.

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
        "summary": dataset.summary.text(),
        "comparison": charts.comparison(names, results, ceiling),
        "tables": _tables(names, results, ceiling),
        **_legend(results),
        "alarms": [
            (name, one)
            for name, result in zip(names, results, strict=True)
            for one in alarms_of(result.get("alarms", ()))
        ],
        "slices": charts.slices(names, results),
        "curves": charts.curves(names, loaded),
        "agreement": charts.agreement(names, loaded, dataset),
        "lists": _user_lists(names, loaded, results, dataset),
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
        first = task in (pair[0] for pair in leading(results[0])[:2])
        if ceiling is not None and first and columns[0] in ceiling:
            best = ["best possible", _shown(ceiling[columns[0]])]
            rows.append(best + [""] * (len(columns) - 1))
        tables.append({"name": task, "head": ["model", *columns], "rows": rows})
    if all("lists" in result for result in results):
        columns = [c for c in results[0]["lists"] if "@" in c or c == "mrr"]
        found = [(name, result["lists"]) for name, result in zip(names, results, strict=True)]
        found += [pair for pair in results[0].get("peers", {}).items() if pair[0] not in names]
        rows = [[name, *(_shown(of.get(column)) for column in columns)] for name, of in found]
        if columns:
            tables.append(
                {"name": "lists of the full catalogue", "head": ["model", *columns], "rows": rows}
            )
    return tables


def _user_lists(
    names: Sequence[str],
    runs: Sequence[Run],
    results: Sequence[Mapping[str, Any]],
    dataset: Dataset,
) -> list[UserLists]:
    """Lists of some users, by the run whose lists are best; none where no lists were evaluated."""
    values = {
        at: next((v for k, v in result["lists"].items() if k.startswith("ndcg@")), 0.0)
        for at, result in enumerate(results)
        if result.get("lists", {}).get("requests")
    }
    if not values:
        return []
    best = max(values, key=lambda at: values[at])
    return user_lists(names[best], runs[best].ranker, dataset, history=runs[best].train.history)


def _legend(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The meanings of the tables' columns: as lines below the tables, and by name."""
    names = [name for result in results for found in result["tasks"].values() for name in found]
    names += [name for result in results for name in result.get("lists", {})]
    found = {name: metric for name in names if (metric := metric_of(name)) is not None}
    return {
        "legend": legend(names, width=None),
        "meanings": {name: metric.meaning for name, metric in found.items()},
    }


def _ranked(
    runs: Sequence[Run],
    path: str | os.PathLike[str],
    dataset: Dataset,
    quantisation: Fidelity | None,
) -> dict[str, Any]:
    index = Index.open(path)
    run = next((run for run in runs if run.fingerprint == index.fingerprint), None)
    if run is None:
        raise FormatError(
            f"{path} is not an index of any of these runs; build one with limerank index"
        )
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
                        "title": next(iter(item.display.values()), ""),
                        "scores": [_shown(value) for value in item.scores.values()],
                        "because": ", ".join(
                            f"{event.item} ({event.effect:+.2f})"
                            for event in (item.explanation.reasons() if item.explanation else [])
                        ),
                    }
                    for item in ranking.items
                ],
                "picture": flow_picture(ranking),
            }
        )
    size = sum(file.stat().st_size for file in Path(path).iterdir())
    facts = [
        ("items", f"{index.items:,}"),
        ("bytes per item, with vectors and ids", f"{size / max(len(index), 1):,.0f}"),
    ]
    if quantisation is not None:
        facts += [
            ("AUC lost by 8-bit scores", f"{_auc_lost(quantisation):+.6f}"),
            (
                "overlap of the top 100 with float32 scores",
                f"{100 * quantisation.overlap:.2f} %",
            ),
            ("largest error of a logit", f"{quantisation.logit_error_max:.4f}"),
        ]
    return {"rankings": rankings, "index": {"model": run.ranker.config.model, "facts": facts}}


def _auc_lost(quantisation: Fidelity) -> float:
    """Of the first binary task."""
    return next(of.lost for of in quantisation.tasks if of.metric == "auc")


def some_users(dataset: Dataset, count: int) -> list[Any]:
    """Ids of ``count`` users of the test split, from short to long histories."""
    requests = dataset.requests_of("test")
    columns = dataset.requests
    lengths = (columns["history_end"] - columns["history_start"])[requests]
    ordered = requests[np.argsort(lengths, kind="stable")]
    positions = np.linspace(0.3, 0.9, count) * (len(ordered) - 1)
    users = columns["user"][ordered[positions.astype(np.int64)]]
    return [dataset.user_ids[row] for row in dict.fromkeys(users.tolist())]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
