"""Event stores: one contract over all of them, then what each has of its own."""

from __future__ import annotations

import itertools
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limerank.errors import FormatError, SpecError, StoreError
from limerank.events import event_of
from limerank.stores import SqliteStore, State, ValkeyStore, Version
from tests.valkey_server import needs_server, server

NUMBERS = itertools.count()


def event(user=1, at=0, id=None, item=5, **more):
    return event_of({"user": user, "item": item, "time": at, "id": id, **more})


class Place:
    """Where stores are opened: the same one again, or a new one."""

    def __init__(self, kind, folder, url=None):
        self.kind, self.folder, self.url = kind, folder, url
        self.number = next(NUMBERS)

    def open(self, **options):
        if self.kind == "sqlite":
            return SqliteStore(self.folder / f"{self.number}.db", **options)
        return ValkeyStore(self.url, prefix=f"{self.number}:", **options)

    def new(self):
        return Place(self.kind, self.folder, self.url)


@pytest.fixture(scope="module", params=["sqlite", pytest.param("valkey", marks=needs_server)])
def kind(request, tmp_path_factory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("stores")
    if request.param == "sqlite":
        yield Place("sqlite", folder)
    else:
        with server() as running:
            yield Place("valkey", folder, running.url)


@pytest.fixture
def place(kind):
    return kind.new()


@pytest.fixture
def store(place):
    with place.open() as opened:
        yield opened


# The contract


def test_events_come_back_in_order(store):
    events = [
        event(at=30, id="c", labels={"click": 1.0, "watch": 3.25}, features={"tab": "x"}),
        event(at=10, id="a"),
        event(at=30, id="b", item="text"),
        event(user="bob", at=20),
    ]
    assert store.append(events) == ["accepted"] * 4
    ordered = [events[1], events[2], events[0]]
    held = store.held(1)
    assert held.events == ordered and held.whole and held.features == {}
    assert store.latest(1, 2) == ordered[1:] and store.latest("1", 9) == ordered
    assert store.latest(1, 0) == [] and store.latest("nobody", 3) == []
    assert store.held("bob").events == [events[3]]
    assert store.counts() == (2, 4) and set(store.users()) == {1, "bob"}


def test_duplicates_change_nothing(store):
    first = event(at=3, id="x")
    assert store.append([first, first]) == ["accepted", "duplicate"]
    before = store.version(1)
    assert store.append([event(at=99, id="x", item=7)]) == ["duplicate"]
    assert store.version(1) == before and store.held(1).events == [first]
    assert store.append([event(user=2, at=3, id="x")]) == ["accepted"], "ids are a user's own"
    assert store.append([]) == [] and store.counts() == (2, 2)


def test_appending_keeps_its_promises(store):
    promises = [store.appending([event(user=k % 3, at=k, id=str(k // 2))]) for k in range(60)]
    outcomes = [promise.result(30) for promise in promises]
    assert all(len(one) == 1 for one in outcomes)
    accepted = sum(one == ["accepted"] for one in outcomes)
    held = sum(len(store.held(user).events) for user in range(3))
    assert held == accepted == store.counts().events
    assert store.appending([event(user=0, at=0, id="0")]).result(30) == ["duplicate"]


def test_appends_side_by_side_are_each_told_their_own(store):
    """Of many that wait together each gets its own outcomes: with ids and without, of users that
    are new, twice within one and in several."""
    parts = [
        [
            event(user=k % 7 if k % 2 else f"u{k % 5}", at=at, id=f"{at}" if at % 3 else None)
            for at in range(k % 4, k % 4 + 1 + k % 6)
        ]
        for k in range(60)
    ]
    promises = [store.appending(part) for part in parts]
    outcomes = [promise.result(30) for promise in promises]
    assert [len(one) for one in outcomes] == [len(part) for part in parts]
    seen: dict = {}
    for part, one in zip(parts, outcomes, strict=True):
        for found, outcome in zip(part, one, strict=True):
            seen.setdefault((found.user, found.id), []).append(str(outcome))
    assert all(sorted(told)[0] == "accepted" for told in seen.values())
    assert all(told.count("accepted") == 1 for told in seen.values())
    assert store.counts() == (len({user for user, _ in seen}), len(seen))
    for user in {user for user, _ in seen}:
        assert len(store.held(user).events) == sum(one == user for one, _ in seen)


def test_users_by_the_beginning_of_their_ids(store):
    users = [1, 10, 105, 2, -1, "10a", "a*b", "a?c", "[x]", "\\y", "\u00fc", "\U0001f600", "100%"]
    store.append([event(user=user, at=3, id=str(user)) for user in users])
    for text in (
        "",
        "1",
        "10",
        "a",
        "a*",
        "a?",
        "[",
        "\\",
        "\u00fc",
        "\U0001f600",
        "-",
        "100%",
        "z",
    ):
        wanted = {user for user in users if str(user).startswith(text)}
        found = store.named(text, 100)
        assert set(found) == wanted and len(found) == len(wanted), text
        assert [str(user) for user in found] == sorted(str(user) for user in wanted)
        assert len(store.named(text, 2)) == min(2, len(wanted))


def test_users_nobody_knows(store):
    assert store.version(5) is None and store.held(5) is None and store.state(5, "k") is None
    assert not store.delete_user(5)
    assert not store.put_state(5, "k", State(b"f", Version(1, 1), b""))
    assert store.counts() == (0, 0) and list(store.users()) == []


def test_what_was_accepted_since(store):
    store.append([event(at=10, id="a"), event(at=20, id="b")])
    version = store.version(1)
    assert store.held(1, version) == (version, {}, [], False)
    store.append([event(at=15, id="late"), event(at=20, id="b")])
    held = store.held(1, version)
    assert [one.id for one in held.events] == [b"late"] and not held.whole
    assert held.version == store.version(1) != version
    foreign = Version(version.born + 1, version.changes)
    future = Version(version.born, version.changes + 100)
    assert store.held(1, foreign).whole and store.held(1, future).whole


def test_features(store):
    store.set_features(1, {"country": "nl", "age": 3.5, "tags": ["a", None]})
    first = store.version(1)
    assert store.held(1).features == {"country": "nl", "age": 3.5, "tags": ["a", None]}
    store.append([event(at=1)])
    assert store.held(1).features["country"] == "nl"
    store.set_features(1, {})
    assert store.held(1).features == {} and store.version(1) != first
    assert store.counts() == (1, 1)


def test_a_deleted_user_is_gone_for_good(store):
    store.append([event(at=1), event(at=2), event(user=2, at=1)])
    old = store.version(1)
    store.set_features(1, {"country": "nl"})
    assert store.put_state(1, "k", State(b"f", store.version(1), b"data"))
    assert store.delete_user(1) and not store.delete_user(1)
    assert store.held(1) is None and store.state(1, "k") is None and store.latest(1, 5) == []
    assert store.counts() == (1, 1) and list(store.users()) == [2]
    assert store.append([event(at=1)]) == ["accepted"]
    assert store.version(1).born != old.born and store.held(1).features == {}
    assert not store.put_state(1, "k", State(b"f", old, b"data"))


def test_states_are_of_the_present_version(store):
    store.append([event(at=1)])
    old = store.version(1)
    assert store.put_state(1, "k", State(b"print", old, b"\0\xff" * 5000))
    assert store.state(1, "k") == (b"print", old, b"\0\xff" * 5000)
    assert store.state(1, "other") is None
    store.append([event(at=2)])
    new = store.version(1)
    assert store.put_state(1, "k", State(b"", new, b"new"))
    assert not store.put_state(1, "k", State(b"print", old, b"old"))
    assert store.state(1, "k") == (b"", new, b"new")


def test_a_bounded_number_of_events(place):
    with place.open(most=3) as store:
        assert store.append([event(at=at, id=f"{at}") for at in (30, 10, 20)]) == ["accepted"] * 3
        version = store.version(1)
        assert store.append([event(at=5, id="5")]) == ["expired"]
        assert store.version(1) == version
        assert store.append([event(at=40, id="40")]) == ["accepted"]
        assert [one.time for one in store.held(1).events] == [20, 30, 40]
        assert store.held(1, version).whole, "one was dropped: what was made of it is stale"
        assert store.append([event(at=10, id="10")]) == ["expired"], "it was dropped before"
        assert store.append([event(at=20, id="a"), event(at=20, id="1")]) == [
            "accepted",
            "expired",
        ]
        assert store.counts() == (1, 3)
    with pytest.raises(SpecError, match="at most 0 events"):
        place.open(most=0)


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=12),
    st.sampled_from([None, 1, 4]),
    st.randoms(use_true_random=False),
)
def test_arrival_makes_no_difference(kind, given_events, most, rng):
    events = [
        event(at=at, id=id) for at, id in dict((id, (at, id)) for at, id in given_events).values()
    ]
    found = []
    for _ in range(2):
        rng.shuffle(events)
        with kind.new().open(most=most) as store:
            at = 0
            while at < len(events):
                size = rng.randint(1, 4)
                store.append(events[at : at + size])
                at += size
            found.append(store.latest(1, 100))
            assert store.counts().events == len(found[-1])
    expected = sorted(events, key=lambda one: (one.time, one.id))[-(most or 100) :]
    assert found == [expected, expected]


def test_items(store):
    assert store.items() == (0, {})
    assert store.put_items({1: {"title": "A", "tags": ["x"]}, "b": {"title": None}}) == 2
    assert store.put_items({2: {"title": "C"}, 1: None}) == 4
    assert store.items() == (4, {"b": {"title": None}, 2: {"title": "C"}, 1: None})
    assert store.items(3) == (4, {1: None}) and store.items(4) == (4, {})
    assert store.put_items({}) == 4


def test_reopened(place):
    with place.open() as store:
        store.append([event(at=1, id="a")])
        store.put_items({1: {"title": "A"}})
        held = store.held(1)
        with place.open() as other:  # both at once
            assert other.held(1) == held
            other.append([event(at=2, id="b")])
        assert len(store.held(1).events) == 2
    with pytest.raises(StoreError, match="closed"):
        store.append([event(at=3)])
    with pytest.raises(StoreError, match="closed"):
        store.version(1)
    store.close()
    with place.open() as store:
        assert len(store.held(1).events) == 2 and store.items()[0] == 1
        assert store.append([event(at=1, id="a")]) == ["duplicate"]


def test_many_threads(store):
    def work(thread):
        for at in range(20):
            mine = event(user=thread % 3, at=at, id=f"{thread}-{at}")
            shared = event(user=9, at=at, id=str(at))
            outcomes[thread] += store.append([mine, shared])
            held = store.held(9)
            assert held.version.changes == len(held.events)

    outcomes: list[list[str]] = [[] for _ in range(6)]
    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [one for some in outcomes for one in some]
    assert said.count("accepted") == 6 * 20 + 20 and said.count("duplicate") == 5 * 20
    assert store.counts() == (4, 140)


# Kills


WRITER = """
import sys
from limerank.events import event_of
from limerank.stores import SqliteStore, ValkeyStore
kind, where, prefix, name = sys.argv[1:]
store = SqliteStore(where) if kind == "sqlite" else ValkeyStore(where, prefix=prefix)
number = 0
while True:
    some = [
        event_of({"user": k % 3, "item": k, "time": k, "id": f"{name}-{k}"})
        for k in range(number, number + 5)
    ]
    said = store.append(some)
    assert set(said) <= {"accepted", "duplicate"}
    number += 5
    print(number, flush=True)
"""


def started(place, name):
    where = str(place.folder / f"{place.number}.db") if place.kind == "sqlite" else place.url
    arguments = [place.kind, where, f"{place.number}:", name]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True
    )


def told_until_killed(process, seconds):
    """Kill a writer; returns how many events it was told are kept."""
    first = process.stdout.readline()
    timer = threading.Timer(seconds, process.send_signal, [signal.SIGKILL])
    timer.start()
    lines = [first, *process.stdout.readlines()]
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    timer.join()
    return max(int(line) for line in lines if line.endswith("\n"))


def test_killed_writers_lose_nothing(place):
    """Two processes at a time write to one store and are killed at random moments."""
    rng = random.Random(0)
    place.open().close()
    for round in range(6):
        names = [f"{round}a", f"{round}b"]
        writers = [started(place, name) for name in names]
        told = [told_until_killed(writer, rng.uniform(0, 0.08)) for writer in writers]
        with place.open() as store:
            ids = [one.id for user in range(3) for one in store.latest(user, 1 << 30)]
            assert len(ids) == len(set(ids)) == store.counts().events
            for name, count in zip(names, told, strict=True):
                mine = {id for id in ids if id.startswith(f"{name}-".encode())}
                assert {f"{name}-{k}".encode() for k in range(count)} <= mine
                assert len(mine) <= count + 5, "the last ones were under way"


# SQLite


def test_a_full_disk_loses_nothing(tmp_path):
    with SqliteStore(tmp_path / "events.db", max_bytes=200_000) as store:
        kept = 0
        with pytest.raises(StoreError, match=r"is full .* make room"):
            for at in range(10_000):
                store.append([event(user=k, at=at, features={"x": "y" * 300}) for k in range(20)])
                kept += 20
        assert 0 < kept == store.counts().events
        assert sum(len(store.held(k).events) for k in range(20)) == kept
        # Deleting makes room.
        assert store.delete_user(0)
        assert store.append([event(user=1, at=1 << 40)]) == ["accepted"]


def test_a_deleted_user_leaves_no_bytes(tmp_path):
    with SqliteStore(tmp_path / "events.db") as store:
        store.append([event(user="somebody", at=1, features={"x": "secret-of-somebody"})])
        store.delete_user("somebody")
        for file in tmp_path.iterdir():
            assert b"secret-of" not in file.read_bytes(), file


def test_no_statement_reads_a_whole_table(tmp_path, monkeypatch):
    """However many users and events there are, appending and reading one user's looks at its own:
    each statement finds its rows by a key."""
    statements: set[str] = set()
    connect = SqliteStore._connect

    def listening(self):
        connection = connect(self)
        connection.set_trace_callback(statements.add)
        return connection

    monkeypatch.setattr(SqliteStore, "_connect", listening)
    path = tmp_path / "events.db"
    with SqliteStore(path, most=4) as store:
        store.append([event(user=user, at=at) for user in range(3) for at in range(3)])
        store.append([event(at=at, id=f"n{at}") for at in range(3)])
        store.set_features(1, {"age": 3})
        version = store.version(1)
        store.put_state(1, "window", State(b"f", version, b"data"))
        other = store.version(0)
        store.append([event(user=0, at=9)])
        assert len(store.held(0, other).events) == 1 and len(store.latest(1, 2)) == 2
        store.state(1, "window")
        store.counts()
        store.delete_user(2)
    looked = {one for one in statements if one.startswith(("SELECT", "WITH", "UPDATE", "DELETE"))}
    assert len(looked) > 12
    plain = sqlite3.connect(path)
    for statement in looked:
        plan = [row[3] for row in plain.execute(f"EXPLAIN QUERY PLAN {statement}")]
        scanned = [one for one in plan if one in ("SCAN users", "SCAN events", "SCAN states")]
        assert not scanned, statement
    plain.close()


def test_one_bad_write_does_not_stop_the_others(tmp_path):
    with SqliteStore(tmp_path / "events.db") as store:

        def fail(connection):
            connection.execute("INSERT INTO items VALUES ('x', 1, NULL)")
            raise ZeroDivisionError

        started, go = threading.Event(), threading.Event()

        def hold(connection):
            started.set()
            go.wait(10)

        threads = [threading.Thread(target=store._change, args=(hold,))]
        threads[0].start()
        started.wait(10)
        errors = []

        def failing():
            try:
                store._change(fail)
            except ZeroDivisionError as error:
                errors.append(error)

        threads += [
            threading.Thread(target=store.append, args=([event(at=1)],)),
            threading.Thread(target=failing),
            threading.Thread(target=store.append, args=([event(at=2)],)),
        ]
        for thread in threads[1:]:
            thread.start()
        while store._jobs.qsize() < 3:
            time.sleep(0.001)
        go.set()
        for thread in threads:
            thread.join()
        assert len(errors) == 1 and store.counts().events == 2 and store.items() == (0, {})


def test_another_process_holds_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("limerank.stores.sqlite.BUSY_SECONDS", 0.1)
    with SqliteStore(tmp_path / "events.db") as store:
        other = sqlite3.connect(tmp_path / "events.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process has held"):
            store.append([event(at=1)])
        assert store.version(1) is None, "readers do not wait"
        other.execute("ROLLBACK")
        other.close()
        assert store.append([event(at=1)]) == ["accepted"]


def test_an_old_sqlite_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(StoreError, match=r"expected 3\.35 or later"):
        SqliteStore(tmp_path / "events.db")
    assert not any(tmp_path.iterdir())


def test_files_that_are_no_store(tmp_path):
    (tmp_path / "text").write_text("hello, this is no database at all\n" * 50)
    with pytest.raises(FormatError, match="damaged or no event store"):
        SqliteStore(tmp_path / "text")
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE t(x)")
    other.commit()
    other.close()
    with pytest.raises(FormatError, match="is no event store of format 1; name another file"):
        SqliteStore(tmp_path / "other")
    SqliteStore(tmp_path / "later").close()
    later = sqlite3.connect(tmp_path / "later", isolation_level=None)
    later.execute("PRAGMA user_version=9")
    later.close()
    with pytest.raises(FormatError, match="format 1 but of 9"):
        SqliteStore(tmp_path / "later")
    with pytest.raises(StoreError, match="cannot be used"):
        SqliteStore(tmp_path)


def test_damage_is_found_and_told(tmp_path):
    with SqliteStore(tmp_path / "events.db") as store:
        store.append([event(at=1), event(user=2, at=1)])
    raw = sqlite3.connect(tmp_path / "events.db", isolation_level=None)
    raw.execute("UPDATE events SET time=time+1 WHERE user=1")
    raw.close()
    with SqliteStore(tmp_path / "events.db") as store:
        with pytest.raises(FormatError, match="damaged"):
            store.held(1)
        assert len(store.held(2).events) == 1


# Valkey


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
        kept = 0
        with pytest.raises(StoreError, match="is full"):
            for at in range(10_000):
                store.append([event(at=at, features={"x": "y" * 2000})])
                kept += 1
        assert kept == store.counts().events == len(store.held(1).events) > 0


@needs_server
def test_another_format_is_refused():
    with server() as running, ValkeyStore(running.url) as store:
        store._client.set("limerank:format", 7)
        with pytest.raises(FormatError, match="expected 1; choose another prefix"):
            ValkeyStore(running.url)


def test_valkey_addresses(tmp_path):
    with pytest.raises(SpecError, match="no address of a store"):
        ValkeyStore("http://somewhere")
    with pytest.raises(StoreError, match="cannot be reached"):
        ValkeyStore(f"unix://{tmp_path}/nothing")


def test_a_missing_client_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "valkey", None)
    with pytest.raises(SpecError, match=r"limerank\[valkey\]"):
        ValkeyStore("valkey://localhost")
