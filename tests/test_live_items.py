"""Live items: every server that shares a store ends with all of them, and an index knows which of
them it holds."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import threading
import time

import numpy as np
import pytest

from limerank.errors import DataError, FormatError, StoreError, UnknownError
from limerank.files import read_json
from limerank.index import Index
from limerank.index.building import build_index
from limerank.index.changes import put_items, remove_items
from limerank.index.format import LiveItems
from limerank.index.writing import writing
from limerank.serving import current as current_module
from limerank.serving.engine import Serving
from limerank.serving.messages import Rank
from limerank.serving.stores import SqliteStore
from tests.catalogues import folder, make_run, plain_log, shop

COLUMNS = {"group": "g1", "tags": "t1|t2", "length": 12.0}


def item(id, **more):
    return {"item_id": id, **COLUMNS, **more}


def serving(location, store, name="index", of=None, **options):
    of = of or shop("lime-mha")
    if not (location / name).exists():
        shutil.copytree(of.index.path, location / name)
    return Serving(
        of.run.path,
        location / name,
        SqliteStore(store),
        items=plain_log() / "items.csv",
        **options,
    )


def holds(engine, id):
    try:
        return engine.item(str(id))["rankable"]
    except UnknownError:
        return False


def state(path):
    manifest = read_json(path / "manifest.json", "an index")
    return {key: manifest[key] for key in ("version", "rows", "superseded", "items")}


@pytest.fixture
def engines():
    made = []

    def make(*given, **more):
        made.append(serving(*given, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_two_servers_end_with_all_items(engines, tmp_path):
    """An own change says nothing of those that others made before it."""
    store = tmp_path / "events.db"
    one, two = (engines(tmp_path, store, name) for name in ("one", "two"))
    wanted = range(900, 908)
    for id in wanted:
        (one, two)[id % 2].put_items([item(id)])
    two.remove_item("900")
    one.put_items([item(901, group="g3")])
    for engine in (one, two):
        engine.follow()
        assert [id for id in wanted if holds(engine, id)] == list(wanted[1:])
        assert engine.item("901")["features"]["group"] == "g3"


def test_two_servers_of_one_index_and_one_store(engines, tmp_path):
    store = tmp_path / "events.db"
    one, two = (engines(tmp_path, store) for _ in range(2))
    errors = []

    def put(engine, ids):
        try:
            for id in ids:
                engine.put_items([item(id)])
                engine.follow()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [
        threading.Thread(target=put, args=(engine, range(first, first + 8)))
        for engine, first in ((one, 900), (two, 910))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for engine in (one, two):
        engine.follow()
        assert all(holds(engine, id) for first in (900, 910) for id in range(first, first + 8))
        assert engine.model()["live_items"] == {"pending": 0, "skipped": []}
    assert state(tmp_path / "index")["superseded"] == 0, "none was put twice"


def test_a_start_and_a_reload_put_nothing_again(engines, tmp_path):
    store = tmp_path / "events.db"
    one = engines(tmp_path, store)
    one.put_items([item(900), item(901)])
    before = state(tmp_path / "index")
    manifest = read_json(tmp_path / "index" / "manifest.json", "an index")
    assert manifest["live"]["change"] == 2 and manifest["live"]["store"] == one.store.identity()
    for _ in range(2):
        again = engines(tmp_path, store)
        assert holds(again, 900) and again.item("901")["features"]["group"] == "g1"
        again.reload(None, None)
        again.follow()
    assert state(tmp_path / "index") == before


def test_what_the_command_did_stays_done(engines, tmp_path):
    store, of = tmp_path / "events.db", shop("lime-mha")
    engines(tmp_path, store).put_items([item(900), item(901)])
    remove_items(tmp_path / "index", [900])
    put_items(of.run, tmp_path / "index", item(901, group="g4"))
    before = state(tmp_path / "index")
    again = engines(tmp_path, store)
    again.reload(None, None)
    again.follow()
    assert not holds(again, 900) and state(tmp_path / "index") == before
    again.put_items([item(900)])  # asked for again
    assert holds(again, 900)


def test_a_rebuilt_index_gets_all_live_items(engines, tmp_path):
    store, of = tmp_path / "events.db", shop("lime-mha")
    engines(tmp_path, store).put_items([item(900), item(5, group="g4")])
    engines(tmp_path, store).remove_item("6")
    build_index(of.run, tmp_path / "new", data=of.data)
    assert Index.open(tmp_path / "new").live is None
    again = engines(tmp_path, store, "new")
    assert holds(again, 900) and not holds(again, 6)
    assert again.item("5")["features"]["group"] == "g4"
    row = again._served.index.row_of(5)
    assert row >= len(of.index), "it was encoded again"


def test_an_index_without_a_record_keeps_what_was_removed(engines, tmp_path):
    """One of an earlier version, which put all live items with every start."""
    store, of = tmp_path / "events.db", shop("lime-mha")
    SqliteStore(store).put_items({900: item(900), 901: item(901)})
    shutil.copytree(of.index.path, tmp_path / "index")
    put_items(of.run, tmp_path / "index", [item(900), item(901)])
    remove_items(tmp_path / "index", [901])
    engine = engines(tmp_path, store)
    assert holds(engine, 900) and not holds(engine, 901)
    assert engine._served.index.live == LiveItems(engine.store.identity(), 2)


def test_another_store_and_an_older_copy_of_one(engines, tmp_path):
    one = engines(tmp_path, tmp_path / "one.db")
    one.put_items([item(900)])
    one.close()
    shutil.copyfile(tmp_path / "one.db", tmp_path / "copy.db")
    one = engines(tmp_path, tmp_path / "one.db")
    one.put_items([item(901)])
    two = engines(tmp_path, tmp_path / "two.db")
    two.put_items([item(902)])
    assert [id for id in (900, 901, 902) if holds(two, id)] == [900, 901, 902]
    assert two.item("902")["features"] and not two.item("900")["features"]
    back = engines(tmp_path, tmp_path / "copy.db")
    back.put_items([item(903)])
    assert holds(back, 900) and holds(back, 903)


def test_a_change_that_failed_is_made_later(engines, tmp_path, monkeypatch):
    store = tmp_path / "events.db"
    one, two = (engines(tmp_path, store, name) for name in ("one", "two"))
    one.put_items([item(900)])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("limerank.index.writing.os.write", full)
        with pytest.raises(StoreError, match=r"no space.*the index is unchanged"):
            two.follow()
        with pytest.raises(StoreError, match="no space"):
            two.put_items([item(901)])
        assert not holds(two, 900)
        # A server that starts meanwhile serves what it has, and says what it has not.
        three = engines(tmp_path, store, "three")
        three.count()
        assert three.model()["live_items"]["pending"] == 2
        assert three.rank(Rank(k=3))["items"]
    Index.open(tmp_path / "two", verify=True)
    assert {f.name for f in (tmp_path / "two").iterdir()} - {".lock"} == {
        f.name for f in shop("lime-mha").index.path.iterdir()
    } - {".lock"}, "nothing is left of the change"
    for engine in (one, two, three):
        engine.follow()
        assert holds(engine, 900) and holds(engine, 901)
        assert engine.model()["live_items"]["pending"] == 0


def test_while_another_process_writes(engines, tmp_path, monkeypatch):
    """Following waits for nobody; a change gives up in time, and leaves nothing behind."""
    monkeypatch.setattr(current_module, "PATIENCE", 0.1)
    store = tmp_path / "events.db"
    one, two = (engines(tmp_path, store, name) for name in ("one", "two"))
    one.put_items([item(900)])
    with writing(tmp_path / "two"):
        two.follow()
        with pytest.raises(StoreError, match="another process has changed the index"):
            two.put_items([item(901)])
    two.follow()
    assert holds(two, 900) and not holds(two, 901)
    assert list(two.store.items()[1]) == [900]


def test_a_reload_ranks_what_was_acknowledged_before(engines, tmp_path, monkeypatch):
    """Also where another process changes the new index: it waits, or the old one stays."""
    engine = engines(tmp_path, tmp_path / "events.db", "one")
    engine.put_items([item(900)])
    shutil.copytree(shop("lime-mha").index.path, tmp_path / "two")
    begun = threading.Event()

    def change():
        with writing(tmp_path / "two"):
            begun.set()
            time.sleep(0.2)

    thread = threading.Thread(target=change)
    thread.start()
    begun.wait()
    engine.reload(None, str(tmp_path / "two"))
    assert holds(engine, 900)
    thread.join()
    shutil.copytree(shop("lime-mha").index.path, tmp_path / "three")
    monkeypatch.setattr(current_module, "PATIENCE", 0.1)
    with (
        writing(tmp_path / "three"),
        pytest.raises(StoreError, match="another process has changed the index"),
    ):
        engine.reload(None, str(tmp_path / "three"))
    assert engine.current.served.index.path == tmp_path / "two" and holds(engine, 900)


def test_links_that_lead_to_another_model_change_nothing_before_a_reload(tmp_path):
    """The daily loop changes the links of what it publishes; the server loads them later."""
    shops = [shop("lime-mha"), shop("two-tower")]
    for number, of in enumerate(shops):
        shutil.copytree(of.index.path, tmp_path / f"index-{number}")

    def lead_to(number):
        for name, target in (
            ("run", shops[number].run.path),
            ("index", tmp_path / f"index-{number}"),
        ):
            (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / name).symlink_to(target)

    lead_to(0)
    engine = Serving(tmp_path / "run", tmp_path / "index", SqliteStore(tmp_path / "events.db"))
    lead_to(1)
    engine.put_items([item(900)])
    engine.follow()
    assert holds(engine, 900) and engine.model()["run"] == shops[0].run.fingerprint
    assert engine.reload(None, None)["run"] == shops[1].run.fingerprint
    assert holds(engine, 900)
    engine.store.close()


def test_an_index_that_may_not_be_written_is_served(engines, tmp_path, monkeypatch):
    store = tmp_path / "events.db"
    SqliteStore(store).put_items({900: item(900)})
    real = os.open

    def read_only(path, flags, *rest, **more):
        if str(path).endswith(".lock"):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr("limerank.index.writing.os.open", read_only)
    engine = engines(tmp_path, store)
    engine.follow()
    assert engine.rank(Rank(k=3))["items"] and not holds(engine, 900)
    assert engine.model()["live_items"]["pending"] == 1
    with pytest.raises(FormatError, match=r"cannot be changed \(Read-only"):
        engine.put_items([item(901)])
    assert list(engine.store.items()[1]) == [900], "what was refused is not stored"
    monkeypatch.undo()
    engine.follow()
    assert holds(engine, 900)


@pytest.mark.parametrize(
    "bad",
    [
        {"group": "g1"},  # columns are missing
        item("no number"),
        item(900, length="12 apples"),
        item(900, length=[1, 2, "x"]),
    ],
)
def test_a_bad_item_is_skipped_and_reported(engines, tmp_path, bad):
    """It was stored for another run, or by an earlier version."""
    store = tmp_path / "events.db"
    SqliteStore(store).close()
    id = bad.get("item_id", 899)
    with sqlite3.connect(store) as raw:
        for change, (key, columns) in enumerate({899: item(899), id: bad, 901: item(901)}.items()):
            raw.execute(
                "INSERT INTO items VALUES (?,?,?)", (str(key), change + 1, json.dumps(columns))
            )
        raw.execute("UPDATE totals SET items=3")
    raw.close()
    engine = engines(tmp_path, store)
    assert holds(engine, 901) and not holds(engine, id if isinstance(id, int) else 1000)
    for reported in (engine.model()["live_items"], engine.reload(None, None)["live_items"]):
        assert [str(one["item"]) for one in reported["skipped"]] == [str(id)]
    engine.count()
    assert b'limerank_live_items{state="skipped"} 1.0' in engine.numbers.text()
    if isinstance(id, int):
        engine.put_items([item(id)])
        assert holds(engine, id) and engine.model()["live_items"]["skipped"] == []


def test_a_run_without_an_item_table_is_served(engines, tmp_path):
    store = tmp_path / "events.db"
    engines(tmp_path, store).put_items([item(900)])
    bare = shop_without_items()
    engine = Serving(bare[0], bare[1], SqliteStore(store))
    assert engine.rank(Rank(k=3))["items"]
    assert engine.model()["live_items"]["skipped"][0]["item"] == "900"
    engine.close()


def shop_without_items():
    from limerank.data.dataset import Dataset
    from limerank.data.description import load_spec
    from limerank.data.prepare import prepare
    from tests.worlds import write_log

    location = folder() / "bare"
    if not location.exists():
        spec = write_log(location / "log", users=20)
        text = spec.read_text()
        start = text.index("[items]")
        end = text.index("[users]") if text.index("[users]") > start else len(text)
        spec.write_text(text[:start] + text[end:])
        prepare(load_spec(spec), location / "data", base=spec.parent)
        run = make_run(location / "run", Dataset(location / "data"), model="lime-mha")
        build_index(run, location / "index", data=location / "data")
    return location / "run", location / "index"


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ([item(900, group=10**20)], "'group'"),
        ([item(900), item(901, length=float("nan"))], r"items\[1\].*'length'"),
        ([item(900, tags=[["a"]])], "'tags'"),
        ([item(900, length="12 apples")], r"items\[0\]"),
        ([item(900), item("900")], "twice"),
        ([item(None)], "needs an id"),
        ([item("text")], r"items\[0\]"),
    ],
)
def test_items_that_cannot_be_read_are_refused(engines, tmp_path, wrong, what):
    engine = engines(tmp_path, tmp_path / "events.db")
    before = state(tmp_path / "index")
    with pytest.raises(DataError, match=what):
        engine.put_items(wrong)
    assert engine.store.items()[1] == {} and state(tmp_path / "index") == before


def test_rankings_go_on_while_items_change(engines, tmp_path):
    """None of the locks of a change is one that a ranking takes."""
    engine = engines(tmp_path, tmp_path / "events.db")
    done = threading.Event()
    with engine.current.alone(), writing(tmp_path / "index"):
        thread = threading.Thread(target=lambda: (engine.rank(Rank(k=3)), done.set()))
        thread.start()
        assert done.wait(30)
        thread.join()
        assert engine.rank_at_once(Rank(k=3)) is not None


def test_records_are_read_as_they_were_written():
    live = LiveItems("some", 7, {str(id): "why" for id in range(150)})
    again = LiveItems.of(live.to_dict())
    assert again.change == 7 and len(again.skipped) == 100
    assert LiveItems.of(None) is None
    assert np.array_equal(sorted(again.skipped), sorted(str(id) for id in range(100)))
