"""The gate that every request passes: key, rate, body, queue and deadline.

Each kind of request has separate threads (:class:`~limerank.serving.http.lanes.Lane`), so that no
kind waits for another.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from limerank.errors import FormatError, ShardError
from limerank.serving.http import bodies
from limerank.serving.http.admission import Admission
from limerank.serving.http.lanes import Lane, Shared
from limerank.serving.http.private import Private
from limerank.serving.http.problems import HEADERS, Problem, not_allowed, problem_of
from limerank.serving.http.routes import Call, Engine, Operation
from limerank.serving.http.settings import Settings
from limerank.serving.shards.wire import MEDIA

log = logging.getLogger("limerank.serving")
OTHER = "other"
"""The label of all unknown routes in metrics."""
FIRST = ("/v1/rank", "/v1/events", "/v1/shown")
"""Routes with the main threads. All others, such as reading a large user, use other threads."""
STOPPING_SECONDS = 2
"""``Retry-After`` of requests that were cut short by the end of the server."""
FREE_BYTES = 64 << 10
"""Bytes of each body that do not count as large: small requests pass while large ones wait."""
ASIDE_THREADS, ASIDE_WAITING = 2, 16
"""For health checks and metrics, which may hang as the store does."""
READY_FRESH = 1.0
"""Seconds for which an answer of ``/readyz`` is repeated."""
READY_SECONDS, COUNT_SECONDS = 5.0, 2.0
"""Seconds that the store has for ``/readyz``, and for its counts in ``/metrics``."""
CLOSE_SECONDS = 4.0
"""Seconds that the engine has to close when the server stops."""


class Gate:
    """Admits, queues, answers, counts and logs the requests of an application.

    Args:
        engine: computes the answers.
        settings: keys, limits, times.
        private: texts that no answer may contain.
    """

    def __init__(self, engine: Engine, settings: Settings, private: Private) -> None:
        self.engine, self.settings, self.numbers = engine, settings, engine.numbers
        self.private, self.admission = private, Admission(settings)
        depth = self.numbers.queue.labels
        threads = settings.threads
        if engine.remote:
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
        self.readiness = Shared(self.aside, engine.readiness, READY_FRESH)
        self.counted = Shared(self.aside, engine.count, 0.0)
        self.held = 0
        """Bytes of large bodies that are being read."""

    def path(self, by_method: Mapping[str, Operation], path: str) -> Route:
        """The route of a path, with an operation for each method."""
        endpoints = {method: self.counting(operation.name, self._answers(operation), operation)
                     for method, operation in by_method.items()}  # fmt: skip
        allowed = ", ".join(sorted({*endpoints, *(("HEAD",) if "GET" in endpoints else ())}))

        async def none(request: Request) -> Response:
            raise not_allowed(request, allowed)

        other = self.counting(OTHER, none)

        async def endpoint(request: Request) -> Response:
            method = "GET" if request.method == "HEAD" else request.method
            return await endpoints.get(method, other)(request)

        route = Route(path, Endpoint(endpoint))
        # An id may contain line breaks.
        route.path_regex = re.compile(route.path_regex.pattern, re.DOTALL)
        return route

    def counting(
        self,
        name: str,
        answer: Callable[[Request], Awaitable[Response]],
        operation: Operation | None = None,
    ) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that counts, times and logs its answers, and answers errors as problems."""
        admin = operation is not None and operation.access == "admin"

        async def endpoint(request: Request) -> Response:
            started = time.perf_counter()
            try:
                response = await answer(request)
            except (
                asyncio.CancelledError
            ):  # the server stops, and its time for open requests is over
                wait = {"Retry-After": str(STOPPING_SECONDS)}
                response = Problem(503, "the server is stopping; try again", wait).response()
            except Exception as error:  # noqa: BLE001  (each has its answer)
                response = problem_of(error, name, self.private, admin=admin).response()
                # Its frames refer to the task that refers to it, and to loaded data: release both.
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
            if operation.writes(call.body):
                self.admission.check_access("write", request)
            found = operation.at_once(self.engine, call)
            if found is None:
                found = await lane.answer(self._work, operation, call)
            elif isinstance(found, (asyncio.Future, Future)):
                found = await lane.completed(found)
            return _json(found)

        return answer

    def _work(self, operation: Operation, call: Call) -> Any:
        """An answer as its bytes, or a future of it."""
        found = operation.answers(self.engine, call)
        return found if isinstance(found, (asyncio.Future, Future)) else _dumped(found)

    async def shard(self, request: Request) -> Response:
        """Answer a server that ranks through this one; see :mod:`limerank.serving.shards`."""
        if request.method != "POST":
            raise not_allowed(request, "POST")
        self.admission.admit("read", request)
        given = request.headers.get("content-type", "")
        if given != MEDIA:
            raise Problem(415, f"the body's type is {given[:80]!r}, expected {MEDIA}")
        async with self._received(request) as data:
            found = await self.requests.answer(self.engine.shard_top, data)
        return Response(found, headers=HEADERS, media_type=MEDIA)

    async def _is_ready(self) -> Any:
        """The engine's answer to ``/readyz``. Clients need no key, so a failure has no details."""
        try:
            found = await self.readiness.result(READY_SECONDS)
        except Exception as error:  # noqa: BLE001  (any error means that requests fail)
            self.numbers.store_up.set(isinstance(error, ShardError))
            log.error("not ready: %s: %s", type(error).__name__, getattr(error, "detail", error))
            what = "the store cannot be reached"
            if isinstance(error, FormatError):
                what = "the model or index is damaged; see the server's log"
            elif isinstance(error, ShardError):
                what = "no shard answers"
            raise Problem(503, what, {"Retry-After": "2"}) from None
        self.numbers.store_up.set(1)
        return found

    async def metrics(self, request: Request) -> Response:
        """The metrics. Where the store cannot be reached, its counts keep their last values."""
        self.admission.admit("read", request)
        try:
            await self.counted.result(COUNT_SECONDS)
            self.numbers.store_up.set(1)
        except Exception as error:  # noqa: BLE001  (metrics matter most when something fails)
            self.numbers.store_up.set(0)
            detail = getattr(error, "detail", error)
            log.error("the store's counts are unknown: %s: %s", type(error).__name__, detail)
        text = self.numbers.text()
        return Response(text, headers=HEADERS, media_type="text/plain; version=0.0.4")

    async def _body(self, operation: Operation, request: Request) -> Any:
        """A checked body; a large one is checked in another thread."""
        async with self._received(request) as data:
            if len(data) <= bodies.SMALL:
                return bodies.checked(operation.body, data)
            return await self.bodies.answer(bodies.checked, operation.body, data)

    @asynccontextmanager
    async def _received(self, request: Request) -> AsyncIterator[bytes]:
        """The bytes of a body, which count as long as the block uses them."""
        most = self.settings.body_bytes
        length = request.headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > most):
            raise Problem(413, f"the body has {length[:40]} bytes, expected at most {most}")
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
                                503, "too many large bodies are being read; try again",
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
            yield data
        finally:
            self.held -= held

    async def close(self) -> None:
        """Start no more work, and close the engine; threads that hang are not waited for."""
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
            log.error(
                "the store did not close within %g s; the server stops without it", CLOSE_SECONDS
            )


def _dumped(found: Any) -> bytes:
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    try:
        return orjson.dumps(found, option=options)
    except TypeError:  # an integer of more than 64 bits, stored by an earlier version
        return json.dumps(found, default=str).encode()


def _json(found: Any) -> Response:
    data = found if isinstance(found, bytes) else _dumped(found)
    return Response(data, headers=HEADERS, media_type="application/json")


class Endpoint:
    """An endpoint for all methods; a plain function would take GET alone."""

    def __init__(self, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)
