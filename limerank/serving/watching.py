"""What runs beside the requests, each in a thread of its own that nothing ends but the server.

- *follow*: the index where another process changes it, and live items that another server took;
- *watch*: the file or the links that say which run and index to serve;
- *verify*: the files of an index that was loaded, against their checksums;
- *store*: what an operator has to know of the store's settings.

Whatever an attempt raises goes to the log with its trace and is counted
(``limerank_background_failures_total``); the next attempt comes later and later, up to
:data:`LONGEST` seconds.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limerank.errors import LimerankError, SpecError
from limerank.files import require_file
from limerank.serving.engine import Serving

log = logging.getLogger("limerank.serving")
LOOK_SECONDS = 2.0
"""Between two attempts."""
LONGEST = 30.0
"""The same after several that failed, at most."""
WATCHED_BYTES = 64 << 10
"""Of a watched file, at most."""


class Beside:
    """The threads of a served engine.

    Args:
        engine: what is served.
        watch: a folder with the links ``run`` and ``index``, or a JSON file
            ``{"run": PATH, "index": PATH}``: when they lead elsewhere, that is loaded.
        seconds: between two attempts.
    """

    def __init__(
        self, engine: Serving, watch: Path | None = None, *, seconds: float = LOOK_SECONDS
    ) -> None:
        self._engine, self._watch, self._seconds = engine, watch, seconds
        self._stop = threading.Event()
        self._loaded = self._form()
        tasks: dict[str, tuple[Callable[[], None], Callable[[], Any]]] = {
            "follow": (engine.follow, lambda: None),
            "verify": (engine.verify, lambda: None),
            "store": (engine.check_store, lambda: None),
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
        """Tell them to end; they are daemons, and what they are at is not waited for."""
        self._stop.set()

    def _repeat(self, name: str, once: Callable[[], None], form: Callable[[], Any]) -> None:
        """Do it now and then. After a failure, sooner where what ``form`` gives has changed."""
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
                    "what is served stays as it is; %s failed and is tried again in %g s: %s",
                    name,
                    wait,
                    text,
                    exc_info=error,
                )
                error.__traceback__ = None  # its frames hold what they had loaded
            else:
                numbers.failing.labels(name).set(0)
                wait, tried = self._seconds, None

    def _pause(self, seconds: float, form: Callable[[], Any], tried: tuple[Any] | None) -> bool:
        """Wait, after a failure until ``form`` gives something else; whether to end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stop.wait(min(left, self._seconds)):
                return True
            if tried is not None and form() != tried[0]:
                break
        return self._stop.is_set()

    # Watching

    def _form(self) -> Any:
        """What is wanted, or what is wrong with it: to be compared. Raises nothing."""
        try:
            return wanted(self._watch)
        except BaseException as error:  # noqa: BLE001  (it is raised again where it is wanted)
            return repr(error)

    def _load(self) -> None:
        found = wanted(self._watch)
        if found and found != self._loaded:
            self._engine.reload(found.get("run"), found.get("index"))
            self._loaded = found


def wanted(watch: Path | None) -> dict[str, str]:
    """Paths of the run and the index that a watched folder or file names; what it does not name is
    left out.

    Raises:
        SpecError: the file is no JSON object of paths.
        FormatError, OSError: it cannot be read.
    """
    if watch is None or not watch.exists():
        return {}
    if watch.is_dir():
        links = {name: watch / name for name in ("run", "index")}
        return {name: str(link.resolve()) for name, link in links.items() if link.exists()}
    require_file(watch)
    with open(watch, "rb") as file:
        data = file.read(WATCHED_BYTES + 1)
    try:
        found = json.loads(data[:WATCHED_BYTES].decode())
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{watch} is no JSON: {error}") from None
    if (
        not isinstance(found, dict)
        or set(found) - {"run", "index"}
        or not all(isinstance(path, str) and path for path in found.values())
    ):
        raise SpecError(
            f'{watch} holds {found!r:.100}, expected {{"run": PATH, "index": PATH}} or one of them'
        )
    return found
