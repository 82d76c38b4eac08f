"""Histories of real servers under faults: one of them, and the checker on made-up ones, in which it
has to find every violation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from histories.__main__ import main
from histories.checking import check
from histories.nemesis import KINDS
from histories.record import Call, Fault, History, read_history
from histories.running import draw, run_history
from tests.valkey_server import needs_server

SECONDS = 4.0
"""That clients ask in the history that the tests run; `make histories` runs longer ones, which also
kill servers."""


class MadeUp:
    """A history, written request by request; each takes a second."""

    def __init__(self, **setting):
        self.history = History(0, setting, {"a": ["r1", "r2"], "b": ["r3"]})
        self.now = 0.0

    def call(self, kind, asked=None, answer=None, *, status="ok", server=0, seconds=1.0, **more):
        calls = self.history.calls
        calls.append(
            Call(
                len(calls),
                kind,
                server,
                self.now,
                self.now + seconds,
                status,
                asked or {},
                answer or {},
                **more,
            )
        )
        self.now += seconds + 0.5
        return self

    def append(self, *items, user="u", accepted=None, **more):
        accepted = len(items) if accepted is None else accepted
        answer = {"accepted": accepted, "duplicates": len(items) - accepted, "expired": 0}
        return self.call("append", {"events": [[user, item] for item in items]}, answer, **more)

    def rank(self, *seen, user="u", events=None, known=True, arm="a", run="r1", version=1,
             live=(), asked=(), values=None, **more):  # fmt: skip
        answer = {
            "known": known,
            "events": len(seen) if events is None else events,
            "arm": arm,
            "run": run,
            "version": version,
            "seen": list(seen),
            "live": dict(live),
            "values": values or {"60": 1.0},
        }
        return self.call("rank", {"user": user, "live": list(asked)}, answer, **more)

    def forget(self, user="u", known=True, **more):
        return self.call("forget", {"user": user}, {"known": known}, **more)

    def put(self, item, kind="put", **more):
        return self.call(kind, {"item": item}, {}, **more)

    def failover(self, *shards):
        self.history.faults.append(Fault("failover", "", self.now, self.now + 1, shards))
        self.now += 1.5
        return self

    @property
    def found(self):
        return check(self.history)

    @property
    def rules(self):
        return {one.rule for one in self.found.violations}


def made_up(**setting):
    return MadeUp(**setting)


# What is right


def test_a_right_history_has_no_violation():
    history = made_up().append(1, 2).rank(1, 2).append(2, 3, accepted=1).rank(1, 2, 3)
    history.forget().rank(known=False).forget(known=False).append(4).rank(4)
    history.put(1000).rank(4, live={"1000": 2.0}, asked=[1000])
    history.put(1000, "remove").rank(4, asked=[1000], version=2)
    assert not history.found.violations and history.found.compared > 20


def test_a_request_without_an_answer_may_have_any_effect():
    history = made_up().append(1).append(2, status="unknown").rank(1)
    assert not history.rules
    assert not history.rank(1, 2).rules and history.found.late == {("u", 2)}


def test_an_event_that_was_shown_stays():
    history = made_up().append(1, status="unknown").rank(1)
    assert history.rank(known=False).rules == {"event"}
    history = made_up().append(1, 2).failover().rank(1)
    assert not history.rules  # which the failover may have lost
    assert history.rank(2).rules == {"event"}
    assert not made_up().append(1).rank(1).failover().rank(known=False).rules


def test_what_overlaps_may_be_before_or_after():
    for seen in ((), (1,)):
        history = made_up().append(1, seconds=5)
        history.now = 2.0
        assert not history.rank(*seen, known=bool(seen)).rules
    for seen in ((), (1,)):
        history = made_up().append(1).forget(seconds=5)
        history.now = 3.0
        assert not history.rank(*seen, known=bool(seen)).rules


def test_an_unclear_deletion_may_have_its_effect_later():
    history = made_up().append(1).forget(status="unknown").rank(1).rank(known=False)
    assert not history.rules


# Violations


@pytest.mark.parametrize("kind", ["rank", "explain", "user"])
def test_an_acknowledged_event_that_is_absent(kind):
    history = made_up().append(1, 2)
    if kind == "rank":
        history.rank(2)
    else:
        history.call(kind, {"user": "u"}, {"seen": [2]})
    (found,) = history.found.violations
    assert found.rule == "event" and "lacks the item 1" in found.text and found.call == 1


def test_an_event_that_comes_and_goes():
    history = made_up().append(1, status="unknown").rank(1).append(1, accepted=0).rank()
    assert history.rules == {"event"}


def test_a_duplicate_that_counts_twice():
    assert made_up().append(1).rank(1, events=2).rules == {"once"}
    assert made_up().append(1).append(1).rules == {"once"}
    seen = {"seen": [1, 1]}
    assert made_up().append(1).call("explain", {"user": "u"}, seen).rules == {"once"}


def test_a_new_event_that_is_called_a_duplicate():
    assert made_up().append(1, accepted=0).rules == {"once"}
    assert made_up().append(1, 2, accepted=1).rules == {"once"}


def test_a_deleted_user_who_returns():
    assert made_up().append(1).forget().rank(1).rules == {"forgotten"}
    assert made_up().append(1).forget(known=False).rules == {"event"}
    history = made_up().append(1).forget().append(2).rank(1, 2)
    assert history.rules == {"forgotten"}
    assert not made_up().append(1).forget().append(1).rank(1).rules


def test_an_event_that_nobody_sent():
    assert made_up().append(1).rank(1, 5).rules == {"forgotten"}
    assert made_up().rank(5, user=None).rules == {"forgotten"}
    assert made_up().rank(1).append(1).rules >= {"forgotten"}


def test_a_user_who_changes_arms():
    history = made_up().append(1).rank(1).rank(1, arm="b", run="r3")
    assert history.rules == {"arm"}
    assert made_up().rank(user=None, arm="a").rank(user=None, arm="b", run="r3").rules == set()
    assert made_up().append(1).rank(1, run="r3").rules == {"arm"}


def test_an_answer_of_two_runs():
    history = made_up().append(1).rank(1).rank(1, run="r2", values={"60": 3.0})
    assert not history.rules
    assert history.rank(1, run="r2", values={"60": 1.0}).rules == {"run"}


def test_an_answer_of_two_versions_of_an_index():
    live = {"live": {"1000": 2.0}, "asked": [1000, 1001]}
    history = made_up().put(1000).put(1001).rank(user=None, version=2, **live, server=1)
    both = {**live, "live": {"1000": 2.0, "1001": 1.0}}
    assert not history.rank(user=None, version=3, **both).rules
    other = {**live, "live": {"1000": 9.0}}
    assert history.rank(user=None, version=2, **other, server=1).rules == {"version"}
    history = made_up(shared=True).put(1000).put(1001).rank(version=2, **both, known=False)
    assert history.rank(version=2, **live, known=False, server=1).rules == {"version"}


def test_a_live_item_that_is_acknowledged_and_not_ranked():
    assert made_up().put(1000).rank(known=False, asked=[1000]).rules == {"item"}
    history = made_up().put(1000).put(1000, "remove")
    assert history.rank(known=False, asked=[1000], live={"1000": 1.0}).rules == {"item"}
    # Another server may follow later, but not after the end.
    history = made_up().put(1000).rank(known=False, asked=[1000], server=1)
    assert not history.rules
    assert history.rank(known=False, asked=[1000], server=1, last=True).rules == {"item"}
    assert not made_up().rank(known=False, asked=[1001]).rules  # which nobody has put


def test_servers_that_do_not_agree_in_the_end():
    history = made_up().put(1000, status="unknown")
    history.rank(known=False, asked=[1000], last=True)
    assert not history.rules
    history.rank(known=False, asked=[1000], live={"1000": 1.0}, version=2, last=True)
    assert history.rules == {"item"}


def test_a_server_that_does_not_answer_in_the_end():
    assert made_up().rank(status="fail", last=True).rules == {"end"}
    assert not made_up().rank(status="fail").rules


def test_an_error_that_no_fault_explains():
    unclear = {"status": "unknown"}
    assert made_up().call("append", {"events": []}, {"code": 500}, **unclear).rules == {"error"}
    assert not made_up().call("append", {"events": []}, {"code": 503}, **unclear).rules


def test_an_exposure_that_is_absent_or_counts_twice():
    def shown(*rankings, forget=False):
        history = made_up().call(
            "logged", {"user": "u"}, {"ranking": "a.x", "arm": "a", "run": "r1"}
        )
        if forget:
            history.forget()
        return history.call("export", {}, {"rankings": list(rankings)}, last=True).rules

    assert not shown("a.x") and not shown(forget=True)
    assert shown() == shown("a.x", "a.x") == shown("a.x", forget=True) == {"shown"}


def test_an_export_that_breaks_a_promise():
    def exported(history, *events, beside=(), **more):
        answer = {"rankings": [], "events": [["u", one] for one in events], "beside": beside}
        return history.call("export", {}, answer, **more).rules

    assert not exported(made_up().append(1, 2).append(3, status="unknown"), 1, 2)
    assert exported(made_up().append(1, 2), 2) == {"event"}
    assert exported(made_up().append(1), 1, 1) == {"export"}
    assert exported(made_up().append(1).forget(), 1) == {"forgotten"}
    assert exported(made_up().append(1), 1, 7) == {"export"}  # 7 was never sent
    assert exported(made_up(), beside=[".export.partial"]) == {"export"}
    history = made_up().append(1).failover()
    assert not exported(history) and history.found.lost == {("u", 1)}


def test_a_command_that_ends_with_a_fault_of_its_own():
    ended = {"status": "fail", "server": -1}
    assert made_up().call("export", {}, {"exit": 1, "error": "Traceback"}, **ended).rules == {
        "error"
    }
    assert not made_up().call("export", {}, {"exit": 2, "error": "no store"}, **ended).rules


# Failovers


def test_what_a_failover_loses_is_counted():
    history = made_up().append(1, 2).forget(user="v").failover().rank(2)
    assert not history.rules and history.found.lost == {("u", 1)}
    history = made_up().append(1).forget().failover().rank(1)
    assert not history.rules and history.found.returned == {("u", 1)}
    history = made_up().put(1000).failover().rank(known=False, asked=[1000])
    assert not history.rules and history.found.items == {1000}


def test_what_is_acknowledged_after_a_failover_is_not_lost():
    assert made_up().failover().append(1).rank().rules == {"event"}
    assert made_up().append(1).failover().append(1, accepted=0).rank().rules == {"event"}
    assert made_up().failover().append(1).forget().rank(1).rules == {"forgotten"}


def test_a_failover_of_one_shard_loses_nothing_of_another():
    for shard, rules in ((0, set()), (1, {"event"})):
        history = made_up().append(1).failover(0).rank(known=False)
        history.history.shards = {"u": shard}
        assert history.rules == rules


# Files and faults


def test_a_saved_history_can_be_checked_again(tmp_path, monkeypatch, capsys):
    history = made_up().append(1).failover().rank(1).append(2).rank(1).history
    path = tmp_path / "history.jsonl"
    history.write(path)
    assert read_history(path) == history
    monkeypatch.setattr("sys.argv", ["histories", "--check", str(path)])
    assert main() == 1
    assert "event: request 3" in capsys.readouterr().out
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="has format 2, expected 1"):
        read_history(path)


def test_a_seed_gives_one_course_of_faults():
    assert draw(3, seconds=1) == draw(3, seconds=1)
    assert {draw(seed, seconds=1).servers for seed in range(20)} == {2, 3}
    for failover in ("none", "bounded"):
        assert set(draw(0, seconds=1, failover=failover).faults) <= KINDS.keys()


# A real one


@needs_server
@pytest.mark.slow
def test_a_history_of_two_servers_under_faults(tmp_path):
    faults = ("stop", "store link", "client link", "exporter link", "isolate", "stop store",
              "kill store", "clock")  # fmt: skip
    setting = replace(draw(0, seconds=SECONDS, servers=2), faults=faults)
    history = run_history(0, setting, tmp_path)
    found = check(history)
    assert not found.violations, [str(one) for one in found.violations[:5]]
    assert history.faults and found.compared > 100
    assert {call.kind for call in history.calls if call.status == "ok"} >= {
        "append",
        "export",
        "rank",
    }
