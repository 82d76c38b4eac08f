"""What stands behind the routes: one state for each request, no waiting on the event loop, and
everything that is stored can be shown."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
import time

import numpy as np
import orjson
import pytest

from limerank.data.canonical import json_value
from limerank.errors import DataError, FormatError, StoreError, UnknownError
from limerank.index.changes import update_items
from limerank.index.compaction import compact_index
from limerank.ranking.item_table import Filters, ItemTable
from limerank.serving.engine import BRIEF_ITEMS, BRIEF_RANKED, Serving
from limerank.serving.messages import EventMessage, Explain, Rank
from limerank.serving.state import syncing
from limerank.serving.stores import SqliteStore
from tests.catalogues import ITEMS, file_of, folder, make_run, plain_log, shop

START = 1_700_000_000_000
PATIENCE = 30.0


def event(user, item, time=START, **more):
    return {"user": user, "item": item, "time": time, "labels": {"click": 1}, **more}


@pytest.fixture
def engine(tmp_path):
    of = shop("lime-mha")
    shutil.copytree(of.index.path, tmp_path / "index")
    engine = Serving(
        of.run.path,
        tmp_path / "index",
        SqliteStore(tmp_path / "events.db"),
        items=plain_log() / "items.csv",
    )
    yield engine
    engine.close()


def post(engine, *events):
    done = engine.append([EventMessage(**one) for one in events])
    return done.result(PATIENCE)


@contextlib.contextmanager
def held(lock):
    """Another thread holds a lock."""
    taken, done = threading.Event(), threading.Event()

    def hold():
        with lock:
            taken.set()
            done.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(PATIENCE)
    yield
    done.set()
    thread.join()


# On the event loop


def test_what_is_in_memory_is_answered_at_once(engine):
    post(engine, event(7, 3))
    assert engine.rank_at_once(Rank(user=7)) is None, "the store has to be read"
    first = engine.rank(Rank(user=7, k=5, time=START + 1000))
    again = engine.rank_at_once(Rank(user=7, k=5, time=START + 1000))
    assert again["items"] == first["items"] and again["events"] == 1
    post(engine, event(7, 9, START + 1))
    fresh = engine.rank_at_once(Rank(user=7, k=5, time=START + 1000))
    assert fresh["events"] == 2
    assert fresh["items"] == engine.rank(Rank(user=7, k=5, time=START + 1000))["items"]
    for large in (
        Rank(user=7, k=BRIEF_RANKED + 1),
        Rank(user=7, candidates=[3] * (BRIEF_ITEMS + 1)),
        Rank(user=7, exclude=list(range(100))),
        Rank(user=7, context={f"c{k}": 1 for k in range(100)}),
        Rank(user=7, task_weights={f"c{k}": 1 for k in range(100)}),
        Rank(user=7, filter={"group": ["g1"]}),
        Rank(history=[{"item": 3}]),
        Rank(user=8, k=5),
    ):
        engine.rank(Rank(user=9999))  # nobody is in memory
        answer = engine.rank_at_once(large)
        assert answer is None or large.user == 8


def test_a_lock_that_another_thread_holds_is_not_waited_for(engine):
    post(engine, event(7, 3))
    engine.rank(Rank(user=7))
    states = engine._served.states
    with held(states._stripe(7)):
        started = time.perf_counter()
        assert engine.rank_at_once(Rank(user=7)) is None
        assert time.perf_counter() - started < 5
    assert engine.rank_at_once(Rank(user=7)) is not None


def test_many_changes_are_not_read_on_the_event_loop(engine, monkeypatch):
    post(engine, event(7, 3))
    engine.rank(Rank(user=7))
    asked = []
    real = engine.store.held

    def counting(user, since=None):
        asked.append(since)
        return real(user, since)

    monkeypatch.setattr(engine.store, "held", counting)
    post(engine, *(event(7, 1 + k % 80, START + k, id=str(k)) for k in range(100)))
    assert engine.rank_at_once(Rank(user=7)) is None and asked == []
    engine.rank(Rank(user=7))
    asked.clear()
    monkeypatch.setattr(syncing, "BRIEF_HISTORY", 10)
    assert engine.rank_at_once(Rank(user=7)) is not None, "nothing is to be computed"
    post(engine, event(7, 5, START + 1000))
    assert engine.rank_at_once(Rank(user=7)) is None and asked == []
    monkeypatch.setattr(syncing, "BRIEF_SEEN", 10)
    engine.rank(Rank(user=7))
    assert engine.rank_at_once(Rank(user=7)) is None, "too many seen items"


def test_a_user_who_was_forgotten_and_came_back_is_not_read_at_once(engine):
    post(engine, event(7, 3))
    engine.rank(Rank(user=7))
    engine.store.delete_user(7)
    post(engine, *(event(7, k, START + k) for k in range(1, 4)))
    assert engine.rank_at_once(Rank(user=7)) is None
    assert engine.rank(Rank(user=7))["events"] == 3


def test_new_features_are_not_encoded_at_once(engine):
    post(engine, event(7, 3))
    engine.rank(Rank(user=7))
    engine.put_user("7", {"country": "c1"})
    assert engine.rank_at_once(Rank(user=7)) is None
    before = engine.rank(Rank(user=7, k=5, time=START + 1000))
    assert engine.rank_at_once(Rank(user=7, k=5, time=START + 1000))["items"] == before["items"]


def test_many_events_are_not_checked_at_once(engine):
    events = [EventMessage(**event(7, 1 + k % 80, START + k)) for k in range(100)]
    assert engine.append_at_once(events) is None
    assert engine.append_at_once(events[:3]).result(PATIENCE)["accepted"] == 3


# One state for each request


def test_requests_keep_the_state_that_they_began_with(engine, tmp_path, monkeypatch):
    """The index is replaced by one with other rows while a request is being answered."""
    of = shop("lime-mha")
    post(engine, event(7, 3), event(7, 9, START + 1))
    ask = Rank(user=7, k=ITEMS, time=START + 1000, filter={"group": ["g3"]})
    before = engine.rank(ask)
    scorer = type(engine._served.scorer)
    real, begun, go_on = scorer.top, threading.Event(), threading.Event()

    def slow(self, *given, **more):
        if threading.current_thread().name == "slow":
            begun.set()
            assert go_on.wait(PATIENCE)
        return real(self, *given, **more)

    monkeypatch.setattr(scorer, "top", slow)
    found = []
    thread = threading.Thread(target=lambda: found.append(engine.rank(ask)), name="slow")
    thread.start()
    assert begun.wait(PATIENCE)
    update_items(
        of.run, tmp_path / "index", {"item_id": 3, "group": "g3", "tags": "t1", "length": 9}
    )
    compact_index(tmp_path / "index")
    engine.follow()
    after = engine.rank(ask)
    go_on.set()
    thread.join()
    assert found[0]["index_version"] == before["index_version"]
    assert found[0]["items"] == before["items"]
    assert after["index_version"] == before["index_version"] + 2
    assert {one["item"] for one in after["items"]} == {one["item"] for one in before["items"]}
    # What is in memory of the user is that of either index, whichever asks.
    again = engine.rank(ask)
    assert again["items"] == after["items"]


def test_a_filter_that_was_being_found_does_not_miss_a_new_item(engine, monkeypatch):
    """It was computed before the item came, and stored after."""
    real, begun, go_on = Filters.allowed, threading.Event(), threading.Event()
    table = type(engine._served.items)
    compute = table.allowed

    def slow(self, *given):
        found = compute(self, *given)
        if threading.current_thread().name == "slow":
            begun.set()
            assert go_on.wait(PATIENCE)
        return found

    monkeypatch.setattr(table, "allowed", slow)
    ask = Rank(k=ITEMS, filter={"group": ["zebra"]})
    thread = threading.Thread(target=engine.rank, args=(ask,), name="slow")
    thread.start()
    assert begun.wait(PATIENCE)
    engine.put_items([{"item_id": 900, "group": "zebra", "tags": "t1", "length": 1}])
    go_on.set()
    thread.join()
    assert [one["item"] for one in engine.rank(ask)["items"]] == [900]
    assert Filters.allowed is real


def test_search_and_filters_while_items_come(engine):
    errors, done = [], threading.Event()

    def ask():
        try:
            while not done.is_set():
                engine.items("g", 50)
                engine.rank(Rank(k=3, filter={"group": ["g1", "zebra"]}))
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for id in range(900, 915):
        engine.put_items([{"item_id": id, "group": "zebra", "tags": "t1", "length": 1}])
    done.set()
    for thread in threads:
        thread.join()
    assert not errors
    found = engine.rank(Rank(k=ITEMS, filter={"group": ["zebra"]}))["items"]
    assert {one["item"] for one in found} == set(range(900, 915))


@pytest.mark.parametrize(
    ("wanted", "groups"),
    [
        (["g1"], {"g1"}),
        (["g1", "g3"], {"g1", "g3"}),
        ([], set()),
        ([None], {None}),
        (["g9", None], {None}),
    ],
)
def test_filters_by_value_and_by_none(engine, wanted, groups):
    engine.put_items([{"item_id": 900, "group": None, "tags": None, "length": None}])
    found = engine.rank(Rank(k=ITEMS + 1, filter={"group": wanted}))["items"]
    assert {one["features"]["group"] for one in found} == groups


def test_filters_by_numbers(engine):
    engine.put_items([{"item_id": 900, "group": "g1", "tags": "t1", "length": 12.5}])
    for wanted, ids in (([12.5], [900]), ([15, "16.0"], [5, 6]), ([15.5], [])):
        found = engine.rank(Rank(k=ITEMS, filter={"length": wanted}))["items"]
        assert sorted(one["item"] for one in found) == ids


# What is stored can be shown


ODD = {
    "huge": 10**20,
    "far": -(10**30),
    "nan": float("nan"),
    "inf": float("inf"),
    "half": "a\ud800",
    "deep": [[[[[[[[[[[1]]]]]]]]]]],
    "mixed": [1, "a", None, 10**25],
    "map": {"a": {5: b"x"}},
    "bytes": b"\xff",
    "numpy": np.float32(1.5),
}


@pytest.mark.parametrize("name", sorted(ODD))
def test_any_value_has_a_json_form(name):
    orjson.dumps(json_value({name: ODD[name]}))


def test_what_an_earlier_version_stored_is_shown_ranked_and_deleted(engine, tmp_path):
    post(engine, event(7, 3))
    text = '{"country": 100000000000000000000, "half": "\\ud800", "nan": NaN}'
    columns = '{"item_id": 900, "group": 100000000000000000000, "tags": "\\ud800", "length": 1e400}'
    engine.close()
    with sqlite3.connect(tmp_path / "events.db") as raw:
        raw.execute("UPDATE users SET features=?", (text,))
        raw.execute("INSERT INTO items VALUES ('900', 1, ?)", (columns,))
        raw.execute("UPDATE totals SET items=1")
    raw.close()
    again = Serving(engine._served.trained.path, tmp_path / "index", SqliteStore(engine.store.path))
    for found in (
        again.user("7"),
        again.rank(Rank(user=7, k=ITEMS + 1)),
        again.explain(Explain(user=7, items=[5])),
        again.model(),
        again.items("9", 5),
    ):
        orjson.dumps(found)
    assert again.forget("7") == {"forgotten": 1}
    again.close()


def test_a_damaged_user_is_deleted(engine, tmp_path):
    post(engine, event(7, 3), event(7, 4, START + 1))
    with sqlite3.connect(tmp_path / "events.db") as raw:
        raw.execute("UPDATE events SET data=x'00'")
    raw.close()
    with pytest.raises(FormatError):
        engine.user("7")
    assert engine.forget("7") == {"forgotten": 2}
    with pytest.raises(UnknownError):
        engine.user("7")


# Loading


def test_a_damaged_index_is_found_in_the_background(engine, tmp_path, caplog):
    assert engine.model()["index_check"] == "running"
    engine.verify()
    engine.count()
    assert engine.model()["index_check"] == "passed" and engine.readiness() == {"status": "ok"}
    assert b"limerank_index_verified 1.0" in engine.numbers.text()
    engine.put_items([{"item_id": 900, "group": "g1", "tags": "t1", "length": 1}])
    assert engine.model()["index_check"] == "passed", "rows that were there are there still"
    shutil.copytree(tmp_path / "index", tmp_path / "broken")
    file = file_of(tmp_path / "broken", "id_rows.i32")
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    before = engine._served
    with pytest.raises(FormatError, match="damaged"):
        engine.reload(None, str(tmp_path / "broken"))
    assert engine._served is before
    other = Serving(before.trained.path, tmp_path / "broken", engine.store)
    other.verify()
    other.count()
    assert other.model()["index_check"] == "damaged"
    assert b"limerank_index_damaged 1.0" in other.numbers.text()
    assert "the index in use is damaged" in caplog.text
    with pytest.raises((FormatError, StoreError), match="damaged"):
        other.readiness()


def test_a_folder_that_is_not_a_run_or_index_is_refused_at_once(engine, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("config.json", "manifest.json"):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / name)
    (tmp_path / "file").write_text("x")
    before = engine._served
    for wrong in (
        str(tmp_path / "file"),
        str(tmp_path / "pipe"),
        str(tmp_path / "config.json"),
        str(tmp_path / "manifest.json"),
        "a" * 300,
        "a/" * 2000,
        "a\0b",
        "\ud800",
        "/dev/zero",
        "/dev/null",
        "/proc/self",
        str(tmp_path / "missing"),
    ):
        for run, index in ((wrong, None), (None, wrong)):
            with pytest.raises(FormatError):
                engine.reload(run, index)
    assert engine._served is before


@pytest.mark.parametrize(
    "data",
    [
        b"item_id,group,tags,length\n1,\xff\xfe,t1,2\n",
        b"",
        b"item_id,group\n1,g1\n",
        b"PAR1 and nothing else",
        b"\x00" * 100,
    ],
)
@pytest.mark.parametrize("name", ["items.csv", "items.parquet"])
def test_an_item_table_that_cannot_be_read_is_named(engine, tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=name):
        ItemTable(engine._served.trained, tmp_path / name)


def test_gauges_while_the_store_is_away(engine, monkeypatch):
    post(engine, event(7, 3))
    engine.count()

    def away():
        raise StoreError("away")

    monkeypatch.setattr(engine.store, "counts", away)
    with pytest.raises(StoreError):
        engine.count()
    assert b"limerank_events 1.0" in engine.numbers.text()
    assert b"limerank_items 90.0" in engine.numbers.text()


def test_a_reload_of_the_same_model_keeps_users_in_memory(engine):
    post(engine, event(7, 3))
    engine.rank(Rank(user=7))
    engine.reload(None, None)
    assert engine.rank_at_once(Rank(user=7)) is not None
    other = make_run(folder() / "engine-other", shop("lime-mha").data, model="lime-mha", hidden=9)
    with pytest.raises(FormatError):
        engine.reload(str(other.path), None)
    assert engine.rank_at_once(Rank(user=7)) is not None
