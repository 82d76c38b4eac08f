"""All parts of a job, by several workers: each is tried a bounded number of times."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from limerank.errors import DataError, FormatError, LimerankError, SpecError, UnknownError
from limerank.parts import Part
from limerank.progress import Bar

log = logging.getLogger("limerank.cluster")
CERTAIN = (DataError, SpecError, UnknownError)
"""Errors that a further attempt would meet again."""
RETRIES = 3
"""Further attempts of a part that failed."""


class Workers(Protocol):
    """What computes parts. Each task that was begun ends once."""

    @property
    def most(self) -> int:
        """Tasks that are begun at a time, at most."""

    def begin(self, number: int) -> None:
        """Begin a part."""

    def ended(self) -> tuple[int, Exception | None]:
        """Wait for a task to end: its part, and why it failed; None: it did not."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop all tasks."""


def run_parts(
    workers: Callable[[Mapping[str, Any]], Workers],
    job: Mapping[str, Any],
    parts: int,
    *,
    retries: int = RETRIES,
    quiet: bool = True,
) -> None:
    """Compute all parts of a job. Those that are complete cost nothing, so a job whose driver was
    killed goes on when it is called again.

    Args:
        workers: makes what computes parts of a job.
        job: what to compute, as JSON values; see :mod:`limerank.cluster.work`.
        parts: how many there are.
        retries: further attempts of a part, at most. An error of the data or the options has none.
        quiet: show no progress.

    Raises:
        SpecError: a number is not valid.
        LimerankError: the attempts of a part are used up; the others are stopped, and what is
            complete stays.
    """
    if parts < 1 or retries < 0:
        raise SpecError(
            f"{parts} parts and {retries} retries are given, expected at least 1 and at least 0"
        )
    waiting, failed, begun, complete = deque(range(1, parts + 1)), Counter[int](), 0, 0
    with workers(job) as pool, Bar("parts", total=parts, unit="parts", quiet=quiet) as bar:
        while complete < parts:
            while waiting and begun < pool.most:
                pool.begin(waiting.popleft())
                begun += 1
            number, error = pool.ended()
            begun -= 1
            if error is None:
                complete += 1
                bar.advance(1)
                continue
            failed[number] += 1
            log.warning("part %s failed: %s", Part(number, parts), error)
            if isinstance(error, CERTAIN) or failed[number] > retries:
                raise _used_up(Part(number, parts), failed[number], error) from None
            waiting.append(number)


def _used_up(part: Part, attempts: int, error: Exception) -> LimerankError:
    """The error of a part that is not tried again."""
    tries = "" if attempts == 1 else f" {attempts} times"
    kind = type(error) if isinstance(error, LimerankError) else FormatError
    text = str(error) or type(error).__name__
    return kind(f"part {part} failed{tries}, and the job is stopped: {text}")
