"""The server's routes, tested in this process, over a real store, run and index."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from limerank.errors import StoreError
from limerank.models.tasks import predictions
from limerank.ranking.scorer.native import paths
from limerank.serving.engine import Serving
from limerank.serving.http.app import application
from limerank.serving.http.openapi import describe, reference
from limerank.serving.http.routes import OPERATIONS
from limerank.serving.http.settings import Settings, keys_of_environment
from limerank.serving.stores import SqliteStore
from tests.catalogues import ITEMS, make_run, plain_log, shop
from tests.documents import ROOT, blocks

KEYS = {"read": ("r" * 20,), "write": ("w" * 20,), "admin": ("a" * 20,)}
START = 1_700_000_000_000


def key(access):
    return {"Authorization": f"Bearer {KEYS[access][0]}"}


def engine_of(of, position, **options):
    if not (position / "index").exists():
        shutil.copytree(of.index.path, position / "index")
    return Serving(
        of.run.path,
        position / "index",
        SqliteStore(position / "events.db"),
        items=plain_log() / "items.csv",
        **options,
    )


def client_of(engine, **settings):
    app = application(engine, Settings(**{"keys": KEYS, **settings}))
    return TestClient(app, headers=key("admin"), raise_server_exceptions=False)


@pytest.fixture
def client(request, tmp_path):
    engine = engine_of(shop(getattr(request, "param", "lime-mha")), tmp_path)
    with client_of(engine) as client:
        yield client


def event(user, item, time=START, **more):
    return {"user": user, "item": item, "time": time, "labels": {"click": 1}, **more}


def ids(ranking):
    return [one["item"] for one in ranking["items"]]


def test_what_is_served(client):
    predicted = client.get("/v1/model").json()
    assert predicted["model"] == "lime-mha" and predicted["index"] == {"version": 1, "items": ITEMS}
    assert [task["name"] for task in predicted["tasks"]] == ["click", "watch"]
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("client", "user_stage", "scorer"),
    [("lime-mha", "native", "native"), ("two-tower", "torch", "model")],
    indirect=["client"],
)
def test_the_implementations_in_use_are_reported(client, user_stage, scorer):
    dispatch = client.get("/v1/model").json()["dispatch"]
    assert (dispatch["user_stage"], dispatch["scorer"]) == (user_stage, scorer)
    assert (dispatch["instructions"] in paths()) == (scorer == "native")
    assert (dispatch["state"], dispatch["inference"]) == ("window", "fast")
    assert dispatch["threads"] >= 1


@pytest.mark.parametrize("client", ["lime-mha", "lime-xor", "two-tower"], indirect=True)
def test_events_change_rankings(client):
    before = client.post("/v1/rank", json={"user": 7, "k": 5}).json()
    assert before["known"] is False and before["events"] == 0 and len(before["items"]) == 5
    item = before["items"][0]["item"]
    predicted = client.post("/v1/events", json=event(7, item)).json()
    assert predicted == {"accepted": 1, "duplicates": 0, "expired": 0}
    again = {"events": [event(7, item), event("7", item)]}
    assert client.post("/v1/events", json=again).json()["duplicates"] == 2
    after = client.post("/v1/rank", json={"user": 7, "k": 5}).json()
    assert after["known"] and after["events"] == 1 and item not in ids(after)
    assert set(after["milliseconds"]) == {"state", "score", "total"}
    assert [one["rank"] for one in after["items"]] == [1, 2, 3, 4, 5]
    assert set(after["items"][0]["scores"]) == {"click", "watch"}
    seen = client.post("/v1/rank", json={"user": 7, "k": ITEMS, "exclude_seen": False}).json()
    assert item in ids(seen) and len(seen["items"]) == ITEMS


def test_the_guides_first_client_runs(client, monkeypatch, capsys):
    first = blocks((ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), "python")[0]
    monkeypatch.setitem(
        sys.modules, "httpx", SimpleNamespace(Client=lambda base_url: nullcontext(client))
    )
    exec(first, {})
    assert client.get("/v1/users/17").json()["events"] == 1
    assert len(capsys.readouterr().out.splitlines()) == 20


def test_an_id_and_a_time_have_many_spellings(client):
    item = client.post("/v1/rank", json={"user": 7, "k": 1}).json()["items"][0]["item"]
    spelt = [item, float(item), str(item), f" {item} ", f"{item}.0"]
    times = [START, float(START), "2023-11-14T22:13:20Z", "2023-11-14 22:13:20", START]
    for one, time, user in zip(spelt, times, [7, 7.0, "7", " 7", "7.00"], strict=True):
        predicted = client.post("/v1/events", json=event(user, one, time)).json()
        assert predicted["accepted"] == int(one is item), (one, time, user)
        found = client.post("/v1/rank", json={"user": user, "candidates": [one]}).json()
        assert found["known"] and found["events"] == 1 and not found["items"]
        assert client.get(f"/v1/items/{one}").json()["item"] == item
    for wrong in ({"user": True}, {"user": 2.0**53}, {"item": " "}, {"time": START / 1000}):
        answer = client.post("/v1/events", json={**event(7, item), **wrong})
        assert answer.status_code == 422, answer.text
    hint = client.post("/v1/rank", json={"user": 7, "time": START // 1000}).json()["detail"]
    assert "did you mean" in hint and str(START) in hint


@pytest.mark.parametrize(
    ("method", "path", "body", "wrong", "meant"),
    [
        ("POST", "/v1/rank", {"filters": {}}, "filters", "filter"),
        ("POST", "/v1/rank", {"history": [{"item": 1, "tme": 3}]}, "history.0.tme", "time"),
        ("POST", "/v1/explain", {"user": 7, "item": [1]}, "item", "items"),
        ("POST", "/v1/events", {"label": {}, **event(7, 3)}, "label", "labels"),
        ("POST", "/v1/events", {"events": [event(7, 3, lables={})]}, "events.0.lables", "labels"),
        (
            "POST",
            "/v1/events",
            {"events": [*[event(7, 3)] * 3000, event(7, 3, tme=1)]},
            "events.3000.tme",
            "time",
        ),
        ("PUT", "/v1/users/7", {"feature": {}}, "feature", "features"),
        ("POST", "/v1/admin/reload", {"runs": "x"}, "runs", "run"),
    ],
)
def test_misspelt_fields_are_refused_with_the_nearest(client, method, path, body, wrong, meant):
    answer = client.request(method, path, json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"] == f"{wrong}: unknown field; did you mean {meant!r}?"


def test_no_weights_at_all_are_as_none_given(client):
    plain, empty = (
        client.post("/v1/rank", json={"user": 7, "k": 9, **more}).json()["items"]
        for more in ({}, {"task_weights": {}})
    )
    assert empty == plain and plain[0]["value"] != 0


def test_why(client):
    client.post("/v1/events", json={"events": [event(7, item, START + item) for item in (3, 9)]})
    predicted = client.post("/v1/explain", json={"user": 7, "items": [5, 6]}).json()
    assert [one["item"] for one in predicted["items"]] == [5, 6]
    for one in predicted["items"]:
        assert [part["item"] for part in one["events"]] == [3, 9]
        assert sum(part["share"] for part in one["events"]) == pytest.approx(1, abs=1e-4)
        assert one["links"] and one["paths"]
    given = {"history": [{"item": 3}, {"item": 9}], "items": [5]}
    predicted = client.post("/v1/explain", json=given).json()
    assert [part["item"] for part in predicted["items"][0]["events"]] == [3, 9]


def test_why_of_anchored_links(tmp_path):
    """What the item has in common with the history; as for a history that is given."""
    with client_of(engine_of(shop("lime-mha", anchors=None), tmp_path)) as client:
        events = [event(7, item, START + at) for at, item in enumerate((3, 9, 3))]
        client.post("/v1/events", json={"events": events})
        (one,) = client.post("/v1/explain", json={"user": 7, "items": [3]}).json()["items"]
        own = next(link for link in one["anchored"] if link["kind"] == "item")
        assert (own["value"], own["events"], own["ago"], own["time"]) == (3, 2, 0, START + 2)
        assert own["effect"] and own["text"].endswith("the newest is the last of the history")
        (other,) = client.post("/v1/explain", json={"user": 8, "items": [3]}).json()["items"]
        assert other["anchored"] == []


def test_users(client):
    client.post("/v1/events", json={"events": [event(7, 3), event(71, 4), event("a/b", 5)]})
    predicted = client.get("/v1/users/7").json()
    assert predicted["events"] == 1 and predicted["history"][0]["item"] == 3
    assert client.get("/v1/users", params={"q": "7"}).json() == {"users": [7, 71]}
    assert client.get("/v1/users/a%2Fb").json()["user"] == "a/b"
    before = client.post("/v1/rank", json={"user": 7, "k": 3}).json()
    put = client.put("/v1/users/7", json={"features": {"country": "c1"}})
    assert put.json()["features"] == {"country": "c1"}
    after = client.post("/v1/rank", json={"user": 7, "k": 3}).json()
    assert [one["value"] for one in before["items"]] != [one["value"] for one in after["items"]]
    assert client.delete("/v1/users/7").json() == {"forgotten": 1}
    assert client.get("/v1/users/7").status_code == 404
    assert client.post("/v1/rank", json={"user": 7}).json()["known"] is False


def test_a_history_in_the_request(client):
    client.post("/v1/events", json={"events": [event(7, 3, START), event(7, 9, START + 60_000)]})
    time = START + 120_000
    retained = client.post("/v1/rank", json={"user": 7, "time": time, "k": 5}).json()
    past = [event(7, 3, START), event(7, 9, START + 60_000)]
    given = {"history": [{k: v for k, v in one.items() if k != "user"} for one in past]}
    reply = client.post("/v1/rank", json={**given, "time": time, "k": 5}).json()
    assert ids(retained) == ids(reply) and reply["known"] is False and reply["events"] == 2
    both = client.post("/v1/rank", json={**given, "user": 7})
    assert both.status_code == 422 and "not both" in both.json()["detail"]


def test_candidates_weights_and_filters(client):
    some = client.post("/v1/rank", json={"candidates": [5, 8, 5, 80], "exclude": [8]}).json()
    assert set(ids(some)) == {5, 80} and some["candidates"] == 3
    one, other = (
        client.post("/v1/rank", json={"task_weights": {task: 1.0}, "k": ITEMS}).json()
        for task in ("click", "watch")
    )
    assert ids(one) != ids(other) and set(ids(one)) == set(ids(other))
    features = {one["item"]: one["features"] for one in other["items"]}
    groups = {of["group"] for of in features.values()}
    group = sorted(groups)[0]
    ranked = client.post("/v1/rank", json={"filter": {"group": [group]}, "k": ITEMS}).json()
    assert set(ids(ranked)) == {item for item, of in features.items() if of["group"] == group}
    none = client.post("/v1/rank", json={"filter": {"group": ["nothing"]}}).json()
    assert none["items"] == []
    for wrong, what in (
        ({"candidates": [5, 12345]}, "12345"),
        ({"task_weights": {"buy": 1}}, "buy"),
        ({"context": {"moon": "full"}}, "moon"),
    ):
        answer = client.post("/v1/rank", json=wrong)
        assert answer.status_code == 404 and what in answer.json()["detail"]
    for wrong, what in (
        ({"filter": {"colour": ["red"]}}, "'colour'; known: group, tags, length"),
        ({"filter": {"length": {"from": 9, "to": 2}}}, "filter.length: no number is from 9 to 2"),
        ({"boosts": [{"filter": {"group": {"not": ["g1"], "or": 1}}}]}, "'or'"),
        ({"per": {"length": 1}}, "'length' is a numeric feature"),
        ({"pins": [{"item": 3, "position": 9}], "k": 5}, "position 9"),
        ({"diversity": 2}, "diversity"),
    ):
        answer = client.post("/v1/rank", json=wrong)
        assert answer.status_code == 422 and what in answer.json()["detail"], answer.text


def test_items_come_and_go_and_survive(client, tmp_path):
    columns = client.get("/v1/model").json()["item_columns"]
    item = dict.fromkeys(columns) | {"item_id": 9001, "group": "fresh"}
    put = client.put("/v1/items", json={"items": [item]}).json()
    assert put == {"index_version": 2, "added": 1, "updated": 0}
    assert client.put("/v1/items", json={"items": [item]}).json()["updated"] == 1
    ranked = client.post("/v1/rank", json={"candidates": [9001, 5], "k": 2}).json()
    assert set(ids(ranked)) == {9001, 5}
    assert ids(client.post("/v1/rank", json={"filter": {"group": ["fresh"]}}).json()) == [9001]
    assert client.get("/v1/items", params={"q": "fresh"}).json()["items"][0]["item"] == 9001
    # Another server, over an index that was rebuilt in the meantime.
    of = shop("lime-mha")
    shutil.rmtree(tmp_path / "index")
    again = engine_of(of, tmp_path)
    with client_of(again) as other:
        assert other.get("/v1/items/9001").json()["rankable"] is True
        assert other.delete("/v1/items/9001").json()["removed"] == 1
        assert other.get("/v1/items/9001").json()["rankable"] is False
        answer = other.post("/v1/rank", json={"candidates": [9001, 5]})
        assert ids(answer.json()) == [5]
        assert other.delete("/v1/items/9001").status_code == 404
        assert other.put("/v1/items", json={"items": [{"item_id": 1}]}).status_code == 422


@pytest.fixture
def without_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("model", ["lime-mha", "lime-xor"])
def test_versions_of_the_index_that_were_replaced_are_closed(model, tmp_path):
    """At once, without garbage collection, though users stay in memory who have seen every one of
    them, and though requests failed."""
    engine = engine_of(shop(model), tmp_path)
    seen = []
    with client_of(engine) as client:
        columns = client.get("/v1/model").json()["item_columns"]
        for position in range(4):
            seen.append(weakref.ref(engine._served.index))
            client.post("/v1/events", json=event(position, 3))
            client.post("/v1/rank", json={"user": position, "filter": {"group": ["x"]}})
            client.post("/v1/rank", json={"k": 3})
            item = dict.fromkeys(columns) | {"item_id": 9001 + position}
            assert client.put("/v1/items", json={"items": [item]}).status_code == 200
            assert client.delete("/v1/items/9").status_code == (404 if position else 200)
            assert client.post("/v1/rank", json={"candidates": [9999]}).status_code == 404
            assert client.post("/v1/admin/reload", json={}).status_code == 200
        assert [one() for one in seen] == [None] * 4


def test_what_other_processes_change_is_followed(client, tmp_path):
    from limerank.index.changes import remove_items

    engine = engine_of(shop("lime-mha"), tmp_path)
    remove_items(tmp_path / "index", [5])
    client.put(
        "/v1/items",
        json={
            "items": [{**dict.fromkeys(["item_id", "group", "tags", "length"]), "item_id": 77_777}]
        },
    )
    engine.follow()
    assert engine.item("77777")["rankable"] and not engine.item("5")["rankable"]
    engine.close()


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("/", ["text/html"]),
        ("/main.js", ["text/javascript", "application/javascript"]),
        ("/style.css", ["text/css"]),
        ("/icon.svg", ["image/svg+xml"]),
    ],
)
def test_the_page_s_files(client, path, kinds):
    """Shown to everybody, never taken from a cache unasked, and no script from elsewhere runs."""
    client.headers.clear()
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] in kinds
    assert answer.headers["cache-control"] == "no-cache"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304 and client.get("/nothing.js").status_code == 404


def test_what_the_page_shows_of_items(client):
    """Which columns a new item has, and what the items of a history are."""
    features = {one["name"]: one for one in client.get("/v1/model").json()["item_features"]}
    assert features["tags"]["column"] == "tags" and features["tags"]["split"] == "|"
    client.post("/v1/events", json={"events": [event(7, item, START + item) for item in (3, 9)]})
    held = client.get("/v1/users/7").json()
    assert [one["item"] for one in held["items"]] == [3, 9]
    assert held["items"][0]["features"]["group"] == "g3"


def test_a_bad_run_or_index_is_refused(client, tmp_path):
    of = shop("lime-xor")
    before = client.get("/v1/model").json()
    for wrong in (
        {"index": str(of.index.path)},
        {"run": str(of.run.path)},
        {"run": str(tmp_path / "nowhere")},
        {"index": str(tmp_path)},
    ):
        answer = client.post("/v1/admin/reload", json=wrong)
        assert answer.status_code == 409, answer.text
        assert client.get("/v1/model").json() == before
    both = {"run": str(of.run.path), "index": str(of.index.path)}
    predicted = client.post("/v1/admin/reload", json=both).json()
    assert predicted["run"] == of.run.fingerprint
    assert client.get("/v1/model").json()["model"] == "lime-xor"


def test_keys(client):
    client.headers.clear()
    needs = {"GET": "/v1/users/1", "POST": "/v1/rank"}
    for method, path in needs.items():
        answer = client.request(method, path)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    wrong = client.get("/v1/model", headers={"Authorization": "Bearer " + "x" * 20})
    assert wrong.status_code == 401
    for one_operation in OPERATIONS:
        path = one_operation.path.replace("{user:path}", "5").replace("{item:path}", "5")
        for access in KEYS:
            answer = client.request(one_operation.method, path, headers=key(access), content=b"{}")
            may = one_operation.access is None or list(KEYS).index(access) >= list(KEYS).index(
                one_operation.access
            )
            assert (answer.status_code == 403) != may, (one_operation.method, path, access)
    assert client.get("/metrics").status_code == 401
    assert client.get("/healthz").status_code == 200


def test_settings():
    with pytest.raises(ValueError, match="needs keys"):
        Settings()
    with pytest.raises(ValueError, match=r"loopback address alone; got '0\.0\.0\.0'"):
        Settings(open=True, host="0.0.0.0")
    with pytest.raises(ValueError, match="too short"):
        Settings(keys={"read": ("abc",)})
    assert Settings(open=True, host="::1").open


def test_key_files(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMERANK_READ_KEYS", "one,two")
    file = tmp_path / "keys"
    file.write_text("# ours\nadmin three\n\nread four  # a client\n")
    assert keys_of_environment(file) == {"read": ("one", "two", "four"), "admin": ("three",)}
    file.write_text("root five\n")
    with pytest.raises(ValueError, match="line 1"):
        keys_of_environment(file)


@pytest.mark.parametrize(
    ("body", "status", "what"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 422, "object"),
        (b'{"user": 1, "kk": 5}', 422, "kk"),
        (b'{"k": 0}', 422, "k:"),
        (b'{"k": 100000000}', 422, "k:"),
        (b'{"user": true}', 422, "user"),
        (b'{"user": ""}', 422, "user"),
        (b'{"task_weights": {"click": NaN}}', 422, "finite"),
        (b'{"task_weights": {"click": 1e300}}', 422, "1e+300"),
        (b'{"candidates": "all"}', 422, "candidates"),
        (b'\xff\xfe', 400, "JSON"),
        (b'{"context": {"tab": [1]}}', 422, "context"),
        (b'{"history": [{"item": 424242}], "k": 3}', 200, ""),
        (b'{"history": [{"item": 3, "time": 5}, {"item": 4}]}', 422, "time"),
    ],
)  # fmt: skip
def test_wrong_bodies(client, body, status, what):
    answer = client.post("/v1/rank", content=body)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        predicted = answer.json()
        assert predicted["status"] == status and what in predicted["detail"]


def test_wrong_events(client):
    for wrong, what in (
        ({"labels": {"click": 2}}, "click"),
        ({"labels": {"buy": 1}}, "buy"),
        ({"labels": {"watch": -1}}, "watch"),
        ({"features": {"moon": 1}}, "moon"),
    ):
        answer = client.post("/v1/events", json={"events": [event(7, 3), {**event(7, 4), **wrong}]})
        assert answer.status_code in (404, 422), answer.text
        assert what in answer.json()["detail"] and "events[1]" in answer.json()["detail"]
    assert client.get("/v1/users/7").status_code == 404, "none of them was stored"
    late = client.post("/v1/events", json={"events": [event(7, 3, START), event(7, 4, START - 9)]})
    assert late.json()["accepted"] == 2
    assert [one["item"] for one in client.get("/v1/users/7").json()["history"]] == [4, 3]


def test_routes_that_are_not_there(client):
    assert client.get("/v1/nothing").status_code == 404
    answer = client.put("/v1/rank", json={})
    assert answer.status_code == 405
    for wrong in ("0", "x", "-1", "99999", "1e3", "\uff11"):
        assert client.get("/v1/users", params={"limit": wrong}).status_code == 422


def test_limits(tmp_path):
    engine = engine_of(shop("lime-mha"), tmp_path)
    with client_of(engine, body_bytes=2000, rate=2.0) as client:
        big = client.post("/v1/rank", content=b" " * 2001)
        assert big.status_code == 413
        chunks = client.post("/v1/rank", content=(b" " * 500 for _ in range(5)))
        assert chunks.status_code == 413
        codes = [client.get("/v1/model").status_code for _ in range(10)]
        assert 429 in codes
        paced = client.get("/v1/model")
        assert paced.status_code == 429 and int(paced.headers["retry-after"]) >= 1


def test_a_store_that_fails_is_a_503(client, tmp_path, monkeypatch):
    def down(*_):
        raise StoreError("the store is away; try again")

    monkeypatch.setattr(SqliteStore, "appending", down)
    answer = client.post("/v1/events", json=event(7, 3))
    assert answer.status_code == 503 and answer.headers["retry-after"]
    monkeypatch.undo()
    assert client.post("/v1/events", json=event(7, 3)).json()["accepted"] == 1


def test_an_error_of_ours_is_a_500_and_tells_no_secrets(client, monkeypatch):
    monkeypatch.setattr(Serving, "model", lambda self: 1 / 0)
    answer = client.get("/v1/model")
    assert answer.status_code == 500 and "division" not in answer.text


def test_numbers(client):
    client.post("/v1/events", json=event(7, 3))
    client.post("/v1/rank", json={"user": 7})
    text = client.get("/metrics").text
    assert 'limerank_requests_total{route="POST /v1/rank",status="200"} 1.0' in text
    assert "limerank_users 1.0" in text and f"limerank_items {ITEMS}.0" in text
    assert 'limerank_stage_seconds_count{stage="score"}' in text


def test_the_description_knows_every_route(client):
    predicted = client.get("/openapi.json").json()
    assert predicted["openapi"] == "3.1.0"
    for one_operation in OPERATIONS:
        path = one_operation.path.replace(":path}", "}")
        operation = predicted["paths"][path][one_operation.method.lower()]
        assert operation["summary"] and (one_operation.access is None or "security" in operation)
    refs = [
        part for part in json.dumps(predicted).split('"') if part.startswith("#/components/schemas")
    ]
    assert refs and all(ref.rsplit("/", 1)[1] in predicted["components"]["schemas"] for ref in refs)


def test_the_page_on_the_api_is_the_description_s():
    written = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    assert written == reference(describe("", OPERATIONS, open_=False)), "make api writes it again"


# The keystone


@pytest.mark.parametrize(
    ("model", "mode", "anchors"),
    [
        ("lime-mha", "window", None),
        ("lime-xor", "window", ()),
        ("lime-mha", "streaming", ()),
        ("lime-mha", "streaming", None),
    ],
)
def test_the_server_says_what_evaluation_says(model, mode, anchors, tmp_path):
    """Events are posted one by one; at each moment of a request, its candidates are ranked."""
    of = shop(model, anchors=anchors)
    data, requests = of.data, np.arange(0, len(of.data.requests["user"]), 9)
    engine = engine_of(of, tmp_path, scorer="model", mode=mode)
    done = dict.fromkeys(range(len(data.user_ids)), 0)
    with client_of(engine) as client:
        for user in range(len(data.user_ids)):
            country = {"features": {"country": f"c{data.user_ids[user] % 3}"}}
            assert client.put(f"/v1/users/{data.user_ids[user]}", json=country).status_code == 200
        for request in requests:
            user, first = (int(data.requests[name][request]) for name in ("user", "first"))
            now, start = int(data.events["time"][first]), int(data.event_offsets[user])
            times = data.events["time"][start : data.event_offsets[user + 1]]
            end = start + int(np.searchsorted(times, now))
            for row in range(start + done[user], end):
                posted = {
                    "user": int(data.user_ids[user]),
                    "item": int(data.item_ids[data.events["item"][row]]),
                    "time": int(data.events["time"][row]),
                    "labels": {t: float(data.events[f"label_{t}"][row]) for t in data.tasks},
                    "id": f"{row:09d}",
                }
                assert client.post("/v1/events", json=posted).json()["accepted"] == 1
                done[user] += 1
            batch = data.batch(np.array([request]), 1 << 20 if mode == "streaming" else None)
            with torch.inference_mode():
                logits = of.run.ranker(batch)[0]
            predicted = predictions(logits, of.run.ranker.shape.tasks).numpy()
            rows = first + np.arange(len(predicted))
            candidates = [int(item) for item in data.item_ids[data.events["item"][rows]]]
            asked = {
                "user": int(data.user_ids[user]),
                "time": now,
                "candidates": candidates,
                "k": len(candidates),
                "exclude_seen": False,
            }
            ranked = client.post("/v1/rank", json=asked).json()
            scores = {one["item"]: one["scores"] for one in ranked["items"]}
            for position, item in enumerate(candidates):
                for task, expected in zip(data.tasks, predicted[position], strict=True):
                    assert scores[item][task] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_variant_is_named(tmp_path):
    """A run whose weights are not finite never replaces one that works."""
    of = shop("lime-mha")
    run = make_run(tmp_path / "broken", of.data, model="lime-mha")
    with torch.no_grad():
        run.ranker.links.fill_(float("nan"))
    from limerank.runs.folder import save_weights

    save_weights(tmp_path / "broken", run.ranker)
    engine = engine_of(of, tmp_path)
    with client_of(engine) as client:
        answer = client.post("/v1/admin/reload", json={"run": str(tmp_path / "broken")})
        assert answer.status_code == 409
        assert client.get("/v1/model").json()["run"] == of.run.fingerprint
