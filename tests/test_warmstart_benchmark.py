"""The measurement of warm starts: which days are compared, and what the page shows of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import warmstart, warmstart_page
from benchmarks.rows import rows
from limerank.data.dataset import Dataset


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmstart, "WORK", tmp_path / "work")
    monkeypatch.setattr("benchmarks.rows.RESULTS", tmp_path / "results")
    feed = {"users": 40, "items": 64, "events": 1_600, "days": 8, "history": 8, "topics": 12}
    monkeypatch.setattr(warmstart, "FEED", feed)
    monkeypatch.setattr(warmstart, "DAYS", 2)
    monkeypatch.setattr(warmstart, "SETTINGS", {"width": 8, "heads": 2, "links": 4})
    monkeypatch.setattr(warmstart, "SCRATCH", {"synth_days": {"epochs": 1}})


def test_each_day_is_tested_once_and_never_trained_on(tmp_path: Path) -> None:
    warmstart.measure_log("synth_days", None, 0, {"replay": 0.5})
    found = [(row["case"]["day"], row["case"]["how"]) for row in rows("warmstart")]
    assert found == [(day, how) for day in (1, 2) for how in ("scratch", "warm", "frozen")]
    one_model = [row["metrics"]["auc"] for row in rows("warmstart") if row["case"]["day"] == 1]
    assert one_model == [pytest.approx(one_model[0])] * 3
    days = [Dataset(tmp_path / "work" / "warmstart" / "synth_days" / f"day-{n}") for n in (1, 2)]
    begins = []
    for data in days:
        times = np.asarray(data.events["time"])[data.requests["first"]]
        begin = times[data.requests_of("test")].min() // warmstart.DAY * warmstart.DAY
        assert times[data.requests_of("train")].max() < begin - warmstart.DAY
        chosen = times[warmstart.day_requests(data, begin)]
        assert chosen.min() >= begin
        assert chosen.max() < begin + warmstart.DAY
        begins.append(begin)
    assert begins[1] - begins[0] == warmstart.DAY
    assert "## synth_days" in warmstart_page.warmstart(list(rows("warmstart")))


def _row(how: str, day: int, auc: float, seconds: float, settings: str = "") -> dict:
    case = {"dataset": "log", "model": "lime-mha", "how": how, "day": day}
    if how == "warm":
        case["settings"] = settings
    return {
        "bench": "warmstart",
        "case": case,
        "metrics": {"auc": auc, "gauc": 0.5, "ne": 0.9, "requests": 9, "cpu_seconds": seconds},
        "machine": {"processor": "some", "cores": 2},
        "versions": {"python": "3"},
        "commit": "abc",
        "date": "2026-11-29",
    }


def test_the_page_compares_the_same_days() -> None:
    """The first day, on which all are one model, is left out of the means."""
    found = [
        *(_row("scratch", day, auc, 10) for day, auc in ((1, 0.1), (2, 0.7), (3, 0.8))),
        *(_row("warm", day, auc, 2) for day, auc in ((1, 0.1), (2, 0.71), (3, 0.82))),
        *(_row("warm", day, auc, 4, "replay=3") for day, auc in ((1, 0.1), (2, 0.7), (3, 0.84))),
        *(_row("frozen", day, auc, 0) for day, auc in ((1, 0.1), (2, 0.6), (3, 0.5))),
    ]
    page = warmstart_page.warmstart(found)
    assert "| log | AUC | 0.7500 | 0.7650 | 0.5500 | +0.0150 | 10.0 | 2.0 | 5.0 |" in page
    assert "| replay=3 | +0.0200 | 4.0 |" in page
    assert "| 3 | 9 | 0.8000 | 0.8200 | 0.5000 |" in page
