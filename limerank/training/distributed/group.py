"""The processes of a training that torchrun, or another launcher of torch.distributed, starts.

gloo connects processes on CPUs and NCCL those on GPUs. Nothing is pickled: what processes exchange
are tensors of known types, and JSON.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from limerank.devices import device_of
from limerank.errors import LimerankError, SpecError
from limerank.world import Alone, World

START_SECONDS = 60
"""In which all processes have found each other, at most. Where they have longer, gloo waits for
minutes for processes that were killed before it notices."""
COLLECTIVE_SECONDS = 600
"""For which a process waits for another one that does not answer, at most. One that ends is noticed
at once."""
RESTARTS, SHARED_STORE = "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE"
"""Variables that torchrun sets for its processes."""
UNSHARED = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Variable that torchrun reads: "1": each restart meets at an address of its own."""

T = TypeVar("T")


def launched() -> bool:
    """Whether a launcher has started this process as one of several, by the variables that
    torch.distributed reads."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


@contextmanager
def processes(device: str = "cpu", seconds: float = COLLECTIVE_SECONDS) -> Iterator[World]:
    """The world of this process: all that the launcher started, or this one alone.

    Args:
        device: where they compute: "cpu", or "cuda": each on the GPU of its ``LOCAL_RANK``
            (:func:`own_device`).
        seconds: for which a process waits for another one, at most.

    Raises:
        SpecError: the launcher restarts processes, but not in a way that is reliable with gloo; or
            there is no such device.
        LimerankError: they do not find each other, or one of them has ended.
    """
    if not launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield Alone()
        return
    check_restarts()
    position = device_of(own_device(device))
    backend = "nccl" if position.type == "cuda" else "gloo"
    if position.type == "cuda":
        torch.cuda.set_device(position)
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=START_SECONDS))
        group = Group(position)
        group.barrier()
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))
    except (RuntimeError, ValueError) as error:
        raise LimerankError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} has not found the others "
            f"at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within {START_SECONDS} s "
            f"({_first_line(error)}); check that all of them were started and reach this address"
        ) from None
    try:
        yield group
    finally:
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """The device of this process: of "cuda", the GPU with the number ``LOCAL_RANK``.

    Raises:
        SpecError: the device names one GPU, which several processes cannot share.
    """
    if not launched() or int(os.environ["WORLD_SIZE"]) == 1:
        return device
    if device.startswith("cuda:"):
        raise SpecError(
            f"the device {device!r} is one GPU for all {os.environ['WORLD_SIZE']} processes; give "
            "cuda: each process then takes the GPU of its LOCAL_RANK"
        )
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def check_restarts() -> None:
    """Refuse restarts by torchrun that would hang: SpecError."""
    restarts = os.environ.get(RESTARTS, "0")
    if restarts != "0" and os.environ.get(SHARED_STORE) == str(True):
        raise SpecError(
            f"torchrun restarts processes up to {restarts} times, and they would meet at the "
            f"address of those before, where restarts fail or hang: set {UNSHARED}=1 in the "
            "environment of torchrun (of several machines with --rdzv-backend c10d), or leave "
            "--max-restarts out and run the command again"
        )


class Group:
    """The world of the processes of torch.distributed's default group.

    Args:
        device: where this process computes. Tensors that it sends go through this device, and come
            back on the device that they were on.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device

    def sum(self, values: Tensor) -> Tensor:
        own = values.to(self.device, copy=True)
        self._call(lambda: dist.all_reduce(own))
        return own.to(values.device)

    def gather(self, values: Tensor) -> list[Tensor]:
        own = values.to(self.device).contiguous()
        count = torch.tensor([len(own)], device=self.device)
        counts = [torch.empty_like(count) for _ in range(self.size)]
        self._call(lambda: dist.all_gather(counts, count))
        sizes = [int(one) for one in counts]
        most = max(sizes)
        padded = own
        if len(own) < most:
            padded = own.new_zeros(most, *own.shape[1:])
            padded[: len(own)] = own
        found = [torch.empty_like(padded) for _ in sizes]
        self._call(lambda: dist.all_gather(found, padded))
        return [one[:size].to(values.device) for one, size in zip(found, sizes, strict=True)]

    def exchange(self, parts: Sequence[Tensor], sizes: Sequence[int] | None = None) -> list[Tensor]:
        sent = [len(part) for part in parts]
        if sizes is None:
            counts = torch.tensor(sent, device=self.device)
            theirs = torch.empty_like(counts)
            self._call(lambda: dist.all_to_all_single(theirs, counts))
            sizes = theirs.tolist()
        received = list(sizes)
        own = torch.cat(list(parts)).to(self.device).contiguous()
        found = own.new_empty(sum(received), *own.shape[1:])
        self._call(lambda: dist.all_to_all_single(found, own, received, sent))
        return list(found.to(parts[0].device).split(received))

    def from_first(self, values: Tensor) -> Tensor:
        own = values.to(self.device, copy=True).contiguous()
        self._call(lambda: dist.broadcast(own, 0))
        return own.to(values.device)

    def barrier(self) -> None:
        self.sum(torch.zeros(1))

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except RuntimeError as error:  # all that torch.distributed raises
            raise LimerankError(
                f"process {self.rank} of {self.size} has lost another one ({_first_line(error)}); "
                "the message of the process that ended first says why. Run the same command again "
                "to resume from the last checkpoint"
            ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
