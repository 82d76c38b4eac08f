"""Work that runs on threads while its results are in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")


def in_order(work: Callable[[A], B], inputs: Iterable[A], threads: int = 2) -> Iterator[B]:
    """``map(work, inputs)`` on threads: at most ``threads`` results exist before they are read."""
    pending: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for one in inputs:
                if len(pending) >= threads:
                    yield pending.popleft().result()
                pending.append(pool.submit(work, one))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def ahead(inputs: Iterable[A], depth: int = 1) -> Iterator[A]:
    """The same values, produced in another thread up to ``depth`` ahead of their reader."""
    source = iter(inputs)
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[Any]] = deque()
        try:
            for _ in range(depth + 1):
                pending.append(pool.submit(next, source, end))
            while True:
                value = pending.popleft().result()
                if value is end:
                    return
                pending.append(pool.submit(next, source, end))
                yield value
        finally:
            for future in pending:
                future.cancel()
