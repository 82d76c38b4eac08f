"""Event intake: raw events become stored events, whichever source they come from.

``POST /v1/events`` is one source. A consumer of a message queue, or a loop over the lines of a
file, is another: it hands its messages to :meth:`Intake.accept` and needs nothing else of the
server.

>>> intake = Intake.of_run("runs/mine", SqliteStore("events.db"))
>>> for batch in consumer:  # lists of JSON texts, as bytes
...     intake.accept(batch, refused=lambda position, event, error: dead_letters.put(event))
...     consumer.commit()

Each event passes the same steps:

1. **Parse.** JSON text, or a mapping, becomes an
   :class:`~limerank.serving.messages.EventMessage`, which bounds every value.
2. **Check.** The message becomes an :class:`~limerank.data.events.Event`. The run that is served
   must know its labels and event features, and its time must be plausible. Items and users need
   not be known: an unknown item is an item without features, and a new user begins.
3. **Store.** All events of a call are made durable together. Delivering an event again is safe: the
   store reports a duplicate. So a source may commit its position after :meth:`Intake.accept` has
   returned ("at least once" is enough).
4. **Count.** Durations and outcomes go to the server's metrics.

User states need no notice: each ranking asks the store for the user's version
(:class:`~limerank.serving.state.UserStates`), and merges the events that are new.
"""

from __future__ import annotations

import os
import time as clock
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, TypeVar

from pydantic import ValidationError

from limerank.data.event_log import EventForm
from limerank.data.events import Event, event_of
from limerank.errors import DataError, UnknownError
from limerank.runs.model import load_trained
from limerank.serving.messages import EventMessage
from limerank.serving.stores import EventStore, Outcome
from limerank.serving.telemetry import Numbers

T = TypeVar("T")
RawEvent = EventMessage | Mapping[str, Any] | str | bytes
"""An event as a source delivers it: a checked message, a mapping, or one JSON object as text."""
Refused = Callable[[int, RawEvent, DataError | UnknownError], None]
"""Receives the position, the raw event and the error of each event that is refused."""


class Form(Protocol):
    """What an intake checks events against."""

    def check(self, event: Event) -> None: ...


class AnyForm:
    """Of several runs: an event that one of them can read is accepted; the others ignore what they
    do not know. The error is that of the first."""

    def __init__(self, forms: Sequence[EventForm]) -> None:
        self._forms = forms

    def check(self, event: Event) -> None:
        first: DataError | UnknownError | None = None
        for form in self._forms:
            try:
                form.check(event)
                return
            except (DataError, UnknownError) as error:
                first = first or error
        if first is not None:
            raise first


class Accepted(NamedTuple):
    """The outcomes of one call, in the order of its events; None for an event that was refused."""

    outcomes: list[Outcome | None]

    def count(self, outcome: Outcome | None) -> int:
        """How many events had this outcome."""
        return self.outcomes.count(outcome)


class Intake:
    """Checks events and appends them to a store. Safe to use from several threads.

    Args:
        store: the event store.
        form: returns the :class:`~limerank.data.event_log.EventForm` of the run that is served now;
            a server that loads another run checks later events against that one.
        numbers: the metrics to count in; new ones when not given.
    """

    def __init__(
        self, store: EventStore, form: Callable[[], Form], numbers: Numbers | None = None
    ) -> None:
        self.store, self._form = store, form
        self.numbers = Numbers() if numbers is None else numbers
        self._seconds = self.numbers.stages.labels("append")
        self._counters = {outcome: self.numbers.intake.labels(outcome) for outcome in Outcome}
        self._refused = self.numbers.intake.labels("refused")

    @classmethod
    def of_run(
        cls, run: str | os.PathLike[str], store: EventStore, numbers: Numbers | None = None
    ) -> Intake:
        """An intake for a process without a server, which checks events against a run folder.

        Raises:
            FormatError: the folder is not a complete run.
        """
        trained = load_trained(run)
        form = EventForm(trained.manifest, trained.path)
        return cls(store, lambda: form, numbers)

    def event(self, raw: RawEvent) -> Event:
        """Parse and check one event, without storing it.

        Raises:
            DataError: a field is missing, unknown or out of bounds; a binary label is neither 0
                nor 1; or the time is years off the log.
            UnknownError: the run has no such label or event feature.
        """
        event = event_of(_message(raw).__dict__)
        self._form().check(event)
        return event

    def accept(self, events: Sequence[RawEvent], *, refused: Refused | None = None) -> Accepted:
        """Check and store events; returns when they are durable.

        Args:
            events: the raw events.
            refused: called for each event that cannot be used; the others are stored. When not
                given, the first such event raises, and nothing is stored.

        Raises:
            DataError, UnknownError: see :meth:`event`; the message begins with the position.
            DataError: ``events`` is a single event in place of a list.
            StoreError: the store did not acknowledge the events. Calling again is safe.
        """
        return self.submit(events, lambda accepted: accepted, refused=refused).result()

    def submit(
        self,
        events: Sequence[RawEvent],
        answer: Callable[[Accepted], T],
        *,
        refused: Refused | None = None,
    ) -> Future[T]:
        """:meth:`accept` without waiting for the disk: events that several callers submit at about
        the same time are made durable together. Events are checked before this returns.

        Args:
            events, refused: as for :meth:`accept`.
            answer: computes the result of the future from the outcomes.
        """
        if isinstance(events, (str, bytes, Mapping, EventMessage)):
            raise DataError(f"got the single event {events!r:.80}, expected a list of events")
        outcomes: list[Outcome | None] = [None] * len(events)
        checked: list[Event] = []
        positions: list[int] = []
        for position, raw in enumerate(events):
            try:
                checked.append(self.event(raw))
            except (DataError, UnknownError) as error:
                self._refused.inc()
                if refused is None:
                    raise type(error)(f"events[{position}]: {error}") from None
                refused(position, raw, error)
            else:
                positions.append(position)
        result: Future[T] = Future()
        result.set_running_or_notify_cancel()  # a client that disconnects does not cancel a write
        started = clock.perf_counter()

        def durable(stored: Future[list[Outcome]]) -> None:
            self._seconds.observe(clock.perf_counter() - started)
            error = stored.exception()
            if error is not None:
                result.set_exception(error)
                return
            found = stored.result()
            for position, outcome in zip(positions, found, strict=True):
                outcomes[position] = outcome
            for outcome, counter in self._counters.items():
                if count := found.count(outcome):
                    counter.inc(count)
            result.set_result(answer(Accepted(outcomes)))

        if not checked:
            result.set_result(answer(Accepted(outcomes)))
            return result
        self.store.appending(checked).add_done_callback(durable)
        return result


def _message(raw: RawEvent) -> EventMessage:
    """A raw event as a message; DataError names the first field that is wrong."""
    if isinstance(raw, EventMessage):
        return raw
    try:
        if isinstance(raw, (str, bytes)):
            return EventMessage.model_validate_json(raw)
        return EventMessage.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the event"
        raise DataError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
