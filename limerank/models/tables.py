"""Embedding tables, which may be large."""

from __future__ import annotations

from torch import nn

TABLE_STD = 0.1
"""Standard deviation of embedding tables at the start, and of the contribution of a number of usual
size: with PyTorch's default, numbers would outweigh all categories."""


class EmbeddingTable(nn.Embedding):
    """An embedding table with sparse gradients: a step costs as much as the rows that it uses."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width, sparse=True)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=TABLE_STD)
