"""The simulator: what it promises of its logs, and that their truth is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from limerank.data.canonical import DAY_MS
from limerank.data.description import load_spec
from limerank.data.synthetic import impressions, output, simulate
from limerank.data.synthetic.world import START_MS
from limerank.errors import FormatError, SpecError
from limerank.metrics import auc

EVENTS = 150_000


class Log:
    """One simulated log, read back."""

    def __init__(self, path: Path, summary: dict[str, Any]) -> None:
        self.path, self.summary = path, summary
        parts = [pl.read_parquet(file) for file in sorted(path.glob("events-*.parquet"))]
        self.events = pl.concat(parts)
        self.truth = pl.read_parquet(path / "truth.parquet")
        self.items = pl.read_parquet(path / "items.parquet")
        self.users = pl.read_parquet(path / "users.parquet")

    def column(self, name: str) -> Any:
        frame = self.events if name in self.events.columns else self.truth
        return frame[name].to_numpy()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    path = tmp_path_factory.mktemp("synthetic") / "log"
    return Log(path, simulate(path, users=1500, items=1200, events=EVENTS, days=20, seed=3))


def test_it_writes_exactly_the_events_asked_for(log: Log, tmp_path: Path) -> None:
    assert len(log.events) == len(log.truth) == EVENTS == log.summary["counts"]["events"]
    for events in (1, 3, 17, 1001):
        simulate(tmp_path / str(events), users=5, items=64, events=events, days=2)
        assert len(pl.read_parquet(tmp_path / str(events) / "events-*.parquet")) == events


def test_one_seed_one_log(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        simulate(tmp_path / name, users=50, items=80, events=3000, days=3, seed=seed)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for name in ("events-0000.parquet", "items.parquet", "users.parquet", "truth.parquet"):
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_blocks_and_files_change_nothing_that_a_reader_sees(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(impressions, "BLOCK", 500)
    monkeypatch.setattr(output, "ROW_GROUP", 2000)
    monkeypatch.setattr(output, "FILE_ROWS", 4000)
    simulate(tmp_path / "log", users=300, items=200, events=20_000, days=4)
    small = Log(tmp_path / "log", {})
    assert len(list(small.path.glob("events-*.parquet"))) > 3
    _check_order_and_keys(small)


def test_order_requests_and_keys(log: Log) -> None:
    _check_order_and_keys(log)


def _check_order_and_keys(log: Log) -> None:
    key = ["request_id", "user_id", "item_id", "time_ms"]
    assert log.events.select(key).equals(log.truth.select(key))  # row for row
    assert log.events["time_ms"].is_sorted()
    assert log.events["request_id"].is_sorted()
    assert not log.events.select("user_id", "item_id", "time_ms").is_duplicated().any()
    assert not log.events.select("request_id", "item_id").is_duplicated().any()
    requests = log.events.group_by("request_id").agg(
        pl.col("time_ms", "user_id", "tab").n_unique(), pl.len()
    )
    assert requests.select(pl.col("time_ms", "user_id", "tab").max()).row(0) == (1, 1, 1)
    assert requests["len"].max() == 16
    assert requests["len"].mean() == pytest.approx(10, abs=0.3)
    assert log.events["time_ms"].n_unique() == len(requests)


def test_types_and_ranges(log: Log) -> None:
    schema = log.events.schema
    assert [schema[name] for name in ("user_id", "item_id", "time_ms", "request_id")] == [
        pl.Int64
    ] * 4
    assert log.events.null_count().sum_horizontal().item() == 0
    assert set(log.column("click")) == set(log.column("like")) == {0, 1}
    assert (log.column("like") <= log.column("click")).all()
    assert log.column("watch_ms").min() >= 0
    start = START_MS
    assert log.column("time_ms").min() >= start
    assert log.column("time_ms").max() < start + 20 * DAY_MS
    p = log.column("click_probability")
    assert p.dtype == np.float32
    assert ((p > 0) & (p < 1)).all()
    durations = log.events.join(log.items, on="item_id", how="left", maintain_order="left")
    assert (durations["duration_ms"] == durations["duration_ms_right"]).all()


@pytest.mark.parametrize(
    ("outcome", "truth"), [("click", "click_probability"), ("like", "like_probability")]
)
def test_frequencies_are_the_true_probabilities(log: Log, outcome: str, truth: str) -> None:
    outcomes, p = log.column(outcome).astype(float), log.column(truth).astype(float)
    for rows in np.array_split(np.argsort(p, kind="stable"), 25):
        error = np.sqrt((p[rows] * (1 - p[rows])).sum())
        assert abs(outcomes[rows].sum() - p[rows].sum()) < 4 * error


def test_watch_times_have_the_expected_mean(log: Log) -> None:
    watch, expected = log.column("watch_ms") / 1000.0, log.column("watch_seconds").astype(float)
    for rows in np.array_split(np.argsort(expected, kind="stable"), 25):
        error = watch[rows].std() / np.sqrt(len(rows))
        assert abs(watch[rows].mean() - expected[rows].mean()) < 4 * error


def test_longer_videos_are_watched_longer_but_less_completely(log: Log) -> None:
    length = log.column("duration_ms") / 1000.0
    seconds = log.column("watch_seconds")
    order = np.array_split(np.argsort(length, kind="stable"), 5)
    assert np.all(np.diff([seconds[rows].mean() for rows in order]) > 0)
    assert np.all(np.diff([(seconds[rows] / length[rows]).mean() for rows in order]) < 0)


def test_nothing_is_shown_before_its_upload_and_nobody_comes_before_signing_up(log: Log) -> None:
    shown = log.events.join(log.items, on="item_id", how="left", maintain_order="left")
    assert (shown["time_ms"] >= shown["upload_ms"]).all()
    day = (log.column("time_ms") - START_MS) // DAY_MS
    came = log.events.join(log.users, on="user_id", how="left", maintain_order="left")
    assert (day >= came["signup_day"].to_numpy()).all()


def test_items_and_users_arrive_over_time_and_old_items_fade(log: Log) -> None:
    half = START_MS + 10 * DAY_MS
    before = log.events.filter(pl.col("time_ms") < half)
    after = log.events.filter(pl.col("time_ms") >= half)
    assert len(set(after["item_id"]) - set(before["item_id"])) > 150
    assert len(set(after["user_id"]) - set(before["user_id"])) > 150
    oldest = log.items.filter(pl.col("upload_day") < -20)["item_id"]
    share = [part["item_id"].is_in(oldest.implode()).mean() for part in (before, after)]
    assert share[1] < 0.7 * share[0]


def test_activity_is_heavy_tailed_and_has_a_daily_rhythm(log: Log) -> None:
    per_user = np.sort(np.bincount(log.column("user_id")))[::-1]
    assert per_user[:150].sum() > 0.25 * EVENTS
    hour = np.bincount((log.column("time_ms") // 3_600_000) % 24, minlength=24)
    assert hour[20] > 5 * hour[4]


def test_user_features_say_nothing_of_interests(log: Log) -> None:
    joined = log.truth.join(log.items, on="item_id").join(log.users, on="user_id")
    by_user = joined.group_by("user_id", "category", "age_band", "device").agg(
        pl.col("click_probability").mean(), pl.len()
    )
    favourite = (
        by_user.filter(pl.col("len") >= 5)
        .sort("click_probability", "user_id")
        .group_by("user_id", maintain_order=True)
        .last()
    )
    assert len(favourite) > 500
    for feature in ("age_band", "device"):
        counts = favourite.pivot(feature, index="category", values="len", aggregate_function="len")
        table = counts.drop("category").fill_null(0).to_numpy()
        table = table[:, table.sum(axis=0) > 50]
        assert stats.chi2_contingency(table).pvalue > 0.001


def test_only_the_history_shows_the_interest(log: Log) -> None:
    """Past clicks on the candidate's main tag beat item quality, exposure alone does not."""
    test = log.column("time_ms") >= START_MS + 18 * DAY_MS
    frame = log.events.join(
        log.items.select("item_id", topic=pl.col("author")), on="item_id", maintain_order="left"
    ).with_columns(test=pl.Series(test))
    past = (
        frame.filter(~pl.col("test"))
        .group_by("user_id", "topic")
        .agg(pl.len().alias("shown"), pl.col("click").sum().alias("clicked"))
    )
    seen = frame.filter("test").join(
        past, on=["user_id", "topic"], how="left", maintain_order="left"
    )
    seen = seen.with_columns(pl.col("shown", "clicked").fill_null(0))
    click = seen["click"].to_numpy()
    by_history = auc(click, ((seen["clicked"] + 0.6) / (seen["shown"] + 2.0)).to_numpy())
    by_exposure = auc(click, seen["shown"].to_numpy())
    best = log.summary["best"]["test"]
    assert best["user_free_auc"] + 0.05 < by_history < best["auc"] - 0.05
    assert by_exposure < by_history - 0.05


def test_the_summary_holds_parameters_and_the_known_best(log: Log) -> None:
    saved = json.loads((log.path / "simulation.json").read_text(encoding="utf-8"))
    assert saved == log.summary
    assert saved["parameters"]["users"] == 1500
    assert saved["counts"]["clicks"] == log.column("click").sum()
    assert saved["counts"]["likes"] == log.column("like").sum()
    assert saved["counts"]["requests"] == log.events["request_id"].n_unique()
    test = log.column("time_ms") >= START_MS + 18 * DAY_MS
    assert saved["best"]["test"]["rows"] == test.sum()
    click, p = log.column("click")[test], log.column("click_probability")[test]
    assert saved["best"]["test"]["auc"] == pytest.approx(auc(click, p))
    for window in ("test", "overall"):
        best = saved["best"][window]
        assert 0.78 < best["auc"] < 0.88
        assert 0.56 < best["user_free_auc"] < 0.66
        assert 0.6 < best["xauc"] < 0.8


def test_large_logs_are_sampled_evenly_for_the_known_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"users": 200, "items": 200, "events": 40_000, "days": 5}
    full = simulate(tmp_path / "full", **asked)["best"]
    monkeypatch.setattr(output, "SAMPLE", 9_000)
    sampled = simulate(tmp_path / "sampled", **asked)["best"]
    assert sampled["overall"]["rows"] == 8000
    assert sampled["overall"]["auc"] == pytest.approx(full["overall"]["auc"], abs=0.02)


def test_a_window_without_clicks_has_no_auc(tmp_path: Path) -> None:
    best = simulate(tmp_path / "log", users=1, items=64, events=1, days=1)["best"]
    assert best["overall"]["auc"] is None
    assert json.loads((tmp_path / "log" / "simulation.json").read_text())["best"] == best


def test_the_description_is_ready_for_prepare(log: Log) -> None:
    spec = load_spec(log.path / "spec.toml")
    assert [label.name for label in spec.labels] == ["click", "watch", "like"]
    assert spec.history.length == 128
    assert spec.split.test_from == "2024-01-19T00:00:00Z" == log.summary["test_from"]
    assert spec.items is not None
    assert spec.users is not None
    for table, frame in ((spec.items, log.items), (spec.users, log.users)):
        assert {feature.column for feature in table.features} <= set(frame.columns)
    source = spec.events[0]
    needed = {source.user, source.item, source.time, source.request}
    needed |= {label.column for label in spec.labels} | {"duration_ms", "tab"}
    assert needed <= set(log.events.columns)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"users": 0}, "users: .*greater than or equal to 1; got 0"),
        ({"items": 63}, "items: .*greater than or equal to 64; got 63"),
        ({"events": 0}, "events: .*got 0"),
        ({"days": -1}, "days: .*got -1"),
        ({"seed": -1}, "seed: .*got -1"),
        ({"drift": 0.0}, "drift: .*got 0.0"),
        ({"interests": 0}, "interests: .*got 0"),
        ({"topics": 5}, "topics is 5; .* it must be at least"),
        ({"events": 10**9, "days": 1}, "ask for at most 100,000,000, or for more days"),
        ({"users": 2.5}, "users: .*got 2.5"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        simulate(tmp_path / "log", **wrong)
    assert not list(tmp_path.iterdir())


def test_an_existing_log_stays_without_overwrite(tmp_path: Path) -> None:
    asked = {"users": 5, "items": 64, "events": 50, "days": 1}
    simulate(tmp_path / "log", **asked)
    with pytest.raises(FormatError, match="already exists"):
        simulate(tmp_path / "log", **asked)
    simulate(tmp_path / "log", **asked, overwrite=True)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(output.LogWriter, "_put", fail)
    with pytest.raises(OSError, match="disk full"):
        simulate(tmp_path / "log", users=5, items=64, events=50, days=1)
    assert not list(tmp_path.iterdir())
