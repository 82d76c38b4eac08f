"""SASRec (arXiv 1808.09781): causal self-attention over the history; the user is its last output.

Shape letters: B requests, N history positions, U items, d width, g first-layer outputs of the head.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from limerank.data.batch import Users
from limerank.models.config import AttentionConfig, DataShape
from limerank.models.layers import (
    FeedForward,
    HeadState,
    HeadTerms,
    join_heads,
    positions_from_newest,
    split_heads,
)
from limerank.models.ranker import Ranker, plus
from limerank.models.tables import TABLE_STD


class SasRecConfig(AttentionConfig):
    """Settings of SASRec."""

    model: str = "sasrec"
    blocks: int = Field(3, ge=1)
    """Self-attention blocks, one after the other."""
    positions: int = Field(1024, ge=1)
    """Positions of a history, counted from the newest event, with an embedding of their own; all
    older ones share the last."""


class SasRec(Ranker):
    """X = E + P; blocks X <- X + SA(LN(X)), X <- X + FF(X); o = LN(x_n), zero without events.

    User and candidate are combined in the head alone. Positions count from the newest event.
    """

    config: SasRecConfig

    def __init__(self, shape: DataShape, config: SasRecConfig) -> None:
        super().__init__(shape, config)
        self.positions = nn.Embedding(config.positions, config.width)
        nn.init.normal_(self.positions.weight, std=TABLE_STD)
        self.stack = nn.ModuleList(CausalBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.head = self.new_head()

    def encode_items(self, vectors_ud: Tensor) -> HeadTerms:
        return HeadTerms(self.head.from_item(vectors_ud))

    def user_state(self, users: Users, vectors_ud: Tensor) -> HeadState:
        x_bnd = self.event_tower(users, vectors_ud)
        batch, size, _ = x_bnd.shape
        head_bg = self.head.from_request(*self.user_tower(users))
        if size == 0:
            return HeadState(head_bg)
        at_bn = positions_from_newest(users.lengths, size, self.config.positions)
        x_bnd = x_bnd + self.positions(at_bn)
        for block in self.stack:
            x_bnd = block(x_bnd)
        newest_b = (users.lengths - 1).clamp(min=0)
        o_bd = self.norm(x_bnd[torch.arange(batch, device=x_bnd.device), newest_b])
        o_bd = o_bd * (users.lengths > 0)[:, None]
        return HeadState(head_bg + self.head.from_links(o_bd))

    def score(self, state: HeadState, terms: HeadTerms, extra: Tensor | None = None) -> Tensor:
        return self.head(plus(terms.head + state.head[:, None], extra))


class CausalBlock(nn.Module):
    """Self-attention in which an event reads itself and what came before it, then a feed-forward
    layer. Padding comes after all events, so no event reads it."""

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        d = config.width
        self.heads = config.heads
        self.norm = nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.dropout = nn.Dropout(config.dropout)
        self.feed = FeedForward(d, config.dropout)

    def forward(self, x_bnd: Tensor) -> Tensor:
        q, k, v = (
            split_heads(part, self.heads) for part in self.qkv(self.norm(x_bnd)).chunk(3, -1)
        )
        logits_bhnn = (q * q.shape[-1] ** -0.5) @ k.mT
        later_nn = torch.ones(x_bnd.shape[1], x_bnd.shape[1], device=x_bnd.device).triu(1).bool()
        weights_bhnn = logits_bhnn.masked_fill(later_nn, -torch.inf).softmax(-1)
        x_bnd = x_bnd + self.dropout(self.out(join_heads(weights_bhnn.to(v.dtype) @ v)))
        return x_bnd + self.feed(x_bnd)
