"""Background tasks of a server, each in a separate thread that runs until the server stops.

- *follow*: use an index that another process changed, and live items that another server stored;
- *watch*: load another run or index when a watched file or link names it;
- *verify*: compare the files of a loaded index with their checksums;
- *store*: report problems of the event store's settings;
- *tally*: count what followed the rankings that were shown.

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

from pydantic import ValidationError

from limerank.data.exposures import ARMS_FILE, MAIN
from limerank.errors import LimerankError, SpecError
from limerank.files import require_file
from limerank.serving.answers import spec_of
from limerank.serving.arms import ArmSpec
from limerank.serving.engine import Serving
from limerank.serving.messages import ArmBody, Reload

log = logging.getLogger("limerank.serving")
LOOK_SECONDS = 2.0
"""Seconds between two attempts."""
LONGEST = 30.0
"""Seconds between two attempts after several failures, at most."""
WATCHED_BYTES = 64 << 10
"""Bytes of a watched file, at most."""


class Background:
    """The background threads of an engine.

    Args:
        engine: the engine.
        watch: a folder with the links ``run`` and ``index``, or with a file ``arms.json``; or a
            JSON file ``{"run": PATH, "index": PATH}``, or one with arms as ``POST
            /v1/admin/reload`` takes them; when it changes, they are loaded.
        seconds: seconds between two attempts.
        wave: seconds within which servers load a change of what they watch.
        name: of this server; it decides, with the change, when in the wave it does so.
    """

    def __init__(
        self,
        engine: Serving,
        watch: Path | None = None,
        *,
        seconds: float = LOOK_SECONDS,
        wave: float = 0.0,
        name: str = "",
    ) -> None:
        self._engine, self._watch, self._seconds = engine, watch, seconds
        self._wave, self._name = wave, name
        self._seen: Any = None
        self._due = 0.0
        self._stop = threading.Event()
        self._loaded = self._form()
        tasks: dict[str, tuple[Callable[[], None], Callable[[], Any]]] = {
            "follow": (engine.follow, lambda: None),
            "verify": (engine.verify, lambda: None),
            "store": (engine.check_store, lambda: None),
            "tally": (engine.tally, lambda: None),
        }
        if watch is not None:
            tasks["watch"] = (self._load, self._form)
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

    def _repeat(self, name: str, once: Callable[[], None], form: Callable[[], Any]) -> None:
        """Repeat a task; after a failure, run it as soon as the result of ``form`` changes."""
        numbers, wait = self._engine.numbers, self._seconds
        tried: tuple[Any] | None = None
        while not self._pause(wait, form, tried):
            tried = (form(),)
            try:
                once()
            except BaseException as error:
                numbers.failures.labels(name).inc()
                numbers.failing.labels(name).set(1)
                wait = min(2 * wait, max(LONGEST, self._seconds))
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
                wait, tried = self._seconds, None

    def _pause(self, seconds: float, form: Callable[[], Any], tried: tuple[Any] | None) -> bool:
        """Pause, after a failure until the result of ``form`` changes; returns whether to end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stop.wait(min(left, self._seconds)):
                return True
            if tried is not None and form() != tried[0]:
                break
        return self._stop.is_set()

    # Watching

    def _form(self) -> Any:
        """The watched paths, or the error of reading them, for comparison. Raises nothing."""
        try:
            return wanted(self._watch)
        except BaseException as error:  # noqa: BLE001  (_load raises it again)
            return repr(error)

    def _load(self) -> None:
        found = wanted(self._watch)
        if found and found != self._loaded:
            if found != self._seen:
                self._seen = found
                self._due = time.monotonic() + delay_of(self._name, found, self._wave)
            if time.monotonic() < self._due:
                return
            if "arms" in found:
                arms = {name: ArmBody.model_validate(of) for name, of in found["arms"].items()}
                self._engine.reload(None, None, arms=arms)
            elif isinstance(self._loaded, dict) and "arms" in self._loaded:  # a rollout has ended
                one = ArmBody(share=1.0, run=found.get("run"), index=found.get("index"))
                self._engine.reload(None, None, arms={MAIN: one})
            else:
                self._engine.reload(found.get("run"), found.get("index"))
            self._loaded = found


def delay_of(name: str, change: Any, wave: float) -> float:
    """Seconds after which a server loads a change: the same for the same server and change, and
    spread evenly from 0 to ``wave`` over servers."""
    text = json.dumps([name, change], sort_keys=True, default=str)
    return wave * zlib.crc32(text.encode()) / (1 << 32)


def arms_at_start(watch: Path | None) -> tuple[ArmSpec, ...]:
    """The arms that a watched folder names, for a server that starts during a rollout; none where
    it names a run and an index.

    Raises:
        See :func:`wanted`.
    """
    if watch is None or not watch.is_dir():
        return ()
    named = wanted(watch).get("arms", {})
    return tuple(spec_of(name, ArmBody.model_validate(of)) for name, of in named.items())


def wanted(watch: Path | None) -> dict[str, Any]:
    """Paths of the run and the index that a watched folder or file names, or its arms.

    Raises:
        SpecError: the file is not a JSON object of paths.
        FormatError, OSError: it cannot be read.
    """
    if watch is None or not watch.exists():
        return {}
    if watch.is_dir():
        folder = watch.resolve()  # once: what is read of it belongs together
        if (folder / ARMS_FILE).exists():
            arms = wanted(folder / ARMS_FILE)["arms"]
            for arm in arms.values():
                arm |= {
                    name: str((folder / arm[name]).resolve())
                    for name in ("run", "index")
                    if arm[name] is not None
                }
            return {"arms": arms}
        links = {name: folder / name for name in ("run", "index")}
        return {name: str(link.resolve()) for name, link in links.items() if link.exists()}
    require_file(watch)
    with open(watch, "rb") as file:
        data = file.read(WATCHED_BYTES + 1)
    try:
        found = json.loads(data[:WATCHED_BYTES].decode())
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{watch} is not JSON: {error}") from None
    if isinstance(found, dict) and set(found) == {"arms"}:
        try:
            return {"arms": Reload.model_validate(found).model_dump()["arms"]}
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise SpecError(f"{watch}: {where}: {first['msg']}") from None
    if (
        not isinstance(found, dict)
        or set(found) - {"run", "index"}
        or not all(isinstance(path, str) and path for path in found.values())
    ):
        raise SpecError(
            f'{watch} contains {found!r:.100}, expected {{"run": PATH, "index": PATH}} or one'
        )
    return found
