"""The gradients of a batch from those of its parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limerank.world import World


def sum_gradients(
    world: World, dense: Sequence[Tensor], tables: Sequence[Tensor], numbers: Tensor
) -> Tensor:
    """Replace the gradients of this process by those of the mean over the impressions of all.

    Dense gradients and the numbers are summed in one call. Of tables the rows that a process has
    used are sent, and summed in the order of the ranks, so that every process ends with the same
    bits.

    Args:
        world: the processes. Each has the gradients of a sum over its own impressions.
        dense: weights with dense gradients.
        tables: weights [rows, d] with sparse gradients.
        numbers: of this process, f32 or f64 [k]; the first one counts its impressions.

    Returns:
        The sums of the numbers over all processes, [k].
    """
    parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in dense]
    flat = world.sum(torch.cat([part.flatten() for part in parts] + [numbers]))
    *parts_flat, sums = flat.split([*(part.numel() for part in parts), len(numbers)])
    share = 1 / sums[0].clamp(min=1)
    for one, part, found in zip(dense, parts, parts_flat, strict=True):
        one.grad = (found * share).view_as(part)
    for table in tables:
        rows, values = torch.zeros(0, dtype=torch.int64), table.new_zeros(0, table.shape[1])
        if table.grad is not None:
            grad = table.grad.coalesce()
            rows, values = grad.indices()[0], grad.values()
        rows = torch.cat(world.gather(rows.to(table.device)))
        values = torch.cat(world.gather(values)) * share
        table.grad = torch.sparse_coo_tensor(
            rows[None], values, table.shape, check_invariants=False
        )
    return sums
