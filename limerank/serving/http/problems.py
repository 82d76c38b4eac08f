"""Errors as application/problem+json (RFC 9457)."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from limerank.errors import (
    DataError,
    FormatError,
    LimerankError,
    ShardError,
    SpecError,
    StoreError,
    UnknownError,
)
from limerank.files import FULL
from limerank.serving.http.private import Private

log = logging.getLogger("limerank.serving")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Headers of every answer."""
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
MOST_DETAIL = 1_000
"""Characters of a detail, at most."""


class Problem(Exception):  # noqa: N818  # an answer, not an error of the server
    """An answer that explains what is wrong."""

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, headers or {}, more

    @property
    def phrase(self) -> str:
        """The status in words."""
        return HTTPStatus(self.status).phrase

    def body(self) -> bytes:
        """The problem as JSON."""
        found = {
            "type": "about:blank",
            "title": self.phrase,
            "status": self.status,
            "detail": self.detail[:MOST_DETAIL],
            **self.more,
        }
        return orjson.dumps(found)

    def response(self) -> Response:
        return Response(
            self.body(),
            self.status,
            headers={**HEADERS, **self.headers},
            media_type="application/problem+json",
        )


def not_allowed(request: Request, allowed: str) -> Problem:
    """405: the route has other methods."""
    return Problem(
        405,
        f"{request.method[:20]} is not a method of this route, which allows {allowed}",
        {"Allow": allowed},
    )


def no_route(request: Request) -> Problem:
    """404: no route has this path."""
    return Problem(404, f"{request.method[:20]}: there is no such route")


def problem_of(error: Exception, route: str, private: Private, *, admin: bool) -> Problem:
    """An error as an answer that reveals nothing of the server's set-up; the log has the details.

    Args:
        error: the exception.
        route: the name of the route, for the log.
        private: texts that no answer may contain.
        admin: whether an administrator asks, who may learn what is wrong with a run or an index.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return Problem(error.status_code, str(error.detail))
    if isinstance(error, ClientDisconnect):
        return Problem(400, "the client disconnected")
    if isinstance(error, UnknownError):
        return Problem(404, private.hidden(str(error)))
    if isinstance(error, (SpecError, DataError)):
        return Problem(422, private.hidden(str(error)))
    if isinstance(error, FormatError) and admin:
        return Problem(409, private.hidden(str(error)))
    # All other errors are the server's: the log has the details.
    if isinstance(error, (LimerankError, OSError)):
        detail = error.detail if isinstance(error, LimerankError) else error
        log.error("%s: %s", type(error).__name__, detail, extra={"route": route})
    else:
        log.error("a request failed", exc_info=error, extra={"route": route})
    if isinstance(error, ShardError):
        return Problem(503, private.hidden(str(error)), {"Retry-After": "1"})
    if isinstance(error, StoreError):
        return Problem(503, private.hidden(str(error)), {"Retry-After": "2"})
    if isinstance(error, OSError) and error.errno in FULL:
        return Problem(503, "the server's disk is full; try again later", {"Retry-After": "10"})
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return Problem(409, "the server has no permission to write there; see its log")
    if isinstance(error, FormatError):
        return Problem(409, "the stored data is damaged; see the server's log")
    return Problem(500, "internal error; see the server's log")
