"""Impression features in a model: what a candidate's price or position adds to its scoring.

Shape letters: F impression features, s numbers that are added to (see limerank.models.ranker).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limerank.data.batch import Impressions
from limerank.models.config import DataShape, ModelConfig
from limerank.models.tables import EmbeddingTable


class ImpressionTower(nn.Module):
    """Impression features of a candidate -> its part of the first layer: [..., F] -> [..., s].

    ``A_x (sum of the token embeddings) + B_x numbers``: both matrices start at zero, and what is
    unknown adds nothing. In training, all features of an impression, or single ones, are hidden at
    random: an unknown one is the same as a hidden one.
    """

    def __init__(self, shape: DataShape, config: ModelConfig, added: int) -> None:
        super().__init__()
        self.table = EmbeddingTable(shape.impression_tokens, config.width)
        self.from_tokens = nn.Linear(config.width, added, bias=False)
        self.from_numbers = nn.Linear(shape.impression_features, added, bias=False)
        nn.init.zeros_(self.from_tokens.weight)
        nn.init.zeros_(self.from_numbers.weight)
        self.dropout = config.impression_dropout

    def forward(self, shown: Impressions) -> Tensor:
        if self.training and self.dropout:
            draws = torch.rand(shown.tokens.shape, device=shown.tokens.device)
            all_of_them = torch.rand_like(draws[..., :1])
            shown = shown.where((draws >= self.dropout) & (all_of_them >= self.dropout))
        *batch, features = shown.tokens.shape
        sums_nd = F.embedding_bag(
            shown.tokens.reshape(-1, features),
            self.table.weight,
            mode="sum",
            sparse=True,
            padding_idx=0,
        )
        of_tokens = self.from_tokens(sums_nd).view(*batch, self.from_tokens.out_features)
        sums: Tensor = of_tokens + self.from_numbers(shown.numbers)
        return sums
