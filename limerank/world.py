"""The processes that work on one thing together, such as a training; most often one of them alone.

All processes of a world make the same calls in the same order. What one of them decides, or reads
from a clock or a disk, the others learn from it (:func:`decided`), so that they stay together.
limerank.training.distributed starts the processes of a training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from limerank import errors
from limerank.errors import LimerankError

T = TypeVar("T")


class World(Protocol):
    """A group of processes, each of which makes the same calls in the same order."""

    @property
    def rank(self) -> int:
        """Number of this process, 0 .. size - 1; process 0 writes the run folder."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over all processes; of equal shape in each."""

    def gather(self, values: Tensor) -> list[Tensor]:
        """The tensors of all processes, in the order of their ranks; sizes of the first dimension
        may differ."""

    def exchange(self, parts: Sequence[Tensor], sizes: Sequence[int] | None = None) -> list[Tensor]:
        """Send ``parts[r]`` to process r, and return what each process sent to this one, in the
        order of their ranks. Sizes of the first dimension may differ; ``sizes``: those of what is
        returned, where they are known."""

    def from_first(self, values: Tensor) -> Tensor:
        """The tensor of process 0; of equal shape in each."""

    def barrier(self) -> None:
        """Wait until every process has come here."""


class Alone:
    """A world of one process."""

    rank, size = 0, 1

    def sum(self, values: Tensor) -> Tensor:
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        return [values]

    def exchange(self, parts: Sequence[Tensor], sizes: Sequence[int] | None = None) -> list[Tensor]:
        return list(parts)

    def from_first(self, values: Tensor) -> Tensor:
        return values

    def barrier(self) -> None:
        return


def decided(world: World, action: Callable[[], T]) -> T:
    """What ``action`` returns on process 0, which alone calls it.

    Args:
        world: the processes.
        action: it returns what JSON can express, or raises.

    Raises:
        LimerankError: process 0 raised it; every process does.
    """
    if world.size == 1:
        return action()
    found: dict[str, Any] = {}
    if world.rank == 0:
        try:
            found = {"value": action()}
        except LimerankError as error:
            _sent(world, {"error": type(error).__name__, "text": str(error)})
            raise
    found = _sent(world, found)
    if "error" in found:
        kind = getattr(errors, found["error"], LimerankError)
        raise kind(f"process 0 of {world.size}: {found['text']}")
    value: T = found["value"]
    return value


def agreed(world: World, holds: bool) -> bool:
    """Whether something holds on every process."""
    if world.size == 1:
        return holds
    return int(world.sum(torch.tensor([0 if holds else 1]))) == 0


def _sent(world: World, found: dict[str, Any]) -> dict[str, Any]:
    """The mapping of process 0, as JSON: floats arrive with the same bits, NaN as well."""
    text = torch.frombuffer(bytearray(json.dumps(found).encode()), dtype=torch.uint8)
    size = world.from_first(torch.tensor([len(text)]))
    if world.rank:
        text = torch.zeros(int(size), dtype=torch.uint8)
    sent: dict[str, Any] = json.loads(bytes(world.from_first(text).tolist()))
    return sent


def dealt(plan: Sequence[T], world: World) -> list[T]:
    """The batches of a plan that this process computes: every ``size``-th one.

    Every process has as many, so that all make the same number of calls to each other: the last one
    of a process may be a spare, the last of the plan once more, which :func:`collected` drops.
    """
    rounds = -(-len(plan) // world.size)
    last = len(plan) - 1
    return [plan[min(turn * world.size + world.rank, last)] for turn in range(rounds)]


def collected(world: World, own: Sequence[Tensor], total: int) -> list[Tensor]:
    """Results of the batches of a plan, in its order, from what each process has of those that it
    was :func:`dealt`.

    Args:
        world: the processes.
        own: of each batch of this process, [n, ...]; n differs.
        total: batches of the plan.
    """
    if world.size == 1 or not total:
        return list(own)
    sizes = world.gather(torch.tensor([len(one) for one in own]))
    values = world.gather(torch.cat(list(own)))
    parts = [one.split(lengths.tolist()) for one, lengths in zip(values, sizes, strict=True)]
    return [parts[at % world.size][at // world.size] for at in range(total)]
