"""Alarms: each is raised by its condition alone, stored with the run, and shown everywhere."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from limerank import metrics
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.errors import FormatError
from limerank.evaluation import alarms
from limerank.evaluation.evaluate import Evaluation, evaluate
from limerank.evaluation.list_metrics import Gain, ListEvaluation
from limerank.evaluation.popularity import SMOOTHING, item_means, popularity
from limerank.index.building import build_index
from limerank.models.config import DataShape
from limerank.report.page import write_report
from limerank.runs.alarms import ALARMS, Alarm, alarm_lines, read_alarms, write_alarms
from limerank.serving.engine import Serving
from limerank.serving.stores import SqliteStore
from limerank.training.trainer import train
from tests.worlds import config_of, prepare_log, write_log

MODEL = config_of("lime-mha", width=8, heads=2, links=4, hidden=4)
UNTRAINED = {
    "epochs": 1,
    "learning_rate": 1e-9,
    "table_learning_rate": 1e-9,
    "calibrate": False,
}
DOCS = Path(__file__).parents[1] / "docs" / "training.md"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare_log(tmp_path_factory.mktemp("alarms"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that has learned nothing, on a log in which everybody likes the same items; its users
    have no countries."""
    folder = tmp_path_factory.mktemp("untrained")
    spec = write_log(folder)
    liked = pl.col("item_id") < 15
    pl.read_parquet(folder / "events.parquet").with_columns(
        click=liked.cast(pl.Int64), watch=pl.when(liked).then(30.0).otherwise(0.0)
    ).write_parquet(folder / "events.parquet")
    users = pl.read_csv(folder / "users.csv")
    users.with_columns(country=pl.lit(None)).write_csv(folder / "users.csv")
    prepare(load_spec(spec), folder / "data", base=folder)
    train(folder / "data", folder / "run", model=MODEL, config=UNTRAINED)
    return folder / "run"


def _names(found) -> list[str]:
    return [one.name for one in found]


def test_few_links():
    def found(effective, links):
        return alarms.measured("test", {}, {}, effective, links)

    (alarm,) = found(1.94, 8)
    assert alarm.name == "few-links" and "1.9 of 8 links" in alarm.message
    assert found(2.0, 8) == found(1.0, 1) == found(None, None) == []


@pytest.mark.parametrize(
    ("ne", "raised"), [(1.2, True), (1.0, True), (0.9995, True), (0.99, False)]
)
def test_ne_at_or_above_1(ne, raised):
    found = alarms.measured("test", {"click": {"auc": 0.6, "ne": ne}, "watch": {"xauc": 0.6}}, {})
    assert _names(found) == ["ne"] * raised
    assert not raised or f"{ne:.4f}" in found[0].message


def test_auc_below_that_of_popularity():
    means = {"click": ("auc", 0.61), "watch": ("xauc", 0.55)}
    found = alarms.measured("test", {"click": {"auc": 0.6}, "watch": {"xauc": 0.56}}, means)
    assert _names(found) == ["below-popularity"]
    assert "click: the AUC of the test split is 0.6000" in found[0].message
    assert "0.6100" in found[0].message
    undefined = {"click": {"auc": float("nan")}, "watch": {"xauc": 0.54}}
    assert "XAUC" in alarms.measured("test", undefined, means)[0].message


def _curve(values, losses):
    for at, (value, loss) in enumerate(zip(values, losses, strict=True)):
        yield {"step": 10 * at + 4, "loss": loss + 1.0}
        yield {"step": 10 * at + 10, "loss": loss}
        yield {"step": 10 * at + 10, "validation": {"click": {"auc": value}}}
    yield {"step": 10 * len(values), "done": True}


@pytest.mark.parametrize(
    ("values", "losses", "expected"),
    [
        ((0.7, 0.695, 0.699), (0.5, 0.4, 0.3), ["first-validation"]),
        ((0.6, 0.7, 0.68), (0.5, 0.4, 0.3), ["overfitting"]),
        ((0.6, 0.7, 0.68), (0.5, 0.4, 0.45), []),
        ((0.6, 0.7, 0.699), (0.5, 0.4, 0.3), []),
        ((0.7, 0.6), (0.5, 0.4), ["first-validation", "overfitting"]),
        ((0.7,), (0.5,), []),
    ],
)
def test_curves(values, losses, expected):
    lines = list(_curve(values, losses))
    assert _names(alarms.learned(lines, "click", "auc", higher=True)) == expected
    falling = list(_curve([-one for one in values], losses))
    assert _names(alarms.learned(falling, "click", "auc", higher=False)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"popularity": (-0.02, -0.01)}, ["lists-below-popularity"]),
        ({"popularity": (-0.02, 0.001)}, []),
        ({"popularity": (math.nan, math.nan)}, []),
        ({"knn": (-0.2, -0.1)}, []),
        ({"knn": (-0.2, -0.1), "positives": True}, ["lists-below-item-knn"]),
        ({"share": 0.6}, ["same-items"]),
        ({"share": 0.6, "requests": 49}, []),
        ({"share": 0.6, "catalogue": 99}, []),
        ({"share": 0.6, "popularity": (-2, -1), "model": "most-popular"}, []),
    ],
)
def test_lists(changes, expected):
    gains = {"most-popular": changes.get("popularity", (0.1, 0.2))}
    gains["item-knn"] = changes.get("knn", (-0.1, 0.1))
    lists = ListEvaluation(
        label="click",
        seen="in",
        requests=changes.get("requests", 50),
        positive=80,
        catalogue=changes.get("catalogue", 100),
        metrics={"ndcg@10": 0.25, "concentration@10": changes.get("share", 0.5)},
        peers={name: {"ndcg@10": 0.5} for name in gains},
        gains={name: Gain("ndcg@10", 0.0, *bounds) for name, bounds in gains.items()},
        positives=changes.get("positives", False),
    )
    found = alarms.listed("test", changes.get("model", "lime-mha"), lists)
    assert _names(found) == expected
    for one in found:
        if one.name == "same-items":
            assert "the same 10 items fill 60 % of the first 10 positions of 50" in one.message
        else:
            assert "ndcg@10 of lists of the test split is 0.2500" in one.message
            assert "has 0.5000" in one.message


def test_the_figures_of_overfitting():
    lines = list(_curve((0.6, 0.7, 0.68), (0.5, 0.4, 0.3)))
    (alarm,) = alarms.learned(lines, "click", "auc", higher=True)
    # The loss after a validation is the mean over its steps: 4 of 10 have 1 more.
    assert "from 0.7000 at step 20 to 0.6800 at step 30" in alarm.message
    assert "training loss fell from 0.8000 to 0.7000" in alarm.message


def test_a_table_or_feature_that_nothing_matches(data, tmp_path):
    assert alarms.unmatched(Dataset(data).manifest) == []
    spec = write_log(tmp_path)
    items = pl.read_csv(tmp_path / "items.csv")
    renamed = items.with_columns(item_id=pl.format("SKU-{}", "item_id"), length=pl.lit(None))
    renamed.write_csv(tmp_path / "items.csv")
    users = pl.read_csv(tmp_path / "users.csv")
    users.with_columns(country=pl.lit(None)).write_csv(tmp_path / "users.csv")
    summary = prepare(load_spec(spec), tmp_path / "data", base=tmp_path)
    (alarm,) = alarms.unmatched(summary.manifest)
    assert alarm.name == "unmatched"
    assert "the item table has a row for 0 of 30 items" in alarm.message
    assert "user feature country: 0 of 40 rows" in alarm.message
    assert "length" not in alarm.message, "the table is the reason"


@pytest.mark.parametrize("task", ["click", "watch"])
def test_item_means_by_hand(data, task, monkeypatch):
    monkeypatch.setattr("limerank.evaluation.popularity.AT_ONCE", 7)
    dataset = Dataset(data)
    rows = dataset.impression_rows(dataset.requests_of("train"))
    items, labels = dataset.events["item"][rows], dataset.events[f"label_{task}"][rows]
    mean = float(np.mean(labels, dtype=np.float64))
    found = item_means(dataset, task)
    for item in range(len(dataset.items)):
        own = [float(label) for at, label in zip(items, labels, strict=True) if at == item]
        expected = (sum(own) + SMOOTHING * mean) / (len(own) + SMOOTHING)
        assert found[item] == pytest.approx(expected)
    requests = dataset.requests_of("test")
    shape = DataShape.of(dataset.manifest)
    name, value = popularity(dataset, requests, shape.tasks)[task]
    tested = dataset.impression_rows(requests)
    order = getattr(metrics, name)
    assert value == order(
        dataset.events[f"label_{task}"][tested], found[dataset.events["item"][tested]]
    )


def test_a_run_that_learned_nothing_is_reported_everywhere(run, tmp_path, call):
    stored = read_alarms(run)
    assert {"ne", "below-popularity", "unmatched"} <= set(_names(stored))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["alarms"] == [one.to_dict() for one in stored]
    status, output, _ = call("evaluate", run, "--lists", 0)
    assert status == 0 and "ALARM" in output and "below-popularity: click: the AUC" in output
    found = Evaluation.read(run / "metrics.json")
    assert set(_names(stored)) <= set(_names(found.alarms))
    tested = [one for one in found.alarms if "test split" in one.message]
    assert "below-popularity" in _names(tested)
    write_report(tmp_path / "report.html", runs=[run])
    page = (tmp_path / "report.html").read_text()
    assert all(one.message in page and one.advice in page for one in tested)


def test_a_server_shows_the_alarms_of_its_run(run, tmp_path, caplog):
    build_index(run, tmp_path / "index")
    with closing(Serving(run, tmp_path / "index", SqliteStore(tmp_path / "events.db"))) as engine:
        reported = engine.model()["alarms"]
    stored = read_alarms(run)
    assert reported == [one.to_dict() for one in stored] and len(reported) > 1
    assert all(any(one.message in line for line in caplog.messages) for one in stored)
    old = tmp_path / "old"
    shutil.copytree(run, old)
    (old / ALARMS).unlink()
    with closing(Serving(old, tmp_path / "index", SqliteStore(tmp_path / "old.db"))) as engine:
        assert engine.model()["alarms"] is None


def test_other_histories_raise_no_alarms_of_their_own(run):
    found = evaluate(run, history=0, lists=0)
    assert found.alarms == read_alarms(run)
    old = {name: value for name, value in found.to_dict().items() if name != "alarms"}
    assert Evaluation.of(old).alarms == ()


def test_a_training_prints_its_alarms(data, tmp_path, monkeypatch):
    monkeypatch.setattr("limerank.training.trainer.effective_links", lambda use: 1.25)
    result = train(data, tmp_path / "run", model=MODEL, config={"epochs": 2, "batch_size": 64})
    assert "few-links" in _names(result.alarms) and read_alarms(tmp_path / "run") == result.alarms
    assert "1.2 of 4 links" in result.text() and "Try: a lower learning_rate" in result.text()


def test_the_file_of_a_run(tmp_path):
    assert read_alarms(tmp_path) is None and alarm_lines(()) == []
    some = (Alarm("ne", "it is 1", "more data"), Alarm("few-links", "1 of 8", "fewer"))
    for written in (some, ()):
        write_alarms(tmp_path, written)
        assert read_alarms(tmp_path) == written
    assert alarm_lines(some)[0].startswith("2 ALARMS") and alarm_lines(some[:1])[0][:7] == "1 ALARM"
    for text in ('{"format": 9}', '{"format": 1, "alarms": [3]}', '{"format": 1}', "no JSON"):
        (tmp_path / ALARMS).write_text(text)
        with pytest.raises(FormatError, match=r"alarms\.json"):
            read_alarms(tmp_path)


def test_the_documentation_explains_every_alarm():
    text = DOCS.read_text("utf-8")
    assert [name for name in alarms.ADVICE if f"`{name}`" not in text] == []
