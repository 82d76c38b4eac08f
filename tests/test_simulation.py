"""The simulation of servers and their store: histories that pass, and faults that it must find."""

from __future__ import annotations

import random
import secrets
from unittest import mock

import pytest

from limerank.data.events import event_of
from limerank.data.exposures import exposure_of
from limerank.index.format import Counted
from limerank.serving.arms import Arms
from limerank.serving.counting import ItemCounts
from limerank.serving.current import Current
from limerank.serving.state.syncing import EntrySync
from limerank.serving.stores import SqliteStore, ValkeyStore, valkey_scripts
from limerank.serving.stores import valkey as valkey_module
from simulation.histories import run_history, run_seed, shortest
from simulation.lua import LuaError, Table, translated
from simulation.operations import History, Operation, Setting, draw
from simulation.running import Secrets
from simulation.scheduler import Scheduler
from simulation.shrinking import shrunk
from simulation.stores import BUCKETS, Network, SimulatedValkeyStore
from simulation.truth import Truth
from simulation.valkey_server import SimulatedServer
from tests.valkey_server import needs_server, server

SLICE, PART = 160, 8
"""Seeds that the tests run, half a minute of one core, and of one test; `make simulate` runs a
hundred thousand."""


def setting(**more):
    plain = {
        "store": "sqlite",
        "mode": "streaming",
        "servers": 2,
        "shared": True,
        "most": None,
        "most_exposures": 1000,
        "arms": {"main": (0, 1.0)},
        "skew": (0, 0),
        "scorer": "auto",
        "turns": 0,
    }
    return Setting(**{**plain, **more})


def event(user=1, item=5, time=0, **more):
    return {"user": user, "item": item, "time": time, "labels": {"click": 1}, **more}


def append(*events, **more):
    return Operation("append", more.pop("at", 0), {"events": list(events), "again": True}, **more)


def rank(user=1, at=0, **values):
    return Operation("rank", at, {"user": user, "exclude_seen": False, **values})


def error_of(*operations, **more):
    return run_history(History(0, setting(**more), operations)).error


@pytest.mark.parametrize("first", range(0, SLICE, PART))
def test_histories(first):
    for seed in range(first, first + PART):
        result = run_seed(seed)
        assert not result.error, f"{draw(seed)}\n{result.error}"
        assert result.answers


def test_a_seed_gives_one_course():
    assert draw(5) == draw(5) != draw(6)
    assert run_seed(5) == run_seed(5)


# Histories that failed, and what was wrong


def test_a_request_for_a_past_time_sees_no_event_that_arrives_meanwhile():
    """The user's events were compared with the time of the request before they were read."""
    history = (
        Operation("shown", 0, {"user": 1, "ranking": "r", "items": [6, 4, 1], "time": 0}),
        Operation("rank", 1, {"user": 1, "exclude_seen": False, "time": 500}, overlaps=5),
        append(event(item=8, time=1000), at=1),
    )
    for turns in range(8):
        assert not error_of(*history, store="valkey", turns=turns)


def test_all_arms_rank_an_item_that_was_acknowledged():
    """An arm went on without the item where another server was changing its index."""
    arms = {"main": (0, 0.5), "b": (1, 0.5)}
    put = Operation("put_items", 0, {"items": {101: 1}}, overlaps=1)
    ranks = [rank(user) for user in (1, 2)]  # one in each arm
    for turns in range(3):
        history = (Operation("put_items", 0, {"items": {100: 1}}), put, Operation("follow", 1))
        assert not error_of(*history, *ranks, arms=arms, store="valkey", turns=turns)


def test_a_description_of_a_user_is_of_one_state_of_the_store():
    """Between the ids of the latest events and the events, all of them were dropped."""
    reading = Operation("user", 1, {"user": 1}, overlaps=5)
    more = [event(item=item, time=1000 + item) for item in (2, 4, 5, 8, 9)]
    for turns in range(20):
        history = (append(event(item=0)), reading, append(*more))
        assert not error_of(*history, most=5, store="valkey", turns=turns)


# Faults that are planted have to be found


def test_it_finds_an_event_that_is_acknowledged_and_not_stored():
    def nothing(self, jobs):
        for job in jobs:
            job.future.set_result(["accepted"])

    with mock.patch("limerank.serving.stores.sqlite_writer.Writer._commit", nothing):
        assert "operation" in error_of(append(event()), rank())


def test_it_finds_a_duplicate_that_counts_twice():
    of_script = valkey_scripts.APPEND
    wrong = of_script.replace("redis.call('HEXISTS', e, id) == 0", "true")
    assert wrong != of_script
    with mock.patch.object(valkey_module.scripts, "APPEND", wrong):
        assert "acknowledged as" in error_of(append(event()), append(event()), store="valkey")


def test_it_finds_a_state_that_is_not_updated():
    history = (append(event()), rank(), append(event(item=7, time=9)), rank())
    assert not error_of(*history)

    def cached(self, user, catalogue):
        return self._cache.get(user)

    with mock.patch.object(EntrySync, "entry_at_once", cached):
        assert "the ranking" in error_of(*history)


def test_it_finds_a_server_that_does_not_follow():
    put = Operation("put_items", 0, {"items": {3: 1}})
    history = (put, Operation("follow", 1), rank(at=1))
    assert not error_of(*history, shared=False)
    with mock.patch.object(Current, "follow", lambda self: None):
        assert "the ranking" in error_of(*history, shared=False)


def test_it_finds_a_user_who_changes_arms():
    history = [rank(user) for user in (1, 2, 3)]
    arms = {"main": (0, 0.5), "b": (1, 0.5)}
    assert not error_of(*history, arms=arms)

    def other(self, user, name=None):
        return self.arms["main" if (user or 0) % 2 else "b"]

    with mock.patch.object(Arms, "of", other):
        assert "was answered by" in error_of(*history, arms=arms)


def test_it_finds_a_forgotten_user():
    forget = Operation("forget", 0, {"user": 1})
    history = (append(event()), forget)
    assert not error_of(*history)
    with mock.patch.object(SqliteStore, "delete_user", lambda self, user: True):
        assert "deleted" in error_of(*history)


def shown(*items, at=0, ranking="r", time=1000):
    return Operation(
        "shown", at, {"user": 1, "ranking": ranking, "items": list(items), "time": time}
    )


def test_it_finds_an_impression_that_counts_twice():
    """In an index that two servers share: each has counted it, and one writes it."""
    tick = Operation("tick", 0, {"milliseconds": 3 * 3_600_000})
    counts = [Operation("count", number) for number in (0, 1, 0, 1)]
    history = (shown(0, 1, 2), tick, *counts, tick, *counts)
    assert not error_of(*history)

    with mock.patch.object(Counted, "__eq__", lambda self, other: True):
        assert "later impressions of the item" in error_of(*history)


def test_it_finds_an_impression_that_no_index_counts():
    """Read before its window was over, and not once more."""
    history = (shown(0, 1, 2), Operation("count", 0), Operation("count", 0))
    assert not error_of(*history)
    with mock.patch.object(ItemCounts, "_add", lambda self, exposures, outcomes: None):
        assert "has counted 0 later impressions" in error_of(*history)


def test_an_event_that_is_sent_twice_at_once_is_a_duplicate_even_where_it_is_lost():
    """Both in one step of the store, and the user has newer events already."""
    newer = [event(item=number, time=1000 * number, id=f"n{number}") for number in range(1, 6)]
    old = event(item=9, time=-1000, id="old")
    history = (
        append(*newer),
        append(old, overlaps=0),
        append(old, overlaps=0),
        append(old, event(item=8, time=9000, id="new")),
    )
    for turns in range(8):
        assert not error_of(*history, most=5, turns=turns)


def test_a_failing_history_is_shrunk():
    noise = [rank(2), Operation("user", 1, {"user": 3}), append(event(2), event(3))]
    forget = Operation("forget", 0, {"user": 1}, faults={7: "lost"}, overlaps=0)
    history = History(0, setting(most=5), (*noise, append(event()), forget, *noise))
    with mock.patch.object(SqliteStore, "delete_user", lambda self, user: True):
        found = shortest(history)
    assert [one.kind for one in found.operations] in (["append", "forget"], ["forget"])
    assert found.setting.most is None


def test_shrinking_leaves_out_what_a_failure_does_not_need():
    kinds = [Operation("rank", 0, {"user": number}) for number in range(20)]
    wanted = [kinds[3], kinds[17]]
    found = shrunk(
        History(0, setting(), tuple(kinds)),
        lambda history: all(one in history.operations for one in wanted),
    )
    assert list(found.operations) == wanted


# The simulated server


def test_scripts_beyond_the_translation_are_refused():
    for script in ("goto out", "x = 1", "local a = {b = 1}", "return string.rep('a', 2)"):
        with pytest.raises(LuaError):
            translated(script)


def test_the_language_of_scripts():
    run = translated(
        "local a, b = ARGV[1], 0\n"
        "for _, word in ipairs(ARGV) do if word ~= 'no' then b = b + tonumber(word) end end\n"
        "while b > 10 do b = b - 10 end\n"
        "local found = {a .. '|', #ARGV, b == 3 and 'three' or 'other', not a}\n"
        "for at = 3, 1, -2 do found[#found + 1] = at end\n"
        "return found\n"
    )
    found = run(Table(), Table([b"1", b"no", b"12"]), None)
    assert found.values == [b"1|", 3.0, b"three", False, 3.0, 1.0]


def calls(seed):
    """Random calls of a store: name and arguments."""
    draws = random.Random(seed)
    for _ in range(60):
        user, at = draws.randrange(3), draws.randrange(12)
        events = [
            event_of(
                {
                    "user": draws.randrange(3),
                    "item": draws.randrange(4),
                    "time": draws.randrange(9),
                    "id": draws.choice((None, f"e{draws.randrange(9)}")),
                }
            )
            for _ in range(draws.randrange(1, 5))
        ]
        shown = exposure_of(user, at, f"r{draws.randrange(5)}", [1, 2])
        yield draws.choice(
            [
                ("append", (events,)),
                ("append", (events,)),
                ("held", (user,)),
                ("held", (user, "version")),
                ("latest", (user, 3, draws.choice((None, at)))),
                ("between", (user, 2, at)),
                ("show", ([shown],)),
                ("exposures", (user, 0, at)),
                ("shown", (dict.fromkeys(range(BUCKETS), 0), 3 * BUCKETS)),
                ("set_features", (user, {"country": f"c{at}"})),
                ("delete_user", (user,)),
                ("named", ("", 9)),
                ("event_count", (user,)),
                ("counts", ()),
                ("put_items", ({at: draws.choice((None, {"a": at}))},)),
                ("items", (draws.randrange(4), draws.choice((None, 2)))),
            ]
        )


@needs_server
@pytest.mark.parametrize("most", [None, 4])
def test_the_simulated_server_answers_like_a_real_one(most, monkeypatch):
    scheduler = Scheduler(random.Random(0), 0)
    truth = Truth(lambda: scheduler.step, lambda: scheduler.now, most, 3)
    network = Network(scheduler, SimulatedServer(lambda: 0.0))
    options = {"most": most, "most_exposures": 3}
    # The answers do not depend on the disk, and a call fails that it holds up for five seconds.
    with (
        server("--appendonly", "no", "--appendfsync", "no") as running,
        ValkeyStore(running.url, durable=False, buckets=BUCKETS, **options) as real,
    ):
        simulated = SimulatedValkeyStore(truth, network, most, 3)
        before = {}
        for name, arguments in (one for seed in range(4) for one in calls(seed)):
            found = []
            for store in (real, simulated):
                given = list(arguments)
                if given[1:] == ["version"]:
                    given[1] = before.get((store, given[0]))
                monkeypatch.setattr(valkey_module, "secrets", Secrets(1))
                found.append(getattr(store, name)(*given))
                if name == "held" and found[-1] is not None:
                    before[store, given[0]] = found[-1].version
            assert found[0] == found[1], (name, arguments)
    monkeypatch.setattr(valkey_module, "secrets", secrets)
