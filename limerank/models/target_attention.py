"""Target attention (MHA): every candidate attends to the full history or to its latest events.

The full-rank form of LIME-MHA: candidates take the place of links, with the same attention, recency
and feed-forward layer. Nothing can be computed before user and candidate are both known.

Shape letters: B requests, N history positions, M candidates, U items, d width, H heads, e = d / H,
g first-layer outputs of the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from limerank.data.batch import Users
from limerank.kernels.attention import softmax_attention
from limerank.kernels.dispatch import fast_inference
from limerank.models.anchors import Anchored
from limerank.models.config import AttentionConfig, DataShape
from limerank.models.layers import FeedForward, join_heads, split_heads, start_forgetting
from limerank.models.ranker import Ranker, at_once, pieces, plus

PIECE = 1024
"""Candidates of all requests together that are scored at once without gradients: what they take
fits into the processor's cache."""


class QueryTerms(NamedTuple):
    """Of each item: ``start`` and ``query`` [..., d]; ``head`` [..., g], its head terms."""

    start: Tensor
    query: Tensor
    head: Tensor


class KeyState(NamedTuple):
    """Of each request: what its events are read by, ``keys`` and ``values`` [B, N, d], ``age``
    [B, N] and ``lengths`` [B]; and ``head`` [B, g], the user's terms."""

    keys: Tensor
    values: Tensor
    age: Tensor
    lengths: Tensor
    head: Tensor
    anchored: Anchored | None = None


class MhaConfig(AttentionConfig):
    """Settings of target attention."""

    model: str = "mha"


class TruncatedMhaConfig(AttentionConfig):
    """Settings of target attention over the latest events."""

    model: str = "truncated-mha"
    events: int = Field(32, ge=1)
    """Latest events that candidates attend to."""

    other_names: ClassVar[Mapping[str, str]] = {**AttentionConfig.other_names, "links": "events"}


class CandidateAttention(Ranker):
    """The common part of rankers whose candidates attend to vectors of the request:
    y = t Wi + Wo softmax(t Wq K^T / sqrt(e) - rate * age) V; o = LN(y + FF(y))."""

    config: AttentionConfig

    pairwise = True

    def __init__(self, shape: DataShape, config: AttentionConfig) -> None:
        super().__init__(shape, config)
        d = config.width
        self.start_query = nn.Linear(d, 2 * d)
        self.key_value = nn.Linear(d, 2 * d)
        self.out = nn.Linear(d, d)
        self.feed = FeedForward(d, config.dropout)
        self.norm = nn.LayerNorm(d)
        self.head = self.new_head()

    def encode_items(self, vectors_ud: Tensor) -> QueryTerms:
        start_ud, query_ud = self.start_query(vectors_ud).chunk(2, -1)
        return QueryTerms(start_ud, query_ud, self.head.from_item(vectors_ud))

    def rate(self) -> Tensor:
        """By how much a logit falls per unit of age, [H]."""
        return torch.zeros(self.config.heads, device=self.out.weight.device)

    def score(self, state: KeyState, terms: QueryTerms, extra: Tensor | None = None) -> Tensor:
        heads, batch = self.config.heads, len(state.head)
        some = at_once(PIECE, batch, state.head.device)
        if fast_inference() and terms.query.shape[-2] > some:
            return torch.cat([self.score(state, *piece) for piece in pieces(terms, some, extra)], 1)
        query_bmd = terms.query.expand(batch, *terms.query.shape[-2:])
        read_bhme = softmax_attention(
            split_heads(query_bmd, heads),
            split_heads(state.keys, heads),
            split_heads(state.values, heads),
            self.rate()[:, None],
            state.age,
            state.lengths,
        )
        y_bmd = terms.start + self.out(join_heads(read_bhme))
        o_bmd = self.norm(y_bmd + self.feed(y_bmd))
        sums_bmg = self.head.from_links(o_bmd) + terms.head + state.head[:, None]
        return self.head(plus(sums_bmg, extra))

    def scratch(self, state: KeyState) -> int:
        return super().scratch(state) + 2 * self.config.heads * state.keys.shape[1]


class TargetAttention(CandidateAttention):
    """K, V = E Wk, E Wv of all events, with a learned rate per head."""

    config: AttentionConfig

    def __init__(self, shape: DataShape, config: AttentionConfig) -> None:
        super().__init__(shape, config)
        self.log_rate = nn.Parameter(torch.empty(config.heads))
        start_forgetting(self.log_rate[:, None])

    def start_at(self, ages_n: Tensor) -> None:
        start_forgetting(self.log_rate[:, None], ages_n)

    def rate(self) -> Tensor:
        return self.log_rate.exp()

    def user_state(self, users: Users, vectors_ud: Tensor) -> KeyState:
        users = self.latest(users)
        kv_bnd = self.event_tower.through(self.key_value, users, vectors_ud)
        keys_bnd, values_bnd = kv_bnd.chunk(2, -1)
        head_bg = self.head.from_request(*self.user_tower(users))
        return KeyState(keys_bnd, values_bnd, users.age, users.lengths, head_bg)

    def latest(self, users: Users) -> Users:
        """The requests with the part of their histories that is attended to."""
        return users


class TruncatedAttention(TargetAttention):
    """Target attention over only the latest ``events`` events; with as many as LIME has links, both
    attend to as many vectors."""

    config: TruncatedMhaConfig

    def latest(self, users: Users) -> Users:
        most, size = self.config.events, users.items.shape[1]
        if size <= most:
            return users
        lengths_b = users.lengths.clamp(max=most)
        positions_bn = (users.lengths - lengths_b)[:, None] + torch.arange(
            most, device=lengths_b.device
        )
        positions_bn = positions_bn.clamp(max=size - 1)
        return replace(
            users,
            items=users.items.gather(1, positions_bn),
            tokens=users.tokens.gather(
                1, positions_bn[..., None].expand(-1, -1, users.tokens.shape[2])
            ),
            age=users.age.gather(1, positions_bn),
            lengths=lengths_b,
        )
