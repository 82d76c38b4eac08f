"""Positions of the members of groups that lie one behind the other."""

from __future__ import annotations

import torch
from torch import Tensor


def ragged(first: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Positions ``first[i] .. first[i] + counts[i] - 1`` of all i, and the i of each: i64 [T]."""
    owner = torch.repeat_interleave(counts)
    ends = counts.cumsum(0)
    return torch.arange(len(owner), device=counts.device) + (first - ends + counts)[owner], owner
