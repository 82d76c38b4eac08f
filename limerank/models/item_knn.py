"""Item-kNN: items that the users of the history's items interacted with as well.

With ``n_i`` the users who interacted with item i in the training window, and ``C_ij`` those who
interacted with both (``C_ii``: those who came back to i),

    similarity(i, j) = C_ij / (sqrt(n_i n_j) + shrinkage)
    score(i) = sum over the history's interactions j of 2^(-position_j / half_life) similarity(i, j)

where position 0 is the newest interaction; the cosine of two columns of the matrix of users and
items, shrunk where few users tell (Sarwar et al. 2001; Deshpande and Karypis 2004). The logarithm
of an item's popularity, scaled to at most :data:`POPULARITY`, is added, so that items that the
history says nothing of follow by popularity.

Shape letters: B requests, N history positions, M candidates, I rows of the id table, P neighbours
of all items together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from limerank.data.batch import TrainingEvents, Users
from limerank.kernels.attention import real_positions
from limerank.models.anchors import Anchored
from limerank.models.config import DataShape
from limerank.models.cooccurrence import Interacted, Part, best, counted_together
from limerank.models.fitted import FittedConfig, FittedRanker, RowTerms, Sized, rows_of
from limerank.progress import Bar

POPULARITY = 1e-3
"""Of popularity in the score: less than a similarity that matters."""


class ItemKnnConfig(FittedConfig):
    """Settings of item-kNN."""

    unused: ClassVar[frozenset[str]] = FittedConfig.unused - {"neighbours"}

    model: str = "item-knn"
    neighbours: int = Field(200, ge=1)
    """Most similar items that are stored of each item, at most: 8 bytes each."""
    shrinkage: float = Field(10.0, ge=0)
    """Users that are added to the norm of a similarity, so that a pair of rare items which two
    users share by chance is not the most similar one."""
    half_life: float = Field(4.0, gt=0)
    """Interactions after which an interaction of the history counts half."""
    window: int = Field(100, ge=1)
    """Latest different items of a user that are counted in training, at most. Time and memory grow
    with it. Time is bounded besides: of items with very many users, evenly drawn ones are counted
    (16,384, and fewer where all items together would take more than some minutes)."""


class SimilarItems(Sized):
    """The most similar items of each row of the id table: ``ends`` i64 [I], ``items`` i32 [P] and
    ``similarities`` f32 [P], row after row."""

    ends: Tensor
    items: Tensor
    similarities: Tensor

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.register_buffer("ends", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("items", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("similarities", torch.zeros(0))

    def store(
        self,
        counts: NDArray[np.int64],
        items: list[NDArray[np.int32]],
        similarities: list[NDArray[np.float32]],
    ) -> None:
        """Replace all; ``counts``: of each row."""
        self.ends = torch.from_numpy(np.cumsum(counts))
        self.items = torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *items]))
        self.similarities = torch.from_numpy(
            np.concatenate([np.zeros(0, np.float32), *similarities])
        )

    def sums(self, rows_n: Tensor, weights_n: Tensor) -> Tensor:
        """The weighted sum of the similarities to some rows, f32 [I]."""
        ends = self.ends[rows_n]
        lengths = ends - torch.where(rows_n > 0, self.ends[(rows_n - 1).clamp(min=0)], 0)
        owner = torch.repeat_interleave(lengths)
        first = lengths.cumsum(0) - lengths
        at = torch.arange(len(owner), device=owner.device) - (first - (ends - lengths))[owner]
        sums_i = self.similarities.new_zeros(len(self.ends))
        return sums_i.index_add_(0, self.items[at], self.similarities[at] * weights_n[owner])


class InteractionState(NamedTuple):
    """Of each request: ``rows`` i64 [B, N] of the id table and ``weights`` f32 [B, N] of its
    interactions, 0 where there is none."""

    rows: Tensor
    weights: Tensor
    anchored: Anchored | None = None


class ItemKnn(FittedRanker):
    """See the module's text."""

    config: ItemKnnConfig
    popularity: Tensor
    token: Tensor

    def __init__(self, shape: DataShape, config: ItemKnnConfig) -> None:
        super().__init__(shape, config)
        self.neighbours = SimilarItems(shape.item_ids)
        self.register_buffer("popularity", torch.zeros(shape.item_ids))
        self.register_buffer("token", torch.tensor(-1))
        """The event token of an interaction; -1: every event is one."""

    def fit(self, events: TrainingEvents, quiet: bool = True) -> None:
        rows = self.shape.item_ids
        interacted = Interacted.of(events, rows, self.config.window)
        popularity = interacted.weights
        share = np.log1p(popularity) / max(np.log1p(popularity.max()), 1e-9)
        self.popularity.copy_(torch.from_numpy(POPULARITY * share))
        self.token.fill_(-1 if events.token is None else events.token)
        found = list(_similar(interacted, rows, self.config, quiet))
        counts = np.concatenate([np.zeros(0, np.int64), *(part.counts for part in found)])
        self.neighbours.store(
            counts, [part.items for part in found], [part.similarities for part in found]
        )

    def user_state(self, users: Users, vectors_ud: Tensor) -> InteractionState:
        rows_bn = rows_of(vectors_ud)[users.items]
        counted_bn = real_positions(users.lengths, users.items.shape[1]) & (rows_bn > 0)
        if int(self.token) >= 0:
            counted_bn &= (users.tokens == self.token).any(-1)
        later_bn = counted_bn.flip(1).cumsum(1).flip(1) - 1  # interactions after each
        weights_bn = torch.exp2(-later_bn / self.config.half_life) * counted_bn
        return InteractionState(rows_bn, weights_bn)

    def score(
        self, state: InteractionState, terms: RowTerms, extra: Tensor | None = None
    ) -> Tensor:
        batch = len(state.rows)
        rows_bm = rows_of(terms.vectors)
        rows_bm = rows_bm.expand(batch, rows_bm.shape[-1])
        scores_bm = self.popularity[rows_bm]
        for b in range(batch):  # one request at a time: memory holds one row of the catalogue
            counted = state.weights[b] > 0
            sums_i = self.neighbours.sums(state.rows[b, counted], state.weights[b, counted])
            scores_bm[b] += sums_i[rows_bm[b]]
        return self.logits(scores_bm, extra)


def _similar(
    interacted: Interacted, rows: int, config: ItemKnnConfig, quiet: bool
) -> Iterator[Part]:
    """The neighbours of all rows, in parts."""
    n = interacted.users_of_items
    name = f"{config.model}: items of the same users"
    with Bar(name, total=rows, unit="items", quiet=quiet) as bar:
        for low, high, owner, other, together, _ in counted_together(interacted, rows):
            item = owner + low
            shared = np.where(item == other, interacted.again[item], together[:, 0])
            similarity = shared / (np.sqrt(n[item] * n[other]) + config.shrinkage)
            yield best(owner, other, similarity.astype(np.float32), high - low, config.neighbours)
            bar.advance(high - low)
