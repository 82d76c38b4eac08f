"""The processes that train one model together; today one of them alone.

Every process plans the same steps from the same seed and computes a part of each batch. Losses are
weighted by the part's share of the batch's impressions, so that the sum of the gradients of all
processes is the gradient of the full batch; then every process makes the same update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


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

    def barrier(self) -> None:
        """Wait until every process has come here."""


class Alone:
    """A world of one process."""

    rank, size = 0, 1

    def sum(self, values: Tensor) -> Tensor:
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        return [values]

    def barrier(self) -> None:
        return


def share_of(world: World, impressions: int) -> float:
    """The share that the ``impressions`` of this process have in the batch of all processes."""
    if world.size == 1:
        return 1.0
    total = world.sum(torch.tensor(float(impressions), dtype=torch.float64))
    return impressions / max(float(total), 1.0)


def sum_gradients(world: World, dense: Sequence[Tensor], tables: Sequence[Tensor]) -> None:
    """Replace the gradients of this process by the sums over all processes.

    Args:
        world: the processes.
        dense: weights with dense gradients; summed as one flat tensor.
        tables: weights [rows, d] with sparse gradients; their rows and values are gathered.
    """
    if world.size == 1:
        return
    parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in dense]
    flat = world.sum(torch.cat([part.flatten() for part in parts]))
    for one, part in zip(dense, flat.split([part.numel() for part in parts]), strict=True):
        one.grad = part.view_as(one)
    for table in tables:
        rows, values = torch.zeros(0, dtype=torch.int64), table.new_zeros(0, table.shape[1])
        if table.grad is not None:
            grad = table.grad.coalesce()
            rows, values = grad.indices()[0], grad.values()
        rows = torch.cat(world.gather(rows.to(table.device)))
        values = torch.cat(world.gather(values))
        table.grad = torch.sparse_coo_tensor(
            rows[None], values, table.shape, check_invariants=False
        )
