"""Counters of items in a model: what an item's recent rate and popularity add to its scoring.

Shape letters: F counters, s numbers that are added to (see limerank.models.ranker).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limerank.data.counters import COUNTERS

EDGES = 15
"""Between the buckets of a counter."""
BUCKET_WIDTH = 16
"""Numbers of an embedded bucket."""
STD = 0.1
"""Spread of the embedded buckets at the start."""


class CounterTower(nn.Module):
    """Counters of an item -> its part of the first layer: [..., F] -> [..., s].

    ``A (sum of the embeddings of the counters' buckets) + B numbers``: both matrices start at zero.
    Buckets have the same number of training impressions each; numbers are standardised.

    Args:
        items: rows of the id table.
        added: s.
        dropout: share of counters that a training step hides.

    Attributes:
        values: counters of each row of the id table at the end of the log, f32 [items, F]; those of
            row 0 are of an item that was never shown.
    """

    edges: Tensor
    mean: Tensor
    scale: Tensor
    values: Tensor

    def __init__(self, items: int, added: int, dropout: float) -> None:
        super().__init__()
        size = len(COUNTERS)
        self.register_buffer("edges", torch.zeros(size, EDGES))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("values", torch.zeros(items, size))
        self.buckets = nn.Embedding(size * (EDGES + 1), BUCKET_WIDTH)
        nn.init.normal_(self.buckets.weight, std=STD)
        self.from_buckets = nn.Linear(BUCKET_WIDTH, added, bias=False)
        self.from_numbers = nn.Linear(size, added, bias=False)
        nn.init.zeros_(self.from_buckets.weight)
        nn.init.zeros_(self.from_numbers.weight)
        self.dropout = dropout

    @torch.no_grad()
    def fit(self, values_nf: Tensor) -> None:
        """Set edges and scales by counters of training impressions, f32 [n, F]."""
        shares = torch.arange(1, EDGES + 1, dtype=torch.float64) / (EDGES + 1)
        self.edges.copy_(torch.quantile(values_nf.double(), shares, dim=0).T)
        self.mean.copy_(values_nf.mean(0))
        self.scale.copy_(1 / values_nf.std(0, correction=0).clamp(min=1e-3))

    def forward(self, values: Tensor) -> Tensor:
        *batch, size = values.shape
        flat = values.reshape(-1, size)
        at = torch.searchsorted(self.edges, flat.T.contiguous(), right=True).T
        at = at + (EDGES + 1) * torch.arange(size, device=at.device)
        numbers = ((flat - self.mean) * self.scale).clamp(-3, 3)
        if self.training and self.dropout:
            seen = (torch.rand(flat.shape, device=flat.device) >= self.dropout).to(flat.dtype)
            numbers = numbers * seen
            sums = F.embedding_bag(at, self.buckets.weight, per_sample_weights=seen, mode="sum")
        else:
            sums = F.embedding_bag(at, self.buckets.weight, mode="sum")
        found: Tensor = self.from_buckets(sums) + self.from_numbers(numbers)
        return found.view(*batch, -1)
