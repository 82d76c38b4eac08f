"""Worlds for tests: of threads, in one process; and in float64, where rounding does not hide what
several processes do otherwise than one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch


class Threads:
    """A world of threads: every call meets those of the others."""

    def __init__(self, rank: int, size: int, shared: dict[str, Any]) -> None:
        self.rank, self.size, self.shared = rank, size, shared

    def gather(self, values):
        self.shared["values"][self.rank] = values
        self.barrier()
        found = list(self.shared["values"])
        self.barrier()
        return found

    def sum(self, values):
        return torch.stack(self.gather(values)).sum(0)

    def exchange(self, parts: Sequence[torch.Tensor], sizes=None):
        found = [sent[self.rank] for sent in self.gather(list(parts))]
        assert sizes is None or [len(one) for one in found] == list(sizes)
        return found

    def from_first(self, values):
        return self.gather(values)[0].clone()

    def barrier(self):
        self.shared["barrier"].wait(60)


def together(size: int, work: Callable[[Threads], Any]) -> list[Any]:
    """What ``work`` returns in each of ``size`` threads, which form a world."""
    shared = {"barrier": threading.Barrier(size), "values": [None] * size}
    found: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            found[rank] = work(Threads(rank, size, shared))
        except BaseException as error:  # noqa: BLE001  # raised again below
            errors.append(error)
            shared["barrier"].abort()  # nobody waits for a thread that failed

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    of_their_own = [one for one in errors if not isinstance(one, threading.BrokenBarrierError)]
    if errors:
        raise (of_their_own or errors)[0]
    return found


def doubled(one: Any) -> Any:
    """A batch with all its floats in float64."""
    if isinstance(one, torch.Tensor):
        return one.double() if one.is_floating_point() else one
    if not is_dataclass(one):
        return one
    return replace(one, **{field.name: doubled(getattr(one, field.name)) for field in fields(one)})
