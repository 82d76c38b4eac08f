"""The event store in a Valkey or Redis server: addresses, settings, loads, earlier versions."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

import numpy as np
import pytest

from limerank.errors import FormatError, SpecError, StoreError
from limerank.serving.http.private import Private
from limerank.serving.stores import ValkeyStore, Version, open_store
from limerank.serving.stores.valkey_layout import SLOTS, Layout, slot_of, tags
from limerank.serving.stores.valkey_server import redacted
from tests.stores import event, exposure
from tests.valkey_server import needs_server, server


@needs_server
def test_the_list_of_changes_is_bounded():
    with server() as running, ValkeyStore(running.url, most=10) as store:
        versions = []
        for at in range(300):
            store.append([event(at=at)])
            versions.append(store.version(1))
        assert store._server.command("LLEN", store._layout.of_user(1, "c")[0]) <= 2 * 10 + 64
        assert store.held(1, versions[-1]) == (versions[-1], {}, [], False)
        assert store.held(1, versions[-2]).complete and store.held(1, versions[0]).complete


@needs_server
def test_settings_are_watched_while_the_store_is_open():
    with server() as running, ValkeyStore(running.url) as store:
        assert store.check() == []
        store._server.client.config_set("appendfsync", "everysec")
        (problem,) = store.check()
        assert "may lose acknowledged events: it has appendfsync everysec, expected" in problem
        with ValkeyStore(running.url, durable=False) as other:
            assert other.check() == []
        store._server.client.config_set("appendfsync", "always")
        store._server.client.config_set("maxmemory-policy", "allkeys-lru")
        assert "maxmemory-policy allkeys-lru" in store.check()[0]
        store._server.client.config_set("maxmemory-policy", "noeviction")
        store._server.client.flushall()
        (problem,) = store.check()
        assert "was emptied" in problem and running.url not in problem
        running.kill()
        with pytest.raises(StoreError, match="cannot be reached"):
            store.check()
        running.start()


@needs_server
def test_a_large_user_is_read_part_by_part(monkeypatch):
    monkeypatch.setattr("limerank.serving.stores.valkey_reading.PART", 10)
    with server() as running, ValkeyStore(running.url) as store:
        events = [event(at=at % 17, id=f"{at:03}") for at in range(95)]
        store.append(events)
        ordered = sorted(events, key=lambda one: (one.time, one.id))
        version = store.version(1)
        assert store.held(1) == (version, {}, ordered, True)
        # Nothing is listed, as of an earlier version: those since are found all the same.
        store._server.command("HDEL", store._layout.of_user(1, "u")[0], "listed")
        held = store.held(1, Version(version.born, 90))
        assert held.events == ordered[90:]
        # A user who changes all the time is read at once in the end.
        parts = store._in_parts

        def changing(*given):
            found = parts(*given)
            store.append([event(at=99)])
            store.set_features(1, {"number": len(asked)})
            asked.append(given)
            return found

        asked: list = []
        monkeypatch.setattr(store, "_in_parts", changing)
        held = store.held(1)
        assert len(asked) == 3 and held.version == store.version(1)
        assert len(held.events) == 96 and held.features == {"number": 2}


@needs_server
def test_the_servers_log_is_rewritten_after_a_deletion(monkeypatch):
    with server() as running, ValkeyStore(running.url) as store:
        store.append([event(features={"x": "secret-of-somebody"}), event(user=2)])

        def logs():
            """What the log's files hold; the server may rename one while they are read."""
            found = []
            for file in running.folder.rglob("*aof*"):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    found.append(file.read_bytes())
            return b"".join(found)

        assert b"secret-of" in logs()
        assert store.delete_user(1) and store.check() == []
        assert store._server.command("GET", store._layout.of_all("erase")[0]) is not None, "not yet"
        monkeypatch.setattr("limerank.serving.stores.valkey.REWRITE_SECONDS", 0)
        assert store.check() == []
        assert store._server.command("GET", store._layout.of_all("erase")[0]) is None
        until = time.monotonic() + 30
        while b"secret-of" in logs() and time.monotonic() < until:
            store._server.client.ping()
        assert b"secret-of" not in logs() and store.check() == []


@needs_server
def test_appending_waits_in_threads_of_its_own(monkeypatch):
    monkeypatch.setattr("limerank.serving.stores.valkey.WAITING", 3)
    with server() as running:
        store = ValkeyStore(running.url)
        go, append = threading.Event(), store.append
        monkeypatch.setattr(store, "append", lambda some: go.wait(30) and append(some))
        promises = [store.appending([event(at=at)]) for at in range(3)]
        with pytest.raises(StoreError, match="too busy"):
            store.appending([event(at=9)])
        go.set()
        assert [one.result(30) for one in promises] == [["accepted"]] * 3
        last = store.appending([event(at=10)])
        store.close()
        assert last.result(0) == ["accepted"]
        with pytest.raises(StoreError, match="closed"):
            store.appending([event(at=11)])


@needs_server
def test_more_threads_than_connections(monkeypatch):
    monkeypatch.setattr("limerank.serving.stores.valkey_server.CONNECTIONS", 2)
    with server() as running, ValkeyStore(running.url) as store:
        threads = [
            threading.Thread(target=lambda k=k: store.append([event(user=k, at=1)]))
            for k in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.counts() == (12, 12)
        assert store._server.client.info("clients")["connected_clients"] <= 2


@needs_server
def test_a_search_of_names_reads_little(monkeypatch):
    with server() as running, ValkeyStore(running.url, buckets=16) as store:
        users = list(range(1000, 1400))
        store.append([event(user=user, at=1) for user in users])
        asked, send = [], store._server.send
        monkeypatch.setattr(store._server, "send", lambda calls: asked.append(calls) or send(calls))
        assert store.named("1234", 5) == [1234] and list(map(len, asked)) == [16, 1]
        for text, limit in (("1", 9), ("12", 40), ("", 3), ("13", 400), ("", 1000)):
            asked.clear()
            wanted = [user for user in users if str(user).startswith(text)]
            assert store.named(text, limit) == wanted[:limit]
            assert len(asked) <= 3 and sum(map(len, asked)) <= 3 * 16


@needs_server
def test_users_of_one_bucket_are_written_by_one_call(monkeypatch):
    with server() as running, ValkeyStore(running.url, buckets=4) as store:
        sent, send = [], store._server.send
        monkeypatch.setattr(store._server, "send", lambda calls: sent.append(calls) or send(calls))
        events = [event(user=user, at=at) for at in range(3) for user in range(50)]
        assert store.append(events) == ["accepted"] * 150
        assert store.show([exposure(user=user) for user in range(50)]) == ["accepted"] * 50
        assert [len(calls) for calls in sent] == [4, 4]
        assert store.append(events[::-1]) == ["duplicate"] * 150
        assert store.counts() == (50, 150) and len(list(store.users())) == 50
    with server() as running, ValkeyStore(running.url, buckets=4) as store:
        store.append([event(user=user) for user in range(9)])
        with ValkeyStore(running.url) as other:
            assert other.parts == 4, "a store that exists has its own"
            assert other.counts() == (9, 9)


@pytest.mark.parametrize("buckets", [1, 3, 256, 1024])
def test_buckets_are_spread_evenly_over_slots(buckets):
    slots = sorted(slot_of(f"any:{{{tag}}}u:7") for tag in tags(buckets))
    edges = [SLOTS * bucket // buckets for bucket in range(buckets + 1)]
    assert all(low <= slot < high for low, slot, high in zip(edges, slots, edges[1:], strict=False))
    layout = Layout("", buckets)
    counts = np.bincount([layout.bucket(user) for user in range(64 * buckets)], minlength=buckets)
    assert counts.min() > 0


def test_slots_are_those_of_a_cluster():
    assert slot_of("123456789") == 0x31C3 % SLOTS  # the check value of CRC-16/XMODEM
    assert slot_of("a{tag}b") == slot_of("{tag}") == slot_of("tag") != slot_of("{}tag")
    for wrong in ({"prefix": "a{b}", "buckets": 2}, {"prefix": "", "buckets": 0}):
        with pytest.raises(SpecError, match=r"braces|buckets"):
            Layout(**wrong)


@needs_server
def test_a_password_is_shown_nowhere(caplog):
    secret = "S3cret-of-the-store"
    with server("--requirepass", secret) as running:
        url = running.url.replace("unix://", f"unix://:{secret}@")
        for wrong in (running.url, url.replace(secret, "Wr0ng-of-the-store")):
            with pytest.raises(StoreError, match="does not let this process in") as caught:
                ValkeyStore(wrong)
            assert "-of-the-store" not in f"{caught.value} {caught.value.detail}"
        with ValkeyStore(url) as store:
            shown = [repr(store), store.address, *store.check()]
            running.kill()
            for ask in (store.counts, store.check, lambda: store.append([event(at=1)])):
                with pytest.raises(StoreError, match="cannot be reached") as caught:
                    ask()
                outcome_of = caught.value
                while outcome_of is not None:
                    shown += [
                        str(outcome_of),
                        repr(outcome_of),
                        str(getattr(outcome_of, "detail", "")),
                    ]
                    outcome_of = outcome_of.__cause__ or outcome_of.__context__
                assert running.url.removeprefix("unix://") not in str(caught.value)
                assert store.address in caught.value.detail
        assert store.address == running.url.replace("unix://", "unix://:***@")
        assert secret not in " ".join(shown) + caplog.text
        running.start()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("valkey://user:pass@host:6379/0", "valkey://user:***@host:6379/0"),
        ("redis://:p@ss:w/o?r#d@host", "redis://:***@host"),
        ("rediss://pass@host/1", "rediss://***@host/1"),
        ("unix:///run/x.sock?password=pass&db=2", "unix:///run/x.sock?password=***&db=2"),
        ("valkey://host:pass/0", "valkey://host:***/0"),
        ("valkey://[::1]:6379/0", "valkey://[::1]:6379/0"),
        ("valkey://[::1]", "valkey://[::1]"),
        ("user:pass@host", "user:***@host"),
        ("valkey+cluster://u:pass@a:1,b:2/?ssl_x=1", "valkey+cluster://u:***@a:1,b:2/?ssl_x=***"),
        ("valkey+cluster://a:6379,b:pass", "valkey+cluster://a:6379,b:***"),
    ],
)
def test_addresses_without_secrets(url, shown):
    assert redacted(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "valkey://user:pa#s-pass@host:6379/0",
        "valkey://user:se/pass@host:6379/0",
        "valkey://host:secret-pass/0",
        "http://user:secret-pass@host",
        "postgres://user:secret-pass@host/db",
        "redis:/user:secret-pass@host",
        "VALKEY//:secret-pass@host",
        "valkey://:secret-pass@[::1/0",
        "valkey://:secret-pass@host/shop",
        "valkey://:secret-pass@host/-1",
        "redis://host:6379/0?pwd=secret-pass",
        "rediss://host:6379/0?ssl_key=secret-pass",
        "valkey+cluster://:secret-pass@host:6379/3",
        "valkey+cluster://host:6379,host:secret-pass",
        "valkey+cluster:/user:secret-pass@host",
        "redis+cluster://host:6379,other/?pwd=secret-pass",
    ],
)
def test_wrong_addresses_do_not_show_their_password(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="not the address of a store") as caught:
        open_store(url)
    outcome_of = caught.value
    while outcome_of is not None:
        assert "pass" not in str(outcome_of).replace("PASSWORD", "").replace("password", "")
        outcome_of = outcome_of.__cause__ or outcome_of.__context__
    Private.of_store(url, [], [])  # takes any text
    assert not any(tmp_path.iterdir())


@needs_server
def test_a_server_that_may_lose_events_is_refused():
    with server("--appendfsync", "everysec", "--maxmemory-policy", "allkeys-lru") as running:
        with pytest.raises(StoreError, match=r"appendfsync everysec, maxmemory-policy allkeys-lru"):
            ValkeyStore(running.url)
        with ValkeyStore(running.url, durable=False) as store:
            assert store.append([event(at=1)]) == ["accepted"]


@needs_server
def test_a_killed_server_comes_back_with_everything():
    with server() as running, ValkeyStore(running.url) as store:
        for at in range(20):
            store.append([event(at=at)])
        running.kill()
        with pytest.raises(StoreError, match=r"cannot be reached .* try again later"):
            store.append([event(at=99)])
        with pytest.raises(StoreError, match="cannot be reached"):
            store.version(1)
        running.start()
        assert store.counts() == (1, 20) and len(store.held(1).events) == 20
        assert store.append([event(at=99)]) == ["accepted"]


@needs_server
def test_a_full_server_loses_nothing():
    with server("--maxmemory", "3mb") as running, ValkeyStore(running.url) as store:
        stored = 0
        with pytest.raises(StoreError, match="is full"):
            for at in range(10_000):
                store.append([event(at=at, features={"x": "y" * 2000})])
                stored += 1
        assert stored == store.counts().events == len(store.held(1).events) > 0


@needs_server
def test_another_format_is_refused():
    with server() as running, ValkeyStore(running.url) as store:
        store._server.client.set("limerank:format", 7)
        with pytest.raises(FormatError, match="expected 2; choose another prefix"):
            ValkeyStore(running.url)


def test_valkey_addresses(tmp_path):
    with pytest.raises(SpecError, match="not the address of a store"):
        ValkeyStore("http://somewhere")
    with pytest.raises(StoreError, match="cannot be reached"):
        ValkeyStore(f"unix://{tmp_path}/nothing")


def test_a_missing_client_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "valkey", None)
    with pytest.raises(SpecError, match=r"limerank\[valkey\]"):
        ValkeyStore("valkey://localhost")
