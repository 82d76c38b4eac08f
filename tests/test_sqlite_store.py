"""The event store in an SQLite file: disks, damage, other processes, earlier versions."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from limerank.data.packing import pack
from limerank.errors import FormatError, StoreError
from limerank.serving.stores import SqliteStore, State, Version
from limerank.serving.stores.sqlite_file import SqliteFile
from tests.stores import event, old_events


def test_a_full_disk_loses_nothing(tmp_path):
    with SqliteStore(tmp_path / "events.db", max_bytes=200_000) as store:
        stored = 0
        with pytest.raises(StoreError, match=r"is full .* make room"):
            for at in range(10_000):
                store.append([event(user=k, at=at, features={"x": "y" * 300}) for k in range(20)])
                stored += 20
        assert 0 < stored == store.counts().events
        assert sum(len(store.held(k).events) for k in range(20)) == stored
        # Deleting makes room.
        assert store.delete_user(0)
        assert store.append([event(user=1, at=1 << 40)]) == ["accepted"]


def test_a_deleted_user_leaves_no_bytes(tmp_path):
    with SqliteStore(tmp_path / "events.db") as store:
        store.append([event(user="somebody", at=1, features={"x": "secret-of-somebody"})])
        store.delete_user("somebody")
        for file in tmp_path.iterdir():
            assert b"secret-of" not in file.read_bytes(), file


def test_no_statement_scans_a_table(tmp_path, monkeypatch):
    """However many users and events there are, appending and reading one user's looks at its own:
    each statement finds its rows by a key."""
    statements: set[str] = set()
    connect = SqliteFile._connect

    def listening(self):
        connection = connect(self)
        connection.set_trace_callback(statements.add)
        return connection

    monkeypatch.setattr(SqliteFile, "_connect", listening)
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
        while store._writer._jobs.qsize() < 3:
            time.sleep(0.001)
        go.set()
        for thread in threads:
            thread.join()
        assert len(errors) == 1 and store.counts().events == 2 and store.items() == (0, {})


def test_another_process_holds_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("limerank.serving.stores.sqlite_file.BUSY_SECONDS", 0.1)
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
    with pytest.raises(FormatError, match="damaged or not an event store"):
        SqliteStore(tmp_path / "text")
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE t(x)")
    other.commit()
    other.close()
    with pytest.raises(FormatError, match="other is not an event store of format 1; name another"):
        SqliteStore(tmp_path / "other")
    SqliteStore(tmp_path / "later").close()
    later = sqlite3.connect(tmp_path / "later", isolation_level=None)
    later.execute("PRAGMA user_version=9")
    later.close()
    with pytest.raises(FormatError, match="format 1 but of format 9"):
        SqliteStore(tmp_path / "later")
    with pytest.raises(StoreError, match="cannot be used"):
        SqliteStore(tmp_path)


def test_damage_is_found_and_reported(tmp_path):
    with SqliteStore(tmp_path / "events.db") as store:
        store.append([event(at=1), event(user=2, at=1)])
    raw = sqlite3.connect(tmp_path / "events.db", isolation_level=None)
    raw.execute("UPDATE events SET time=time+1 WHERE user=1")
    raw.close()
    with SqliteStore(tmp_path / "events.db") as store:
        with pytest.raises(FormatError, match="damaged"):
            store.held(1)
        assert len(store.held(2).events) == 1


OLD_SCHEMA = """
CREATE TABLE users(
    key INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, born INTEGER NOT NULL,
    count INTEGER NOT NULL, events INTEGER NOT NULL, dropped INTEGER NOT NULL,
    features TEXT NOT NULL);
CREATE TABLE events(
    user INTEGER NOT NULL, time INTEGER NOT NULL, id BLOB NOT NULL, count INTEGER NOT NULL,
    data BLOB NOT NULL, PRIMARY KEY(user, time, id)) WITHOUT ROWID;
CREATE TABLE states(
    user INTEGER NOT NULL, kind TEXT NOT NULL, fingerprint BLOB NOT NULL, count INTEGER NOT NULL,
    data BLOB NOT NULL, PRIMARY KEY(user, kind));
CREATE TABLE items(id TEXT PRIMARY KEY, change INTEGER NOT NULL, columns TEXT) WITHOUT ROWID;
CREATE INDEX items_by_change ON items(change);
CREATE TABLE totals(users INTEGER NOT NULL, events INTEGER NOT NULL, items INTEGER NOT NULL);
INSERT INTO totals VALUES (1, 50, 1);
INSERT INTO users VALUES (1, '1', 99, 50, 50, 0, '{"age": 5}');
INSERT INTO items VALUES ('7', 1, '{"title": "A"}');
PRAGMA application_id=1279872325;
PRAGMA user_version=1;
PRAGMA journal_mode=WAL;
"""


def test_a_file_of_an_earlier_version(tmp_path):
    """One without the indexes: everything is there, and questions of one event are quick."""
    path = tmp_path / "old.db"
    raw = sqlite3.connect(path)
    raw.executescript(OLD_SCHEMA)
    rows = [(1, one.time, one.id, at + 1, pack(one)) for at, one in enumerate(old_events())]
    raw.executemany("INSERT INTO events VALUES (?,?,?,?,?)", rows)
    raw.commit()
    with SqliteStore(path) as store:
        held = store.held(1)
        assert held == (Version(99, 50), {"age": 5}, old_events(), True)
        assert store.items() == (1, {7: {"title": "A"}}) and store.counts() == (1, 50)
        assert store.append(old_events()) == ["duplicate"] * 50
        assert store.held(1, Version(99, 40)).events == old_events()[40:]
        # A process of the earlier version still writes to it.
        late = event(at=7, id="late")
        raw.execute("INSERT INTO events VALUES (1, 7, ?, 51, ?)", (late.id, pack(late)))
        raw.execute("UPDATE users SET count=51, events=51")
        raw.commit()
        assert store.held(1, held.version).events == [late]
    raw.close()


def test_processes_that_make_one_file_at_once(tmp_path):
    code = (
        "import sys\nfrom limerank.serving.stores import SqliteStore\n"
        "from limerank.data.events import event_of\n"
        "sys.stdin.readline()\n"
        "with SqliteStore(sys.argv[1]) as store:\n"
        "    store.append([event_of({'user': int(sys.argv[2]), 'item': 1, 'time': 1})])\n"
    )
    for round in range(3):
        path = tmp_path / "new" / f"{round}.db"
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code, path, str(number)],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(6)
        ]
        for process in started:
            process.stdin.write("\n")
            process.stdin.flush()
        for process in started:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
        with SqliteStore(path) as store:
            assert store.counts() == (6, 6)


def test_a_foreign_database_stays_as_it_is(tmp_path):
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE t(x)")
    other.commit()
    other.close()
    before = (tmp_path / "other").read_bytes()
    with pytest.raises(FormatError, match="not an event store"):
        SqliteStore(tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == before


def test_a_deletion_that_is_not_for_good_yet_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("limerank.serving.stores.sqlite.ERASE_TRIES", 2)
    monkeypatch.setattr("limerank.serving.stores.sqlite.ERASE_WAIT", 0.01)
    path = tmp_path / "events.db"
    with SqliteStore(path) as store:
        store.append([event(user="somebody", at=1, features={"x": "secret-of-somebody"})])
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM users").fetchall()
        with pytest.raises(
            StoreError, match="write-ahead log still contains the user's bytes"
        ) as caught:
            store.delete_user("somebody")
        assert str(tmp_path) not in str(caught.value)
        assert store.version("somebody") is None
        with pytest.raises(StoreError, match="still contains the user's bytes"):
            store.delete_user("somebody")
        (problem,) = store.check()
        assert "write-ahead log" in problem
        assert store.append([event(at=1)]) == ["accepted"], "nothing else waits for it"
        reader.execute("ROLLBACK")
        reader.close()
        assert not store.delete_user("somebody") and store.check() == []
        for file in tmp_path.iterdir():
            assert b"secret-of" not in file.read_bytes(), file


def test_a_file_that_was_taken_away_is_noticed(tmp_path):
    with SqliteStore(tmp_path / "events.db") as store:
        (tmp_path / "events.db").rename(tmp_path / "moved.db")
        (problem,) = store.check()
        assert "moved, deleted or replaced" in problem and str(tmp_path) not in problem
        (tmp_path / "moved.db").rename(tmp_path / "events.db")
        assert store.check() == []


def test_one_who_goes_away_does_not_stop_the_writer(tmp_path):
    with SqliteStore(tmp_path / "events.db") as store:
        for at in range(50):
            store.appending([event(at=at)]).cancel()
        assert store.append([event(at=99)]) == ["accepted"] and store.check() == []
        assert store.counts().events == 51


def test_a_users_past_costs_nothing(tmp_path):
    """One event more is asked for, and written, without looking at the others: SQLite's own count
    of steps is that of a user with few."""
    steps = []
    for size in (20, 5000):
        with SqliteStore(tmp_path / f"{size}.db") as store:
            store.append([event(at=at, id=f"{at}") for at in range(size)])
            version = store.version(1)
            store.append([event(at=3, id="late")])
            count = [0]

            def step(count=count):
                count[0] += 1

            with store._file.reading(several=False) as connection:
                connection.set_progress_handler(step, 1)
            store._file.writer.set_progress_handler(step, 1)
            assert [one.id for one in store.held(1, version).events] == [b"late"]
            store.append([event(at=4, id="later")])
            steps.append(count[0])
    assert 0 < steps[1] < 1.5 * steps[0]


def test_the_folder_of_a_new_store_is_durable(tmp_path, monkeypatch):
    """Else a power loss takes acknowledged events, with the folder that the file lies in."""
    synced, fsync = [], os.fsync

    def record(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    SqliteStore(tmp_path / "a" / "b" / "events.db").close()
    assert synced == [str(tmp_path.resolve()), str(tmp_path.resolve() / "a")]
