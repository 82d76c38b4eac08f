"""Exposures: from requests to the event store.

A ranking counts as shown where a client says so: by ``log`` in its request, or by ``POST
/v1/shown`` afterwards. The answer comes when the exposure is durable.
"""

from __future__ import annotations

import secrets
import time as clock
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from limerank.data.event_log import EventForm
from limerank.data.events import Value
from limerank.data.exposures import Exposure, exposure_of
from limerank.errors import DataError, SpecError, check_names
from limerank.serving.messages import Rank, Shown
from limerank.serving.stores import EventStore
from limerank.serving.telemetry import Numbers

RANDOM_BYTES = 12
"""Of the id of a ranking: rankings of one user are few, so that no two have the same."""


def new_ranking(arm: str) -> str:
    """An id for a ranking of this arm, which :func:`arm_of` returns."""
    return f"{arm}.{secrets.token_urlsafe(RANDOM_BYTES)}"


def arm_of(ranking: str) -> str:
    """The arm in the id of a ranking; empty where another program made the id."""
    return ranking.rpartition(".")[0]


class Exposing:
    """Checks exposures and stores them. Safe to use from several threads.

    Args:
        store: the event store.
        form: returns the form of the run that is served now.
        numbers: the metrics to count in.
    """

    def __init__(self, store: EventStore, form: Callable[[], EventForm], numbers: Numbers) -> None:
        self.store, self._form, self.numbers = store, form, numbers

    def log(self, asked: Rank, answer: dict[str, Any]) -> Future[dict[str, Any]]:
        """Store an answered ranking as shown; the future has the answer.

        Raises:
            SpecError: the request has no user, or no time where the log has no clock.
            StoreError: the store is too busy.
        """
        if asked.user is None:
            raise SpecError("log stores what a user was shown: give a user, or leave log out")
        items = answer["items"]
        if not items:  # nothing was shown
            done: Future[dict[str, Any]] = Future()
            done.set_result(answer)
            return done
        features = {
            one["item"]: {name: value for name, value in one.items() if name != "item"}
            for one in asked.candidates or ()
            if isinstance(one, dict)
        }
        exposure = exposure_of(
            asked.user,
            self._time(asked.time),
            answer["ranking"],
            [one["item"] for one in items],
            arm=answer["arm"],
            values=[float(one["value"]) for one in items],
            teams=[one["team"] for one in items if "team" in one],
            context=_plain(asked.context or {}),
            features=[_plain(features.get(one["item"], {})) for one in items],
        )
        return self._stored(exposure, lambda outcome: answer)

    def show(self, given: Shown, arm: str) -> Future[dict[str, Any]]:
        """Store what a client has shown.

        Args:
            given: the client's message.
            arm: of the ranking.

        Raises:
            DataError: a position, value or time is missing or wrong.
            UnknownError: the run has no such feature.
            SpecError, StoreError: see :meth:`log`.
        """
        form, context = self._form(), _plain(given.context or {})
        items = [one if isinstance(one, dict) else {"item": one} for one in given.items]
        features = [
            _plain({name: value for name, value in one.items() if name != "item"}) for one in items
        ]
        check_names("context feature", context, form.context_features)
        for one in features:
            check_names("impression feature", one, form.impressions.features)
        exposure = exposure_of(
            given.user,
            self._time(given.time),
            given.ranking or new_ranking(arm),
            [one["item"] for one in items],
            arm=arm,
            positions=given.positions,
            values=_list(given.values),
            teams=_list(given.teams),
            context=context,
            features=features,
        )
        return self._stored(
            exposure,
            lambda outcome: {"ranking": exposure.ranking, "arm": arm, "outcome": outcome},
        )

    def _time(self, time: int | None) -> int:
        form = self._form()
        if time is not None:
            form.check_time(time)
            return time
        if not form.clock:
            raise SpecError("this log has an order and no clock: give the time of what is shown")
        return int(clock.time() * 1000)

    def _stored(
        self, exposure: Exposure, answer: Callable[[str], dict[str, Any]]
    ) -> Future[dict[str, Any]]:
        result: Future[dict[str, Any]] = Future()
        result.set_running_or_notify_cancel()  # a client that disconnects does not cancel a write

        def durable(stored: Future[Any]) -> None:
            error = stored.exception()
            if error is not None:
                result.set_exception(error)
                return
            (outcome,) = stored.result()
            self.numbers.exposures.labels(exposure.arm, str(outcome)).inc()
            result.set_result(answer(str(outcome)))

        self.store.showing([exposure]).add_done_callback(durable)
        return result


def _list(given: Sequence[Any] | None) -> Sequence[Any]:
    return () if given is None else given


def _plain(given: dict[str, Any]) -> dict[str, Value]:
    """Values of features that are known, as events have them.

    Raises:
        DataError: a value is neither text nor a number.
    """
    found: dict[str, Value] = {}
    for name, value in given.items():
        if value is None:
            continue
        if not isinstance(value, (str, int, float)):
            raise DataError(f"{name!r} is {value!r:.80}, expected a number or text")
        found[name] = int(value) if isinstance(value, bool) else value
    return found
