"""The verdict of a soak, and the pages of soaks and histories, from made-up rows."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from benchmarks.histories_page import histories
from benchmarks.soak import memory_of, verdict
from benchmarks.soak_page import soak

MACHINE = {
    "machine": {"processor": "p", "cores": 2},
    "versions": {"python": "3"},
    "commit": "c",
    "date": "2026-11-30",
    "spread": None,
}


def minutes(count=120, *, memory=0.0, latency=0.0, failed=0):
    """Rows of minutes whose memory and latency grow by so much in all."""
    case = {"minutes": count, "users": 10, "items": 20, "rate": 5.0, "day": 2.0}
    return [
        {
            "case": {**case, "minute": minute},
            "metrics": {
                "requests": 100,
                "failed": failed if minute == 5 else 0,
                "rss_mib": 400 * (1 + memory * minute / count),
                "threads": 9,
                "files": 30,
                "store_mib": 2.0,
                "published": int(minute % 10 == 0),
                "refused": 0,
                "ms_p50": 5.0,
                "ms_p99": 20 * (1 + latency * minute / count),
            },
            **MACHINE,
        }
        for minute in range(1, count + 1)
    ]


def test_constant_memory_and_latency():
    found = verdict(minutes())
    assert found["constant"] and found["memory"] == found["latency"] == 1.0
    assert not found["failed"] and found["text"].endswith("constant. 0 requests failed.")
    assert verdict(minutes(3))["constant"]


@pytest.mark.parametrize("growing", ["memory", "latency"])
def test_memory_or_latency_that_grows(growing):
    found = verdict(minutes(**{growing: 1.0}))
    assert not found["constant"] and "not constant" in found["text"]
    assert found[growing] == pytest.approx(1.5, abs=0.1)


def test_a_warm_up_is_no_growth():
    rows = minutes()
    for row in rows[:3]:
        row["metrics"]["rss_mib"] = 100.0
    assert verdict(rows)["constant"]


def test_mapped_files_are_no_growth():
    rows = minutes(memory=0.5)
    for row in rows:
        row["metrics"]["own_mib"] = 200.0
    assert verdict(rows)["constant"]
    rows[-1]["metrics"]["own_mib"] = 200.0
    for row in rows[60:]:
        row["metrics"]["own_mib"] = 300.0
    assert not verdict(rows)["constant"]
    own = memory_of(Path("/proc/self")) if Path("/proc/self/status").exists() else None
    assert own is None or 1 < own["RssAnon"] <= own["VmRSS"]


def test_the_page_of_soaks():
    text = soak([*minutes(10, failed=2), *reversed(minutes(120))])
    assert text.index("## 120 minutes") < text.index("## 10 minutes")
    assert "| 1 to 5 | 500 | 0 | 400 | - |" in text and "2 requests failed" in text


def test_the_page_of_histories():
    counts = {"histories": 3, "requests": 1000, "unclear": 7, "events": 50, "faults": 9,
              "compared": 5000, "violations": 0, "first_seed": 0, "last_seed": 2,
              "seconds_behind": 1.25, "failovers": 0}  # fmt: skip
    lost = {**counts, "failovers": 4, "events_lost_by_failovers": 12}
    case = {"store": "one", "network": "proxies", "slowed_by": "proxy", "seconds": 20.0}
    rows = [
        {"case": {**case, "failover": kind}, "metrics": metrics, **MACHINE}
        for kind, metrics in (("bounded", {**lost, "exports": 2}), ("none", counts))
    ]
    text = histories(rows)
    assert "| one server | proxies | none | 0 to 2 | 20 | 3 | 1,000 | 7 | 50 | 9 | 0 |" in text
    assert "| to a replica, bounded | 1.2 | 4 | 12 | 0 | 0 | 0 |" in text
    assert "slowed in proxies by proxies that wait." in text
    assert "**Failovers.**" not in histories(rows[1:])
