"""The log: JSON, one object a line, of this package, of the HTTP server and of everything else."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any, TextIO

import orjson

from limerank.serving.http.private import Private

COUNTED = ("Invalid HTTP request", "Unsupported upgrade request", "Exceeded concurrency limit")
"""Messages of the HTTP server that any client can cause: they are counted and not logged."""


class JsonLines(logging.Formatter):
    """Log records as JSON, one per line: no ids of users or items, no keys and no passwords."""

    FIELDS = ("route", "status", "ms", "run", "index_version", "seconds")

    def __init__(self, private: Private | None = None) -> None:
        super().__init__()
        self._private = private or Private()

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "message": message if message == "request" else self._private.logged(message),
        }
        line |= {name: getattr(record, name) for name in self.FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["trace"] = self._private.logged(self.formatException(record.exc_info))
        return orjson.dumps(line, default=str).decode()


def log_json(private: Private, to: TextIO = sys.stderr) -> None:
    """Log all records of this process as JSON, warnings and errors that end a thread included."""
    handler = logging.StreamHandler(to)
    handler.setFormatter(JsonLines(private))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in ("limerank", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("limerank.serving", "uvicorn", "uvicorn.error", "uvicorn.access"):
        one = logging.getLogger(name)
        one.handlers, one.propagate = [], True
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: not str(record.msg).startswith(COUNTED)
    )
    logging.captureWarnings(True)
    # No line shows these, so they need not be looked up.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False

    def ended(error: threading.ExceptHookArgs) -> None:
        if error.exc_value is not None:
            logging.getLogger("limerank.serving").error(
                "a thread ended with an error",
                exc_info=(error.exc_type, error.exc_value, error.exc_traceback),
            )

    threading.excepthook = ended
