"""Measurements side by side, each worker a process of its own: how far they are, and what fails."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

from limerank.progress import Bar

Job = tuple[Any, ...]
"""A function of a module, and its arguments."""


def workers(processes: int) -> ProcessPoolExecutor:
    """Fresh processes: none inherits threads or a random state."""
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def finish(pool: ProcessPoolExecutor, what: str, jobs: Iterable[Job]) -> None:
    """Do all of them. When one fails, those that have not begun are left, and its error is told as
    soon as those under way have ended."""
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
