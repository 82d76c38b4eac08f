"""What goes wrong, as application/problem+json (RFC 9457)."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from limerank.errors import (
    DataError,
    FormatError,
    LimerankError,
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
"""Of every answer."""
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
MOST_DETAIL = 1_000
"""Characters of a detail."""


class Problem(Exception):  # noqa: N818  # it is an answer
    """An answer that tells what went wrong."""

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


def problem_of(error: Exception, route: str, private: Private, *, admin: bool) -> Problem:
    """An error as an answer that tells nothing of how the server is set up; its log tells more.

    Args:
        error: what was raised.
        route: for the log.
        private: what no answer holds.
        admin: whether an administrator asks, who is told what is wrong with a run or an index.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return Problem(error.status_code, str(error.detail))
    if isinstance(error, ClientDisconnect):
        return Problem(400, "the client went away")
    if isinstance(error, UnknownError):
        return Problem(404, private.hidden(str(error)))
    if isinstance(error, (SpecError, DataError)):
        return Problem(422, private.hidden(str(error)))
    if isinstance(error, FormatError) and admin:
        return Problem(409, private.hidden(str(error)))
    # From here on it is the server's own business: the log has the details.
    if isinstance(error, (LimerankError, OSError)):
        detail = error.detail if isinstance(error, LimerankError) else error
        log.error("%s: %s", type(error).__name__, detail, extra={"route": route})
    else:
        log.error("a request failed", exc_info=error, extra={"route": route})
    if isinstance(error, StoreError):
        return Problem(503, private.hidden(str(error)), {"Retry-After": "2"})
    if isinstance(error, OSError) and error.errno in FULL:
        return Problem(503, "the server's disk is full; try again later", {"Retry-After": "10"})
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return Problem(409, "the server may not write there; its log says where")
    if isinstance(error, FormatError):
        return Problem(409, "what is stored of this is damaged; the server's log says more")
    return Problem(500, "an error of the server; its log says more")
