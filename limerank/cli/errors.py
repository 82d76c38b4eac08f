"""How a command ends: its exit status, and one message on standard error.

0    done
1    a fault of limerank; its trace is written to a file
2    something that the user can fix: an option, a file, a setting
130  interrupted
"""

from __future__ import annotations

import tempfile
import traceback

from limerank.errors import LimerankError
from limerank.files import FULL

FAULT, USAGE, INTERRUPTED = 1, 2, 130

LONGEST_MESSAGE = 500
"""Characters of an unforeseen error's text that are shown; its trace holds all of it."""


def outcome(error: Exception, command: str) -> tuple[int, str]:
    """Exit status and message of an error."""
    if isinstance(error, LimerankError):
        return USAGE, error.detail
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        if error.errno in FULL and not names:
            return (
                USAGE,
                f"a disk that is written to is full ({error.strerror}); make room and try again",
            )
        return USAGE, ": ".join([*names, error.strerror or str(error) or type(error).__name__])
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            USAGE,
            f"not enough memory ({_one_line(error)}); try smaller batches or models",
        )
    trace = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="limerank-trace-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(trace)
        where = f"its trace is in {file.name}"
    except OSError:
        where = f"limerank --debug {command} shows its trace"
    return FAULT, f"{type(error).__name__}: {_one_line(error)} (unforeseen; {where})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:LONGEST_MESSAGE]
