"""``limerank serve``: the application on uvicorn."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import uvicorn

from limerank.data.exposures import MAIN
from limerank.errors import FormatError, SpecError
from limerank.serving.arms import ArmSpec, checked
from limerank.serving.engine import Serving
from limerank.serving.http.app import application
from limerank.serving.http.connections import Acceptor, Doors, protocol
from limerank.serving.http.gate import CLOSE_SECONDS
from limerank.serving.http.lines import log_json
from limerank.serving.http.private import Private
from limerank.serving.http.settings import Settings
from limerank.serving.kafka import EventLog, LogAddress, LoggedStore
from limerank.serving.state import Mode
from limerank.serving.stores import MOST_EXPOSURES, open_store
from limerank.serving.watched import first_arms, look_at, watch_of
from limerank.serving.watching import Background
from limerank.storage.uris import is_uri, shown

log = logging.getLogger("limerank.serving")
SWITCH_SECONDS = 0.001
"""Seconds after which a thread that runs Python code yields to another: requests on the event loop
never wait long for those in other threads."""
MOST_FILES = 65_536
"""The limit of open files that the process sets itself, where it may."""


def serve(
    *,
    arms: Sequence[ArmSpec],
    store: str,
    settings: Settings,
    salt: str = "",
    items: Path | None = None,
    mode: Mode = "window",
    threads: int = 1,
    most: int | None = None,
    most_exposures: int = MOST_EXPOSURES,
    watch: str | Path | None = None,
    shards: Sequence[str] = (),
    shard_key: str = "",
    event_log: LogAddress | None = None,
) -> None:
    """Serve until the process gets a signal to stop; running requests are answered first.

    Args:
        arms, salt, items, mode, threads: see :class:`~limerank.serving.engine.Serving`.
        store: an SQLite file, or the address of a Valkey or Redis server.
        settings: keys, limits, times.
        most: events stored of a user, at most; all when not given.
        most_exposures: exposures stored of a user, at most.
        watch: a path or a URI that names a run and an index, or arms; see
            :mod:`limerank.serving.watched`. When they change, they are loaded. The arms of a
            folder's ``arms.json`` take the place of ``arms``; where there are no ``arms``, the
            server begins with what is watched.
        shards, shard_key: see :class:`~limerank.serving.engine.Serving`.
        event_log: where each change is acknowledged before it is written to the store.
    """
    watched = None if watch is None else watch_of(watch)
    # Before anything is loaded: what changes meanwhile is loaded afterwards. Arms that are given
    # are served until a storage was asked.
    remote = watched is not None and watched.remote
    loaded = None if watched is None or (remote and arms) else look_at(watched)
    arms = checked(first_arms(watched, tuple(arms)))
    folders = [
        (spec.name, name, path, file)
        for spec in arms
        for name, path, file in (
            ("run", spec.run, "config.json"),
            ("index", spec.index, "manifest.json"),
        )
        if path is not None
    ]
    private = Private.of_store(
        store,
        secrets=[
            shard_key,
            *(key for keys in settings.keys.values() for key in keys),
            *(() if event_log is None else event_log.secrets),
        ],
        paths=[
            *(() if event_log is None else event_log.servers.split(",")),
            *shards,
            *(() if watch is None or not is_uri(watch) else (str(watch), shown(watch))),
            *(urlsplit(url).netloc for url in shards),
            *(
                text
                for path in (
                    *(path for _, _, path, _ in folders),
                    items,
                    None if watch is None or is_uri(watch) else Path(watch),
                    None if "://" in store else Path(store),
                )
                if path is not None
                for text in (str(path.absolute()), str(path.resolve()))
            ),
        ],
    )
    with listener(settings.host, settings.port) as bound:
        for arm, name, path, file in folders:
            if not (path / file).is_file():  # before a new store is created
                option = f"--{name}" if arm == MAIN else f"--arm {arm}"
                raise FormatError(
                    f"{option}: {str(path)!r} is not the folder of a {name}: it has no {file}"
                )
        log_json(private)
        opened = open_store(store, most, most_exposures)
        changes = None
        if event_log is not None:
            changes = EventLog(event_log, seconds=settings.log_seconds)
            opened = LoggedStore(opened, changes)
        engine = Serving(
            None,
            None,
            opened,
            arms=arms,
            salt=salt,
            items=None if items is None else items.absolute(),
            mode=mode,
            threads=threads,
            window=settings.outcome_seconds,
            shards=shards,
            shard_key=shard_key,
            shard_seconds=settings.shard_seconds,
            keep=settings.keep_states,
            memory=settings.state_bytes,
        )
        if changes is not None:
            changes.observe = engine.numbers.log_ended
        app = application(engine, settings, private)
        # Loaded objects stay: the garbage collector need not visit them.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)  # requests leave few cycles
        sys.setswitchinterval(SWITCH_SECONDS)
        background = Background(
            engine,
            watched,
            remote=settings.watch_seconds,
            loaded=loaded,
            wave=settings.wave_seconds,
            name=f"{socket.gethostname()}:{settings.port}",
        )
        background.start()
        doors = Doors(settings, engine.numbers, files_allowed())
        config = uvicorn.Config(
            app,
            http=protocol(doors),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.proxies),
            forwarded_allow_ips=list(settings.proxies),
            timeout_keep_alive=max(1, round(settings.idle_seconds)),
            timeout_graceful_shutdown=max(1, int(settings.drain_seconds - CLOSE_SECONDS - 1)),
        )
        try:
            bound.listen(config.backlog)  # clients may connect once the next line is printed
        except OSError as error:  # another process bound it, too, and listened first
            raise _taken(settings.host, settings.port, error) from None
        host, port = bound.getsockname()[:2]
        print(
            f"serving {_shown(arms)} on http://{f'[{host}]' if ':' in host else host}:{port}",
            flush=True,
        )
        try:
            Server(config, settings.drain_seconds).run(sockets=[bound])
        finally:
            background.stop()
            if _hanging():
                _end(0)


def _shown(arms: Sequence[ArmSpec]) -> str:
    """What is served, for the first line of the output."""
    if len(arms) == 1:
        return str(arms[0].run)
    return ", ".join(f"{spec.name} ({spec.share:.4g})" for spec in arms)


@contextmanager
def listener(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to an address, made before anything is loaded.

    Raises:
        SpecError: the address is in use, is not one of this machine's, or needs more rights.
    """
    try:
        family, kind, protocol_, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol_)
    except OSError as error:
        raise SpecError(f"cannot listen on {host}: {error.strerror}; give another --host") from None
    with bound:
        if os.name != "nt":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError as error:
            raise _taken(host, port, error) from None
        bound.setblocking(False)
        yield bound


def _taken(host: str, port: int, error: OSError) -> SpecError:
    what = (error.strerror or str(error)).lower()
    return SpecError(
        f"cannot listen on {host}, port {port}: {what}; stop what uses it, or give another --port "
        "(0: any free one)"
    )


def files_allowed() -> int:
    """The number of files that this process may open, after raising its limit."""
    try:
        import resource
    except ImportError:  # this system has no such limit
        return MOST_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # the system refuses
            pass
    return MOST_FILES if soft == resource.RLIM_INFINITY else soft


class Server(uvicorn.Server):
    """A uvicorn server that accepts connections in small numbers, and that stops in time even where
    threads hang.

    Args:
        config: uvicorn's, with the protocol of :mod:`limerank.serving.http.connections`.
        drain: seconds after a signal in which the process ends.
    """

    def __init__(self, config: uvicorn.Config, drain: float) -> None:
        super().__init__(config)
        self._drain = drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets is not None
        await super().startup(sockets=[])
        config, state = self.config, self.server_state

        def made() -> asyncio.Protocol:
            of = config.http_protocol_class
            return of(config=config, server_state=state, app_state=self.lifespan.state)  # type: ignore[call-arg]

        self._acceptors = [Acceptor(one, made) for one in sockets]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for one in self._acceptors:
            one.stop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            timer = threading.Timer(self._drain, _end, (1,))
            timer.daemon = True
            timer.start()
        super().handle_exit(sig, frame)


def _hanging() -> bool:
    """Whether the end of the process would wait for a thread."""
    return any(
        thread is not threading.current_thread() and not thread.daemon
        for thread in threading.enumerate()
    )


def _end(status: int) -> None:
    """End the process without waiting for its threads."""
    if status:
        log.error("running requests did not end in time; the process ends without them")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
