"""The online test in simulation: the truth of the clicks, the budget, and a test of a day."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks import abtest, abtest_budget, abtest_page, rows
from benchmarks.abtest_budget import within
from benchmarks.abtest_world import (
    EXAMINED,
    LENGTH,
    Population,
    Size,
    begin_of,
    moves_of,
)
from limerank.data.canonical import DAY_MS
from limerank.serving.stores import open_store

TINY = Size(
    users=40, items=200, topics=12, before=4, days=1, requests=60, history=8, width=8, epochs=1,
    asked=4, histories=(8,), candidates=(20,),
)  # fmt: skip


def test_the_log_has_the_clicks_of_the_truth(tmp_path: Path) -> None:
    """By position, as often as the truth says, within five standard errors."""
    size = replace(TINY, requests=250, users=100)
    count = Population(size, 3).write_log(tmp_path)
    log = pl.read_parquet(tmp_path / "logs/before.parquet")
    assert len(log) == count and log["time"].max() < begin_of(size, 0)
    world = Population(size, 3)
    seen = np.zeros(16)
    expected, variance = np.zeros(16), np.zeros(16)
    by_move = log.with_columns(move=(log["time"] - begin_of(size, -size.before)) // (DAY_MS // 4))
    for (move,), part in sorted(by_move.group_by(["move"])):
        world.move(int(move))
        for user, item, tab, position, click in part.select(
            "user_id", "item_id", "tab", "position", "click"
        ).iter_rows():
            chance = float(world.chances(user - 1, np.array([item]), int(tab[-1]))[0])
            chance *= EXAMINED ** (position - 1)
            seen[position - 1] += click
            expected[position - 1] += chance
            variance[position - 1] += chance * (1 - chance)
    assert (np.abs(seen - expected) < 5 * np.sqrt(variance)).all()
    assert seen[:10].sum() > 300


def test_a_population_is_the_same_after_a_pause() -> None:
    one, two = Population(TINY, 1), Population(TINY, 1)
    for move in moves_of(TINY, 0):
        one.move(move)
    two.move(list(moves_of(TINY, 0))[-1])
    assert one.visits(19) == two.visits(19)
    ids = np.arange(1, 50)
    assert (one.chances(3, ids) == two.chances(3, ids)).all()
    assert one.uploads(19) == two.uploads(19)
    times = [visit.time for visit in one.visits(19)]
    assert times == sorted(times) and len(times) > 0


def test_the_best_that_stays_within_the_budget() -> None:
    found = [
        {"arm": "a", "expected": 1.0, "cpu_ms": 1.0},
        {"arm": "a", "expected": 3.0, "cpu_ms": 5.0},
        {"arm": "a", "expected": 2.0, "cpu_ms": 2.0},
        {"arm": "b", "expected": 9.0, "cpu_ms": 1.0},
        {"arm": "truth", "expected": 9.0, "cpu_ms": None},
    ]
    assert within(found, "a", 4.9) == found[2] and within(found, "a", 5) == found[1]
    assert within(found, "a", 0.5) is None and within(found, "truth", 9) is None


def test_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server, users of three arms, and the page; a second call does nothing again. Without the
    models that count, for time."""
    models = {"lime": "lime-mha", "two-stage": "hstu"}
    monkeypatch.setattr(abtest, "MODELS", models)
    monkeypatch.setattr(abtest, "ARMS", (*models, abtest.FROZEN))
    monkeypatch.setattr(abtest, "SHARES", dict.fromkeys(abtest.ARMS, 1 / 3))
    for module in (abtest_budget, abtest_page):
        monkeypatch.setattr(module, "FULL", ("lime-mha", "two-tower"))
    for module in (abtest, abtest_budget, abtest_page):
        monkeypatch.setattr(module, "STAGED", ("hstu",))
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(abtest_page, "DOCS", tmp_path)
    monkeypatch.setattr(abtest, "SMALL", TINY)
    monkeypatch.setattr(abtest_page, "SIZES", {"small": TINY})
    arguments = ["--small", "--work", str(tmp_path / "work"), "--budget", "50"]
    abtest.main(arguments)
    found = list(rows.rows("abtest"))
    arms = {row["case"]["arm"]: row for row in found if row["case"]["what"] == "arm"}
    assert set(arms) == {"lime", "two-stage", "frozen"}
    days = {row["case"]["arm"]: row["metrics"] for row in found if row["case"]["what"] == "day"}
    for name, row in arms.items():
        metrics = row["metrics"]
        assert metrics["requests"] == days[name]["requests"] > 0
        clicks = days[name]["clicks_per_request"] * metrics["requests"]
        assert metrics["outcomes"] == round(clicks), "limerank ab counts what users clicked"
        assert 0 < metrics["expected_per_request"] < LENGTH and metrics["server_cpu_ms"] > 0
    assert sum(one["metrics"]["requests"] for one in arms.values()) == 60
    home = tmp_path / "work/small-0/budget-50"
    with open_store(str(home / "store-01.db")) as store:
        shown = sum(len(store.exposures(user, 0, 1 << 50)) for user in store.users())
    exported = pl.read_parquet(home / "logs/day-00.parquet")
    assert shown == 60 and len(exported) == 60 * LENGTH
    page = abtest_page.abtest(found)
    assert "## Where LIME wins" in page and (tmp_path / "abtest.svg").exists()
    before = json.loads((home / "day-00.json").read_text())
    abtest.main(arguments)
    assert json.loads((home / "day-00.json").read_text()) == before
    # A day that broke off after its requests is not served again.
    (home / "day-00.json").unlink()
    (home / "store-01.db").rename(home / "store.db")
    shutil.copy(home / "store.db", home / "store-00.db")
    abtest.main(arguments)
    assert json.loads((home / "day-00.json").read_text())["arms"] == before["arms"]
    assert sorted(path.name for path in home.glob("store*.db")) == ["store-01.db"]
    (home / "day-00.json").unlink()  # it broke off before it wrote this
    abtest.main(arguments)
    assert json.loads((home / "day-00.json").read_text())["arms"] == before["arms"]
