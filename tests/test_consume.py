"""``limerank consume``: the log into a store and into Parquet, at least once, which counts once."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import sys
from urllib.request import urlopen

import polars as pl
import pytest

from limerank.cli.app import command_of
from limerank.data.attribution import WINDOW
from limerank.data.canonical import LARGEST_TIME
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.events import Event
from limerank.data.exposures import Exposure
from limerank.data.prepare import prepare
from limerank.data.spec import Spec
from limerank.errors import DataError, FormatError, SpecError, StoreError
from limerank.parts import Part
from limerank.serving.export import export
from limerank.serving.kafka import parse_log
from limerank.serving.kafka.applying import Applier
from limerank.serving.kafka.client import library
from limerank.serving.kafka.consuming import BEGINNING, Consuming, Metrics, consume
from limerank.serving.kafka.dead import DeadLetters
from limerank.serving.kafka.reading import Logged, LogReader
from limerank.serving.kafka.records import Features, Forget, Item, Record, change_of, record_of
from limerank.serving.kafka.slicing import LATE, Slicer, ends_of
from limerank.serving.stores import SqliteStore
from tests.kafka_server import brokers, messages, needs_kafka, new_topic
from tests.stores import event, exposure

pytestmark = needs_kafka
HOUR = 3_600_000
START = 472_222 * HOUR
"""Milliseconds since 1970, at the begin of an hour."""


@pytest.fixture(scope="module")
def servers():
    with brokers() as found:
        yield found


class Topic:
    """A topic, and what reads it."""

    def __init__(self, servers):
        self.servers, self.name = servers, new_topic()
        self.address = parse_log(f"kafka://{servers}/{self.name}")

    def write(self, *changes, at=None):
        """Write changes, or records; ``at``: the time in the log of each."""
        producer = library().Producer({"bootstrap.servers": self.servers})
        for position, change in enumerate(changes):
            one = change if isinstance(change, Record) else record_of(change)
            when = {} if at is None else {"timestamp": at[position]}
            producer.produce(self.name, key=one.key, value=one.value, **when)
        assert producer.flush(10) == 0

    def reader(self, **options):
        return LogReader(self.address, **options)

    def apply(self, store, folder, steps=None, count=1000, **options):
        """Apply the log up to its end, or some batches; returns the applier, which is closed."""
        with self.reader() as reader:
            dead = DeadLetters(folder / "dead.jsonl", options.pop("most_dead", 9))
            applier = Applier(reader, store, dead, **options)
            while applier.behind() and steps != 0:
                moved = applier.step(5.0, count)
                steps = None if steps is None or not moved else steps - 1
            return applier


@pytest.fixture
def topic(servers):
    return Topic(servers)


@pytest.fixture
def store(tmp_path):
    with SqliteStore(tmp_path / "consumed.db") as opened:
        yield opened


def content(store):
    """What a store has, except its versions."""
    users = {}
    for user in store.users():
        held = store.held(user)
        shown = store.exposures(user, 1 - LARGEST_TIME, LARGEST_TIME)
        users[user] = held.events, held.features, shown
    return users, store.items()[1]


def versions(store):
    return {user: store.version(user) for user in store.users()}, store.items()[0]


def random_changes(seed, count=80, users=4):
    """Changes of all kinds: events that are sent twice, deleted users who return."""
    draw, found = random.Random(seed), []
    for at in range(count):
        user = draw.choice([*range(users), "u"])
        kind = draw.choice("eeeeeessfdi")
        time = START + at * 1000
        if kind == "e":
            found.append(event(user, time, f"e{at}" if at % 2 else None, draw.randrange(9),
                               labels={"click": 1.0}))  # fmt: skip
            if draw.random() < 0.3:
                found.append(found[-1])
        elif kind == "s":
            found.append(exposure(user, time, f"main.{at}", draw.sample(range(9), 3)))
        elif kind == "f":
            found.append(Features(user, {"age": at}))
        elif kind == "d" and draw.random() < 0.6:
            found.append(Forget(user))
        else:
            item = draw.randrange(4)
            found.append(Item(item, {"name": f"{at}"} if draw.random() < 0.7 else None))
    return found


def put_all(store, changes):
    """Changes as a server makes them; events and exposures that follow each other together."""
    for kind, several in itertools.groupby(changes, type):
        if kind is Event:
            store.append(list(several))
        elif kind is Exposure:
            store.show(list(several))
        else:
            for one in several:
                put(store, one)


def put(store, change):
    """A change as a server makes it."""
    if isinstance(change, Event):
        store.append([change])
    elif isinstance(change, Features):
        store.set_features(change.user, change.features)
    elif isinstance(change, Forget):
        store.delete_user(change.user)
    elif isinstance(change, Item):
        store.put_items({change.item: change.columns})
    else:
        store.show([change])


# A store


@pytest.mark.parametrize("seed", range(2))
def test_what_goes_through_the_log_is_what_goes_to_the_store(topic, store, tmp_path, seed):
    changes = random_changes(seed)
    assert {type(one) for one in changes} >= {Event, Forget, Features, Item}
    with SqliteStore(tmp_path / "direct.db") as direct:
        put_all(direct, changes)
        topic.write(*changes)
        applier = topic.apply(store, tmp_path, count=17)
        assert content(store) == content(direct)
        assert applier.applied.records == len(changes) and applier.applied.skipped > 0

        # A replay changes nothing, also no version: states in servers' memory stay valid.
        before = versions(store)
        again = topic.apply(store, tmp_path, count=9, since=lambda partition: 0).applied
        assert again.records == len(changes) and again.accepted == again.forgotten == 0
        assert content(store) == content(direct) and versions(store) == before
        assert topic.apply(store, tmp_path).applied.records == 0, "positions are stored"


def test_a_kill_between_the_store_and_the_position_doubles_and_loses_nothing(
    topic, store, tmp_path, monkeypatch
):
    changes = random_changes(7, count=60)
    topic.write(*changes)
    with SqliteStore(tmp_path / "direct.db") as direct:
        put_all(direct, changes)
        expected = content(direct)
    draw = random.Random(1)
    committed = LogReader.commit

    def commit(self, positions, note):
        if draw.random() < 0.7:
            raise StoreError("killed")
        committed(self, positions, note)

    monkeypatch.setattr(LogReader, "commit", commit)
    kills = 0
    while True:
        try:
            topic.apply(store, tmp_path, count=16)
            break
        except StoreError:
            kills += 1
    assert kills > 2 and content(store) == expected


def test_a_deleted_user_does_not_return_for_a_moment(topic, store, tmp_path, monkeypatch):
    one, other = event(1, START, "old"), event(1, START + 1, "new")
    topic.write(one, exposure(1, START), Features(1, {"age": 1}), Forget(1), other)
    seen = []
    for name in ("append", "show", "set_features"):
        method = getattr(store, name)
        monkeypatch.setattr(
            store, name, lambda *given, method=method: seen.append(given) or method(*given)
        )
    topic.apply(store, tmp_path, count=1)
    assert seen == [([other],)] and content(store)[0] == {1: ([other], {}, [])}


def test_a_store_that_servers_write_to_is_not_disturbed(topic, store, tmp_path, monkeypatch):
    """The log is applied late: the user was deleted and has returned, features have changed."""
    changes = [
        event(1, START, "old"), Features(1, {"age": 1}), Forget(1), event(1, START + 1, "new"),
        Features(1, {"age": 2}), exposure(1, START + 2), Item(5, {"name": "a"}),
        Item(5, {"name": "b"}),
    ]  # fmt: skip
    for one in changes:
        put(store, one)
    topic.write(*changes)
    before, had = versions(store), content(store)
    monkeypatch.setattr(store, "delete_user", None)
    monkeypatch.setattr(store, "set_features", None)
    monkeypatch.setattr(store, "put_items", None)
    topic.apply(store, tmp_path, count=2)
    assert (versions(store), content(store)) == (before, had)


def test_a_deletion_that_the_store_lost_is_made_again(topic, store, tmp_path):
    later = [event(1, START + 1, "new"), exposure(1, START + 2, "main.new")]
    store.append([event(1, START, "old"), later[0]])
    store.show([exposure(1, START), later[1]])
    store.set_features(1, {"age": 1})
    topic.write(event(1, START, "old"), exposure(1, START), Forget(1), *later)
    applier = topic.apply(store, tmp_path)
    assert content(store)[0] == {1: ([later[0]], {}, [later[1]])}
    assert applier.applied.forgotten == 1


class Promoted(SqliteStore):
    """A store whose replica was promoted, or that is another one, as its identity shows."""

    text = "store.1"

    def identity(self):
        return self.text


def test_what_a_promotion_lost_is_applied_again(topic, tmp_path):
    events = [event(1, START + at, f"{at}") for at in range(40)]
    at = [START + 60_000 * position for position in range(40)]
    topic.write(*events, at=at)
    with Promoted(tmp_path / "a.db") as before:
        topic.apply(before, tmp_path)
        assert len(before.held(1).events) == 40
    with Promoted(tmp_path / "b.db") as after:  # lacks the last five, and the first
        after.append(events[1:35])
        assert topic.apply(after, tmp_path).applied.records == 0, "the same identity"
        after.text = "store.2"
        applied = topic.apply(after, tmp_path, rewind=600.0).applied
        assert (applied.records, applied.accepted) == (11, 5), "ten minutes"
        assert after.held(1).events == events[1:]
        assert topic.apply(after, tmp_path).applied.records == 0
        # While it runs:
        with topic.reader() as reader:
            applier = Applier(reader, after, DeadLetters(tmp_path / "d"), rewind=120.0)
            after.text = "store.3"
            applier.check_store()
            assert applier.step(5.0) == 3 and applier.applied.duplicates == 3
        # Another store begins at the beginning.
        after.text = "other.1"
        assert topic.apply(after, tmp_path).applied.records == 40
        assert after.held(1).events == events


def test_parts_of_the_partitions_are_all_of_them(topic, store, tmp_path):
    topic.write(*[event(user, START, f"{user}") for user in range(40)])
    parts = [topic.apply(store, tmp_path, part=Part(k, 2)) for k in (1, 2)]
    taken = [set(one.positions) for one in parts]
    assert not taken[0] & taken[1] and taken[0] | taken[1] == {0, 1, 2, 3}
    assert sum(one.applied.accepted for one in parts) == 40 == store.counts().users
    with pytest.raises(SpecError, match="at most 4 parts"):
        topic.apply(store, tmp_path, part=Part(5, 5))


def test_what_cannot_be_read_is_skipped_and_counted(topic, store, tmp_path):
    good = event(1, START, "good")
    topic.write(Record(b"1", b"not json"), good, Record(b"1", b'{"v":1,"type":"event"}'))
    applier = topic.apply(store, tmp_path)
    assert content(store)[0] == {1: ([good], {}, [])} and applier.applied.dead == 2
    lines = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert [one["offset"] for one in lines] == [0, 2] and lines[0]["value"] == "bm90IGpzb24="
    assert "type" not in lines[0] and "no user" in lines[1]["error"]

    # A replay notes nothing twice, and a line that was cut off does no harm.
    with open(tmp_path / "dead.jsonl", "a") as file:
        file.write('{"part')
    assert topic.apply(store, tmp_path, since=lambda partition: 0).applied.dead == 0
    topic.write(Record(b"1", b"[]"))
    with pytest.raises(DataError, match=r"2 records of the event log cannot be read.*dead\.jsonl"):
        topic.apply(store, tmp_path, most_dead=2)


def test_a_full_disk_names_the_file_of_dead_letters(tmp_path, files_of_at_most):
    record = Logged(0, 5, 0, b"1", b"not json")
    dead = DeadLetters(tmp_path / "dead.jsonl")
    with (
        pytest.raises(FormatError, match=r"dead.jsonl cannot be written: .*; free space there"),
        files_of_at_most(10),
    ):
        dead.put(record, DataError("not JSON"))
    assert dead.count == 0, "it is written when it is read again"
    dead.put(record, DataError("not JSON"))
    assert DeadLetters(tmp_path / "dead.jsonl").count == 1


def test_a_record_of_a_later_version_stops(topic, store, tmp_path):
    topic.write(event(1, START), Record(b"1", b'{"v":2,"type":"event"}'))
    with pytest.raises(FormatError, match="update"):
        topic.apply(store, tmp_path)
    assert content(store)[0] == {}, "nothing of the batch, whose position is not stored"


def test_a_topic_that_was_created_again_is_read_from_its_beginning(topic, store, tmp_path):
    topic.write(event(1, START))
    with topic.reader() as reader:
        (partition,) = [one for one in reader.partitions() if reader.ends(one)[1]]
        reader.commit({partition: 7}, store.identity())
    assert topic.apply(store, tmp_path).applied.accepted == 1


def test_a_search_by_time(topic):
    draw = random.Random(3)
    times = sorted(START + draw.randrange(50) for _ in range(30))
    topic.write(*[event(1, START, f"{at}") for at in range(30)], at=times)
    (partition,) = {one.partition() for one in messages(topic.servers, topic.name)}
    with topic.reader() as reader:
        assert reader.ends(partition) == (0, 30)
        for time in draw.sample(range(START - 2, START + 52), 12):
            expected = sum(one < time for one in times)
            assert reader.first_at(partition, time, 0, 30) == expected
        assert reader.first_at(partition, START + 99, 7, 20) == 20


# Parquet

LIKE = {
    "name": "shop",
    "events": [{"files": ["x.csv"], "time": "t", "time_unit": "ms", "request": "r"}],
    "labels": [{"name": "click", "kind": "binary"}, {"name": "watch", "kind": "duration"}],
    "event_features": [{"name": "tab", "kind": "categorical"}],
}
COLUMNS = ["user_id", "item_id", "time", "source", "position", "click", "watch", "tab", "outcomes"]


def like():
    return Spec.model_validate(LIKE)


def shop_log(seed=0, hours=4, users=3):
    """Exposures and events of some hours, in the order of their time, most of them joined."""
    draw, found = random.Random(seed), []
    for user in range(users):
        for k in range(5 * hours):
            at = START + draw.randrange(hours * HOUR)
            shown = exposure(user, at, f"main.{user}-{k}", draw.sample(range(9), 3))
            found.append((at, shown))
            for _ in range(draw.randrange(3)):
                after = at + draw.randrange(2 * HOUR)
                named = {"ranking": shown.ranking} if draw.random() < 0.5 else {}
                one = event(user, after, f"{user}-{len(found)}", draw.choice(shown.items),
                            labels={"click": 1.0, "watch": 2.5}, features={"tab": "x"},
                            **named)  # fmt: skip
                found.append((after, one))
    found.sort(key=lambda one: one[0])
    return [one for _, one in found], [at for at, _ in found]


def rows(paths):
    frames = [pl.read_parquet(path).select(COLUMNS) for path in paths]
    return sorted((row for frame in frames for row in frame.rows()), key=str)


def sliced(topic, out, tmp_path, now=None, **options):
    with topic.reader() as reader:
        slicer = Slicer(reader, out, like(), DeadLetters(tmp_path / "dead"), **options)
        while slicer.step(now):
            pass
        return slicer


def test_parts_have_the_rows_of_an_export(topic, store, tmp_path):
    changes, times = shop_log()
    put_all(store, changes)
    twice = [*changes, *changes[-3:]]
    topic.write(*twice, at=[*times, *times[-3:]])
    slicer = sliced(topic, tmp_path / "out", tmp_path)
    described = tmp_path / "out" / "log.toml"
    export(store, tmp_path / "log.parquet", until=START + 99 * HOUR, like=described)
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    assert len(parts) == slicer.written > 6
    expected = rows([tmp_path / "log.parquet"])
    assert rows(parts) == expected and slicer.rows == len(expected)
    clicked = [row for row in expected if row[3] == "shown" and row[5] == 1.0]
    assert len(clicked) > 20 and any(row[3] == "event" for row in expected)
    with topic.reader() as reader:
        assert ends_of(tmp_path / "out") == {
            one: reader.ends(one)[1] for one in reader.partitions() if reader.ends(one)[1]
        }
    assert sliced(topic, tmp_path / "out", tmp_path).written == 0, "a folder knows what it has"

    # And prepare reads them.
    prepare(load_spec(described), tmp_path / "data", quiet=True)
    counts = Dataset(tmp_path / "data").manifest["counts"]
    shown = sum(row[3] == "shown" for row in expected)
    assert sum(counts["impressions"].values()) == shown > 100


def test_a_part_appears_when_its_outcomes_are_known(topic, tmp_path):
    shown = exposure(1, START + HOUR // 2, "main.a", (5, 6))
    late = event(1, START + HOUR + HOUR // 4, "late", 5, labels={"click": 1.0})
    topic.write(shown, late, at=[shown.time, late.time])
    known = (START + HOUR) / 1000 + WINDOW + LATE
    assert sliced(topic, tmp_path / "out", tmp_path, known - 1).written == 0
    assert sliced(topic, tmp_path / "out", tmp_path, known).written == 1
    (part,) = (tmp_path / "out").glob("*.parquet")
    assert part.name.endswith("-000000000000000-000000000000001.parquet")
    assert pl.read_parquet(part)["click"].to_list() == [1.0, 0.0]
    assert sliced(topic, tmp_path / "out", tmp_path).rows == 0, "the event is an outcome, no row"


def test_a_kill_leaves_no_part_or_the_part(topic, tmp_path, monkeypatch):
    changes, times = shop_log(1, hours=2, users=2)
    topic.write(*changes, at=times)
    complete = sliced(topic, tmp_path / "complete", tmp_path)
    draw = random.Random(2)
    writing = Slicer._rows

    def killed(self, *given):
        for row in writing(self, *given):
            if draw.random() < 0.08:
                raise StoreError("killed")
            yield row

    monkeypatch.setattr(Slicer, "_rows", killed)
    kills = 0
    while True:
        try:
            sliced(topic, tmp_path / "out", tmp_path)
            break
        except StoreError:
            kills += 1
    names = [sorted(path.name for path in (tmp_path / one).glob("*.parquet"))
             for one in ("complete", "out")]  # fmt: skip
    assert kills and names[0] == names[1] and len(names[0]) == complete.written
    for name in names[0]:
        assert (tmp_path / "complete" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_deleted_users_are_in_no_later_part(topic, tmp_path):
    changes = [event(1, START, "a"), event(2, START, "b"), Forget(1), event(1, START + 1, "c")]
    topic.write(*changes, at=[START, START, START + 9 * HOUR, START + 9 * HOUR])
    sliced(topic, tmp_path / "out", tmp_path)
    found = rows(sorted((tmp_path / "out").glob("*.parquet")))
    assert [row[:3] for row in found] == [("1", "5", START + 1), ("2", "5", START)]


def test_a_folder_of_another_topic_is_refused(topic, tmp_path):
    topic.write(event(1, START))
    (partition,) = {one.partition() for one in messages(topic.servers, topic.name)}
    out = tmp_path / "out"
    out.mkdir()
    (out / f"part-{partition:05d}-{0:015d}-{5:015d}.parquet").touch()
    with pytest.raises(FormatError, match="created again"):
        sliced(topic, out, tmp_path)


def test_parts_that_overlap_are_refused(topic, tmp_path):
    topic.write(event(1, START))
    out = tmp_path / "out"
    out.mkdir()
    for since, until in ((0, 5), (4, 9)):
        (out / f"part-00000-{since:015d}-{until:015d}.parquet").touch()
    with pytest.raises(FormatError, match="begins at offset 4"):
        sliced(topic, out, tmp_path)


# The command


def test_consume_needs_a_target():
    address = parse_log("kafka://a/t")
    with pytest.raises(SpecError, match="--store"):
        consume(Consuming(address))
    with pytest.raises(SpecError, match="--like"):
        consume(Consuming(address, out="x"))


def test_brokers_that_do_not_answer_end_the_command_after_some_patience(tmp_path):
    given = Consuming(
        parse_log("kafka://127.0.0.1:1/t"), store=str(tmp_path / "e.db"), patience=0.5, seconds=0.2,
        dead=tmp_path / "dead",
    )  # fmt: skip
    with pytest.raises(StoreError, match="event log cannot be read"):
        consume(given)


def test_a_consumer_that_is_killed_goes_on(topic, tmp_path):
    changes = random_changes(11, count=200)
    topic.write(*changes)
    command = [sys.executable, "-m", "limerank", "consume", topic.address.shown, "--store", "e.db",
               "--quiet"]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path)
    while process.poll() is None:
        path = tmp_path / "e.db"
        if path.exists():
            with SqliteStore(path) as store:
                if store.counts().events:
                    break
    process.send_signal(signal.SIGKILL)
    process.wait()
    with SqliteStore(tmp_path / "direct.db") as direct, SqliteStore(tmp_path / "e.db") as store:
        put_all(direct, changes)
        done = consume(
            Consuming(topic.address, store=str(tmp_path / "e.db"), dead=tmp_path / "dead"),
            until_end=True,
        )
        assert content(store) == content(direct) and done.dead == 0
        again = consume(
            Consuming(
                topic.address, store=str(tmp_path / "e.db"), dead=tmp_path / "dead",
                since=BEGINNING,
            ),
            until_end=True,
        )  # fmt: skip
        assert again.applied.records == len(changes) and again.applied.accepted == 0


def test_a_consumer_has_metrics(topic, tmp_path):
    topic.write(event(1, START, "a"), event(1, START, "a"), Record(b"1", b"{}"))
    metrics = Metrics(0)
    try:
        given = Consuming(
            topic.address, store=str(tmp_path / "e.db"), out=tmp_path / "out", like=like(),
            dead=tmp_path / "dead",
        )  # fmt: skip
        done = consume(given, until_end=True, metrics=metrics)
        with urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=9) as answer:
            lines = set(answer.read().decode().splitlines())
    finally:
        metrics.close()
    assert lines >= {
        'limerank_consumed_records_total{outcome="accepted"} 1.0',
        'limerank_consumed_records_total{outcome="duplicates"} 1.0',
        'limerank_consumed_records_total{outcome="dead"} 1.0',
        "limerank_consume_up 1.0",
    }
    assert any(one.startswith('limerank_consume_behind{target="store"}') for one in lines)
    assert (done.dead, done.applied.records) == (1, 3)


def test_the_help_teaches():
    text = command_of("consume").help
    assert "deleted users do not return" in " ".join(text.split())


def test_a_record_can_be_read_by_every_reader(topic):
    topic.write(event(1, START))
    (one,) = messages(topic.servers, topic.name)
    assert change_of(one.value()) == event(1, START)
