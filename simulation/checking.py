"""Compares answers with the plain model.

Operations overlap, so an answer may show any form that a user or the catalogue had between the
beginning and the end of its request, but one form throughout: its events, its arm, its index and
its scores have to fit together.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from limerank.data.counters import HOUR
from limerank.data.exposures import Exposure
from limerank.index import Index
from limerank.serving.feed import Feed
from limerank.serving.messages import EventMessage, Rank
from limerank.serving.reading import Tally, read
from limerank.serving.stores import EventStore, Id
from simulation.operations import DAY, USERS, Operation, Setting
from simulation.scheduler import Scheduler
from simulation.truth import Catalogue, Past, Truth, UserForm, arm_of_user
from simulation.world import ITEMS, LENGTH, LIVE, OF_MODE, Content, Expected, Oracle, columns_of

Shares = Mapping[str, tuple[int, float]]
"""Arm -> number of its run, and its share."""
SALT = "s"
TOLERANCES = {"model": 1e-3, "auto": 5e-2}
"""Of values by scorer: float32 sums in another order; and the bytes of a user's state, whose step
depends on all rows of an index, those of replaced items included."""


class MismatchError(Exception):
    """An answer is not what it must be."""


class Span:
    """An operation that goes on, or its time."""

    def __init__(self, operation: Operation, first: int) -> None:
        self.operation, self.first = operation, first
        self.last: int | None = None


class Checks:
    """The checks of one history.

    Args:
        setting: what it runs on.
        scheduler: the clock.
        truth: the plain model.
        oracle: what rankings must contain.

    Attributes:
        failures: name of an operation, and what it raised.
        answers: how many were compared.
    """

    def __init__(
        self, setting: Setting, scheduler: Scheduler, truth: Truth, oracle: Oracle
    ) -> None:
        self.setting, self.scheduler, self.truth, self.oracle = setting, scheduler, truth, oracle
        self.failures: list[tuple[str, Exception]] = []
        self.answers = 0
        self.spans: list[Span] = []
        self._arms = [Past[list[Shares]]([setting.arms]) for _ in range(setting.servers)]
        self._changing = [0] * setting.servers
        self._floors: dict[tuple[int, str, str], Past[int]] = {}
        self._versions: dict[tuple[int, str, str], list[tuple[int, int]]] = {}

    # What goes on

    @contextlib.contextmanager
    def going_on(self, operation: Operation) -> Iterator[None]:
        """An operation runs."""
        span = Span(operation, self.scheduler.step)
        self.spans.append(span)
        try:
            yield
        finally:
            span.last = self.scheduler.step

    def alone(self, operation: Operation, first: int) -> bool:
        """Whether no other operation went on since a step."""
        return all(
            span.operation is operation or (span.last is not None and span.last < first)
            for span in self.spans
        )

    def started(self, server: int, arms: Shares) -> None:
        """A server has started with these arms."""
        self._arms[server].change(self.scheduler.step, [arms])
        self._changing[server] = 0

    def ended(self, server: int) -> None:
        """A server's process has ended; what its index contains stays."""
        for key, versions in self._versions.items():
            if key[0] == server:
                versions.clear()

    @contextlib.contextmanager
    def configuring(self, server: int, change: Callable[[Shares], Shares]) -> Iterator[None]:
        """A server changes its arms: from now on either is right, and afterwards the new ones. If
        it raises, the old ones stay."""
        past, before = self._arms[server], self._arms[server].now
        after = [change(arms) for arms in before]
        self._changing[server] += 1
        past.change(self.scheduler.step, before + [one for one in after if one not in before])
        alone, done = self._changing[server] == 1, False
        try:
            yield
            done = True
        finally:
            self._changing[server] = max(self._changing[server] - 1, 0)
            if alone and not self._changing[server]:
                past.change(self.scheduler.step, after if done else before)

    def _expect(self, holds: bool, text: str) -> None:
        self.answers += 1
        if not holds:
            raise MismatchError(text)

    def _forms(self, user: Id | None, first: int) -> list[UserForm | None]:
        if user is None:
            return [None]
        return [form for _, form in self.truth.user(user).between(first, self.scheduler.step)]

    # Events and users

    def appended(
        self, answer: Mapping[str, int], messages: Sequence[EventMessage], first: int
    ) -> None:
        """Events were acknowledged."""
        what = [(one.user, one.item, one.time) for one in messages]
        made = [
            outcomes
            for step, events, outcomes in self.truth.appended
            if step >= first and [(one.user, one.item, one.time) for one in events] == what
        ]
        found = (answer["duplicates"], answer["accepted"], answer["expired"])
        expected = [
            tuple(outcomes.count(of) for of in ("duplicate", "accepted", "expired"))
            for outcomes in made
        ]
        # Of events that are stored together, either may be the one that a full user loses; and one
        # that is sent twice is a duplicate of the first even where that one is lost.
        together = any(
            sum(found) == sum(of) and of[0] <= found[0] <= of[0] + of[2] for of in expected
        )
        self._expect(
            found in expected or together,
            f"events were acknowledged as {answer}; the store made {made}",
        )

    def unknown(self, user: Id, first: int) -> None:
        """Nothing is stored of a user."""
        forms = self._forms(user, first)
        self._expect(None in forms, f"the user {user} is unknown to the answer; forms: {forms}")

    def forgotten(self, user: Id, first: int) -> None:
        """A user was deleted."""
        steps = self.truth.user(user).between(first, self.scheduler.step)
        deleted = any(form is None and step >= first for step, form in steps)
        self._expect(deleted, f"the answer is that the user {user} was deleted, but: {steps}")

    def described(self, user: Id, answer: Mapping[str, Any] | None, first: int) -> None:
        """A user was described; each part may be of another moment of the request."""
        forms = self._forms(user, first)
        if answer is None:
            self.unknown(user, first)
            return
        known = [form for form in forms if form is not None]
        for name, expected in (
            ("events", [len(form.events) for form in known]),
            ("exposures", [len(form.exposures) for form in known] + [0] * (None in forms)),
            ("features", [dict(form.features) for form in known]),
        ):
            self._expect(
                answer[name] in expected,
                f"{name} of the user {user} are {answer[name]}, expected one of {expected}",
            )
        history = [(one["item"], one["time"]) for one in answer["history"]]
        histories = [
            [(event.item, event.time) for event in form.events[-LENGTH:]] for form in known
        ] + [[]] * (None in forms)
        self._expect(
            history in histories,
            f"the history of the user {user} is {history}, expected one of {histories}",
        )

    def explained(self, user: Id, answer: Mapping[str, Any], first: int) -> None:
        """Items were explained by the user's latest events."""
        forms = [form.events if form is not None else () for form in self._forms(user, first)]
        histories = [{(one.item, one.time) for one in form[-LENGTH:]} for form in forms]
        for item in answer["items"]:
            found = {(one["item"], one["time"]) for one in item["events"]}
            self._expect(
                any(found <= history for history in histories),
                f"{item['item']} is explained by {found}, expected some of one of {histories}",
            )

    def shown(self, answer: Mapping[str, Any], user: Id, ranking: str, first: int) -> None:
        """An exposure was acknowledged."""
        outcomes = [
            outcome
            for step, exposures, made in self.truth.shown
            for one, outcome in zip(exposures, made, strict=True)
            if step >= first and (one.user, one.ranking) == (user, ranking)
        ]
        self._expect(
            answer["outcome"] in outcomes,
            f"an exposure was acknowledged as {answer}; the store made {outcomes}",
        )

    # Items

    def put(self, server: int, variants: Mapping[Id, int | None], answer: Any, first: int) -> None:
        """Live items were changed at a server: all of its arms rank them from now on."""
        now = self.scheduler.step
        made = [
            step
            for step, form in self.truth.catalogue.between(first, now)
            if step >= first and variants.items() <= form.items()
        ]
        self._expect(bool(made), f"items {dict(variants)} were acknowledged and not stored")
        for arms in self._arms[server].now:
            for arm, (run, _) in arms.items():
                self._raise_floor(server, arm, self._name(run), made[0] + 1)

    def followed(self, operation: Operation, first: int) -> None:
        """A server has followed the store. Alone, it has all live items afterwards."""
        if not self.alone(operation, first):
            return
        for arms in self._arms[operation.server].now:
            for arm, (run, _) in arms.items():
                self._raise_floor(operation.server, arm, self._name(run), first)

    def _name(self, run: int) -> str:
        return OF_MODE[self.setting.mode][run]

    def _floor(self, server: int, arm: str, name: str) -> Past[int]:
        return self._floors.setdefault((server, arm, name), Past(0))

    def _raise_floor(self, server: int, arm: str, name: str, floor: int) -> None:
        past = self._floor(server, arm, name)
        if floor > past.now:
            past.change(self.scheduler.step, floor)

    # Rankings

    def ranked(self, server: int, asked: Rank, answer: Mapping[str, Any], first: int) -> None:
        """A ranking was answered."""
        last = self.scheduler.step
        name, arm = self.oracle.world.names[answer["run"]], answer["arm"]
        self._of_arm(server, asked, arm, name, first)
        self._of_version(server, arm, name, answer["index_version"], first)
        values = [one["value"] for one in answer["items"]]
        self._expect(values == sorted(values, reverse=True), f"values are not sorted: {values}")
        if asked.log and answer["items"]:
            self._logged(asked, answer, first)
        forms = self._forms(asked.user, first)
        floor = self._floor(server, arm, name).between(first, first)[0][1]
        catalogues = self.truth.catalogue.between(floor, last)
        times = [asked.time] if asked.time is not None else [
            time + self.setting.skew[server] for time in self.scheduler.times_between(first, last)
        ]  # fmt: skip
        tried: list[str] = []
        fitting = [
            step
            for step, catalogue in catalogues
            if any(
                self._fits(name, form, content, time, asked, answer, tried)
                for form in forms
                for content in self._contents(catalogue, form, step)
                for time in times
            )
        ]
        found = {one["item"]: one["value"] for one in answer["items"]}
        self._expect(
            bool(fitting),
            f"the ranking {asked.model_dump(exclude_defaults=True)} by {arm} ({name}) is known "
            f"{answer['known']}, events {answer['events']}, {found}; expected one of:\n"
            + "\n".join(tried),
        )
        self._raise_floor(server, arm, name, max(fitting[0], 0) + 1 if fitting[0] > 0 else 0)

    def _of_arm(self, server: int, asked: Rank, arm: str, name: str, first: int) -> None:
        possible = []
        for _, configurations in self._arms[server].between(first, self.scheduler.step):
            for arms in configurations:
                shares = {one: share for one, (_, share) in arms.items()}
                chosen = (
                    max(sorted(shares), key=lambda one: shares[one])
                    if asked.user is None
                    else arm_of_user(shares, asked.user, SALT)
                )
                possible.append((chosen, self._name(arms[chosen][0])))
        self._expect(
            (arm, name) in possible,
            f"the user {asked.user} was answered by {arm} ({name}), expected one of {possible}",
        )

    def _of_version(self, server: int, arm: str, name: str, version: int, first: int) -> None:
        versions = self._versions.setdefault((server, arm, name), [])
        before = max((other for step, other in versions if step < first), default=0)
        self._expect(version >= before, f"index version {version} after version {before}")
        versions.append((self.scheduler.step, version))

    def _logged(self, asked: Rank, answer: Mapping[str, Any], first: int) -> None:
        what = (asked.user, answer["ranking"], answer["arm"])
        items = tuple(one["item"] for one in answer["items"])
        stored: list[Exposure] = [
            one for step, of, _ in self.truth.shown if step >= first for one in of
        ]
        self._expect(
            any((one.user, one.ranking, one.arm) == what and one.items == items for one in stored),
            f"the logged ranking {what} was not stored",
        )

    def _contents(
        self, catalogue: Catalogue, form: UserForm | None, step: int
    ) -> Iterator[Content]:
        """What an index may hold in this form of the catalogue. A removed item is read in histories
        as the index had it last, and one index may have had variants that another skipped."""
        items = set() if form is None else {event.item for event in form.events}
        options: list[list[tuple[Id, int, bool] | None]] = []
        for id, variant in sorted(catalogue.items(), key=lambda one: str(one[0])):
            if variant is not None:
                options.append([(id, variant, False)])
                continue
            of_log = isinstance(id, int) and id < ITEMS
            one: list[tuple[Id, int, bool] | None] = [(id, 0, True) if of_log else None]
            if id in items:
                forms = [of.get(id) for at, of in self.truth.catalogue.forms if at <= step]
                earlier = {held for held in forms if held is not None}
                one += [(id, held, True) for held in sorted(earlier)]
            options.append(one)
        for chosen in itertools.product(*options):
            yield tuple(one for one in chosen if one is not None)

    def _fits(
        self,
        name: str,
        form: UserForm | None,
        content: Content,
        time: int,
        asked: Rank,
        answer: Mapping[str, Any],
        tried: list[str],
    ) -> bool:
        events = () if form is None else form.events
        if asked.time is not None:
            events = tuple(event for event in events if event.time < time)
        expected = self.oracle.expected(
            name,
            self.setting.mode,
            self.setting.scorer,
            content,
            events,
            {} if form is None else form.features,
            time,
            asked.exclude_seen,
        )
        tried.append(f"  known {form is not None}, {expected}, of index {content} at {time}")
        return (
            answer["known"] == (form is not None)
            and answer["events"] == expected.events
            and self._same(answer["items"], expected)
        )

    def _same(self, items: Sequence[Mapping[str, Any]], expected: Expected) -> bool:
        found = {one["item"]: one["value"] for one in items}
        if found.keys() != expected.values.keys():
            return False
        wanted = [expected.values[item] for item in found]
        tolerance = TOLERANCES[self.setting.scorer]
        return bool(np.allclose(list(found.values()), wanted, rtol=tolerance, atol=tolerance))

    # The end

    def counters(self, name: str, index: Index) -> None:
        """What the counters of an index count, when all windows are over: each exposure once.

        Those that left the store before they were counted (a full user lost them, or the user was
        deleted), and those that were stored long after they were shown, may be missing. Items of
        the log alone are compared: a live item has counts from the moment on that an index has it.
        """
        counted = index.counted
        if counted is None:
            return
        built = self.oracle.world.opened_index(name)
        assert built.counted is not None
        held = {
            (one.user, one.ranking)
            for past in self.truth.users.values()
            for one in (() if past.now is None else past.now.exposures)
        }
        later = [
            (stored, one) for stored, one in self.truth.exposures if one.time > built.counted.after
        ]
        at_least = Counter(
            item
            for stored, one in later
            if stored - one.time <= HOUR and (one.user, one.ranking) in held
            for item in one.items
        )
        at_most = Counter(item for _, one in later for item in one.items)
        items = [id for id in range(ITEMS) if id not in LIVE]
        before, now = (self._counted(of, items) for of in (built, index))
        for id in items:
            shown, positive = (now[id][k] - before[id][k] for k in range(2))
            self._expect(
                at_least[id] <= shown <= at_most[id] and 0 <= positive <= shown,
                f"the index of {name} has counted {shown} later impressions of the item {id}, "
                f"{positive} of them positive; expected {at_least[id]} to {at_most[id]}",
            )

    def _counted(self, index: Index, items: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Impressions of items, and those that were positive."""
        of = index.hourly(index.ids.find(items))
        return {
            id: (int(of.shown[of.rows == at].sum()), int(of.positive[of.rows == at].sum()))
            for at, id in enumerate(items)
        }

    def _tallied(self, store: EventStore) -> None:
        """What a tally and a reading of all exposures count, of each arm: requests and users."""
        users: dict[str, list[Id]] = {}
        for user, past in self.truth.users.items():
            for one in () if past.now is None else past.now.exposures:
                users.setdefault(one.arm, []).append(user)
        expected = {arm: (len(of), len(set(of))) for arm, of in users.items()}
        later = self.scheduler.now + 30 * DAY
        tally = Tally(Feed(store))
        while tally.advance(later):
            pass
        for reading in (tally.reading, read(store, until=later)):
            found = {arm: (sums.requests, sums.users) for arm, sums in reading.arms.items()}
            self._expect(found == expected, f"arms are counted as {found}, expected {expected}")

    def store(self, store: EventStore) -> None:
        """All that is stored, when nothing goes on."""
        for user in USERS:
            form, held = self.truth.user(user).now, store.held(user)
            self._expect(
                (form is None) == (held is None),
                f"the store has of the user {user} {held}, expected {form}",
            )
            if form is None or held is None:
                continue
            self._expect(
                tuple(held.events) == form.events and held.features == dict(form.features),
                f"the store has of the user {user} {held}, expected {form}",
            )
            exposures = tuple(store.exposures(user, -(1 << 53), 1 << 53))
            self._expect(
                exposures == form.exposures,
                f"the store has the exposures {exposures}, expected {form.exposures}",
            )
        self._tallied(store)
        counts = store.counts()
        forms = [past.now for past in self.truth.users.values() if past.now is not None]
        expected = (len(forms), sum(len(form.events) for form in forms))
        self._expect(tuple(counts) == expected, f"the store counts {counts}, expected {expected}")
        live = {
            id: None if variant is None else columns_of(id, variant)
            for id, variant in self.truth.catalogue.now.items()
        }
        _, items = store.items()
        self._expect(items == live, f"the store has the items {items}, expected {live}")
