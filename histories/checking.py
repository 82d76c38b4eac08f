"""Compares a history with what is promised.

All times are those of one clock, that of the clients. An acknowledged request had its effect
between its begin and its end. One without a clear answer may have it at any time after its begin,
or never. An answer is a violation only if no such times explain it.

The rules, by name:

- ``event``: an event that was acknowledged, or that an answer has shown, is in every ranking,
  explanation and description of its user that begins later, unless the user was deleted in between;
- ``once``: duplicates count once, in answers to clients and in rankings;
- ``forgotten``: what was deleted does not return, and nothing appears that nobody sent;
- ``arm``: a user has the same arm in all answers, and the arm serves one of its runs;
- ``run``: rankings of the same events by the same run have the same values;
- ``version``: answers of one version of an index have the same live items, with the same values;
- ``item``: an acknowledged live item is ranked by the server that acknowledged it in every later
  request; at the end all servers agree;
- ``shown``: an export contains every exposure once that was acknowledged before it began, and none
  of deleted users;
- ``export``: the same of events; beside a complete export nothing remains, of killed ones either;
- ``error``: no answer is an error that clients cannot explain by a fault (500, 409, 422), and no
  command ends with one that its user cannot mend (exit status 1);
- ``end``: when all faults are over, every server answers.

A failover to a replica may lose what was acknowledged before it: that is counted, not a violation.
What is acknowledged afterwards has to be there.
"""

from __future__ import annotations

import collections
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from histories.record import Call, Fault, History

TOLERANCE = 5e-2
"""Of values: the bytes of a user's state are cut in steps that depend on all rows of an index."""
EXPLAINED = (404, 408, 429, 503)
"""Status codes of answers that a fault explains."""
Event = tuple[str, int]
"""A user and an item: clients send at most one event of each."""


@dataclass(frozen=True)
class Violation:
    """An answer that breaks a promise: the rule, what is wrong, and the number of the request."""

    rule: str
    text: str
    call: int

    def __str__(self) -> str:
        return f"{self.rule}: request {self.call}: {self.text}"


@dataclass
class Found:
    """What a checker found.

    Attributes:
        violations: empty where all promises hold.
        compared: how many facts were compared.
        lost: acknowledged events that a failover lost.
        returned: events of deleted users that a failover brought back.
        late: events without a clear answer that were stored after all.
        items: live items whose acknowledged change a failover lost.
        exposures: acknowledged exposures that a failover lost.
    """

    violations: list[Violation] = field(default_factory=list)
    compared: int = 0
    lost: set[Event] = field(default_factory=set)
    returned: set[Event] = field(default_factory=set)
    late: set[Event] = field(default_factory=set)
    items: set[int] = field(default_factory=set)
    exposures: set[str] = field(default_factory=set)


def check(history: History) -> Found:
    """Compare all answers of a history with the rules of this module."""
    return _Checker(history).check()


@dataclass(frozen=True)
class _Span:
    """When a request may have had its effect: not before ``begin``, not after ``end``."""

    begin: float
    end: float
    status: str
    call: int


class _Checker:
    def __init__(self, history: History) -> None:
        self.history, self.found = history, Found()
        self.calls = sorted(history.calls, key=lambda one: one.begin)
        self.sent: dict[Event, list[_Span]] = defaultdict(list)
        self.forgets: dict[str, list[_Span]] = defaultdict(list)
        for call in self.calls:
            if call.status == "fail":
                continue
            span = _Span(call.begin, call.end if call.status == "ok" else math.inf, call.status,
                         call.number)  # fmt: skip
            if call.kind == "append":
                for user, item in map(tuple, call.asked["events"]):
                    self.sent[user, item].append(span)
            elif call.kind == "forget":
                self.forgets[call.asked["user"]].append(span)
        self.shown = self._shown()
        self.failovers = [one for one in history.faults if one.kind == "failover"]
        self.items_of: dict[str, list[int]] = defaultdict(list)
        for user, item in self.sent:
            self.items_of[user].append(item)

    def _shown(self) -> dict[Event, list[_Span]]:
        """When answers have shown events: they were stored at a moment of the request."""
        found: dict[Event, list[_Span]] = defaultdict(list)
        for call in self.calls:
            if call.status != "ok":
                continue
            if call.kind == "export":
                seen = [(user, item) for user, item in call.answer.get("events", ())]
            else:
                seen = [(call.asked["user"], item) for item in call.answer.get("seen", ())]
            for event in seen:
                found[event].append(_Span(call.begin, call.end, "ok", call.number))
        return found

    def check(self) -> Found:
        for call in self.calls:
            if call.status == "ok":
                getattr(self, f"_{call.kind}", lambda call: None)(call)
        self._arms()
        self._values()
        self._versions()
        self._live_items()
        self._exports()
        self._end()
        return self.found

    def _expect(self, holds: bool, rule: str, call: Call, text: str) -> None:
        self.found.compared += 1
        if not holds:
            self.found.violations.append(Violation(rule, text, call.number))

    def _failover_between(self, since: float, until: float, user: str | None = None) -> bool:
        """Whether a failover may have lost what was acknowledged after one time, before another: of
        a user, or of anybody."""
        return any(
            one.end > since and one.begin < until and self._concerns(one, user)
            for one in self.failovers
        )

    def _concerns(self, failover: Fault, user: str | None) -> bool:
        shard = self.history.shards.get(user) if user is not None else None
        return shard is None or not failover.shards or shard in failover.shards

    # Events of users

    def _deleted_after(self, user: str, since: float, until: float, besides: int = -1) -> bool:
        """Whether a deletion, ``besides`` one, may have had its effect after one time and before
        another."""
        return any(
            one.begin < until and one.end > since and one.call != besides
            for one in self.forgets[user]
        )

    def _stored(self, event: Event, begin: float, end: float, besides: int = -1) -> bool | None:
        """Whether an event was surely stored from one time to another: True, False, or None where
        only a failover can have lost it. A deletion ``besides`` is left out of account."""
        answer: bool | None = False
        for one in (*self.sent[event], *self.shown[event]):
            if one.status != "ok" or one.end > begin:
                continue
            if self._deleted_after(event[0], one.begin, end, besides):
                continue
            if not self._failover_between(one.begin, end, event[0]):
                return True
            answer = None
        return answer

    def _possible(self, event: Event, begin: float, end: float) -> bool | None:
        """Whether an event may be stored at a time between two: True, False, or None where only a
        failover can have brought it back."""
        spans = [one for one in self.sent.get(event, ()) if one.begin < end]
        answer: bool | None = False
        for one in spans:
            over = [
                deletion
                for deletion in self.forgets[event[0]]
                if deletion.status == "ok" and deletion.begin > one.end and deletion.end < begin
            ]
            if not over:
                return True
            if all(self._failover_between(one.begin, end, event[0]) for one in over):
                answer = None
        return answer

    def _history(self, call: Call, user: str, seen: Sequence[int]) -> None:
        """Compare a set of events that an answer shows."""
        shown = set(seen)
        for item in self.items_of[user]:
            event = (user, item)
            if item not in shown:
                stored = self._stored(event, call.begin, call.end)
                if stored is None:
                    self.found.lost.add(event)
                self._expect(
                    stored is not True,
                    "event",
                    call,
                    f"the {call.kind} of the user {user} at server {call.server} lacks the item "
                    f"{item}, whose event was acknowledged or shown before {call.begin:.3f} s",
                )
        for item in sorted(shown):
            event = (user, item)
            possible = self._possible(event, call.begin, call.end)
            if possible is None:
                self.found.returned.add(event)
            elif possible and not any(
                one.status == "ok" and one.begin < call.end for one in self.sent[event]
            ):
                self.found.late.add(event)
            self._expect(
                possible is not False,
                "forgotten",
                call,
                f"the {call.kind} of the user {user} at server {call.server} has an event of the "
                f"item {item}, which was "
                + ("deleted" if event in self.sent else "not sent before"),
            )

    def _rank(self, call: Call) -> None:
        user = call.asked["user"]
        seen = call.answer["seen"]
        if user is None:
            self._expect(not seen, "forgotten", call, f"a stranger has seen the items {seen}")
            return
        self._history(call, user, seen)
        self._expect(
            call.answer["events"] == len(seen),
            "once",
            call,
            f"the ranking of the user {user} counts {call.answer['events']} events of "
            f"{len(seen)} items, one each",
        )
        self._expect(
            call.answer["known"] or not seen,
            "event",
            call,
            f"the user {user} has events and is unknown",
        )

    def _explain(self, call: Call) -> None:
        seen = call.answer["seen"]
        self._history(call, call.asked["user"], seen)
        self._expect(
            len(set(seen)) == len(seen),
            "once",
            call,
            f"an explanation of the user {call.asked['user']} has an event twice: {seen}",
        )

    def _user(self, call: Call) -> None:
        self._history(call, call.asked["user"], call.answer["seen"])

    def _append(self, call: Call) -> None:
        """Outcomes: stored events are duplicates, and new ones are not."""
        events = [tuple(one) for one in call.asked["events"]]
        stored = [self._stored(one, call.begin, call.end) is True for one in events]
        fresh = [
            not any(one.begin < call.end and one.call != call.number for one in self.sent[event])
            for event in events
        ]
        duplicates, accepted = call.answer["duplicates"], call.answer["accepted"]
        text = f"{len(events)} events were acknowledged as {dict(call.answer)}"
        self._expect(duplicates + accepted == len(events), "once", call, text)
        self._expect(
            duplicates >= sum(stored),
            "once",
            call,
            f"{text}, but {sum(stored)} of them had been acknowledged before",
        )
        self._expect(
            accepted >= sum(fresh),
            "once",
            call,
            f"{text}, but {sum(fresh)} of them were sent for the first time",
        )

    def _forget(self, call: Call) -> None:
        if call.answer["known"]:
            return
        user = call.asked["user"]
        stored = [
            item
            for item in self.items_of[user]
            if self._stored((user, item), call.begin, call.end, besides=call.number) is True
        ]
        self._expect(
            not stored,
            "event",
            call,
            f"the user {user} was unknown to a deletion, but has events of {stored}",
        )

    # Arms, runs and versions

    def _ranked(self) -> Iterator[Call]:
        for call in self.calls:
            if call.status == "ok" and call.kind in ("rank", "logged"):
                yield call

    def _arms(self) -> None:
        first: dict[str, Call] = {}
        for call in self._ranked():
            arm, run = call.answer["arm"], call.answer["run"]
            self._expect(
                run in self.history.runs.get(arm, ()),
                "arm",
                call,
                f"the arm {arm} answers with the run {run}, which it was never given",
            )
            user = call.asked["user"]
            if user is None:
                continue
            of = first.setdefault(user, call)
            self._expect(
                of.answer["arm"] == arm,
                "arm",
                call,
                f"the user {user} is in the arm {arm}, and was in {of.answer['arm']} (request "
                f"{of.number})",
            )

    def _values(self) -> None:
        """The same events, read by the same run, give the same values of items."""
        first: dict[Any, Call] = {}
        for call in self._ranked():
            if "values" not in call.answer:
                continue
            key = call.answer["run"], call.asked["user"], frozenset(call.answer["seen"])
            of = first.setdefault(key, call)
            self._same(call, of, call.answer["values"], of.answer["values"], "run")

    def _versions(self) -> None:
        """One version of an index has one set of live items."""
        first: dict[Any, Call] = {}
        valued: dict[Any, Call] = {}
        shared = self.history.setting.get("shared", False)
        for call in self._ranked():
            if "live" not in call.answer:
                continue
            key = (None if shared else call.server, call.answer["run"], call.answer["version"])
            of = first.setdefault(key, call)
            asked = set(call.asked["live"]) & set(of.asked["live"])
            here, there = (
                {item for item in map(int, one.answer["live"]) if item in asked}
                for one in (call, of)
            )
            self._expect(
                here == there,
                "version",
                call,
                f"version {key[2]} of the index of the run {key[1]} at server {call.server} has "
                f"the live items {sorted(here)}, and had {sorted(there)} (request {of.number})",
            )
            if call.asked["user"] is None:
                of = valued.setdefault(key, call)
                self._same(call, of, call.answer["live"], of.answer["live"], "version")

    def _same(
        self, call: Call, of: Call, here: Mapping[str, float], there: Mapping[str, float], rule: str
    ) -> None:
        for item in here.keys() & there.keys():
            close = math.isclose(here[item], there[item], rel_tol=TOLERANCE, abs_tol=TOLERANCE)
            self._expect(
                close,
                rule,
                call,
                f"the item {item} has the value {here[item]:.4f}, and had {there[item]:.4f} in "
                f"request {of.number}, of the same run and the same events",
            )

    # Live items

    def _live_items(self) -> None:
        changes: dict[int, list[Call]] = defaultdict(list)
        for call in self.calls:
            if call.kind in ("put", "remove") and call.status != "fail":
                changes[call.asked["item"]].append(call)
        for call in self._ranked():
            if "live" not in call.answer:
                continue
            for item in call.asked["live"]:
                self._one_item(call, item, changes[item])
        # An index may keep a change that the store has lost.
        lost = {
            str(item)
            for item, of in changes.items()
            if of and self._failover_between(of[-1].begin, math.inf)
        }
        final = [call for call in self._ranked() if call.last and "live" in call.answer]
        for call in final:
            here, there = (set(one.answer["live"]) - lost for one in (call, final[0]))
            self._expect(
                here == there,
                "item",
                call,
                f"at the end server {call.server} ranks the live items {sorted(here)}, and server "
                f"{final[0].server} ranks {sorted(there)}",
            )

    def _one_item(self, call: Call, item: int, changes: Sequence[Call]) -> None:
        """Each item is changed by one client, one change after another."""
        before = [one for one in changes if one.begin < call.end]
        if not before:
            self._expect(
                str(item) not in call.answer["live"],
                "item",
                call,
                f"the item {item} is ranked and was never put",
            )
            return
        latest = before[-1]
        if any(one.status != "ok" for one in before) or latest.end > call.begin:
            return
        if latest.server != call.server and not call.last:
            return
        ranked = str(item) in call.answer["live"]
        right = ranked == (latest.kind == "put")
        if not right and self._failover_between(latest.begin, call.end):
            self.found.items.add(item)
            return
        self._expect(
            right,
            "item",
            call,
            f"the item {item} is {'' if ranked else 'not '}ranked by server {call.server}, after "
            f"request {latest.number}, a {latest.kind}, was acknowledged by server {latest.server}",
        )

    # Exports

    def _export(self, call: Call) -> None:
        """The events of an export."""
        if "events" not in call.answer:  # of a history that was saved before they were read
            return
        counts = collections.Counter((user, item) for user, item in call.answer["events"])
        for user in self.items_of:
            shown = [item for item in self.items_of[user] if counts[user, item]]
            self._history(call, user, shown)
        for event, count in counts.items():
            text = f"the export has the event of the user {event[0]} and the item {event[1]} "
            self._expect(event in self.sent, "export", call, f"{text}, which nobody sent")
            self._expect(count == 1, "export", call, f"{text} {count} times")
        beside = call.answer["beside"]
        self._expect(not beside, "export", call, f"the export is complete, and left {beside}")

    def _exports(self) -> None:
        shown = [call for call in self.calls if call.kind == "logged" and call.status == "ok"]
        for call in self.calls:
            if call.kind != "export" or call.status != "ok":
                continue
            rankings = call.answer["rankings"]
            for one in shown:
                ranking, user = one.answer["ranking"], one.asked["user"]
                if one.end > call.begin or self._deleted_after(user, one.begin, call.end):
                    continue
                count = rankings.count(ranking)
                if not count and self._failover_between(one.begin, call.end, user):
                    self.found.exposures.add(ranking)
                    continue
                self._expect(
                    count == 1,
                    "shown",
                    call,
                    f"the ranking {ranking} of the user {user}, acknowledged as shown in request "
                    f"{one.number}, is in the export {count} times",
                )
            for one in shown:
                deleted = any(
                    of.status == "ok" and of.begin > one.end and of.end < call.begin
                    for of in self.forgets[one.asked["user"]]
                )
                user = one.asked["user"]
                if deleted and not self._failover_between(one.begin, call.end, user):
                    self._expect(
                        one.answer["ranking"] not in rankings,
                        "shown",
                        call,
                        f"the ranking {one.answer['ranking']} of the deleted user "
                        f"{one.asked['user']} is in the export",
                    )

    # The end

    def _end(self) -> None:
        for call in self.calls:
            self._expect(
                call.answer.get("code", 503) in EXPLAINED,
                "error",
                call,
                f"a {call.kind} at server {call.server} was answered by {dict(call.answer)}",
            )
            self._expect(
                call.answer.get("exit", 2) == 2,
                "error",
                call,
                f"a command ended with the exit status {call.answer.get('exit')}: "
                f"{call.answer.get('error')}",
            )
            if call.last:
                self._expect(
                    call.status == "ok",
                    "end",
                    call,
                    f"server {call.server} does not answer a {call.kind} after all faults are "
                    f"over: {call.answer}",
                )
