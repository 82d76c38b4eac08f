"""Background tasks of a server, each in a separate thread that runs until the server stops.

- *follow*: use an index that another process changed, and live items that another server stored;
- *watch*: load another run or index when what is watched names it
  (:mod:`limerank.serving.watched`);
- *verify*: compare the files of a loaded index with their checksums;
- *store*: report problems of the event store's settings;
- *tally*: count what followed the rankings that were shown;
- *count*: count impressions of items, and refresh the counters of the indexes.

An attempt that raises is logged with its trace and counted
(``limerank_background_failures_total``). The next attempt follows after a growing pause of at most
:data:`LONGEST` seconds.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limerank.data.exposures import MAIN
from limerank.errors import FingerprintError, LimerankError
from limerank.serving.engine import Serving
from limerank.serving.messages import ArmBody
from limerank.serving.watched import LocalWatch, Watched, look_at

log = logging.getLogger("limerank.serving")
LOOK_SECONDS = 2.0
"""Seconds between two attempts."""
LONGEST = 30.0
"""Seconds between two attempts after several failures, at most."""
REMOTE_SECONDS = 10.0
"""Seconds between two looks at what is watched on a storage."""


class Background:
    """The background threads of an engine.

    Args:
        engine: the engine.
        watch: what is watched, or the path of a folder or a file; when it changes, the run and the
            index, or the arms, that it names are loaded. What it names now is taken for what is
            served.
        seconds: seconds between two attempts.
        remote: seconds between two looks at what is watched on a storage.
        loaded: what is served, as a look at what is watched saw it, in place of what it names now.
        wave: seconds within which servers load a change of what they watch.
        name: of this server; it decides, with the change, when in the wave it does so.
    """

    def __init__(
        self,
        engine: Serving,
        watch: Watched | Path | None = None,
        *,
        seconds: float = LOOK_SECONDS,
        remote: float = REMOTE_SECONDS,
        loaded: Any = ...,
        wave: float = 0.0,
        name: str = "",
    ) -> None:
        self._engine, self._seconds = engine, seconds
        self._watch = LocalWatch(watch) if isinstance(watch, Path) else watch
        self._wave, self._name = wave, name
        self._seen: Any = None
        self._due = 0.0
        self._stop = threading.Event()
        self._loaded = self._form() if loaded is ... else loaded
        self._arms = isinstance(self._loaded, dict) and "arms" in self._loaded
        tasks: dict[str, tuple[Callable[[], None], Callable[[], Any], float]] = {
            "follow": (self._follow, _nothing, seconds),
            "verify": (engine.verify, _nothing, seconds),
            "store": (engine.check_store, _nothing, seconds),
            "tally": (engine.tally, _nothing, seconds),
            "count": (lambda: engine.arms.count_again(engine.counts), _nothing, seconds),
        }
        if self._watch is not None and self._watch.remote:
            tasks["watch"] = (self._load, _nothing, remote)  # no look between two attempts
        elif self._watch is not None:
            tasks["watch"] = (self._load, self._form, seconds)
        self._threads = [
            threading.Thread(
                target=self._repeat, args=(name, *of), name=f"limerank {name}", daemon=True
            )
            for name, of in tasks.items()
        ]

    def start(self) -> None:
        """Start all threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask the threads to end, without waiting; they are daemons."""
        self._stop.set()

    def _repeat(
        self, name: str, once: Callable[[], None], form: Callable[[], Any], seconds: float
    ) -> None:
        """Repeat a task; after a failure, run it as soon as the result of ``form`` changes."""
        numbers, wait = self._engine.numbers, seconds
        tried: tuple[Any] | None = None
        while not self._pause(wait, form, tried):
            tried = (form(),)
            try:
                once()
            except BaseException as error:
                numbers.failures.labels(name).inc()
                numbers.failing.labels(name).set(1)
                wait = min(2 * wait, max(LONGEST, seconds))
                text = error.detail if isinstance(error, LimerankError) else repr(error)
                log.error(
                    "the task %s failed and is tried again in %g s; the served model stays: %s",
                    name,
                    wait,
                    text,
                    exc_info=error,
                )
                error.__traceback__ = None  # its frames refer to loaded data
            else:
                numbers.failing.labels(name).set(0)
                wait, tried = seconds, None

    def _pause(self, seconds: float, form: Callable[[], Any], tried: tuple[Any] | None) -> bool:
        """Pause, after a failure until the result of ``form`` changes; returns whether to end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stop.wait(min(left, self._seconds)):
                return True
            if tried is not None and form() != tried[0]:
                break
        return self._stop.is_set()

    def _follow(self) -> None:
        """:meth:`Serving.follow`. An index of another run in the folder of the one that is served
        is no failure where it is watched: both stay as they are until it is loaded."""
        try:
            self._engine.follow()
        except FingerprintError:
            if self._watch is None or self._watch.remote or self._form() == self._loaded:
                raise

    # Watching

    def _form(self) -> Any:
        """What is watched now, for comparison. Raises nothing."""
        return look_at(self._watch)

    def _load(self) -> None:
        assert self._watch is not None
        change = self._watch.look()
        if change and change != self._loaded:
            if change != self._seen:
                self._seen = change
                self._due = time.monotonic() + delay_of(self._name, change, self._wave)
            if time.monotonic() < self._due:
                return
            found = self._watch.paths()
            if "arms" in found:
                arms = {name: ArmBody.model_validate(of) for name, of in found["arms"].items()}
                self._engine.reload(None, None, arms=arms)
            elif self._arms:  # a rollout has ended
                one = ArmBody(share=1.0, run=found.get("run"), index=found.get("index"))
                self._engine.reload(None, None, arms={MAIN: one})
            else:
                self._engine.reload(found.get("run"), found.get("index"))
            self._loaded, self._arms = change, "arms" in found
            self._watch.served()


def _nothing() -> None:
    """No form: after a failure, a task pauses for the full time."""


def delay_of(name: str, change: Any, wave: float) -> float:
    """Seconds after which a server loads a change: the same for the same server and change, and
    spread evenly from 0 to ``wave`` over servers."""
    text = json.dumps([name, change], sort_keys=True, default=str)
    return wave * zlib.crc32(text.encode()) / (1 << 32)
