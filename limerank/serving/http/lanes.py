"""Lanes: threads that answer one kind of requests, bounded like the requests that wait for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from prometheus_client import Gauge

from limerank.serving.http.problems import Problem

AnyFuture = asyncio.Future[Any] | Future[Any]


class Lane:
    """Requests of one kind in separate threads: other kinds never wait for them.

    Args:
        name: the name of the threads.
        threads: requests that are computed at a time.
        waiting: requests that may wait; further ones are answered with 503.
        seconds: time limit of each request, waiting included; after it the answer is 503.
        depth: a gauge of the requests in this lane.
    """

    def __init__(
        self, name: str, threads: int, waiting: int, seconds: float, depth: Gauge | None = None
    ) -> None:
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.most, self.seconds, self.inside = threads + waiting, seconds, 0
        self._depth = depth

    async def answer(self, work: Callable[..., Any], *given: Any) -> Any:
        """The result of the work, computed in a thread of this lane."""
        if self.inside >= self.most:
            raise Problem(503, "too many requests are waiting; try again", {"Retry-After": "1"})
        return await self.completed(
            asyncio.get_running_loop().run_in_executor(self.pool, work, *given)
        )

    async def completed(self, future: AnyFuture) -> Any:
        """The result of a future, or of the future that it returns, within the time limit."""
        found: Any = future
        until = time.monotonic() + self.seconds
        while isinstance(found, (asyncio.Future, Future)):
            work = asyncio.wrap_future(found) if isinstance(found, Future) else found
            self._count(1)
            work.add_done_callback(self._ended)  # it goes on, even where the request ends before
            done, _ = await asyncio.wait((work,), timeout=max(0.0, until - time.monotonic()))
            if not done:
                raise Problem(
                    503, f"not answered within {self.seconds:g} s; try again", {"Retry-After": "1"}
                )
            found = work.result()
        return found

    def close(self) -> None:
        """Start no more work. Running work is not waited for."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _ended(self, work: asyncio.Future[Any]) -> None:
        self._count(-1)
        if not work.cancelled():
            work.exception()  # retrieved, or asyncio would log it

    def _count(self, more: int) -> None:
        self.inside += more
        if self._depth is not None:
            self._depth.set(self.inside)


class Shared:
    """Work whose result many requests share: a check that hangs occupies one thread, however many
    requests wait for it.

    Args:
        lane: the lane whose threads run the work.
        work: computes the result.
        fresh: seconds for which a result is returned again.
    """

    def __init__(self, lane: Lane, work: Callable[[], Any], fresh: float) -> None:
        self._lane, self._work, self._fresh = lane, work, fresh
        self._task: asyncio.Future[Any] | None = None
        self._ended = 0.0

    async def result(self, seconds: float) -> Any:
        """The result of the work, or its exception; TimeoutError after so many seconds."""
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
