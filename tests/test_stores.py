"""Event stores: the contract that every store fulfils."""

from __future__ import annotations

import copy
import json
import math
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limerank.data.events import Event
from limerank.data.exposures import pack_exposure, unpack_exposure
from limerank.data.packing import pack
from limerank.errors import DataError, FormatError, SpecError, StoreError
from limerank.serving.stores import SqliteStore, State, Version
from limerank.serving.stores.contract import MOST_STATES
from tests.stores import Location, arrived, event, exposure
from tests.valkey_server import cluster, needs_server, server

SERVED = [pytest.param(name, marks=needs_server) for name in ("valkey", "cluster")]


@pytest.fixture(scope="module", params=["sqlite", *SERVED])
def kind(request, tmp_path_factory) -> Iterator[Location]:
    folder = tmp_path_factory.mktemp("stores")
    if request.param == "sqlite":
        yield Location("sqlite", folder)
    else:
        with server() if request.param == "valkey" else cluster() as running:
            yield Location("valkey", folder, running.url)


@pytest.fixture
def location(kind):
    return kind.new()


@pytest.fixture
def store(location):
    with location.open() as opened:
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
    assert held.events == ordered and held.complete and held.features == {}
    assert store.latest(1, 2) == ordered[1:] and store.latest("1", 9) == ordered
    for k, one in enumerate(ordered):
        before = [other for other in ordered if other.time < one.time]
        assert store.latest(1, 9, before=one.time) == before, k
        assert store.latest(1, 1, before=one.time) == before[-1:], k
    assert store.latest("nobody", 3, before=5) == []
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


def test_concurrent_appends_get_their_own_outcomes(store):
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
    assert all(sorted(outcome_of)[0] == "accepted" for outcome_of in seen.values())
    assert all(outcome_of.count("accepted") == 1 for outcome_of in seen.values())
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
        assert store.named(text, 2) == found[:2]


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
    assert [one.id for one in held.events] == [b"late"] and not held.complete
    assert held.version == store.version(1) != version
    foreign = Version(version.born + 1, version.changes)
    future = Version(version.born, version.changes + 100)
    assert store.held(1, foreign).complete and store.held(1, future).complete


def test_features(store):
    store.set_features(1, {"country": "nl", "age": 3.5, "tags": ["a", None]})
    first = store.version(1)
    assert store.held(1).features == {"country": "nl", "age": 3.5, "tags": ["a", None]}
    store.append([event(at=1)])
    assert store.held(1).features["country"] == "nl"
    store.set_features(1, {})
    assert store.held(1).features == {} and store.version(1) != first
    assert store.counts() == (1, 1)


def test_a_deleted_user_stays_deleted(store):
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


def test_states_of_several_kinds(store):
    """The latest few stay; those of kinds that are not used leave."""
    store.append([event(at=1)])
    version = store.version(1)
    kinds = [f"k{at}" for at in (7, 2, 9, 4, 8, 1)]
    for kind in kinds:
        assert store.put_state(1, kind, State(b"f", version, kind.encode()))
    held = [kind for kind in kinds if store.state(1, kind) is not None]
    assert held == kinds[-MOST_STATES:] and len(held) == 4
    store.append([event(at=2)])
    assert store.put_state(1, held[0], State(b"f", store.version(1), b"new"))
    assert store.put_state(1, "last", State(b"f", store.version(1), b"new"))
    assert store.state(1, held[0]) is not None and store.state(1, held[1]) is None
    assert store.drop_states(1, {"last", held[0]}) == 2 and store.drop_states(1, {"last"}) == 1
    assert store.state(1, "last").data == b"new" and store.drop_states("nobody", set()) == 0


def test_a_bounded_number_of_events(location):
    with location.open(most=3) as store:
        assert store.append([event(at=at, id=f"{at}") for at in (30, 10, 20)]) == ["accepted"] * 3
        version = store.version(1)
        assert store.append([event(at=5, id="5")]) == ["expired"]
        assert store.version(1) == version
        assert store.append([event(at=40, id="40")]) == ["accepted"]
        assert [one.time for one in store.held(1).events] == [20, 30, 40]
        assert store.held(1, version).complete, "one was dropped: what was made of it is stale"
        assert store.append([event(at=10, id="10")]) == ["expired"], "it was dropped before"
        assert store.append([event(at=20, id="a"), event(at=20, id="1")]) == [
            "accepted",
            "expired",
        ]
        assert store.counts() == (1, 3)
    with pytest.raises(SpecError, match="most is 0 events"):
        location.open(most=0)


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


def test_exposures_come_back_in_order(store):
    shown = [
        exposure(at=30, ranking="b.2", arm="b", values=[0.5, -1.25], positions=[1, 7]),
        exposure(at=10, ranking="a.9", context={"tab": "x", "hour": 3}, teams=["a", "b"]),
        exposure(at=30, ranking="b.1", features=[{"price": 2.5}, {}]),
        exposure(user="bob", at=20, ranking="b.1"),
    ]
    assert store.show(shown) == ["accepted"] * 4 and store.show([]) == []
    ordered = [shown[1], shown[2], shown[0]]
    assert store.exposures("1", 0, 31) == ordered
    assert store.exposures(1, 10, 30) == ordered[:1] and store.exposures(1, 31, 99) == []
    assert store.exposures("bob", 0, 99) == shown[3:] and store.exposures("nobody", 0, 9) == []
    assert [store.exposure_count(user) for user in (1, "bob", "nobody")] == [3, 1, 0]
    start = dict.fromkeys(range(store.parts), 0)
    last, first = store.shown(start, 2 * store.parts)
    assert [one for _, _, one in first if one.user == 1] == shown[:2]
    for part, change, _ in first:
        start[part] = change
    assert start == last
    end, rest = store.shown(last, 9 * store.parts)
    assert all(one not in shown[:2] for _, _, one in rest)
    assert sorted(one.ranking for _, _, one in [*first, *rest]) == ["a.9", "b.1", "b.1", "b.2"]
    assert store.shown(end, 9 * store.parts) == (end, [])
    assert store.shown({}, 9) == ({}, [])


def test_an_exposure_that_is_sent_twice_counts_once(store):
    first = exposure(at=3)
    assert store.show([first, first]) == ["accepted", "duplicate"]
    assert store.showing([exposure(at=9, items=[7])]).result(30) == ["duplicate"]
    assert store.exposures(1, 0, 99) == [first] == arrived(store)


def test_exposures_change_neither_versions_nor_events(store):
    store.append([event(at=3)])
    before, counts = store.version(1), store.counts()
    store.show([exposure(at=4)])
    assert store.version(1) == before and store.counts() == counts
    store.show([exposure(user="new")])
    assert store.version("new") is not None and store.counts() == (2, 1)
    assert store.held("new").events == [] and store.held(1, before).events == []


def test_exposures_are_bounded(location):
    with location.open(most_exposures=3) as store:
        outcomes = [store.show([exposure(at=at, ranking=f"m.{at}")]) for at in (5, 1, 4, 3, 2)]
        assert outcomes == [["accepted"], ["accepted"], ["accepted"], ["accepted"], ["expired"]]
        assert [one.time for one in store.exposures(1, 0, 99)] == [3, 4, 5]
        assert sorted(one.time for one in arrived(store)) == [3, 4, 5]
        assert store.show([exposure(user=2, at=1)]) == ["accepted"], "the bound is each user's own"
    with pytest.raises(SpecError, match="most_exposures"):
        location.new().open(most_exposures=0)


def test_a_deleted_user_s_exposures_are_deleted(store):
    store.show([exposure(at=at, ranking=f"m.{at}") for at in range(5)] + [exposure(user=2)])
    assert store.delete_user("1.0") and not store.delete_user(1)
    assert store.exposures(1, 0, 99) == [] and store.exposure_count(1) == 0
    assert [one.user for one in arrived(store)] == [2]
    store.show([exposure(at=9)])
    assert [one.time for one in store.exposures(1, 0, 99)] == [9]


def test_events_of_a_time(store):
    events = [event(at=at, id=f"{at}", ranking="b.1" if at % 2 else None) for at in range(40)]
    store.append(events)
    assert store.between(1, 10, 20) == events[10:20] and store.between("nobody", 0, 9) == []
    assert store.held(1).events == events, "an event has the id of its ranking"


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"ranking": "a b"}, "letters, digits"),
        ({"ranking": 7}, "letters, digits"),
        ({"items": [5, "5"]}, "twice"),
        ({"items": []}, "expected 1 to 1,000"),
        ({"positions": [1]}, "1 positions; expected one each"),
        ({"positions": [0, 1]}, "expected 1, 2 or more"),
        ({"values": [1.0, math.nan]}, "finite"),
        ({"arm": "a b"}, "expected a name"),
        ({"teams": ["a", ""]}, "expected a name"),
    ],
)
def test_exposures_that_nobody_could_use_are_refused(wrong, what):
    with pytest.raises(DataError, match=what):
        exposure(**wrong)


def test_damaged_exposures_are_found():
    one = exposure(values=[1.0, 0.5])
    data = pack_exposure(one)
    assert unpack_exposure(data, 1, 0, "main.a") == one
    for position in range(len(data)):
        with pytest.raises(FormatError, match="damaged"):
            unpack_exposure(
                data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :], 1, 0, "main.a"
            )
    with pytest.raises(FormatError, match="damaged"):
        unpack_exposure(data, 2, 0, "main.a")


def test_items(store):
    assert store.items() == (0, {})
    assert store.put_items({1: {"title": "A", "tags": ["x"]}, "b": {"title": None}}) == 2
    assert store.put_items({2: {"title": "C"}, 1: None}) == 4
    assert store.items() == (4, {"b": {"title": None}, 2: {"title": "C"}, 1: None})
    assert store.items(3) == (4, {1: None}) and store.items(4) == (4, {})
    assert store.put_items({}) == 4


def test_each_store_has_its_own_identity(location):
    with location.open() as store:
        identity = store.identity()
        assert identity and store.identity() == identity
        with location.open() as other:  # both at once
            assert other.identity() == identity
    with pytest.raises(StoreError, match="closed"):
        store.identity()
    with location.open() as store:
        assert store.identity() == identity
    with location.new().open() as store:
        assert store.identity() != identity


def test_reopened(location):
    with location.open() as store:
        store.append([event(at=1, id="a")])
        store.put_items({1: {"title": "A"}})
        held = store.held(1)
        with location.open() as other:  # both at once
            assert other.held(1) == held
            other.append([event(at=2, id="b")])
        assert len(store.held(1).events) == 2
    with pytest.raises(StoreError, match="closed"):
        store.append([event(at=3)])
    with pytest.raises(StoreError, match="closed"):
        store.version(1)
    store.close()
    with location.open() as store:
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
    predicted = [one for some in outcomes for one in some]
    assert predicted.count("accepted") == 6 * 20 + 20 and predicted.count("duplicate") == 5 * 20
    assert store.counts() == (4, 140)


def test_what_was_accepted_since_many_versions(store):
    """Events, late ones and changes of features one after another: since each version, those that
    came after it, in their order."""
    rng = random.Random(1)
    versions, after = [], []
    for number in range(60):
        if number % 7 == 3:
            store.set_features(1, {"age": number})
        else:
            one = event(at=rng.randrange(50), id=f"{number}" if number % 2 else None, item=number)
            assert store.append([one]) == ["accepted"]
            for some in after:
                some.append(one)
        versions.append(store.version(1))
        after.append([])
    for version, some in zip(versions, after, strict=True):
        held = store.held(1, version)
        assert not held.complete and held.version == versions[-1]
        assert held.events == sorted(some, key=lambda one: (one.time, one.id))


def test_a_lower_bound_drops_what_is_too_much(location, monkeypatch):
    """When a user is next written or read, so many events at a time."""
    for module in ("sqlite_changes", "valkey_reading", "valkey"):
        monkeypatch.setattr(f"limerank.serving.stores.{module}.TRIM", 4)
    with location.open() as store:
        for user in (1, 2):
            store.append([event(user=user, at=at, id=f"{at}") for at in range(20)])
        old = store.version(1)
    with location.open(most=10) as store:
        assert [one.time for one in store.latest(1, 99)] == list(range(10, 20))
        assert len(store.held(1, old).events) == 16 and store.held(1, old).complete
        assert [one.time for one in store.held(1).events] == list(range(10, 20))
        version = store.version(1)
        assert store.held(1, version) == (version, {}, [], False), "there is nothing left to drop"
        assert store.event_count(1) == 10 and store.counts() == (2, 30)
        assert store.append([event(user=2, at=50)]) == ["accepted"]
        assert store.event_count(2) == 16, "four for the bound, one for the new one"
        for at in range(51, 54):
            store.append([event(user=2, at=at)])
        assert store.event_count(2) == 10 and store.counts() == (2, 20)
        assert [one.time for one in store.held(2).events] == [*range(14, 20), 50, 51, 52, 53]
        assert store.append([event(user=2, at=13, id="13")]) == ["expired"]


USABLE = {
    "none": None,
    "flag": True,
    "least": -(1 << 63),
    "most": (1 << 63) - 1,
    "number": 1e308,
    "text": "\u00fc\U0001f600\0",
    "list": ["a", 5, 0.5, None, False],
    "empty": [],
}
UNUSABLE = [
    (1 << 63, "beyond 64 bits"),
    (-(1 << 63) - 1, "beyond 64 bits"),
    (10**5000, "beyond 64 bits"),
    (math.nan, "not finite"),
    (-math.inf, "not finite"),
    ("a\ud800b", "surrogate"),
    ("x" * 70_000, "70,000 characters"),
    ({"a": 1}, "dict"),
    ([["a"]], "list"),
    ([1 << 64], "beyond 64 bits"),
    ([math.inf], "not finite"),
    ([{}], "dict"),
    (b"bytes", "bytes"),
    ([0] * 5000, "5,000 values"),
    (["x" * 60_000] * 9, "characters as JSON"),
]


def test_values_that_can_be_used_come_back(store):
    store.set_features(1, USABLE)
    store.put_items({5: USABLE})
    assert store.held(1).features == store.items()[1][5] == USABLE
    numbers = {"int": np.int64(7), "float": np.float32(0.5), "list": np.array([1, 2])}
    store.set_features(1, numbers)
    assert store.held(1).features == {"int": 7, "float": 0.5, "list": [1, 2]}


@pytest.mark.parametrize(("value", "what"), UNUSABLE, ids=range(len(UNUSABLE)))
def test_values_that_nobody_could_use_are_refused(store, value, what):
    with pytest.raises(DataError, match=rf"the user 1.*{what}"):
        store.set_features(1, {"age": 3, "column": value})
    with pytest.raises(DataError, match=rf"the item 'b'.*{what}"):
        store.put_items({1: {"title": "A"}, "b": {"column": value}})
    assert store.held(1) is None and store.items() == (0, {})


def test_columns_that_nobody_could_use_are_refused(store):
    for wrong in (
        {"": 1},
        {"\udc00": 1},
        {5: 1},
        {"x" * 300: 1},
        dict.fromkeys(map(str, range(2000))),
    ):
        with pytest.raises(DataError, match="column"):
            store.set_features(1, wrong)
        with pytest.raises(DataError, match="column"):
            store.put_items({1: wrong})
    with pytest.raises(DataError, match="expected a mapping"):
        store.put_items({1: [1, 2]})


def test_events_that_nobody_could_use_are_refused(store):
    good = event(at=1, id="a")
    parts = {name: getattr(good, name) for name in Event.__dataclass_fields__}
    for wrong in (
        {"user": 1 << 63},
        {"item": 1 << 64},
        {"user": "5"},
        {"item": "\ud800"},
        {"time": 1 << 60},
        {"id": b""},
        {"id": b"x" * 99},
        {"labels": {"watch": math.nan}},
        {"features": {"x": math.inf}},
        {"features": {"x": 1 << 64}},
        {"features": {"x": "\ud800"}},
    ):
        with pytest.raises(DataError):
            store.append([good, Event(**(parts | wrong))])
    assert store.counts() == (0, 0)


def test_ids_are_brought_to_their_form_by_every_method(store):
    store.append([event(user=7, at=1)])
    version = store.version("7")
    assert version is not None and store.version(7) == version
    assert store.put_state("7", "k", State(b"f", version, b"d")) and store.state("7", "k")
    assert store.event_count("7") == 1 and store.event_count(8) is None
    for ask in (store.version, store.held, store.event_count, store.delete_user):
        with pytest.raises(DataError, match="user id"):
            ask("\ud800")
    assert store.named("\ud800", 5) == [] and store.named("x" * 5000, 5) == []


OLD_VALUES = (
    '{"big": 100000000000000000000, "nan": NaN, "inf": -Infinity, "torn": "a\\ud800", '
    '"deep": {"a": [1]}, "list": [[1], 99999999999999999999, "x", NaN], "good": 5, "\\udc00": 1}'
)
SAFE_VALUES = {
    "big": "100000000000000000000",
    "nan": None,
    "inf": None,
    "torn": "a\ufffd",
    "deep": '{"a": [1]}',
    "list": ["[1]", "99999999999999999999", "x", None],
    "good": 5,
    "\ufffd": 1,
}


def overwrite(store, what, text):
    """Put a text where a store holds the values of the user 1 or of the item 1."""
    if isinstance(store, SqliteStore):
        raw = sqlite3.connect(store.path, isolation_level=None)
        change = {
            "features": "UPDATE users SET features=? WHERE id='1'",
            "item": "UPDATE items SET columns=? WHERE id='1'",
            "events": "UPDATE events SET data=?",
        }
        raw.execute(change[what], (text,))
        raw.close()
        return
    ask, (u, e) = store._server.command, store._layout.of_user(1, "ue")
    if what == "features":
        ask("HSET", u, "features", text)
    elif what == "item":
        ask("HSET", store._layout.of_all("items")[0], "1", text)
    else:
        for id in ask("HKEYS", e):
            ask("HSET", e, id, b"1|" + text)


def test_what_an_earlier_version_let_in_is_read_as_something_safe(store):
    store.append([event(at=1)])
    store.put_items({1: {"a": 1}, 2: {"b": 2}})
    overwrite(store, "features", OLD_VALUES)
    overwrite(store, "item", OLD_VALUES)
    held, (_, items) = store.held(1), store.items()
    assert held.features == items[1] == SAFE_VALUES and items[2] == {"b": 2}
    json.dumps(held.features, allow_nan=False).encode()
    store.set_features(1, held.features)
    store.put_items({1: items[1]})


def test_a_damaged_user_is_counted_and_deleted(store):
    store.append([event(at=1), event(user=2, at=1)])
    overwrite(store, "features", "[1, 2")
    with pytest.raises(FormatError, match="delete"):
        store.held(1)
    overwrite(store, "features", "{}")
    overwrite(store, "events", b"rubbish")
    with pytest.raises(FormatError, match="delete this user"):
        store.held(1)
    assert store.event_count(1) == 1 and store.delete_user(1)
    assert store.event_count(1) is None and store.held(1) is None


def test_a_damaged_item_does_not_hide_the_others(store, caplog):
    store.put_items({1: {"a": 1}, 2: {"b": 2}})
    overwrite(store, "item", "[1, 2")
    assert store.items() == (2, {2: {"b": 2}})
    assert "1 live items of the event store are damaged" in caplog.text


def test_a_reader_of_items_skips_no_change_of_others(location):
    """Each goes on from where it has read to, whatever it wrote itself."""
    with location.open() as one, location.open() as other:
        read, _ = one.items()
        other.put_items({1: {"title": "theirs"}})
        assert one.put_items({2: {"title": "ours"}, 3: None}) == 3
        read, found = one.items(read)
        assert read == 3 and found == {1: {"title": "theirs"}, 2: {"title": "ours"}, 3: None}


def test_items_part_by_part(store):
    store.put_items({number: {"n": number} for number in range(7)})
    store.put_items({2: None})
    read, found = 0, []
    while True:
        upto, some = store.items(read, limit=3)
        assert len(some) <= 3
        found += some.items()
        if not some:
            assert upto == read == 8
            break
        read = upto
    expected = [(number, {"n": number}) for number in range(7) if number != 2]
    assert found == [*expected, (2, None)]
    assert store.items(8, limit=3) == (8, {}) and store.items(0, limit=0) == (0, {})


def test_a_sound_store_has_nothing_to_look_after(store):
    store.append([event(at=1)])
    assert store.check() == []


FORK = """
import os, sys, time
from limerank.data.events import event_of
from limerank.errors import StoreError
from limerank.serving.stores import SqliteStore, ValkeyStore
kind, where, prefix = sys.argv[1:]
opened = lambda: SqliteStore(where) if kind == "sqlite" else ValkeyStore(where, prefix=prefix)
store = opened()
post = lambda user: store.append([event_of({"user": user, "item": 1, "time": 1})])
post(1)
store.version(1)
child = os.fork()
if not child:
    started = time.monotonic()
    try:
        for ask in (post, store.version, store.held):
            try:
                ask(2)
                print("works")
            except StoreError as error:
                assert "open it in this process" in str(error), error
                print("refused")
        store.close()
        store = opened()
        print(*post(3), time.monotonic() - started < 5, flush=True)
    finally:
        os._exit(0)
os.waitpid(child, 0)
print(*post(4), store.counts(), flush=True)
store.close()
"""


def test_a_store_after_a_fork(location):
    """It works or says at once what to do; the parent's and the child's own go on."""
    where = (
        str(location.folder / f"{location.number}.db")
        if location.kind == "sqlite"
        else location.url
    )
    arguments = [location.kind, where, f"{location.number}:"]
    done = subprocess.run(
        [sys.executable, "-c", FORK, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, users = ("refused", 3) if location.kind == "sqlite" else ("works", 4)
    assert done.stdout.split("\n")[:-1] == [
        *[first] * 3,
        "accepted True",
        f"accepted Counts(users={users}, events={users})",
    ]


def test_a_store_cannot_be_pickled(store):
    with pytest.raises(TypeError, match="open it in the other process"):
        copy.copy(store)


def test_messages_of_an_open_store_do_not_say_where_it_is(location, monkeypatch):
    store = location.open()
    where = str(location.folder) if location.kind == "sqlite" else location.url.partition("//")[2]
    store.close()
    with pytest.raises(StoreError, match="is closed; open it again") as caught:
        store.version(1)
    assert where not in str(caught.value) and where in caught.value.detail
    assert store.address in repr(store) and store.address in caught.value.detail


# Kills


WRITER = """
import sys
from limerank.data.events import event_of
from limerank.serving.stores import SqliteStore, ValkeyStore
kind, where, prefix, name = sys.argv[1:]
store = SqliteStore(where) if kind == "sqlite" else ValkeyStore(where, prefix=prefix)
number = 0
while True:
    some = [
        event_of({"user": k % 3, "item": k, "time": k, "id": f"{name}-{k}"})
        for k in range(number, number + 5)
    ]
    outcomes = store.append(some)
    assert set(outcomes) <= {"accepted", "duplicate"}
    number += 5
    print(number, flush=True)
"""


def started(location, name):
    where = (
        str(location.folder / f"{location.number}.db")
        if location.kind == "sqlite"
        else location.url
    )
    arguments = [location.kind, where, f"{location.number}:", name]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True
    )


def output_until_killed(process, seconds):
    """Kill a writer; returns how many of its events were acknowledged."""
    first = process.stdout.readline()
    timer = threading.Timer(seconds, process.send_signal, [signal.SIGKILL])
    timer.start()
    lines = [first, *process.stdout.readlines()]
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    timer.join()
    return max(int(line) for line in lines if line.endswith("\n"))


def test_killed_writers_lose_nothing(location):
    """Two processes at a time write to one store and are killed at random moments."""
    rng = random.Random(0)
    location.open().close()
    for round in range(2 if "cluster" in str(location.url) else 6):  # processes begin slowly
        names = [f"{round}a", f"{round}b"]
        writers = [started(location, name) for name in names]
        outcome_of = [output_until_killed(writer, rng.uniform(0, 0.08)) for writer in writers]
        with location.open() as store:
            ids = [one.id for user in range(3) for one in store.latest(user, 1 << 30)]
            assert len(ids) == len(set(ids)) == store.counts().events
            for name, count in zip(names, outcome_of, strict=True):
                mine = {id for id in ids if id.startswith(f"{name}-".encode())}
                assert {f"{name}-{k}".encode() for k in range(count)} <= mine
                assert len(mine) <= count + 5, "the last ones were being written"


def test_ids_that_an_earlier_version_stored_as_they_came(tmp_path):
    """They are joined with their one form: found, listed once and deleted."""
    location = Location("sqlite", tmp_path)
    location.open().close()
    stored = {" x ": [1, 2], "7.0": [1, 2, 3], "7": [3, 4], "fine": [5]}
    raw = sqlite3.connect(location.folder / f"{location.number}.db")
    raw.execute("DROP INDEX events_by_change")
    raw.execute("UPDATE totals SET users=4, events=8")
    for key, (user, times) in enumerate(stored.items()):
        raw.execute(
            "INSERT INTO users VALUES (?,?,5,9,?,0,?)", (key, user, len(times), '{"age": 3}')
        )
        for at in times:
            one = replace(event(user=user, at=at, id=f"{at}"), user=user, item="9.0")
            raw.execute("INSERT INTO events VALUES (?,?,?,1,?)", (key, at, one.id, pack(one)))
    raw.commit()
    raw.close()
    with location.open() as store:
        users = list(store.users())
        assert set(users) == {"x", 7, "fine"} and len(users) == 3
        assert store.counts() == (3, 7)
        for user, times in (("x", [1, 2]), (" x ", [1, 2]), ("7.0", [1, 2, 3, 4]), ("fine", [5])):
            held = store.held(user)
            assert [one.time for one in held.events] == times
            assert {one.item for one in held.events} == {9} and held.features == {"age": 3}
        assert all(store.delete_user(user) for user in (" x ", "7.0", "fine"))
        assert store.counts() == (0, 0)
