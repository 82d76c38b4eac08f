"""The order of scored items: greater values first, of equal ones the lower position."""

from __future__ import annotations

import torch
from torch import Tensor

ABSENT = torch.iinfo(torch.int64).min
"""A key below all others: of an item that is not ranked, or of a rank that no item takes."""


def order_keys(values_bm: Tensor, first: int = 0) -> Tensor:
    """i64 keys [B, M], ordered by greater value, then lower position; NaN comes last, and -0 equals
    0.

    Args:
        values_bm: floating point [B, M]; compared in float32.
        first: position of the first column.
    """
    values_bm = values_bm.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    bits = (values_bm + 0.0).view(torch.int32)  # + 0.0: -0 equals 0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    positions = torch.arange(first, first + values_bm.shape[1], device=values_bm.device)
    return (bits.long() << 32) | (0xFFFFFFFF - positions)


def of_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The positions and values that keys were made of."""
    positions = 0xFFFFFFFF - (keys & 0xFFFFFFFF)
    bits = (keys >> 32).int()
    return positions, (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32).clone()
