"""``limerank serve``: the application on uvicorn."""

from __future__ import annotations

import gc
import logging
import sys
from pathlib import Path

import uvicorn

from limerank.server.app import JsonLines, application
from limerank.server.engine import Serving
from limerank.server.settings import Settings
from limerank.server.watching import Beside
from limerank.state import Mode
from limerank.stores import open_store

log = logging.getLogger("limerank.server")


def serve(
    *,
    run: Path,
    index: Path,
    store: str,
    settings: Settings,
    items: Path | None = None,
    mode: Mode = "window",
    threads: int = 1,
    most: int | None = None,
    watch: Path | None = None,
) -> None:
    """Serve until the process is told to stop; requests under way are answered first.

    Args:
        run, index, items, mode, threads: see :class:`~limerank.server.engine.Serving`.
        store: an SQLite file, or the address of a Valkey or Redis server.
        settings: keys, limits, times.
        most: events held of a user, at most; all when not given.
        watch: a folder with the links ``run`` and ``index``, or a JSON file
            ``{"run": PATH, "index": PATH}``: when they lead elsewhere, that is loaded.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    # Records never show these: they need not be looked up for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    engine = Serving(
        run,
        index,
        open_store(store, most),
        items=items,
        mode=mode,
        threads=threads,
    )
    app = application(engine, settings)
    # What is loaded stays: the collector of garbage need not look at it with every request.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # requests leave few cycles behind
    beside = Beside(engine, watch)
    beside.start()
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=settings.drain_seconds,
        limit_concurrency=settings.waiting + settings.threads + 1000,
        h11_max_incomplete_event_size=64 << 10,
    )
    socket = config.bind_socket()
    socket.listen(config.backlog)  # who reads the next line may connect
    host, port = socket.getsockname()[:2]
    print(f"serving {run} on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[socket])
    finally:
        beside.stop()
