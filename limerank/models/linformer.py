"""LREA: learned positions project the history to ``l`` slots, which candidates attend to.

Attention of the same rank as LIME's. After Linformer (arXiv 2006.04768): the sequence axis of keys
and values is multiplied by a learned matrix. Its rows belong to positions counted from the newest
event, so that histories of any length share them.

Shape letters: B requests, N history positions, M candidates, U items, d width, H heads, l slots,
P positions, g first-layer outputs of the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from limerank.data.batch import Users
from limerank.kernels.attention import real_positions
from limerank.models.config import AttentionConfig, DataShape
from limerank.models.layers import Ages, positions_from_newest
from limerank.models.target_attention import CandidateAttention, KeyState


class LreaConfig(AttentionConfig):
    """Settings of low-rank attention."""

    model: str = "lrea"
    slots: int = Field(32, ge=1)
    """Vectors that the history is projected to and that candidates attend to, l."""
    positions: int = Field(1024, ge=1)
    """Positions of a history, counted from the newest event, with a row of the projection of their
    own; all older ones share the last."""

    other_names: ClassVar[Mapping[str, str]] = {**AttentionConfig.other_names, "links": "slots"}


class LowRankAttention(CandidateAttention):
    """S = LN(sum over events j of P[position of j] e_j / sqrt(n)), [l, d]; K, V = S Wk, S Wv.

    Slots have no age; each event has an embedding of its age instead.
    """

    config: LreaConfig

    def __init__(self, shape: DataShape, config: LreaConfig) -> None:
        super().__init__(shape, config)
        self.projection = nn.Embedding(config.positions, config.slots)
        self.ages = Ages(config.width)
        self.norm_slots = nn.LayerNorm(config.width)

    def user_state(self, users: Users, vectors_ud: Tensor) -> KeyState:
        events_bnd = self.event_tower(users, vectors_ud) + self.ages(users.age)
        size = events_bnd.shape[1]
        positions_bn = positions_from_newest(users.lengths, size, self.config.positions)
        share_bn = real_positions(users.lengths, size) / users.lengths.clamp(min=1).sqrt()[:, None]
        weights_bnl = self.projection(positions_bn) * share_bn[..., None]
        slots_bld = self.norm_slots(weights_bnl.mT @ events_bnd)
        keys_bld, values_bld = self.key_value(slots_bld).chunk(2, -1)
        slots_b = users.lengths.clamp(max=1) * self.config.slots  # none for an empty history
        age_bl = keys_bld.new_zeros(keys_bld.shape[:2])
        head_bg = self.head.from_request(*self.user_tower(users))
        return KeyState(keys_bld, values_bld, age_bl, slots_b, head_bg)
