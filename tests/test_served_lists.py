"""A log of positives, trained and served: what the server ranks is what the evaluation measured, by
rules as well, and its explanations are exact."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from starlette.testclient import TestClient

from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.evaluation.list_metrics import evaluate_lists
from limerank.index.building import build_index
from limerank.models.config import TrainConfig
from limerank.runs.folder import Run, load_run
from limerank.serving.engine import Serving
from limerank.serving.http.app import application
from limerank.serving.http.settings import Settings
from limerank.serving.stores import SqliteStore
from limerank.training.trainer import train
from tests.worlds import config_of, write_positives

GROUPS = 6
KEY = "a" * 20
SETTINGS = {"width": 16, "links": 8, "hidden": 8}
QUICK = TrainConfig(epochs=2, batch_size=32, learning_rate=0.012, table_learning_rate=0.4)


class Shop(NamedTuple):
    data: Dataset
    run: Run
    folder: object


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Shop:
    """A log of positives with an item table, a run with all anchored links, and its index."""
    folder = tmp_path_factory.mktemp("shop")
    feature = {"name": "group", "kind": "categorical"}
    items = {"files": ["items.csv"], "id": "item_id", "features": [feature]}
    spec = write_positives(folder / "log", users=40, items=items)
    rows = [(f"i{item}", f"g{item % GROUPS}") for item in range(GROUPS * 10)]
    pl.DataFrame(rows, ["item_id", "group"], orient="row").write_csv(folder / "log" / "items.csv")
    prepare(load_spec(spec), folder / "data", base=spec.parent)
    data = Dataset(folder / "data")
    train(data, folder / "run", model=config_of("lime-mha", **SETTINGS), config=QUICK)
    run = load_run(folder / "run")
    assert run.ranker.neighbour_table is not None and run.ranker.neighbour_table.shares.any()
    build_index(run, folder / "index", data=data)
    return Shop(data, run, folder)


@pytest.fixture(params=["window", "streaming"])
def client(request, shop, tmp_path):
    engine = Serving(
        shop.run.path,
        shop.folder / "index",
        SqliteStore(tmp_path / "events.db"),
        items=shop.folder / "log" / "items.csv",
        scorer="model",
        mode=request.param,
    )
    app = application(engine, Settings(keys={"admin": (KEY,)}))
    with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def post_history(client, data: Dataset, request: int) -> tuple[str, int]:
    """Post the events of a request's user before it, one by one; returns the user and the time."""
    user, first = (int(data.requests[name][request]) for name in ("user", "first"))
    for row in range(int(data.event_offsets[user]), first):
        bought = data.events["label_choice"][row] == 3
        event = {
            "user": data.user_ids[user],
            "item": data.item_ids[data.events["item"][row]],
            "time": int(data.events["time"][row]),
            "features": {"event": "purchase" if bought else "view"},
            "id": f"{row:09d}",
        }
        assert client.post("/v1/events", json=event).json()["accepted"] == 1
    return data.user_ids[user], int(data.events["time"][first])


def rank(client, user: str, time: int, **more) -> list[dict]:
    asked = {"user": user, "time": time, "exclude_seen": False, "k": 10, **more}
    answer = client.post("/v1/rank", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


def one_each(data: Dataset) -> np.ndarray:
    """The first request of each user in the test split whose history a window holds."""
    requests = data.requests_of("test")
    first = requests[np.unique(data.requests["user"][requests], return_index=True)[1]]
    held = data.requests["first"][first] - data.event_offsets[data.requests["user"][first]]
    return first[held <= data.manifest["spec"]["history"]["length"]]


def test_served_lists_are_those_of_the_evaluation(shop, client):
    data, ranker = shop.data, shop.run.ranker
    requests = one_each(data)
    every = np.arange(len(data.items))
    hits = []
    for request in requests.tolist():
        user, now = post_history(client, data, request)
        batch = data.batch(np.array([request]), None, every)
        with torch.inference_mode():
            vectors = ranker.item_vectors(batch.items)
            state = ranker.encode_users(batch.users, vectors)
            extra = ranker.extra(state, batch.users.keys, batch.shared)
            terms = ranker.encode_items(vectors[batch.shared])
            logits = ranker.score(state, terms, extra)[0, :, 0].numpy()
        found = rank(client, user, now)
        values = [one["value"] for one in found]
        assert values == pytest.approx(np.sort(logits)[:-11:-1], abs=1e-4)
        row = {item: at for at, item in enumerate(data.item_ids.tolist())}
        assert values == pytest.approx([logits[row[one["item"]]] for one in found], abs=1e-4)
        shown = data.impression_rows(np.array([request]))
        chosen = set(data.item_ids[data.events["item"][shown]].tolist())
        hits.append(len(chosen & {one["item"] for one in found}) / len(chosen))
    measured = evaluate_lists(ranker, data, requests, peers=False)
    assert measured.requests == len(requests) >= 10
    assert measured.metrics["recall@10"] == pytest.approx(np.mean(hits), abs=1e-6)
    assert np.mean(hits) > 0.5


def test_rules_choose_among_the_same_values(shop, client):
    data = shop.data
    user, now = post_history(client, data, int(one_each(data)[0]))
    full = {one["item"]: one["value"] for one in rank(client, user, now, k=len(data.items))}
    group = {item: f"g{int(item[1:]) % GROUPS}" for item in full}
    some = ["g1", "g2", "g4"]
    boosts = [{"items": ["i1"], "add": 100.0}]
    rules = {"filter": {"group": some}, "per": {"group": 2}, "boosts": boosts}
    found = rank(client, user, now, k=6, **rules)
    raised = {item: value + 100 * (item == "i1") for item, value in full.items()}
    expected = [
        item
        for of in some
        for item in sorted((i for i in full if group[i] == of), key=lambda i: -raised[i])[:2]
    ]
    assert [one["item"] for one in found] == sorted(expected, key=lambda item: -raised[item])
    assert found[0]["item"] == "i1"
    for one in found:
        assert one["value"] == pytest.approx(raised[one["item"]], abs=1e-4)


def test_explanations_of_served_lists_are_exact(shop, client):
    """The effect of an event is what the value loses without it, and the item's own link, that of
    its group and those of its neighbours are named with effects."""
    data = shop.data
    requests = one_each(data)
    lengths = data.requests["history_end"][requests] - data.requests["history_start"][requests]
    request = int(requests[lengths.argmax()])
    user, now = post_history(client, data, request)
    best = rank(client, user, now)
    asked = {"user": user, "time": now, "items": [one["item"] for one in best[:3]]}
    history = client.get(f"/v1/users/{user}").json()["history"]
    given = [
        {"item": one["item"], "time": one["time"], "features": {"event": one["features"]["event"]}}
        for one in sorted(history, key=lambda one: one["time"])
    ]
    kinds = set()
    explained = client.post("/v1/explain", json=asked).json()["items"]
    for one, ranked in zip(explained, best[:3], strict=True):
        assert one["value"] == pytest.approx(ranked["value"], abs=1e-4)
        assert sum(part["share"] for part in one["events"]) == pytest.approx(1, abs=1e-4)
        assert [part["item"] for part in one["events"]] == [event["item"] for event in given]
        kinds |= {link["kind"] for link in one["anchored"] if link["effect"]}
        for at in range(0, len(given) - 1, 3):  # the newest one decides the context
            body = {"history": given[:at] + given[at + 1 :], "time": now, "exclude_seen": False}
            rest = client.post("/v1/rank", json={**body, "candidates": [one["item"]], "k": 1})
            effect = one["value"] - rest.json()["items"][0]["value"]
            assert one["events"][at]["effect"] == pytest.approx(effect, abs=2e-4)
    assert kinds == {"item", "group", "neighbour"}
