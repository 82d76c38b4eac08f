"""The towers that rankers share: what they know of items, of events, of users and contexts.

Shape letters: B requests, N history positions, U items, d width, A tokens per event, C context
tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limerank.data.batch import Features, Items, Users
from limerank.kernels.dispatch import fast_inference
from limerank.models.config import DataShape, ModelConfig
from limerank.models.curves import Curves
from limerank.models.noise import hidden_ids
from limerank.models.tables import ID_STD, TABLE_STD, EmbeddingTable

MULTI_HOT_ROWS = 256
"""In training, tables of at most so many event tokens are summed as a product with zeros and
ones."""
OUTCOME_STD = 0.5
"""Spread of the embedded outcome of an event, beside an item vector of spread 1: a click on an
item and its mere impression differ from the first step on. From 0.1, training on a small log ends
before they do."""


class Content(nn.Module):
    """Sum of the token embeddings of a row, a linear map of its numbers, and curves of some:
    Features -> [n, d].

    Args:
        tokens: rows of the table.
        numeric: numbers of a row.
        width: d.
        curved: those of the numbers that have curves.
    """

    def __init__(self, tokens: int, numeric: int, width: int, curved: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.table = EmbeddingTable(max(tokens, 1), width)
        self.numeric = nn.Linear(numeric, width, bias=False) if numeric else None
        if self.numeric is not None:
            nn.init.normal_(self.numeric.weight, std=TABLE_STD)
        self.curves = Curves(curved, width) if curved else None

    def forward(self, features: Features) -> Tensor:
        vectors_nd = F.embedding_bag(
            features.tokens,
            self.table.weight,
            features.offsets,
            mode="sum",
            sparse=True,
            per_sample_weights=features.weights.to(self.table.weight.dtype),
            include_last_offset=True,
        )
        if self.numeric is not None:
            vectors_nd = vectors_nd + self.numeric(features.numeric)
        if self.curves is not None:
            vectors_nd = vectors_nd + self.curves(features.numeric)
        return vectors_nd


class ItemTower(nn.Module):
    """t = LN(id embedding + content): Items -> [U, d].

    In training the id is hidden at random, so that an unseen id is the same as a dropped one.
    """

    id_shares: Tensor
    """Of each row of the id table, the factor of its embedding, f32: n / (n + k) of an item with n
    impressions in training; with ``id_evidence``."""
    statistics: Tensor | None
    """Collaborative statistics of each row, f32 [item ids, S] (limerank.training.collaborative)."""

    def __init__(self, shape: DataShape, config: ModelConfig) -> None:
        super().__init__()
        self.ids = EmbeddingTable(shape.item_ids, config.width, ID_STD)
        curved = shape.item_numbers if config.curves else ()
        self.content = Content(shape.item_tokens, shape.item_numeric, config.width, curved)
        self.norm = nn.LayerNorm(config.width)
        self.id_dropout = config.id_dropout
        self.id_evidence = config.id_evidence
        if self.id_evidence:
            self.register_buffer("id_shares", torch.ones(shape.item_ids))
        numbers = config.vectors + (2 if config.base_rates else 0)
        empty = torch.zeros(shape.item_ids, numbers) if numbers else None
        self.register_buffer("statistics", empty)
        if numbers:
            with torch.random.fork_rng(devices=[]):
                self.of_statistics = nn.Linear(numbers, config.width, bias=False)
                nn.init.normal_(self.of_statistics.weight, std=TABLE_STD)
        self.step_key: int | None = None
        """Decides which ids are hidden; see :meth:`Ranker.begin_step`."""

    def forward(self, items: Items) -> Tensor:
        ids = items.ids
        if self.training and self.id_dropout:
            key = int(torch.randint(2**63 - 1, ())) if self.step_key is None else self.step_key
            ids = ids * ~hidden_ids(ids, self.id_dropout, key)
        of_ids = self.ids(ids)
        if self.id_evidence:
            of_ids = of_ids * self.id_shares[ids][:, None]
        sums_ud = of_ids + self.content(items.content)
        if self.statistics is not None:
            given = self.statistics[ids] if items.statistics is None else items.statistics
            if items.statistics is not None:
                given = given * (ids > 0)[:, None]
            sums_ud = sums_ud + self.of_statistics(given)
        vectors_ud: Tensor = self.norm(sums_ud)
        return vectors_ud


class EventTower(nn.Module):
    """e = item vector + embeddings of its outcome and its age: -> [B, N, d]."""

    def __init__(self, shape: DataShape, config: ModelConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(shape.event_tokens, config.width)
        nn.init.normal_(self.table.weight, std=OUTCOME_STD)

    def forward(self, users: Users, vectors_ud: Tensor) -> Tensor:
        return _sum(F.embedding(users.items, vectors_ud), self._outcomes(users, self.table.weight))

    def through(self, linear: nn.Linear, users: Users, vectors_ud: Tensor) -> Tensor:
        """``linear(self(users, vectors_ud))`` as [B, N, x], multiplied once per item."""
        items_ux = F.linear(vectors_ud, linear.weight, linear.bias)
        table_ax = F.linear(self.table.weight, linear.weight)
        return _sum(F.embedding(users.items, items_ux), self._outcomes(users, table_ax))

    def _outcomes(self, users: Users, table_ax: Tensor) -> Tensor:
        """Sum of each event's rows of a table: [B, N, x]."""
        batch, length, tokens = users.tokens.shape
        rows_na = users.tokens.reshape(batch * length, tokens)
        if not fast_inference() and len(table_ax) <= MULTI_HOT_ROWS:
            # Tokens of different features never coincide: counts are 0 or 1. A product with them
            # has a far cheaper backward than a bag of embeddings.
            hot_nt = table_ax.new_zeros(len(rows_na), len(table_ax)).scatter_(1, rows_na, 1.0)
            sums_nx = hot_nt @ table_ax
        else:
            sums_nx = F.embedding_bag(rows_na, table_ax, mode="sum")
        return sums_nx.view(batch, length, table_ax.shape[1])


def _sum(new: Tensor, more: Tensor) -> Tensor:
    """Their sum, in the memory of ``new`` if no gradients are recorded."""
    return new + more if torch.is_grad_enabled() else new.add_(more)


class UserTower(nn.Module):
    """The user's own features -> u [B, d], and the request's context -> c [B, d]."""

    def __init__(self, shape: DataShape, config: ModelConfig) -> None:
        super().__init__()
        curved = shape.user_numbers if config.curves else ()
        self.content = Content(shape.user_tokens, shape.user_numeric, config.width, curved)
        self.norm = nn.LayerNorm(config.width)
        self.context = nn.Embedding(max(shape.context_tokens, 1), config.width)
        nn.init.normal_(self.context.weight, std=TABLE_STD)

    def forward(self, users: Users) -> tuple[Tensor, Tensor]:
        return self.norm(self.content(users.features)), self.contexts(users.context)

    def contexts(self, tokens_bc: Tensor) -> Tensor:
        """c [B, d] of contexts i64 [B, C]."""
        if tokens_bc.shape[1]:
            return F.embedding_bag(tokens_bc, self.context.weight, mode="sum")
        return self.context.weight.new_zeros(len(tokens_bc), self.context.weight.shape[1])
