"""Splits and the sizes of requests: what a description can ask for, and what a log decides."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limerank.data.prepare import gaps, prepare
from limerank.data.prepare.gaps import Gaps, Grouping
from limerank.data.protocol import Requests, Split
from limerank.data.summary import DatasetSummary
from limerank.errors import DataError, SpecError
from tests.test_logs import MIB, View, log, make_spec, random_rows, run, same, write

ORDER = {"user": "user", "item": "item", "order": "time", "files": ["log.parquet"]}


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def splits(view: View) -> dict[Any, list[tuple[int, int]]]:
    """Of each user: split and impressions of each request, in order."""
    found: dict[Any, list[tuple[int, int]]] = {}
    for request in view.request_list():
        found.setdefault(request["user"], []).append((request["split"], len(request["rows"])))
    return found


def singles(counts: dict[int, int]) -> list[dict[str, Any]]:
    """Users with so many impressions, an hour apart."""
    return log(
        *[(u, k, 3_600_000 * k, (u + k) % 2) for u, count in counts.items() for k in range(count)]
    )


# Leave-last-out


def test_the_last_request_of_each_user_is_the_test(tmp_path: Path) -> None:
    write(tmp_path, singles({1: 5, 2: 3, 3: 2, 4: 1}))
    found = splits(run(tmp_path, make_spec(split={"leave_last": 1})))
    assert found == {
        1: [(0, 1)] * 3 + [(1, 1), (2, 1)],
        2: [(0, 1), (1, 1), (2, 1)],
        3: [(0, 1)] * 2,  # too few: training only
        4: [(0, 1)],
    }
    found = splits(run(tmp_path, make_spec(split={"leave_last": 2})))
    assert [split for split, _ in found[1]] == [0, 1, 1, 2, 2]
    assert {split for user in (2, 3, 4) for split, _ in found[user]} == {0}


def test_a_request_with_an_id_is_left_out_as_one(tmp_path: Path) -> None:
    rows = [
        {"user": 1, "item": k, "time": 60_000 * k, "click": k % 2, "request": k // 4}
        for k in range(16)
    ]
    write(tmp_path, rows)
    events = {**ORDER, "order": None, "time": "time", "time_unit": "ms", "request": "request"}
    view = run(tmp_path, make_spec(events=[events], split={"leave_last": 1}))
    assert splits(view) == {1: [(0, 4), (0, 4), (1, 4), (2, 4)]}
    assert view.manifest["summary"]["users"] == {
        "train": 1,
        "validation": 1,
        "test": 1,
        "held-out": 0,
    }


# By position


def test_a_log_with_only_an_order_is_split_by_position(tmp_path: Path) -> None:
    write(tmp_path, log(*[(1, k, k, k % 2) for k in range(20)]))
    view = run(tmp_path, make_spec(events=[ORDER]))
    assert [split for split, _ in splits(view)[1]] == [0] * 16 + [1] * 2 + [2] * 2


def test_users_with_few_impressions_hold_the_shares_together(tmp_path: Path) -> None:
    """3,000 users with one to five impressions: no user has all three splits, the log has."""
    write(tmp_path, singles({user: user % 5 + 1 for user in range(3000)}))
    view = run(tmp_path, make_spec(split={"by": "position"}))
    impressions = view.manifest["counts"]["impressions"]
    shares = [impressions[split] / 9000 for split in ("train", "validation", "test")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.012)
    for requests in splits(view).values():
        assert requests == sorted(requests, key=lambda one: one[0])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 32), st.booleans())
def test_no_request_is_divided_by_position(
    tmp_path_factory: pytest.TempPathFactory, seed: int, last: bool
) -> None:
    """Impressions of one request id are in one split, even with other events between them."""
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("units")
    rows, searches = [], []
    for user in range(8):
        time = 0
        for request in range(rng.randrange(1, 9)):
            for _ in range(rng.randrange(1, 5)):
                time += rng.choice([0, 1000])
                rows.append((user, rng.randrange(9), time, rng.randrange(2), user * 10 + request))
                if rng.random() < 0.2:
                    time += 1
                    searches.append((user, 99, time, 1))
            time += 10_000
    write(folder, log(*rows, columns="user item time click request"))
    write(folder, log(*searches, (0, 99, 0, 1)), "searches.parquet")
    source = {"user": "user", "item": "item", "time": "time", "time_unit": "ms"}
    spec = make_spec(
        events=[
            {**source, "files": ["log.parquet"], "request": "request"},
            {**source, "files": ["searches.parquet"], "shown": False},
        ],
        split={"leave_last": 1} if last else {"by": "position"},
    )
    try:
        view = run(folder, spec)
    except DataError as error:
        assert "training window holds no impressions" in str(error)
        return
    by_id: dict[int, set[int]] = {}
    ids = {(user, item, time): request for user, item, time, _, request in rows}
    for request in view.request_list():
        for row in request["rows"]:
            key = (request["user"], view.items[view.events["item"][row]], view.events["time"][row])
            by_id.setdefault(ids[key], set()).add(request["split"])
    repeated = {ids[key] for key in ids if sum(row[:3] == key for row in rows) > 1}
    assert all(len(found) == 1 for one, found in by_id.items() if one not in repeated)


# A column of the log's own


def with_folds(*folds: Any) -> list[dict[str, Any]]:
    return [
        {"user": 1, "item": k, "time": 3_600_000 * k, "click": k % 2, "fold": fold}
        for k, fold in enumerate(folds)
    ]


def test_a_column_of_splits(tmp_path: Path) -> None:
    write(tmp_path, with_folds("train", " train", "validation", "test"))
    view = run(tmp_path, make_spec(split={"column": "fold"}))
    assert splits(view) == {1: [(0, 1), (0, 1), (1, 1), (2, 1)]}
    assert not any("training requests" in one for one in view.manifest["summary"]["warnings"])


def test_other_spellings_are_errors_that_list_them(tmp_path: Path) -> None:
    write(tmp_path, with_folds("tr", "tr", "dev", "test"))
    message = (
        "split.column 'fold' has values other than train, validation, test: 'tr' (2 rows), 'dev' "
        '(1 row); give their meaning in [split], such as values = { "tr" = "train", "dev" = '
        '"validation" }'
    )
    with pytest.raises(DataError) as caught:
        run(tmp_path, make_spec(split={"column": "fold"}))
    assert str(caught.value) == message
    values = {"tr": "train", "dev": "validation"}
    view = run(tmp_path, make_spec(split={"column": "fold", "values": values}))
    assert [split for split, _ in splits(view)[1]] == [0, 0, 1, 2]


def test_numbers_are_spellings_too(tmp_path: Path) -> None:
    write(tmp_path, with_folds(0.0, 0.0, 1.0, 2.0))
    values = {"0": "train", "1": "validation", "2": "test"}
    view = run(tmp_path, make_spec(split={"column": "fold", "values": values}))
    assert [split for split, _ in splits(view)[1]] == [0, 0, 1, 2]


def test_a_column_of_something_else_stops_the_reading(tmp_path: Path) -> None:
    write(tmp_path, with_folds(*[f"x{k}" for k in range(200)]))
    with pytest.raises(DataError, match=r"and 190 more; is it the right column\?"):
        run(tmp_path, make_spec(split={"column": "fold"}))
    with pytest.raises(DataError, match=r"has no column 'flod'; columns found: .*fold"):
        run(tmp_path, make_spec(split={"column": "flod"}))


def test_a_missing_split_is_a_bad_row(tmp_path: Path) -> None:
    write(tmp_path, with_folds(*["train"] * 30, "validation", None, "test"))
    view = run(tmp_path, make_spec(split={"column": "fold"}))
    assert view.manifest["summary"]["dropped"] == {"missing split": 1}


def test_events_without_a_column_are_in_the_split_of_the_next_impression(tmp_path: Path) -> None:
    write(tmp_path, with_folds("train", "train", "validation", "test"))
    times = [1, 3_600_001, 2 * 3_600_000 + 1, 3 * 3_600_000 + 1]
    write(tmp_path, log(*[(1, 50 + k, time, 1) for k, time in enumerate(times)]), "more.parquet")
    source = {"user": "user", "item": "item", "time": "time", "time_unit": "ms"}
    more = {**source, "files": ["more.parquet"], "shown": False}
    events = [{**source, "files": ["log.parquet"]}, more]
    view = run(tmp_path, make_spec(events=events, split={"column": "fold"}))
    trained = view.items[: view.manifest["encoding"]["trained_items"]]
    assert set(trained) == {0, 1, 50}  # the event before the validation impression is not learned
    events[1] = {**more, "constant": {"fold": "train"}}
    view = run(tmp_path, make_spec(events=events, split={"column": "fold"}))
    trained = view.items[: view.manifest["encoding"]["trained_items"]]
    assert set(trained) == {0, 1, 50, 51, 52, 53}


def test_training_after_the_test_is_warned_of(tmp_path: Path) -> None:
    write(tmp_path, with_folds("train", "test", "train", "validation", "train"))
    view = run(tmp_path, make_spec(split={"column": "fold"}))
    warning = next(w for w in view.manifest["summary"]["warnings"] if "training requests" in w)
    assert warning.startswith("2 training requests come after a validation or test request of")
    time = view.events["time"]
    for request in view.request_list():
        assert all(time[row] < time[request["rows"][0]] for row in request["history"])


def test_the_split_may_be_a_column_and_a_feature_at_once(tmp_path: Path) -> None:
    write(tmp_path, with_folds("train", "train", "validation", "test"))
    feature = {"name": "fold", "kind": "categorical"}
    view = run(tmp_path, make_spec(split={"column": "fold"}, event_features=[feature]))
    assert view.vocab("event_fold") == {"train": 1}


# Requests without ids


def found_in(time: list[int], users: int = 1) -> Gaps:
    """Gaps of users whose impressions have these times."""
    found = Gaps()
    new_user = np.zeros(len(time), bool)
    new_user[0] = True
    for _ in range(users):
        found.add(np.array(time), np.ones(len(time), bool), new_user)
    return found


def pages(page: list[int], between: int, count: int) -> list[int]:
    """Times of pages of impressions that follow each other by these gaps."""
    times, now = [], 0
    for _ in range(count):
        now += between
        for gap in [0, *page]:
            now += gap
            times.append(now)
    return times


MINUTE = 60_000


@pytest.mark.parametrize(
    ("time", "together", "gap"),
    [
        (pages([0, 0, 0], MINUTE, 50), 0, 1_800_000),  # pages of one instant
        (pages([3, 9, 5], MINUTE, 50), 11, 1_800_000),  # items logged as they are drawn
        (pages([2000, 3000], 9000, 50), 0, 1_800_000),  # one by one: no pages
        (pages([1] * 20, 1, 50), 0, 1_800_000),  # a counter in place of a clock
        (pages([20_000] * 20, 5 * 3_600_000, 50), 0, 65_535),  # sessions, hours apart
    ],
)
def test_the_gaps_of_a_log_show_its_pages_and_sessions(
    time: list[int], together: int, gap: int
) -> None:
    assert found_in(time).grouping(Requests(), clock=True) == Grouping(gap, 1, together)


def test_what_the_description_gives_stands() -> None:
    found = found_in(pages([3, 9, 5], MINUTE, 50))
    assert found.grouping(Requests(size=7), True) == Grouping(1_800_000, 7)
    assert found.grouping(Requests(size=7, gap=5), True) == Grouping(5000, 7)
    assert found.grouping(Requests(gap=5), True) == Grouping(5000, 1, 11)
    assert found.grouping(Requests(), False) == Grouping(None, 1, 0)
    assert found.grouping(Requests(size=7), False) == Grouping(None, 7)


def test_large_logs_have_several_impressions_in_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = found_in(pages([0, 0, 0], MINUTE, 50))  # 50 pages
    for budget, size in [(50, 1), (49, 2), (13, 4), (12, 8), (1, 16)]:
        monkeypatch.setattr(gaps, "BUDGET", budget)
        assert found.grouping(Requests(), True).size == size


def test_pages_without_ids_are_the_requests_that_ids_would_give(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = []
    for user in range(40):
        now = rng.randrange(10**9)
        for page in range(rng.randrange(2, 12)):
            for _ in range(rng.randrange(1, 20)):
                rows.append((user, rng.randrange(90), now, rng.randrange(2), user * 100 + page))
            now += rng.randrange(20_000, 10**7)
    write(tmp_path, log(*rows, columns="user item time click request"))
    source = {"user": "user", "item": "item", "time": "time", "time_unit": "ms"}
    source |= {"files": ["log.parquet"]}
    with_ids = run(tmp_path, make_spec(events=[{**source, "request": "request"}]))
    without = run(tmp_path, make_spec(events=[source]))
    for name, array in with_ids.requests.items():
        np.testing.assert_array_equal(without.requests[name], array, err_msg=name)
    assert without.manifest["summary"]["staleness"]["train"] == 0


@pytest.mark.parametrize("size", [1, 4, 16])
def test_staleness_is_the_number_of_events_that_histories_lack(tmp_path: Path, size: int) -> None:
    write(tmp_path, random_rows(random.Random(5), 400, 6, 50, False))
    spec = make_spec(requests={"size": size, "gap": 1e9}, split={"train": 0.5, "validation": 0.2})
    view = run(tmp_path, spec)
    time, user = view.events["time"], np.repeat(*_owners(view))
    lacking: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for request in view.request_list():
        for row in request["rows"]:
            earlier = np.count_nonzero((user == user[row]) & (time < time[row]))
            lacking[request["split"]].append(earlier - len(request["history"]))
    found = view.manifest["summary"]["staleness"]
    for number, split in enumerate(["train", "validation", "test"]):
        assert found[split] == pytest.approx(np.mean(lacking[number]))
    text = DatasetSummary.of(view.manifest).text()
    assert f"at most {size}, less than 1,000,000,000 s apart (by [requests])" in text


def _owners(view: View) -> tuple[np.ndarray, np.ndarray]:
    counts = np.diff(view.array("users/event_offsets"))
    return np.arange(len(counts)), counts


@pytest.mark.parametrize("split", [{"leave_last": 1}, {"by": "position"}, {"column": "fold"}])
def test_parts_and_blocks_make_the_same_requests(tmp_path: Path, split: dict[str, Any]) -> None:
    write(tmp_path, random_rows(random.Random(1), 9000, 900, 50, False))
    spec = make_spec(split=split)
    one, many = run(tmp_path, spec), run(tmp_path, spec, memory=8 * MIB)
    same(one.path, many.path)
    assert one.manifest["summary"]["grouping"] == many.manifest["summary"]["grouping"]


def test_the_summary_shows_what_was_chosen(tmp_path: Path) -> None:
    write(tmp_path, log(*[(1, k, 60_000 * (k // 3), k % 2) for k in range(90)]))
    out = tmp_path / "out"
    summary = prepare(make_spec(), out, base=tmp_path)
    text = summary.text()
    assert "staleness: mean number of earlier events that an impression's history lacks" in text
    assert (
        "impressions that share a request: those of one instant, else at most 1, less than 1,800 s "
        "apart (by the log's gaps and size)" in text
    )
    table = summary.to_polars()
    assert table["staleness"].to_list() == [0.0] * 4
    assert table["users"].to_list() == [1, 1, 1, 0]


def test_a_column_must_be_one(tmp_path: Path) -> None:
    pl.DataFrame(with_folds("train", "test")).with_columns(
        pl.concat_list("fold").alias("fold")
    ).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match="column 'fold' holds List"):
        run(tmp_path, make_spec(split={"column": "fold"}))
    with pytest.raises(SpecError, match="did you mean 'column'"):
        prepare(
            {"name": "a", "events": [ORDER], "labels": [{"name": "click", "kind": "binary"}]}
            | {"split": {"colum": "fold"}},
            tmp_path / "x",
        )
    assert Split(column="fold", values={" 1.0": "test"}).spellings["1"] == 2


# Durations


def hourly(hours: int) -> list[dict[str, Any]]:
    """Three users with an impression each hour, and a fourth at odd times."""
    hour = 3_600_000
    rows = [(u, (u + k) % 5, hour * k, k % 2) for u in range(3) for k in range(hours)]
    return log(*rows, *((3, k % 5, hour * k + 17, k % 2) for k in range(0, hours - 1, 5)))


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20)).filter(lambda pair: sum(pair) < 40),
)
@settings(deadline=None, max_examples=8)
def test_durations_are_the_newest_part(pair: tuple[int, int]) -> None:
    validation, test = pair
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        rows = hourly(48)
        write(path, rows)
        durations = {"validation": f"{validation}h", "test": f"{test}h"}
        view = run(path, make_spec(split=durations))
        hour = 3_600_000
        newest = max(row["time"] for row in rows)
        ends = newest - (validation + test) * hour, newest - test * hour
        expected = [
            sum(row["time"] <= ends[0] for row in rows),
            sum(ends[0] < row["time"] <= ends[1] for row in rows),
            sum(row["time"] > ends[1] for row in rows),
        ]
        counts = [0, 0, 0]
        for request in view.request_list():
            counts[request["split"]] += len(request["rows"])
        assert counts == expected and min(counts) > 0


def test_a_log_shorter_than_its_splits_is_refused(tmp_path: Path) -> None:
    write(tmp_path, hourly(30))
    with pytest.raises(DataError, match=r"span 29\.0 hours.*leave none for training.*shares"):
        run(tmp_path, make_spec(split={"validation": "1d", "test": "6h"}))


@pytest.mark.parametrize(
    ("split", "error"),
    [
        ({"validation": "1d"}, "durations together"),
        ({"test": "1d"}, "durations together"),
        ({"validation": "1d", "test": 0.1}, "expected a duration"),
        ({"validation": "0.1", "test": "1d"}, "expected days or hours"),
        ({"validation": "1d", "test": "1w"}, "expected days or hours"),
        ({"validation": 1.5}, "a share between 0 and 1"),
        ({"validation": "1d", "test": "1d", "train": 0.9}, "train is a share"),
        ({"validation": "1d", "test": "1d", "by": "position"}, 'by = "time"'),
        ({"validation": "1d", "test": "1d", "leave_last": 1}, "different splits"),
        (
            {
                "validation": "1d",
                "test": "1d",
                "validation_from": "2026-01-01",
                "test_from": "2026-01-02",
            },
            "or validation_from and test_from",
        ),
    ],
)
def test_durations_beside_other_rules(split: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Split(**split)


def test_durations_need_a_clock() -> None:
    with pytest.raises(ValueError, match="need a time column"):
        make_spec(events=[ORDER], split={"validation": "1d", "test": "1d"})
