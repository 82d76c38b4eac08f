"""Rankings that were shown: stored by the server, and joined to the events that followed."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from limerank.data.attribution import attribute
from limerank.data.exposures import exposure_of
from tests.catalogues import shop
from tests.stores import event, exposure
from tests.test_server import client_of, engine_of, key

START = 1_700_000_000_000


@pytest.fixture
def engine(tmp_path):
    return engine_of(shop("lime-mha"), tmp_path)


@pytest.fixture
def client(engine):
    with client_of(engine) as client:
        yield client


def test_each_answer_names_a_ranking_and_its_arm(client):
    answers = [client.post("/v1/rank", json={"user": 1, "k": 3}).json() for _ in range(3)]
    assert {answer["arm"] for answer in answers} == {"main"}
    rankings = {answer["ranking"] for answer in answers}
    assert len(rankings) == 3 and all(ranking.startswith("main.") for ranking in rankings)


@pytest.mark.parametrize("times", [1, 2], ids=["computed", "at once"])
def test_a_logged_ranking_is_an_exposure(client, engine, times):
    for count in range(times):
        body = {"user": "7.0", "k": 5, "time": START + count, "log": True}
        found = client.post("/v1/rank", json=body).json()
    (*_, stored) = engine.store.exposures(7, START, START + times)
    assert engine.store.exposure_count(7) == times
    assert (stored.ranking, stored.arm) == (found["ranking"], "main")
    assert list(stored.items) == [one["item"] for one in found["items"]]
    assert list(stored.values) == [one["value"] for one in found["items"]]
    assert stored.positions == (1, 2, 3, 4, 5)
    assert client.get("/v1/users/7").json()["exposures"] == times
    text = client.get("/metrics").text
    assert f'limerank_exposures_total{{arm="main",outcome="accepted"}} {times}.0' in text


def test_what_a_client_has_shown(client, engine):
    found = client.post("/v1/rank", json={"user": 7, "k": 5}).json()
    items = [one["item"] for one in found["items"]][:3]
    body = {"user": 7, "ranking": found["ranking"], "items": items, "positions": [2, 3, 5]}
    answer = client.post("/v1/shown", json={**body, "time": START}).json()
    assert answer == {"ranking": found["ranking"], "arm": "main", "outcome": "accepted"}
    assert client.post("/v1/shown", json=body).json()["outcome"] == "duplicate"
    (stored,) = engine.store.exposures(7, 0, 1 << 52)
    assert (stored.time, stored.positions, list(stored.items)) == (START, (2, 3, 5), items)
    other = client.post("/v1/shown", json={"user": 7, "items": [1], "values": [0.5]}).json()
    assert other["ranking"].startswith("main.") and engine.store.exposure_count(7) == 2


@pytest.mark.parametrize(
    ("path", "body", "what"),
    [
        ("/v1/rank", {"log": True}, "give a user"),
        ("/v1/rank", {"user": 1, "log": True, "k": 2000}, None),
        ("/v1/shown", {"user": 1, "items": []}, "items"),
        ("/v1/shown", {"user": 1, "items": [1, "1"]}, "twice"),
        ("/v1/shown", {"user": 1, "items": [1], "positions": [1, 2]}, "one each"),
        ("/v1/shown", {"user": 1, "items": [1], "ranking": "a b"}, "ranking"),
        ("/v1/shown", {"user": 1, "items": [1], "time": 5}, "years off the log"),
        ("/v1/shown", {"user": 1, "items": [1], "context": {"moon": 1}}, "moon"),
        ("/v1/shown", {"user": 1, "items": [{"item": 1, "moon": 1}]}, "moon"),
    ],
)
def test_what_was_not_shown_is_refused(client, engine, path, body, what):
    answer = client.post(path, json=body)
    if what is None:  # the catalogue has fewer items than one exposure may have
        assert answer.status_code == 200
        return
    assert answer.status_code in (404, 422) and what in answer.text
    assert engine.store.exposure_count(1) == 0


def test_logging_needs_a_key_that_may_write(client):
    body = {"user": 1, "k": 3}
    for access, status in (("read", 403), ("write", 200)):
        answer = client.post("/v1/rank", json={**body, "log": True}, headers=key(access))
        assert answer.status_code == status
    assert client.post("/v1/rank", json=body, headers=key("read")).status_code == 200
    shown = client.post("/v1/shown", json={"user": 1, "items": [1]}, headers=key("read"))
    assert shown.status_code == 403


def test_a_deleted_user_leaves_no_exposures(client, engine, tmp_path):
    client.post("/v1/shown", json={"user": "secret-user", "items": ["secret-item"]})
    assert client.delete("/v1/users/secret-user").status_code == 200
    assert engine.store.shown({0: 0}, 9)[1] == []
    with sqlite3.connect(tmp_path / "events.db") as file:
        assert file.execute("SELECT COUNT(*) FROM exposures").fetchone() == (0,)


def test_events_name_their_ranking(client, engine):
    body = {"user": 7, "item": 3, "time": START, "labels": {"click": 1}, "ranking": "main.x"}
    assert client.post("/v1/events", json=body).json()["accepted"] == 1
    (stored,) = engine.store.held(7).events
    assert stored.ranking == "main.x"
    assert client.post("/v1/events", json={**body, "ranking": "a b"}).status_code == 422
    assert client.post("/v1/rank", json={"user": 7, "k": 3}).json()["events"] == 1


# Attribution


def brute(exposures, events, window):
    """The rule, event by event over all exposures."""
    outcomes, others = {}, []
    for one in events:
        named = [
            e
            for e in exposures
            if (e.ranking, abs(e.time - one.time) <= window) == (one.ranking, True)
            and one.item in e.items
        ]
        shown = [e for e in exposures if one.item in e.items and 0 <= one.time - e.time <= window]
        found = named or shown[-1:]
        if found:
            outcomes.setdefault((found[0].ranking, one.item), []).append(one)
        else:
            others.append(one)
    return outcomes, others


@pytest.mark.parametrize("seed", range(20))
def test_attribution_equals_a_search_of_all_exposures(seed):
    rng = np.random.default_rng(seed)
    exposures = [
        exposure(at=at, ranking=f"m.{k}", items=rng.choice(9, 3, replace=False).tolist())
        for k, at in enumerate(sorted(rng.integers(0, 50, 12).tolist()))
    ]
    events = [
        event(
            at=at,
            id=str(k),
            item=int(rng.integers(9)),
            ranking=f"m.{rng.integers(14)}" if rng.random() < 0.3 else None,
        )
        for k, at in enumerate(sorted(rng.integers(0, 60, 40).tolist()))
    ]
    window = int(rng.integers(0, 20))
    found = attribute(exposures, events, window)
    assert (found.outcomes, found.others) == brute(exposures, events, window)
    assert sum(map(len, found.outcomes.values())) + len(found.others) == len(events)


def test_an_exposure_has_its_canonical_ids():
    one = exposure_of("7.0", START, "main.a", ["5", 6.0, "x"])
    assert (one.user, one.items) == (7, (5, 6, "x"))
