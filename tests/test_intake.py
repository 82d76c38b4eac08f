"""Event intake without HTTP: a source of one file ends in the same store, states and metrics."""

from __future__ import annotations

import json
import shutil

import pytest

from limerank.errors import DataError, StoreError, UnknownError
from limerank.serving.engine import Serving
from limerank.serving.http.app import application
from limerank.serving.http.settings import Settings
from limerank.serving.intake import Intake
from limerank.serving.messages import Rank
from limerank.serving.stores import Outcome, SqliteStore
from tests.catalogues import ITEMS, shop

START = 1_700_000_000_000
COUNTERS = ("limerank_intake_events", "limerank_users", "limerank_events", "limerank_stage_seconds")


def event(user, item, time=START, **more):
    return {"user": user, "item": item, "time": time, "labels": {"click": 1}, **more}


LOG = [
    event(7, 3),
    event("7", 9, START + 5, labels={"click": 0, "watch": 3.5}),
    event(" 7.0 ", "11", "2023-11-14T22:13:21Z"),
    event("nobody else", 4, START + 2, id="first"),
    event("nobody else", 4, START + 2, id="first"),  # delivered twice
    event(8, 10_000, START + 1),  # the index has no such item
    event(7, 3),  # delivered twice
]


# A toy source of events: these five lines, in one file, are all that it takes.
def queue_of(lines, size=2):
    """Batches of JSON texts, as a consumer of a message queue delivers them."""
    encoded = [json.dumps(one).encode() for one in lines]
    for at in range(0, len(encoded), size):
        yield encoded[at : at + size]


def engine_of(folder):
    of = shop("lime-mha")
    folder.mkdir()
    shutil.copytree(of.index.path, folder / "index")
    return Serving(of.run.path, folder / "index", SqliteStore(folder / "events.db"))


def stored(store):
    """All that a store holds of each user, apart from its random birth number."""
    found = {}
    for user in store.users():
        of = store.held(user)
        found[user] = (of.version.changes, of.features, of.events)
    return found, store.counts()


def numbers(engine):
    """Counters and gauges about events, and how often each stage ran (not how long)."""
    engine.count()
    lines = engine.numbers.text().decode().splitlines()
    return [
        line
        for line in lines
        if line.startswith(COUNTERS) and "_bucket" not in line and "_sum" not in line
        if "_created" not in line
    ]


def test_another_source_ends_in_the_same_store_states_and_metrics(tmp_path):
    from starlette.testclient import TestClient

    posted, consumed = engine_of(tmp_path / "posted"), engine_of(tmp_path / "consumed")
    with TestClient(application(posted, Settings(open=True)), "http://localhost") as client:
        for batch in queue_of(LOG):
            body = {"events": [json.loads(one) for one in batch]}
            assert client.post("/v1/events", json=body).status_code == 200
        for batch in queue_of(LOG):
            consumed.intake.accept(batch)
        assert stored(posted.store) == stored(consumed.store)
        assert numbers(posted) == numbers(consumed)
        for user in (7, "nobody else", 8, "unknown"):
            ask = Rank(user=user, k=ITEMS, time=START + 10_000)
            of_posts, of_queue = posted.rank(ask), consumed.rank(ask)
            assert of_posts["items"] == of_queue["items"]
            assert of_posts["events"] == of_queue["events"]
    consumed.close()


def test_outcomes_follow_the_order_of_the_events(tmp_path):
    with SqliteStore(tmp_path / "events.db", most=3) as store:
        intake = Intake.of_run(shop("lime-mha").run.path, store)
        outcomes = intake.accept([json.dumps(one) for one in LOG]).outcomes
        accepted, duplicate = Outcome.ACCEPTED, Outcome.DUPLICATE
        assert outcomes == [*[accepted] * 4, duplicate, accepted, duplicate]
        old = intake.accept([event(7, 12, START - 1), event(7, 12, START + 9000)])
        assert old.outcomes == [Outcome.EXPIRED, accepted]
        assert (old.count(accepted), old.count(None)) == (1, 0)
        assert intake.accept([]).outcomes == []


WRONG = [
    ("{", DataError, "Invalid JSON"),
    (b"\xff\xfe", DataError, "the event: "),
    ("[1]", DataError, "the event: "),
    (event(7, ""), DataError, "item: "),
    ({"user": 7, "item": 3}, DataError, "time: Field required"),
    (event(7, 3, kind="view"), DataError, "kind: Extra inputs"),
    (event(7, 3, labels={"klick": 1}), UnknownError, "did you mean 'click'"),
    (event(7, 3, labels={"click": 2}), DataError, "expected 0 or 1"),
    (event(7, 3, START // 1000), DataError, "given in seconds"),
]


@pytest.mark.parametrize(("raw", "kind", "text"), WRONG)
def test_an_event_that_cannot_be_used_refuses_its_batch(tmp_path, raw, kind, text):
    with SqliteStore(tmp_path / "events.db") as store:
        intake = Intake.of_run(shop("lime-mha").run.path, store)
        with pytest.raises(kind, match=r"^events\[1\]: ") as error:
            intake.accept([event(7, 3), raw])
        assert text in str(error.value)
        assert store.counts() == (0, 0)


@pytest.mark.parametrize("single", [event(7, 3), json.dumps(event(7, 3)), b"{}"])
def test_a_single_event_is_not_taken_for_a_list(tmp_path, single):
    with SqliteStore(tmp_path / "events.db") as store:
        intake = Intake.of_run(shop("lime-mha").run.path, store)
        with pytest.raises(DataError, match=r"got the single event .*, expected a list of events"):
            intake.accept(single)
        assert store.counts() == (0, 0)


def test_a_consumer_may_set_such_events_aside(tmp_path):
    aside = []
    with SqliteStore(tmp_path / "events.db") as store:
        intake = Intake.of_run(shop("lime-mha").run.path, store)
        batch = [event(7, 3), *(raw for raw, _, _ in WRONG), event(8, 3)]
        done = intake.accept(batch, refused=lambda *given: aside.append(given))
        assert [position for position, _, _ in aside] == list(range(1, 1 + len(WRONG)))
        assert [raw for _, raw, _ in aside] == [raw for raw, _, _ in WRONG]
        assert (done.count(Outcome.ACCEPTED), done.count(None)) == (2, len(WRONG))
        assert store.counts() == (2, 2)
        assert intake.accept(["{"], refused=lambda *given: None).outcomes == [None]
        refused = 'limerank_intake_events_total{outcome="refused"} 10.0'
        assert refused in intake.numbers.text().decode()


def test_a_store_that_fails_acknowledges_nothing(tmp_path):
    store = SqliteStore(tmp_path / "events.db")
    intake = Intake.of_run(shop("lime-mha").run.path, store)
    store.close()
    with pytest.raises(StoreError):
        intake.accept([event(7, 3)])
