"""Embedding tables, which may be large."""

from __future__ import annotations

from torch import nn

TABLE_STD = 0.1
"""Standard deviation of embedding tables at the start, and of the contribution of a number of usual
size: with PyTorch's default, numbers would outweigh all categories."""
ID_STD = 0.01
"""Standard deviation of the embeddings of ids at the start: an item starts as its content, and a
rare id stays near it."""


class EmbeddingTable(nn.Embedding):
    """An embedding table with sparse gradients: a step costs as much as the rows that it uses.

    Args:
        rows, width: of the table.
        std: standard deviation of its numbers at the start.
    """

    def __init__(self, rows: int, width: int, std: float = TABLE_STD) -> None:
        self.std = std
        super().__init__(rows, width, sparse=True)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
