"""LIME-XOR: blocks in the form of HSTU's, under a mask that allows links and events to read each
other and nothing else; then the links read what has become of the events, as in LIME-MHA.

Shape letters: see limerank.models.lime.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from limerank.data.batch import Users
from limerank.kernels.attention import xor_attention
from limerank.kernels.personal import Stage, affine
from limerank.models.config import DataShape
from limerank.models.layers import Ages, Evidence, split_heads
from limerank.models.lime import Lime
from limerank.models.links import LimeConfig

ITEM_GAIN = 3**-0.5
"""Spread of the logits between items and links at the start, as of any linear layer; with 2 it ends
lower on ml1m."""


class LimeXorConfig(LimeConfig):
    """Settings of LIME-XOR."""

    model: str = "lime-xor"
    blocks: int = Field(3, ge=1)
    """Layers in which links read events: ``blocks - 1`` blocks, in which events read links as well,
    and a last reading as in LIME-MHA. The user's side takes time proportional to it, scoring does
    not."""


class LimeXor(Lime):
    """A stack of blocks in which links read events and events read links, and nothing else; then
    the links read the events that leave the last block, as in LIME-MHA."""

    config: LimeXorConfig

    def __init__(self, shape: DataShape, config: LimeXorConfig) -> None:
        super().__init__(shape, config)
        self.ages = Ages(config.width)
        blocks = [XorBlock(config) for _ in range(config.blocks - 1)]
        self.stack = nn.ModuleList(blocks)
        d = config.width
        parts = [(block.uq.weight[d:], block.kv.weight[:d]) for block in blocks]
        self._start_alike(parts, item_gain=ITEM_GAIN)

    def personalise(self, links_bld: Tensor, users: Users, vectors_ud: Tensor) -> Tensor:
        events_bnd = self.events(users, vectors_ud)
        links_bld, events_bnd = self.through(links_bld, events_bnd, users.lengths)
        return self.read(links_bld, events_bnd, users.age, users.lengths)

    def events(self, users: Users, vectors_ud: Tensor) -> Tensor:
        events_bnd: Tensor = self.event_tower(users, vectors_ud) + self.ages(users.age)
        return events_bnd

    def stage(self) -> Stage:
        stage = super().stage()
        for block in self.blocks():
            stage += affine(block.norm, block.uq, block.kv, block.norm_read)
            stage += [(block.evidence, "log_prior"), *affine(block.out)]
        return stage

    def blocks(self) -> Iterator[XorBlock]:
        for block in self.stack:
            assert isinstance(block, XorBlock)
            yield block

    def through(
        self, links_bld: Tensor, events_bnd: Tensor, count_b: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Links and events after the blocks."""
        for block in self.blocks():
            links_bld, events_bnd = block(links_bld, events_bnd, count_b)
        return links_bld, events_bnd

    def read(
        self, links_bld: Tensor, events_bnd: Tensor, age_bn: Tensor, count_b: Tensor
    ) -> Tensor:
        read: Tensor = self.reading(links_bld, self.reading.key_value(events_bnd), age_bn, count_b)
        return read

    def read_weights(self, users: Users, vectors_ud: Tensor) -> Tensor:
        links_bld = self.contextualise(self.user_tower(users)[0])
        events_bnd = self.events(users, vectors_ud)
        links_bld, events_bnd = self.through(links_bld, events_bnd, users.lengths)
        k_bnd = self.reading.key_value(events_bnd).chunk(2, -1)[0]
        return self.reading.weights(links_bld, k_bnd, users.age, users.lengths)


class XorBlock(nn.Module):
    """U, V, Q, K = SiLU(Linear(LN(X))); A = SiLU(Q K^T / sqrt(e)) * Mxor / n;
    X <- X + Linear(LN(A V) * U), for links and for events; what links read is scaled by
    :class:`~limerank.models.layers.Evidence`."""

    def __init__(self, config: LimeXorConfig) -> None:
        super().__init__()
        d = config.width
        self.heads = config.heads
        self.norm = nn.LayerNorm(d)
        self.uq = nn.Linear(d, 2 * d)
        self.kv = nn.Linear(d, 2 * d)
        self.norm_read = nn.LayerNorm(d)
        self.evidence = Evidence(config.links)
        self.out = nn.Linear(d, d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, links_bld: Tensor, events_bnd: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        normal_bld, normal_bnd = self.norm(links_bld), self.norm(events_bnd)
        (u_bld, q_bhle), (u_bnd, q_bhne) = (self.two(x) for x in (normal_bld, normal_bnd))
        (k_bhle, v_bhle), (k_bhne, v_bhne) = (self.pair(x) for x in (normal_bld, normal_bnd))
        read_bld, read_bnd = xor_attention(q_bhle, k_bhne, v_bhne, q_bhne, k_bhle, v_bhle, lengths)
        links_bld = links_bld + self.dropout(self.link_update(read_bld, u_bld, lengths))
        return links_bld, events_bnd + self._read(read_bnd, u_bnd)

    def link_update(self, read_bld: Tensor, u_bld: Tensor, count_b: Tensor) -> Tensor:
        """What the links add to themselves after reading ``count_b`` events."""
        update_bld = self._read(read_bld, u_bld)
        return update_bld * self.evidence(count_b)[..., None].to(update_bld.dtype)

    def two(self, normal: Tensor) -> tuple[Tensor, Tensor]:
        """U [B, n, d] and Q [B, H, n, e]."""
        u, q = F.silu(self.uq(normal)).chunk(2, -1)
        return u, split_heads(q, self.heads)

    def pair(self, normal: Tensor) -> tuple[Tensor, Tensor]:
        """K and V, [B, H, n, e]."""
        k, v = (split_heads(part, self.heads) for part in F.silu(self.kv(normal)).chunk(2, -1))
        return k, v

    def _read(self, read: Tensor, u: Tensor) -> Tensor:
        update: Tensor = self.out(self.norm_read(read) * u)
        return update
