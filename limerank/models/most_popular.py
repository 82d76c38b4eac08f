"""Most popular: the items with the most positives in the training window, for everyone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limerank.data.batch import TrainingEvents, Users
from limerank.models.anchors import Anchored
from limerank.models.config import DataShape
from limerank.models.fitted import FittedConfig, FittedRanker, RowTerms, rows_of

SMOOTHING = 1.0
"""Positives that are added to those of each item, so that an unseen one has a finite logit."""


class MostPopularConfig(FittedConfig):
    """Settings of the ranking by counts: there are none."""

    model: str = "most-popular"


class RequestState(NamedTuple):
    """Of each request: ``zeros`` [B, 0]: nothing of it counts."""

    zeros: Tensor
    anchored: Anchored | None = None


class MostPopular(FittedRanker):
    """score = log(sum of the weights of the item's positives + 1).

    The softmax of the scores over the catalogue is the smoothed share of each item.
    """

    config: MostPopularConfig
    scores: Tensor

    def __init__(self, shape: DataShape, config: MostPopularConfig) -> None:
        super().__init__(shape, config)
        self.register_buffer("scores", torch.zeros(shape.item_ids))

    def fit(self, events: TrainingEvents, quiet: bool = True) -> None:
        counts = torch.zeros(self.shape.item_ids, dtype=torch.float64)
        for block in events.blocks():
            weights = torch.from_numpy(block.weights).double()
            counts.index_add_(0, torch.from_numpy(block.items), weights)
        counts[0] = 0.0  # all unseen items together are not one popular item
        self.scores.copy_((counts + SMOOTHING).log())

    def user_state(self, users: Users, vectors_ud: Tensor) -> RequestState:
        return RequestState(vectors_ud.new_zeros(len(users.lengths), 0))

    def score(self, state: RequestState, terms: RowTerms, extra: Tensor | None = None) -> Tensor:
        scores_m = self.scores[rows_of(terms.vectors)]
        return self.logits(scores_m.expand(len(state.zeros), scores_m.shape[-1]), extra)
