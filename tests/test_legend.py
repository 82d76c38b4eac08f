"""Every metric that is shown is explained, where it is shown and in docs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from limerank.evaluation.evaluate import Evaluation, Slice
from limerank.evaluation.legend import METRICS, WIDTH, legend, metric_of, reference
from limerank.evaluation.measures import task_metrics
from limerank.evaluation.predict import Predictions
from limerank.models.tasks import Task

DOCS = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"


class _Dataset:
    def __init__(self) -> None:
        self.requests = {"user": np.array([0, 0, 1, 1])}


def test_every_metric_of_a_task_is_explained():
    rows = np.arange(4)
    numbers = np.array([[0.1, 3.0], [0.8, 1.0], [0.4, 5.0], [0.5, 2.0]], dtype=np.float32)
    outcomes = np.array([[0, 2], [1, 1], [0, 4], [1, 3]], dtype=np.float32)
    tasks = (
        Task(name="click", kind="binary", mean=0.5),
        Task(name="watch", kind="duration", mean=2.0),
    )
    found = task_metrics(Predictions(rows, rows, numbers, outcomes, None), _Dataset(), tasks)
    for task in tasks:
        for name in found[task.name]:
            metric = metric_of(name)
            assert metric is not None, name
            assert metric.of == task.kind or name == "calibration"
    for task in tasks:
        for name, higher in task.of_kind.stopping.items():
            assert METRICS[name].better == ("higher" if higher else "lower"), name
    explained = {name for of_task in found.values() for name in of_task}
    of_lists = {name for name, metric in METRICS.items() if metric.of == "lists"}
    assert explained | of_lists | {"effective_links"} == set(METRICS)


def test_lists_are_explained_at_any_depth():
    assert metric_of("ndcg@10") is METRICS["ndcg@k"] and metric_of("hr@50") is METRICS["hr@k"]
    assert metric_of("requests") is None and metric_of("auc@3") is None


def test_a_legend_groups_by_direction_and_fits_a_terminal():
    lines = legend([*METRICS, "requests"])
    assert [line.split(":")[0].strip() for line in lines if not line.startswith("    ")] == [
        "Higher is better", "Lower is better", "Best at 1", "Neither higher nor lower is better",
    ]  # fmt: skip
    assert max(map(len, lines)) <= WIDTH
    assert all(name in " ".join(lines) for name in METRICS)
    assert legend(["requests"]) == []


@pytest.mark.parametrize("effective", [None, 4.5])
def test_an_evaluation_explains_what_it_shows(effective):
    tasks = {"click": {"auc": 0.5, "ne": float("nan")}}
    lists = {"requests": 3.0, "catalogue": 9.0, "ndcg@10": 0.1}
    parts = (Slice("history", "0", 1, tasks),)
    result = Evaluation("m", "d", "test", 9, 0, 1, 1, tasks, parts, effective, lists=lists)
    text = result.legend()
    assert all(name in text for name in ("auc (", "ne (", "ndcg@k ("))
    assert ("effective_links (" in text) == (effective is not None)
    assert "ece" not in text
    assert "ne -" in result.text()
    assert ("effective_links 4.5" in result.text()) == (effective is not None)


def test_the_page_on_metrics_is_up_to_date():
    assert DOCS.read_text("utf-8") == reference(), "docs/metrics.md is out of date: make metrics"
