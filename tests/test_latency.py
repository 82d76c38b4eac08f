"""The latency study in its smallest form, and its page, of all rows and of some."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from benchmarks import latency, latency_goals, latency_page, rows
from benchmarks.latency_cases import FAISS, LIMES, MODELS, PLANS, Case
from benchmarks.latency_requests import Store

TINY = replace(
    PLANS["quick"],
    histories=(64,),
    candidates=(64, 512),
    N=64,
    widths=(16,),
    links=(8,),
    batch_histories=(64,),
    catalogue=2_000,
    stage_histories=(64,),
)
KEYS = {"model", "N", "M", "d", "links", "batch", "device", "state", "threads"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "RESULTS", tmp_path_factory.mktemp("results"))
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        latency.measure(TINY, "cpu", 1, seconds=0.0, longest=60.0)
        first = list(rows.rows("latency"))
        latency.measure(TINY, "cpu", 1, seconds=0.0, longest=60.0)
        torch.set_num_threads(before)
        assert list(rows.rows("latency")) == first  # finished rows stay
    return first


def test_rows_name_their_cases(found):
    assert all(set(row["case"]) == KEYS for row in found)
    models = {row["case"]["model"] for row in found}
    assert models - {FAISS} == set(MODELS)
    assert (FAISS in models) == (find_spec("faiss") is not None)
    for row in found:
        case, metrics = row["case"], row["metrics"]
        assert (case["links"] is None) == (case["model"] not in LIMES)
        if case["M"] is None:
            assert 0 < metrics["share_of_peak"] < 1.5
        else:
            assert metrics["ms_p50"] > 0
            assert (metrics["user_ms_p50"] == 0) == (case["state"] == "cached")
            low, high = row["spread"]["ms_p50"]
            assert low <= high


@pytest.mark.parametrize("part", ["all", "one", "stages", "left", "gpu"])
def test_the_page_needs_no_row_in_particular(found, tmp_path, part):
    some = {
        "all": found,
        "one": found[:1],
        "stages": [row for row in found if row["case"]["M"] is None],
        "left": [{**found[0], "metrics": {"expected_ms": 1e6}}],
        "gpu": [
            {
                **row,
                "case": {**row["case"], "device": "cuda", "threads": None},
                "machine": {**row["machine"], "gpu": "A GPU"},
            }
            for row in found
        ],
    }[part]
    page = latency_page.latency(some, tmp_path)
    assert page.startswith("# Latency")
    assert ("GPU: A GPU" in page) == (part == "gpu")
    assert ("| 1,000 |" in page) == (part == "left")
    plots = [path.name for path in tmp_path.iterdir()]
    assert bool(plots) == (part in ("all", "one", "gpu"))
    assert all(name in page for name in plots)


def row(model: str, n: int, m: int, ms: float, **case: object) -> dict:
    usual = {"d": 64, "batch": 1, "device": "cpu", "state": "fresh", "threads": 1}
    links = 32 if model in LIMES else None
    return {
        "case": {"model": model, "N": n, "M": m, "links": links, **usual, **case},
        "metrics": {"user_ms_p50": ms / 2, "score_ms_p50": ms / 2, "ms_p50": ms},
    }


def test_goals_are_computed_from_the_rows():
    timed = [
        row("lime-mha", 64, 64, 1.0),
        row("mha", 64, 64, 0.5),
        row("lime-mha", 1024, 32768, 2.0),
        row("mha", 1024, 32768, 70.0),
        row("hstu", 1024, 32768, 190.0),
        row("lime-xor", 4096, 512, 10.0),
        row("lime-xor", 16384, 512, 40.0),
        row("hstu", 4096, 512, 40.0, d=128),  # not of the grid
    ]
    lines_of = {line.split("|")[1].strip(): line for line in latency_goals.goals(timed, [])}
    never = lines_of["LIME-MHA is never slower than MHA"]
    assert "at least 0.50 times as fast at N = 64, M = 64; 1 of 2 points" in never
    assert never.endswith("| no |")
    assert "35.00 times" in lines_of["LIME-MHA: 30 times faster than MHA at N = 1,024, M = 32,768"]
    assert lines_of["LIME-MHA: 100 times faster than HSTU at N = 1,024, M = 32,768"].endswith(
        "| no |"
    )
    assert "4.00 times" in next(line for goal, line in lines_of.items() if "16,384 events" in goal)
    assert lines_of["LIME-XOR: 10 times faster than HSTU"].endswith("| - | - |")


def test_cost_is_fitted_by_a_line():
    base, each = latency_goals.fitted({m: 0.5 + 0.001 * m for m in (64, 512, 4096)})
    assert base == pytest.approx(0.5)
    assert each == pytest.approx(0.001)


def test_a_case_that_would_take_minutes_is_reported_and_skipped():
    case = Case("hstu", 128, 64)
    known = {tuple(replace(case, N=64).row().items()): {"ms_p50": 30_000.0}}
    assert latency.expected(case, known) == 120.0
    assert latency.expected(replace(case, N=64), known) == 0.0
    known[tuple(case.row().items())] = {"expected_ms": 120_000.0}
    assert latency.expected(replace(case, M=128), known) == 240.0


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no GPU"):
        latency.main(["--device", "cuda"])


def test_a_model_that_deviates_from_its_reference_is_not_timed(monkeypatch, tmp_path):
    store = Store(tmp_path)
    ranker = store.run("mha", 500, 64, 32).ranker
    score = ranker.score

    def wrong(state, terms, extra=None):
        return score(state, terms, extra) + (0.0 if torch.is_grad_enabled() else 0.01)

    monkeypatch.setattr(ranker, "score", wrong)
    with pytest.raises(AssertionError, match="mha deviates from its reference"):
        latency.verify(store, 500, "cpu", ["mha"])


def test_compile_without_a_gpu_is_refused(capsys):
    with pytest.raises(SystemExit):
        latency.main(["--compile"])
    assert "--compile is for --device cuda" in capsys.readouterr().err
