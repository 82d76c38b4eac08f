"""``serve --log``: what is acknowledged is in the log, before it is in the store."""

from __future__ import annotations

import json
import signal

import httpx2 as httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limerank.data.events import event_of
from limerank.errors import DataError, FormatError, SpecError, StoreError
from limerank.serving.kafka import EventLog, LoggedStore, parse_log
from limerank.serving.kafka.address import PASSWORD
from limerank.serving.kafka.records import Features, Forget, Item, change_of, record_of
from limerank.serving.stores import SqliteStore
from tests import test_stores
from tests.kafka_server import broker_process, brokers, messages, needs_kafka, new_topic
from tests.running import Running
from tests.running import event as posted
from tests.stores import event, exposure

pytestmark = needs_kafka


@pytest.fixture(scope="module")
def servers():
    with brokers(2) as found:
        yield found


@pytest.fixture
def topic():
    return new_topic()


def log_at(servers, topic, **options):
    return EventLog(parse_log(f"kafka://{servers}/{topic}"), **options)


# Addresses


def test_an_address_names_brokers_topic_and_settings(monkeypatch):
    found = parse_log("kafka://a:1,b,[::1]:3/shop-events?ssl.ca.location=/ca.pem&linger.ms=7")
    assert (found.servers, found.topic) == ("a:1,b:9092,[::1]:3", "shop-events")
    assert found.options == {"ssl.ca.location": "/ca.pem", "linger.ms": "7"}
    found = parse_log("kafkas://me:p%40ss@a/t?sasl.mechanism=SCRAM-SHA-512")
    assert found.options == {
        "sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "me", "sasl.password": "p@ss",
        "security.protocol": "SASL_SSL",
    }  # fmt: skip
    assert {"p@ss", "p%40ss"} <= set(found.secrets)
    assert "p%40ss" not in f"{found.shown}{found!r}" and "p@ss" not in repr(found)
    monkeypatch.setenv(PASSWORD, "from-outside")
    assert parse_log("kafka://me@a/t").options["sasl.password"] == "from-outside"


@pytest.mark.parametrize(
    "text",
    [
        "kafka:/a/t", "kafka://a", "kafka://a/", "kafka://a/t/u", "kafka:///t", "kafka://a:x/t",
        "valkey://a/t", "kafka://me:secret@/t", "kafka://a/t?acks=1", "kafka://:secret@a/t",
        "kafka://a/t?sasl.password=secret", "kafka://a/..", "kafka://a/t?linger.ms=1&linger.ms=2",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_without_its_secrets(text):
    with pytest.raises(SpecError) as found:
        parse_log(text)
    assert "secret" not in str(found.value)


def test_a_wrong_setting_is_named_without_its_value(servers):
    with pytest.raises(SpecError, match=r"no\.such\.setting") as found:
        EventLog(parse_log(f"kafka://{servers}/t?no.such.setting=secret"))
    assert "secret" not in str(found.value)


# Records

SAFE = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
TEXTS = st.text(SAFE, min_size=1, max_size=9).filter(str.strip)
IDS = st.integers(-(1 << 63), (1 << 63) - 1) | TEXTS
VALUES = IDS | st.floats(allow_nan=False, allow_infinity=False)


@given(
    IDS, IDS, st.integers(0, 1 << 45), st.dictionaries(TEXTS, VALUES, max_size=2),
    st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e30), max_size=2), st.none() | TEXTS,
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_an_event_is_the_same_after_the_log(user, item, time, features, labels, id):
    one = event_of(
        {"user": user, "item": item, "time": time, "features": features, "labels": labels,
         "ratios": labels, "id": id, "ranking": "main.a"}
    )  # fmt: skip
    record = record_of(one)
    found = change_of(record.value)
    assert found == one and list(map(type, found.features.values())) == [
        type(value) for value in one.features.values()
    ]
    assert record.key == str(one.user).encode()


@pytest.mark.parametrize(
    "change",
    [
        exposure("u", 5, "main.b", [5, "x"], values=[2.5, 1.0], positions=[2, 9], arm="a",
                 teams=["a", "b"], context={"hour": 3}, features=[{"price": 1.5}, {}]),
        exposure(1, 5),
        Features("u", {"age": 30, "tags": ["a", "b"], "x": None, "ok": True}),
        Features(1, {}),
        Forget(1),
        Item(5, {"name": "x", "price": 2.5}),
        Item("5x", None),
    ],
)  # fmt: skip
def test_other_changes_are_the_same_after_the_log(change):
    assert change_of(record_of(change).value) == change


def test_records_have_a_format_that_other_programs_can_write():
    given = b'{"v":1,"type":"event","user":"7.0","item":5,"time":"2026-11-30T00:00:00Z"}'
    found = change_of(given)
    assert found == event_of({"user": 7, "item": 5, "time": 1795996800000})
    one = event(labels={"click": 1.0}, id="x")
    assert json.loads(record_of(one).value) == {
        "v": 1, "type": "event", "user": 1, "item": 5, "time": 0, "labels": {"click": 1.0},
        "id": "x",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "not JSON"),
        (b"\xff", "not JSON"),
        (b"[1]", "JSON object"),
        (b"{}", "version"),
        (b'{"v":true,"type":"forget","user":1}', "version"),
        (b'{"v":1}', "type"),
        (b'{"v":1,"type":["event"]}', "type"),
        (b'{"v":1,"type":"forget"}', "no 'user'"),
        (b'{"v":1,"type":"event","user":1,"item":2}', "no time"),
        (b'{"v":1,"type":"event","user":1,"item":2,"time":3,"other":4}', "other"),
        (b'{"v":1,"type":"event","user":1,"item":2,"time":3,"id_hex":"x"}', "type 'event'"),
        (b'{"v":1,"type":"shown","user":1,"time":3,"ranking":"a","items":[1,1]}', "twice"),
        (b'{"v":1,"type":"shown","user":1,"time":3,"ranking":"a","items":7}', "type 'shown'"),
        (b'{"v":1,"type":"features","user":1,"features":[1]}', "mapping"),
        (b'{"v":1,"type":"item","item":1,"columns":{"a":{}}}', "dict"),
    ],
)
def test_what_is_no_record_is_a_data_error(value, what):
    with pytest.raises(DataError, match=what):
        change_of(value)


def test_a_later_version_is_not_skipped():
    with pytest.raises(FormatError, match="update"):
        change_of(b'{"v":2,"type":"event"}')


# The store behind a log

CONTRACT = [
    "test_events_come_back_in_order", "test_duplicates_change_nothing",
    "test_appending_keeps_its_promises", "test_what_was_accepted_since",
]  # fmt: skip


@pytest.mark.parametrize("name", CONTRACT)
def test_a_logged_store_fulfils_the_contract(servers, topic, tmp_path, name):
    with LoggedStore(SqliteStore(tmp_path / "e.db"), log_at(servers, topic)) as store:
        getattr(test_stores, name)(store)


def changes_of(servers, topic):
    return [change_of(one.value()) for one in messages(servers, topic)]


def test_every_change_is_in_the_log(servers, topic, tmp_path):
    one, shown = event(labels={"click": 1.0}), exposure()
    with LoggedStore(SqliteStore(tmp_path / "e.db"), log_at(servers, topic)) as store:
        assert store.append([one, one]) == ["accepted", "duplicate"]
        assert store.appending([event(2)]).result(5) == ["accepted"]
        assert store.show([shown]) == ["accepted"]
        assert store.showing([shown]).result(5) == ["duplicate"]
        store.set_features(1, {"age": 3})
        store.put_items({5: {"name": "x"}, 6: None})
        assert store.delete_user(1) and not store.delete_user(99)
        assert store.check() == []
    found = changes_of(servers, topic)
    assert [of for of in found if getattr(of, "user", None) == 1] == [
        one, one, shown, shown, Features(1, {"age": 3}), Forget(1)
    ]  # fmt: skip
    assert {Forget(99), Item(6, None)} <= {of for of in found if isinstance(of, (Forget, Item))
                                           and getattr(of, "columns", None) is None}  # fmt: skip
    assert Item(5, {"name": "x"}) in found and event(2) in found and len(found) == 10


def test_a_users_changes_are_in_one_partition_in_their_order(servers, topic, tmp_path):
    with LoggedStore(SqliteStore(tmp_path / "e.db"), log_at(servers, topic)) as store:
        promises = [
            store.appending([event(user, at, f"{at}") for user in range(9)]) for at in range(30)
        ]
        assert [one.result(9) for one in promises] == [["accepted"] * 9] * 30
    found = messages(servers, topic)
    assert len({one.partition() for one in found}) > 1
    for user in range(9):
        own = [one for one in found if one.key() == str(user).encode()]
        assert len({one.partition() for one in own}) == 1
        assert [change_of(one.value()).time for one in own] == list(range(30))


def test_what_the_store_would_refuse_is_not_in_the_log(servers, topic, tmp_path):
    with LoggedStore(SqliteStore(tmp_path / "e.db"), log_at(servers, topic)) as store:
        store.append([event()])
        with pytest.raises(DataError):
            store.set_features(1, {"x": {}})
        with pytest.raises(DataError):
            store.put_items({5: {"x": float("nan")}})
        large = [{"text": f"{k:2000}"} for k in range(1000)]
        with pytest.raises(DataError, match="1,000,000 at most"):
            store.show([exposure(items=range(1000), features=large)])
        assert store.append([event(2)]) == ["accepted"]
    assert sorted(changes_of(servers, topic), key=str) == [event(), event(2)]


def test_without_a_broker_nothing_is_acknowledged_and_rankings_go_on(tmp_path):
    with broker_process() as broker:
        log = log_at(broker.servers, new_topic(), seconds=1.0)
        with LoggedStore(SqliteStore(tmp_path / "e.db"), log) as store:
            assert store.append([event(1, 1)]) == ["accepted"]
            broker.hold()
            late, shown = store.appending([event(1, 2)]), store.showing([exposure()])
            with pytest.raises(StoreError, match="within 1 s") as found:
                late.result(5)
            assert broker.servers not in str(found.value) and broker.servers in found.value.detail
            assert [one.time for one in store.held(1).events] == [1], "readable, and not changed"
            (problem,) = store.check()
            assert "--log" in problem
            with pytest.raises(StoreError):
                shown.result(5)
            broker.release()
            assert store.append([event(1, 2)]) == ["accepted"], "sent again"
            assert store.check() == []


def test_a_server_starts_without_a_broker(tmp_path):
    log = log_at("127.0.0.1:1", "t", seconds=0.2)
    with LoggedStore(SqliteStore(tmp_path / "e.db"), log) as store:
        assert store.check() and store.held(1) is None
        with pytest.raises(StoreError):
            store.append([event()])
        assert store.store.held(1) is None


def test_the_queue_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("limerank.serving.kafka.writing.WAITING", 3)
    log = log_at("127.0.0.1:1", "t", seconds=0.2)
    with LoggedStore(SqliteStore(tmp_path / "e.db"), log) as store:
        with pytest.raises(StoreError, match="too busy"):
            store.append([event(1, at) for at in range(9)])
        assert store.held(1) is None


def test_a_client_that_failed_is_replaced(servers, topic):
    """The client library refuses everything after a fatal error."""
    log = log_at(servers, topic)
    of = log._library
    failed = log._producer

    class Failed:
        def produce(self, *given, **more):
            raise of.KafkaException(of.KafkaError(of.KafkaError._FATAL, "fenced", True))

        def __getattr__(self, name):
            return getattr(failed, name)

    log._producer = Failed()
    with pytest.raises(StoreError, match="refused a change; try again"):
        log.write([record_of(event(1, 1))])
    while log._fatal:  # the thread of the log notices it
        log._thread.join(0.01)
    log.write([record_of(event(1, 2))]).result(9)
    log.close()
    assert changes_of(servers, topic) == [event(1, 2)]


def test_a_closed_log_refuses(servers, topic):
    log = log_at(servers, topic)
    log.close()
    log.close()
    with pytest.raises(StoreError, match="closed"):
        log.write([record_of(event())])


def test_a_server_acknowledges_what_the_log_has(tmp_path):
    topic = new_topic()
    with broker_process() as broker:
        options = ["--no-keys", f"--log=kafka://me:secret-word@{broker.servers}/{topic}"]
        options[1] = options[1].replace("me:secret-word@", "") + "?client.id=secret-word"
        running = Running(tmp_path, *options, "--set", "log_seconds=1")
        client = httpx.Client(base_url=running.url, timeout=20)
        assert client.post("/v1/events", json=posted("u", 1)).json()["accepted"] == 1
        ranked = client.post("/v1/rank", json={"user": "u", "k": 3, "log": True}).json()
        assert ranked["events"] == 1, "the next ranking has the event"
        assert client.put("/v1/users/u", json={"features": {}}).status_code == 200
        broker.hold()
        refused = client.post("/v1/events", json=posted("u", 2))
        assert refused.status_code == 503 and "send it again" in refused.json()["detail"]
        assert broker.servers not in refused.text and refused.headers["retry-after"]
        assert client.post("/v1/rank", json={"user": "u", "k": 3}).json()["events"] == 1
        broker.release()
        assert client.post("/v1/events", json=posted("u", 2)).json()["accepted"] == 1
        metrics = client.get("/metrics").text
        assert 'limerank_log_changes_total{outcome="acknowledged"} 4.0' in metrics
        assert 'limerank_log_changes_total{outcome="failed"} 1.0' in metrics
        assert client.delete("/v1/users/u").json() == {"forgotten": 2}
        client.close()
        running.stop(signal.SIGTERM)
        found = [change_of(one.value()) for one in messages(broker.servers, topic)]
    ids = [one.id for one in found if isinstance(one, type(event()))]
    assert set(ids) == {b"1", b"2"} and found[-1] == Forget("u") and len(found) in (5, 6)
    assert found[1].ranking == ranked["ranking"] and found[2] == Features("u", {})
    assert "secret-word" not in (tmp_path / "log").read_text()
