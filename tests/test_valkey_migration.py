"""Keys of format 1 of a Valkey store, and stores that are copied into others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import valkey
from typer.testing import CliRunner

from limerank.cli.app import app
from limerank.data.exposures import pack_exposure
from limerank.data.packing import pack
from limerank.errors import FormatError, SpecError, StoreError
from limerank.serving.copying import copy_store
from limerank.serving.stores import SqliteStore, ValkeyStore, Version, migrate_store
from limerank.serving.stores import valkey_migration as migration
from tests.stores import arrived, event, exposure, old_events
from tests.valkey_server import needs_server, server


class Format1:
    """Writes keys as an earlier version did."""

    def __init__(self, url, prefix="limerank:"):
        self.client, self.prefix = valkey.Valkey.from_url(url), prefix
        self.client.set(f"{prefix}format", 1)
        self.client.set(f"{prefix}ids", 1)

    def user(self, user, events, **fields):
        client, p = self.client.pipeline(), self.prefix
        fields = {"born": 9, "count": len(events), "dropped": 0, "features": "{}", **fields}
        client.sadd(f"{p}users", user)
        client.hset(f"{p}u:{user}", mapping=fields)
        for number, one in enumerate(events, 1):
            client.zadd(f"{p}t:{user}", {one.id: one.time})
            client.hset(f"{p}e:{user}", one.id, b"%d|%b" % (number, pack(one)))
            client.incr(f"{p}events")
        client.execute()

    def show(self, one, user=None):
        client, p, user = self.client, self.prefix, one.user if user is None else user
        change = client.incr(f"{p}showing")
        client.zadd(f"{p}x:{user}", {one.ranking: one.time})
        client.hset(f"{p}y:{user}", one.ranking, pack_exposure(one))
        client.zadd(f"{p}shown", {f"{one.ranking}|{user}": change})

    def items(self, *ids):
        for change, id in enumerate(ids, 1):
            self.client.hset(f"{self.prefix}items", id, '{"a": 1}')
            self.client.zadd(f"{self.prefix}changes", {id: change})
            self.client.set(f"{self.prefix}change", change)


@needs_server
def test_keys_of_format_1_become_keys_of_format_2():
    with server() as running:
        old = Format1(running.url)
        old.user(1, old_events(), features='{"age": 3}')
        old.user("bob", [event("bob", at=3)])
        shown = [exposure(at=at, ranking=f"r{at}") for at in (5, 2, 9)]
        for one in shown:
            old.show(one)
        old.items("7", "8")
        old.client.set(f"{old.prefix}identity", "abc")
        with pytest.raises(FormatError, match="limerank store migrate unix://"):
            ValkeyStore(running.url)
        assert migrate_store(running.url) == (2, 0)
        assert migrate_store(running.url) == (0, 0), "it can be repeated"
        with ValkeyStore(running.url) as store:
            assert store.held(1) == (Version(9, 50), {"age": 3}, old_events(), True)
            assert store.held(1, Version(9, 40)).events == old_events()[40:]
            store.append([event(at=60, id="new"), event(at=5, id="late")])
            assert [one.id for one in store.held(1, Version(9, 50)).events] == [b"late", b"new"]
            assert set(store.users()) == {1, "bob"} and store.counts() == (2, 53)
            assert arrived(store) == shown
            store.show([exposure(at=1, ranking="r1")])
            assert arrived(store)[-1].ranking == "r1", "changes are counted on"
            assert store.items()[0] == 2 and store.identity() == "abc"
            assert store.delete_user(1) and store.delete_user("bob")
            rest = {key.decode() for key in old.client.keys("*")}
            names = ("items", "changes", "change", "erase", "identity", "lineage")
            wanted = {*store._layout.of_all(*names), "limerank:format", "limerank:buckets"}
            sums = {store._layout.of_bucket(store._layout.bucket(u), "sums")[0] for u in (1, "bob")}
            assert rest == wanted | sums


@needs_server
def test_a_migration_goes_on_where_it_was_ended(monkeypatch):
    monkeypatch.setattr(migration, "SCAN", 5)
    with server() as running:
        old = Format1(running.url)
        for at in range(60):
            old.user(f"u{at}", [event(f"u{at}", at=at)])
        send, calls = migration.ValkeyServer.send, []

        def ended(self, given):
            calls.append(given)
            if len(calls) == 14:
                raise valkey.exceptions.ConnectionError("ended")
            return send(self, given)

        monkeypatch.setattr(migration.ValkeyServer, "send", ended)
        with pytest.raises(StoreError, match="cannot be reached"):
            migrate_store(running.url)
        assert 0 < old.client.scard("limerank:users") < 60
        with pytest.raises(FormatError, match="limerank store migrate"):
            ValkeyStore(running.url)
        old.user("u7", [event("u7", at=7), event("u7", at=8)])  # a server that was not stopped
        old.show(exposure("u7", at=9))
        done = migrate_store(running.url)
        assert done.joined <= 1 and 0 < done.users < 60
        with ValkeyStore(running.url) as store:
            assert store.counts() == (60, 61)
            assert [one.time for one in store.held("u7").events] == [7, 8]
            assert all(store.event_count(user) == 1 for user in store.users() if user != "u7")
            assert [one.time for one in store.exposures("u7", 0, 99)] == [9]


@needs_server
def test_ids_in_other_forms_become_one_user():
    with server() as running:
        old = Format1(running.url)
        old.client.delete("limerank:ids")
        for user, times in {" x ": [1, 2], "7.0": [1, 2, 3], "7": [3, 4], "fine": [5]}.items():
            events = [event(user=user, at=at, id=f"{at}") for at in times]
            events = [replace(one, user=user, item="9.0") for one in events]
            old.user(user, events, features='{"age": 3}')
        assert migrate_store(running.url).joined == 2
        with ValkeyStore(running.url) as store:
            assert set(store.users()) == {"x", 7, "fine"} and store.counts() == (3, 7)
            for user, times in (("x", [1, 2]), ("7.0", [1, 2, 3, 4]), ("fine", [5])):
                held = store.held(user)
                assert [one.time for one in held.events] == times
                assert {one.item for one in held.events} <= {9, "9.0"}
                assert held.features == {"age": 3}


@needs_server
def test_what_is_no_store_of_format_1_is_refused(tmp_path):
    with pytest.raises(SpecError, match="a cluster has no store of an earlier format"):
        migrate_store("valkey+cluster://localhost:1")
    with pytest.raises(SpecError, match="not the address of a Valkey"):
        migrate_store("events.db")
    with server() as running, pytest.raises(FormatError, match="format None, expected 1"):
        migrate_store(running.url)


@needs_server
def test_a_store_is_copied_into_another(tmp_path):
    with (
        server() as running,
        SqliteStore(tmp_path / "events.db") as source,
        ValkeyStore(running.url) as target,
    ):
        source.append([event(user, at=at) for user in (1, 2, "bob") for at in range(5)])
        source.set_features(1, {"age": 3})
        source.set_features("new", {"age": 4})
        source.show([exposure(1, at=at, ranking=f"r{at}") for at in range(3)])
        source.put_items({5: {"a": 1}, 6: None})
        assert copy_store(source, target) == (4, 15, 3, 2, 4)
        for user in (1, 2, "bob", "new"):
            old, new = source.held(user), target.held(user)
            assert (old.features, old.events) == (new.features, new.events)
        assert target.exposures(1, 0, 99) == source.exposures(1, 0, 99)
        assert target.items()[1] == source.items()[1] and target.counts() == source.counts()
        version = target.version(2)
        source.append([event(1, at=9)])
        source.put_items({7: {"a": 2}})
        assert copy_store(source, target) == (4, 1, 0, 3, 1), "what is equal is skipped"
        assert target.version(2) == version and target.items()[0] == 3


def test_the_command_copies_and_says_what_it_does(tmp_path):
    def run(*words):
        done = CliRunner().invoke(app, ["store", *map(str, words), "-q"])
        return done.exit_code, done.output

    old, new = tmp_path / "old.db", tmp_path / "new.db"
    with SqliteStore(old) as store:
        store.append([event(user, at=1) for user in range(3)])
    status, text = run("copy", old, new)
    assert status == 0 and "3 new events and 0 new exposures of 3 of 3 users" in text
    with SqliteStore(new) as store:
        assert store.counts() == (3, 3)
    assert run("migrate", old) == (0, f"{old}: an SQLite file needs no migration\n")
    for wrong in (("move", old), ("copy", old), ("migrate", old, new), ("copy", "none.db", new)):
        assert run(*wrong)[0] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("old.db", "old.db"), "old.db is the store to copy from, too"),
        (("old.db", "./old.db"), "./old.db is the store to copy from, too"),
        (("old.db", "new.db", "--buckets", "8"), "--buckets is of Valkey stores; new.db is an SQL"),
        (("old.db", "valkey://127.0.0.1:1/0", "--buckets", "0"), "0 buckets, expected 1 to"),
    ],
)
def test_a_copy_onto_itself_or_with_options_of_another_store_is_refused(
    tmp_path, monkeypatch, call, words, message
):
    monkeypatch.chdir(tmp_path)
    SqliteStore(tmp_path / "old.db").close()
    status, _, error = call("store", "copy", *words, "-q")
    assert status == 2 and message in error
    assert not (tmp_path / "new.db").exists()
