"""``limerank ab`` and the live numbers of arms: what followed what users were shown."""

from __future__ import annotations

import json

import numpy as np
import pytest

from limerank.serving.engine import Serving
from limerank.serving.feed import Feed
from limerank.serving.reading import Tally, read
from limerank.serving.stores import SqliteStore
from tests.stores import event, exposure
from tests.test_arms import START, specs
from tests.test_server import client_of

HOUR = 3_600_000
WINDOW = 60.0


def populate(store, seed=0, users=60, chances=(0.2, 0.5), interleaved=False):
    """Two arms with their own chance of a click, and users who differ in requests. Returns arm ->
    requests [U] and clicks [U]."""
    rng = np.random.default_rng(seed)
    truth: dict = {"a": [], "b": []}
    for user in range(users):
        arm = "ab"[int(rng.random() < 0.3)]
        shown, events, clicks = [], [], 0
        for k in range(1 + int(rng.poisson(3))):
            at = int(rng.integers(0, 10 * HOUR))
            items = rng.choice(50, 4, replace=False).tolist()
            teams = rng.permutation(["x", "x", "y", "y"]).tolist() if interleaved else ()
            shown.append(exposure(user, at, f"{arm}.{user}-{k}", items, arm=arm, teams=teams))
            for rank, item in enumerate(items):
                chance = chances[arm == "b"] if not interleaved else 0.9 * (teams[rank] == "x")
                if rng.random() < chance:
                    clicks += 1
                    label = {"click": 1.0, "like": float(rank == 0)}
                    events.append(
                        event(
                            user,
                            at + 1000,
                            f"{k}-{item}",
                            item,
                            labels=label,
                            ranking=shown[-1].ranking,
                        )
                    )
        # An event of an item that was not shown, and one that came too late, are no outcomes.
        events.append(event(user, 20 * HOUR, "late", shown[0].items[0], labels={"click": 1.0}))
        events.append(event(user, shown[0].time, "other", 99, labels={"click": 1.0}))
        store.show(shown)
        store.append(events)
        truth[arm].append((len(shown), clicks))
    return {arm: np.array(of).T for arm, of in truth.items()}


@pytest.fixture
def store(tmp_path):
    with SqliteStore(tmp_path / "events.db") as opened:
        yield opened


def test_counts_are_those_of_users(store):
    truth = populate(store)
    found = read(store, since=0, until=11 * HOUR, window=WINDOW)
    report = found.report("click", shares={"a": 0.7, "b": 0.3})
    for arm, (requests, clicks) in truth.items():
        one = report["arms"][arm]
        assert (one["users"], one["requests"], one["outcomes"]) == (
            len(requests),
            requests.sum(),
            clicks.sum(),
        )
        assert one["per_request"]["value"] == pytest.approx(clicks.sum() / requests.sum())
        assert one["per_user"]["value"] == pytest.approx(clicks.mean())
        half = 1.959964 * clicks.std(ddof=1) / np.sqrt(len(clicks))
        assert one["per_user"]["high"] - clicks.mean() == pytest.approx(half, rel=1e-6)
    assert report["control"] == "a" and "per_request_difference" not in report["arms"]["a"]
    fixed, sequential = (
        report["arms"]["b"][f"per_request_difference{kind}"] for kind in ("", "_sequential")
    )
    assert sequential["low"] < fixed["low"] and fixed["low"] > 0
    assert report["sample_ratio_p"] > 0.001 and report["several_arms"] == 0
    assert found.labels() == ["click", "like"]
    json.dumps(report, allow_nan=False)


def test_a_broken_sample_ratio_is_found(store):
    populate(store, users=200)
    found = read(store, since=0, until=11 * HOUR, window=WINDOW)
    assert found.sample_ratio({"a": 0.5, "b": 0.5}) < 0.001 < found.sample_ratio({"a": 7, "b": 3})


def test_interleaving_credits_the_team_of_each_item(store):
    populate(store, interleaved=True)
    report = read(store, since=0, until=11 * HOUR, window=WINDOW).report("click")
    for arm in "ab":
        one = report["arms"][arm]["interleaved"]
        assert one["teams"] == ["x", "y"]
        assert one["credit_difference"]["value"] == pytest.approx(
            report["arms"][arm]["per_request"]["value"]
        ), "y has no outcome"
        assert one["credit_difference_sequential"]["low"] > 0


@pytest.mark.parametrize("seed", range(3))
def test_live_counts_equal_a_reading_of_the_store(store, seed, monkeypatch):
    """Counted bit by bit, in the order of arrival; each exposure once, when its window is over."""
    monkeypatch.setattr("limerank.serving.feed.AT_ONCE", 7)
    populate(store, seed)
    tally = Tally(Feed(store, WINDOW))
    late = exposure(0, 30 * HOUR, "a.new", [1], arm="a")
    store.show([late])
    now = 30 * HOUR + 1
    while tally.advance(now):
        pass
    expected = read(store, since=0, until=29 * HOUR, window=WINDOW)
    for label in ("click", "like"):
        assert tally.reading.report(label) == expected.report(label)
    assert tally.reading.fresh == expected.fresh
    assert tally.advance(now) == 0 and tally.advance(now + 61_000) == 1
    user = next(iter(store.users()))
    store.delete_user(user)
    tally.forget(user)
    expected = read(store, since=0, until=32 * HOUR, window=WINDOW)
    assert tally.reading.report("click") == expected.report("click")


def test_an_exposure_of_the_future_does_not_hold_up_others(store):
    store.show([exposure(1, 99 * HOUR, "a.1"), exposure(2, 5, "a.2")])
    tally = Tally(Feed(store, WINDOW))
    assert tally.advance(HOUR) == 2 and tally.users == 2


def test_a_tally_is_bounded(store, monkeypatch):
    monkeypatch.setattr("limerank.serving.reading.MOST_TALLIED", 2)
    store.show([exposure(user, user, "a.1") for user in range(5)])
    tally = Tally(Feed(store, WINDOW))
    assert tally.advance(HOUR) == 5 and (tally.users, tally.uncounted) == (2, 3)


def test_shares_that_change_begin_the_sample_ratio_again(store):
    store.show([exposure(1, 1, "a.1", arm="a")])
    tally = Tally(Feed(store, WINDOW))
    tally.advance(HOUR)
    tally.shares_changed()
    store.show([exposure(1, 2, "b.1", arm="b"), exposure(2, 2, "b.1", arm="b")])
    tally.advance(HOUR)
    assert tally.reading.fresh == {"b": 1} and tally.reading.several == 1


def test_the_metrics_have_what_followed(tmp_path):
    engine = Serving(
        None, None, SqliteStore(tmp_path / "events.db"),
        arms=specs(tmp_path, ("a", 0.5), ("b", 0.5)),
    )  # fmt: skip
    with client_of(engine) as client:
        for user in range(30):
            body = {"user": user, "k": 3, "time": START, "log": True}
            answer = client.post("/v1/rank", json=body).json()
            if user % 2:
                item = answer["items"][0]["item"]
                client.post(
                    "/v1/events",
                    json={"user": user, "item": item, "time": START + 5, "labels": {"click": 1}},
                )
        engine.tally()
        text = client.get("/metrics").text
        report = read(engine.store, since=0).report("click", control="a")
        for arm, one in report["arms"].items():
            assert f'limerank_arm_shown{{arm="{arm}"}} {one["requests"]}.0' in text
            assert f'limerank_arm_outcomes{{arm="{arm}",label="click"}} {one["outcomes"]}.0' in text
            value = one["per_request"]["low"]
            line = f'limerank_arm_rate{{arm="{arm}",bound="low",label="click",per="request"}}'
            assert f"{line} {value}" in text
        assert 'limerank_arm_difference{arm="b",bound="high",label="click",per="user"}' in text
        assert "limerank_arm_sample_ratio_p " in text


def test_the_command(call, store, tmp_path):
    populate(store)
    store.close()
    given = ["ab", "--store", tmp_path / "events.db", "--until", "39600000", "--window", "60"]
    status, output, error = call(*given, "--share", "a=0.7", "--share", "b=0.3",
                                 "--json", tmp_path / "ab.json")  # fmt: skip
    assert status == 0, error
    assert "click: outcomes per request and per user" in output
    assert "per request, less a:" in output and "sample ratio: p = " in output
    assert json.loads((tmp_path / "ab.json").read_text())["arms"]["b"]["users"] > 0
    for more, what in (
        (("--label", "clik"), "did you mean"),
        (("--control", "c"), "arm"),
        (("--share", "a=much"), "NAME=SHARE"),
        (("--since", "2020-01-01", "--until", "2020-01-02"), "no ranking"),
    ):
        status, _, error = call(*given, *more)
        assert status == 2 and what in error, error
