"""A training by several processes of a cluster: they are started together, and all of them again
from the last checkpoint when one has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from limerank.cluster.jobs import RETRIES
from limerank.errors import LimerankError, SpecError
from limerank.runs.alarms import ALARMS

POLL_SECONDS = 0.5
"""Between two looks at the output of process 0."""
LINGER_SECONDS = 30.0
"""That the other processes have to end by themselves after one has failed, so that the error of
the one that failed first is known."""


class Processes(Protocol):
    """The processes of one attempt."""

    def ended(self, seconds: float) -> tuple[int, str | Exception] | None:
        """Wait for a process to end.

        Args:
            seconds: to wait, at most.

        Returns:
            Its rank, and the text of its result or why it failed; None: none has ended. Each
            process is returned once.
        """

    def output(self) -> str:
        """What process 0 has printed since the last call."""

    def stop(self) -> None:
        """End all processes."""


def train_together(
    begin: Callable[[Mapping[str, Any]], Processes],
    job: Mapping[str, Any],
    size: int,
    *,
    retries: int = RETRIES,
    stream: TextIO | None = None,
) -> str:
    """Train by ``size`` processes; after one has ended before the training has, start all again.

    They go on from the last checkpoint, so that the weights have the same bits as those of a
    training that was never interrupted.

    Args:
        begin: starts the processes of an attempt; ``job`` is what it is given, with ``overwrite``
            false where this training has begun the run already.
        job: arguments of :func:`~limerank.training.trainer.train` as JSON values; ``out`` is an
            absolute path.
        size: how many there are.
        retries: further attempts, at most. An error of the data, the options or the run folder has
            none.
        stream: where the output of process 0 goes; standard error when not given.

    Returns:
        The text of the result, or that it is lost where process 0 has ended after it had stored the
        run.

    Raises:
        SpecError: a number is not valid.
        LimerankError: the training failed, and the attempts are used up.
    """
    if size < 1 or retries < 0:
        raise SpecError(
            f"{size} processes and {retries} retries are given, expected at least 1 and at least 0"
        )
    stream = sys.stderr if stream is None else stream
    out = Path(job["out"])
    replaced, last = _identity(out), ""
    finished = _is_finished(out)
    for attempt in range(1, retries + 2):
        overwrite = bool(job.get("overwrite")) and _identity(out) == replaced
        processes = begin({**job, "overwrite": overwrite})
        try:
            found = _result(processes, size, stream)
        finally:
            processes.stop()
        if isinstance(found, str):
            return found
        if _is_finished(out) and not (finished and _identity(out) == replaced):
            return (
                f"{out}: trained and stored; process 0 has ended before it printed the result, "
                "which limerank evaluate shows"
            )
        if _is_certain(found):
            raise found
        last = _first_line(found)
        if attempt <= retries:
            print(
                f"a process has ended ({last}); all are started again, from the last "
                f"checkpoint ({attempt} of {retries})",
                file=stream,
                flush=True,
            )
    raise LimerankError(
        f"the training has ended early {retries + 1} times, at last: {last}. What "
        f"its last checkpoint contains stays in {out}: correct the cause, and run the same command "
        "again to go on"
    )


def _result(processes: Processes, size: int, stream: TextIO) -> str | Exception:
    """The text of process 0, or the error to report of those that failed."""
    errors: dict[int, Exception] = {}
    running, until = size, float("inf")
    # How long a training takes has no limit; processes that wait for each other have one
    # (collective_seconds), and end then.
    while running and time.monotonic() < until:
        ended = processes.ended(POLL_SECONDS)
        if text := processes.output():
            stream.write(text)
            stream.flush()
        if ended is None:
            continue
        rank, found = ended
        running -= 1
        if isinstance(found, Exception):
            errors[rank] = found
            until = min(until, time.monotonic() + LINGER_SECONDS)
        elif rank == 0:
            return found
    assert errors, "process 0 has ended without a result"
    # Those that have lost another one raise LimerankError itself: the others know the reason.
    return min(errors.values(), key=lambda one: (not _is_certain(one), type(one) is LimerankError))


def _is_certain(error: Exception) -> bool:
    """Whether a further attempt would meet the error again."""
    return isinstance(error, LimerankError) and type(error) is not LimerankError


def _identity(out: Path) -> tuple[int, int] | None:
    """Tells a run from one that takes its place; None: there is none."""
    try:
        found = (out / "config.json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _is_finished(out: Path) -> bool:
    return (out / ALARMS).exists()


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0][:300]
    if isinstance(error, LimerankError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
