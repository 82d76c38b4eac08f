"""Measurements in parallel, each in a worker process, with progress and the first failure."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

from limerank.progress import Bar

Job = tuple[Any, ...]
"""A function of a module, and its arguments."""


def workers(processes: int) -> ProcessPoolExecutor:
    """Spawned processes, which inherit neither threads nor random states."""
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def finish(pool: ProcessPoolExecutor, what: str, jobs: Iterable[Job]) -> None:
    """Run all jobs. When one fails, jobs that have not started are cancelled, and its error is
    raised as soon as the running ones have ended."""
    waiting = [pool.submit(*job) for job in jobs]
    if not waiting:
        return
    try:
        with Bar(what, total=len(waiting), unit="jobs") as bar:
            for done, future in enumerate(as_completed(waiting), 1):
                future.result()
                bar.advance(1, f"{done} of {len(waiting)}")
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
