"""The ASGI application: the routes, the description, the metrics and the page.

Errors are answered as application/problem+json (RFC 9457).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limerank.serving.http.gate import OTHER, Endpoint, Gate
from limerank.serving.http.openapi import describe
from limerank.serving.http.private import Private
from limerank.serving.http.problems import HEADERS, Problem, no_route, not_allowed
from limerank.serving.http.routes import OPERATIONS, Engine, Operation
from limerank.serving.http.settings import Settings
from limerank.serving.shards.wire import PATH as SHARD_PATH

WEB = Path(__file__).parents[1] / "web"


def application(engine: Engine, settings: Settings, private: Private | None = None) -> Starlette:
    """The ASGI application.

    Args:
        engine: computes the answers.
        settings: keys, limits, times.
        private: texts that no answer may contain.
    """
    gate = Gate(engine, settings, private or Private())
    description = orjson.dumps(describe(version("limerank"), OPERATIONS, open_=settings.open))

    async def openapi(request: Request) -> Response:
        gate.admission.admit(None, request)
        return Response(description, headers=HEADERS, media_type="application/json")

    async def unknown(request: Request) -> Response:
        gate.admission.admit(None, request)
        raise no_route(request)

    missing = gate.counting(OTHER, unknown)

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
    routes.append(Route(SHARD_PATH, Endpoint(gate.counting(f"POST {SHARD_PATH}", gate.shard))))
    if WEB.exists():
        files = {f"/{file.relative_to(WEB).as_posix()}" for file in WEB.rglob("*")}
        page = _Page(StaticFiles(directory=WEB, html=True), gate, {"/", *files, *read})
        routes.append(Mount("/", page))
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={404: not_found},
    )


class _Page:
    """The page's files, with the headers of every answer.

    Args:
        app: answers with the files.
        gate: the gate of the application.
        paths: the paths of the files, and of other routes that allow GET and HEAD alone.
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
                problem = no_route(request)
                if request.method not in ("GET", "HEAD") and request.url.path in self._paths:
                    problem = not_allowed(request, "GET, HEAD")
            status = problem.status
            await problem.response()(scope, receive, send)
        self._gate.count(name, status, time.perf_counter() - started)
