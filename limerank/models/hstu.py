"""HSTU (arXiv 2402.17152) as a ranker: candidates read the history and themselves, block by block.

The history's own part does not depend on candidates and is computed once per request; candidates
then pass through all blocks (the paper's M-FALCON). Without gradients both go in pieces that stay
in the processor's cache: a piece of the history reads what came before it, so it can pass through
all blocks before the next one enters, and nothing of the size N x N ever exists.

Shape letters: B requests, N history positions, M candidates, U items, d width, H heads, e = d / H,
L blocks, g first-layer outputs of the head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from limerank.data.batch import Users
from limerank.kernels.attention import real_positions
from limerank.kernels.dispatch import fast_inference
from limerank.models.anchors import Anchored
from limerank.models.config import AttentionConfig, DataShape
from limerank.models.layers import (
    AGE_BUCKETS,
    age_bucket,
    join_heads,
    positions_from_newest,
    split_heads,
)
from limerank.models.ranker import Ranker, at_once, pieces, plus
from limerank.models.tables import TABLE_STD

EVENTS = 128
"""Events of histories that go through the blocks at once, without gradients."""
CANDIDATES = 256
"""Candidates that do, of all requests together."""
KEYS = 1024
"""Events of each history that they read at once."""


class VectorTerms(NamedTuple):
    """Of each item: ``vectors`` [..., d], what enters the blocks, and ``head`` [..., g]."""

    vectors: Tensor
    head: Tensor


class BlockState(NamedTuple):
    """Of each request: ``keys`` and ``values`` [B, L, N, d] of the events in each block, ``bias``
    [B, N, L], what a candidate's logits of them get added; ``lengths`` [B]; ``head`` [B, g]."""

    keys: Tensor
    values: Tensor
    bias: Tensor
    lengths: Tensor
    head: Tensor
    anchored: Anchored | None = None


class HstuConfig(AttentionConfig):
    """Settings of HSTU."""

    model: str = "hstu"
    blocks: int = Field(3, ge=1)
    """Blocks, one after the other."""
    positions: int = Field(1024, ge=1)
    """Relative positions of two events with a bias of their own; all larger ones share the last."""


class Hstu(Ranker):
    """Blocks X <- X + Linear(LN(A V) * U), A = SiLU(Q K^T / sqrt(e) + bias) / (n + 1);
    o = LN(x) of the candidate.

    An event reads itself and those before it; a candidate reads all events and itself. The bias
    is a learned number for the relative position plus one for the difference in time. A candidate
    has the position after the newest event, and that event's time: the time of the request enters
    by the context, as in every model here.
    """

    config: HstuConfig

    pairwise = True

    def __init__(self, shape: DataShape, config: HstuConfig) -> None:
        super().__init__(shape, config)
        self.stack = nn.ModuleList(HstuBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.head = self.new_head()
        self.of_position = nn.Embedding(config.positions, config.blocks)
        self.of_time = nn.Embedding(AGE_BUCKETS, config.blocks)
        for table in (self.of_position, self.of_time):
            nn.init.normal_(table.weight, std=TABLE_STD)

    def bias(self, positions: Tensor, buckets: Tensor) -> Tensor:
        """The bias of the logits at relative positions and buckets of time, for each block:
        [..., L]. Heads share it."""
        return self.of_position(positions) + self.of_time(buckets)

    def encode_items(self, vectors_ud: Tensor) -> VectorTerms:
        return VectorTerms(vectors_ud, self.head.from_item(vectors_ud))

    def user_state(self, users: Users, vectors_ud: Tensor) -> BlockState:
        x_bnd = self.event_tower(users, vectors_ud)
        size, lengths = x_bnd.shape[1], users.lengths
        share_bn = real_positions(lengths, size) / (lengths + 1)[:, None]
        history = self._history_in_pieces if fast_inference() else self._history
        keys, values = history(x_bnd, users.age, share_bn)
        position_bn = (1 + positions_from_newest(lengths, size, self.config.positions)).clamp(
            max=self.config.positions - 1
        )
        return BlockState(
            keys,
            values,
            self.bias(position_bn, age_bucket(users.age)),
            lengths,
            self.head.from_request(*self.user_tower(users)),
        )

    def _history(self, x_bnd: Tensor, age_bn: Tensor, share_bn: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the events in each block, [B, L, N, d]; values are multiplied by the
        shares."""
        position_n = torch.arange(x_bnd.shape[1], device=x_bnd.device)
        position_nn = (position_n[:, None] - position_n).clamp(0, self.config.positions - 1)
        bucket_bnn = age_bucket((age_bn[:, None] - age_bn[..., None]).clamp(min=0))
        bias_bnnl = self.bias(position_nn, bucket_bnn)
        keys, values = [], []
        for depth, block in enumerate(self.stack):
            assert isinstance(block, HstuBlock)
            u, q, k, v = block.parts(x_bnd)
            v = v * share_bn[..., None].to(v.dtype)
            keys.append(k)
            values.append(v)
            if depth + 1 < len(self.stack):
                read_bnd = block.read(q, k, v, bias_bnnl[..., depth], causal=True)
                x_bnd = x_bnd + block.update(read_bnd, u)
        return torch.stack(keys, 1), torch.stack(values, 1)

    def _history_in_pieces(
        self, x_bnd: Tensor, age_bn: Tensor, share_bn: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same, :data:`EVENTS` at a time."""
        batch, size, d = x_bnd.shape
        keys = x_bnd.new_empty(batch, len(self.stack), size, d)
        values = torch.empty_like(keys)
        of_position_lp, of_time_la = self.of_position.weight.T.contiguous(), self.of_time.weight.T
        some = at_once(EVENTS, batch, x_bnd.device)
        for start in range(0, size, some):
            stop = min(start + some, size)
            # Row i and column j need the bias of relative position i - j: the rows overlap.
            back_x = torch.arange(stop - 1, start - stop, -1, device=x_bnd.device)
            back_x = back_x.clamp(0, self.config.positions - 1)
            bucket_bmn = age_bucket(
                (age_bn[:, None, :stop] - age_bn[:, start:stop, None]).clamp_(min=0)
            )
            x_bmd = x_bnd[:, start:stop]
            for depth, block in enumerate(self.stack):
                assert isinstance(block, HstuBlock)
                u, q, k, v = block.parts(x_bmd)
                keys[:, depth, start:stop] = k
                values[:, depth, start:stop] = v * share_bn[:, start:stop, None].to(v.dtype)
                if depth + 1 < len(self.stack):
                    bias_bmn = of_time_la[depth].index_select(0, bucket_bmn.flatten())
                    bias_bmn = bias_bmn.view_as(bucket_bmn)
                    bias_bmn += of_position_lp[depth, back_x].unfold(0, stop, 1).flip(0)
                    read_bmd = block.read(
                        q, keys[:, depth, :stop], values[:, depth, :stop], bias_bmn, causal=True
                    )
                    x_bmd = x_bmd + block.update(read_bmd, u)
        return keys, values

    def score(self, state: BlockState, terms: VectorTerms, extra: Tensor | None = None) -> Tensor:
        batch = len(state.head)
        some = at_once(CANDIDATES, batch, state.head.device)
        if fast_inference() and terms.vectors.shape[-2] > some:
            return torch.cat([self.score(state, *piece) for piece in pieces(terms, some, extra)], 1)
        x_bmd = terms.vectors.expand(batch, *terms.vectors.shape[-2:])
        share_b = 1.0 / (state.lengths + 1)
        zero = torch.zeros((), dtype=torch.long, device=x_bmd.device)
        bias_l = self.bias(zero, zero)
        for depth, block in enumerate(self.stack):
            assert isinstance(block, HstuBlock)
            u, q, k, v = block.parts(x_bmd)
            of_past = block.read(
                q, state.keys[:, depth], state.values[:, depth], state.bias[:, None, :, depth]
            )
            of_self = block.read_self(q, k, v * share_b[:, None, None], bias_l[depth])
            x_bmd = x_bmd + block.update(of_past + of_self, u)
        o_bmd = self.norm(x_bmd)
        sums_bmg = self.head.from_links(o_bmd) + terms.head + state.head[:, None]
        return self.head(plus(sums_bmg, extra))

    def scratch(self, state: BlockState) -> int:
        return super().scratch(state) + 2 * self.config.heads * state.keys.shape[2]


class HstuBlock(nn.Module):
    """The dense layers of one block, and its attention."""

    def __init__(self, config: HstuConfig) -> None:
        super().__init__()
        d = config.width
        self.heads = config.heads
        self.norm = nn.LayerNorm(d)
        self.uqkv = nn.Linear(d, 4 * d)
        self.norm_read = nn.LayerNorm(d)
        self.out = nn.Linear(d, d)
        self.dropout = nn.Dropout(config.dropout)

    def parts(self, x_bnd: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """U, Q, K, V, each [B, N, d]."""
        u, q, k, v = F.silu(self.uqkv(self.norm(x_bnd))).chunk(4, -1)
        return u, q, k, v

    def read(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, causal: bool = False
    ) -> Tensor:
        """SiLU(q k^T / sqrt(e) + bias) v: [B, M, d]; ``v`` is multiplied by the shares, 0 where
        padded. If causal, the last query is at the position of the last key."""
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        q = q * q.shape[-1] ** -0.5
        bias = bias[:, None].to(q.dtype)
        if not fast_inference():
            a = F.silu(q @ k.mT + bias)
            return join_heads((a.tril(a.shape[-1] - a.shape[-2]) if causal else a) @ v)
        read = torch.zeros_like(q)
        ahead = k.shape[2] - q.shape[2]
        step = at_once(KEYS, 1, k.device)
        for at in range(0, k.shape[2], step):
            some = slice(at, at + step)
            a = F.silu((q @ k[:, :, some].mT).add_(bias[..., some]), inplace=True)
            if causal and at + step > ahead:
                a.tril_(ahead - at)
            read += a @ v[:, :, some]
        return join_heads(read)

    def read_self(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """The values that each position reads from itself, [B, M, d]."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        logits = (q * k).sum(-1, keepdim=True) * q.shape[-1] ** -0.5
        return (F.silu(logits + bias) * v).flatten(-2)

    def update(self, read: Tensor, u: Tensor) -> Tensor:
        """The update of the positions that read this."""
        found: Tensor = self.dropout(self.out(self.norm_read(read) * u))
        return found
