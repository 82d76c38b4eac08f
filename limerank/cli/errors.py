"""How a command ends: its exit status, and one message on standard error.

0    the command succeeded
1    an unexpected error, a fault of limerank; its trace is written to a file
2    an error that the user can fix: an option, a file, a setting
130  interrupted with Ctrl-C
"""

from __future__ import annotations

import errno
import tempfile
import traceback

from limerank.errors import LimerankError
from limerank.files import FULL

FAULT, USAGE, INTERRUPTED = 1, 2, 130


def exit_text(interrupted: str = "") -> str:
    """The exit statuses of a command, as ``--help`` states them.

    Args:
        interrupted: what Ctrl-C leaves behind, and how to continue.
    """
    after = f" ({interrupted})" if interrupted else ""
    return (
        "Exit status: 0 success; 1 unexpected error, a fault of limerank; 2 an error that you can "
        f"fix, the message says how; {INTERRUPTED} interrupted{after}."
    )


LONGEST_MESSAGE = 500
"""Characters of an unexpected error's message that are shown; the trace contains all of it."""


def outcome(error: Exception, command: str) -> tuple[int, str]:
    """Exit status and message of an error that ended ``limerank COMMAND``."""
    if isinstance(error, LimerankError):
        return USAGE, error.detail
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        if error.errno in FULL and not names:
            return USAGE, f"the disk is full ({error.strerror}); free some space and try again"
        text = ": ".join([*names, error.strerror or str(error) or type(error).__name__])
        if error.errno in FULL:
            text += "; free some space there and try again"
        elif error.errno == errno.EIO:
            text += "; check the disk and try again"
        return USAGE, text
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        text = f"not enough memory ({_one_line(error)}); try smaller batches or models"
        return USAGE, text
    trace = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="limerank-trace-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(trace)
        trace_text = f"the trace is in {file.name}"
    except OSError:
        trace_text = f"limerank --debug {command} shows the trace"
    return FAULT, f"{type(error).__name__}: {_one_line(error)} (unexpected; {trace_text})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:LONGEST_MESSAGE]
