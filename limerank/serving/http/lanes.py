"""Threads that requests are answered by: so many of a kind at a time, so many more that wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from prometheus_client import Gauge

from limerank.serving.http.problems import Problem

Promise = asyncio.Future[Any] | Future[Any]


class Lane:
    """Requests of one kind, in threads of their own: those of another never wait for them.

    Args:
        name: of the threads.
        threads: requests that are computed at a time.
        waiting: requests that wait, at most; more are 503.
        seconds: in which each has to be answered; else 503.
        depth: is told how many are inside.
    """

    def __init__(
        self, name: str, threads: int, waiting: int, seconds: float, depth: Gauge | None = None
    ) -> None:
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.most, self.seconds, self.inside = threads + waiting, seconds, 0
        self._depth = depth

    async def answer(self, work: Callable[..., Any], *given: Any) -> Any:
        """What the work gives, in a thread of this lane."""
        if self.inside >= self.most:
            raise Problem(503, "too many requests are waiting; try again", {"Retry-After": "1"})
        return await self.completed(
            asyncio.get_running_loop().run_in_executor(self.pool, work, *given)
        )

    async def completed(self, promise: Promise) -> Any:
        """What was promised, and what that promised, within the time that a request has."""
        found: Any = promise
        until = time.monotonic() + self.seconds
        while isinstance(found, (asyncio.Future, Future)):
            work = asyncio.wrap_future(found) if isinstance(found, Future) else found
            self._count(1)
            work.add_done_callback(self._ended)  # it goes on, also where nobody waits any more
            done, _ = await asyncio.wait((work,), timeout=max(0.0, until - time.monotonic()))
            if not done:
                raise Problem(
                    503, f"not answered within {self.seconds:g} s; try again", {"Retry-After": "1"}
                )
            found = work.result()
        return found

    def close(self) -> None:
        """Begin nothing more. What is under way is not waited for."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _ended(self, work: asyncio.Future[Any]) -> None:
        self._count(-1)
        if not work.cancelled():
            work.exception()  # it is taken, whoever asks for it

    def _count(self, more: int) -> None:
        self.inside += more
        if self._depth is not None:
            self._depth.set(self.inside)


class Shared:
    """Work that many ask for and that is done once for all of them: a check that hangs holds one
    thread, however many wait for it.

    Args:
        lane: whose threads do it.
        work: what is done.
        fresh: seconds for which what was found is given again.
    """

    def __init__(self, lane: Lane, work: Callable[[], Any], fresh: float) -> None:
        self._lane, self._work, self._fresh = lane, work, fresh
        self._task: asyncio.Future[Any] | None = None
        self._ended = 0.0

    async def result(self, seconds: float) -> Any:
        """What the work gives; raises what it raises, and TimeoutError."""
        task = self._task
        if task is None or (task.done() and time.monotonic() > self._ended + self._fresh):
            task = asyncio.get_running_loop().run_in_executor(self._lane.pool, self._work)
            task.add_done_callback(self._done)
            self._task = task
        done, _ = await asyncio.wait((task,), timeout=seconds)
        if not done:
            raise TimeoutError
        return task.result()

    def _done(self, task: asyncio.Future[Any]) -> None:
        self._ended = time.monotonic()
        if not task.cancelled():
            task.exception()
