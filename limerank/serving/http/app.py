"""The routes, and nothing else: what they do is the engine's.

Every request passes one gate: key, rate, size, a checked body, a place in the queue, a deadline.
What goes wrong is told as application/problem+json (RFC 9457).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import stat
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limerank.errors import FormatError
from limerank.serving.http import bodies
from limerank.serving.http.admission import Admission
from limerank.serving.http.lanes import Lane, Shared
from limerank.serving.http.openapi import Described, describe
from limerank.serving.http.private import Private
from limerank.serving.http.problems import HEADERS, Problem, problem_of
from limerank.serving.http.settings import Settings
from limerank.serving.messages import (
    MOST_ID,
    EventMessage,
    Events,
    Explain,
    PutItems,
    PutUser,
    Rank,
    Reload,
)
from limerank.serving.stores import EventStore
from limerank.serving.telemetry import Numbers

log = logging.getLogger("limerank.serving")
WEB = Path(__file__).parents[1] / "web"
OTHER = "other"
"""Label of all routes that are not there, in the numbers: one, whatever was asked for."""
FIRST = ("/v1/rank", "/v1/events")
"""What a server is there for. All else, such as reading a large user, has other threads."""
STOPPING_SECONDS = 2
"""After which a client may ask again whose request was cut short by the end of the server."""
FREE_BYTES = 64 << 10
"""Of each body that do not count as held: small requests pass where large ones wait."""
ASIDE_THREADS, ASIDE_WAITING = 2, 16
"""For the checks of whoever watches, which may hang as the store does."""
READY_FRESH = 1.0
"""Seconds for which an answer of ``/readyz`` is given again."""
READY_SECONDS, COUNT_SECONDS = 5.0, 2.0
"""In which the store has to answer ``/readyz``, and to give its counts to ``/metrics``."""
CLOSE_SECONDS = 4.0
"""In which the engine has to close when the server stops."""
MOST_FILES = 100_000
"""Files of a run or an index that are looked at before they are opened."""


class Engine(Protocol):
    """What answers: every method computes, and may block. See limerank.serving.engine."""

    numbers: Numbers
    store: EventStore

    def model(self) -> dict[str, Any]: ...
    def rank(self, asked: Rank) -> dict[str, Any]: ...
    def explain(self, asked: Explain) -> dict[str, Any]: ...
    def append(self, events: list[EventMessage]) -> Future[dict[str, Any]]: ...
    def rank_at_once(self, asked: Rank) -> dict[str, Any] | None: ...
    def append_at_once(self, events: list[EventMessage]) -> Future[dict[str, Any]] | None: ...
    def user(self, user: str) -> dict[str, Any]: ...
    def users(self, text: str, limit: int) -> dict[str, Any]: ...
    def put_user(self, user: str, features: dict[str, Any]) -> dict[str, Any]: ...
    def forget(self, user: str) -> dict[str, Any]: ...
    def item(self, item: str) -> dict[str, Any]: ...
    def items(self, text: str, limit: int) -> dict[str, Any]: ...
    def put_items(self, items: list[dict[str, Any]]) -> dict[str, Any]: ...
    def remove_item(self, item: str) -> dict[str, Any]: ...
    def reload(self, run: str | None, index: str | None) -> dict[str, Any]: ...
    def ready(self) -> dict[str, Any]: ...
    def count(self) -> None: ...
    def close(self) -> None: ...


class Call(NamedTuple):
    """What a route is told of a request: its checked body, and the rest as it came."""

    body: Any
    request: Request

    @property
    def path(self) -> Mapping[str, Any]:
        return self.request.path_params

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query_params


@dataclass(frozen=True)
class Operation(Described):
    """A described route, and the engine's method behind it."""

    answers: Callable[[Engine, Call], Any] = lambda engine, call: None
    """What is answered, or a promise of it."""
    at_once: Callable[[Engine, Call], Any] = lambda engine, call: None
    """What is answered on the event loop, or a promise of it; None: it takes another thread, since
    it would take more than about a millisecond, or wait for something."""

    @property
    def name(self) -> str:
        """As it stands in the numbers and in the log."""
        return f"{self.method} {self.path}"


def _limit(call: Call) -> int:
    text = call.query.get("limit", "20")
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= 1000):
        raise Problem(422, f"limit is {text[:40]!r}, expected 1 to 1000")
    return int(text)


def _text(call: Call) -> str:
    text = call.query.get("q", "")
    if len(text) > MOST_ID:
        raise Problem(422, f"q has {len(text):,} characters, expected at most {MOST_ID}")
    return text


def _id(call: Call, name: str) -> str:
    text: str = call.path[name]
    try:
        unquote_to_bytes(call.request.scope["raw_path"]).decode()
    except UnicodeDecodeError:  # what stands in its place would be another id
        raise Problem(422, f"the {name}'s id in the URL is no UTF-8") from None
    if not 1 <= len(text) <= MOST_ID:
        raise Problem(422, f"the {name}'s id has {len(text):,} characters, expected 1 to {MOST_ID}")
    return text


def _folder(name: str, given: str | None) -> str | None:
    """The folder of a run or an index that is to be loaded: opening anything else could hang."""
    if given is None:
        return None
    try:
        if not stat.S_ISDIR(os.stat(given).st_mode):
            raise Problem(409, f"{name}: {given[:200]!r} is no folder; expected that of the {name}")
        looked_at = 0
        for position, _, files in os.walk(given):
            for file in files:
                looked_at += 1
                if looked_at > MOST_FILES:
                    raise Problem(409, f"{name}: the folder holds more than {MOST_FILES:,} files")
                if not stat.S_ISREG(os.stat(os.path.join(position, file)).st_mode):
                    raise Problem(409, f"{name}: {file[:200]!r} in the folder is no regular file")
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Problem(409, f"{name}: {given[:200]!r} cannot be opened: {what}") from None
    return given


def _events(call: Call) -> list[EventMessage]:
    return list(call.body.events) if isinstance(call.body, Events) else [call.body]


TEXT = ("q", {"type": "string", "maxLength": MOST_ID})
LIMIT = ("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 20})
OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/v1/model", "read", "The model, the index and what they know.",
        answers=lambda engine, call: engine.model()),
    Operation("POST", "/v1/rank", "read", "Rank the catalogue, or candidates, for a user.", (Rank,),
        answers=lambda engine, call: engine.rank(call.body),
        at_once=lambda engine, call: engine.rank_at_once(call.body)),
    Operation("POST", "/v1/explain", "read", "The events and links behind scores.", (Explain,),
        answers=lambda engine, call: engine.explain(call.body)),
    Operation("POST", "/v1/events", "write", "Keep events; answered when they are durable.",
        (Events, EventMessage), answer={"accepted": 1, "duplicates": 0, "expired": 0},
        answers=lambda engine, call: engine.append(_events(call)),
        at_once=lambda engine, call: engine.append_at_once(_events(call))),
    Operation("GET", "/v1/users", "read", "Users whose id begins with a text.", query=(TEXT, LIMIT),
        answers=lambda engine, call: engine.users(_text(call), _limit(call))),
    Operation("GET", "/v1/users/{user:path}", "read", "What is held of a user.",
        answers=lambda engine, call: engine.user(_id(call, "user"))),
    Operation("PUT", "/v1/users/{user:path}", "write", "Set a user's own features.", (PutUser,),
        answers=lambda engine, call: engine.put_user(
            _id(call, "user"), call.body.features)),
    Operation("DELETE", "/v1/users/{user:path}", "write", "Forget a user for good.",
        answer={"forgotten": 42}, answers=lambda engine, call: engine.forget(_id(call, "user"))),
    Operation("GET", "/v1/items", "read", "Items whose id or features begin with a text.",
        query=(TEXT, LIMIT),
        answers=lambda engine, call: engine.items(_text(call), _limit(call))),
    Operation("GET", "/v1/items/{item:path}", "read", "What is known of an item.",
        answers=lambda engine, call: engine.item(_id(call, "item"))),
    Operation("PUT", "/v1/items", "admin", "Add or change items: rankable with the next request.",
        (PutItems,), answers=lambda engine, call: engine.put_items(call.body.items)),
    Operation("DELETE", "/v1/items/{item:path}", "admin", "Take an item out of rankings.",
        answer={"removed": 1}, answers=lambda engine, call: engine.remove_item(_id(call, "item"))),
    Operation("POST", "/v1/admin/reload", "admin", "Serve another run or index once checked.",
        (Reload,), answers=lambda engine, call: engine.reload(
            _folder("run", call.body.run), _folder("index", call.body.index))),
    Operation("GET", "/healthz", None, "Whether the process is alive.",
        answer={"status": "ok"}, at_once=lambda engine, call: {"status": "ok"}),
    Operation("GET", "/readyz", None, "Whether requests can be answered.",
        answer={"status": "ok"}, answers=lambda engine, call: engine.ready()),
)  # fmt: skip


class Gate:
    """Keys, rates, sizes, places in the queue and deadlines, for all routes of an application.

    Rankings and events, changes of users, whoever looks around, administrators, large bodies and
    whoever watches have threads of their own: none of them waits for another kind.
    """

    def __init__(self, engine: Engine, settings: Settings, private: Private) -> None:
        self.engine, self.settings, self.numbers = engine, settings, engine.numbers
        self.private, self.admission = private, Admission(settings)
        depth = self.numbers.queue.labels
        threads = settings.threads
        if not engine.store.local:  # waiting for the store needs no core
            threads = max(threads, settings.store_threads)
        self.requests = Lane(
            "limerank", threads, settings.waiting, settings.seconds, depth("requests")
        )
        self.looking = Lane(
            "limerank-look", threads, settings.waiting, settings.seconds, depth("looking")
        )
        self.writing = Lane(
            "limerank-write", threads, settings.waiting, settings.seconds, depth("writing")
        )
        self.administration = Lane(
            "limerank-admin",
            settings.admin_threads,
            settings.admin_waiting,
            settings.admin_seconds,
            depth("administration"),
        )
        self.bodies = Lane("limerank-bodies", 1, settings.waiting, settings.seconds)
        self.aside = Lane("limerank-aside", ASIDE_THREADS, ASIDE_WAITING, settings.seconds)
        self.ready = Shared(self.aside, engine.ready, READY_FRESH)
        self.counted = Shared(self.aside, engine.count, 0.0)
        self.held = 0
        """Bytes of large bodies that are under way."""

    def path(self, by_method: Mapping[str, Operation], path: str) -> Route:
        """A path of the application, and what its methods do."""
        endpoints = {method: self.counting(operation.name, self._answers(operation), operation)
                     for method, operation in by_method.items()}  # fmt: skip
        allowed = ", ".join(sorted({*endpoints, *(("HEAD",) if "GET" in endpoints else ())}))

        async def none(request: Request) -> Response:
            raise _not_taken(request, allowed)

        other = self.counting(OTHER, none)

        async def endpoint(request: Request) -> Response:
            method = "GET" if request.method == "HEAD" else request.method
            return await endpoints.get(method, other)(request)

        route = Route(path, _Endpoint(endpoint))
        # An id may hold line breaks.
        route.path_regex = re.compile(route.path_regex.pattern, re.DOTALL)
        return route

    def counting(
        self,
        name: str,
        answer: Callable[[Request], Awaitable[Response]],
        operation: Operation | None = None,
    ) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint whose answers are counted, timed and logged, and whose errors are told."""
        admin = operation is not None and operation.access == "admin"

        async def endpoint(request: Request) -> Response:
            started = time.perf_counter()
            try:
                response = await answer(request)
            except asyncio.CancelledError:  # the time for requests under way is over
                wait = {"Retry-After": str(STOPPING_SECONDS)}
                response = Problem(503, "the server is stopping; try again", wait).response()
            except Exception as error:  # noqa: BLE001  (each has its answer)
                response = problem_of(error, name, self.private, admin=admin).response()
                # Its frames hold the task that holds it, and what they had loaded: let go of both.
                error.__traceback__ = None
            self.count(name, response.status_code, time.perf_counter() - started)
            return response

        return endpoint

    def count(self, name: str, status: int, seconds: float) -> None:
        """Count, time and log a request."""
        self.numbers.requests.labels(name, str(status)).inc()
        self.numbers.seconds.labels(name).observe(seconds)
        log.info("request", extra={"route": name, "status": status, "ms": round(1e3 * seconds, 3)})

    def _answers(self, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
        lane = self.looking
        if operation.path in FIRST:
            lane = self.requests
        elif operation.access == "admin":
            lane = self.administration
        elif operation.access == "write":
            lane = self.writing

        async def answer(request: Request) -> Response:
            self.admission.admit(operation.access, request)
            if operation.path == "/readyz":
                return _json(await self._is_ready())
            if operation.body:
                self.admission.check_type(request)
            call = Call(await self._body(operation, request) if operation.body else None, request)
            found = operation.at_once(self.engine, call)
            if found is None:
                found = await lane.answer(self._work, operation, call)
            elif isinstance(found, (asyncio.Future, Future)):
                found = await lane.completed(found)
            return _json(found)

        return answer

    def _work(self, operation: Operation, call: Call) -> Any:
        """An answer as its bytes, or a promise of it."""
        found = operation.answers(self.engine, call)
        return found if isinstance(found, (asyncio.Future, Future)) else _dumped(found)

    async def _is_ready(self) -> Any:
        """What the engine says; whoever asks without a key is told no more than that it is not."""
        try:
            found = await self.ready.result(READY_SECONDS)
        except Exception as error:  # noqa: BLE001  (whatever it is, requests cannot be answered)
            self.numbers.store_up.set(0)
            log.error("not ready: %s: %s", type(error).__name__, getattr(error, "detail", error))
            what = "the store is not reachable"
            if isinstance(error, FormatError):
                what = "what is served is damaged; the server's log says more"
            raise Problem(503, what, {"Retry-After": "2"}) from None
        self.numbers.store_up.set(1)
        return found

    async def metrics(self, request: Request) -> Response:
        """The numbers. Where the store is away, its counts are those of before."""
        self.admission.admit("read", request)
        try:
            await self.counted.result(COUNT_SECONDS)
            self.numbers.store_up.set(1)
        except Exception as error:  # noqa: BLE001  (the numbers are wanted then above all)
            self.numbers.store_up.set(0)
            detail = getattr(error, "detail", error)
            log.error("the store's counts are not known: %s: %s", type(error).__name__, detail)
        text = self.numbers.text()
        return Response(text, headers=HEADERS, media_type="text/plain; version=0.0.4")

    async def _body(self, operation: Operation, request: Request) -> Any:
        """A checked body; a large one is checked in another thread."""
        most = self.settings.body_bytes
        length = request.headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > most):
            raise Problem(413, f"the body has {length[:40]} bytes, at most {most} are taken")
        parts, size, held = [], 0, 0
        try:
            try:
                async with asyncio.timeout(self.settings.body_seconds):
                    async for part in request.stream():
                        size += len(part)
                        if size > most:
                            raise Problem(413, f"the body has more than {most} bytes")
                        more = max(0, size - FREE_BYTES) - held
                        if self.held + more > self.settings.bodies_bytes:
                            raise Problem(
                                503, "too many large bodies are under way; try again",
                                {"Retry-After": "1"},
                            )  # fmt: skip
                        held += more
                        self.held += more
                        parts.append(part)
            except TimeoutError:
                raise Problem(
                    408, f"the body did not arrive within {self.settings.body_seconds:g} s"
                ) from None
            data = b"".join(parts)
            parts.clear()
            if size <= bodies.SMALL:
                return bodies.checked(operation.body, data)
            return await self.bodies.answer(bodies.checked, operation.body, data)
        finally:
            self.held -= held

    async def close(self) -> None:
        """Begin nothing more, and close the engine; what hangs is not waited for."""
        lanes = (self.requests, self.writing, self.looking)
        for lane in (*lanes, self.administration, self.bodies, self.aside):
            lane.close()
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def close() -> None:
            try:
                self.engine.close()
            finally:
                loop.call_soon_threadsafe(closed.set)

        threading.Thread(target=close, name="limerank-close", daemon=True).start()
        try:
            await asyncio.wait_for(closed.wait(), CLOSE_SECONDS)
        except TimeoutError:
            log.error("the store did not close within %g s; going on without it", CLOSE_SECONDS)


def _dumped(found: Any) -> bytes:
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    try:
        return orjson.dumps(found, option=options)
    except TypeError:  # an integer of more than 64 bits, kept by an older version
        return json.dumps(found, default=str).encode()


def _json(found: Any) -> Response:
    data = found if isinstance(found, bytes) else _dumped(found)
    return Response(data, headers=HEADERS, media_type="application/json")


class _Endpoint:
    """An endpoint for all methods: what a plain function would be for GET alone."""

    def __init__(self, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)


class _Page:
    """The page's files, with the headers that every answer has; anything else is not there.

    Args:
        app: what answers with the files.
        gate: of the application.
        paths: of the files, and of other routes that take GET and HEAD alone.
    """

    def __init__(self, app: ASGIApp, gate: Gate, paths: Iterable[str]) -> None:
        self._app, self._gate, self._paths = app, gate, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, started = 0, time.perf_counter()

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                held = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message["headers"], *held, (b"cache-control", b"no-cache")]
            await send(message)

        name, request = "page", Request(scope)
        try:
            self._gate.admission.admit(None, request)
            await self._app(scope, receive, with_headers)
        except (Problem, HTTPException, OSError, ValueError) as error:
            if status:
                raise
            if isinstance(error, Problem):
                problem = error
            else:
                name = OTHER
                problem = _nowhere(request)
                if request.method not in ("GET", "HEAD") and request.url.path in self._paths:
                    problem = _not_taken(request, "GET, HEAD")
            status = problem.status
            await problem.response()(scope, receive, send)
        self._gate.count(name, status, time.perf_counter() - started)


def _not_taken(request: Request, allowed: str) -> Problem:
    return Problem(
        405,
        f"{request.method[:20]} is no method of this route; it takes {allowed}",
        {"Allow": allowed},
    )


def _nowhere(request: Request) -> Problem:
    return Problem(404, f"{request.method[:20]}: there is no such route")


def application(engine: Engine, settings: Settings, private: Private | None = None) -> Starlette:
    """The ASGI application.

    Args:
        engine: what answers.
        settings: keys, limits, times.
        private: what no answer may hold.
    """
    gate = Gate(engine, settings, private or Private())
    description = orjson.dumps(describe(version("limerank"), OPERATIONS, open_=settings.open))

    async def openapi(request: Request) -> Response:
        gate.admission.admit(None, request)
        return Response(description, headers=HEADERS, media_type="application/json")

    async def nowhere(request: Request) -> Response:
        gate.admission.admit(None, request)
        raise _nowhere(request)

    missing = gate.counting(OTHER, nowhere)

    async def not_found(request: Request, error: Exception) -> Response:
        return await missing(request)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await gate.close()

    paths: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = operation
    routes: list[Any] = [gate.path(by_method, path) for path, by_method in paths.items()]
    read = {"/openapi.json": openapi, "/metrics": gate.metrics}
    for path, answer in read.items():
        routes.append(Route(path, gate.counting(f"GET {path}", answer)))
    if WEB.exists():
        files = {f"/{file.relative_to(WEB).as_posix()}" for file in WEB.rglob("*")}
        page = _Page(StaticFiles(directory=WEB, html=True), gate, {"/", *files, *read})
        routes.append(Mount("/", page))
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={404: not_found},
    )
