"""Costs on paper: arithmetic by hand on small rows, assumptions, and the page as it is stored."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmarks import costs as command
from benchmarks.cost_inputs import Assumptions, Measured
from benchmarks.cost_model import Costs
from benchmarks.costs_page import between, page, short, size
from benchmarks.rows import rows
from limerank.errors import DataError, SpecError, UnknownError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "costs.md"
VALUES = {field.name: 1.0 for field in dataclasses.fields(Measured)}
ROUND = {
    "item_bytes": 100.0, "unscanned_bytes": 60.0, "vector_bytes": 40.0, "encoded": 1000.0,
    "scan": 1e-6, "scan_large": 2e-6, "candidate": 1e-5, "request": 0.004,
    "update_200": 0.001, "update_2000": 0.002, "state_200": 1000.0, "state_2000": 2800.0,
    "front_1": 0.002, "front_4": 0.008, "bulk_small": 0.1, "bulk_large": 1.0,
    "trained_mha": 10.0, "efficiency": 0.5, "items_read": 9.0, "width": 64.0, "primary": 100.0,
}  # fmt: skip
# 8,640 users make one request a second, three at the peak.
PLAIN = Assumptions(
    cores=10, utilisation=0.5, memory_gb=1, memory_used=0.5, memory_gb_per_s=1, copies=1,
    network_gbit_per_s=0.016, active_share=1, requests=10, impressions=8, events=20,
    stored_events=1100, job_hours=1, machines_limit=6, index_machines=2,
)  # fmt: skip


@pytest.fixture
def costs() -> Costs:
    return Costs(Measured(**VALUES | ROUND), PLAIN)


def but(costs: Costs, **changes: Any) -> Costs:
    return Costs(costs.measured, dataclasses.replace(costs.assumptions, **changes))


def test_the_load_of_a_day(costs: Costs) -> None:
    assert costs.peak_requests(8640) == pytest.approx(3)
    assert costs.peak_events(8640) == pytest.approx(6)
    assert costs.impressions(8640) == 8640 * 80
    assert costs.log_rows(8640) == 8640 * 100
    assert costs.primaries(8640) == pytest.approx(6 / 50)


def test_an_index(costs: Costs) -> None:
    assert (costs.scanned_bytes, costs.resident_bytes) == (40, 60)
    # 10 million items: 10,000 core seconds on 5 busy cores of each of 2 machines; 1 GB to write.
    assert costs.build_seconds(1e7) == pytest.approx(1000 + 0.5)
    assert costs.copy_seconds(1e7) == pytest.approx(1e9 / 1e6)  # half of 2 MB/s


def test_what_binds_the_scan_of_a_full_catalogue(costs: Costs) -> None:
    def machines(costs: Costs) -> float:
        return costs.scan_machines(1e6, 8640, costs.measured.scan)

    # 3 requests a second of 1 core second, 5 busy cores a machine; 120 MB/s of a busy 0.5 GB/s.
    assert machines(but(costs, memory_gb=100)) == pytest.approx(1)  # a copy is the least
    assert machines(but(costs, cores=1, memory_gb=100)) == pytest.approx(6)
    assert machines(but(costs, memory_gb_per_s=1.0, cores=1000)) == pytest.approx(1)
    assert costs.scan_machines(1e8, 8640, 1e-12) == pytest.approx(3e8 * 40 / 0.5e9)
    assert costs.scan_machines(1e9, 1, 1e-12) == pytest.approx(60e9 / 0.5e9)


@pytest.mark.parametrize("users", [100, 8640, 1e6])
def test_the_largest_catalogue_needs_the_stated_machines(costs: Costs, users: float) -> None:
    most = costs.most_items(users, costs.measured.scan)
    assert costs.scan_machines(most, users, costs.measured.scan) == pytest.approx(6)
    assert costs.most_items(users, costs.measured.scan_large) <= most
    assert but(costs, machines_limit=12).most_items(users, 1e-6) == pytest.approx(2 * most)


def test_candidates_and_states_lie_on_lines_through_two_rows(costs: Costs) -> None:
    assert costs.update_seconds == pytest.approx(0.0015)  # 1,100 events: half the distance
    assert costs.state_bytes == pytest.approx(1900)
    assert costs.request_seconds == pytest.approx(0.0055)
    assert but(costs, candidates=612).request_seconds == pytest.approx(0.0065)
    assert costs.equal_items == pytest.approx(5500)
    assert costs.candidate_machines(8.64e6) == pytest.approx(3000 * 0.0055 / 5)
    assert costs.front_seconds(7) == pytest.approx(0.014)
    assert costs.bulk_seconds(2e6) == pytest.approx(2)


def test_shards_are_as_many_as_the_time_of_a_scan_asks_for(costs: Costs) -> None:
    assert [costs.shards(items) for items in (10, 5e4, 50_001, 1e6)] == [1, 1, 2, 20]
    assert but(costs, shard_ms=1000).shards(1e6) == 1


def test_training_is_bound_by_cores_or_by_the_network(costs: Costs) -> None:
    # An impression reads 9 rows: an id, a vector and its gradient for each.
    assert costs.step_bytes == 9 * (8 + 512)
    # 691,200 impressions at 10 a core second and half the efficiency, 18,000 core seconds.
    work, sent = 691_200 / 5 / 18_000, 691_200 * 4680 / 3600 / 1e6
    assert costs.training_machines(8640, 10) == pytest.approx(work)
    assert work > sent
    half = but(costs, network_gbit_per_s=0.001)
    assert half.training_machines(8640, 10) == pytest.approx(16 * sent)
    assert half.training_machines(864, 10) == pytest.approx(work / 10)  # one machine: no network
    assert costs.table_bytes(100) == 100 * 260


def test_an_assumption_is_named_and_has_limits() -> None:
    assert Assumptions.of(["cores=32", "copies=3"]) == Assumptions(cores=32, copies=3)
    with pytest.raises(UnknownError, match=r"no assumption is called 'core'.*did you mean 'cores'"):
        Assumptions.of(["core=32"])
    with pytest.raises(SpecError, match="expected NAME=NUMBER, such as cores=32"):
        Assumptions.of(["cores"])
    with pytest.raises(SpecError, match="'many' is not a number"):
        Assumptions.of(["cores=many"])
    for text in ("utilisation=1.5", "utilisation=nan", "cores=0"):
        with pytest.raises(SpecError, match=r"expected [\d.]+ to [\d.]+ \("):
            Assumptions.of([text])


@pytest.mark.parametrize("field", dataclasses.fields(Assumptions), ids=lambda field: field.name)
def test_every_assumption_changes_the_page(field: dataclasses.Field[float]) -> None:
    measured, changed = Measured.read(), Assumptions.of([f"{field.name}={field.default / 2:g}"])
    if field.name == "distinct_share":
        changed = dataclasses.replace(changed, job_hours=0.1)
    before = dataclasses.replace(changed, **{field.name: field.default})

    def results(assumptions: Assumptions) -> str:
        return page(Costs(measured, assumptions), Measured.sources(), None).split("## Assump")[0]

    assert results(changed) != results(before)


def test_a_missing_row_names_the_benchmark_to_run() -> None:
    def without(bench: str) -> list[dict[str, Any]]:
        return [] if bench == "shards" else list(rows(bench))

    with pytest.raises(
        DataError,
        match=r"no row of 'shards' with model lime-mha, items 1000000, shards 4, for asked_bytes: "
        r".*; measure it with `python -m benchmarks.shards`",
    ):
        Measured.read(without)


def test_a_row_without_the_metric_counts_as_missing() -> None:
    def lacking(bench: str) -> list[dict[str, Any]]:
        return [{**row, "metrics": {}} if bench == "bulk" else row for row in rows(bench)]

    with pytest.raises(DataError, match="no row of 'bulk'"):
        Measured.read(lacking)


def test_the_stored_page_is_that_of_the_rows() -> None:
    text = page(Costs(Measured.read(), Assumptions()), Measured.sources(), None)
    plot = "\n\n![Machines by items](costs.svg)"
    stored = PAGE.read_text("utf-8").rstrip("\n")
    assert plot in stored
    assert stored.replace(plot, "") == text, "run python -m benchmarks.report"


def test_the_command_prints_the_page_with_other_assumptions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command.main(["--set", "machines_limit=7", "--set", "cores=32"])
    text = capsys.readouterr().out
    assert "| `cores` | 32 | cores |" in text
    assert "where it needs 7 machines" in " ".join(text.split())
    with pytest.raises(SystemExit, match="error: no assumption is called 'machine'"):
        command.main(["--set", "machine=7"])
    with pytest.raises(SystemExit):
        command.main(["--help"])
    listed = capsys.readouterr().out
    assert all(f"{field.name} = " in listed for field in dataclasses.fields(Assumptions))


def test_numbers_read_well() -> None:
    assert [size(one) for one in (372e9, 12_780, 55, 0.5)] == ["372 GB", "12.8 kB", "55 B", "0 B"]
    assert [short(one) for one in (1e6, 165_432, 2.5e9)] == [
        "1 million", "165 thousand", "2.5 billion"
    ]  # fmt: skip
    assert between(1.2, 2.0) == "2"
    assert between(0.0165, 0.0409, "{:,.3g}") == "0.0165 to 0.0409"
