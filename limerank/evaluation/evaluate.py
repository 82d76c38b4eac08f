"""Evaluation of a run: exact metrics on one split, by slice and in ranked lists."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from limerank.data.dataset import Dataset
from limerank.errors import SpecError
from limerank.evaluation.lists import LIST_REQUESTS, list_metrics
from limerank.evaluation.measures import task_metrics
from limerank.evaluation.predict import Predictions, effective_links, predict
from limerank.evaluation.slices import column, slice_values, slices
from limerank.files import TABLE_ENDINGS, check_output, write_json, write_table
from limerank.results import aligned
from limerank.runs.folder import load_run


def evaluate(
    run: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    split: str = "test",
    history: int | None = None,
    at_least: int = 0,
    lists: int = LIST_REQUESTS,
    out: str | os.PathLike[str] | None = None,
    predictions: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Measure a run on one split and write all metrics to a JSON file.

    Args:
        run: a run folder.
        data: the dataset; the one that the run was trained on when not given.
        split: "train", "validation", "test", or "held-out": users that training never saw.
        history: read only so many of a user's latest events; 0 measures features alone. As many
            as in training when not given.
        at_least: measure only requests with at least so many events before them, so that different
            values of ``history`` are compared on the same impressions.
        lists: rank the full catalogue for NDCG, HR and MRR at so many requests. Where the split has
            more, they are drawn at random, and are the same for every run. 0: no lists.
        out: the JSON file. ``metrics.json`` in the run folder when not given; its name gets a
            suffix such as ``metrics-validation.json`` where ``split``, ``history`` or ``at_least``
            is given.
        predictions: a file for the prediction of each impression: CSV where its name ends in
            ``.csv``, else Parquet. Its columns are user, item, time, request, the values of
            :func:`~limerank.evaluation.slices.slice_values` (history, item_impressions, user_days,
            item_days) and, for each task, ``TASK`` and ``TASK_predicted``. This file contains user
            ids; no other output does.
        quiet: show no progress.

    Raises:
        FormatError: ``run`` is not a run, or ``out`` or ``predictions`` cannot be written. It is
            raised before anything is computed.
        UnknownError: there is no such split.
        SpecError: ``history``, ``at_least`` or ``lists`` is below 0.
    """
    for name, value in (("history", history), ("at_least", at_least), ("lists", lists)):
        if value is not None and value < 0:
            raise SpecError(f"{name} is {value}, expected 0 or more")
    target = Path(run) / _file_name(split, history, at_least) if out is None else Path(out)
    if out is not None:
        check_output(target, (".json",))
    if predictions is not None:
        check_output(predictions, TABLE_ENDINGS)
    loaded = load_run(run)
    dataset = loaded.dataset(data)
    requests = dataset.requests_of(split)
    requests = requests[dataset.history_lengths(requests, 1 << 62) >= at_least]
    if out is None:  # the folder is a run
        check_output(target)
    if history is None:
        history = loaded.train.history
    predicted = predict(loaded.ranker, dataset, requests, history=history, quiet=quiet)
    if predictions is not None:
        _write_predictions(predicted, dataset, Path(predictions))
    tasks = loaded.ranker.shape.tasks
    result: dict[str, Any] = {
        "model": loaded.ranker.config.model,
        "dataset": dataset.name,
        "split": split,
        "history": dataset.history_length if history is None else history,
        "at_least": at_least,
        "requests": len(requests),
        "impressions": len(predicted.rows),
        "tasks": task_metrics(predicted, dataset, tasks) if len(predicted.rows) else {},
        "slices": [
            {
                "kind": kind,
                "slice": name,
                "impressions": int(chosen.sum()),
                "tasks": task_metrics(predicted, dataset, tasks, chosen) if chosen.any() else {},
            }
            for kind, name, chosen in slices(slice_values(predicted, dataset))
        ],
    }
    if predicted.link_use is not None:
        result["effective_links"] = effective_links(predicted.link_use)
    if lists:
        result["lists"] = list_metrics(
            loaded.ranker, dataset, requests, most=lists, history=history, quiet=quiet
        )
    result = _without_nan(result)
    write_json(target, result)
    return result


def _file_name(split: str, history: int | None, at_least: int) -> str:
    parts = ["metrics"]
    if split != "test":
        parts.append(split)
    if history is not None:
        parts.append(f"history-{history}")
    if at_least:
        parts.append(f"at-least-{at_least}")
    return "-".join(parts) + ".json"


def _write_predictions(predicted: Predictions, dataset: Dataset, path: Path) -> None:
    columns = {
        "user": dataset.user_ids[dataset.requests["user"][predicted.requests]],
        "item": dataset.item_ids[dataset.events["item"][predicted.rows]],
        "time": np.asarray(dataset.events["time"][predicted.rows]),
        "request": predicted.requests,
        **{column(kind): values for kind, values in slice_values(predicted, dataset).items()},
    }
    for position, task in enumerate(dataset.tasks):
        columns[task] = predicted.labels[:, position]
        columns[f"{task}_predicted"] = predicted.values[:, position]
    write_table(pl.DataFrame(columns), path)


def table_text(result: Mapping[str, Any]) -> str:
    """What :func:`evaluate` found, to read: a block of metrics and a table of slices."""
    lines = [
        f"{result['model']} on {result['dataset']}, {result['split']} split: "
        f"{result['impressions']:,} impressions in {result['requests']:,} requests",
        "",
    ]
    blocks = [
        (task, "  ".join(f"{name} {_shown(v)}" for name, v in found.items()))
        for task, found in result["tasks"].items()
    ]
    if "lists" in result:
        lists = {
            name: value for name, value in result["lists"].items() if "@" in name or name == "mrr"
        }
        blocks += [
            ("lists", "  ".join(f"{name} {_shown(v)}" for name, v in lists.items())),
            (
                "",
                f"(whole catalogue of {result['lists']['catalogue']:,.0f} items, "
                f"{result['lists']['requests']:,.0f} requests with a positive, met items left out)",
            ),
        ]
    if "effective_links" in result:
        blocks.append(("links", f"effective number {result['effective_links']:.1f}"))
    lines += aligned(blocks, "<<", (10,))
    heads = [(task, next(iter(found))) for task, found in result["tasks"].items()]
    rows = [("slice", "impressions", *(f"{task} {metric}" for task, metric in heads))]
    for part in result["slices"]:
        values = [part["tasks"].get(task, {}).get(metric) for task, metric in heads]
        name = f"{part['kind']} {part['slice']}"
        rows.append((name, f"{part['impressions']:,}", *map(_shown, values)))
    lines += ["", *aligned(rows, "<" + ">" * (1 + len(heads)), (26, 12, *[16] * len(heads)))]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _without_nan(value: Any) -> Any:
    """NaN (a metric that is not defined, such as AUC of one class) as null."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
