"""A server follows what is published: by its URI, or in a folder that ``limerank pull`` writes."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

from limerank.data.exposures import MAIN
from limerank.errors import FingerprintError, FormatError, SpecError, StorageError, StoreError
from limerank.index import Index
from limerank.index.changes import put_items
from limerank.index.writing import writing
from limerank.serving import watched
from limerank.serving.arms import one_arm
from limerank.serving.engine import Serving
from limerank.serving.messages import Rank
from limerank.serving.stores import SqliteStore
from limerank.serving.watched import LocalWatch, StoredWatch, first_arms, look_at, watch_of
from limerank.serving.watching import Background
from limerank.storage import cache, publishing, systems
from limerank.storage.cache import Cache, is_fetched
from limerank.storage.fetching import copied, fetch, pull
from limerank.storage.manifest import MANIFEST, read_manifest
from limerank.storage.publishing import publish
from limerank.storage.uris import parse_uri
from tests.catalogues import shop
from tests.s3_server import S3
from tests.test_live_items import holds, item
from tests.test_serving import becomes
from tests.test_watching import SECONDS, Engine, until


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMERANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return tmp_path / "cache"


@pytest.fixture(params=["s3", "file"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the live run and index are published, on each kind of storage."""
    if request.param == "file":
        return f"file://{tmp_path}/storage/live"
    s3: S3 = request.getfixturevalue("s3")
    return s3.bucket("w" + str(abs(hash(request.node.nodeid)))[:12]) + "/live"


def live(folder: Path, model: str) -> Path:
    """A folder with the run and the index of a model, as the daily loop publishes it."""
    of = shop(model)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copytree(of.run.path, folder / "run")
    shutil.copytree(of.index.path, folder / "index")
    return folder


def published(folder: Path, model: str, uri: str) -> None:
    publish(live(folder, model), uri, overwrite=True)


@pytest.fixture
def engine(tmp_path: Path):  # type: ignore[no-untyped-def]
    of = shop("lime-mha")
    found = Serving(of.run.path, of.index.path, SqliteStore(tmp_path / "events.db"))
    yield found
    found.close()


def model_of(engine: Serving) -> str:
    assert len(engine.rank(Rank(k=3))["items"]) == 3
    return str(engine.model()["model"])


def test_what_is_published_is_served(engine, uri, tmp_path, monkeypatch) -> None:
    watch = watch_of(Path(uri))
    assert isinstance(watch, StoredWatch) and watch.look() == {}
    background = Background(engine, watch, loaded=None)
    background._load()
    assert model_of(engine) == "lime-mha", "nothing is published"

    # The files of a version are there before its manifest is.
    def interrupted(position, blocks):  # type: ignore[no-untyped-def]
        if position.name == MANIFEST:
            raise KeyboardInterrupt
        systems.write(position, blocks)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(publishing, "write", interrupted)
        published(tmp_path / "new", "lime-xor", uri)
    assert systems.entries(parse_uri(uri), recursive=True)
    background._load()
    assert model_of(engine) == "lime-mha"
    published(tmp_path / "new", "lime-xor", uri)
    background._load()
    first = engine.arms.main.current.served.index.path
    assert model_of(engine) == "lime-xor" and is_fetched(first)

    loads: list[object] = []
    monkeypatch.setattr(engine, "reload", lambda *of, **more: loads.append(of))
    background._load()
    assert not loads, "a version is loaded once"
    monkeypatch.undo()
    monkeypatch.setenv("LIMERANK_CACHE", str(tmp_path / "cache"))
    if uri.startswith("s3"):
        return
    published(tmp_path / "new", "two-tower", uri)
    background._load()
    second = engine.arms.main.current.served.index.path
    assert model_of(engine) == "two-tower" and second != first
    held = {folder.name for folder in cache._held if folder.is_relative_to(tmp_path)}
    assert held == {second.parents[1].name}, "an earlier version may leave the cache"


def test_a_damaged_version_and_a_storage_that_is_away_stop_nothing(engine, tmp_path) -> None:
    uri = f"file://{tmp_path}/storage/live"
    published(tmp_path / "new", "lime-xor", uri)
    background = Background(engine, watch_of(uri), loaded=None)
    background._load()
    published(tmp_path / "new", "two-tower", uri)
    manifest = read_manifest(parse_uri(uri))
    assert manifest is not None
    one = next(one for one in manifest.files if one.path == "run/config.json")
    file = tmp_path / "storage" / "live" / one.stored
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    with pytest.raises(StorageError, match=r"config\.json is damaged.*publish the folder again"):
        background._load()
    assert model_of(engine) == "lime-xor"
    (tmp_path / "storage").rename(tmp_path / "away")
    with pytest.raises(StorageError, match=r"no published\.json any more.*publish the live run"):
        background._load()
    assert model_of(engine) == "lime-xor"
    (tmp_path / "away").rename(tmp_path / "storage")
    file.write_bytes(good)
    background._load()
    assert model_of(engine) == "two-tower"
    shutil.rmtree(tmp_path / "new" / "run")
    shutil.rmtree(tmp_path / "new" / "index")
    (tmp_path / "new" / "notes.txt").write_text("none")
    publish(tmp_path / "new", uri, overwrite=True)
    with pytest.raises(FormatError, match=r"has neither run nor index, expected a folder publ"):
        background._load()
    shutil.copytree(shop("lime-xor").run.path, tmp_path / "new" / "run")
    publish(tmp_path / "new", uri, overwrite=True)
    with pytest.raises(FormatError, match=r"has run, expected a folder published with run and"):
        background._load()
    assert model_of(engine) == "two-tower"


class Failing:
    """Something watched on a storage; each look raises what is in line, if anything is."""

    remote = True

    def __init__(self) -> None:
        self.raises: list[Exception] = []
        self.looks, self.used = 0, 0

    def look(self) -> object:
        self.looks += 1
        if self.raises:
            raise self.raises.pop(0)
        return {"version": "v1"}

    def paths(self, *, quiet: bool = True) -> dict[str, str]:
        return {"run": "there", "index": "here"}

    def served(self) -> None:
        self.used += 1


def test_failures_of_a_storage_are_counted_and_looks_are_bounded(caplog) -> None:
    engine, watch = Engine(), Failing()
    watch.raises = [StorageError("s3://shop does not answer"), OSError("reset")]
    background = Background(engine, watch, seconds=SECONDS, remote=10 * SECONDS, loaded=None)
    background.start()
    try:
        until(lambda: engine.loaded == [("there", "here")])
        until(lambda: engine.number("limerank_background_failing", "watch") == 0)
        assert engine.number("limerank_background_failures_total", "watch") == 2
        assert "s3://shop does not answer" in caplog.text
        before, begun, follows = watch.looks, time.monotonic(), engine.attempts["follow"]
        until(lambda: engine.attempts["follow"] >= follows + 30)
        most = (time.monotonic() - begun) / (10 * SECONDS)
        assert watch.looks - before <= most + 1, "a look for each interval, at most"
        assert watch.used == 1 and engine.attempts["watch"] == 1
    finally:
        background.stop()


def test_a_server_begins_with_what_is_watched(uri, tmp_path, monkeypatch) -> None:
    with pytest.raises(StorageError, match="nothing is published under"):
        first_arms(StoredWatch(uri), ())
    published(tmp_path / "new", "lime-xor", uri)
    watch = StoredWatch(uri)
    before = look_at(watch)
    (arm,) = first_arms(watch, ())
    folder = fetch(uri).resolve()
    assert (arm.name, arm.run, arm.index) == (MAIN, folder / "run", folder / "index")
    given = one_arm(tmp_path / "run", tmp_path / "index")
    monkeypatch.setattr(watched, "fetch", lambda *_: pytest.fail("the storage is not asked"))
    assert first_arms(StoredWatch(uri), given) == given
    assert first_arms(None, given) == given
    engine = Engine()
    Background(engine, watch, loaded=before)._load()
    assert not engine.loaded, "it is served already"
    local = live(tmp_path / "local", "lime-xor")
    (arm,) = first_arms(watch_of(local), ())
    assert arm.run == local.resolve() / "run"
    assert first_arms(watch_of(f"file://{local}"), given) == given
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="names no run and index yet: give --run and --index"):
        first_arms(watch_of(tmp_path / "empty"), ())


def test_arms_may_be_published(engine, tmp_path) -> None:
    uri, folder = f"file://{tmp_path}/storage/live", live(tmp_path / "new", "lime-mha")
    live(folder / "b", "lime-xor")
    arms = {
        "a": {"share": 0.5, "run": "run", "index": "index"},
        "b": {"share": 0.5, "run": "b/run", "index": "b/index"},
    }
    (folder / "arms.json").write_text(json.dumps({"arms": arms}))
    publish(folder, uri)
    background = Background(engine, watch_of(uri), loaded=None)
    background._load()
    assert {arm.name for arm in engine.arms.arms.values()} == {"a", "b"}
    del arms["b"]["run"]
    (folder / "arms.json").write_text(json.dumps({"arms": arms}))
    publish(folder, uri, overwrite=True)
    with pytest.raises(FormatError, match=r"has the arm 'b' without a run or an index, expected"):
        background._load()
    assert {arm.name for arm in engine.arms.arms.values()} == {"a", "b"}
    (folder / "arms.json").unlink()
    publish(folder, uri, overwrite=True)
    background._load()
    assert [arm.name for arm in engine.arms.arms.values()] == [MAIN]
    assert {arm.name for arm in first_arms(watch_of(uri), ())} == {MAIN}


def test_a_folder_that_pull_replaces_is_loaded_again(tmp_path) -> None:
    uri, folder = f"file://{tmp_path}/storage/live", tmp_path / "live"
    published(tmp_path / "new", "lime-mha", uri)
    pull(uri, folder)
    store = SqliteStore(tmp_path / "events.db")
    engine = Serving(
        folder / "run",
        folder / "index",
        store,
        items=serving_items(),
    )
    try:
        background = Background(engine, folder)
        before = background._loaded
        assert before == LocalWatch(folder).look() and before["version"]
        engine.put_items([item(900)])
        engine.follow()
        assert holds(engine, 900) and LocalWatch(folder).look() == before, "no other version"
        background._load()
        assert model_of(engine) == "lime-mha"
        published(tmp_path / "new", "lime-xor", uri)
        pull(uri, folder, overwrite=True)
        assert LocalWatch(folder).look() != before
        with pytest.raises(FingerprintError):
            engine.follow()
        background._follow()  # no failure: it is loaded next
        assert model_of(engine) == "lime-mha"
        background._load()
        background._follow()
        assert model_of(engine) == "lime-xor" and holds(engine, 900)
        pull(uri, folder, overwrite=True)  # the same version again
        assert LocalWatch(folder).look() == background._loaded
        background._follow()
        assert holds(engine, 900)
    finally:
        engine.close()


def serving_items() -> Path:
    """The item table of the shops."""
    return shop("lime-mha").data.path.parent / "log" / "items.csv"


def everything(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_live_items_are_not_written_into_the_cache(tmp_path) -> None:
    """Two servers with stores of their own serve one version that was fetched."""
    uri = f"file://{tmp_path}/storage/live"
    published(tmp_path / "new", "lime-mha", uri)
    folder = fetch(uri)
    before = everything(folder)
    engines = [
        Serving(
            folder / "run",
            folder / "index",
            SqliteStore(tmp_path / f"{name}.db"),
            items=serving_items(),
        )
        for name in "ab"
    ]
    try:
        assert all(is_fetched(one.arms.main.current.served.index.path) for one in engines)
        engines[0].put_items([item(900)])
        engines[1].put_items([item(901)])
        engines[1].remove_item("3")
        assert [holds(one, id) for one in engines for id in (900, 901)] == [1, 0, 0, 1]
        own = [one.arms.main.current.served.index.path for one in engines]
        assert len(set(own)) == 2 and not any(map(is_fetched, own))
        assert everything(folder) == before
        pull(uri, tmp_path / "pulled")
        assert everything(tmp_path / "pulled") == before
        engines[0].put_items([item(902)])
        assert engines[0].arms.main.current.served.index.path == own[0], "one copy is made"
        # A new version: the copy of the old one is removed, and the items are in one of the new.
        published(tmp_path / "new", "lime-xor", uri)
        background = Background(engines[0], watch_of(uri), loaded=None)
        background._load()
        assert model_of(engines[0]) == "lime-xor"
        assert holds(engines[0], 900) and holds(engines[0], 902)
        assert not own[0].exists() and own[1].exists()
    finally:
        for one in engines:
            one.close()
    for path in list(cache._held):
        Cache().release(path)  # as if the process had ended
    fresh = Cache().new_own()
    assert [one.name for one in (tmp_path / "cache" / "work").glob("own-*[!k]")] == [fresh.name]
    Cache().remove_own(fresh)


def test_a_failed_change_leaves_one_copy_at_most(tmp_path, monkeypatch) -> None:
    uri = f"file://{tmp_path}/storage/live"
    published(tmp_path / "new", "lime-mha", uri)
    engine = Serving(
        fetch(uri) / "run",
        fetch(uri) / "index",
        SqliteStore(tmp_path / "events.db"),
        items=serving_items(),
    )

    def fails(*_: object) -> None:
        raise StoreError("the disk is full")

    try:
        engine.store.put_items({900: item(900)})
        with monkeypatch.context() as patch:
            patch.setattr("limerank.serving.current.put_live_items", fails)
            for _ in range(3):
                with pytest.raises(StoreError, match="the disk is full"):
                    engine.follow()
        work = tmp_path / "cache" / "work"
        assert len([one for one in work.glob("own-*") if one.is_dir()]) == 1
        engine.follow()
        assert holds(engine, 900)
        assert len([one for one in work.glob("own-*") if one.is_dir()]) == 1
    finally:
        engine.close()


def test_an_index_of_links_is_changed_without_the_other(tmp_path) -> None:
    of = shop("lime-xor")
    shutil.copytree(of.index.path, tmp_path / "one")
    for file in (tmp_path / "one").iterdir():
        file.chmod(0o444)
    copied(tmp_path / "one", tmp_path / "other", linked=True)
    before, opened = everything(tmp_path / "one"), Index.open(tmp_path / "other")
    vectors = np.array(opened.vectors)
    put_items(of.run, tmp_path / "other", [item(900), item(3)])
    put_items(of.run, tmp_path / "other", [item(901)])
    assert everything(tmp_path / "one") == before
    assert Index.open(tmp_path / "other", verify=True).items == opened.items + 2
    np.testing.assert_array_equal(opened.vectors, vectors)
    assert not list((tmp_path / "other").glob(".copy-*"))
    (tmp_path / "other" / ".copy-vectors-1.f32").write_bytes(b"of a killed process")
    with writing(tmp_path / "other"):
        pass
    put_items(of.run, tmp_path / "other", [item(902)])
    assert not list((tmp_path / "other").glob(".copy-*"))


def test_a_server_follows_a_uri(start, tmp_path) -> None:
    uri = f"file://{tmp_path}/storage/live"
    published(tmp_path / "new", "lime-mha", uri)
    server = start(
        tmp_path, "--open", "--watch", uri, "--set", "watch_seconds=0.1",
        env={"LIMERANK_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    with httpx.Client(base_url=server.url) as client:
        becomes(client, "lime-mha")
        published(tmp_path / "new", "lime-xor", uri)
        becomes(client, "lime-xor")
        (tmp_path / "storage" / "live" / MANIFEST).write_text("{")
        failing = 'limerank_background_failing{task="watch"} 1.0'
        limit = time.monotonic() + 30
        while failing not in client.get("/metrics").text:
            assert time.monotonic() < limit
            time.sleep(0.1)
        assert client.post("/v1/rank", json={"user": 1, "k": 3}).status_code == 200
    assert "is damaged" in (tmp_path / "log").read_text()


def test_options_of_a_server_that_watches(call, tmp_path) -> None:
    status, _, error = call("serve", "--no-keys")
    assert status == 2 and "or --watch with what names them" in error
    status, _, error = call("serve", "--no-keys", "--run", tmp_path, "--watch", tmp_path)
    assert status == 2 and "give --run and --index" in error
    status, _, error = call("serve", "--no-keys", "--watch", f"file://{tmp_path}/none")
    assert status != 0 and "nothing is published under" in error
    status, _, error = call("serve", "--no-keys", "--watch", "ftp://shop/live")
    assert status == 2 and "has the scheme 'ftp'" in error
    assert threading.active_count() < 50
