"""The routes, and nothing else: what they do is the engine's.

Every request passes one gate: key, rate, size, a checked body, a place in the queue, a deadline.
What goes wrong is told as application/problem+json (RFC 9457).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from limerank.errors import (
    DataError,
    FormatError,
    LimerankError,
    SpecError,
    StoreError,
    UnknownError,
)
from limerank.server.messages import Events, Explain, Happened, PutItems, PutUser, Rank, Reload
from limerank.server.numbers import Numbers
from limerank.server.openapi import Described, describe
from limerank.server.settings import Access, Settings

log = logging.getLogger("limerank.server")
WEB = Path(__file__).parent / "web"
ALLOWS: dict[Access, tuple[Access, ...]] = {
    "read": ("read", "write", "admin"),
    "write": ("write", "admin"),
    "admin": ("admin",),
}
BURST_SECONDS = 2.0
"""A key's requests are counted over so long: short bursts pass."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Engine(Protocol):
    """What answers: every method computes, and may block. See limerank.server.engine."""

    numbers: Numbers

    def model(self) -> dict[str, Any]: ...
    def rank(self, asked: Rank) -> dict[str, Any]: ...
    def explain(self, asked: Explain) -> dict[str, Any]: ...
    def append(self, events: list[Happened]) -> Future[dict[str, Any]]: ...
    def rank_at_once(self, asked: Rank) -> dict[str, Any] | None: ...
    def append_at_once(self, events: list[Happened]) -> Future[dict[str, Any]] | None: ...
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


class Problem(Exception):  # noqa: N818  # it is an answer
    """An answer that tells what went wrong."""

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, headers or {}, more

    def response(self) -> Response:
        body = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }
        return Response(
            orjson.dumps(body),
            self.status,
            headers={**HEADERS, **self.headers},
            media_type="application/problem+json",
        )


class Told(NamedTuple):
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
class Way(Described):
    """A described route, and the engine's method behind it."""

    answers: Callable[[Engine, Told], Any] = lambda engine, told: None
    """What is answered, or a promise of it."""
    at_once: Callable[[Engine, Told], Any] = lambda engine, told: None
    """What is answered on the event loop, or a promise of it; None: it takes another thread, since
    it would take more than about a millisecond, or wait for something."""


def _limit(told: Told) -> int:
    text = told.query.get("limit", "20")
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= 1000:
        raise Problem(422, f"limit is {text[:40]!r}, expected 1 to 1000")
    return int(text)


def _events(told: Told) -> list[Happened]:
    return list(told.body.events) if isinstance(told.body, Events) else [told.body]


TEXT = ("q", {"type": "string", "maxLength": 256})
LIMIT = ("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 20})
WAYS: tuple[Way, ...] = (
    Way("GET", "/v1/model", "read", "The model, the index and what they know.",
        answers=lambda engine, told: engine.model()),
    Way("POST", "/v1/rank", "read", "Rank the catalogue, or candidates, for a user.", (Rank,),
        answers=lambda engine, told: engine.rank(told.body),
        at_once=lambda engine, told: engine.rank_at_once(told.body)),
    Way("POST", "/v1/explain", "read", "Say which events and links carried items.", (Explain,),
        answers=lambda engine, told: engine.explain(told.body)),
    Way("POST", "/v1/events", "write", "Keep events; answered when they are durable.",
        (Events, Happened), answer={"accepted": 1, "duplicates": 0, "expired": 0},
        answers=lambda engine, told: engine.append(_events(told)),
        at_once=lambda engine, told: engine.append_at_once(_events(told))),
    Way("GET", "/v1/users", "read", "Users whose id begins with a text.", query=(TEXT, LIMIT),
        answers=lambda engine, told: engine.users(told.query.get("q", ""), _limit(told))),
    Way("GET", "/v1/users/{user:path}", "read", "What is held of a user.",
        answers=lambda engine, told: engine.user(told.path["user"])),
    Way("PUT", "/v1/users/{user:path}", "write", "Say what a user's own features are.", (PutUser,),
        answers=lambda engine, told: engine.put_user(told.path["user"], told.body.features)),
    Way("DELETE", "/v1/users/{user:path}", "write", "Forget a user for good.",
        answer={"forgotten": 42}, answers=lambda engine, told: engine.forget(told.path["user"])),
    Way("GET", "/v1/items", "read", "Items whose id or features begin with a text.",
        query=(TEXT, LIMIT),
        answers=lambda engine, told: engine.items(told.query.get("q", ""), _limit(told))),
    Way("GET", "/v1/items/{item:path}", "read", "What is known of an item.",
        answers=lambda engine, told: engine.item(told.path["item"])),
    Way("PUT", "/v1/items", "admin", "Add or change items: rankable with the next request.",
        (PutItems,), answers=lambda engine, told: engine.put_items(told.body.items)),
    Way("DELETE", "/v1/items/{item:path}", "admin", "Take an item out of rankings.",
        answer={"removed": 1}, answers=lambda engine, told: engine.remove_item(told.path["item"])),
    Way("POST", "/v1/admin/reload", "admin", "Serve another run or index if it passes its tests.",
        (Reload,), answers=lambda engine, told: engine.reload(told.body.run, told.body.index)),
    Way("GET", "/healthz", None, "Whether the process is alive.",
        answer={"status": "ok"}, at_once=lambda engine, told: {"status": "ok"}),
    Way("GET", "/readyz", None, "Whether requests can be answered.",
        answer={"status": "ok"}, answers=lambda engine, told: engine.ready()),
)  # fmt: skip


class Gate:
    """Keys, rates, sizes, places in the queue and deadlines, for all routes of an application."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings, self.numbers = engine, settings, engine.numbers
        self.pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="limerank")
        self.inside = 0
        self._buckets: dict[str, tuple[float, float]] = {}

    def route(self, way: Way) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint of a route."""
        name = f"{way.method} {way.path}"

        async def endpoint(request: Request) -> Response:
            started = time.perf_counter()
            try:
                response = await self._answer(way, request)
            except Exception as error:  # noqa: BLE001  (each has its answer)
                response = _told(error, name).response()
                # Its frames hold the task that holds it, and what they had loaded: let go of both.
                error.__traceback__ = None
            seconds = time.perf_counter() - started
            self.numbers.requests.labels(name, str(response.status_code)).inc()
            self.numbers.seconds.labels(name).observe(seconds)
            log.info(
                "request",
                extra={
                    "route": name,
                    "status": response.status_code,
                    "ms": round(1e3 * seconds, 3),
                },
            )
            return response

        return endpoint

    async def _answer(self, way: Way, request: Request) -> Response:
        self._admit(way, request)
        body = await self._body(way, request) if way.body else None
        told = Told(body, request)
        found = way.at_once(self.engine, told)
        if found is None:
            if self.inside >= self.settings.waiting + self.settings.threads:
                raise Problem(503, "too many requests are waiting; try again", {"Retry-After": "1"})
            found = asyncio.get_running_loop().run_in_executor(
                self.pool, way.answers, self.engine, told
            )
        if isinstance(found, (asyncio.Future, Future)):
            found = await self._kept(found)
        data = orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
        return Response(data, headers=HEADERS, media_type="application/json")

    async def _kept(self, promise: Future[Any] | asyncio.Future[Any]) -> Any:
        """What was promised, and what that promised, within the time that a request has."""
        found: Any = promise
        until = time.monotonic() + self.settings.seconds
        while isinstance(found, (asyncio.Future, Future)):
            work = asyncio.wrap_future(found) if isinstance(found, Future) else found
            self._count(1)
            work.add_done_callback(self._ended)  # it goes on, also where nobody waits any more
            done, _ = await asyncio.wait((work,), timeout=until - time.monotonic())
            if not done:
                raise Problem(
                    503,
                    f"not answered within {self.settings.seconds:g} s; try again",
                    {"Retry-After": "1"},
                )
            found = work.result()
        return found

    def _ended(self, work: asyncio.Future[Any]) -> None:
        self._count(-1)
        if not work.cancelled():
            work.exception()  # it is taken, whoever asks for it

    def _count(self, more: int) -> None:
        self.inside += more
        self.numbers.waiting.set(self.inside)

    def _admit(self, way: Way, request: Request) -> None:
        """Key and rate, or a problem."""
        who = request.client.host if request.client else "?"
        if way.access is not None and not self.settings.open:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not key:
                raise Problem(
                    401,
                    "no key was given; send the header Authorization: Bearer KEY",
                    {"WWW-Authenticate": "Bearer"},
                )
            may = self._may(key.strip())
            if not may:
                raise Problem(401, "no such key", {"WWW-Authenticate": "Bearer"})
            if not set(may) & set(ALLOWS[way.access]):
                raise Problem(403, f"this needs a key that may {way.access}; yours may {may[0]}")
            who = key
        if self.settings.rate is not None and way.access is not None:
            self._pace(who, self.settings.rate)

    def _may(self, key: str) -> list[Access]:
        """What a key allows. Every key is compared, in constant time."""
        given = key.encode()
        return [
            access
            for access, keys in self.settings.keys.items()
            for held in keys
            if hmac.compare_digest(given, held.encode())
        ]

    def _pace(self, who: str, rate: float) -> None:
        now, most = time.monotonic(), max(1.0, rate * BURST_SECONDS)
        left, last = self._buckets.get(who, (most, now))
        left = min(most, left + (now - last) * rate)
        if left < 1:
            wait = max(1, round((1 - left) / rate))
            raise Problem(429, f"more than {rate:g} requests a second", {"Retry-After": str(wait)})
        if len(self._buckets) > 100_000:  # addresses that came once
            self._buckets.clear()
        self._buckets[who] = (left - 1, now)

    async def _body(self, way: Way, request: Request) -> BaseModel:
        most = self.settings.body_bytes
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise Problem(413, f"the body has {length} bytes, at most {most} are taken")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise Problem(413, f"the body has more than {most} bytes")
                    parts.append(part)
        except TimeoutError:
            raise Problem(
                408, f"the body did not arrive within {self.settings.body_seconds:g} s"
            ) from None
        return parse(way, b"".join(parts))


def parse(way: Way, data: bytes) -> BaseModel:
    """A checked body."""
    model = way.body[0]
    if len(way.body) > 1 and b'"events"' not in data[:4096]:
        model = way.body[1]
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)
        if first[0]["type"] == "json_invalid":
            raise Problem(400, f"the body is no JSON: {first[0]['msg']}") from None
        errors = [
            {"at": ".".join(str(part) for part in one["loc"]), "what": one["msg"]}
            for one in first[:20]
        ]
        raise Problem(
            422, f"{errors[0]['at'] or 'the body'}: {errors[0]['what']}", errors=errors
        ) from None


def _told(error: Exception, route: str) -> Problem:
    """An error as an answer."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return Problem(error.status_code, str(error.detail))
    if isinstance(error, ClientDisconnect):
        return Problem(400, "the client went away")
    if isinstance(error, UnknownError):
        return Problem(404, str(error))
    if isinstance(error, (SpecError, DataError)):
        return Problem(422, str(error))
    if isinstance(error, StoreError):
        return Problem(503, str(error), {"Retry-After": "2"})
    if isinstance(error, FormatError):
        return Problem(409, str(error))
    if isinstance(error, LimerankError):
        return Problem(500, str(error))
    log.error("a request failed", exc_info=error, extra={"route": route})
    return Problem(500, "an error of the server; its log says more")


class _Headers:
    """The page's files, with the headers that every answer has."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                held = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message["headers"], *held, (b"cache-control", b"no-cache")]
            await send(message)

        await self.app(scope, receive, with_headers)


def application(engine: Engine, settings: Settings) -> Starlette:
    """The ASGI application."""
    numbers = engine.numbers
    gate = Gate(engine, settings)
    description = orjson.dumps(describe(version("limerank"), WAYS, open_=settings.open))

    async def openapi(request: Request) -> Response:
        return Response(description, headers=HEADERS, media_type="application/json")

    async def metrics(request: Request) -> Response:
        try:
            gate._admit(Way("GET", "/metrics", "read", ""), request)
        except Problem as problem:
            return problem.response()
        await asyncio.get_running_loop().run_in_executor(gate.pool, engine.count)
        return Response(numbers.text(), headers=HEADERS, media_type="text/plain; version=0.0.4")

    async def missing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return Problem(
            error.status_code, f"{request.method} {request.url.path}: {error.detail}", error.headers
        ).response()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        gate.pool.shutdown(wait=True)
        engine.close()

    routes: list[Any] = [Route(way.path, gate.route(way), methods=[way.method]) for way in WAYS]
    routes += [Route("/openapi.json", openapi), Route("/metrics", metrics)]
    if WEB.exists():
        routes.append(Mount("/", _Headers(StaticFiles(directory=WEB, html=True))))
    return Starlette(routes=routes, exception_handlers={HTTPException: missing}, lifespan=lifespan)


class JsonLines(logging.Formatter):
    """Log records as JSON, one per line: no ids of users or items, and no keys."""

    FIELDS = ("route", "status", "ms", "run", "index_version", "seconds")

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in self.FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()
